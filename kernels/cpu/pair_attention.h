// One chunk of attention over a cache of bf16 pairs: queries, keys, weights and values in bf16, sums in fp32.
// For files compiled for AVX512_BF16; everything has internal linkage.
//
// A score is a chain of the unit's products over the channels, an output one over tiles of 32 keys. Keys that
// a vector does not see have weight 0, and what they are multiplied with is finite: they change nothing.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/avx512_math.h"
#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

constexpr int kTileRows = kPairTileRows;
constexpr int kTileK = 32;
constexpr int64_t kTile = kTileK * kPanel;  // elements of a tile of a panel
constexpr int kChunk = 256;
static_assert(kKvGroup == kTileK, "channels of a scale, and of a tile of keys");

// What one or two row tiles times one or two panels make.
struct Sums {
  float* c;
  int64_t stride;
  int tile_rows;  // of each row tile
  bool two_rows, two_panels;
};

// A tile of each panel; the second is not read where there is one panel.
struct PanelPair {
  const uint16_t* first;
  const uint16_t* second;
};

// A unit's Multiply(sums, rows, next, tiles, weights) writes to sums.c the sum over k tiles of the row tiles
// times weights(k), a PanelPair. Tiles of 32 k of a row tile's packed rows follow one another; the second row
// tile lies `next` elements behind the first.

// Codes of a cache.
struct Int8 {
  int8_t code;
};
struct E4m3 {
  uint8_t code;
};

inline __m512 Floats(const Int8* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

inline __m512 Floats(const E4m3* p) {
  // In fp16's places a code is its number times 2^-8, subnormal ones too.
  const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i halves =
      _mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
  return _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(256.0f));
}

inline void StoreBf16(__m512 low, __m512 high, uint16_t* out) {
  const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
  memcpy(out, &both, sizeof(both));
}

// A panel of 16 keys, to bf16.
template <typename W>
void WidenKeys(const W* panel, const uint16_t* scales, int64_t stride, int64_t depth, uint16_t* out) {
  const __m512i lanes = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  for (int64_t d = 0; d < depth; d += kKvGroup, scales += stride) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
    const __m512 of_key = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
    const __m512 low = _mm512_permutexvar_ps(lanes, of_key);
    const __m512 high = _mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(8)), of_key);
    for (int pair = 0; pair < kKvGroup / 2; ++pair, panel += 2 * kPanel, out += 2 * kPanel) {
      StoreBf16(_mm512_mul_ps(Floats(panel), low), _mm512_mul_ps(Floats(panel + kPanel), high), out);
    }
  }
}

// A tile of 16 channels of `keys` values; up to 32 zeros follow.
template <typename W>
void WidenValues(const W* panel, const uint16_t* scales, int keys, uint16_t* out) {
  int j = 0;
  for (; j < keys; j += 2, panel += 2 * kPanel, out += 2 * kPanel) {
    // Words of the two keys' scales: even lanes are the first's, odd ones the second's.
    const int both = scales[j] | (j + 1 < keys ? scales[j + 1] << 16 : 0);
    const __m512i words = _mm512_set1_epi32(both);
    const __m512 scale = _mm512_castsi512_ps(
        _mm512_mask_slli_epi32(_mm512_and_epi32(words, _mm512_set1_epi32(-0x10000)), 0x5555, words, 16));
    StoreBf16(_mm512_mul_ps(Floats(panel), scale), _mm512_mul_ps(Floats(panel + kPanel), scale), out);
  }
  if (j < kTileK) memset(out, 0, static_cast<size_t>(kTileK - j) * kPanel * sizeof(uint16_t));
}

inline const uint16_t* Bf16(const void* p) { return static_cast<const uint16_t*>(p); }

