#include "worker/collective/tree_sum.h"

#include <algorithm>
#include <cstring>

namespace phalanx {
namespace {

constexpr int64_t kTile = 512;  // elements summed at a time: a few tiles stay in the first-level cache

// out = a + b; out may be a or b. Blocks, so that the compiler need not ask whether they overlap.
void Add(float* out, const float* a, const float* b, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    float sum[16];
    for (int j = 0; j < 16; ++j) sum[j] = a[i + j] + b[i + j];
    for (int j = 0; j < 16; ++j) out[i + j] = sum[j];
  }
  for (; i < n; ++i) out[i] = a[i] + b[i];
}

}  // namespace

TreeSum::TreeSum(const std::vector<Subtree>& subtrees)
    : steps_(MergeOrder(subtrees)),
      rows_(subtrees.size()),
      partial_(subtrees.size()),
      scratch_(subtrees.size() * kTile) {}

void TreeSum::Sum(int64_t begin, int64_t end, float* dst) {
  if (steps_.empty() && end > begin && dst != rows_[0]) {
    std::memcpy(dst + begin, rows_[0] + begin, (end - begin) * sizeof(float));
  }
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t n = std::min(kTile, end - first);
    for (size_t i = 0; i < rows_.size(); ++i) partial_[i] = rows_[i] + first;
    for (size_t k = 0; k < steps_.size(); ++k) {
      const auto [left, right] = steps_[k];
      float* to = k + 1 == steps_.size() ? dst + first : scratch_.data() + left * kTile;
      Add(to, partial_[left], partial_[right], n);
      partial_[left] = to;
    }
  }
}

}  // namespace phalanx
