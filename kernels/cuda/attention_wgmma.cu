// Causal prefill attention over the paged cache, for sm_90a: mode `fast`.
//
// A block takes an item (see AttentionItem) of up to 128 packed rows: tokens x query heads of one KV head, so
// that a group's heads share each key's load. A producer warp gathers tiles of 128 keys, and of their values,
// from the pages by the copy engine, a box a page and 64 channels, into two rings; two consumer warpgroups
// have 64 rows each. Scores are q k^T from shared memory; probabilities go back into wgmma from the registers
// that the scores came in; values lie as they do in the cache, rows of keys, and are read transposed. The
// scores of the next tile are made while outputs of this one are. Online softmax: a row's maximum only rises,
// sums and outputs are scaled along. A masked key has probability 0; values beyond the last key that is seen
// are made zero in shared memory, as what lies in unused slots may be NaN. Roofline: 4 * keys * width
// operations per row and head over the tensor cores' rate.
#include "kernels/cuda/hopper.h"
#include "kernels/cuda/hopper_device.h"
#include "kernels/cuda/rows.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kChunkKeys = 256;  // of AttentionItem's chunks
constexpr float kLog2e = 1.44269504f;

template <int kDim_, int kStages_>
struct WgmmaAttentionShape {
  static constexpr int kDim = kDim_;
  static constexpr int kStages = kStages_;
  static constexpr int kRows = kHopperRows;
  static constexpr int kKeys = 128;  // of a tile
  static constexpr int kThreads = 3 * kWarpGroup;
  static constexpr int kHalves = kDim / kSwizzleElements;
  static constexpr int kQueryBytes = kRows * kDim * 2;
  static constexpr int kTileBytes = kKeys * kDim * 2;
  static constexpr int kBarriers = 4 * kStages;
  static constexpr int kSharedBytes = kSwizzlePeriod + kQueryBytes + 2 * kStages * kTileBytes + kBarriers * 8;
  static_assert(kSharedBytes <= 227 * 1024);
};

struct AttentionTiles {
  int begin = 0, end = 0;  // keys
  int count = 0;
};
template <class Shape>
PHX_DEVICE AttentionTiles TilesOf(const AttentionItem& item) {
  const int limit = item.first_position + (item.first_row + item.rows - 1) / item.heads + 1;
  const int begin = item.first_chunk * kChunkKeys;
  const int end = item.end_chunk * kChunkKeys < limit ? item.end_chunk * kChunkKeys : limit;
  return {begin, end, (end - begin + Shape::kKeys - 1) / Shape::kKeys};
}

struct TileRing {
  uint64_t* full = nullptr;
  uint64_t* empty = nullptr;
  char* stages = nullptr;
  int slot = 0, parity = 0;

  template <class Shape>
  PHX_DEVICE char* stage() const {
    return stages + slot * Shape::kTileBytes;
  }
  template <class Shape>
  PHX_DEVICE void Next() {
    if (++slot == Shape::kStages) slot = 0, parity ^= 1;
  }
};

