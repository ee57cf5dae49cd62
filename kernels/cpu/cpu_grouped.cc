#include "kernels/cpu/cpu_grouped.h"

#include <algorithm>
#include <bit>

#include "base/status_macros.h"
#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

float* RowOf(const Matrix& m, int64_t row) { return static_cast<float*>(m.data) + row * m.stride; }

// Calls body(i, thread) for i in [0, n); on one thread where there is little to do.
template <typename Body>
void ForEach(ThreadPool& pool, int64_t n, int64_t elements, Body body) {
  constexpr int64_t kSmall = 16384;
  if (n * elements < kSmall) {
    for (int64_t i = 0; i < n; ++i) body(i, 0);
    return;
  }
  pool.Run(n, body);
}

}  // namespace

void CpuGrouped::Sort(const GroupedMatmulParams& p) {
  const int64_t choices = p.num_tokens * p.top_k;
  begin_.assign(p.experts.size() + 1, 0);
  place_.assign(static_cast<size_t>(choices), -1);
  for (int64_t i = 0; i < choices; ++i) {
    if (p.experts[p.ids[i]] != nullptr) ++begin_[p.ids[i] + 1];
  }
  for (size_t e = 1; e < begin_.size(); ++e) begin_[e] += begin_[e - 1];
  sorted_.resize(static_cast<size_t>(begin_.back()));
  for (int64_t i = 0; i < choices; ++i) {
    if (p.experts[p.ids[i]] == nullptr) continue;
    place_[i] = begin_[p.ids[i]]++;
    sorted_[place_[i]] = i;
  }
  // Each begin is now the next one's.
  std::copy_backward(begin_.begin(), begin_.end() - 1, begin_.end());
  begin_[0] = 0;
}

absl::Status CpuGrouped::Run(const GroupedMatmulParams& p) {
  const int64_t k = p.x.cols, n = p.y.cols;
  Sort(p);
  const auto num_sorted = static_cast<int64_t>(sorted_.size());
  PHX_ASSIGN_OR_RETURN(void* rows_memory, rows_.Get(std::max<int64_t>(num_sorted * k, 1) * 4));
  PHX_ASSIGN_OR_RETURN(void* products_memory, products_.Get(std::max<int64_t>(num_sorted * n, 1) * 4));
  auto* const rows = static_cast<float*>(rows_memory);
  auto* const products = static_cast<float*>(products_memory);
  ForEach(pool_, num_sorted, k, [&](int64_t i, int) {
    std::copy_n(RowOf(p.x, p.x_per_choice ? sorted_[i] : sorted_[i] / p.top_k), k, rows + i * k);
  });
  for (size_t e = 0; e < p.experts.size(); ++e) {
    const int64_t begin = begin_[e], num_rows = begin_[e + 1] - begin;
    if (num_rows == 0) continue;
    PHX_RETURN_IF_ERROR(gemm_.Matmul({rows + begin * k, num_rows, k, k},
                                     *static_cast<const CpuWeight*>(p.experts[e]), nullptr,
                                     {products + begin * n, num_rows, n, n}));
  }
  if (p.weights == nullptr) {
    ForEach(pool_, p.y.rows, n, [&](int64_t i, int) {
      if (place_[i] < 0) {
        std::fill_n(RowOf(p.y, i), n, 0.0f);
      } else {
        std::copy_n(products + place_[i] * n, n, RowOf(p.y, i));
      }
    });
    return absl::OkStatus();
  }
  const auto levels = std::bit_width(p.expert_cuts.size());
  for (Scratch& s : stacks_) {
    PHX_RETURN_IF_ERROR(s.Get(std::max<int64_t>(levels * n, 1) * 4).status());
  }
  ForEach(pool_, p.num_tokens, n * p.top_k, [&](int64_t t, int thread) {
    Combine(p, t, products, static_cast<float*>(*stacks_[static_cast<size_t>(thread)].Get(0)));
  });
  return absl::OkStatus();
}

void CpuGrouped::Combine(const GroupedMatmulParams& p, int64_t t, const float* products, float* stack) const {
  const int64_t n = p.y.cols;
  const int end_shard = p.first_shard + static_cast<int>(p.expert_cuts.size()) - 1;
  float* out = RowOf(p.y, t);
  int64_t j = t * p.top_k;
  const int64_t end = j + p.top_k;
  for (int shard = p.first_shard; shard < end_shard;) {
    const int count = FirstSubtreeCount(shard, end_shard);
    // A binary counter of pending sums, as in CpuGemm.
    int top = 0;
    for (int i = 0; i < count; ++i, ++shard) {
      float* sum = stack + top++ * n;
      std::fill_n(sum, n, 0.0f);
      const int64_t cut = p.expert_cuts[shard + 1 - p.first_shard];
      for (; j < end && p.ids[j] < cut; ++j) {
        if (place_[j] >= 0) Avx2AddScaled(products + place_[j] * n, p.weights[j], n, sum);
      }
      for (int merged = i; (merged & 1) != 0; merged >>= 1) {
        --top;
        Avx2Add(stack + (top - 1) * n, stack + top * n, n);
      }
    }
    std::copy_n(stack, n, out);
    out += p.tree_stride == 0 ? p.y.rows * p.y.stride : p.tree_stride;
  }
}

}  // namespace phalanx