template <typename Unit>
void Scores(const PairAttentionChunkParams& c, int num_keys, int row_tiles, int tile_rows) {
  const auto* q = static_cast<const uint16_t*>(c.v.q);
  const int panels = (num_keys + kPanel - 1) / kPanel;
  const int64_t row_tile = static_cast<int64_t>(kTileRows) * c.v.key_depth;
  const auto key_tiles = static_cast<int>(c.v.key_depth / kTileK);
  for (int r = 0; r < row_tiles; r += 2) {
    for (int p = 0; p < panels; p += 2) {
      const Sums s = {c.v.scores + r * kTileRows * kScoreStride + p * kPanel, kScoreStride, tile_rows,
                      r + 1 < row_tiles, p + 1 < panels};
      const uint16_t* keys = Bf16(c.keys[p]);
      const uint16_t* more = s.two_panels ? Bf16(c.keys[p + 1]) : keys;
      Unit::Multiply(s, q + r * row_tile, row_tile, key_tiles, [keys, more](int64_t d) {
        return PanelPair{keys + d * kTile, more + d * kTile};
      });
    }
  }
}

inline void Prefetch(const void* p, int lines) {
  for (int i = 0; i < lines; ++i) _mm_prefetch(static_cast<const char*>(p) + i * 64, _MM_HINT_T1);
}

// The same over codes: panels are widened two at a time and used while they are near. What CodedValues will
// read of the same keys is fetched.
template <typename Unit, typename W>
void CodedScores(const PairAttentionChunkParams& c, int num_keys, int row_tiles, int tile_rows) {
  const auto* q = static_cast<const uint16_t*>(c.v.q);
  const int panels = (num_keys + kPanel - 1) / kPanel;
  const int64_t row_tile = static_cast<int64_t>(kTileRows) * c.v.key_depth, panel = kPanel * c.v.key_depth;
  const auto key_tiles = static_cast<int>(c.v.key_depth / kTileK);
  auto* widened = static_cast<uint16_t*>(c.scales.widened);
  for (int p = 0; p < panels; p += 2) {
    const int count = p + 1 < panels ? 2 : 1;
    for (int i = 0; i < c.v.value_panels; ++i) {
      Prefetch(static_cast<const W*>(c.values[p / 2]) + i * c.value_strides[p / 2], kTileK * kPanel / 64);
      if (i % 2 == 0) Prefetch(c.scales.values[p / 2] + i / 2 * c.scales.stride, 1);
    }
    for (int i = 0; i < count; ++i) {
      WidenKeys(static_cast<const W*>(c.keys[p + i]), c.scales.keys[p + i], c.scales.stride, c.v.key_depth,
                widened + i * panel);
    }
    for (int r = 0; r < row_tiles; r += 2) {
      const Sums s = {c.v.scores + r * kTileRows * kScoreStride + p * kPanel, kScoreStride, tile_rows,
                      r + 1 < row_tiles, count == 2};
      Unit::Multiply(s, q + r * row_tile, row_tile, key_tiles, [widened, panel](int64_t d) {
        return PanelPair{widened + d * kTile, widened + panel + d * kTile};
      });
    }
  }
}