// The producer warp: a lane a box. Tiles have 128 keys, boxes min(block_size, 128), at least 8: at most 16
// pages of 2 halves.
template <class Shape>
PHX_DEVICE void Produce(const AttentionArgs& p, const AttentionItem& item, const TensorMap* k_map,
                        const TensorMap* v_map, TileRing k, TileRing v) {
  const int lane = ThreadIndex();
  const AttentionTiles tiles = TilesOf<Shape>(item);
  const int box = p.cache.block_size < Shape::kKeys ? p.cache.block_size : Shape::kKeys;
  const int boxes = Shape::kKeys / box * Shape::kHalves;
  const int piece = lane / Shape::kHalves, half = lane % Shape::kHalves;
  const int pages = (tiles.end + p.cache.block_size - 1) >> p.cache.block_shift;
  const int offset = half * Shape::kKeys * kSwizzleRow + piece * box * kSwizzleRow;
  for (int t = 0; t < tiles.count; ++t) {
    const int position = tiles.begin + t * Shape::kKeys + piece * box;
    int row = 0;
    if (lane < boxes) {
      int page = position >> p.cache.block_shift;
      if (PHX_FAULT(kAttentionWrongPage) && page > 0) --page;
      row = PageRow(item.block_table, page, pages, p.cache.num_blocks, p.cache.num_heads, item.kv_head);
    }
    const int in_page = position & (p.cache.block_size - 1);
    BarrierWait(k.empty + k.slot, k.parity ^ 1);
    if (lane == 0) BarrierExpect(k.full + k.slot, Shape::kTileBytes);
    SyncWarp();
    if (lane < boxes) {
      CopyBox3(k.stage<Shape>() + offset, k_map, k.full + k.slot, half * kSwizzleElements, in_page, row);
    }
    k.Next<Shape>();
    BarrierWait(v.empty + v.slot, v.parity ^ 1);
    if (lane == 0) BarrierExpect(v.full + v.slot, Shape::kTileBytes);
    SyncWarp();
    if (lane < boxes) {
      CopyBox3(v.stage<Shape>() + offset, v_map, v.full + v.slot, half * kSwizzleElements, in_page, row);
    }
    v.Next<Shape>();
  }
}

// A consumer warpgroup; rows of a lane: 64 * consumer + 16 * warp + lane / 4 + 8 h.
template <class Shape, bool kHalf>
struct Consumer {
  const AttentionArgs& p;
  const AttentionItem& item;
  const int consumer;
  char* const queries;
  const AttentionTiles tiles;
  TileRing k, v;
  float max[2], sum[2];  // in units of log2; a lane's part of the sum
  int limit[2];          // keys that the row sees

  PHX_DEVICE int Row(int h) const {
    const int warp = ThreadIndex() / kWarpSize % 4, lane = ThreadIndex() % kWarpSize;
    return consumer * 64 + warp * 16 + lane / 4 + h * 8;
  }
  PHX_DEVICE int Limit(int row) const {
    return item.first_position + (item.first_row + (row < item.rows ? row : item.rows - 1)) / item.heads + 1;
  }
  PHX_DEVICE void Release(uint64_t* barrier) const {
    if (ThreadIndex() % kWarpSize == 0) BarrierArrive(barrier);
  }

  PHX_DEVICE void LoadQueries() const {
    constexpr int kUnits = Shape::kDim / 8;
    for (int i = ThreadIndex() % kWarpGroup; i < 64 * kUnits; i += kWarpGroup) {
      const int row = consumer * 64 + i / kUnits, unit = i % kUnits;
      Quad q = {{0, 0, 0, 0}};
      if (row < item.rows && unit * 8 < p.cache.key_dim) {
        const int packed = item.first_row + row;
        const int64_t token = int64_t{item.first_token} + packed / item.heads;
        const int head = p.head_list[item.first_head + packed % item.heads];
        q = LoadBits8(p.q + token * p.q_stride + int64_t{head} * p.cache.key_dim + unit * 8,
                      p.cache.key_dim - unit * 8);
      }
      StoreQuad(queries + unit / 8 * Shape::kRows * kSwizzleRow + Swizzled(row, unit % 8, kSwizzleRow), q);
    }
    FenceAsync();
    SyncGroup(1 + consumer, kWarpGroup);
  }

  PHX_DEVICE void IssueScores(float (&s)[Shape::kKeys / 2]) {
    BarrierWait(k.full + k.slot, k.parity);
    const uint32_t q_tile = SharedAddress(queries) + static_cast<uint32_t>(consumer) * 64 * kSwizzleRow;
    const uint32_t k_tile = SharedAddress(k.stage<Shape>());
    WgmmaHold(s);
    WgmmaFence();
    PHX_UNROLL
    for (int step = 0; step < Shape::kDim / 16; ++step) {
      const int half = step / 4;
      Wgmma<Shape::kKeys, kHalf>(s, RowsDescriptor(q_tile + half * Shape::kRows * kSwizzleRow, step % 4),
                                 RowsDescriptor(k_tile + half * Shape::kKeys * kSwizzleRow, step % 4),
                                 step > 0);
    }
    WgmmaCommit();
    WgmmaHold(s);
  }

