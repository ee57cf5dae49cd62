// The one algorithm of the collectives whose ranks share memory: thread and shm differ only in how they get
// it.
//
// A call writes what others shall read into this rank's slot, posts a phase, waits until all ranks posted it,
// and reads. Invariants: a rank reads slots only between the end of a phase and its own next post, and writes
// a slot only when all ranks have posted a later phase than the one whose data it holds (region.h).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "worker/collective/call.h"
#include "worker/collective/collective.h"
#include "worker/collective/region.h"
#include "worker/collective/tree_sum.h"

namespace phalanx {

// TreeAllReduce is two-shot from this many bytes that a rank would read in one (count * 4 * subtrees of all
// ranks): measured, from there the second wait costs less than the reading it saves. With one subtree on each
// of two ranks it saves none.
inline constexpr int64_t kTwoShotBytes = 64 * 1024;

class RegionCollective : public Collective {
 public:
  // `region` is laid out by `layout`.
  RegionCollective(const CollectiveOptions& options, RegionLayout layout, Region region);
  // Tells the peers that this rank left.
  ~RegionCollective() override;

  // Where ranks are processes, once this one is put down in the region: a thread of its own gives signs of
  // life, and ends the collective when a peer gives none.
  void StartBeating();

  // Waits for all ranks of the group, until `deadline` (named as connect_timeout_ms). All ranks call it
  // first, or none.
  absl::Status Connect(std::chrono::steady_clock::time_point deadline);

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  absl::StatusOr<float*> SumsBuffer(int64_t count) override;
  absl::Status TreeAllReduce(int64_t count, float* out) override;
  absl::Status AllGather(const void* in, int64_t bytes, void* out) override;
  absl::Status Broadcast(void* data, int64_t bytes, int root) override;
  absl::Status Barrier() override;
  absl::Status Check() const override;
  void Abort(const std::string& reason) override;
  void End(const absl::Status& error) override { Fail(error, error).IgnoreError(); }

 private:
  using Clock = std::chrono::steady_clock;

  char* at(int64_t offset) const { return static_cast<char*>(region_.memory.get()) + offset; }
  Clock::time_point CallDeadline() const;

  // The error this collective died of, if it did.
  absl::Status CheckUsable() const ABSL_LOCKS_EXCLUDED(mu_);
  // Dies of `status` unless dead already; peers are told `told`. Returns what it died of.
  absl::Status Fail(const absl::Status& status, const absl::Status& told) ABSL_LOCKS_EXCLUDED(mu_);
  // Dies of something that this rank alone knows.
  absl::Status FailHere(const absl::Status& status);

  // Posts the next phase and waits until all ranks did.
  absl::Status Sync(const CollectiveCall& call, Clock::time_point deadline, int64_t timeout_ms);
  absl::Status WaitForPhase(const CollectiveCall& call, Clock::time_point deadline, int64_t timeout_ms);
  bool IsPhaseOver() const;
  std::vector<int> MissingRanks() const;
  // An error when a peer's process ended or it left. `doing`: "while the ranks ...".
  absl::Status CheckPeers(const std::string& doing) const;
  absl::Status CheckCalls(const CollectiveCall& call) const;
  // The thread of its own.
  void Beat() ABSL_LOCKS_EXCLUDED(mu_);

  // Constant after construction.
  const CollectiveOptions options_;
  const RegionLayout layout_;
  const Region region_;

  // Of the one caller.
  uint32_t phase_ = kStartPhase;  // last phase posted
  int64_t sums_count_ = -1;       // of SumsBuffer since the last TreeAllReduce; -1: none
  int sums_slot_ = 0;             // flips with each TreeAllReduce
  int gather_slot_ = 0;           // flips with each AllGather or Broadcast
  TreeSum sum_;

  mutable Mutex mu_;
  CondVar changed_;
  std::atomic<bool> failed_{false};  // status_ is an error
  absl::Status status_ ABSL_GUARDED_BY(mu_);

  std::thread beater_;
};

}  // namespace phalanx
