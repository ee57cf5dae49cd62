#include "worker/collective/tcp_collective.h"

#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"

namespace phalanx {
namespace {

constexpr int64_t kSleepMs = 50;    // between two looks at the clock and at `cancelled`
constexpr int64_t kSliceUnit = 32;  // elements
constexpr int kTicksPerBeat = 5;
// As in region_collective.cc: a peer that runs is often here soon, and may be waiting for this very core.
constexpr std::chrono::microseconds kSpin(30);

void Copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0 && to != from) std::memmove(to, from, bytes);
}

struct Slice {
  int64_t begin, end;
};

Slice SliceOf(int64_t count, int rank, int size) {
  const int64_t units = (count + kSliceUnit - 1) / kSliceUnit;
  return {std::min(count, units * rank / size * kSliceUnit),
          std::min(count, units * (rank + 1) / size * kSliceUnit)};
}

bool IsTwoShot(int64_t count, int64_t num_rows, int size) {
  return count * 4 * num_rows >= kTcpTwoShotBytes && num_rows * (size - 1) > size;
}

// The most elements of a row that come in one phase.
int64_t MostElements(const CollectiveOptions& options, int64_t num_rows) {
  if (!IsTwoShot(options.max_elements, num_rows, options.size)) return options.max_elements;
  const int64_t one_shot = std::min(options.max_elements, kTcpTwoShotBytes / 4 / num_rows + 1);
  return std::max(one_shot, options.max_elements / options.size + 2 * kSliceUnit);
}

}  // namespace

TcpCollective::TcpCollective(const CollectiveOptions& options, std::vector<TcpPeer> peers, Socket wake)
    : options_(options),
      layout_(options),
      wake_(std::move(wake)),
      sums_(new float[layout_.num_subtrees(options.rank) * options.max_elements]),
      peers_rows_(new float[layout_.subtrees().size() *
                            MostElements(options, static_cast<int64_t>(layout_.subtrees().size()))]),
      sum_(layout_.subtrees()) {
  MutexLock io(io_mu_);
  for (int r = 0; r < options.size; ++r) {
    if (r != options.rank) connections_.emplace_back(std::move(peers[r]), r);
  }
  next_beat_ = Clock::now();
  watcher_ = std::thread([this] { Watch(); });
}

TcpCollective::~TcpCollective() {
  FailHere(absl::CancelledError("its collective was closed")).IgnoreError();
  watcher_.join();  // it told the peers
}

absl::Status TcpCollective::CheckUsable() const {
  if (!failed_.load(std::memory_order_relaxed)) return absl::OkStatus();
  MutexLock lock(mu_);
  return status_;
}

absl::Status TcpCollective::Fail(const absl::Status& status, const absl::Status& told) {
  MutexLock lock(mu_);
  if (!status_.ok()) return status_;
  status_ = status;
  told_ = told;
  failed_.store(true, std::memory_order_relaxed);
  changed_.NotifyAll();
  const uint64_t one = 1;
  // It cannot fail: the counter is far from full. If it did, waiters would look within kSleepMs.
  [[maybe_unused]] const ssize_t written = write(wake_.fd(), &one, sizeof(one));
  return status;
}

absl::Status TcpCollective::FailHere(const absl::Status& status) {
  return Fail(status, absl::UnavailableError(
                          absl::StrCat("rank ", options_.rank, " left the group: ", status.message())));
}

void TcpCollective::Abort(const std::string& reason) { FailHere(absl::CancelledError(reason)).IgnoreError(); }

void TcpCollective::TellPeers() {
  if (told_peers_) return;
  told_peers_ = true;
  absl::Status told;
  {
    MutexLock lock(mu_);
    told = told_;
  }
  for (TcpConnection& connection : connections_) connection.Leave(told, over_);
}

