#include "worker/collective/region.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace phalanx {
namespace {

constexpr int64_t kAlign = 128;  // two cache lines: processors fetch them in pairs
constexpr int64_t kMaxCount = int64_t{1} << 32;

int64_t AlignUp(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

absl::Status CheckRange(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("collective option ", name, " is ", value, "; it must be ", low, " to ", high));
}

}  // namespace

absl::Status ValidateCollectiveOptions(const CollectiveOptions& options) {
  absl::Status status = CheckRange("num_shards", options.num_shards, 1, kMaxShards);
  if (status.ok()) status = CheckRange("size", options.size, 1, options.num_shards);
  if (status.ok()) status = CheckRange("max_elements", options.max_elements, 0, kMaxCount);
  if (status.ok()) status = CheckRange("max_gather_bytes", options.max_gather_bytes, 0, kMaxCount);
  if (status.ok()) status = CheckRange("connect_timeout_ms", options.connect_timeout_ms, 1, kMaxCount);
  if (status.ok()) status = CheckRange("timeout_ms", options.timeout_ms, 1, kMaxCount);
  if (status.ok()) status = CheckRange("silence_ms", options.silence_ms, 100, kMaxCount);
  return status;
}

RegionLayout::RegionLayout(const CollectiveOptions& options)
    : shape_{options.size, options.num_shards, options.max_elements, options.max_gather_bytes} {
  int64_t in_slot = 0;
  for (int r = 0; r < options.size; ++r) {
    const Range shards = ShardsOfRank(options.num_shards, options.size, r);
    const std::vector<Subtree> trees =
        SubtreesOf(static_cast<int>(shards.begin), static_cast<int>(shards.end));
    first_subtree_.push_back(static_cast<int>(subtrees_.size()));
    sums_begin_.push_back(in_slot);
    subtrees_.insert(subtrees_.end(), trees.begin(), trees.end());
    in_slot += AlignUp(static_cast<int64_t>(trees.size() * sizeof(float)) * options.max_elements);
  }
  first_subtree_.push_back(static_cast<int>(subtrees_.size()));
  sums_begin_.push_back(in_slot);
  // One rank alone gathers nothing.
  gather_stride_ = options.size == 1 ? 0 : AlignUp(options.max_gather_bytes);
  slot_bytes_ = in_slot + gather_stride_ * options.size;
  slots_begin_ = AlignUp(static_cast<int64_t>(sizeof(RegionHeader) + sizeof(PeerState) * options.size));
  total_bytes_ = slots_begin_ + 2 * slot_bytes_;
}

int64_t RegionLayout::sums_offset(int rank, int slot) const {
  return slots_begin_ + slot * slot_bytes_ + sums_begin_[rank];
}

int64_t RegionLayout::gather_offset(int rank, int slot) const {
  return slots_begin_ + slot * slot_bytes_ + sums_begin_.back() + rank * gather_stride_;
}

void InitRegion(const Region& region, const RegionLayout& layout) {
  const int size = static_cast<int>(layout.shape().size);
  region.header()->shape = layout.shape();
  region.header()->arrived.store(kStartPhase * static_cast<uint32_t>(size), std::memory_order_relaxed);
  for (int r = 0; r < size; ++r) region.peer(r).posted.store(kStartPhase, std::memory_order_relaxed);
  region.header()->ready.store(1, std::memory_order_release);
}

absl::StatusOr<Region> MakePrivateRegion(const RegionLayout& layout) {
  const int64_t bytes = layout.total_bytes();
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for the slots of a collective (", bytes, " bytes): ", std::strerror(errno)));
  }
  Region region{std::shared_ptr<void>(memory, [bytes](void* p) { munmap(p, bytes); })};
  InitRegion(region, layout);
  return region;
}

}  // namespace phalanx
