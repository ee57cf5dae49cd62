// Vector versions of numeric.h for files compiled for AVX-512. Everything has internal linkage.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/exp_constants.h"

namespace phalanx {
namespace {

// Exp of numeric.h, the same bits in every lane.
inline __m512 Exp16(__m512 x) {
  const __mmask16 zero = _mm512_cmp_ps_mask(x, _mm512_set1_ps(kExpLowest), _CMP_LT_OQ);
  x = _mm512_min_ps(_mm512_set1_ps(kExpHighest), x);  // operand order: a NaN in x stays
  const __m512 round = _mm512_set1_ps(kExpRound);
  const __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(kExpLog2e), round);
  const __m512 n = _mm512_sub_ps(shifted, round);
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-kExpLn2High), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(-kExpLn2Low), r);
  __m512 p = _mm512_set1_ps(kExpC[0]);
  for (int i = 1; i < 6; ++i) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpC[i]));
  p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
  __m512i e = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_castps_si512(round));
  e = _mm512_slli_epi32(_mm512_add_epi32(e, _mm512_set1_epi32(127)), 23);
  return _mm512_maskz_mul_ps(static_cast<__mmask16>(~zero), p, _mm512_castsi512_ps(e));
}

// The first n of 16; none for n < 0.
inline __mmask16 FirstLanes(int64_t n) {
  return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
}

}  // namespace
}  // namespace phalanx
