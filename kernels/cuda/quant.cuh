// Weights that stay quantised in device memory (QuantFormat in kernels.h), made 16 bits wide in registers on
// their way from shared memory to the tensor cores.
#pragma once

#include "kernels/cuda/gemm.cuh"
#include "kernels/fp8.h"

namespace phalanx::cuda {

// What reads a row's codes: an element is round16(fma(number - zero, scale, minimum)), where `number` is the
// code put into the low bits of 2^23.
struct QuantRow {
  float zero, scale, minimum;
};

// Without a minimum, and where 16 bits hold the scale (as bf16 in two parts), pairs of elements need no fp32:
// code - zero is exact, its product with the scale's lower part is, and the fma with the upper part rounds
// once, as QuantElement does.
struct QuantPair {
  uint32_t zero, high, low;  // each twice, zero negative and with the magic number
};

// Codes of 4 bits in the low bits of 128 (bf16) and 1024 (fp16).
template <bool kHalf>
PHX_DEVICE uint32_t PairMagic() {
  return kHalf ? 0x64006400u : 0x43004300u;
}

template <bool kHalf>
PHX_DEVICE bool ReadsPairs(QuantMeta meta) {
  return meta == QuantMeta::kF16 || meta == QuantMeta::kF16Zero || (!kHalf && meta == QuantMeta::kBf16Zero);
}

template <bool kHalf>
PHX_DEVICE QuantPair PairOf(const QuantRow& row) {
  constexpr float kMagic = 8388608.0f;
  const float zero = Sub(kMagic, row.zero);  // at most 0
  const float high = kHalf ? row.scale : ToFloat<false>(FromFloat<false>(row.scale));
  float low = Sub(row.scale, high);
  if (!(low == low)) low = 0;  // of an infinite scale
  const float zero_magic = Sub(zero, kHalf ? 1024.0f : 128.0f);
  return {Pack2<kHalf>(zero_magic, zero_magic), Pack2<kHalf>(high, high), Pack2<kHalf>(low, low)};
}

template <bool kHalf>
PHX_DEVICE uint32_t QuantElements(const QuantPair& row, uint32_t codes) {
  constexpr uint32_t kOnes = kHalf ? 0x3c003c00u : 0x3f803f80u, kNothing = 0x80008000u;
  const uint32_t number = Fma2<kHalf>(codes | PairMagic<kHalf>(), kOnes, row.zero);
  return Fma2<kHalf>(number, row.high, kHalf ? kNothing : Fma2<kHalf>(number, row.low, kNothing));
}

PHX_DEVICE QuantRow LoadQuantRow(const QuantFormat& f, const char* metas, int slot, int row) {
  constexpr float kMagic = 8388608.0f;  // 2^23
  const char* at = metas + (slot * f.meta_rows + (f.meta_rows == 1 ? 0 : row)) * f.meta_bytes;
  if (f.meta == QuantMeta::kF16) {
    const float scale = ToFloat<true>(*reinterpret_cast<const uint16_t*>(at));
    return {Add(kMagic, f.bits == 4 ? 8.0f : 128.0f), scale, 0.0f};
  }
  const uint32_t word = *reinterpret_cast<const uint32_t*>(at);
  const auto low = static_cast<uint16_t>(word), high = static_cast<uint16_t>(word >> 16);
  if (f.meta == QuantMeta::kF16F16) return {kMagic, ToFloat<true>(low), ToFloat<true>(high)};
  if (f.meta == QuantMeta::kF32) return {0.0f, FloatFromBits(word), 0.0f};
  const float scale = f.meta == QuantMeta::kF16Zero ? ToFloat<true>(low) : ToFloat<false>(low);
  return {Add(kMagic, static_cast<float>(high)), scale, 0.0f};
}

PHX_DEVICE float QuantElement(const QuantRow& row, uint32_t code) {
  return Fma(Sub(FloatFromBits(0x4b000000u | code), row.zero), row.scale, row.minimum);
}

// Of e4m3 in byte `byte` of a word.
PHX_DEVICE float Float8Element(const QuantRow& row, uint32_t word, int byte) {
  return Mul(Mul(FloatFromBits(E4m3TinyBits(word >> (8 * byte))), FloatFromBits(kE4m3FromTiny)), row.scale);
}

// A lane's codes of a tile's block, from where the block's codes lie.
template <int kBits>
struct QuantCodes {
  Quad q[kBits / 4];