  // Values of keys beyond the last one become zero.
  PHX_DEVICE void ClearTail(int tile) const {
    const int used = tiles.end - tiles.begin - tile * Shape::kKeys;
    if (used >= Shape::kKeys || PHX_FAULT(kWgmmaTailNotCleared)) return;
    for (int i = ThreadIndex() % kWarpGroup; i < (Shape::kKeys - used) * Shape::kDim / 8; i += kWarpGroup) {
      const int unit = i % 8, row = i / 8 % (Shape::kKeys - used) + used,
                half = i / 8 / (Shape::kKeys - used);
      StoreQuad(v.stage<Shape>() + (half * Shape::kKeys + row) * kSwizzleRow + unit * 16, Quad{{0, 0, 0, 0}});
    }
    FenceAsync();
    SyncGroup(1 + consumer, kWarpGroup);
  }

  PHX_DEVICE void IssueOutputs(const uint32_t (&weights)[Shape::kKeys / 16][4], float (&o)[Shape::kDim / 2],
                               int tile) {
    BarrierWait(v.full + v.slot, v.parity);
    if (tile == tiles.count - 1) ClearTail(tile);
    const uint32_t v_tile = SharedAddress(v.stage<Shape>());
    WgmmaHold(o);
    WgmmaFence();
    PHX_UNROLL
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      WgmmaRegisters<Shape::kDim, kHalf>(o, weights[step], ColumnsDescriptor(v_tile, Shape::kKeys, step),
                                         true);
    }
    WgmmaCommit();
    WgmmaHold(o);
  }

  // Scores become probabilities; max, and sum but for what was in it before, are of them all. `factor`: of
  // what was summed before.
  PHX_DEVICE void Soften(float (&s)[Shape::kKeys / 2], int tile, float (&factor)[2]) {
    const float scale = p.scale * kLog2e;
    const int first = tiles.begin + tile * Shape::kKeys, lane = ThreadIndex() % kWarpSize;
    if (first + Shape::kKeys > Limit(consumer * 64)) {
      PHX_UNROLL
      for (int i = 0; i < Shape::kKeys / 2; ++i) {
        const int key = first + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (key >= limit[i / 2 % 2]) s[i] = -Infinity();
      }
    }
    PHX_UNROLL
    for (int h = 0; h < 2; ++h) {
      float most = -Infinity();
      PHX_UNROLL
      for (int j = 0; j < Shape::kKeys / 8; ++j) {
        most = Max(most, Max(s[j * 4 + h * 2], s[j * 4 + h * 2 + 1]));
      }
      most = Max(most, ShuffleXor(most, 1));
      most = Max(most, ShuffleXor(most, 2));
      const float before = max[h];
      max[h] = Max(before, Mul(most, scale));
      const float shift = max[h] == -Infinity() ? 0.0f : max[h];  // a row that has seen no key yet
      factor[h] = Exp2(Sub(before, shift));
      float part = 0;
      PHX_UNROLL
      for (int j = 0; j < Shape::kKeys / 8; ++j) {
        PHX_UNROLL
        for (int i = 0; i < 2; ++i) {
          float& at = s[j * 4 + h * 2 + i];
          at = Exp2(Fma(at, scale, -shift));
          part = Add(part, at);
        }
      }
      sum[h] = Add(Mul(sum[h], factor[h]), part);
    }
  }

  PHX_DEVICE void Pack(const float (&s)[Shape::kKeys / 2], uint32_t (&weights)[Shape::kKeys / 16][4]) const {
    PHX_UNROLL
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      PHX_UNROLL
      for (int i = 0; i < 4; ++i)
        weights[step][i] = Pack2<kHalf>(s[step * 8 + i * 2], s[step * 8 + i * 2 + 1]);
    }
  }

  PHX_DEVICE void Run(float (&o)[Shape::kDim / 2]) {
    PHX_UNROLL
    for (int h = 0; h < 2; ++h) {
      max[h] = -Infinity();
      sum[h] = 0;
      limit[h] = Limit(Row(h)) + (PHX_FAULT(kAttentionMaskOffByOne) ? 1 : 0);
    }
    LoadQueries();
    float s[Shape::kKeys / 2];
    uint32_t weights[Shape::kKeys / 16][4];
    float factor[2];
    PHX_UNROLL
    for (int i = 0; i < Shape::kDim / 2; ++i) o[i] = 0;
    IssueScores(s);
    WgmmaWait<0>();
    WgmmaHold(s);
    Release(k.empty + k.slot);
    k.Next<Shape>();
    Soften(s, 0, factor);
    Pack(s, weights);
    PHX_UNROLL_BY(1)
    for (int tile = 1; tile < tiles.count; ++tile) {
      IssueScores(s);
      IssueOutputs(weights, o, tile - 1);
      const bool early = PHX_FAULT(kWgmmaEarlyRelease);
      if (early) Release(k.empty + k.slot);
      WgmmaWait<1>();
      WgmmaHold(s);
      if (!early) Release(k.empty + k.slot);
      k.Next<Shape>();
      Soften(s, tile, factor);
      if (early) Release(v.empty + v.slot);
      WgmmaWait<0>();
      WgmmaHold(o);
      if (!early) Release(v.empty + v.slot);
      v.Next<Shape>();
      PHX_UNROLL
      for (int i = 0; i < Shape::kDim / 2; ++i) o[i] = Mul(o[i], factor[i / 2 % 2]);
      Pack(s, weights);
    }
    IssueOutputs(weights, o, tiles.count - 1);
    WgmmaWait<0>();
    WgmmaHold(o);
    Release(v.empty + v.slot);
    PHX_UNROLL
    for (int h = 0; h < 2; ++h) {
      sum[h] = Add(sum[h], ShuffleXor(sum[h], 1));
      sum[h] = Add(sum[h], ShuffleXor(sum[h], 2));
    }
  }

  PHX_DEVICE void Store(const float (&o)[Shape::kDim / 2]) const {
    const int lane = ThreadIndex() % kWarpSize;
    PHX_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int row = Row(h);
      if (row >= item.rows) continue;
      if (item.partial >= 0) {
        const int64_t at = item.partial + static_cast<int64_t>(row) * item.partial_chunks + item.first_chunk;
        if (lane % 4 == 0) {
          p.partial_max[at] = max[h];
          p.partial_sum[at] = sum[h];
        }
        PHX_UNROLL
        for (int j = 0; j < Shape::kDim / 8; ++j) {
          const int channel = j * 8 + lane % 4 * 2;
          if (channel >= p.partial_pitch) continue;
          p.partial_out[at * p.partial_pitch + channel] = o[j * 4 + h * 2];
          p.partial_out[at * p.partial_pitch + channel + 1] = o[j * 4 + h * 2 + 1];
        }
        continue;
      }
      const int packed = item.first_row + row;
      uint16_t* to = p.out + (int64_t{item.first_token} + packed / item.heads) * p.out_stride +
                     int64_t{p.head_list[item.first_head + packed % item.heads]} * p.value_dim;
      const bool pairs = (reinterpret_cast<uintptr_t>(to) & 3) == 0;
      PHX_UNROLL
      for (int j = 0; j < Shape::kDim / 8; ++j) {
        const int channel = j * 8 + lane % 4 * 2;
        const float low = Div(o[j * 4 + h * 2], sum[h]), high = Div(o[j * 4 + h * 2 + 1], sum[h]);
        if (pairs && channel + 1 < p.value_dim) {
          *reinterpret_cast<uint32_t*>(to + channel) = Pack2<kHalf>(low, high);
        } else {
          if (channel < p.value_dim) to[channel] = FromFloat<kHalf>(low);
          if (channel + 1 < p.value_dim) to[channel + 1] = FromFloat<kHalf>(high);
        }
      }
    }
  }
};

