// Products in which more happens than one matrix: what comes out of a gate, and weights that stay quantised.
#include <algorithm>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/validate.h"

namespace phalanx::cuda {
namespace {

// Of a quantised weight widened at a time: so that it stays in the device's cache, and fills the chip.
constexpr int64_t kWidenedBytes = int64_t{48} << 20;
constexpr int kTilesPerBlock = 8;  // of the 16-bit products

}  // namespace

absl::Status CudaOps::GatedMatmul(const GatedMatmulParams& p) {
  const auto* weight = dynamic_cast<const CudaWeight*>(p.weight);
  constexpr int kSplitRows = 64;
  const bool whole_tiles = weight != nullptr && weight->n() % (2 * kGemmRowTile) == 0;
  const bool of_a_number =
      weight != nullptr && (weight->quant().bits == 16 || p.x.rows <= kSplitRows || p.x.rows > kQuantRows);
  if (!whole_tiles || !of_a_number) return Ops::GatedMatmul(p);
  MatmulParams product;
  product.x = p.x;
  product.weight = p.weight;
  product.y = p.gate_up;
  PHX_RETURN_IF_ERROR(Validate(product));
  PHX_RETURN_IF_ERROR(Validate(SwiGluParams{.gate_up = p.gate_up, .y = p.y}));
  return Product("GatedMatmul", p.x, p.weight, nullptr, p.y.data, p.y.stride, 0, false, true);
}

absl::Status CudaOps::GatedShardedMatmul(const GatedShardedMatmulParams& p) {
  const Fp8Weight* const down = AsFp8(p.down);
  if (down == nullptr || p.x.rows <= kSkinnyRows) return Ops::GatedShardedMatmul(p);
  MatmulParams gate_up;
  gate_up.x = p.x;
  gate_up.weight = p.gate_up;
  gate_up.y = p.gated_from;
  ShardedMatmulParams product;
  product.x = p.gated;
  product.weight = down;
  product.sums = p.sums;
  product.tree_stride = p.tree_stride;
  PHX_RETURN_IF_ERROR(Validate(SwiGluParams{.gate_up = p.gated_from, .y = p.gated}));
  PHX_RETURN_IF_ERROR(Validate(product));
  PHX_RETURN_IF_ERROR(Matmul(gate_up));
  const int64_t tree_stride = p.tree_stride == 0 ? p.gated.rows * down->n() : p.tree_stride;
  return fast_->fp8()->Product("GatedShardedMatmul", p.gated, *down, nullptr, p.sums, down->n(), tree_stride,
                               true, !runtime_->device().emulated, &p.gated_from);
}

absl::Status CudaOps::LaunchProduct(const char* call, const GemmArgs& args) {
  void* const stream = runtime_->stream();
  if (args.quant.bits == 16) return runtime_->ToStatus(LaunchGemm(args, half_, stream), call);
  const bool narrow = args.rows <= kQuantRows || args.expert_weights != nullptr || GemmSplits(args);
  if (narrow || args.total_blocks == 0) {
    return runtime_->ToStatus(LaunchQuantGemm(args, half_, stream), call);
  }
  // Of gate and up so many tiles each.
  const int parts = args.up_tiles > 0 ? 2 : 1, all = args.up_tiles > 0 ? args.up_tiles : args.row_tiles;
  const int64_t tile_bytes = int64_t{args.total_blocks} * kGemmTileBlock * 2;
  int step =
      static_cast<int>(std::min<int64_t>(all, std::max<int64_t>(1, kWidenedBytes / parts / tile_bytes)));
  if (step > kTilesPerBlock) step -= step % kTilesPerBlock;
  PHX_ASSIGN_OR_RETURN(auto* const halves, widened_.Get<uint16_t>(parts * step * tile_bytes / 2));
  for (int tile = 0; tile < all; tile += step) {
    const int tiles = std::min(step, all - tile), first = tile * kGemmRowTile;
    for (int part = 0; part < parts; ++part) {
      WidenArgs widen;
      widen.weight = args.weight;
      widen.quant = args.quant;
      widen.total_blocks = args.total_blocks;
      widen.first_tile = part * args.up_tiles + tile;
      widen.tiles = tiles;
      widen.out = halves + part * tiles * tile_bytes / 2;
      PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchWiden(widen, half_, stream), call));
    }
    GemmArgs part = args;
    part.weight = halves;
    part.quant = {};
    part.row_tiles = parts * tiles;
    part.up_tiles = args.up_tiles > 0 ? tiles : 0;
    part.n = std::min(args.n - first, tiles * kGemmRowTile);
    part.y = static_cast<char*>(args.y) + int64_t{first} * (args.y_fp32 ? 4 : 2);
    part.bias = args.bias == nullptr ? nullptr : args.bias + first;
    PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchGemm(part, half_, stream), call));
  }
  return absl::OkStatus();
}

}  // namespace phalanx::cuda
