// Rows quantised to e4m3, bit by bit.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/gemm_fp8.h"
#include "tests/cuda/fp8_formula.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::cuda {
namespace {

float Silu(float gate, float up) { return gate / (1.0f + std::exp2(gate * -1.44269504f)) * up; }

TEST(Fp8RowsTest, BitsAreThoseOfTheFormula) {
  const std::shared_ptr<Runtime> runtime = CreateEmulatedRuntime();
  Random random(1);
  const int rows = 7, width = 301, pitch = 640;
  const std::vector<GemmSegment> parts = {{.first_block = 0, .blocks = 4, .x_begin = 0, .x_cols = 200},
                                          {.first_block = 4, .blocks = 2, .x_begin = 200, .x_cols = 101}};
  auto parts_d = OrDie(CudaBuffer::Of(runtime, parts));
  for (const bool half : {false, true}) {
    for (const bool gated : {false, true}) {
      for (const Fp8Scaling scaling : {Fp8Scaling::kRows, Fp8Scaling::kBlocks}) {
        const auto narrow = [half](float v) { return half ? HalfFromFloat(v) : Bf16FromFloat(v); };
        const auto wide = [half](uint16_t v) { return half ? FloatFromF16(v) : FloatFromBf16(v); };
        const int stride = (gated ? 2 : 1) * width + 3;
        std::vector<uint16_t> x;
        for (const float v : random.Normal(rows * stride, 3.0f)) x.push_back(narrow(v));
        for (int c = 0; c < width; ++c) x[1 * stride + c] = 0;
        for (int c = 0; c < width; ++c) x[2 * stride + c] = narrow(half ? 6e-8f : 1e-35f);
        x[3 * stride + 205] = narrow(kNan);
        x[4 * stride + 130] = narrow(60000.0f);
        auto x_d = OrDie(CudaBuffer::Of(runtime, x));
        auto codes = OrDie(CudaBuffer::Of(runtime, std::vector<uint8_t>(rows * pitch, 0xee)));
        auto scales = OrDie(CudaBuffer::Of(runtime, std::vector<float>(5 * 8, -1.0f)));
        Fp8RowsArgs args;
        args.x = x_d->as<uint16_t>();
        args.x_stride = stride;
        args.gated = gated;
        args.up = width;
        args.rows = rows;
        args.parts = parts_d->as<GemmSegment>();
        args.num_parts = 2;
        args.scaling = scaling;
        args.codes = codes->as<uint8_t>();
        args.codes_stride = pitch;
        args.scales = scales->as<float>();
        args.rows_pitch = 8;
        ASSERT_EQ(LaunchFp8Rows(args, half, runtime->stream()), 0);
        const int unit = scaling == Fp8Scaling::kRows ? width : 128;
        for (int r = 0; r < rows; ++r) {
          std::vector<uint8_t> want(pitch, 0xee);
          for (size_t p = 0; p < 2; ++p) {
            const int begin = parts[p].first_block * 64, filled = parts[p].blocks * 64;
            std::fill_n(want.begin() + begin, filled, 0);
            for (int first = 0; first < parts[p].x_cols; first += unit) {
              std::vector<float> v;
              for (int c = first; c < std::min(first + unit, parts[p].x_cols); ++c) {
                const uint16_t* at = x.data() + r * stride + parts[p].x_begin + c;
                v.push_back(gated ? wide(narrow(Silu(wide(at[0]), wide(at[width])))) : wide(at[0]));
              }
              float scale = 0;
              const std::vector<uint8_t> row = Quantised(v, &scale);
              std::copy(row.begin(), row.end(), want.begin() + begin + first);
              // What fills up the last columns takes part, as NaN times zero.
              if (std::isnan(scale)) {
                const int last = unit == 128 ? begin + first + 128 : begin + filled;
                std::fill(want.begin() + begin + first + static_cast<int>(row.size()), want.begin() + last,
                          0x7f);
              }
              const size_t list = unit == 128 ? static_cast<size_t>((begin + first) / 128) : p;
              const float got = scales->as<float>()[list * 8 + static_cast<size_t>(r)];
              EXPECT_EQ(std::bit_cast<uint32_t>(got) & 0x7fffffffu,
                        std::bit_cast<uint32_t>(scale) & 0x7fffffffu)
                  << got << " " << scale;
            }
          }
          for (int c = 0; c < pitch; ++c) {
            const uint8_t got = codes->as<uint8_t>()[r * pitch + c];
            // The sign of a NaN says nothing.
            const bool nan = (want[static_cast<size_t>(c)] & 0x7f) == 0x7f;
            ASSERT_EQ(nan ? got & 0x7f : got, nan ? 0x7f : want[static_cast<size_t>(c)])
                << "row " << r << " column " << c << (half ? " half" : "") << (gated ? " gated" : "")
                << (unit == 128 ? " blocks" : "");
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace phalanx::cuda
