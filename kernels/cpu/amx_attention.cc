// Attention over bf16 pairs by AMX's tile products.
#include "kernels/cpu/pair_attention.h"

namespace phalanx {
namespace {

// Tiles 0..3 are sums, 4 and 5 rows, 6 and 7 weights.
struct AmxUnit {
  template <typename Weights>
  static void Multiply(const Sums& s, const uint16_t* rows, int64_t next, int tiles, const Weights& weights) {
    Zero(s);
    for (int64_t k = 0; k < tiles; ++k) {
      const uint16_t* a = rows + k * s.tile_rows * kTileK;
      const PanelPair w = weights(k);
      Add(s, a, a + next, w.first, w.second);
    }
    Store(s);
  }

 private:
  static void Zero(const Sums& s) {
    _tile_zero(0);
    if (s.two_panels) _tile_zero(1);
    if (s.two_rows) _tile_zero(2);
    if (s.two_rows && s.two_panels) _tile_zero(3);
  }

  static void Add(const Sums& s, const uint16_t* a0, const uint16_t* a1, const uint16_t* w0,
                  const uint16_t* w1) {
    _tile_loadd(4, a0, 64);
    _tile_loadd(6, w0, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (s.two_panels) {
      _tile_loadd(7, w1, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (!s.two_rows) return;
    _tile_loadd(5, a1, 64);
    _tile_dpbf16ps(2, 5, 6);
    if (s.two_panels) _tile_dpbf16ps(3, 5, 7);
  }

  static void Store(const Sums& s) {
    char* c = reinterpret_cast<char*>(s.c);
    const int64_t stride = s.stride * 4;
    _tile_stored(0, c, stride);
    if (s.two_panels) _tile_stored(1, c + 64, stride);
    if (s.two_rows) _tile_stored(2, c + kTileRows * stride, stride);
    if (s.two_rows && s.two_panels) _tile_stored(3, c + kTileRows * stride + 64, stride);
  }
};

}  // namespace

void AmxAttentionChunk(const PairAttentionChunkParams& c) { AttentionChunk<AmxUnit>(c); }

}  // namespace phalanx
