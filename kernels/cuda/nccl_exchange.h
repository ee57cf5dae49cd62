// The path over NCCL: its sends and receives bring the peers' rows, a kernel of ours adds them in the tree's
// order, so that the bits are those of the other paths. In mode fast a rank adds its own subtrees, rounds the
// sum to 16 bits, and NCCL's own all-reduce adds those of the ranks, in the order that it likes.
//
// The communicator does not block: each call returns at once or "in progress", and is then asked again and
// again until it is done, the deadline is over, or Stop came. What is on the device's queue has its deadline
// by an event behind it, at which fault() looks. Stop frees what hangs with ncclCommAbort, which itself may
// hang: when it does not return in time the process ends, so that a dead rank never keeps others.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "kernels/cuda/cuda_exchange.h"
#include "kernels/cuda/nccl.h"
#include "kernels/cuda/peers.h"

namespace phalanx::cuda {

inline constexpr int64_t kNcclAbortMs = 2000;

// What ends the process when ncclCommAbort does not return; for tests.
void SetNcclExitForTesting(std::function<void(const std::string& why)> exit);

class NcclExchange : public Exchange {
 public:
  NcclExchange(std::shared_ptr<Runtime> runtime, bool half, bool fast, const ExchangeOptions& options,
               ExchangeLayout layout);
  ~NcclExchange() override;

  absl::Status Open(bool shares_device, const std::string& why);

  std::string description() const override { return description_; }
  bool records() const override { return false; }
  absl::StatusOr<float*> SumsBuffer(int64_t count) override;
  absl::Status TreeAllReduce(uint64_t call, int64_t count, float* out) override;
  bool Fuses(int64_t count, const RmsNormParams& norm) const override;
  absl::Status TreeAllReduceRmsNorm(uint64_t call, int64_t count, const RmsNormParams& norm) override;
  absl::Status AllGather(uint64_t call, const void* in, int64_t bytes, void* out) override;
  absl::Status Broadcast(uint64_t call, void* data, int64_t bytes, int root) override;
  absl::Status Barrier(uint64_t call) override;
  void Stop() override;
  ExchangeFault fault() override;

 private:
  using Clock = std::chrono::steady_clock;
  struct Part {
    int peer;
    const void* send = nullptr;  // or
    void* receive = nullptr;
    int64_t bytes = 0;
  };

  // `enqueue`, which calls NCCL and returns its result, and the wait until the communicator has done it.
  absl::Status Enqueue(uint64_t call, const std::function<int(NcclComm)>& enqueue);
  // All parts at once, in order between two ranks.
  absl::Status Exchange(uint64_t call, const std::vector<Part>& parts);
  // Asks until the communicator has done what it was told.
  absl::Status WaitFor(uint64_t call, const std::string& what, Clock::time_point deadline,
                       int64_t timeout_ms);
  absl::Status Error(const std::string& what, int result);
  absl::Status Fail(uint64_t call, const absl::Status& status);
  // Brings the rows of elements [begin, end) of every rank; `tree` gets where they lie, as if from 0.
  absl::Status GatherRows(uint64_t call, int64_t count, TreeArgs* tree);

  float* own_sums() const { return static_cast<float*>(sums_); }

  const std::shared_ptr<Runtime> runtime_;
  const bool half_, fast_;
  const ExchangeOptions options_;
  const ExchangeLayout layout_;
  const NcclApi* api_ = nullptr;
  std::string description_;

  void* sums_ = nullptr;    // own subtrees
  void* rows_ = nullptr;    // all peers' rows, of one shot or of a slice
  void* narrow_ = nullptr;  // 16-bit sums of mode fast
  void* bytes_ = nullptr;   // for Barrier: a byte to send, and one from each rank
  std::vector<Part> parts_;

  std::atomic<bool> stopped_{false};
  Mutex calls_mu_;  // whoever is inside NCCL
  NcclComm comm_ ABSL_GUARDED_BY(calls_mu_) = nullptr;

  Mutex mu_;
  ExchangeFault fault_ ABSL_GUARDED_BY(mu_);
  // An exchange on the queue, and since when; the next is looked at when it is done.
  void* event_ = nullptr;
  bool pending_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t pending_call_ ABSL_GUARDED_BY(mu_) = 0;
  Clock::time_point pending_since_ ABSL_GUARDED_BY(mu_);
};

}  // namespace phalanx::cuda
