// One chunk of attention with AVX2 and FMA. A vector's arithmetic is a function of itself and the keys it
// sees: the vectors beside it only share loads.
#include <math.h>

#include "kernels/cpu/avx2_math.h"
#include "kernels/cpu/avx2_product.h"
#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

constexpr int kChunk = 256;
constexpr int kMaxVectors = 64;

// Elements of a cache that are codes; others are float and uint16_t.
struct Int8 {
  int8_t code;
};
struct E4m3 {
  uint8_t code;
};

inline __m256 Floats(const Int8* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

inline __m256 Floats(const E4m3* p) {
  // In fp16's places a code is its number times 2^-8, subnormal ones too.
  const __m128i words = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i halves =
      _mm_and_si128(_mm_slli_epi16(words, 7), _mm_set1_epi16(static_cast<int16_t>(0xbf80)));
  return _mm256_mul_ps(_mm256_cvtph_ps(halves), _mm256_set1_ps(256.0f));
}

inline __m256 Bf16Scales(const uint16_t* p) {
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

template <typename W>
Panel16 LoadScaled(const W* p, __m256 scale) {
  return {_mm256_mul_ps(Floats(p), scale), _mm256_mul_ps(Floats(p + 8), scale)};
}

// A panel of 16 keys, `depth` channels, to fp32.
template <typename W>
void WidenKeys(const W* panel, const uint16_t* scales, int64_t stride, int64_t depth, float* out) {
  for (int64_t begin = 0; begin < depth; begin += kKvGroup, scales += stride) {
    const __m256 low = Bf16Scales(scales), high = Bf16Scales(scales + 8);
    const int64_t end = begin + kKvGroup < depth ? begin + kKvGroup : depth;
    for (int64_t d = begin; d < end; ++d, panel += kPanel, out += kPanel) {
      _mm256_storeu_ps(out, _mm256_mul_ps(Floats(panel), low));
      _mm256_storeu_ps(out + 8, _mm256_mul_ps(Floats(panel + 8), high));
    }
  }
}

inline void Prefetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(static_cast<const char*>(p) + i, _MM_HINT_T1);
}

// What TileProduct reads of the panels of a block's keys. Of codes the block's values are fetched.
template <typename W>
auto KeysOf(const Avx2AttentionChunkParams& c, int b, int panels) {
  const W* keys = static_cast<const W*>(c.keys[b]);
  if constexpr (sizeof(W) == 1) {
    auto* out = static_cast<float*>(c.scales.widened);
    const int64_t panel = static_cast<int64_t>(c.key_dim) * kPanel;
    Prefetch(c.values[b], static_cast<int64_t>(c.v.value_panels) * c.value_rows * kPanel);
    for (int p = 0; p < panels; ++p)
      WidenKeys(keys + p * panel, c.scales.keys[b] + p * kPanel, c.scales.stride, c.key_dim, out + p * panel);
    return static_cast<const float*>(out);
  } else {
    return keys;
  }
}

// Sixteen channels of one of a block's values.
template <typename W>
Panel16 LoadValue(const Avx2AttentionChunkParams& c, int b, int panel, int key) {
  const W* v =
      static_cast<const W*>(c.values[b]) + (static_cast<int64_t>(panel) * c.value_rows + key) * kPanel;
  if constexpr (sizeof(W) == 1) {
    const uint16_t scale = c.scales.values[b][panel * kPanel / kKvGroup * c.scales.stride + key];
    return LoadScaled(v, _mm256_castsi256_ps(_mm256_set1_epi32(scale << 16)));
  } else {
    return LoadPanel(v);
  }
}

// And of the panels of `num_keys` values; of codes the next chunk's keys are fetched.
template <typename W>
auto ValuesOf(const Avx2AttentionChunkParams& c, int b, int num_keys) {
  if constexpr (sizeof(W) == 1) {
    auto* out = static_cast<float*>(c.scales.widened);
    if (b < c.next_blocks) {
      Prefetch(c.keys[kChunk / kPanel + b], static_cast<int64_t>(c.key_dim) * c.block_keys);
    }
    for (int p = 0; p < c.v.value_panels; ++p) {
      float* to = out + static_cast<int64_t>(p) * c.value_rows * kPanel;
      for (int j = 0; j < num_keys; ++j, to += kPanel) {
        const Panel16 value = LoadValue<W>(c, b, p, j);
        _mm256_storeu_ps(to, value.low);
        _mm256_storeu_ps(to + 8, value.high);
      }
    }
    return static_cast<const float*>(out);
  } else {
    return static_cast<const W*>(c.values[b]);
  }
}

// scores[v][j] = q_v . k_j for the keys [0, num_keys) of the chunk, and whatever follows up to a panel's end.
template <typename W>
void Scores(const Avx2AttentionChunkParams& c, int num_keys) {
  const int tiles = NumTiles(c.v.num_vectors, kMaxTileRows);
  const int64_t depth = c.v.key_depth;
  for (int b = 0; b * c.block_keys < num_keys; ++b) {
    const int left = num_keys - b * c.block_keys;
    const int panels = ((left < c.block_keys ? left : c.block_keys) + kPanel - 1) / kPanel;
    const auto keys = KeysOf<W>(c, b, panels);
    for (int t = 0; t < tiles; ++t) {
      const int begin = TileBegin(c.v.num_vectors, tiles, kMaxTileRows, true, t);
      const int rows = TileBegin(c.v.num_vectors, tiles, kMaxTileRows, true, t + 1) - begin;
      TileProduct(rows, static_cast<const float*>(c.v.q) + begin * depth, keys,
                  static_cast<int64_t>(c.key_dim) * kPanel, panels, c.key_dim,
                  c.v.scores + begin * kScoreStride + b * c.block_keys, kScoreStride, false);
    }
  }
}

// weights[j] = Exp(scores[j] * scale - max), written as row `row` of a packed tile of `rows` rows.
void Softmax(const float* scores, int n, float scale, int row, int rows, float* tile, float* max_out,
             float* sum_out) {
  const __m256 s = _mm256_set1_ps(scale);
  const __m256 lowest = _mm256_set1_ps(-INFINITY);
  __m256 best = lowest;
  for (int j = 0; j < n; j += 8) {
    const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(scores + j), s);
    const __m256i mask = LaneMask(n - j);
    best = _mm256_max_ps(best, _mm256_blendv_ps(lowest, x, _mm256_castsi256_ps(mask)));
  }
  const float max = MaxLanes(best);
  const __m256 m = _mm256_set1_ps(max);
  __m256 sum = _mm256_setzero_ps();
  for (int j = 0; j < n; j += 8) {
    const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(scores + j), s);
    const __m256i mask = LaneMask(n - j);
    const __m256 e = _mm256_and_ps(Exp8(_mm256_sub_ps(x, m)), _mm256_castsi256_ps(mask));
    sum = _mm256_add_ps(sum, e);
    _mm256_storeu_ps(tile + j * rows + row * 8, e);
  }
  *max_out = max;
  *sum_out = SumLanes(sum);
}

