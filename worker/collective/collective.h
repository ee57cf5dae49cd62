// Collective: what the ranks of a group exchange inside a step. Implementations: thread (tests), shm (ranks
// on one host), tcp (ranks on several hosts); and, for ranks whose memory is a device's,
// device_collective.h (kernels of ours, NCCL) over one of these. All pass
// tests/worker/collective/collective_test.cc.
//
// Every rank makes the same calls in the same order with the same sizes. A wait spins briefly, then sleeps,
// and goes on for as long as the missing ranks give signs of life, each from a thread of its own: a peer that
// computes for a minute is no fault. It ends with a Status: Unavailable naming the rank that is gone (its
// process or connection ended, or it was silent for silence_ms: stopped, or cut off), DeadlineExceeded naming
// the rank that lives and did not come within timeout_ms, Cancelled after Abort. After any error the
// collective is dead: all further calls return that error, and the peers are told, so that their waits end as
// well (Unavailable "rank 1 left the group: ..." after an Abort, a wrong argument or the end of a
// collective's life; the same error for a rank that is gone or did not come). Ranks whose calls differ all
// get FailedPrecondition naming a rank and both calls. Thread safety: one caller at a time, except Abort,
// which any thread may call at any time.
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

class Ops;
struct RmsNormParams;

class Collective {
 public:
  virtual ~Collective() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Calls enqueue on the queue of the Ops whose memory they exchange: their pointers stay the same for equal
  // calls, and what they enqueue may be recorded and replayed (Ops::Replay). Else they are done when they
  // return, and operands lie in host memory.
  virtual bool enqueues() const { return false; }

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
  // As TreeAllReduce and then ops->RmsNorm(norm), whose add (and add2, behind it) lie in `out`; the same
  // bits. What `out` holds afterwards is not said: a device does both at once.
  virtual absl::Status TreeAllReduceRmsNorm(int64_t count, float* out, Ops* ops, const RmsNormParams& norm);
  // AllGather of host memory, done when it returns, wherever the memory of the other calls is.
  virtual absl::Status AllGatherOnHost(const void* in, int64_t bytes, void* out) {
    return AllGather(in, bytes, out);
  }
  // Where calls enqueue: what went wrong with those that were done when the Ops' queue was last waited for.
  // Their results are not to be used before this was asked.
  virtual absl::Status Completed() { return absl::OkStatus(); }
  // What this collective died of, or an error when a peer is known to be gone. Never waits; any thread.
  virtual absl::Status Check() const { return absl::OkStatus(); }

  // Ends all waits of this rank, now and later, with Cancelled(reason).
  virtual void Abort(const std::string& reason) = 0;
  // As Abort, with an error that is the group's: waits end with `error`, the peers' too.
  virtual void End(const absl::Status& error) { Abort(std::string(error.message())); }
};

// How the ranks of a group's epoch tell each other small things before they are connected: this rank brings
// `blob` (at most 16384 bytes; may be empty) to the meeting `topic` (at most 64; a topic meets once in an
// epoch), and gets every rank's, by rank, once all have come. All ranks name the same topics; the order does
// not matter. Ends with DeadlineExceeded naming the ranks that did not come, or Cancelled or Aborted when the
// group's epoch ends. Thread safety: any thread.
using MeetFunction = std::function<absl::StatusOr<std::vector<std::string>>(const std::string& topic,
                                                                            const std::string& blob)>;

// Of "tcp" alone.
struct TcpOptions {
  std::string listen_host = "127.0.0.1";  // name or address of this host, on which the rank takes its peers
  int first_port = 0;                     // a free one of first_port to last_port; 0: any
  int last_port = 0;
  std::string advertise_host;  // what the peers dial; empty: listen_host
};

struct CollectiveOptions {
  int rank = 0;
  int size = 1;
  int num_shards = kDefaultShards;
  std::string id;            // names the group's epoch: equal on all ranks, never reused ("g3-e7-<nonce>")
  int64_t max_elements = 0;  // largest count of TreeAllReduce
  int64_t max_gather_bytes = 0;        // largest bytes of AllGather and Broadcast
  int64_t connect_timeout_ms = 30000;  // for all ranks to come
  // The last bound of one call whose missing ranks live: they are stuck. From the call's begin; tcp: from the
  // last byte of it that moved.
  int64_t timeout_ms = 3600000;
  // Asked now and then in waits: true ends them with Cancelled. For the time before there is a collective to
  // Abort. May be null; any rank's thread calls it.
  std::function<bool()> cancelled;
  MeetFunction meet;  // "tcp" needs it; ends by itself at connect_timeout_ms and by `cancelled`
  TcpOptions tcp;
  // How long a rank may be silent. Each gives a sign of life 3.5 times as often (BeatMs); threads of one
  // process give none. A process that ends is noticed sooner: shm within about 0.2 s, tcp at once.
  int64_t silence_ms = 3500;
};

// A group of `size` collectives in one process (tests, and a group of one rank). options.rank is ignored.
absl::StatusOr<std::vector<std::unique_ptr<Collective>>> CreateThreadCollectives(
    const CollectiveOptions& options);

// The collective factory (worker/collective/collective.cc, the only place that knows implementations). kind:
// "shm" or "tcp". Blocks until all ranks came, at most connect_timeout_ms. A group of one rank needs no peers
// and uses neither shared memory nor connections.
absl::StatusOr<std::unique_ptr<Collective>> CreateCollective(const std::string& kind,
                                                             const CollectiveOptions& options);

}  // namespace phalanx
