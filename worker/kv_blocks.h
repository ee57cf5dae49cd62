// The pool of KV blocks of a group, as the leader counts them. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace phalanx {

class KvBlocks {
 public:
  explicit KvBlocks(int64_t num_blocks);

  int64_t num_blocks() const { return num_blocks_; }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_used() const { return num_blocks_ - num_free(); }

  // Takes `count` blocks, lowest ids first; ResourceExhausted naming both numbers when fewer are free.
  absl::StatusOr<std::vector<int32_t>> Allocate(int64_t count);
  // Returns blocks taken before; CHECK-fails on a block that is not out (a bug, never input).
  void Release(const std::vector<int32_t>& blocks);

 private:
  int64_t num_blocks_;
  std::vector<int32_t> free_;  // a heap, lowest id on top
  std::vector<bool> used_;
};

}  // namespace phalanx
