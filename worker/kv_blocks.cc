#include "worker/kv_blocks.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace phalanx {

KvBlocks::KvBlocks(int64_t num_blocks) : num_blocks_(num_blocks) {
  PHX_CHECK(num_blocks >= 0 && num_blocks <= INT32_MAX, absl::StrCat("num_blocks ", num_blocks));
  free_.reserve(num_blocks);
  for (int64_t b = 0; b < num_blocks; ++b)
    free_.push_back(static_cast<int32_t>(b));  // rising: already a heap
  used_.resize(num_blocks, false);
}

absl::StatusOr<std::vector<int32_t>> KvBlocks::Allocate(int64_t count) {
  if (count < 0) return absl::InvalidArgumentError(absl::StrCat("cannot allocate ", count, " KV blocks"));
  if (count > num_free()) {
    return absl::ResourceExhaustedError(
        absl::StrCat(count, " KV blocks are asked for and ", num_free(), " of ", num_blocks_, " are free"));
  }
  std::vector<int32_t> blocks(count);
  for (int32_t& block : blocks) {
    std::pop_heap(free_.begin(), free_.end(), std::greater<>());
    block = free_.back();
    free_.pop_back();
    used_[block] = true;
  }
  return blocks;
}

void KvBlocks::Release(const std::vector<int32_t>& blocks) {
  for (int32_t block : blocks) {
    PHX_CHECK(block >= 0 && block < num_blocks_ && used_[block],
              absl::StrCat("KV block ", block, " of ", num_blocks_, " is released and was not taken"));
    used_[block] = false;
    free_.push_back(block);
    std::push_heap(free_.begin(), free_.end(), std::greater<>());
  }
}

}  // namespace phalanx
