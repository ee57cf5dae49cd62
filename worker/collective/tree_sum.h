// The sum of all ranks' subtrees in the order of the tree, whatever way the rows came here.
#pragma once

#include <cstdint>
#include <vector>

#include "base/shard_plan.h"

namespace phalanx {

class TreeSum {
 public:
  // `subtrees` of all ranks, left to right.
  explicit TreeSum(const std::vector<Subtree>& subtrees);

  int64_t num_rows() const { return static_cast<int64_t>(rows_.size()); }
  // `row` of subtree i, as Sum counts its elements.
  void set_row(int64_t i, const float* row) { rows_[i] = row; }
  // dst[begin, end) = the tree's sum of the rows' [begin, end).
  void Sum(int64_t begin, int64_t end, float* dst);

 private:
  const std::vector<MergeStep> steps_;
  std::vector<const float*> rows_;     // [subtrees]
  std::vector<const float*> partial_;  // [subtrees]: rows_ or sums in scratch_
  std::vector<float> scratch_;
};

}  // namespace phalanx
