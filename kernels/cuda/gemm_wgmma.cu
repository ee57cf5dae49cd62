// y = x W^T for many rows of x, for sm_90a: mode `fast`.
//
// A block has a producer warp and two consumer warpgroups and stays on its multiprocessor: it takes tiles of
// 128 rows of x by 256 (or 128) rows of W in the order of TileOf. The producer keeps a ring of stages of 64
// columns full by the copy engine, across tiles, so that the next tile's first stages come while the last
// one's sums are stored; a stage has a barrier that its bytes end and one that the consumers' warps end. A
// consumer has 64 rows of the tile, sums in registers, and one stage's wgmma in flight while it issues the
// next. Sums go out through a strip of shared memory of the warp's own, so that rows are stored in runs of
// 256 bytes. Roofline: 2 T N K over the tensor cores' rate; a stage's 48 KiB feed 2 * 128 * 256 * 64
// operations.
#include "kernels/cuda/hopper.h"
#include "kernels/cuda/hopper_device.h"

namespace phalanx::cuda {
namespace {

template <int kTileW_, int kStages_>
struct WgmmaShape {
  static constexpr int kTileX = 128;
  static constexpr int kTileW = kTileW_;
  static constexpr int kStages = kStages_;
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = (kConsumers + 1) * kWarpGroup;
  static constexpr int kXBytes = kTileX * kSwizzleRow;
  static constexpr int kWBytes = kTileW * kSwizzleRow;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kStripBytes = 16 * 256;  // of a warp
  static constexpr int kBarrierBytes = 2 * kStages * 8;
  static constexpr int kSharedBytes =
      kSwizzlePeriod + kStages * kStageBytes + kConsumers * 4 * kStripBytes + kBarrierBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

struct Ring {
  int slot = 0, parity = 0;
  template <int kStages>
  PHX_DEVICE void Next() {
    if (++slot == kStages) slot = 0, parity ^= 1;
  }
};

// The warp's 16 rows of sums, from d, into y, by runs of 256 bytes of a row.
template <class Shape, bool kHalf>
PHX_DEVICE void StoreTile(const HopperGemmArgs& p, const float (&d)[Shape::kTileW / 2], char* strip,
                          int first_row, int first_n) {
  const int lane = ThreadIndex() % kWarpSize;
  const int columns = p.y_fp32 ? 64 : 128;  // of a run
  const int run_units = 16;
  PHX_UNROLL
  for (int group = 0; group < Shape::kTileW / 64; ++group) {  // of 64 columns
    PHX_UNROLL
    for (int j = 0; j < 8; ++j) {
      const int n = first_n + group * 64 + j * 8 + lane % 4 * 2;
      const float low_bias = p.bias != nullptr && n < p.n ? p.bias[n] : 0.0f;
      const float high_bias = p.bias != nullptr && n + 1 < p.n ? p.bias[n + 1] : 0.0f;
      PHX_UNROLL
      for (int h = 0; h < 2; ++h) {
        const float low = Add(d[(group * 8 + j) * 4 + h * 2], low_bias);
        const float high = Add(d[(group * 8 + j) * 4 + h * 2 + 1], high_bias);
        const int row = lane / 4 + h * 8;
        if (p.y_fp32) {
          const int unit = j * 2 + lane % 4 / 2;
          auto* to = reinterpret_cast<float*>(strip + Swizzled(row, unit, 256)) + lane % 2 * 2;
          to[0] = low;
          to[1] = high;
        } else {
          const int unit = group % 2 * 8 + j;
          *reinterpret_cast<uint32_t*>(strip + Swizzled(row, unit, 256) + lane % 4 * 4) =
              Pack2<kHalf>(low, high);
        }
      }
    }
    if (!p.y_fp32 && group % 2 == 0) continue;  // the run's other half
    SyncWarp();
    const int run = p.y_fp32 ? group : group / 2;
    PHX_UNROLL
    for (int i = 0; i < 16 * run_units / kWarpSize; ++i) {
      const int row = i * 2 + lane / run_units, unit = lane % run_units;
      const int per_unit = p.y_fp32 ? 4 : 8;
      const int n = first_n + run * columns + unit * per_unit;
      if (first_row + row < p.rows && n < p.n) {
        const Quad q = LoadQuad(strip + Swizzled(row, unit, 256));
        const int64_t at = (first_row + row) * p.y_stride + n;
        if (p.y_fp32) {
          float* to = static_cast<float*>(p.y) + at;
          if (n + 4 <= p.n) {
            StoreQuad(to, q);
          } else {
            PHX_UNROLL
            for (int e = 0; e < 4; ++e) {
              if (n + e < p.n) to[e] = FloatFromBits(q.v[e]);
            }
          }
        } else {
          uint16_t* to = static_cast<uint16_t*>(p.y) + at;
          if (n + 8 <= p.n) {
            StoreQuad(to, q);
          } else {
            PHX_UNROLL
            for (int e = 0; e < 8; ++e) {
              if (n + e < p.n) to[e] = static_cast<uint16_t>(q.v[e / 2] >> (e % 2 * 16));
            }
          }
        }
      }
    }
    SyncWarp();
  }
}

template <class Shape, bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(Shape::kThreads, 1)
    GemmWgmma(const PHX_GRID_CONSTANT TensorMap x_map, const PHX_GRID_CONSTANT TensorMap w_map,
              HopperGemmArgs p) {
  WaitForPrevious();
#if PHX_HOPPER
  char* const base = SharedMemory() + (0u - SharedAddress(SharedMemory())) % kSwizzlePeriod;
  char* const strips = base + Shape::kStages * Shape::kStageBytes;
  auto* const full = reinterpret_cast<uint64_t*>(strips + Shape::kConsumers * 4 * Shape::kStripBytes);
  uint64_t* const empty = full + Shape::kStages;
  const int warp = ThreadIndex() / kWarpSize, group = ThreadIndex() / kWarpGroup;
  if (ThreadIndex() == 0) {
    PHX_UNROLL
    for (int i = 0; i < Shape::kStages; ++i) {
      BarrierInit(full + i, 1);
      BarrierInit(empty + i, Shape::kConsumers * 4);
    }
    BarrierFence();
  }
  SyncThreads();
  const int tiles_x = (p.rows + Shape::kTileX - 1) / Shape::kTileX;
  const int tiles_w = (p.n + Shape::kTileW - 1) / Shape::kTileW;
  const int blocks = (p.k + kSwizzleElements - 1) / kSwizzleElements;
  Ring ring;
  if (group == 0) {
    GiveRegisters<40>();
    if (ThreadIndex() == 0) {
      PrefetchMap(&x_map);
      PrefetchMap(&w_map);
      for (int tile = BlockX(); tile < tiles_x * tiles_w; tile += GridX()) {
        const TileAt at = TileOf(tile, tiles_x, tiles_w);
        for (int b = 0; b < blocks; ++b) {
          BarrierWait(empty + ring.slot, ring.parity ^ 1);
          char* const stage = base + ring.slot * Shape::kStageBytes;
          uint64_t* const barrier = full + ring.slot;
          BarrierExpect(barrier, Shape::kStageBytes);
          CopyBox2(stage, &x_map, barrier, b * kSwizzleElements, at.x * Shape::kTileX);
          CopyBox2(stage + Shape::kXBytes, &w_map, barrier, b * kSwizzleElements, at.w * Shape::kTileW);
          ring.Next<Shape::kStages>();
        }
      }
    }
  } else {
    TakeRegisters<232>();
    const int consumer = group - 1;
    char* const strip = strips + (warp - 4) * Shape::kStripBytes;
    const bool first_lane = ThreadIndex() % kWarpSize == 0;
    const bool early = PHX_FAULT(kWgmmaEarlyRelease);
    float d[Shape::kTileW / 2];
    for (int tile = BlockX(); tile < tiles_x * tiles_w; tile += GridX()) {
      const TileAt at = TileOf(tile, tiles_x, tiles_w);
      int last_slot = 0;
      for (int b = 0; b < blocks; ++b) {
        BarrierWait(full + ring.slot, ring.parity);
        const uint32_t stage = SharedAddress(base + ring.slot * Shape::kStageBytes);
        const uint32_t x = stage + static_cast<uint32_t>(consumer) * 64 * kSwizzleRow;
        WgmmaHold(d);
        WgmmaFence();
        PHX_UNROLL
        for (int step = 0; step < kSwizzleElements / 16; ++step) {
          Wgmma<Shape::kTileW, kHalf>(d, RowsDescriptor(x, step),
                                      RowsDescriptor(stage + Shape::kXBytes, step), b > 0 || step > 0);
        }
        WgmmaCommit();
        WgmmaHold(d);
        if (early && first_lane) BarrierArrive(empty + ring.slot);
        // The stage before is read.
        if (b > 0) {
          WgmmaWait<1>();
          if (first_lane && !early) BarrierArrive(empty + last_slot);
        }
        last_slot = ring.slot;
        ring.Next<Shape::kStages>();
      }
      WgmmaWait<0>();
      WgmmaHold(d);
      SyncWarp();
      if (first_lane && !early) BarrierArrive(empty + last_slot);
      StoreTile<Shape, kHalf>(p, d, strip, at.x * Shape::kTileX + consumer * 64 + warp % 4 * 16,
                              at.w * Shape::kTileW);
    }
  }
#endif
}

template <class Shape, bool kHalf>
int RunWgmmaGemm(const HopperGemmArgs& p, void* stream) {
  TensorMap x_map, w_map;
  const auto k = static_cast<uint64_t>(p.k);
  int error = EncodeTensorMap<2>(&x_map, p.x, {k, static_cast<uint64_t>(p.rows)},
                                 {static_cast<uint64_t>(p.x_stride) * 2}, {kSwizzleElements, Shape::kTileX});
  if (error == 0) {
    error =
        EncodeTensorMap<2>(&w_map, p.weight, {k, static_cast<uint64_t>(p.n)},
                           {static_cast<uint64_t>(p.weight_stride) * 2}, {kSwizzleElements, Shape::kTileW});
  }
  if (error != 0) return error;
  const int64_t tiles =
      int64_t{(p.rows + Shape::kTileX - 1) / Shape::kTileX} * ((p.n + Shape::kTileW - 1) / Shape::kTileW);
  const GridDim grid = {static_cast<unsigned>(tiles < p.multiprocessors ? tiles : p.multiprocessors), 1, 1};
  return LaunchKernel("GemmWgmma", GemmWgmma<Shape, kHalf>, grid, Shape::kThreads, Shape::kSharedBytes,
                      stream, x_map, w_map, p);
}

using Wgmma256 = WgmmaShape<256, 4>;
using Wgmma128 = WgmmaShape<128, 5>;

template <bool kHalf>
int RunWgmmaGemm(const HopperGemmArgs& p, void* stream) {
  return TileRowsOfW(p.rows, p.n, p.multiprocessors) == 256 ? RunWgmmaGemm<Wgmma256, kHalf>(p, stream)
                                                            : RunWgmmaGemm<Wgmma128, kHalf>(p, stream);
}

}  // namespace

int LaunchHopperGemm(const HopperGemmArgs& p, bool half, void* stream) {
  if (p.rows <= 0 || p.n <= 0 || p.k <= 0 || p.multiprocessors <= 0) return kNotTaken;
  return half ? RunWgmmaGemm<true>(p, stream) : RunWgmmaGemm<false>(p, stream);
}

}  // namespace phalanx::cuda
