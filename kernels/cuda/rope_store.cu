// RoPE, and keys and values on their way into the cache: kernels/quantised_kv.h says what the bits of a
// quantised one are. Bound by memory, at decode by the launch.
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/rows.cuh"
#include "kernels/fp8.h"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;

// Rotates channels [0, 2 half) of a head at `x` as table says, from `unit` 8 pairs on, into `y`.
template <bool kHalf>
PHX_DEVICE void RotateUnit(const RopeTableArgs& table, bool inside, int64_t position, int unit,
                           const uint16_t* x, uint16_t* y) {
  const int first = unit * 8;
  const int64_t pairs = table.half - first;
  float a[8], b[8], cos[8], sin[8];
  if (table.interleaved) {
    float low[8], high[8];
    Load8<kHalf>(x + 2 * first, 2 * pairs, low);
    Load8<kHalf>(x + 2 * first + 8, 2 * pairs - 8, high);
    PHX_UNROLL
    for (int i = 0; i < 4; ++i) {
      a[i] = low[2 * i], b[i] = low[2 * i + 1];
      a[4 + i] = high[2 * i], b[4 + i] = high[2 * i + 1];
    }
  } else {
    Load8<kHalf>(x + first, pairs, a);
    Load8<kHalf>(x + table.half + first, pairs, b);
  }
  const int64_t at = inside ? position * table.half + first : 0;
  LoadFloats8(table.cos + at, inside ? pairs : 0, cos);
  LoadFloats8(table.sin + at, inside ? pairs : 0, sin);
  PHX_UNROLL
  for (int i = 0; i < 8; ++i) {
    const float rotated = Sub(Mul(a[i], cos[i]), Mul(b[i], sin[i]));
    b[i] = inside ? Add(Mul(b[i], cos[i]), Mul(a[i], sin[i])) : QuietNan();
    a[i] = inside ? rotated : QuietNan();
  }
  if (table.interleaved) {
    float low[8], high[8];
    PHX_UNROLL
    for (int i = 0; i < 4; ++i) {
      low[2 * i] = a[i], low[2 * i + 1] = b[i];
      high[2 * i] = a[4 + i], high[2 * i + 1] = b[4 + i];
    }
    Store8<kHalf>(y + 2 * first, 2 * pairs, low);
    Store8<kHalf>(y + 2 * first + 8, 2 * pairs - 8, high);
  } else {
    Store8<kHalf>(y + first, pairs, a);
    Store8<kHalf>(y + table.half + first, pairs, b);
  }
}

// Quantises n channels into words of 4 codes.
PHX_DEVICE void StoreGroup(const float (&v)[kKvGroup], int n, KvCodec codec, char* codes, uint16_t* scale) {
  constexpr uint32_t kInfinity = 0x7f800000u, kTiny = (127u - 100u) << 23;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  uint32_t bits = 0;
  PHX_UNROLL
  for (int i = 0; i < kKvGroup; ++i) {
    const uint32_t magnitude = i < n ? FloatBits(v[i]) & 0x7fffffffu : 0;
    bits = magnitude > bits ? magnitude : bits;
  }
  const bool none = bits >= kInfinity || bits < kTiny;
  const float most = codec == KvCodec::kE4m3 ? kE4m3Max : 127.0f;
  const uint16_t rounded = FromFloat<false>(none ? 0.0f : Div(FloatFromBits(bits), most));
  const float inverse = none ? 0.0f : Div(1.0f, ToFloat<false>(rounded));
  *scale = bits >= kInfinity ? 0x7fc0 : rounded;
  PHX_UNROLL
  for (int w = 0; w < kKvGroup / 4; ++w) {
    uint32_t word = 0;
    PHX_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float x = none || 4 * w + i >= n ? 0.0f : v[4 * w + i];
      const float scaled = Mul(x, inverse);
      const uint32_t code =
          codec == KvCodec::kE4m3
              ? E4m3FromFloatBits(FloatBits(scaled))
              : static_cast<uint32_t>(static_cast<int32_t>(Sub(Add(scaled, kRound), kRound)));
      word |= (code & 0xffu) << (8 * i);
    }
    if (4 * w < n) *reinterpret_cast<uint32_t*>(codes + 4 * w) = word;
  }
}

// Channel c of a head of keys at x, rotated where the table has it rotate.
template <bool kHalf>
PHX_DEVICE float KeyChannel(const RopeTableArgs& table, bool inside, int64_t position, int rope_offset,
                            const uint16_t* x, int c) {
  const int at = c - rope_offset;
  if (at < 0 || at >= 2 * table.half) return ToFloat<kHalf>(x[c]);
  if (!inside) return QuietNan();
  // Of a pair (a, b) the first or the second.
  const int pair = table.interleaved ? at / 2 : at % table.half;
  const bool second = table.interleaved ? at % 2 != 0 : at >= table.half;
  x += rope_offset;
  const float a = ToFloat<kHalf>(x[table.interleaved ? 2 * pair : pair]);
  const float b = ToFloat<kHalf>(x[table.interleaved ? 2 * pair + 1 : pair + table.half]);
  const float cos = table.cos[position * table.half + pair], sin = table.sin[position * table.half + pair];
  return second ? Add(Mul(b, cos), Mul(a, sin)) : Sub(Mul(a, cos), Mul(b, sin));
}