template <class Shape, bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(Shape::kThreads, 1)
    AttentionWgmma(const PHX_GRID_CONSTANT TensorMap k_map, const PHX_GRID_CONSTANT TensorMap v_map,
                   const AttentionArgs p) {
  WaitForPrevious();
#if PHX_HOPPER
  char* const base = SharedMemory() + (0u - SharedAddress(SharedMemory())) % kSwizzlePeriod;
  char* const k_stages = base + Shape::kQueryBytes;
  char* const v_stages = k_stages + Shape::kStages * Shape::kTileBytes;
  auto* const barriers = reinterpret_cast<uint64_t*>(v_stages + Shape::kStages * Shape::kTileBytes);
  if (ThreadIndex() == 0) {
    PHX_UNROLL
    for (int i = 0; i < Shape::kBarriers; ++i) BarrierInit(barriers + i, i < 2 * Shape::kStages ? 1 : 8);
    BarrierFence();
  }
  SyncThreads();
  // Later rows see more keys: the longest begin first.
  const AttentionItem item = p.items[GridX() - 1 - BlockX()];
  if (item.first_chunk >= item.end_chunk) return;
  const TileRing k = {barriers, barriers + 2 * Shape::kStages, k_stages, 0, 0};
  const TileRing v = {barriers + Shape::kStages, barriers + 3 * Shape::kStages, v_stages, 0, 0};
  const int group = ThreadIndex() / kWarpGroup;
  if (group == 0) {
    GiveRegisters<40>();
    if (ThreadIndex() < kWarpSize) Produce<Shape>(p, item, &k_map, &v_map, k, v);
  } else {
    TakeRegisters<232>();
    Consumer<Shape, kHalf> consumer = {p, item, group - 1, base, TilesOf<Shape>(item), k, v, {}, {}, {}};
    float o[Shape::kDim / 2];
    consumer.Run(o);
    consumer.Store(o);
  }
#endif
}