// out (+)= the weights of keys [begin, end) of one row of a packed tile, times the values of these keys.
template <typename W>
void AddKeys(const Avx2AttentionChunkParams& c, const float* tile, int row, int rows, int begin, int end,
             float* out) {
  for (int panel = 0; panel < c.v.value_panels; ++panel, out += kPanel) {
    __m256 low = _mm256_loadu_ps(out), high = _mm256_loadu_ps(out + 8);
    for (int j = begin; j < end; ++j) {
      const int b = j / c.block_keys;
      const Panel16 values = LoadValue<W>(c, b, panel, j - b * c.block_keys);
      const __m256 x = _mm256_broadcast_ss(tile + j / 8 * 8 * rows + row * 8 + j % 8);
      low = _mm256_fmadd_ps(x, values.low, low);
      high = _mm256_fmadd_ps(x, values.high, high);
    }
    _mm256_storeu_ps(out, low);
    _mm256_storeu_ps(out + 8, high);
  }
}

// Vectors of one tile of packed rows.
struct Tile {
  int begin, rows;
  int shared;  // keys that all of them see
  float* weights;
};

// The values of all vectors: keys that a whole tile sees together, the others one vector at a time.
template <typename W>
void Values(const Avx2AttentionChunkParams& c, const Tile* tiles, int num_tiles) {
  const int64_t width = static_cast<int64_t>(c.v.value_panels) * kPanel;
  int most = 0;
  for (int t = 0; t < num_tiles; ++t) most = tiles[t].shared > most ? tiles[t].shared : most;
  for (int b = 0; b * c.block_keys < most; ++b) {
    const int first = b * c.block_keys;
    const auto values = ValuesOf<W>(c, b, most - first < c.block_keys ? most - first : c.block_keys);
    for (int t = 0; t < num_tiles; ++t) {
      const int left = tiles[t].shared - first;
      if (left <= 0) continue;
      TileProduct(tiles[t].rows, tiles[t].weights + static_cast<int64_t>(first) * tiles[t].rows, values,
                  static_cast<int64_t>(c.value_rows) * kPanel, c.v.value_panels,
                  left < c.block_keys ? left : c.block_keys, c.v.partial + tiles[t].begin * width, width,
                  b > 0);
    }
  }
  for (int t = 0; t < num_tiles; ++t) {
    for (int i = 0; i < tiles[t].rows; ++i) {
      const int v = tiles[t].begin + i;
      if (c.v.num_keys[v] == tiles[t].shared) continue;
      AddKeys<W>(c, tiles[t].weights, i, tiles[t].rows, tiles[t].shared, c.v.num_keys[v],
                 c.v.partial + v * width);
    }
  }
}

