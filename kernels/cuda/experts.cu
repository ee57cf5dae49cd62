// Routing, and what stands around grouped products. All are bound by their launch at decode.
#include "kernels/cuda/device.h"
#include "kernels/cuda/exp.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/rows.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kLowestFloat = -3.402823466e38f;

// The lane's best of (value, index) becomes the warp's: larger first, then the lower index.
PHX_DEVICE void WarpBest(float& value, int& index) {
  PHX_UNROLL_BY(1)
  for (int offset = 16; offset > 0; offset >>= 1) {
    const float v = ShuffleXor(value, offset);
    const int i = ShuffleXor(index, offset);
    if (v > value || (v == value && i < index)) value = v, index = i;
  }
}

// A warp a token: see reference_ops.cc, RouteRow, whose order of sums this has.
PHX_GLOBAL void PHX_BOUNDS(kWarpSize, 1) Route(RouteArgs p) {
  WaitForPrevious();
  auto* score = reinterpret_cast<float*>(SharedMemory());
  float* choice = score + p.num_experts;
  float* group = choice + p.num_experts;
  const int lane = ThreadIndex();
  const float* logits = p.scores + int64_t{BlockX()} * p.num_experts;
  if (p.sigmoid) {
    for (int e = lane; e < p.num_experts; e += kWarpSize)
      score[e] = Div(1.0f, Add(1.0f, ExactExp(-logits[e])));
  } else {
    float max = logits[0];
    for (int e = 1; e < p.num_experts; ++e) max = logits[e] > max ? logits[e] : max;
    for (int e = lane; e < p.num_experts; e += kWarpSize) score[e] = ExactExp(Sub(logits[e], max));
    SyncWarp();
    float sum = 0;
    for (int e = 0; e < p.num_experts; ++e) sum = Add(sum, score[e]);
    SyncWarp();
    for (int e = lane; e < p.num_experts; e += kWarpSize) score[e] = Div(score[e], sum);
  }
  for (int e = lane; e < p.num_experts; e += kWarpSize) {
    choice[e] = Add(score[e], p.bias == nullptr ? 0.0f : p.bias[e]);
    if (!(choice[e] >= kLowestFloat)) choice[e] = kLowestFloat;
  }
  SyncWarp();
  const int group_size = p.num_experts / p.num_groups;
  for (int g = lane; g < p.num_groups; g += kWarpSize) {
    float first = -Infinity(), second = -Infinity();
    for (int e = g * group_size; e < (g + 1) * group_size; ++e) {
      const float c = choice[e], least = first < c ? first : c;
      second = second < least ? least : second;
      first = first < c ? c : first;
    }
    group[g] = group_size == 1 ? first : Add(first, second);
  }
  SyncWarp();
  // A kept group becomes NaN, which no later round takes.
  for (int n = 0; n < p.top_groups; ++n) {
    float value = -Infinity();
    int index = p.num_groups;
    for (int g = lane; g < p.num_groups; g += kWarpSize) {
      if (group[g] > value || (group[g] == value && g < index)) value = group[g], index = g;
    }
    WarpBest(value, index);
    SyncWarp();
    if (lane == 0) group[index] = QuietNan();
    SyncWarp();
  }
  for (int e = lane; e < p.num_experts; e += kWarpSize) {
    if (group[e / group_size] == group[e / group_size]) choice[e] = -Infinity();
  }
  SyncWarp();
  // A chosen expert likewise.
  for (int n = 0; n < p.top_k; ++n) {
    float value = -Infinity();
    int index = p.num_experts;
    for (int e = lane; e < p.num_experts; e += kWarpSize) {
      if (choice[e] > value || (choice[e] == value && e < index)) value = choice[e], index = e;
    }
    WarpBest(value, index);
    SyncWarp();
    if (lane == 0) choice[index] = QuietNan();
    SyncWarp();
  }
  if (lane != 0) return;
  float sum = 1e-20f;
  int j = 0;
  for (int e = 0; e < p.num_experts; ++e) {
    if (choice[e] != choice[e]) sum = Add(sum, score[e]);
  }
  for (int e = 0; e < p.num_experts; ++e) {
    if (choice[e] == choice[e]) continue;
    const int64_t at = int64_t{BlockX()} * p.top_k + j++;
    p.ids[at] = e;
    p.weights[at] = Mul(p.normalize ? Div(score[e], sum) : score[e], p.scale);
  }
}

