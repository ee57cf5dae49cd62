// Quantised weights with AVX2: up to four rows share a load of weights.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/quant_kernels.h"

namespace phalanx {
namespace {

constexpr int kMaxRows = 4;

inline uint32_t MaxLanes(__m256i v) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

inline int SumLanes(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

// Integers, sx, sx * sum and -offset * sum of 32 columns.
inline void PackBlock(const float* x, QuantType type, char* ints, float* scale, float* scaled_sum,
                      int32_t* start) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  // As integers, magnitudes are ordered like the numbers, infinities and then NaNs above.
  __m256i max = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + i * 8));
    max = _mm256_max_epu32(max, _mm256_and_si256(bits, magnitude));
  }
  const uint32_t bits = MaxLanes(max);
  float largest;
  memcpy(&largest, &bits, sizeof(largest));
  if (!(largest >= kQuantTiny) || bits >= 0x7f800000u) {
    const float none = bits >= 0x7f800000u ? __builtin_nanf("") : 0.0f;
    memset(ints, 0, 64);
    *scale = *scaled_sum = none;
    *start = 0;
    return;
  }
  const __m256 inverse = _mm256_set1_ps(kQuantLargest / largest);
  __m256i sums = _mm256_setzero_si256(), words[2];
  for (int i = 0; i < 2; ++i) {
    const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i * 16), inverse));
    const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i * 16 + 8), inverse));
    sums = _mm256_add_epi32(sums, _mm256_add_epi32(low, high));
    words[i] = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
  }
  auto* out = reinterpret_cast<__m256i*>(ints);
  if (type == QuantType::kQ8_0) {
    _mm256_storeu_si256(out, words[0]);
    _mm256_storeu_si256(out + 1, words[1]);
  } else {
    const __m256i half0 = _mm256_srai_epi16(words[0], 1), half1 = _mm256_srai_epi16(words[1], 1);
    const __m256i rest0 = _mm256_sub_epi16(words[0], half0), rest1 = _mm256_sub_epi16(words[1], half1);
    _mm256_storeu_si256(out, _mm256_permute4x64_epi64(_mm256_packs_epi16(half0, half1), 0xd8));
    _mm256_storeu_si256(out + 1, _mm256_permute4x64_epi64(_mm256_packs_epi16(rest0, rest1), 0xd8));
  }
  const int sum = SumLanes(sums);
  *scale = largest / kQuantLargest;
  *scaled_sum = *scale * static_cast<float>(sum);
  *start = -QuantOffset(type) * sum;
}

void Pack(const QuantPackParams& p) {
  const QuantTile& tile = p.tile;
  const int64_t all = tile.blocks * tile.rows;
  auto* const scale = reinterpret_cast<float*>(tile.data + all * 64);
  float* const scaled_sum = scale + all;
  auto* const start = reinterpret_cast<int32_t*>(scale + 2 * all);
  const int64_t end = p.phase + p.depth;
  for (int r = 0; r < tile.rows; ++r) {
    const float* x = p.x + r * p.stride;
    for (int64_t b = 0; b * kQuantBlock < end && p.depth > 0; ++b) {
      const int64_t at = (p.begin + b) * tile.rows + r;
      const int64_t first = b * kQuantBlock - p.phase;  // in x, of the block
      float part[kQuantBlock] = {};
      const float* from = part;
      if (r < p.rows && first >= 0 && first + kQuantBlock <= p.depth) {
        from = x + first;
      } else {
        for (int i = 0; r < p.rows && i < kQuantBlock; ++i) {
          if (first + i >= 0 && first + i < p.depth) part[i] = x[first + i];
        }
      }
      PackBlock(from, p.type, tile.data + at * 64, scale + at, scaled_sum + at, start + at);
    }
  }
}

inline __m256i BroadcastQuad(const char* p) {  // of int16
  int64_t word;
  memcpy(&word, p, sizeof(word));
  return _mm256_set1_epi64x(word);
}

