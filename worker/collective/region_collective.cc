#include "worker/collective/region_collective.h"

#include <sched.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "worker/collective/futex.h"
#include "worker/collective/process.h"

namespace phalanx {
namespace {

constexpr int64_t kSleepMs = 50;  // between two looks at the peers
constexpr int64_t kSliceUnit = 32;
constexpr int kLooksPerBeat = 4;

// A wait first spins: a peer that runs is often here within microseconds, while a sleep costs tens of them.
// Between looks it yields, because the peer may be waiting for this very core: measured with two ranks on one
// core, a barrier takes 1.4 us so and 22 us without, and with a core for each yielding costs nothing that
// shows.
constexpr std::chrono::microseconds kSpin(20);

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void Copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, bytes);
}

bool IsBefore(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) < 0; }

}  // namespace

RegionCollective::RegionCollective(const CollectiveOptions& options, RegionLayout layout, Region region)
    : options_(options), layout_(std::move(layout)), region_(std::move(region)), sum_(layout_.subtrees()) {}

RegionCollective::~RegionCollective() {
  FailHere(absl::CancelledError("its collective was closed")).IgnoreError();
  if (beater_.joinable()) beater_.join();
}

void RegionCollective::StartBeating() {
  beater_ = std::thread([this] { Beat(); });
}

void RegionCollective::Beat() {
  // Silence is counted in looks: time in which this rank did not run itself is not its peers'.
  struct Heard {
    uint32_t beats = 0;
    int64_t looks = 0;  // since
  };
  std::vector<Heard> heard(static_cast<size_t>(options_.size));
  const std::chrono::milliseconds look(std::max<int64_t>(1, BeatMs(options_) / kLooksPerBeat));
  // A sign is seen up to a look late.
  const int64_t most = options_.silence_ms / look.count() - 1;
  for (int64_t i = 0;; ++i) {
    if (i % kLooksPerBeat == 0) {
      region_.peer(options_.rank).beats.fetch_add(1, std::memory_order_relaxed);
    }
    for (int r = 0; r < options_.size; ++r) {
      const PeerState& peer = region_.peer(r);
      const int64_t pid = peer.pid.load(std::memory_order_acquire);
      Heard& last = heard[static_cast<size_t>(r)];
      const uint32_t beats = peer.beats.load(std::memory_order_relaxed);
      // Who is not there yet, or left, is silent by right.
      if (beats != std::exchange(last.beats, beats) || pid == 0 ||
          peer.left.load(std::memory_order_relaxed) != 0) {
        last.looks = 0;
      } else if (++last.looks >= most && r != options_.rank) {
        const absl::Status gone = absl::UnavailableError(absl::StrFormat(
            "rank %d is gone: its process %d gave no sign of life for %.1f s (one that lives gives one every "
            "%.1f s)",
            r, pid, static_cast<double>(options_.silence_ms) * 1e-3,
            static_cast<double>(BeatMs(options_)) * 1e-3));
        Fail(gone, gone).IgnoreError();
        return;
      }
    }
    const Clock::time_point next = Clock::now() + look;
    MutexLock lock(mu_);
    while (status_.ok() && changed_.WaitUntil(mu_, next)) {
    }
    if (!status_.ok()) return;
  }
}

RegionCollective::Clock::time_point RegionCollective::CallDeadline() const {
  return Clock::now() + std::chrono::milliseconds(options_.timeout_ms);
}

absl::Status RegionCollective::CheckUsable() const {
  if (!failed_.load(std::memory_order_relaxed)) return absl::OkStatus();
  MutexLock lock(mu_);
  return status_;
}

absl::Status RegionCollective::Fail(const absl::Status& status, const absl::Status& told) {
  MutexLock lock(mu_);
  if (!status_.ok()) return status_;
  status_ = status;
  failed_.store(true, std::memory_order_relaxed);
  changed_.NotifyAll();
  PeerState& me = region_.peer(options_.rank);
  const size_t length = std::min(told.message().size(), sizeof(me.message) - 1);
  std::memcpy(me.message, told.message().data(), length);
  me.message[length] = '\0';
  me.code = static_cast<int32_t>(told.code());
  me.left.store(1, std::memory_order_release);
  FutexWakeAll(region_.header()->arrived);
  return status;
}

absl::Status RegionCollective::FailHere(const absl::Status& status) {
  return Fail(status, absl::UnavailableError(
                          absl::StrCat("rank ", options_.rank, " left the group: ", status.message())));
}

void RegionCollective::Abort(const std::string& reason) {
  FailHere(absl::CancelledError(reason)).IgnoreError();
}

