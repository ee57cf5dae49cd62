// Products with weights that stay quantised: gemm.cu's arithmetic with elements made in registers, so that
// the bits are those of the weight widened first. Roofline: the codes' bytes (4.5 to 9 bits an element) over
// the memory bandwidth while rows are few; then the tensor cores' rate, less what widening takes of the
// issue slots: about 4 instructions an element and 64 (Whole) tokens.
// Beyond kQuantRows rows the weight is widened into scratch memory by tiles (Widen) and multiplied there.
#include "kernels/cuda/quant.cuh"

namespace phalanx::cuda {
namespace {

template <int kBits>
struct Shapes {
  using W = QuantWeight<kBits>;
  using Split8 = GemmShape<W, 1, 1, 4, 1, 6, 0>;
  using Split32 = GemmShape<W, 1, 4, 4, 1, 5, 0>;
  using Split64 = GemmShape<W, 1, 8, 4, 1, 5, 0>;
  using Group16 = GemmShape<W, 1, 2, 4, 1, 6, 0>;
  using Whole64 = GemmShape<W, 2, 4, 4, 2, 4, 0>;
  using Tree64 = GemmShape<W, 1, 4, 4, 2, 4, 3>;
};

template <int kBits, bool kHalf>
int Run(const GemmArgs& p, void* stream) {
  using S = Shapes<kBits>;
  if (p.expert_weights != nullptr) {
    return p.rows <= 32 ? RunWhole<typename S::Group16, kHalf>(p, stream)
                        : RunWhole<typename S::Whole64, kHalf>(p, stream);
  }
  if (p.rows > 64 && !GemmSplits(p)) {
    return p.max_shards_per_tree == 1 ? RunWhole<typename S::Whole64, kHalf>(p, stream)
                                      : RunWhole<typename S::Tree64, kHalf>(p, stream);
  }
  if (p.num_segments > 0) {
    const int error = p.rows <= 8    ? RunSplit<typename S::Split8, kHalf>(p, stream)
                      : p.rows <= 32 ? RunSplit<typename S::Split32, kHalf>(p, stream)
                                     : RunSplit<typename S::Split64, kHalf>(p, stream);
    if (error != 0 || p.partials == nullptr) return error;
  }
  return LaunchGemmCombine(p, kHalf, stream);
}

// A warp a block of a tile. Blocks: (blocks / 4, tiles).
template <int kBits, bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(128, 1) Widen(WidenArgs p) {
  WaitForPrevious();
  const int lane = ThreadIndex() % kWarpSize, block = BlockX() * 4 + ThreadIndex() / kWarpSize;
  const int64_t tile = BlockY();
  if (block >= p.total_blocks) return;
  const char* from = reinterpret_cast<const char*>(p.weight) +
                     ((p.first_tile + tile) * p.total_blocks + block) * p.quant.block_bytes;
  uint16_t* to = p.out + (tile * p.total_blocks + block) * kGemmTileBlock + lane * 8;
  QuantCodes<kBits> codes;
  codes.Load(from, lane);
  PHX_UNROLL
  for (int step = 0; step < 4; ++step) {
    QuantRow rows[2];
    PHX_UNROLL
    for (int h = 0; h < 2; ++h) {
      rows[h] = LoadQuantRow(p.quant, from + QuantWeight<kBits>::kCodeBytes,
                             (step << p.quant.slot_shift) >> 2, lane / 4 + 8 * h);
    }
    StoreQuad(to + step * 256, codes.template Fragment<kHalf>(step, rows, p.quant.meta == QuantMeta::kF32));
  }
}

}  // namespace

int LaunchQuantGemm(const GemmArgs& p, bool half, void* stream) {
  if (p.quant.bits == 4) return half ? Run<4, true>(p, stream) : Run<4, false>(p, stream);
  return half ? Run<8, true>(p, stream) : Run<8, false>(p, stream);
}

int LaunchWiden(const WidenArgs& p, bool half, void* stream) {
  if (p.total_blocks == 0 || p.tiles == 0) return 0;
  const GridDim grid = {static_cast<unsigned>(CeilDiv(p.total_blocks, 4)), static_cast<unsigned>(p.tiles), 1};
  void (*const kernel)(WidenArgs) = p.quant.bits == 4 ? (half ? Widen<4, true> : Widen<4, false>)
                                    : half            ? Widen<8, true>
                                                      : Widen<8, false>;
  return LaunchKernel("Widen", kernel, grid, 128, 0, stream, p);
}

}  // namespace phalanx::cuda