inline __m256i Broadcast(const char* p) {
  int32_t word;
  memcpy(&word, p, sizeof(word));
  return _mm256_set1_epi32(word);
}

inline __m256i Load(const char* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

inline __m256 LoadHalf(const char* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

struct Rows {
  const char* ints;
  const float* scale;
  const float* scaled_sum;
  const int32_t* start;
  int stride;  // rows of a block
};

// The integer sums of a block of Q8_0: words of weights times words of x, of each output two sums of pairs.
template <int kRows>
inline void SumsOfQ8(const char* w, const char* ints, __m256i (&sums)[kRows]) {
  __m256i low[kRows], high[kRows];  // outputs 0..3 and 4..7
  for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_si256();
  for (int quad = 0; quad < 8; ++quad) {
    const __m256i weights = Load(w + quad * 64);
    const __m256i w0 = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(weights));
    const __m256i w1 = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(weights, 1));
    for (int r = 0; r < kRows; ++r) {
      const __m256i x = BroadcastQuad(ints + r * 64 + quad * 8);
      low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(w0, x));
      high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(w1, x));
    }
  }
  for (int r = 0; r < kRows; ++r) {
    sums[r] = _mm256_permute4x64_epi64(_mm256_hadd_epi32(low[r], high[r]), 0xd8);
  }
}