bool TcpCollective::BeatIfDue(Clock::time_point now) {
  if (now < next_beat_) return false;
  next_beat_ = now + std::chrono::milliseconds(BeatMs(options_));
  for (TcpConnection& connection : connections_) connection.Beat();
  return true;
}

void TcpCollective::Watch() {
  const std::chrono::milliseconds tick(std::max<int64_t>(1, BeatMs(options_) / kTicksPerBeat));
  while (true) {
    {
      MutexLock lock(mu_);
      if (status_.ok()) changed_.WaitFor(mu_, tick);
    }
    if (failed_.load(std::memory_order_relaxed)) {
      MutexLock io(io_mu_);  // a caller that has it ends its call now
      TellPeers();
      return;
    }
    if (!io_mu_.TryLock()) continue;  // a call is made, which does all this itself
    const Clock::time_point now = Clock::now();
    BeatIfDue(now);
    MoveAll(now);
    const absl::Status peers = CheckPeers(now, phase_ != kStartPhase, "between two calls");
    io_mu_.Unlock();
    if (!peers.ok()) Fail(peers, peers).IgnoreError();
  }
}

bool TcpCollective::MoveAll(Clock::time_point now) {
  bool moved = false;
  for (TcpConnection& connection : connections_) moved = connection.Move(now) || moved;
  return moved;
}

bool TcpCollective::IsPhaseOver() const {
  for (const TcpConnection& connection : connections_) {
    if (!connection.done()) return false;
  }
  return true;
}

absl::Status TcpCollective::CheckCalls(const CollectiveCall& call) const {
  for (const TcpConnection& peer : connections_) {
    if (peer.posted() && peer.call() != call.packed()) {
      return CallsDiffer(peer.rank(), CollectiveCall::Unpack(peer.call()), options_.rank, call);
    }
  }
  return absl::OkStatus();
}

absl::Status TcpCollective::CheckPeers(Clock::time_point now, bool silence, const std::string& doing) const {
  for (const TcpConnection& peer : connections_) {
    if (peer.fault().ok() || peer.left_later()) continue;
    return absl::Status(
        peer.fault().code(),
        absl::StrCat(peer.fault().message(), absl::StrContains(peer.fault().message(), " while the ") ||
                                                     absl::StrContains(peer.fault().message(), " left the ")
                                                 ? ""
                                                 : absl::StrCat(" ", doing)));
  }
  if (!silence) return absl::OkStatus();
  for (const TcpConnection& peer : connections_) {
    const auto silent = now - peer.heard(now);
    if (peer.fault().ok() && silent > std::chrono::milliseconds(options_.silence_ms)) {
      return absl::UnavailableError(absl::StrFormat(
          "rank %d is gone: nothing came from %s for %.1f s (one that lives says so every %.1f s) %s",
          peer.rank(), peer.address(), std::chrono::duration<double>(silent).count(),
          static_cast<double>(BeatMs(options_)) * 1e-3, doing));
    }
  }
  return absl::OkStatus();
}

void TcpCollective::Sleep(Clock::time_point until) {
  polled_.assign(1, {wake_.fd(), POLLIN, 0});
  for (const TcpConnection& connection : connections_) {
    if (const short events = connection.events(); events != 0) {
      polled_.push_back({connection.fd(), events, 0});
    }
  }
  const int64_t left =
      std::chrono::ceil<std::chrono::milliseconds>(std::min(until, next_beat_) - Clock::now()).count();
  poll(polled_.data(), polled_.size(), static_cast<int>(std::clamp<int64_t>(left, 0, kSleepMs)));
}

