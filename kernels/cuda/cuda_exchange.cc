#include "kernels/cuda/cuda_exchange.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kernels/cuda/gemm_fast_products.h"
#include "kernels/cuda/peers.h"
#include "kernels/leave_grace.h"
#include "kernels/ops.h"

namespace phalanx::cuda {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kSliceUnit = 32;       // elements
constexpr int64_t kEndTimeoutMs = 5000;  // for kernels to end once they were stopped

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// What ranks tell each other before they pick a path.
struct RankCard {
  int64_t pid = 0;
  int32_t failed = 0;
  int32_t handle_bytes = 0;
  char message[200] = {};
  char host[128] = {};
  char device[32] = {};
  char handle[PeerServices::kHandleBytes] = {};
};

template <size_t N>
void Put(const std::string& text, char (&out)[N]) {
  const size_t size = std::min(text.size(), N - 1);
  std::memcpy(out, text.data(), size);
  out[size] = '\0';
}

absl::StatusOr<std::vector<RankCard>> Gather(const ExchangeOptions& options, const RankCard& own) {
  std::vector<RankCard> all(static_cast<size_t>(options.size));
  if (options.size == 1) {
    all[0] = own;
    return all;
  }
  if (options.max_host_gather_bytes < static_cast<int64_t>(sizeof(RankCard))) {
    return absl::InvalidArgumentError(absl::StrCat("max_host_gather_bytes is ", options.max_host_gather_bytes,
                                                   ", must be at least ", sizeof(RankCard)));
  }
  PHX_RETURN_IF_ERROR(options.gather(&own, sizeof(own), all.data()));
  return all;
}

// The first rank that failed, as an error on all.
absl::Status FirstFailure(const std::vector<RankCard>& cards) {
  for (size_t r = 0; r < cards.size(); ++r) {
    if (cards[r].failed != 0) {
      return absl::FailedPreconditionError(absl::StrCat("rank ", r, ": ", cards[r].message));
    }
  }
  return absl::OkStatus();
}

// The host's name and boot, so that memory of equal ones may be mapped.
std::string HostOf() {
  char name[100] = {};
  if (gethostname(name, sizeof(name) - 1) != 0) name[0] = '\0';
  return name;
}

// kVirtual and kPeer: kernels that read the memory of all ranks. Where it lies in it: signals, two slots of
// sums, two of gathers.
class PeerExchange : public Exchange {
 public:
  PeerExchange(std::shared_ptr<Runtime> runtime, bool half, FastProducts* fast,
               const ExchangeOptions& options, ExchangeLayout layout)
      : runtime_(std::move(runtime)),
        half_(half),
        fast_(fast),
        options_(options),
        layout_(std::move(layout)) {}

  ~PeerExchange() override {
    Stop();
    runtime_->Synchronize(kEndTimeoutMs).IgnoreError();
    PeerServices& peers = runtime_->peers();
    for (int r = 0; r < options_.size; ++r) {
      if (r == options_.rank || memory_[r] == nullptr) continue;
      if (r < static_cast<int>(pids_.size())) other_processes_ |= pids_[static_cast<size_t>(r)] != getpid();
      peers.CloseImport(memory_[r]);
    }
    if (other_processes_) std::this_thread::sleep_for(kLeaveKeep);
    if (memory_[options_.rank] != nullptr) peers.FreeShared(memory_[options_.rank]);
    if (host_ != nullptr) peers.FreeMapped(host_);
    for (void* event : events_) peers.DestroyEvent(event);
  }

