// Elementwise operations with AVX2 and FMA. A tail goes through the same vector operations as the rest, so
// that an element's bits do not depend on its place.
#include <float.h>
#include <math.h>

#include "kernels/cpu/avx2_math.h"
#include "kernels/cpu/simd_kernels.h"

namespace phalanx {
namespace {

// Calls body(i, mask) for each 8 elements; lanes beyond n are masked out.
template <typename Body>
inline void ForLanes(int64_t n, Body body) {
  const __m256i all = _mm256_set1_epi32(-1);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) body(i, all);
  if (i < n) body(i, LaneMask(n - i));
}

}  // namespace

void Avx2Add(float* residual, const float* add, int64_t n) {
  ForLanes(n, [&](int64_t i, __m256i mask) {
    _mm256_maskstore_ps(
        residual + i, mask,
        _mm256_add_ps(_mm256_maskload_ps(residual + i, mask), _mm256_maskload_ps(add + i, mask)));
  });
}

void Avx2AddBoth(float* residual, const float* add, const float* add2, int64_t n) {
  ForLanes(n, [&](int64_t i, __m256i mask) {
    const __m256 sum = _mm256_add_ps(_mm256_maskload_ps(add + i, mask), _mm256_maskload_ps(add2 + i, mask));
    _mm256_maskstore_ps(residual + i, mask, _mm256_add_ps(_mm256_maskload_ps(residual + i, mask), sum));
  });
}

void Avx2AddScaled(const float* x, float factor, int64_t n, float* y) {
  const __m256 scale = _mm256_set1_ps(factor);
  ForLanes(n, [&](int64_t i, __m256i mask) {
    _mm256_maskstore_ps(
        y + i, mask,
        _mm256_fmadd_ps(scale, _mm256_maskload_ps(x + i, mask), _mm256_maskload_ps(y + i, mask)));
  });
}

void Avx2RmsNorm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    for (int j = 0; j < 4; ++j) {
      const __m256 v = _mm256_loadu_ps(x + i + j * 8);
      sums[j] = _mm256_fmadd_ps(v, v, sums[j]);
    }
  }
  for (int j = 0; i < n; i += 8, ++j) {
    const __m256 v = _mm256_maskload_ps(x + i, LaneMask(n - i));
    sums[j] = _mm256_fmadd_ps(v, v, sums[j]);
  }
  const float sum = SumLanes(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
  const __m256 factor = _mm256_set1_ps(1.0f / sqrtf(sum / static_cast<float>(n) + eps));
  ForLanes(n, [&](int64_t k, __m256i mask) {
    const __m256 v = _mm256_mul_ps(_mm256_maskload_ps(x + k, mask), factor);
    _mm256_maskstore_ps(y + k, mask, _mm256_mul_ps(v, _mm256_maskload_ps(weight + k, mask)));
  });
}

void Avx2SwiGlu(const float* gate, const float* up, int64_t n, float* y) {
  const __m256 one = _mm256_set1_ps(1.0f);
  ForLanes(n, [&](int64_t i, __m256i mask) {
    const __m256 g = _mm256_maskload_ps(gate + i, mask);
    const __m256 e = Exp8(_mm256_xor_ps(g, _mm256_set1_ps(-0.0f)));
    const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, e));
    _mm256_maskstore_ps(y + i, mask, _mm256_mul_ps(silu, _mm256_maskload_ps(up + i, mask)));
  });
}

void Avx2AddBias(const float* sums, const float* bias, int64_t n, float* y) {
  if (bias == nullptr) {
    ForLanes(n, [&](int64_t i, __m256i mask) {
      _mm256_maskstore_ps(y + i, mask, _mm256_maskload_ps(sums + i, mask));
    });
    return;
  }
  ForLanes(n, [&](int64_t i, __m256i mask) {
    _mm256_maskstore_ps(
        y + i, mask, _mm256_add_ps(_mm256_maskload_ps(sums + i, mask), _mm256_maskload_ps(bias + i, mask)));
  });
}

void Avx2FindMax(const float* logits, int64_t n, float* max, int64_t* index, bool* valid) {
  const __m256 lowest = _mm256_set1_ps(-INFINITY);
  const __m256 finite = _mm256_set1_ps(FLT_MAX);
  __m256 best[4] = {lowest, lowest, lowest, lowest};
  __m256 ok = _mm256_cmp_ps(finite, finite, _CMP_EQ_OQ);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    for (int j = 0; j < 4; ++j) {
      const __m256 v = _mm256_loadu_ps(logits + i + j * 8);
      ok = _mm256_and_ps(ok, _mm256_cmp_ps(v, finite, _CMP_LE_OQ));  // false for NaN and +inf
      best[j] = _mm256_max_ps(best[j], v);
    }
  }
  for (; i < n; i += 8) {
    const __m256i mask = LaneMask(n - i);
    const __m256 v =
        _mm256_blendv_ps(lowest, _mm256_maskload_ps(logits + i, mask), _mm256_castsi256_ps(mask));
    ok = _mm256_and_ps(ok, _mm256_cmp_ps(v, finite, _CMP_LE_OQ));
    best[0] = _mm256_max_ps(best[0], v);
  }
  *max = MaxLanes(_mm256_max_ps(_mm256_max_ps(best[0], best[1]), _mm256_max_ps(best[2], best[3])));
  *valid = _mm256_movemask_ps(ok) == 0xff && *max > -INFINITY;
  *index = 0;
  if (!*valid) return;
  const __m256 wanted = _mm256_set1_ps(*max);
  for (i = 0; i < n; i += 8) {
    const __m256i mask = LaneMask(n - i);
    const __m256 equal = _mm256_cmp_ps(_mm256_maskload_ps(logits + i, mask), wanted, _CMP_EQ_OQ);
    const int bits = _mm256_movemask_ps(_mm256_and_ps(equal, _mm256_castsi256_ps(mask)));
    if (bits == 0) continue;
    *index = i + __builtin_ctz(static_cast<unsigned>(bits));
    return;
  }
}

void Avx2ExpWeights(const float* logits, int64_t n, float max, float temperature, float* weights) {
  const __m256 m = _mm256_set1_ps(max), t = _mm256_set1_ps(temperature);
  ForLanes(n, [&](int64_t i, __m256i mask) {
    const __m256 x = _mm256_div_ps(_mm256_sub_ps(_mm256_maskload_ps(logits + i, mask), m), t);
    _mm256_maskstore_ps(weights + i, mask, Exp8(x));
  });
}

double Avx2SumBlock(const float* weights, int64_t n) {
  __m256d lanes = _mm256_setzero_pd();
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) lanes = _mm256_add_pd(lanes, _mm256_cvtps_pd(_mm_loadu_ps(weights + i)));
  if (i < n) {
    const __m128 rest = _mm_maskload_ps(weights + i, _mm256_castsi256_si128(LaneMask(n - i)));
    lanes = _mm256_add_pd(lanes, _mm256_cvtps_pd(rest));
  }
  double sums[4];
  _mm256_storeu_pd(sums, lanes);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

void Avx2Divide(const float* x, float sum, int64_t n, float* y) {
  const __m256 s = _mm256_set1_ps(sum);
  ForLanes(n, [&](int64_t i, __m256i mask) {
    _mm256_maskstore_ps(y + i, mask, _mm256_div_ps(_mm256_maskload_ps(x + i, mask), s));
  });
}

}  // namespace phalanx