absl::Status TcpCollective::Wait(const CollectiveCall& call, int64_t timeout_ms) {
  const Clock::time_point began = Clock::now();
  Clock::time_point now = began;
  Clock::time_point moved = began;
  while (true) {
    if (MoveAll(now)) moved = now;
    if (IsPhaseOver()) {
      over_ = phase_;
      return absl::OkStatus();
    }
    BeatIfDue(now);
    PHX_RETURN_IF_ERROR(CheckUsable());

    bool all_posted = true;
    bool ended = false;
    for (const TcpConnection& peer : connections_) {
      all_posted = all_posted && peer.posted();
      ended = ended || !peer.fault().ok();
    }
    if (all_posted) {
      over_ = phase_;
      if (absl::Status differ = CheckCalls(call); !differ.ok()) return Fail(differ, differ);
    }
    // Connecting, a rank that has all its connections waits for one that has not and says nothing yet.
    const bool silence = call.kind != CollectiveCall::kConnect;
    if (ended || now - began > std::chrono::milliseconds(kSleepMs)) {
      const absl::Status peers =
          CheckPeers(now, silence, absl::StrCat("while the ranks came to ", call.ToString()));
      if (!peers.ok()) {
        // Whose calls differ ends the group; what the others see then is its consequence.
        if (absl::Status differ = CheckCalls(call); !differ.ok()) return Fail(differ, differ);
        return Fail(peers, peers);
      }
    }
    if (now - began > kSpin) {
      if (options_.cancelled && options_.cancelled()) {
        return FailHere(absl::CancelledError("the group was cancelled"));
      }
      const Clock::time_point deadline = moved + std::chrono::milliseconds(timeout_ms);
      if (now >= deadline) {
        std::vector<int> missing;
        for (const TcpConnection& peer : connections_) {
          if (!peer.done()) missing.push_back(peer.rank());
        }
        absl::Status late = CheckCalls(call);
        if (late.ok()) late = DidNotCome(missing, options_.size, call, timeout_ms);
        return Fail(late, late);
      }
      Sleep(deadline);
    } else {
      sched_yield();
    }
    now = Clock::now();
  }
}

absl::Status TcpCollective::Exchange(const CollectiveCall& call, absl::FunctionRef<void(int, Parts*)> fill,
                                     int64_t timeout_ms) {
  MutexLock io(io_mu_);
  ++phase_;
  const Clock::time_point now = Clock::now();
  BeatIfDue(now);
  for (TcpConnection& connection : connections_) {
    parts_.out.clear();
    parts_.into = nullptr;
    parts_.bytes = 0;
    fill(connection.rank(), &parts_);
    connection.Begin(now, phase_, call.packed(), parts_.out, parts_.into, parts_.bytes);
  }
  absl::Status status = Wait(call, timeout_ms);
  if (!status.ok()) {
    TellPeers();
    return status;
  }
  return CheckUsable();
}

absl::Status TcpCollective::Connect(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return Exchange(
      {CollectiveCall::kConnect}, [](int, Parts*) {}, std::max<int64_t>(1, left));
}

absl::StatusOr<float*> TcpCollective::SumsBuffer(int64_t count) {
  PHX_RETURN_IF_ERROR(CheckUsable());
  if (absl::Status wrong = CheckSumsBuffer(options_, count); !wrong.ok()) return FailHere(wrong);
  sums_count_ = count;
  return sums_.get();
}

