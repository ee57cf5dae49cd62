// Collective: what the ranks of a group exchange inside a step. Implementations: thread (tests), shm (ranks
// on one host); later tcp and nccl. All pass tests/worker/collective/collective_test.cc.
//
// Every rank makes the same calls in the same order with the same sizes. A wait spins briefly, then sleeps,
// and ends with a Status: Unavailable naming the rank that is gone, DeadlineExceeded naming the rank that did
// not come, Cancelled after Abort. After any error the collective is dead: all further calls return that
// error, and the peers are told, so that their waits end as well (Unavailable "rank 1 left the group: ..."
// after an Abort, a wrong argument or the end of a collective's life; the same error for a rank that is gone
// or did not come). Ranks whose calls differ all get FailedPrecondition naming a rank and both calls. Thread
// safety: one caller at a time, except Abort, which any thread may call at any time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/shard_plan.h"

namespace phalanx {

class Collective {
 public:
  virtual ~Collective() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Where this rank writes its subtree sums for the next TreeAllReduce, so that the product's kernel writes
  // straight into what the others read: fp32 [number of this rank's subtrees, count]. Valid until that call
  // returns. InvalidArgument when count exceeds CollectiveOptions::max_elements.
  virtual absl::StatusOr<float*> SumsBuffer(int64_t count) = 0;
  // out[0, count) = the tree's sum (MergeOrder of all ranks' subtrees, fp32, the same bits on every rank and
  // for every number of ranks) of what the ranks wrote into SumsBuffer(count), which must have been called
  // for this call and must not overlap `out`. One-shot for small counts, two-shot for large.
  virtual absl::Status TreeAllReduce(int64_t count, float* out) = 0;
  // out[r * bytes, ...) = in of rank r. `in` may lie in `out`.
  virtual absl::Status AllGather(const void* in, int64_t bytes, void* out) = 0;
  // data of `root` is copied to everybody's.
  virtual absl::Status Broadcast(void* data, int64_t bytes, int root) = 0;
  virtual absl::Status Barrier() = 0;

  // Ends all waits of this rank, now and later, with Cancelled(reason).
  virtual void Abort(const std::string& reason) = 0;
};

struct CollectiveOptions {
  int rank = 0;
  int size = 1;
  int num_shards = kDefaultShards;
  std::string id;            // names the group's epoch: equal on all ranks, never reused ("g3-e7-<nonce>")
  int64_t max_elements = 0;  // largest count of TreeAllReduce
  int64_t max_gather_bytes = 0;        // largest bytes of AllGather and Broadcast
  int64_t connect_timeout_ms = 30000;  // for all ranks to come
  int64_t timeout_ms = 60000;  // of one call, peers alive; a dead process is noticed within about 0.2 s
  // Asked now and then in waits: true ends them with Cancelled. For the time before there is a collective to
  // Abort. May be null; any rank's thread calls it.
  std::function<bool()> cancelled;
};

// A group of `size` collectives in one process (tests, and a group of one rank). options.rank is ignored.
absl::StatusOr<std::vector<std::unique_ptr<Collective>>> CreateThreadCollectives(
    const CollectiveOptions& options);

// The collective factory (worker/collective/collective.cc, the only place that knows implementations). kind:
// "shm". Blocks until all ranks came, at most connect_timeout_ms. A group of one rank needs no peers and uses
// no shared memory.
absl::StatusOr<std::unique_ptr<Collective>> CreateCollective(const std::string& kind,
                                                             const CollectiveOptions& options);

}  // namespace phalanx
