// The memory that the ranks of a group share, and its layout: a header, one PeerState for each rank, then the
// slots into which ranks write what the others read. Zeroed memory is a valid region in which nobody has
// come.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "base/shard_plan.h"
#include "worker/collective/collective.h"

namespace phalanx {

// What a region was laid out for; ranks with other options must not attach to it.
struct RegionShape {
  int64_t size = 0;
  int64_t num_shards = 0;
  int64_t max_elements = 0;
  int64_t max_gather_bytes = 0;
  bool operator==(const RegionShape&) const = default;
};

// Phases wrap around after a few days; starting just below, they do so in every test.
inline constexpr uint32_t kStartPhase = 0u - 100;

struct RegionHeader {
  std::atomic<uint32_t> ready;  // 1 after all else was initialised
  RegionShape shape;
  // Calls are cut into phases 1, 2, ... (modulo 2^32); a phase ends when all ranks posted it. `arrived`
  // counts the posts of all ranks and phases, so phase p is over when it reaches p * size.
  alignas(128) std::atomic<uint32_t> arrived;
  alignas(128) std::atomic<uint32_t> sleepers;  // ranks in FutexWait on `arrived`
};

struct alignas(128) PeerState {
  std::atomic<uint32_t> posted;   // last phase this rank came to
  std::atomic<uint64_t> call[2];  // what it called there, by phase & 1: equal on all ranks
  // Why it will post no more, as its peers shall report it; `message` is written before `left` becomes 1.
  std::atomic<uint32_t> left;
  int32_t code;
  char message[256];
  // The process, where ranks are processes; pid is written last.
  std::atomic<uint32_t> claimed;
  std::atomic<int64_t> pid;
  std::atomic<uint64_t>
      start_time;  // in clock ticks since boot: tells a process from a later one with its pid
  std::atomic<uint64_t> pid_namespace;  // inode
  std::atomic<uint32_t> beats;          // counted up every BeatMs, where ranks are processes
};

// A region's place in memory; unmapped with the last owner.
struct Region {
  std::shared_ptr<void> memory;
  RegionHeader* header() const { return static_cast<RegionHeader*>(memory.get()); }
  PeerState& peer(int rank) const { return reinterpret_cast<PeerState*>(header() + 1)[rank]; }
};

// InvalidArgument naming the option, its value and what would be right. `rank` and `id` are not looked at.
absl::Status ValidateCollectiveOptions(const CollectiveOptions& options);

// Where things are in a region. Slots are doubled: a rank writes the slot of call n + 2 only after all ranks
// came to call n + 1, that is, after they read the slot of call n.
class RegionLayout {
 public:
  explicit RegionLayout(const CollectiveOptions& options);

  const RegionShape& shape() const { return shape_; }
  int64_t total_bytes() const { return total_bytes_; }
  const std::vector<Subtree>& subtrees() const { return subtrees_; }  // of all ranks, left to right
  int first_subtree(int rank) const { return first_subtree_[rank]; }
  int num_subtrees(int rank) const { return first_subtree_[rank + 1] - first_subtree_[rank]; }

  // fp32 [num_subtrees(rank), count] with count <= max_elements.
  int64_t sums_offset(int rank, int slot) const;
  int64_t gather_offset(int rank, int slot) const;  // bytes [max_gather_bytes]

 private:
  RegionShape shape_;
  std::vector<Subtree> subtrees_;
  std::vector<int> first_subtree_;   // [size + 1]
  std::vector<int64_t> sums_begin_;  // [size + 1], offsets inside one slot
  int64_t gather_stride_ = 0;
  int64_t slots_begin_ = 0;
  int64_t slot_bytes_ = 0;
  int64_t total_bytes_ = 0;
};

// Makes zeroed memory a region in which nobody has come; sets `ready` last.
void InitRegion(const Region& region, const RegionLayout& layout);

// An initialised region for threads of this process. ResourceExhausted when there is no memory.
absl::StatusOr<Region> MakePrivateRegion(const RegionLayout& layout);

}  // namespace phalanx
