// Keys and values on their way into a quantised cache: kernels/quantised_kv.h says what its bits are. A
// thread takes a group of 32 channels, since their largest decides. Bound by its launch at decode.
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/rows.cuh"
#include "kernels/fp8.h"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 128;

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

// A block a row.
template <bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) StoreQuantised(RopeStoreArgs p) {
  WaitForPrevious();
  const int64_t row = BlockX(), slot = p.slots[row];
  const CacheArgs& cache = p.cache;
  if (slot < 0 || slot >= cache.num_blocks * cache.block_size) return;
  const int64_t block = slot / cache.block_size, offset = slot % cache.block_size;
  const int mode = p.rope_mode[row];
  RopeTableArgs table = p.tables[0];
  PHX_UNROLL
  for (int i = 1; i < kMaxRopeTables; ++i) {
    if (mode == i) table = p.tables[i];
  }
  const int64_t position = p.positions[row];
  const bool inside = mode >= 0 && mode < p.num_tables && position >= 0 && position < table.num_positions;
  const float* const cos = table.cos + (inside ? position * table.half : 0);
  const float* const sin = table.sin + (inside ? position * table.half : 0);
  const int key_groups = (cache.key_dim + kKvGroup - 1) / kKvGroup;
  const int value_groups = (cache.value_dim + kKvGroup - 1) / kKvGroup;
  for (int i = ThreadIndex(); i < cache.num_heads * (key_groups + value_groups); i += kThreads) {
    const int head = i / (key_groups + value_groups), part = i % (key_groups + value_groups);
    const bool key = part < key_groups;
    const int group = key ? part : part - key_groups, groups = key ? key_groups : value_groups;
    const int dim = key ? cache.key_dim : cache.value_dim, pitch = key ? cache.key_pitch : cache.value_pitch;
    const int first = group * kKvGroup, n = dim - first < kKvGroup ? dim - first : kKvGroup;
    const uint16_t* x = key ? p.k + row * p.k_stride : p.v + row * p.v_stride;
    x += int64_t{head} * dim;
    float v[kKvGroup];
    PHX_UNROLL
    for (int c = 0; c < kKvGroup; ++c) {
      v[c] = 0;
      if (c >= n) continue;
      const int at = first + c - p.rope_offset;
      if (!key || at < 0 || at >= 2 * table.half) {
        v[c] = ToFloat<kHalf>(x[first + c]);
        continue;
      }
      // Of a pair (a, b) the first or the second.
      const int pair = table.interleaved ? at / 2 : at % table.half;
      const bool second = table.interleaved ? at % 2 != 0 : at >= table.half;
      const uint16_t* rotated = x + p.rope_offset;
      const float a = ToFloat<kHalf>(rotated[table.interleaved ? 2 * pair : pair]);
      const float b = ToFloat<kHalf>(rotated[table.interleaved ? 2 * pair + 1 : pair + table.half]);
      if (!inside) {
        v[c] = QuietNan();
      } else if (second) {
        v[c] = Add(Mul(b, cos[pair]), Mul(a, sin[pair]));
      } else {
        v[c] = Sub(Mul(a, cos[pair]), Mul(b, sin[pair]));
      }
    }
    const int64_t to = (block * cache.num_heads + head) * cache.block_size + offset;
    char* codes = reinterpret_cast<char*>(key ? cache.keys : cache.values) + to * pitch + first;
    StoreGroup(v, n, cache.codec, codes, (key ? cache.key_scales : cache.value_scales) + to * groups + group);
  }
}

}  // namespace

int LaunchStoreQuantised(const RopeStoreArgs& p, bool half, void* stream) {
  if (p.rows == 0 || p.cache.num_heads == 0) return 0;
  const GridDim grid = {static_cast<unsigned>(p.rows), 1, 1};
  return LaunchKernel("StoreQuantised", half ? StoreQuantised<true> : StoreQuantised<false>, grid, kThreads,
                      0, stream, p);
}

}  // namespace phalanx::cuda