  // This rank's part, before the others'.
  absl::Status Allocate() {
    int most = 0;
    for (int r = 0; r < options_.size; ++r) most = std::max(most, layout_.num_subtrees(r));
    sums_bytes_ = Aligned(most * options_.max_elements * 4);
    // A rank alone gathers nothing, and where its shards are one tree it has nothing to add: then the room
    // for its sums is made when it is asked for.
    gather_bytes_ = options_.size == 1 ? 0 : Aligned(options_.max_gather_bytes);
    PeerServices& peers = runtime_->peers();
    PHX_ASSIGN_OR_RETURN(void* const host, peers.AllocateMapped(sizeof(HostSignals)));
    host_ = static_cast<HostSignals*>(host);
    return layout_.total() == 1 ? absl::OkStatus() : AllocateSums();
  }
  absl::Status AllocateSums() {
    const int64_t bytes = Aligned(sizeof(RankSignals)) + 2 * sums_bytes_ + 2 * gather_bytes_;
    PHX_ASSIGN_OR_RETURN(memory_[options_.rank], runtime_->peers().AllocateShared(bytes));
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Export() { return runtime_->peers().Export(memory_[options_.rank]); }
  absl::Status Import(const std::vector<RankCard>& cards) {
    for (int r = 0; r < options_.size; ++r) {
      const RankCard& card = cards[static_cast<size_t>(r)];
      pids_.push_back(card.pid);
      if (r == options_.rank) continue;
      absl::StatusOr<void*> memory =
          runtime_->peers().Import(std::string(card.handle, static_cast<size_t>(card.handle_bytes)));
      if (!memory.ok()) {
        return absl::FailedPreconditionError(
            absl::StrCat("the memory of rank ", r, " cannot be mapped: ", memory.status().message()));
      }
      memory_[r] = *memory;
    }
    return absl::OkStatus();
  }
  // Ranks of this process, ordered by events: `events` of all ranks are made already.
  absl::Status MakeVirtual() {
    PHX_ASSIGN_OR_RETURN(void* const event, runtime_->peers().CreateEvent());
    events_.push_back(event);
    std::vector<void*> all(static_cast<size_t>(options_.size));
    if (options_.size > 1) {
      PHX_RETURN_IF_ERROR(options_.gather(&event, sizeof(event), all.data()));
    }
    peers_events_ = all;
    virtual_ = true;
    return absl::OkStatus();
  }
  void set_description(std::string text) { description_ = std::move(text); }

  std::string description() const override { return description_; }
  bool records() const override { return !virtual_; }

  absl::StatusOr<float*> SumsBuffer(int64_t) override {
    if (memory_[options_.rank] == nullptr) PHX_RETURN_IF_ERROR(AllocateSums());
    sums_slot_ = next_slot_;
    return Sums(options_.rank, sums_slot_);
  }

  absl::Status TreeAllReduce(uint64_t call, int64_t count, float* out) override {
    const int slot = sums_slot_;
    next_slot_ = slot ^ 1;
    TreeSumArgs args;
    args.tree = Rows(slot, count);
    PHX_RETURN_IF_ERROR(Come(call, &args.arrival));
    void* const stream = runtime_->stream();
    if (layout_.OneShot(count)) {
      args.end = count;
      args.dst = out;
      return runtime_->ToStatus(LaunchTreeSum(args, stream), "TreeAllReduce");
    }
    // The rank's slice goes over its own first row, of which nobody else reads that slice.
    const Range own = layout_.Slice(options_.rank, count);
    args.begin = own.begin;
    args.end = own.end;
    args.dst = Sums(options_.rank, slot);
    PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchTreeSum(args, stream), "TreeAllReduce"));
    CopyPartsArgs gather;
    PHX_RETURN_IF_ERROR(Come(call, &gather.arrival));
    gather.num_parts = options_.size;
    for (int r = 0; r < options_.size; ++r) {
      const Range slice = layout_.Slice(r, count);
      gather.from[r] = reinterpret_cast<const char*>(Sums(r, slot) + slice.begin);
      gather.to[r] = reinterpret_cast<char*>(out + slice.begin);
      gather.bytes[r] = slice.size() * 4;
    }
    return runtime_->ToStatus(LaunchCopyParts(gather, stream), "TreeAllReduce");
  }

  bool Fuses(int64_t count, const RmsNormParams& norm) const override {
    return layout_.OneShot(count) && norm.rows == nullptr && norm.residual.rows > 0;
  }
  absl::Status TreeAllReduceRmsNorm(uint64_t call, int64_t count, const RmsNormParams& norm) override {
    const int slot = sums_slot_;
    next_slot_ = slot ^ 1;
    TreeSumNormArgs args;
    args.tree = Rows(slot, count);
    PHX_RETURN_IF_ERROR(Come(call, &args.arrival));
    return LaunchNorm(runtime_.get(), half_, fast_, norm, &args);
  }