int EncodeCache(TensorMap* map, const CacheArgs& cache, const uint16_t* data, int pitch) {
  const auto row = static_cast<uint64_t>(pitch) * 2;
  const auto block = static_cast<uint32_t>(cache.block_size);
  return EncodeTensorMap<3>(
      map, data,
      {static_cast<uint64_t>(pitch), block,
       static_cast<uint64_t>(cache.num_blocks) * static_cast<uint64_t>(cache.num_heads)},
      {row, row * block}, {kSwizzleElements, block < 128 ? block : 128, 1});
}

template <class Shape>
int RunAttention(const AttentionArgs& p, int blocks, bool half, void* stream) {
  TensorMap k_map, v_map;
  int error = EncodeCache(&k_map, p.cache, p.cache.keys, p.cache.key_pitch);
  if (error == 0) error = EncodeCache(&v_map, p.cache, p.cache.values, p.cache.value_pitch);
  if (error != 0) return error;
  return LaunchKernel("AttentionWgmma", half ? AttentionWgmma<Shape, true> : AttentionWgmma<Shape, false>,
                      GridDim{static_cast<unsigned>(blocks), 1, 1}, Shape::kThreads, Shape::kSharedBytes,
                      stream, k_map, v_map, p);
}

}  // namespace

bool HopperAttentionSupports(int key_dim, int value_dim, int block_size, bool latent) {
  return !latent && key_dim > 0 && value_dim > 0 && key_dim <= 128 && value_dim <= 128 && block_size >= 8;
}

int LaunchHopperAttention(const AttentionArgs& p, int blocks, bool half, void* stream) {
  if (blocks == 0) return 0;
  if (!HopperAttentionSupports(p.cache.key_dim, p.value_dim, p.cache.block_size, p.latent) ||
      p.cache.num_blocks * p.cache.num_heads >= int64_t{1} << 30 || !(p.scale > 0)) {
    return kNotTaken;
  }
  return p.cache.key_dim <= 64 && p.value_dim <= 64
             ? RunAttention<WgmmaAttentionShape<64, 3>>(p, blocks, half, stream)
             : RunAttention<WgmmaAttentionShape<128, 2>>(p, blocks, half, stream);
}

}  // namespace phalanx::cuda