// A block an expert: its choices in rising order.
PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) ExpertLists(ExpertListArgs p) {
  WaitForPrevious();
  auto* warps = reinterpret_cast<int*>(SharedMemory());
  const int expert = BlockX(), lane = ThreadIndex() % kWarpSize, warp = ThreadIndex() / kWarpSize;
  const int choices = p.num_tokens * p.top_k;
  int count = 0;
  if (p.expert_weights[expert] != nullptr) {
    for (int first = 0; first < choices; first += kThreads) {
      const int i = first + ThreadIndex();
      const bool mine = i < choices && p.ids[i] == expert;
      const uint32_t lanes = Ballot(mine);
      SyncThreads();
      if (lane == 0) warps[warp] = PopCount(lanes);
      SyncThreads();
      int at = count + PopCount(lanes & ((1u << lane) - 1));
      for (int w = 0; w < kThreads / kWarpSize; ++w) {
        at += w < warp ? warps[w] : 0;
        count += warps[w];
      }
      // Ids of a token differ, so that an expert has no more choices than there are tokens.
      if (!mine || at >= p.num_tokens) continue;
      p.row_map[int64_t{expert} * p.num_tokens + at] = p.x_per_choice ? i : i / p.top_k;
      p.y_map[int64_t{expert} * p.num_tokens + at] = i;
    }
  }
  if (ThreadIndex() == 0) p.counts[expert] = count < p.num_tokens ? count : p.num_tokens;
}

PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) ClearMissing(ClearMissingArgs p) {
  WaitForPrevious();
  const int32_t expert = p.ids[BlockX()];
  if (expert >= 0 && expert < p.num_experts && p.expert_weights[expert] != nullptr) return;
  const int64_t row = BlockX() * p.y_stride;
  for (int c = ThreadIndex(); c < p.n; c += kThreads) {
    if (p.y_fp32) {
      static_cast<float*>(p.y)[row + c] = 0;
    } else {
      static_cast<uint16_t*>(p.y)[row + c] = 0;
    }
  }
}

// A thread a column of a token and subtree.
PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) CombineChoices(CombineChoicesArgs p) {
  WaitForPrevious();
  constexpr int kMaxLevels = 6;
  const int c = BlockX() * kThreads + ThreadIndex(), tree = BlockZ();
  const int64_t token = BlockY();
  if (c >= p.n) return;
  float stack[kMaxLevels + 1];
  float sum = 0;
  const int first = p.tree_begin[tree];
  for (int shard = first; shard < p.tree_begin[tree + 1]; ++shard) {
    sum = 0;
    for (int j = 0; j < p.top_k; ++j) {
      const int64_t choice = token * p.top_k + j;
      const int32_t e = p.ids[choice];
      if (e < p.expert_cuts[shard] || e >= p.expert_cuts[shard + 1] || p.expert_weights[e] == nullptr)
        continue;
      sum = Add(sum, Mul(p.weights[choice], p.products[choice * p.n + c]));
    }
    bool open = true;
    PHX_UNROLL
    for (int level = 0; level <= kMaxLevels; ++level) {
      if (open && ((shard - first) >> level & 1) != 0) {
        sum = Add(stack[level], sum);
      } else if (open) {
        stack[level] = sum;
        open = false;
      }
    }
  }
  p.y[tree * p.tree_stride + token * p.y_stride + c] = sum;
}

GridDim Grid(int64_t x, int64_t y, int64_t z) {
  return {static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)};
}

}  // namespace

int LaunchRoute(const RouteArgs& p, void* stream) {
  if (p.num_tokens == 0) return 0;
  return LaunchKernel("Route", Route, Grid(p.num_tokens, 1, 1), kWarpSize,
                      (2 * p.num_experts + p.num_groups) * 4, stream, p);
}

int LaunchExpertLists(const ExpertListArgs& p, void* stream) {
  if (p.num_experts == 0) return 0;
  return LaunchKernel("ExpertLists", ExpertLists, Grid(p.num_experts, 1, 1), kThreads,
                      kThreads / kWarpSize * 4, stream, p);
}

int LaunchClearMissing(const ClearMissingArgs& p, void* stream) {
  if (p.choices == 0) return 0;
  return LaunchKernel("ClearMissing", ClearMissing, Grid(p.choices, 1, 1), kThreads, 0, stream, p);
}

int LaunchCombineChoices(const CombineChoicesArgs& p, void* stream) {
  if (p.num_tokens == 0 || p.n == 0) return 0;
  return LaunchKernel("CombineChoices", CombineChoices,
                      Grid(CeilDiv(p.n, kThreads), p.num_tokens, p.num_trees), kThreads, 0, stream, p);
}

}  // namespace phalanx::cuda