  absl::Status AllGather(uint64_t call, const void* in, int64_t bytes, void* out) override {
    char* const own = static_cast<char*>(out) + options_.rank * bytes;
    if (bytes > 0 && own != in) {
      PHX_RETURN_IF_ERROR(runtime_->Copy(own, in, bytes, CopyKind::kOnDevice));
    }
    if (options_.size == 1) return absl::OkStatus();
    const int slot = NextGather();
    if (bytes > 0) {
      PHX_RETURN_IF_ERROR(runtime_->Copy(GatherSlot(options_.rank, slot), own, bytes, CopyKind::kOnDevice));
    }
    CopyPartsArgs args;
    PHX_RETURN_IF_ERROR(Come(call, &args.arrival));
    args.num_parts = options_.size;
    for (int r = 0; r < options_.size; ++r) {
      if (r == options_.rank) continue;
      args.from[r] = GatherSlot(r, slot);
      args.to[r] = static_cast<char*>(out) + r * bytes;
      args.bytes[r] = bytes;
    }
    return runtime_->ToStatus(LaunchCopyParts(args, runtime_->stream()), "AllGather");
  }

  absl::Status Broadcast(uint64_t call, void* data, int64_t bytes, int root) override {
    if (options_.size == 1) return absl::OkStatus();
    const int slot = NextGather();
    if (options_.rank == root && bytes > 0) {
      PHX_RETURN_IF_ERROR(runtime_->Copy(GatherSlot(root, slot), data, bytes, CopyKind::kOnDevice));
    }
    CopyPartsArgs args;
    PHX_RETURN_IF_ERROR(Come(call, &args.arrival));
    args.num_parts = 1;
    if (options_.rank != root) {
      args.from[0] = GatherSlot(root, slot);
      args.to[0] = static_cast<char*>(data);
      args.bytes[0] = bytes;
    }
    return runtime_->ToStatus(LaunchCopyParts(args, runtime_->stream()), "Broadcast");
  }

  absl::Status Barrier(uint64_t call) override {
    if (options_.size == 1) return absl::OkStatus();
    next_slot_ = 0;
    CopyPartsArgs args;
    PHX_RETURN_IF_ERROR(Come(call, &args.arrival));
    return runtime_->ToStatus(LaunchCopyParts(args, runtime_->stream()), "Barrier");
  }

  void Stop() override {
    if (host_ != nullptr) __atomic_store_n(&host_->stop, 1u, __ATOMIC_RELEASE);
  }

  ExchangeFault fault() override {
    ExchangeFault fault;
    fault.stopped = __atomic_load_n(&host_->stopped, __ATOMIC_ACQUIRE) != 0;
    for (int r = 0; r < options_.size; ++r) {
      const uint32_t kind = __atomic_load_n(&host_->fault[r], __ATOMIC_ACQUIRE);
      if (kind == kNoFault) continue;
      fault.call = host_->own_call[r];
      if (kind == kMissingFault) fault.missing.push_back(r);
      if (kind == kCallFault && fault.differs < 0) {
        fault.differs = r;
        fault.other_call = host_->peer_call[r];
      }
    }
    return fault;
  }

 private:
  char* At(int rank, int64_t offset) const { return static_cast<char*>(memory_[rank]) + offset; }
  float* Sums(int rank, int slot) const {
    return reinterpret_cast<float*>(At(rank, Aligned(sizeof(RankSignals)) + slot * sums_bytes_));
  }
  char* GatherSlot(int rank, int slot) const {
    return At(rank, Aligned(sizeof(RankSignals)) + 2 * sums_bytes_ + slot * gather_bytes_);
  }
  // All ranks come to a gather, so the sums may begin with the first slot again: then equal steps have equal
  // pointers.
  int NextGather() {
    next_slot_ = 0;
    gather_slot_ ^= 1;
    return gather_slot_;
  }
  TreeArgs Rows(int slot, int64_t count) const {
    TreeArgs tree = layout_.tree;
    for (int r = 0; r < options_.size; ++r) {
      for (int i = 0; i < layout_.num_subtrees(r); ++i) {
        tree.rows[layout_.first_subtree[static_cast<size_t>(r)] + i] = Sums(r, slot) + i * count;
      }
    }
    return tree;
  }