// The weights of vector v, rounded to bf16, as a row of a packed tile; zeros up to `padded` keys. Returns
// their sum.
float Softmax(const PairAttentionChunkParams& c, int v, int padded, uint16_t* row, int tile_rows,
              float* max_out) {
  const float* scores = c.v.scores + v * kScoreStride;
  const int n = c.v.num_keys[v];
  const __m512 scale = _mm512_set1_ps(c.v.scale);
  __m512 best = _mm512_set1_ps(-INFINITY), second = best;
  int j = 0;
  for (; j + 32 <= n; j += 32) {
    best = _mm512_max_ps(best, _mm512_mul_ps(_mm512_loadu_ps(scores + j), scale));
    second = _mm512_max_ps(second, _mm512_mul_ps(_mm512_loadu_ps(scores + j + 16), scale));
  }
  for (; j < n; j += 16) {
    const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(scores + j), scale);
    best = _mm512_mask_max_ps(best, FirstLanes(n - j), best, x);
  }
  const float max = _mm512_reduce_max_ps(_mm512_max_ps(best, second));
  const __m512 highest = _mm512_set1_ps(max);
  __m512 sum = _mm512_setzero_ps();
  // What is added is what was rounded.
  const auto add = [&sum](__m256i rounded) {
    sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16)));
  };
  for (j = 0; j < padded; j += kTileK, row += kTileK * tile_rows) {
    __m512 low = _mm512_setzero_ps(), high = low;
    if (j + kTileK <= n) {
      low = Exp16(_mm512_sub_ps(_mm512_mul_ps(_mm512_loadu_ps(scores + j), scale), highest));
      high = Exp16(_mm512_sub_ps(_mm512_mul_ps(_mm512_loadu_ps(scores + j + 16), scale), highest));
    } else if (j < n) {
      const __mmask16 first = FirstLanes(n - j);
      low = Exp16(_mm512_sub_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(first, scores + j), scale), highest));
      low = _mm512_maskz_mov_ps(first, low);
      if (n - j > 16) {
        const __mmask16 rest = FirstLanes(n - j - 16);
        high =
            Exp16(_mm512_sub_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(rest, scores + j + 16), scale), highest));
        high = _mm512_maskz_mov_ps(rest, high);
      }
    }
    const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    __m512i rounded;
    memcpy(&rounded, &both, sizeof(rounded));
    _mm512_storeu_si512(row, rounded);
    add(_mm512_castsi512_si256(rounded));
    add(_mm512_extracti64x4_epi64(rounded, 1));
  }
  *max_out = max;
  return _mm512_reduce_add_ps(sum);
}

template <typename Unit>
void Values(const PairAttentionChunkParams& c, int num_keys, int row_tiles, int tile_rows) {
  const auto* weights = static_cast<const uint16_t*>(c.v.weights);
  const int key_tiles = (num_keys + kTileK - 1) / kTileK;
  const int64_t width = static_cast<int64_t>(c.v.value_panels) * kPanel;
  constexpr int64_t kRowTile = static_cast<int64_t>(kTileRows) * kChunk;
  for (int r = 0; r < row_tiles; r += 2) {
    for (int p = 0; p < c.v.value_panels; p += 2) {
      const Sums s = {c.v.partial + r * kTileRows * width + p * kPanel, width, tile_rows, r + 1 < row_tiles,
                      p + 1 < c.v.value_panels};
      Unit::Multiply(s, weights + r * kRowTile, kRowTile, key_tiles, [&c, p](int64_t k) {
        const uint16_t* w = Bf16(c.values[k]) + p * c.value_strides[k];
        return PanelPair{w, w + c.value_strides[k]};
      });
    }
  }
}

// The same over codes, two panels at a time. The next chunk's keys are fetched.
template <typename Unit, typename W>
void CodedValues(const PairAttentionChunkParams& c, int num_keys, int row_tiles, int tile_rows) {
  const auto* weights = static_cast<const uint16_t*>(c.v.weights);
  const int key_tiles = (num_keys + kTileK - 1) / kTileK;
  const int64_t width = static_cast<int64_t>(c.v.value_panels) * kPanel;
  constexpr int64_t kRowTile = static_cast<int64_t>(kTileRows) * kChunk;
  auto* widened = static_cast<uint16_t*>(c.scales.widened);
  for (int p = 0; p < c.v.value_panels; p += 2) {
    const int count = p + 1 < c.v.value_panels ? 2 : 1;
    for (int k = 0; k < key_tiles; ++k) {
      const int keys = num_keys - k * kTileK < kTileK ? num_keys - k * kTileK : kTileK;
      const uint16_t* scales = c.scales.values[k] + p * kPanel / kKvGroup * c.scales.stride;
      constexpr int kLines = kKvGroup * kPanel / 64;  // of a panel of keys, for each 32 channels
      for (int q = 2 * k; q < 2 * k + 2 && q < c.next_panels; ++q) {
        if (p * kPanel >= c.v.key_depth) break;
        Prefetch(static_cast<const W*>(c.keys[kChunk / kPanel + q]) + p * kPanel * kPanel, kLines);
        if (q % 2 == 0) Prefetch(c.scales.keys[kChunk / kPanel + q] + p / 2 * c.scales.stride, 1);
      }
      for (int i = 0; i < count; ++i) {
        WidenValues(static_cast<const W*>(c.values[k]) + (p + i) * c.value_strides[k], scales, keys,
                    widened + (2 * k + i) * kTile);
      }
    }
    for (int r = 0; r < row_tiles; r += 2) {
      const Sums s = {c.v.partial + r * kTileRows * width + p * kPanel, width, tile_rows, r + 1 < row_tiles,
                      count == 2};
      Unit::Multiply(s, weights + r * kRowTile, kRowTile, key_tiles, [widened](int64_t k) {
        return PanelPair{widened + 2 * k * kTile, widened + (2 * k + 1) * kTile};
      });
    }
  }
}