absl::Status TcpCollective::TreeAllReduce(int64_t count, float* out) {
  PHX_RETURN_IF_ERROR(CheckUsable());
  if (absl::Status wrong = CheckTreeAllReduce(count, sums_count_); !wrong.ok()) return FailHere(wrong);
  sums_count_ = -1;
  const int own_rows = layout_.num_subtrees(options_.rank);
  const bool two_shot = IsTwoShot(count, sum_.num_rows(), options_.size);
  const Slice all{0, count};
  const Slice mine = two_shot ? SliceOf(count, options_.rank, options_.size) : all;
  const int64_t width = mine.end - mine.begin;
  const auto bytes_of = [](int64_t elements) { return elements * static_cast<int64_t>(sizeof(float)); };

  // Each rank gets its slice of all rows: the whole of them in one shot.
  const auto rows = [&](int peer, Parts* parts) {
    const Slice theirs = two_shot ? SliceOf(count, peer, options_.size) : all;
    for (int i = 0; i < own_rows; ++i) {
      parts->out.push_back(
          {sums_.get() + i * count + theirs.begin, static_cast<size_t>(bytes_of(theirs.end - theirs.begin))});
    }
    parts->into = reinterpret_cast<char*>(rows_of(peer, width));
    parts->bytes = bytes_of(layout_.num_subtrees(peer) * width);
  };
  PHX_RETURN_IF_ERROR(Exchange({CollectiveCall::kTreeAllReduce, 0, count}, rows, options_.timeout_ms));
  for (int r = 0; r < options_.size; ++r) {
    for (int i = 0; i < layout_.num_subtrees(r); ++i) {
      const float* row =
          r == options_.rank ? sums_.get() + i * count + mine.begin : rows_of(r, width) + i * width;
      sum_.set_row(layout_.first_subtree(r) + i, row);
    }
  }
  sum_.Sum(0, width, out + mine.begin);
  if (!two_shot) return absl::OkStatus();

  const auto sums = [&](int peer, Parts* parts) {
    const Slice theirs = SliceOf(count, peer, options_.size);
    parts->out.push_back({out + mine.begin, static_cast<size_t>(bytes_of(width))});
    parts->into = reinterpret_cast<char*>(out + theirs.begin);
    parts->bytes = bytes_of(theirs.end - theirs.begin);
  };
  return Exchange({CollectiveCall::kTreeAllReduceGather, 0, count}, sums, options_.timeout_ms);
}

absl::Status TcpCollective::AllGather(const void* in, int64_t bytes, void* out) {
  PHX_RETURN_IF_ERROR(CheckUsable());
  if (absl::Status wrong = CheckAllGather(options_, bytes); !wrong.ok()) return FailHere(wrong);
  char* const to = static_cast<char*>(out);
  // First: what comes may overwrite `in`, which may lie anywhere in `out`.
  char* const own = to + options_.rank * bytes;
  Copy(own, in, bytes);
  const auto shares = [&](int peer, Parts* parts) {
    parts->out.push_back({own, static_cast<size_t>(bytes)});
    parts->into = to + peer * bytes;
    parts->bytes = bytes;
  };
  return Exchange({CollectiveCall::kAllGather, 0, bytes}, shares, options_.timeout_ms);
}

absl::Status TcpCollective::Broadcast(void* data, int64_t bytes, int root) {
  PHX_RETURN_IF_ERROR(CheckUsable());
  if (absl::Status wrong = CheckBroadcast(options_, bytes, root); !wrong.ok()) return FailHere(wrong);
  const auto part = [&](int peer, Parts* parts) {
    if (options_.rank == root) parts->out.push_back({data, static_cast<size_t>(bytes)});
    if (peer == root) {
      parts->into = static_cast<char*>(data);
      parts->bytes = bytes;
    }
  };
  return Exchange({CollectiveCall::kBroadcast, static_cast<uint8_t>(root), bytes}, part, options_.timeout_ms);
}

absl::Status TcpCollective::Barrier() {
  PHX_RETURN_IF_ERROR(CheckUsable());
  return Exchange(
      {CollectiveCall::kBarrier}, [](int, Parts*) {}, options_.timeout_ms);
}

absl::StatusOr<std::unique_ptr<Collective>> CreateTcpCollective(const CollectiveOptions& options) {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(options.connect_timeout_ms);
  PHX_ASSIGN_OR_RETURN(std::vector<TcpPeer> peers, ConnectMesh(options, deadline));
  Socket wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (wake.fd() < 0) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot create an eventfd: ", std::strerror(errno)));
  }
  auto collective = std::make_unique<TcpCollective>(options, std::move(peers), std::move(wake));
  PHX_RETURN_IF_ERROR(collective->Connect(deadline));
  return collective;
}

}  // namespace phalanx
