#include "kernels/cuda/fast_columns.h"

#include <algorithm>
#include <utility>

namespace phalanx::cuda {
namespace {

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

absl::StatusOr<FastColumns> FastColumns::Of(const std::shared_ptr<Runtime>& runtime,
                                            const PackWeightParams& p, int64_t unit) {
  FastColumns c;
  c.k = p.cols.size();
  if (p.shard_cuts.empty()) {
    c.parts.push_back({0, 0, c.k});
  } else {
    c.subtrees = SubtreesOf(p.first_shard, p.first_shard + static_cast<int>(p.shard_cuts.size()) - 1);
    size_t shard = 0;
    for (const Subtree& tree : c.subtrees) {
      const int64_t begin = p.shard_cuts[shard] - p.cols.begin;
      shard += static_cast<size_t>(tree.count);
      const int64_t at = c.parts.empty() ? 0 : c.parts.back().begin + RoundUp(c.parts.back().cols, unit);
      c.parts.push_back({at, begin, p.shard_cuts[shard] - p.cols.begin - begin});
    }
  }
  std::vector<GemmSegment> segments;
  for (const Part& part : c.parts) {
    c.aligned = c.aligned && part.x_begin % 8 == 0 && part.cols % 8 == 0;
    if (part.cols == 0) continue;
    GemmSegment s;
    s.first_block = static_cast<int32_t>(part.begin / kFastBlock);
    s.blocks = static_cast<int32_t>(RoundUp(part.cols, unit) / kFastBlock);
    s.x_begin = static_cast<int32_t>(part.x_begin);
    s.x_cols = static_cast<int32_t>(part.cols);
    segments.push_back(s);
  }
  c.num_segments = static_cast<int>(segments.size());
  const Part& last = c.parts.back();
  c.stride = std::max<int64_t>(unit, last.begin + RoundUp(last.cols, unit));
  PHX_ASSIGN_OR_RETURN(c.segments, CudaBuffer::Of(runtime, segments));
  return c;
}

PackRowsArgs FastColumns::PackArgs() const {
  PackRowsArgs args;
  args.segments = segments->as<const GemmSegment>();
  args.num_segments = num_segments;
  args.total_blocks = static_cast<int>(stride / kFastBlock);
  return args;
}

absl::StatusOr<FastInput> ReadFastInput(Runtime& runtime, const char* call, const Matrix& x,
                                        const FastColumns& columns, Scratch* packed) {
  const auto* data = static_cast<const uint16_t*>(x.data);
  if (columns.aligned && reinterpret_cast<uintptr_t>(data) % 16 == 0 && x.stride % 8 == 0) {
    return FastInput{data, x.stride, false};
  }
  PackRowsArgs pack = columns.PackArgs();
  pack.x = data;
  pack.x_stride = x.stride;
  pack.rows = static_cast<int>(x.rows);
  PHX_ASSIGN_OR_RETURN(pack.out, packed->Get<uint16_t>(x.rows * columns.stride));
  PHX_RETURN_IF_ERROR(runtime.ToStatus(LaunchPackRows(pack, runtime.stream()), call));
  return FastInput{pack.out, columns.stride, true};
}

absl::StatusOr<RowMajorGemmArgs> GroupedArgs(Runtime& runtime, const GroupedMatmulParams& p,
                                             const ExpertListArgs& list, const FastColumns& columns,
                                             int64_t n, void* y, int64_t y_stride, Scratch* packed) {
  PHX_ASSIGN_OR_RETURN(const FastInput input, ReadFastInput(runtime, "GroupedMatmul", p.x, columns, packed));
  RowMajorGemmArgs args;
  args.weight_stride = columns.stride;
  args.n = static_cast<int>(n);
  args.k = static_cast<int>(columns.k);
  args.x = input.x;
  args.x_stride = input.stride;
  args.rows = list.num_tokens;
  args.y = y;
  args.y_stride = y_stride;
  args.y_fp32 = p.weights != nullptr;
  args.expert_weights = list.expert_weights;
  args.num_experts = list.num_experts;
  args.counts = list.counts;
  args.row_map = list.row_map;
  args.y_map = list.y_map;
  return args;
}

}  // namespace phalanx::cuda