  // What a kernel needs to wait for the peers; virtual ranks' streams wait here.
  absl::Status Come(uint64_t call, ArrivalArgs* arrival) {
    if (!virtual_) {
      arrival->rank = options_.rank;
      arrival->size = options_.size;
      for (int r = 0; r < options_.size; ++r) arrival->signals[r] = reinterpret_cast<RankSignals*>(At(r, 0));
      arrival->host = host_;
      arrival->call = call;
      arrival->timeout_ns = static_cast<uint64_t>(options_.timeout_ms) * 1000000;
      return absl::OkStatus();
    }
    if (options_.size == 1) return absl::OkStatus();
    PHX_RETURN_IF_ERROR(runtime_->peers().Record(events_[0], runtime_->stream()));
    PHX_RETURN_IF_ERROR(options_.meet(call));
    for (int r = 0; r < options_.size; ++r) {
      if (r == options_.rank) continue;
      PHX_RETURN_IF_ERROR(
          runtime_->peers().Follow(peers_events_[static_cast<size_t>(r)], runtime_->stream()));
    }
    // Nobody records its event anew before all follow it.
    return options_.meet(call);
  }

  const std::shared_ptr<Runtime> runtime_;
  const bool half_;
  FastProducts* const fast_;
  const ExchangeOptions options_;
  const ExchangeLayout layout_;
  std::string description_;
  bool virtual_ = false;
  bool other_processes_ = false;
  std::vector<int64_t> pids_;
  int64_t sums_bytes_ = 0, gather_bytes_ = 0;  // of a slot
  void* memory_[kMaxPeers] = {};               // of each rank, as this process sees it
  HostSignals* host_ = nullptr;
  std::vector<void*> events_;          // own
  std::vector<void*> peers_events_;    // by rank
  int sums_slot_ = 0, next_slot_ = 0;  // of the sums that are being made, and of the next
  int gather_slot_ = 0;
};

}  // namespace

absl::StatusOr<ExchangeLayout> ExchangeLayout::Create(const ExchangeOptions& options) {
  ExchangeLayout layout;
  layout.size = options.size;
  layout.one_shot_bytes = options.one_shot_bytes > 0 ? options.one_shot_bytes : kOneShotBytes;
  std::vector<Subtree> subtrees;
  for (int r = 0; r < options.size; ++r) {
    layout.first_subtree.push_back(static_cast<int>(subtrees.size()));
    const Range shards = ShardsOfRank(options.num_shards, options.size, r);
    for (const Subtree& tree : SubtreesOf(static_cast<int>(shards.begin), static_cast<int>(shards.end))) {
      subtrees.push_back(tree);
    }
  }
  layout.first_subtree.push_back(static_cast<int>(subtrees.size()));
  // As a machine with a stack: a row is put on it, then its two uppermost sums are merged so many times.
  const std::vector<MergeStep> steps = MergeOrder(subtrees);
  std::vector<int> stack;
  size_t next = 0, deepest = 0;
  for (size_t i = 0; i < subtrees.size() && i < kMaxSubtrees; ++i) {
    stack.push_back(static_cast<int>(i));
    deepest = std::max(deepest, stack.size());
    while (stack.size() > 1 && next < steps.size() && steps[next].right == stack.back() &&
           steps[next].left == stack[stack.size() - 2]) {
      stack.pop_back();
      ++next;
      ++layout.tree.merges[i];
    }
  }
  if (stack.size() != 1 || next != steps.size() || deepest > kMaxPendingSums + 1) {
    return absl::InternalError(absl::StrCat("the sums of ", options.num_shards, " shards on ", options.size,
                                            " ranks are not added as a stack of ", kMaxPendingSums + 1));
  }
  layout.tree.num_rows = static_cast<int>(subtrees.size());
  return layout;
}

Range ExchangeLayout::Slice(int rank, int64_t count) const {
  const int64_t units = (count + kSliceUnit - 1) / kSliceUnit;
  return {std::min(count, units * rank / size * kSliceUnit),
          std::min(count, units * (rank + 1) / size * kSliceUnit)};
}

bool ExchangeLayout::OneShot(int64_t count) const {
  // Rows read: `total` in one shot; a slice of each and then the sums in two.
  if (size == 1 || int64_t{total()} * (size - 1) <= size) return true;
  int fewest = total();
  for (int r = 0; r < size; ++r) fewest = std::min(fewest, num_subtrees(r));
  return (total() - fewest) * count * 4 <= one_shot_bytes;
}