bool RegionCollective::IsPhaseOver() const {
  const uint32_t target = phase_ * static_cast<uint32_t>(options_.size);
  return !IsBefore(region_.header()->arrived.load(std::memory_order_acquire), target);
}

// Looks at what each rank posted and not at `arrived`, which a rank may have died just before counting up.
std::vector<int> RegionCollective::MissingRanks() const {
  std::vector<int> missing;
  for (int r = 0; r < options_.size; ++r) {
    if (IsBefore(region_.peer(r).posted.load(std::memory_order_acquire), phase_)) missing.push_back(r);
  }
  return missing;
}

// While the phase is not over a rank leaves or dies before or in this very call, never after it. That the
// phase ended meanwhile is for the caller to see.
absl::Status RegionCollective::CheckPeers(const std::string& doing) const {
  // A dead process is the cause; that others left may be its consequence.
  for (int r = 0; r < options_.size; ++r) {
    const PeerState& peer = region_.peer(r);
    const int64_t pid = peer.pid.load(std::memory_order_acquire);
    if (r != options_.rank && pid != 0 && peer.left.load(std::memory_order_acquire) == 0 &&
        !IsProcessAlive(pid, peer.start_time.load(std::memory_order_relaxed))) {
      return absl::UnavailableError(
          absl::StrCat("rank ", r, " is gone: its process ", pid, " ended ", doing));
    }
  }
  for (int r = 0; r < options_.size; ++r) {
    const PeerState& peer = region_.peer(r);
    if (r != options_.rank && peer.left.load(std::memory_order_acquire) != 0) {
      return absl::Status(static_cast<absl::StatusCode>(peer.code), peer.message);
    }
  }
  return absl::OkStatus();
}

absl::Status RegionCollective::Check() const {
  PHX_RETURN_IF_ERROR(CheckUsable());
  return CheckPeers("between two calls");
}

absl::Status RegionCollective::WaitForPhase(const CollectiveCall& call, Clock::time_point deadline,
                                            int64_t timeout_ms) {
  const Clock::time_point spin_end = Clock::now() + kSpin;
  do {
    sched_yield();
    for (int i = 0; i < 16; ++i) {
      if (IsPhaseOver()) return absl::OkStatus();
      Pause();
    }
  } while (Clock::now() < spin_end);

  RegionHeader* header = region_.header();
  while (true) {
    PHX_RETURN_IF_ERROR(CheckUsable());
    if (options_.cancelled && options_.cancelled()) {
      return FailHere(absl::CancelledError("the group was cancelled"));
    }
    const Clock::time_point now = Clock::now();
    const int64_t left_ms = std::chrono::ceil<std::chrono::milliseconds>(deadline - now).count();
    if (left_ms > 0) {
      header->sleepers.fetch_add(1);
      const uint32_t arrived = header->arrived.load();
      if (!IsPhaseOver()) FutexWait(header->arrived, arrived, std::min(left_ms, kSleepMs));
      header->sleepers.fetch_sub(1);
      if (IsPhaseOver()) return absl::OkStatus();
    }
    // Woken for nothing or after kSleepMs: does everybody live?
    const absl::Status peers = CheckPeers(absl::StrCat("while the ranks came to ", call.ToString()));
    const std::vector<int> missing = MissingRanks();
    if (missing.empty()) return absl::OkStatus();
    if (!peers.ok()) return Fail(peers, peers);
    if (left_ms <= 0) {
      const absl::Status status = DidNotCome(missing, options_.size, call, timeout_ms);
      return Fail(status, status);
    }
  }
}

absl::Status RegionCollective::CheckCalls(const CollectiveCall& call) const {
  for (int r = 0; r < options_.size; ++r) {
    const uint64_t other = region_.peer(r).call[phase_ & 1].load(std::memory_order_relaxed);
    if (other != call.packed()) {
      return CallsDiffer(r, CollectiveCall::Unpack(other), options_.rank, call);
    }
  }
  return absl::OkStatus();
}

absl::Status RegionCollective::Sync(const CollectiveCall& call, Clock::time_point deadline,
                                    int64_t timeout_ms) {
  ++phase_;
  RegionHeader* header = region_.header();
  PeerState& me = region_.peer(options_.rank);
  me.call[phase_ & 1].store(call.packed(), std::memory_order_relaxed);
  me.posted.store(phase_, std::memory_order_release);
  header->arrived.fetch_add(1);
  if (!IsPhaseOver()) {
    PHX_RETURN_IF_ERROR(WaitForPhase(call, deadline, timeout_ms));
  } else if (header->sleepers.load() != 0) {
    FutexWakeAll(header->arrived);
  }
  if (absl::Status status = CheckCalls(call); !status.ok()) return Fail(status, status);
  return CheckUsable();
}