// Of Q4 without the offset: sums of 16 products of 0..15 and -127..127 fit in 16 bits.
template <int kRows>
inline void SumsOfQ4(const char* w, const char* ints, __m256i (&sums)[kRows]) {
  const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  for (int half = 0; half < 2; ++half) {
    __m256i s[kRows];
    for (int r = 0; r < kRows; ++r) s[r] = _mm256_setzero_si256();
    for (int quad = 0; quad < 4; ++quad) {
      __m256i weights = Load(w + quad * 64);
      if (half == 1) weights = _mm256_srli_epi16(weights, 4);
      weights = _mm256_and_si256(weights, nibble);
      for (int r = 0; r < kRows; ++r) {
        const char* x = ints + r * 64 + half * 16 + quad * 4;
        s[r] = _mm256_add_epi16(s[r], _mm256_maddubs_epi16(weights, Broadcast(x)));
        s[r] = _mm256_add_epi16(s[r], _mm256_maddubs_epi16(weights, Broadcast(x + 32)));
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const __m256i words = _mm256_madd_epi16(s[r], ones);
      sums[r] = half == 0 ? words : _mm256_add_epi32(sums[r], words);
    }
  }
}

// Eight outputs of a panel times kRows rows.
template <QuantType kType, int kRows>
void Product(Rows a, const char* w, const char* scales, int64_t blocks, float* c, int64_t c_stride,
             bool accumulate) {
  __m256 sum[kRows];
  for (int r = 0; r < kRows; ++r) {
    sum[r] = accumulate ? _mm256_loadu_ps(c + r * c_stride) : _mm256_setzero_ps();
  }
  for (int64_t b = 0; b < blocks; ++b) {
    for (int line = 0; line < QuantDataBytes(kType); line += 64) _mm_prefetch(w + line + 4096, _MM_HINT_T0);
    __m256i s[kRows];
    if constexpr (kType == QuantType::kQ8_0) {
      SumsOfQ8<kRows>(w, a.ints, s);
    } else {
      SumsOfQ4<kRows>(w, a.ints, s);
    }
    const __m256 d = LoadHalf(scales);
    __m256 m = _mm256_setzero_ps();
    if (kType == QuantType::kQ4_1) m = LoadHalf(scales + 32);
    for (int r = 0; r < kRows; ++r) {
      if (kType == QuantType::kQ4_0) s[r] = _mm256_add_epi32(s[r], _mm256_set1_epi32(a.start[r]));
      const __m256 v = _mm256_cvtepi32_ps(s[r]);
      sum[r] = _mm256_fmadd_ps(v, _mm256_mul_ps(d, _mm256_set1_ps(a.scale[r])), sum[r]);
      if (kType == QuantType::kQ4_1) sum[r] = _mm256_fmadd_ps(m, _mm256_set1_ps(a.scaled_sum[r]), sum[r]);
    }
    w += QuantDataBytes(kType);
    scales += QuantScaleBytes(kType);
    a.ints += a.stride * 64;
    a.scale += a.stride;
    a.scaled_sum += a.stride;
    a.start += a.stride;
  }
  for (int r = 0; r < kRows; ++r) _mm256_storeu_ps(c + r * c_stride, sum[r]);
}

template <QuantType kType>
void AnyRows(int rows, const Rows& a, const char* w, const char* scales, int64_t blocks, float* c,
             int64_t c_stride, bool accumulate) {
  switch (rows) {
    case 1:
      return Product<kType, 1>(a, w, scales, blocks, c, c_stride, accumulate);
    case 2:
      return Product<kType, 2>(a, w, scales, blocks, c, c_stride, accumulate);
    case 3:
      return Product<kType, 3>(a, w, scales, blocks, c, c_stride, accumulate);
    default:
      return Product<kType, 4>(a, w, scales, blocks, c, c_stride, accumulate);
  }
}

template <QuantType kType>
void AnyProduct(const QuantProductParams& p, const QuantRun& run) {
  // A slice of a panel stays in the first-level cache while all rows pass over it. Both halves of a panel
  // read it, one after the other.
  constexpr int64_t kSlice = 8192 / QuantDataBytes(kType);
  const int tiles = NumTiles(p.rows, p.tile_rows);
  const int64_t all = p.row_blocks * p.tile_rows;
  int64_t k = 0;
  do {  // once for no k at all: sums of 0
    const int64_t blocks = run.blocks - k < kSlice ? run.blocks - k : kSlice;
    const int64_t begin = run.begin + k, at = begin * p.tile_rows;
    for (int panel = 0; panel < p.num_panels; ++panel) {
      const char* const w = p.w + panel * p.panel_bytes;
      const char* const scales = w + p.row_blocks * QuantDataBytes(kType) + begin * QuantScaleBytes(kType);
      for (int t = 0; t < tiles; ++t) {
        const char* tile = p.a + t * p.tile_bytes;
        const auto* scale = reinterpret_cast<const float*>(tile + all * 64) + at;
        const Rows a = {tile + at * 64, scale, scale + all, reinterpret_cast<const int32_t*>(scale + 2 * all),
                        p.tile_rows};
        const int left = p.rows - t * p.tile_rows;
        for (int half = 0; half < 2; ++half) {
          AnyRows<kType>(left < p.tile_rows ? left : p.tile_rows, a,
                         w + begin * QuantDataBytes(kType) + half * 32, scales + half * 16, blocks,
                         p.c + int64_t{t} * p.tile_rows * p.c_stride + panel * kPanel + half * 8, p.c_stride,
                         k > 0);
        }
      }
    }
    k += kSlice;
  } while (k < run.blocks);
}

int TileRows(int rows) { return rows < kMaxRows ? rows : kMaxRows; }

void AnyType(const QuantProductParams& p, const QuantRun& run) {
  switch (p.type) {
    case QuantType::kQ8_0:
      return AnyProduct<QuantType::kQ8_0>(p, run);
    case QuantType::kQ4_0:
      return AnyProduct<QuantType::kQ4_0>(p, run);
    case QuantType::kQ4_1:
      return AnyProduct<QuantType::kQ4_1>(p, run);
  }
}

}  // namespace

const QuantKernels kAvx2Quant = {.block_rows = 96,
                                 .tile_rows = TileRows,
                                 .pack = Pack,
                                 .product = AnyType,
                                 .tree = nullptr,
                                 .tree_rows = 0,
                                 .begin_task = nullptr,
                                 .end_task = nullptr};

}  // namespace phalanx