absl::Status LaunchNorm(Runtime* runtime, bool half, FastProducts* fast, const RmsNormParams& norm,
                        TreeSumNormArgs* args) {
  PHX_ASSIGN_OR_RETURN(args->norm, NormArgs(norm, fast));
  args->products = norm.add2 != nullptr ? 2 : 1;
  return runtime->ToStatus(LaunchTreeSumNorm(*args, half, runtime->stream()), "TreeAllReduce and RmsNorm");
}

absl::StatusOr<std::unique_ptr<Exchange>> CreateExchange(std::shared_ptr<Runtime> runtime, bool half,
                                                         FastProducts* fast, const ExchangeOptions& options) {
  PHX_ASSIGN_OR_RETURN(const ExchangeLayout layout, ExchangeLayout::Create(options));
  auto exchange = std::make_unique<PeerExchange>(runtime, half, fast, options, layout);
  // A rank alone adds its own sums.
  const bool may_map =
      options.size == 1 || (options.path != ExchangePath::kNccl && options.size <= kMaxPeers);

  // Everybody's card, then whether everybody could map everybody: what one rank cannot none does.
  RankCard own;
  own.pid = getpid();
  Put(HostOf(), own.host);
  Put(runtime->peers().device_name(), own.device);
  std::string cannot_map = options.size > kMaxPeers ? absl::StrCat("more than ", kMaxPeers, " ranks") : "";
  if (may_map) {
    const absl::Status allocated = exchange->Allocate();
    own.failed = allocated.ok() ? 0 : 1;
    Put(std::string(allocated.message()), own.message);
    if (allocated.ok() && options.size > 1) {
      const absl::StatusOr<std::string> handle = exchange->Export();
      if (handle.ok()) {
        own.handle_bytes = static_cast<int32_t>(handle->size());
        std::memcpy(own.handle, handle->data(), handle->size());
      } else {
        Put(std::string(handle.status().message()), own.message);
      }
    }
  }
  PHX_ASSIGN_OR_RETURN(std::vector<RankCard> cards, Gather(options, own));
  PHX_RETURN_IF_ERROR(FirstFailure(cards));
  bool one_process = true, one_host = true, shares_device = false;
  for (int r = 0; r < options.size; ++r) {
    const RankCard& card = cards[static_cast<size_t>(r)];
    const bool same_host = std::strcmp(card.host, own.host) == 0;
    one_process = one_process && same_host && card.pid == own.pid;
    one_host = one_host && same_host;
    shares_device =
        shares_device || (r != options.rank && same_host && std::strcmp(card.device, own.device) == 0);
    if (may_map && options.size > 1 && card.handle_bytes == 0 && cannot_map.empty()) {
      cannot_map = absl::StrCat("rank ", r, ": ", card.message);
    }
  }
  if (options.size == 1) {
    PHX_RETURN_IF_ERROR(exchange->MakeVirtual());
    exchange->set_description("one rank: its sums are added on the device");
    return exchange;
  }
  if (options.path == ExchangePath::kVirtual && !one_process) {
    return absl::InvalidArgumentError("virtual ranks must be in one process");
  }
  if (may_map) {
    RankCard second = own;
    second.failed = 0;
    if (cannot_map.empty() && !one_host) cannot_map = "the ranks are on several hosts";
    if (cannot_map.empty()) {
      const absl::Status imported = exchange->Import(cards);
      second.failed = imported.ok() ? 0 : 1;
      Put(std::string(imported.message()), second.message);
    }
    PHX_ASSIGN_OR_RETURN(cards, Gather(options, second));
    if (cannot_map.empty()) cannot_map = std::string(FirstFailure(cards).message());
    if (cannot_map.empty()) {
      const bool is_virtual =
          options.path == ExchangePath::kVirtual || (options.path == ExchangePath::kAuto && one_process);
      if (is_virtual) {
        PHX_RETURN_IF_ERROR(exchange->MakeVirtual());
        exchange->set_description("virtual ranks, ordered by events");
      } else {
        exchange->set_description("kernels that read the peers' memory");
      }
      return exchange;
    }
    if (options.path != ExchangePath::kAuto) return absl::FailedPreconditionError(cannot_map);
  }
  exchange.reset();
  return CreateNcclExchange(std::move(runtime), half, fast != nullptr, options, layout, shares_device,
                            cannot_map);
}

}  // namespace phalanx::cuda
