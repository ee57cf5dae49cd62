// AMX's tiles in plain code, in place of the intrinsics, for a file of kernels/cpu that is compiled with this
// before it: its loops run on processors without AMX. source: Intel SDM, TILELOADD, TDPBF16PS, TDPBSSD
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd

namespace phalanx {

// Of a thread, whichever file set them up. A tile that the configuration lacks, or any before one is loaded,
// ends the process.
class EmulatedTiles {
 public:
  void Configure(const void* config) {
    memcpy(config_, config, sizeof(config_));
    memset(tiles_, 0, sizeof(tiles_));
  }
  void Release() { memset(config_, 0, sizeof(config_)); }
  void Zero(int t) {
    CheckConfigured(t);
    memset(tiles_[t], 0, sizeof(tiles_[t]));
  }
  void Load(int t, const void* from, int64_t stride) {
    Zero(t);
    for (int r = 0; r < Rows(t); ++r)
      memcpy(tiles_[t][r], static_cast<const char*>(from) + r * stride, Bytes(t));
  }
  void Store(int t, void* to, int64_t stride) const {
    CheckConfigured(t);
    for (int r = 0; r < Rows(t); ++r) memcpy(static_cast<char*>(to) + r * stride, tiles_[t][r], Bytes(t));
  }
  // Even and odd k are summed apart, and together with what was there.
  void Bf16(int sums, int rows, int weights) {
    ForEach(sums, rows, weights, [this, rows, weights](int i, int j, int words, char* sum) {
      float total, even = 0, odd = 0;
      memcpy(&total, sum, sizeof(total));
      for (int k = 0; k < words; ++k) {
        uint32_t x, w;
        memcpy(&x, tiles_[rows][i] + 4 * k, sizeof(x));
        memcpy(&w, tiles_[weights][k] + 4 * j, sizeof(w));
        even = __builtin_fmaf(Float(x << 16), Float(w << 16), even);
        odd = __builtin_fmaf(Float(x & 0xffff0000u), Float(w & 0xffff0000u), odd);
      }
      total += even + odd;
      memcpy(sum, &total, sizeof(total));
    });
  }
  void Int8(int sums, int rows, int weights) {
    ForEach(sums, rows, weights, [this, rows, weights](int i, int j, int words, char* sum) {
      int32_t total;
      memcpy(&total, sum, sizeof(total));
      for (int k = 0; k < 4 * words; ++k) {
        total += static_cast<int8_t>(tiles_[rows][i][k]) *
                 static_cast<int8_t>(tiles_[weights][k / 4][4 * j + k % 4]);
      }
      memcpy(sum, &total, sizeof(total));
    });
  }

 private:
  static float Float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
  }
  void CheckConfigured(int t) const {
    if (Rows(t) < 1 || Rows(t) > 16 || Bytes(t) < 1 || Bytes(t) > 64) __builtin_trap();
  }
  int Rows(int t) const { return config_[48 + t]; }
  size_t Bytes(int t) const { return config_[16 + 2 * t]; }
  template <typename F>
  void ForEach(int sums, int rows, int weights, const F& f) {
    CheckConfigured(sums);
    CheckConfigured(rows);
    CheckConfigured(weights);
    if (Rows(sums) != Rows(rows) || Bytes(sums) != Bytes(weights) ||
        Bytes(rows) / 4 != static_cast<size_t>(Rows(weights))) {
      __builtin_trap();
    }
    for (int i = 0; i < Rows(sums); ++i) {
      for (size_t j = 0; j < Bytes(sums) / 4; ++j) {
        f(i, static_cast<int>(j), static_cast<int>(Bytes(rows) / 4), tiles_[sums][i] + 4 * j);
      }
    }
  }

  uint8_t config_[64] = {};
  char tiles_[8][16][64] = {};
};

inline EmulatedTiles& AmxTiles() {
  static thread_local EmulatedTiles tiles;
  return tiles;
}

}  // namespace phalanx

#define _tile_loadconfig(config) phalanx::AmxTiles().Configure(config)
#define _tile_release() phalanx::AmxTiles().Release()
#define _tile_zero(t) phalanx::AmxTiles().Zero(t)
#define _tile_loadd(t, from, stride) phalanx::AmxTiles().Load(t, from, stride)
#define _tile_stored(t, to, stride) phalanx::AmxTiles().Store(t, to, stride)
#define _tile_dpbf16ps(sums, rows, weights) phalanx::AmxTiles().Bf16(sums, rows, weights)
#define _tile_dpbssd(sums, rows, weights) phalanx::AmxTiles().Int8(sums, rows, weights)