// Joins the chunk's partial result of vector v to the running one, left to right.
void Join(const AttentionVectors& p, int v, float chunk_max, float chunk_sum) {
  const int64_t width = static_cast<int64_t>(p.value_panels) * kPanel;
  const float* partial = p.partial + v * width;
  float* out = p.out + v * width;
  // Adding +0 makes a -0 one: which zero a sum ends with could depend on keys of weight 0.
  const __m512 zero = _mm512_setzero_ps();
  if (p.first) {
    p.max[v] = chunk_max;
    p.sum[v] = chunk_sum;
    for (int64_t d = 0; d < width; d += 16)
      _mm512_storeu_ps(out + d, _mm512_add_ps(_mm512_loadu_ps(partial + d), zero));
    return;
  }
  const float max = p.max[v] > chunk_max ? p.max[v] : chunk_max;
  const __m512 old_factor = Exp16(_mm512_set1_ps(p.max[v] - max));
  const __m512 chunk_factor = Exp16(_mm512_set1_ps(chunk_max - max));
  p.max[v] = max;
  p.sum[v] = p.sum[v] * _mm512_cvtss_f32(old_factor) + chunk_sum * _mm512_cvtss_f32(chunk_factor);
  for (int64_t d = 0; d < width; d += 16) {
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(out + d), old_factor);
    const __m512 part = _mm512_add_ps(_mm512_loadu_ps(partial + d), zero);
    _mm512_storeu_ps(out + d, _mm512_fmadd_ps(part, chunk_factor, scaled));
  }
}

template <typename Unit>
void AttentionChunk(const PairAttentionChunkParams& c) {
  const int row_tiles = NumTiles(c.v.num_vectors, kTileRows);
  const int tile_rows = row_tiles == 1 ? c.v.num_vectors : kTileRows;
  int num_keys = 0;
  for (int v = 0; v < c.v.num_vectors; ++v)
    num_keys = c.v.num_keys[v] > num_keys ? c.v.num_keys[v] : num_keys;
  const int padded = (num_keys + kTileK - 1) / kTileK * kTileK;
  const auto scores = c.codec == KvCodec::kNone   ? Scores<Unit>
                      : c.codec == KvCodec::kInt8 ? CodedScores<Unit, Int8>
                                                  : CodedScores<Unit, E4m3>;
  scores(c, num_keys, row_tiles, tile_rows);
  float max[64], sum[64];
  for (int v = 0; v < row_tiles * tile_rows; ++v) {
    uint16_t* row = static_cast<uint16_t*>(c.v.weights) +
                    static_cast<int64_t>(v / kTileRows) * kTileRows * kChunk + v % kTileRows * kTileK;
    if (v < c.v.num_vectors) {
      sum[v] = Softmax(c, v, padded, row, tile_rows, &max[v]);
    } else {  // a row that fills the last tile
      for (int k = 0; k < padded; k += kTileK) memset(row + k * tile_rows, 0, kTileK * sizeof(uint16_t));
    }
  }
  const auto values = c.codec == KvCodec::kNone   ? Values<Unit>
                      : c.codec == KvCodec::kInt8 ? CodedValues<Unit, Int8>
                                                  : CodedValues<Unit, E4m3>;
  values(c, num_keys, row_tiles, tile_rows);
  for (int v = 0; v < c.v.num_vectors; ++v) Join(c.v, v, max[v], sum[v]);
}

}  // namespace
}  // namespace phalanx