// Joins the chunk's partial result of vector v to the running one, left to right.
void Join(const Avx2AttentionChunkParams& c, int v, float chunk_max, float chunk_sum) {
  const int64_t width = static_cast<int64_t>(c.v.value_panels) * kPanel;
  const float* partial = c.v.partial + v * width;
  float* out = c.v.out + v * width;
  if (c.v.first) {
    c.v.max[v] = chunk_max;
    c.v.sum[v] = chunk_sum;
    for (int64_t d = 0; d < width; d += 8) _mm256_storeu_ps(out + d, _mm256_loadu_ps(partial + d));
    return;
  }
  const float max = c.v.max[v] > chunk_max ? c.v.max[v] : chunk_max;
  const __m256 old_factor = Exp8(_mm256_set1_ps(c.v.max[v] - max));
  const __m256 chunk_factor = Exp8(_mm256_set1_ps(chunk_max - max));
  c.v.max[v] = max;
  c.v.sum[v] = c.v.sum[v] * _mm256_cvtss_f32(old_factor) + chunk_sum * _mm256_cvtss_f32(chunk_factor);
  for (int64_t d = 0; d < width; d += 8) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(out + d), old_factor);
    _mm256_storeu_ps(out + d, _mm256_fmadd_ps(_mm256_loadu_ps(partial + d), chunk_factor, scaled));
  }
}

template <typename W>
void Chunk(const Avx2AttentionChunkParams& c) {
  int num_keys = 0;
  for (int v = 0; v < c.v.num_vectors; ++v)
    num_keys = c.v.num_keys[v] > num_keys ? c.v.num_keys[v] : num_keys;
  Scores<W>(c, num_keys);
  Tile tiles[kMaxVectors];
  float max[kMaxVectors], sum[kMaxVectors];
  const int num_tiles = NumTiles(c.v.num_vectors, kMaxTileRows);
  for (int t = 0; t < num_tiles; ++t) {
    const int begin = TileBegin(c.v.num_vectors, num_tiles, kMaxTileRows, true, t);
    const int rows = TileBegin(c.v.num_vectors, num_tiles, kMaxTileRows, true, t + 1) - begin;
    tiles[t] = {begin, rows, kChunk, static_cast<float*>(c.v.weights) + static_cast<int64_t>(begin) * kChunk};
    for (int i = 0; i < rows; ++i) {
      const int n = c.v.num_keys[begin + i];
      tiles[t].shared = n < tiles[t].shared ? n : tiles[t].shared;
      Softmax(c.v.scores + (begin + i) * kScoreStride, n, c.v.scale, i, rows, tiles[t].weights,
              &max[begin + i], &sum[begin + i]);
    }
  }
  Values<W>(c, tiles, num_tiles);
  for (int v = 0; v < c.v.num_vectors; ++v) Join(c, v, max[v], sum[v]);
}

}  // namespace

void Avx2AttentionChunk(const Avx2AttentionChunkParams& c) {
  switch (c.codec) {
    case KvCodec::kNone:
      return c.bf16 ? Chunk<uint16_t>(c) : Chunk<float>(c);
    case KvCodec::kInt8:
      return Chunk<Int8>(c);
    case KvCodec::kE4m3:
      return Chunk<E4m3>(c);
  }
}

}  // namespace phalanx