absl::Status RegionCollective::Connect(Clock::time_point deadline) {
  return Sync({CollectiveCall::kConnect}, deadline, options_.connect_timeout_ms);
}

absl::StatusOr<float*> RegionCollective::SumsBuffer(int64_t count) {
  PHX_RETURN_IF_ERROR(CheckUsable());
  if (absl::Status wrong = CheckSumsBuffer(options_, count); !wrong.ok()) return FailHere(wrong);
  sums_count_ = count;
  return reinterpret_cast<float*>(at(layout_.sums_offset(options_.rank, sums_slot_)));
}

absl::Status RegionCollective::TreeAllReduce(int64_t count, float* out) {
  PHX_RETURN_IF_ERROR(CheckUsable());
  if (absl::Status wrong = CheckTreeAllReduce(count, sums_count_); !wrong.ok()) return FailHere(wrong);
  for (int r = 0; r < options_.size; ++r) {
    const float* sums = reinterpret_cast<const float*>(at(layout_.sums_offset(r, sums_slot_)));
    for (int i = 0; i < layout_.num_subtrees(r); ++i)
      sum_.set_row(layout_.first_subtree(r) + i, sums + i * count);
  }
  // Rank 0's first row, where the total of a two-shot is left for all to copy.
  float* total = reinterpret_cast<float*>(at(layout_.sums_offset(0, sums_slot_)));
  sums_count_ = -1;
  sums_slot_ ^= 1;

  const Clock::time_point deadline = CallDeadline();
  PHX_RETURN_IF_ERROR(Sync({CollectiveCall::kTreeAllReduce, 0, count}, deadline, options_.timeout_ms));
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  const int64_t num_rows = sum_.num_rows();
  // Rows read: num_rows in one shot; a slice of each and then the total, num_rows / size + 1, in two.
  if (num_rows * bytes < kTwoShotBytes || num_rows * (options_.size - 1) <= options_.size) {
    sum_.Sum(0, count, out);
    return absl::OkStatus();
  }
  // A slice is read and written by its rank only, until the next phase is over.
  const int64_t units = (count + kSliceUnit - 1) / kSliceUnit;
  const int64_t begin = units * options_.rank / options_.size * kSliceUnit;
  const int64_t end = std::min(count, units * (options_.rank + 1) / options_.size * kSliceUnit);
  sum_.Sum(begin, end, total);
  PHX_RETURN_IF_ERROR(Sync({CollectiveCall::kTreeAllReduceGather, 0, count}, deadline, options_.timeout_ms));
  Copy(out, total, bytes);
  return absl::OkStatus();
}

absl::Status RegionCollective::AllGather(const void* in, int64_t bytes, void* out) {
  PHX_RETURN_IF_ERROR(CheckUsable());
  if (absl::Status wrong = CheckAllGather(options_, bytes); !wrong.ok()) return FailHere(wrong);
  if (options_.size == 1) {
    if (bytes > 0) std::memmove(out, in, bytes);
    return absl::OkStatus();
  }
  const int slot = gather_slot_;
  gather_slot_ ^= 1;
  Copy(at(layout_.gather_offset(options_.rank, slot)), in, bytes);
  PHX_RETURN_IF_ERROR(Sync({CollectiveCall::kAllGather, 0, bytes}, CallDeadline(), options_.timeout_ms));
  for (int r = 0; r < options_.size; ++r) {
    Copy(static_cast<char*>(out) + r * bytes, at(layout_.gather_offset(r, slot)), bytes);
  }
  return absl::OkStatus();
}

absl::Status RegionCollective::Broadcast(void* data, int64_t bytes, int root) {
  PHX_RETURN_IF_ERROR(CheckUsable());
  if (absl::Status wrong = CheckBroadcast(options_, bytes, root); !wrong.ok()) return FailHere(wrong);
  if (options_.size == 1) return absl::OkStatus();
  const int slot = gather_slot_;
  gather_slot_ ^= 1;
  char* shared = at(layout_.gather_offset(root, slot));
  if (options_.rank == root) Copy(shared, data, bytes);
  PHX_RETURN_IF_ERROR(Sync({CollectiveCall::kBroadcast, static_cast<uint8_t>(root), bytes}, CallDeadline(),
                           options_.timeout_ms));
  if (options_.rank != root) Copy(data, shared, bytes);
  return absl::OkStatus();
}

absl::Status RegionCollective::Barrier() {
  PHX_RETURN_IF_ERROR(CheckUsable());
  return Sync({CollectiveCall::kBarrier}, CallDeadline(), options_.timeout_ms);
}

}  // namespace phalanx
