// Index arithmetic of the kernels for sm_90a: what lies where in shared memory, what descriptors say, which
// tile comes when. Plain functions of both worlds, so that they are tested on the host.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PHX_BOTH __host__ __device__ constexpr
#else
#define PHX_BOTH constexpr
#endif

namespace phalanx::cuda {

// ---- Shared memory --------------------------------------------------------------------------------

// Tiles lie as the copy engine's 128-byte swizzle leaves them: rows of 128 bytes (64 elements of 16 bits), in
// which 16-byte units are exchanged by the address bits 7 to 9. The pattern repeats every 1024 bytes, at
// which tiles begin.
inline constexpr int kSwizzleRow = 128;
inline constexpr int kSwizzlePeriod = 1024;
inline constexpr int kSwizzleElements = kSwizzleRow / 2;
PHX_BOTH uint32_t SwizzledAddress(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// A matrix descriptor of wgmma: 16 * bits 0-13 the start, 16 * bits 16-29 and 16 * bits 32-45 the strides
// below, bits 62-63 the swizzle (1: 128 bytes). source: PTX ISA, "matrix descriptor format".
PHX_BOTH uint64_t MatrixDescriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>((leading & 0x3ffff) >> 4) << 16 |
         static_cast<uint64_t>((stride & 0x3ffff) >> 4) << 32 | uint64_t{1} << 62;
}
// Of an operand whose rows (of M or N) are K-major: 8 rows take 1024 bytes, the next 8 follow. `step`: of 16
// columns of K, 4 in a row of 128 bytes.
PHX_BOTH uint64_t RowsDescriptor(uint32_t tile, int step) {
  return MatrixDescriptor(tile + static_cast<uint32_t>(step) * 32, 16, kSwizzlePeriod);
}
// Of a B operand that lies transposed, rows of K with N along them: `rows` rows of 64 columns, then the next
// 64 columns. `step`: of 16 rows.
PHX_BOTH uint64_t ColumnsDescriptor(uint32_t tile, int rows, int step) {
  return MatrixDescriptor(tile + static_cast<uint32_t>(step) * 2 * kSwizzlePeriod,
                          static_cast<uint32_t>(rows) * kSwizzleRow, kSwizzlePeriod);
}

// ---- Tiles of a product ---------------------------------------------------------------------------

// Tiles in the order in which blocks take them: kTileGroup tiles along the rows of x beside each other, so
// that tiles that run at once share rows of x and of W in the L2 cache.
inline constexpr int kTileGroup = 16;
struct TileAt {
  int x = 0, w = 0;
};
PHX_BOTH TileAt TileOf(int index, int tiles_x, int tiles_w) {
  const int per_group = kTileGroup * tiles_w;
  const int group = index / per_group, rest = index % per_group;
  const int first = group * kTileGroup;
  const int size = tiles_x - first < kTileGroup ? tiles_x - first : kTileGroup;
  return {first + rest % size, rest / size};
}

// Rows of W in a tile: 256, or 128 where that leaves fewer multiprocessors idle. A tile of 256 takes less
// than twice the time of one of 128, whose x is read twice as often: weighed 9 to 5.
PHX_BOTH int TileRowsOfW(int64_t rows, int64_t n, int multiprocessors) {
  const int64_t tiles_x = (rows + 127) / 128;
  const int64_t large = (tiles_x * ((n + 255) / 256) + multiprocessors - 1) / multiprocessors * 9;
  const int64_t small = (tiles_x * ((n + 127) / 128) + multiprocessors - 1) / multiprocessors * 5;
  return large <= small ? 256 : 128;
}

// ---- Pages of the KV cache --------------------------------------------------------------------------

// The copy engine's row of page `page` of a sequence, in units of (block, head): one beyond the cache, which
// reads as zeros, for a page from `pages` on or a block that is not there.
PHX_BOTH int PageRow(const int32_t* block_table, int page, int pages, int64_t num_blocks, int num_heads,
                     int head) {
  const int64_t nowhere = num_blocks * num_heads;
  if (page >= pages) return static_cast<int>(nowhere);
  const int64_t block = block_table[page];
  return static_cast<int>(block >= 0 && block < num_blocks ? block * num_heads + head : nowhere);
}

}  // namespace phalanx::cuda
