// Quantised weights with AMX: a block's integers twice in a tile of weights, for both int8 of a row's
// integers; its sums leave the tile and are scaled while the next block is multiplied. A few rows go the
// way of avx512_quant.cc.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/quant_kernels.h"

namespace phalanx {
namespace {

constexpr int kVnniRows = 4;
constexpr int64_t kMaxSlice = 24;  // blocks whose tiles stay in the first-level cache

// Tiles 0 and 1 sums, 2 and 3 rows of x, 4 and 5 weights.
void BeginTask(int rows) {
  if (rows > kVnniRows) ConfigureTiles(6, 4, rows);
}

void EndTask(int rows) {
  if (rows > kVnniRows) _tile_release();
}

// Weight tiles of blocks: 8 quads of signed integers, twice.
template <QuantType kType>
void Unpack(const char* w, int64_t blocks, char* tiles) {
  constexpr int kAhead = 4096;
  for (int64_t b = 0; b < blocks; ++b, w += QuantDataBytes(kType), tiles += 1024) {
    const auto put = [&](int quad, __m512i v) {
      _mm512_store_si512(tiles + quad * 64, v);
      _mm512_store_si512(tiles + quad * 64 + 512, v);
    };
    for (int line = 0; line < QuantDataBytes(kType) / 64; ++line) {
      const __m512i raw = _mm512_loadu_si512(w + line * 64);
      _mm_prefetch(w + line * 64 + kAhead, _MM_HINT_T0);
      if constexpr (kType == QuantType::kQ8_0) {
        put(line, raw);
      } else {
        const __m512i nibble = _mm512_set1_epi8(15), offset = _mm512_set1_epi8(QuantOffset(kType));
        const __m512i low = _mm512_and_si512(raw, nibble);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(raw, 4), nibble);
        put(line, kType == QuantType::kQ4_0 ? _mm512_sub_epi8(low, offset) : low);
        put(line + 4, kType == QuantType::kQ4_0 ? _mm512_sub_epi8(high, offset) : high);
      }
    }
  }
}

struct Operands {
  const char* a;  // integers of the tile's rows
  const float* scale;
  const float* scaled_sum;
  const char* w;       // unpacked tiles
  const char* scales;  // fp16
  int64_t blocks;
  float* c;
  int64_t c_stride;
  int rows;  // to be written
  bool accumulate;
};

// GCC 12 keeps an array of sums in memory: they have names.
#define PHX_ROWS(DO) \
  DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)

template <QuantType kType, int kRows>
void TileProduct(const Operands& p) {
  alignas(64) int32_t out[kRows * 16];
#define PHX_LOAD(r) \
  __m512 sum##r = p.accumulate && r < p.rows ? _mm512_loadu_ps(p.c + r * p.c_stride) : _mm512_setzero_ps();
  PHX_ROWS(PHX_LOAD)
#undef PHX_LOAD
  const auto scale = [&](const int32_t* s, int64_t b) __attribute__((always_inline)) {
    const char* scales = p.scales + b * QuantScaleBytes(kType);
    const float* row_scale = p.scale + b * kRows;
    const float* row_sum = p.scaled_sum + b * kRows;
    const __m512 d = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
    __m512 m = _mm512_setzero_ps();
    if (kType == QuantType::kQ4_1) {
      m = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + 32)));
    }
#define PHX_SCALE(r)                                                                                \
  if constexpr (r < kRows) {                                                                        \
    const __m512 v = _mm512_cvtepi32_ps(_mm512_load_si512(s + r * 16));                             \
    sum##r = _mm512_fmadd_ps(v, _mm512_mul_ps(d, _mm512_set1_ps(row_scale[r])), sum##r);            \
    if (kType == QuantType::kQ4_1) sum##r = _mm512_fmadd_ps(m, _mm512_set1_ps(row_sum[r]), sum##r); \
  }
    PHX_ROWS(PHX_SCALE)
#undef PHX_SCALE
  };
  const auto even = [&](int64_t b) {
    _tile_zero(0);
    _tile_loadd(2, p.a + b * kRows * 64, 64);
    _tile_loadd(4, p.w + b * 1024, 64);
    _tile_dpbssd(0, 2, 4);
  };
  const auto odd = [&](int64_t b) {
    _tile_zero(1);
    _tile_loadd(3, p.a + b * kRows * 64, 64);
    _tile_loadd(5, p.w + b * 1024, 64);
    _tile_dpbssd(1, 3, 5);
  };
  // Products of the next two blocks are under way while one is scaled.
  if (p.blocks > 0) even(0);
  if (p.blocks > 1) odd(1);
  for (int64_t b = 0; b < p.blocks; b += 2) {
    _tile_stored(0, out, 64);
    if (b + 2 < p.blocks) even(b + 2);
    scale(out, b);
    if (b + 1 == p.blocks) break;
    _tile_stored(1, out, 64);
    if (b + 3 < p.blocks) odd(b + 3);
    scale(out, b + 1);
  }
#define PHX_STORE(r) \
  if (r < kRows && r < p.rows) _mm512_storeu_ps(p.c + r * p.c_stride, sum##r);
  PHX_ROWS(PHX_STORE)
#undef PHX_STORE
}
#undef PHX_ROWS

template <QuantType kType>
void AnyProduct(const QuantProductParams& p, const QuantRun& run) {
  alignas(64) char unpacked[kMaxSlice * 1024];
  const int tiles = NumTiles(p.rows, p.tile_rows);
  const int64_t slices = run.blocks > kMaxSlice ? (run.blocks + kMaxSlice - 1) / kMaxSlice : 1;
  const int64_t all = p.row_blocks * p.tile_rows;
  for (int panel = 0; panel < p.num_panels; ++panel) {
    for (int64_t slice = 0; slice < slices; ++slice) {
      const int64_t first = run.blocks * slice / slices, begin = run.begin + first;
      Operands o;
      o.blocks = run.blocks * (slice + 1) / slices - first;
      const char* w = p.w + panel * p.panel_bytes;
      o.scales = w + p.row_blocks * QuantDataBytes(kType) + begin * QuantScaleBytes(kType);
      Unpack<kType>(w + begin * QuantDataBytes(kType), o.blocks, unpacked);
      // The loads of tiles do not name what they read.
      asm volatile("" : : "r"(unpacked) : "memory");
      o.w = unpacked;
      o.c_stride = p.c_stride;
      o.accumulate = slice > 0;
      for (int t = 0; t < tiles; ++t) {
        const char* a = p.a + t * p.tile_bytes;
        o.a = a + begin * p.tile_rows * 64;
        o.scale = reinterpret_cast<const float*>(a + all * 64) + begin * p.tile_rows;
        o.scaled_sum = o.scale + all;
        o.c = p.c + int64_t{t} * p.tile_rows * p.c_stride + panel * kPanel;
        o.rows = p.rows - t * p.tile_rows;
        p.tile_rows == 8 ? TileProduct<kType, 8>(o) : TileProduct<kType, 16>(o);
      }
    }
  }
}

int TileRows(int rows) { return rows <= kVnniRows ? rows : rows <= 8 ? 8 : 16; }

void AmxProduct(const QuantProductParams& p, const QuantRun& run) {
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

const QuantKernels kAmxQuant = {.block_rows = 256,
                                .tile_rows = TileRows,
                                .pack = Avx512QuantPack,
                                .product = AmxProduct,
                                .tree = Avx512QuantTree,
                                .tree_rows = kVnniRows,
                                .begin_task = BeginTask,
                                .end_task = EndTask};

}  // namespace phalanx