  PHX_DEVICE void Load(const char* codes, int lane) {
    PHX_UNROLL
    for (int i = 0; i < kBits / 4; ++i) q[i] = LoadQuad(codes + i * 512 + lane * 16);
  }
  // The A fragment of a step of 4 bits; rows[h] reads row lane / 4 + 8 h.
  template <bool kHalf>
  PHX_DEVICE Quad Fragment(int step, const QuantPair (&rows)[2]) const {
    Quad a;
    PHX_UNROLL
    for (int i = 0; i < 4; ++i) {
      a.v[i] = QuantElements<kHalf>(rows[i % 2], q[0].v[step] >> (4 * i) & 0x000f000fu);
    }
    return a;
  }
  // Of any.
  template <bool kHalf>
  PHX_DEVICE Quad Fragment(int step, const QuantRow (&rows)[2], bool float8) const {
    Quad a;
    PHX_UNROLL
    for (int i = 0; i < 4; ++i) {
      const QuantRow& row = rows[i % 2];
      if constexpr (kBits == 4) {
        const uint32_t w = q[0].v[step] >> (4 * i);
        a.v[i] = Pack2<kHalf>(QuantElement(row, w & 15u), QuantElement(row, w >> 16 & 15u));
      } else {
        const uint32_t w = q[step / 2].v[step % 2 * 2 + i / 2];
        const int byte = i % 2 * 2;
        a.v[i] = float8 ? Pack2<kHalf>(Float8Element(row, w, byte), Float8Element(row, w, byte + 1))
                        : Pack2<kHalf>(QuantElement(row, w >> (8 * byte) & 255u),
                                       QuantElement(row, w >> (8 * byte + 8) & 255u));
      }
    }
    return a;
  }
};

template <int kBits>
struct QuantWeight {
  static constexpr int kCodeBytes = kGemmTileBlock * kBits / 8;
  static constexpr int kMaxMetaBytes = 4 * kGemmRowTile * 4;
  static constexpr int kTileBytes = kCodeBytes + kMaxMetaBytes;

  template <class Shape>
  static PHX_DEVICE void Load(const GemmArgs& p, const uint16_t* weight, char* stage, int first_tile,
                              int block) {
    constexpr int kUnits = kCodeBytes / 16;  // of a tile
    const auto* bytes = reinterpret_cast<const char*>(weight);
    PHX_UNROLL
    for (int i = 0; i < (Shape::kRowTiles * kUnits + Shape::kThreads - 1) / Shape::kThreads; ++i) {
      const int unit = ThreadIndex() + i * Shape::kThreads;
      if (Shape::kRowTiles * kUnits % Shape::kThreads != 0 && unit >= Shape::kRowTiles * kUnits) break;
      LoadUnit<Shape>(p, bytes, stage, first_tile, block, unit / kUnits, unit % kUnits);
    }
    for (int unit = ThreadIndex(); unit < Shape::kRowTiles << p.quant.meta_shift; unit += Shape::kThreads) {
      LoadUnit<Shape>(p, bytes, stage, first_tile, block, unit >> p.quant.meta_shift,
                      kUnits + (unit & ((1 << p.quant.meta_shift) - 1)));
    }
  }

  template <int kM, bool kHalf>
  struct Reader {
    const QuantFormat& format;
    const char* tiles;
    QuantCodes<kBits> codes[kM];
    // One of the two, as ReadsPairs says.
    QuantRow rows[kM][2];
    QuantPair pairs[kM][2];

    PHX_DEVICE Reader(const GemmArgs& p, const char* tiles) : format(p.quant), tiles(tiles) {
      PHX_UNROLL
      for (int m = 0; m < kM; ++m) codes[m].Load(tiles + m * kTileBytes, ThreadIndex() % kWarpSize);
    }
    PHX_DEVICE void Begin(int step) {
      if (((step << format.slot_shift) & 3) != 0) return;
      PHX_UNROLL
      for (int m = 0; m < kM; ++m) {
        PHX_UNROLL
        for (int h = 0; h < 2; ++h) {
          rows[m][h] = LoadQuantRow(format, tiles + m * kTileBytes + kCodeBytes,
                                    (step << format.slot_shift) >> 2, ThreadIndex() % kWarpSize / 4 + 8 * h);
          if (kBits == 4 && ReadsPairs<kHalf>(format.meta)) pairs[m][h] = PairOf<kHalf>(rows[m][h]);
        }
      }
    }
    PHX_DEVICE Quad Get(int step, int m) const {
      if constexpr (kBits == 4) {
        if (ReadsPairs<kHalf>(format.meta)) return codes[m].template Fragment<kHalf>(step, pairs[m]);
      }
      return codes[m].template Fragment<kHalf>(step, rows[m], format.meta == QuantMeta::kF32);
    }
  };

 private:
  template <class Shape>
  static PHX_DEVICE void LoadUnit(const GemmArgs& p, const char* weight, char* stage, int first_tile,
                                  int block, int index, int unit) {
    const int tile = TileOf<Shape>(p, first_tile, index);
    const int64_t at =
        (static_cast<int64_t>(tile < 0 ? 0 : tile) * p.total_blocks + block) * p.quant.block_bytes;
    CopyAsync(stage + index * kTileBytes + unit * 16, weight + at + unit * 16, tile < 0 ? 0 : 16);
  }
};

}  // namespace phalanx::cuda
