// Ranks on several hosts, over one TCP connection for each pair (tcp_mesh.h).
//
// A call is a phase, or two: every rank sends its part to every other and takes theirs, sends and receives
// overlapping, so that full socket buffers on both sides are no deadlock. The caller's thread moves the
// bytes; a thread of its own says every BeatMs on every connection that this rank lives, reads what the
// peers say of themselves while the rank computes, and tells them when it leaves.
#pragma once

#include <poll.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "worker/collective/call.h"
#include "worker/collective/collective.h"
#include "worker/collective/region.h"
#include "worker/collective/tcp_connection.h"
#include "worker/collective/tree_sum.h"

namespace phalanx {

// TreeAllReduce is two-shot from this many bytes of all ranks' rows (count * 4 * subtrees): below, a second
// exchange costs more than the sending it saves. With one subtree on each of two ranks it saves none.
inline constexpr int64_t kTcpTwoShotBytes = 64 * 1024;

class TcpCollective : public Collective {
 public:
  // `peers` by rank, from ConnectMesh. `wake` is an eventfd.
  TcpCollective(const CollectiveOptions& options, std::vector<TcpPeer> peers, Socket wake);
  // Tells the peers that this rank left.
  ~TcpCollective() override;

  // Waits for all ranks to have their connections, until `deadline` (named as connect_timeout_ms).
  absl::Status Connect(std::chrono::steady_clock::time_point deadline);

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  absl::StatusOr<float*> SumsBuffer(int64_t count) override;
  absl::Status TreeAllReduce(int64_t count, float* out) override;
  absl::Status AllGather(const void* in, int64_t bytes, void* out) override;
  absl::Status Broadcast(void* data, int64_t bytes, int root) override;
  absl::Status Barrier() override;
  // The thread of its own looks at the peers.
  absl::Status Check() const override { return CheckUsable(); }
  void Abort(const std::string& reason) override;
  void End(const absl::Status& error) override { Fail(error, error).IgnoreError(); }

 private:
  using Clock = std::chrono::steady_clock;
  // What goes to and comes from one peer in a phase.
  struct Parts {
    std::vector<iovec> out;
    char* into = nullptr;
    int64_t bytes = 0;
  };

  absl::Status CheckUsable() const ABSL_LOCKS_EXCLUDED(mu_);
  // Dies of `status` unless dead already; peers are told `told`. Returns what it died of.
  absl::Status Fail(const absl::Status& status, const absl::Status& told) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status FailHere(const absl::Status& status);

  // One phase: `fill(peer, parts)` says what is to be sent and taken.
  absl::Status Exchange(const CollectiveCall& call, absl::FunctionRef<void(int, Parts*)> fill,
                        int64_t timeout_ms) ABSL_LOCKS_EXCLUDED(io_mu_);
  absl::Status Wait(const CollectiveCall& call, int64_t timeout_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mu_);
  // Moves what can be moved on all connections. True when bytes of the phase moved.
  bool MoveAll(Clock::time_point now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mu_);
  bool IsPhaseOver() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mu_);
  // Sleeps until a connection can go on, this rank fails, or some time has passed.
  void Sleep(Clock::time_point until) ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mu_);
  absl::Status CheckCalls(const CollectiveCall& call) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mu_);
  // Why the phase cannot end: a peer left, its connection ended or is silent. `doing`: "while the ranks ...".
  absl::Status CheckPeers(Clock::time_point now, bool silence, const std::string& doing) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mu_);
  bool BeatIfDue(Clock::time_point now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mu_);
  // After Fail: tells the peers, once.
  void TellPeers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mu_);
  // The thread of its own.
  void Watch();

  float* rows_of(int rank, int64_t stride) {
    return peers_rows_.get() + layout_.first_subtree(rank) * stride;
  }

  // Constant after construction.
  const CollectiveOptions options_;
  const RegionLayout layout_;  // for its subtrees
  const Socket wake_;          // readable once the collective is dead

  // Of the one caller.
  uint32_t phase_ = kStartPhase;
  int64_t sums_count_ = -1;              // of SumsBuffer since the last TreeAllReduce; -1: none
  std::unique_ptr<float[]> sums_;        // [own subtrees, max_elements]
  std::unique_ptr<float[]> peers_rows_;  // [all subtrees, elements of one phase]; the own ones are unused
  TreeSum sum_;
  Parts parts_;

  Mutex io_mu_;  // whoever moves bytes; before mu_
  std::vector<TcpConnection> connections_ ABSL_GUARDED_BY(io_mu_);
  std::vector<pollfd> polled_ ABSL_GUARDED_BY(io_mu_);
  Clock::time_point next_beat_ ABSL_GUARDED_BY(io_mu_);
  uint32_t over_ ABSL_GUARDED_BY(io_mu_) = kStartPhase;  // the last phase to which all ranks came
  bool told_peers_ ABSL_GUARDED_BY(io_mu_) = false;

  mutable Mutex mu_;
  CondVar changed_;
  std::atomic<bool> failed_{false};  // status_ is an error
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  absl::Status told_ ABSL_GUARDED_BY(mu_);  // what the peers are told of it

  std::thread watcher_;
};

// The factory: rendezvous, connections, and the first meeting of all ranks in a call.
absl::StatusOr<std::unique_ptr<Collective>> CreateTcpCollective(const CollectiveOptions& options);

}  // namespace phalanx