// The row's keys and values in a quantised cache. A thread takes a group of channels, since their largest
// decides; the last threads come first, as the first ones have the most of q.
template <bool kHalf>
PHX_DEVICE void StoreGroups(const RopeStoreArgs& p, const RopeTableArgs& table, bool inside, int64_t row,
                            int64_t block, int64_t offset) {
  const CacheArgs& cache = p.cache;
  const int64_t position = p.positions[row];
  const int key_groups = (cache.key_dim + kKvGroup - 1) / kKvGroup;
  const int value_groups = (cache.value_dim + kKvGroup - 1) / kKvGroup, all = key_groups + value_groups;
  for (int i = kThreads - 1 - ThreadIndex(); i < cache.num_heads * all; i += kThreads) {
    const int head = i / all, part = i % all;
    const bool key = part < key_groups;
    const int group = key ? part : part - key_groups, groups = key ? key_groups : value_groups;
    const int dim = key ? cache.key_dim : cache.value_dim, pitch = key ? cache.key_pitch : cache.value_pitch;
    const int first = group * kKvGroup, n = dim - first < kKvGroup ? dim - first : kKvGroup;
    const uint16_t* x = (key ? p.k + row * p.k_stride : p.v + row * p.v_stride) + int64_t{head} * dim;
    float v[kKvGroup];
    PHX_UNROLL
    for (int c = 0; c < kKvGroup; ++c) {
      v[c] = 0;
      if (c >= n) continue;
      v[c] = key ? KeyChannel<kHalf>(table, inside, position, p.rope_offset, x, first + c)
                 : ToFloat<kHalf>(x[first + c]);
    }
    const int64_t to = (block * cache.num_heads + head) * cache.block_size + offset;
    char* codes = reinterpret_cast<char*>(key ? cache.keys : cache.values) + to * pitch + first;
    StoreGroup(v, n, cache.codec, codes, (key ? cache.key_scales : cache.value_scales) + to * groups + group);
  }
}

// The row's keys and values in a cache of 16 bits. Units of a head: those that rotate, then those that are
// copied.
template <bool kHalf>
PHX_DEVICE void StoreUnits(const RopeStoreArgs& p, const RopeTableArgs& table, bool inside, int64_t row,
                           int64_t block, int64_t offset) {
  const CacheArgs& cache = p.cache;
  const int64_t position = p.positions[row];
  const int before = p.rope_offset, after = cache.key_dim - p.rope_offset - 2 * table.half;
  const int rotated = (table.half + 7) / 8, units = rotated + (before + 7) / 8 + (after + 7) / 8;
  for (int i = ThreadIndex(); i < cache.num_heads * units; i += kThreads) {
    const int head = i / units, unit = i % units;
    const uint16_t* k = p.k + row * p.k_stride + int64_t{head} * cache.key_dim;
    uint16_t* to =
        cache.keys + ((block * cache.num_heads + head) * cache.block_size + offset) * cache.key_pitch;
    if (unit < rotated) {
      RotateUnit<kHalf>(table, inside, position, unit, k + before, to + before);
      continue;
    }
    int c = (unit - rotated) * 8, end = before;
    if (unit - rotated >= (before + 7) / 8) {
      c = before + 2 * table.half + (unit - rotated - (before + 7) / 8) * 8;
      end = cache.key_dim;
    }
    StoreBits8(to + c, end - c, LoadBits8(k + c, end - c));
  }
  const int value_units = (cache.value_dim + 7) / 8;
  for (int i = ThreadIndex(); i < cache.num_heads * value_units; i += kThreads) {
    const int head = i / value_units, c = i % value_units * 8;
    const uint16_t* v = p.v + row * p.v_stride + int64_t{head} * cache.value_dim + c;
    uint16_t* to =
        cache.values + ((block * cache.num_heads + head) * cache.block_size + offset) * cache.value_pitch + c;
    StoreBits8(to, cache.value_dim - c, LoadBits8(v, cache.value_dim - c));
  }
}

// A block a row: heads of q, whose channels that do not rotate stay where they are, then of k, then of v.
template <bool kHalf, bool kQuantised>
PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) RopeStore(RopeStoreArgs p) {
  WaitForPrevious();
  const int64_t row = BlockX();
  const CacheArgs& cache = p.cache;
  const int mode = p.rope_mode[row];
  const bool known = mode >= 0 && mode < p.num_tables;
  // A run-time index into the parameters would move them to local memory.
  RopeTableArgs table = p.tables[0];
  PHX_UNROLL
  for (int i = 1; i < kMaxRopeTables; ++i) {
    if (mode == i) table = p.tables[i];
  }
  const int64_t position = p.positions[row];
  const bool inside = known && position >= 0 && position < table.num_positions;
  int64_t slot = p.slots[row];
  if (PHX_FAULT(kRopeStoresPadding) && slot < 0) slot = 0;
  const bool stored = slot >= 0 && slot < cache.num_blocks * cache.block_size;
  const int64_t block = stored ? slot / cache.block_size : 0, offset = stored ? slot % cache.block_size : 0;
  const int rotated = (table.half + 7) / 8;
  for (int i = ThreadIndex(); i < p.num_heads * rotated; i += kThreads) {
    uint16_t* x = p.q + row * p.q_stride + int64_t{i / rotated} * cache.key_dim + p.rope_offset;
    RotateUnit<kHalf>(table, inside, position, i % rotated, x, x);
  }
  if (!stored) return;
  if constexpr (kQuantised) {
    StoreGroups<kHalf>(p, table, inside, row, block, offset);
  } else {
    StoreUnits<kHalf>(p, table, inside, row, block, offset);
  }
}

}  // namespace

int LaunchRopeStore(const RopeStoreArgs& p, bool half, void* stream) {
  if (p.rows == 0) return 0;
  const GridDim grid = {static_cast<unsigned>(p.rows), 1, 1};
  const bool quantised = p.cache.key_scales != nullptr;
  const auto kernel = half ? (quantised ? RopeStore<true, true> : RopeStore<true, false>)
                           : (quantised ? RopeStore<false, true> : RopeStore<false, false>);
  return LaunchKernel("RopeStore", kernel, grid, kThreads, 0, stream, p);
}

}  // namespace phalanx::cuda
