// The set-up of AMX's tiles. For files that are compiled for AMX only (see simd_kernels.h).
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace phalanx {
namespace {

// Tiles 0..num_tiles - 1 of 64 bytes a row: the first `num_short` of `rows` rows, the others of 16.
// source: Intel SDM, LDTILECFG
inline void ConfigureTiles(int num_tiles, int num_short, int rows) {
  struct alignas(64) TileConfig {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  TileConfig config;
  memset(&config, 0, sizeof(config));
  config.palette = 1;
  for (int i = 0; i < num_tiles; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = static_cast<uint8_t>(i < num_short ? rows : 16);
  }
  // GCC 12's _tile_loadconfig names 8 bytes as its operand: without this, stores to the others are dropped.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

}  // namespace
}  // namespace phalanx
