// One chunk of attention with AVX2 and FMA. A vector's arithmetic is a function of itself and the keys it
// sees: the vectors beside it only share loads.
#include <math.h>

#include "kernels/cpu/avx2_math.h"
#include "kernels/cpu/avx2_product.h"
#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

constexpr int kChunk = 256;
constexpr int kInt8Group = 32;  // channels of a scale

// scores[v][j] = q_v . k_j for the keys [0, num_keys) of the chunk, and whatever follows up to a panel's end.
template <typename W>
void Scores(const Avx2AttentionChunkParams& c, int num_keys) {
  const int tiles = NumTiles(c.v.num_vectors, kMaxTileRows);
  const int64_t depth = c.v.key_depth;
  for (int b = 0; b * c.block_keys < num_keys; ++b) {
    const int left = num_keys - b * c.block_keys;
    const int panels = ((left < c.block_keys ? left : c.block_keys) + kPanel - 1) / kPanel;
    for (int t = 0; t < tiles; ++t) {
      const int begin = TileBegin(c.v.num_vectors, tiles, kMaxTileRows, true, t);
      const int rows = TileBegin(c.v.num_vectors, tiles, kMaxTileRows, true, t + 1) - begin;
      AnyTileProduct<W>(rows, static_cast<const float*>(c.v.q) + begin * depth,
                        static_cast<const W*>(c.keys[b]), static_cast<int64_t>(c.key_dim) * kPanel, panels,
                        c.key_dim, c.v.scores + begin * kScoreStride + b * c.block_keys, kScoreStride, false);
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
    const __m256i mask = LaneMask(n - j < 8 ? n - j : 8);
    best = _mm256_max_ps(best, _mm256_blendv_ps(lowest, x, _mm256_castsi256_ps(mask)));
  }
  const float max = MaxLanes(best);
  const __m256 m = _mm256_set1_ps(max);
  __m256 sum = _mm256_setzero_ps();
  for (int j = 0; j < n; j += 8) {
    const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(scores + j), s);
    const __m256i mask = LaneMask(n - j < 8 ? n - j : 8);
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
      const W* v = static_cast<const W*>(c.values[b]) +
                   (static_cast<int64_t>(panel) * c.value_rows + j - b * c.block_keys) * kPanel;
      const Panel16 values = LoadPanel(v);
      const __m256 x = _mm256_broadcast_ss(tile + j / 8 * 8 * rows + row * 8 + j % 8);
      low = _mm256_fmadd_ps(x, values.low, low);
      high = _mm256_fmadd_ps(x, values.high, high);
    }
    _mm256_storeu_ps(out, low);
    _mm256_storeu_ps(out + 8, high);
  }
}

// The values of a tile of vectors: keys that all of them see together, the others one vector at a time.
template <typename W>
void Values(const Avx2AttentionChunkParams& c, int begin, int rows, const float* tile) {
  const int64_t width = static_cast<int64_t>(c.v.value_panels) * kPanel;
  int shared = c.v.num_keys[begin];
  for (int i = 1; i < rows; ++i) shared = c.v.num_keys[begin + i] < shared ? c.v.num_keys[begin + i] : shared;
  for (int b = 0; b * c.block_keys < shared; ++b) {
    const int left = shared - b * c.block_keys;
    AnyTileProduct<W>(rows, tile + static_cast<int64_t>(b) * c.block_keys * rows,
                      static_cast<const W*>(c.values[b]), static_cast<int64_t>(c.value_rows) * kPanel,
                      c.v.value_panels, left < c.block_keys ? left : c.block_keys,
                      c.v.partial + begin * width, width, b > 0);
  }
  for (int i = 0; i < rows; ++i) {
    if (c.v.num_keys[begin + i] == shared) continue;
    AddKeys<W>(c, tile, i, rows, shared, c.v.num_keys[begin + i], c.v.partial + (begin + i) * width);
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

inline __m256 Int8Floats(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

inline __m256 Bf16Scales(const uint16_t* p) {
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

template <typename W>
void Chunk(const Avx2AttentionChunkParams& c) {
  int num_keys = 0;
  for (int v = 0; v < c.v.num_vectors; ++v)
    num_keys = c.v.num_keys[v] > num_keys ? c.v.num_keys[v] : num_keys;
  Scores<W>(c, num_keys);
  const int tiles = NumTiles(c.v.num_vectors, kMaxTileRows);
  for (int t = 0; t < tiles; ++t) {
    const int begin = TileBegin(c.v.num_vectors, tiles, kMaxTileRows, true, t);
    const int rows = TileBegin(c.v.num_vectors, tiles, kMaxTileRows, true, t + 1) - begin;
    float* tile = static_cast<float*>(c.v.weights) + static_cast<int64_t>(begin) * kChunk;
    float max[kMaxTileRows], sum[kMaxTileRows];
    for (int i = 0; i < rows; ++i) {
      Softmax(c.v.scores + (begin + i) * kScoreStride, c.v.num_keys[begin + i], c.v.scale, i, rows, tile,
              &max[i], &sum[i]);
    }
    Values<W>(c, begin, rows, tile);
    for (int i = 0; i < rows; ++i) Join(c, begin + i, max[i], sum[i]);
  }
}

}  // namespace

void Avx2WidenKeys(const int8_t* panel, const uint16_t* scales, int64_t stride, int64_t depth, float* out) {
  for (int64_t begin = 0; begin < depth; begin += kInt8Group, scales += stride) {
    const __m256 low = Bf16Scales(scales), high = Bf16Scales(scales + 8);
    const int64_t end = begin + kInt8Group < depth ? begin + kInt8Group : depth;
    for (int64_t d = begin; d < end; ++d, panel += kPanel, out += kPanel) {
      _mm256_storeu_ps(out, _mm256_mul_ps(Int8Floats(panel), low));
      _mm256_storeu_ps(out + 8, _mm256_mul_ps(Int8Floats(panel + 8), high));
    }
  }
}

void Avx2WidenValues(const int8_t* panel, const uint16_t* scales, int keys, float* out) {
  for (int j = 0; j < keys; ++j, panel += kPanel, out += kPanel) {
    const __m256 scale = _mm256_castsi256_ps(_mm256_set1_epi32(scales[j] << 16));
    _mm256_storeu_ps(out, _mm256_mul_ps(Int8Floats(panel), scale));
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(Int8Floats(panel + 8), scale));
  }
}

void Avx2AttentionChunk(const Avx2AttentionChunkParams& c) { c.bf16 ? Chunk<uint16_t>(c) : Chunk<float>(c); }

}  // namespace phalanx
