// Exchange: what the ranks of a group of devices exchange in device memory. It is the device's half of a
// collective; the other half (worker/collective/device_collective.h) is a collective between hosts, over
// which the ranks meet, tell each other of errors, and notice who is gone.
//
// Calls enqueue on the Ops' queue and return. Every rank makes the same calls in the same order with the same
// sizes; `call` is a word that says what a call is, equal on all ranks (opaque here). Waits are the device's
// own: they end when the peers came, at a deadline, or after Stop, and what went wrong is in fault().
//
// Calls may be recorded (CUDA graphs). A recorded run of calls begins and ends with Barrier, as which slot a
// call uses is fixed in it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace phalanx {

struct RmsNormParams;

// How the bytes travel.
enum class ExchangePath {
  kAuto,     // the first of the others that can be
  kVirtual,  // ranks in one process on one device, ordered by the host and by events: for tests
  kPeer,     // kernels that read the peers' memory, mapped into this process
  kNccl,     // NCCL's sends, then kernels of ours that add
};

struct ExchangeOptions {
  int rank = 0;
  int size = 1;
  int num_shards = 1;
  int64_t max_elements = 0;      // of TreeAllReduce
  int64_t max_gather_bytes = 0;  // of AllGather and Broadcast
  int64_t connect_timeout_ms = 30000;
  int64_t timeout_ms = 60000;  // of one call, from where the device comes to it
  ExchangePath path = ExchangePath::kAuto;
  int64_t one_shot_bytes = 0;  // see kOneShotBytes in cuda/cuda_exchange.h; 0: that
  // Between hosts, in host memory: out[r * bytes, ...) = in of rank r. All ranks call alike; an error is the
  // group's end.
  std::function<absl::Status(const void* in, int64_t bytes, void* out)> gather;
  int64_t max_host_gather_bytes = 0;
  // Returns when all ranks came to this call; kVirtual's order. Called in every call.
  std::function<absl::Status(uint64_t call)> meet;
  // Asked in waits of the host: an error ends them with it.
  std::function<absl::Status()> check;
};

// What a device met that ended the group.
struct ExchangeFault {
  uint64_t call = 0;         // this rank's
  std::vector<int> missing;  // ranks that did not come to it in time
  int differs = -1;          // a rank that came to another call,
  uint64_t other_call = 0;   // this one
  bool stopped = false;      // a wait ended by Stop
  absl::Status transport;    // NCCL's own error
  bool any() const { return !missing.empty() || differs >= 0 || stopped || !transport.ok(); }
};

// Thread safety: one caller at a time, except Stop and fault.
class Exchange {
 public:
  virtual ~Exchange() = default;
  // Which path was taken, and why not a better one; one line for the log.
  virtual std::string description() const = 0;
  // Whether what calls enqueue may be recorded and replayed.
  virtual bool records() const = 0;

  // As Collective says; all memory is the device's. Arguments are in range.
  virtual absl::StatusOr<float*> SumsBuffer(int64_t count) = 0;
  virtual absl::Status TreeAllReduce(uint64_t call, int64_t count, float* out) = 0;
  // Whether there is one kernel for a TreeAllReduce of `count` with RmsNorm of `norm` behind it; the same on
  // all ranks.
  virtual bool Fuses(int64_t count, const RmsNormParams& norm) const = 0;
  // Where Fuses: both, with their bits; the sums go into no memory. norm.add and add2 say by not being null
  // how many products there are.
  virtual absl::Status TreeAllReduceRmsNorm(uint64_t call, int64_t count, const RmsNormParams& norm) = 0;
  virtual absl::Status AllGather(uint64_t call, const void* in, int64_t bytes, void* out) = 0;
  virtual absl::Status Broadcast(uint64_t call, void* data, int64_t bytes, int root) = 0;
  virtual absl::Status Barrier(uint64_t call) = 0;

  // Ends all waits on the device, now and later; bounded. From then on results are void.
  virtual void Stop() = 0;
  virtual ExchangeFault fault() = 0;
};

}  // namespace phalanx
