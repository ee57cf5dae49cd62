// Rows quantised to e4m3, bit by bit: by the formula, and by a norm as by the kernel of their own behind it.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/emulator/simt.h"
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
        args.parts = parts_d->as<GemmSegment>();
        args.num_parts = 2;
        args.out.scaling = scaling;
        args.out.codes = codes->as<uint8_t>();
        args.out.codes_stride = pitch;
        args.out.scales = scales->as<float>();
        args.out.rows = rows;
        args.out.rows_pitch = 8;
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

// A norm's y, and its codes and scales; where the norm does not make them, the kernel of their own does.
struct Normed {
  std::vector<uint16_t> y, residual;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

struct NormCase {
  int cols;
  Fp8Scaling scaling = Fp8Scaling::kRows;
  bool half = false, in_place = false, chosen = false;
  int products = 0;          // that the residual takes,
  bool of_exchange = false;  // from an exchange's tree
};

Normed RunNorm(const NormCase& c, bool fused) {
  const std::shared_ptr<Runtime> runtime = CreateEmulatedRuntime();
  Random random(7);
  const int rows = 6, stride = c.cols + 5, pitch = (c.cols + 127) / 128 * 128 + 128, quantised = 5;
  const int y_rows = c.chosen ? 7 : rows, y_stride = c.in_place ? stride : c.cols + 3;
  const auto narrow = [&](float v) { return c.half ? HalfFromFloat(v) : Bf16FromFloat(v); };
  std::vector<uint16_t> x;
  for (const float v : random.Normal(rows * stride, 3.0f)) x.push_back(narrow(v));
  std::fill_n(x.begin() + stride, c.cols, uint16_t{0});
  x[static_cast<size_t>(2 * stride + c.cols - 1)] = narrow(kNan);
  x[static_cast<size_t>(3 * stride)] = narrow(60000.0f);
  auto x_d = OrDie(CudaBuffer::Of(runtime, x));
  auto adds = OrDie(CudaBuffer::Of(runtime, random.Normal(2 * rows * c.cols)));
  auto weight = OrDie(CudaBuffer::Of(runtime, random.Normal(c.cols)));
  auto chosen = OrDie(CudaBuffer::Of(runtime, std::vector<int32_t>{5, 0, 9, 3, 2, -1, 1}));
  auto y = OrDie(CudaBuffer::Of(runtime, std::vector<uint16_t>(y_rows * y_stride, 0xeeee)));
  auto codes = OrDie(CudaBuffer::Of(runtime, std::vector<uint8_t>(y_rows * pitch, 0xee)));
  auto scales = OrDie(CudaBuffer::Of(runtime, std::vector<float>(pitch / 128 * 8, -1.0f)));
  TreeSumNormArgs of_exchange;
  RmsNormArgs& args = of_exchange.norm;
  args.residual = x_d->as<uint16_t>();
  args.rows = rows;
  args.cols = c.cols;
  args.residual_stride = stride;
  args.weight = weight->as<float>();
  args.eps = 1e-5f;
  args.y = c.in_place ? args.residual : y->as<uint16_t>();
  args.y_rows = y_rows;
  args.y_stride = y_stride;
  if (c.chosen) args.chosen = chosen->as<int32_t>();
  Fp8RowsOut out;
  out.scaling = c.scaling;
  out.codes = codes->as<uint8_t>();
  out.codes_stride = pitch;
  out.scales = scales->as<float>();
  out.rows = quantised;
  out.rows_pitch = 8;
  if (fused) args.quantised = out;
  if (c.of_exchange) {
    of_exchange.tree.rows[0] = adds->as<float>();
    of_exchange.tree.num_rows = 1;
    of_exchange.products = c.products;
    EXPECT_EQ(LaunchTreeSumNorm(of_exchange, c.half, runtime->stream()), 0);
  } else {
    if (c.products > 0) args.add = adds->as<float>();
    if (c.products > 1) args.add2 = args.add + rows * c.cols;
    EXPECT_EQ(LaunchRmsNorm(args, c.half, runtime->stream()), 0);
  }
  if (!fused) {
    const int blocks = (c.cols + 127) / 128 * 2;
    auto parts = OrDie(CudaBuffer::Of(runtime, std::vector<GemmSegment>{{0, blocks, 0, c.cols}}));
    Fp8RowsArgs rows_args;
    rows_args.x = args.y;
    rows_args.x_stride = y_stride;
    rows_args.parts = parts->as<GemmSegment>();
    rows_args.num_parts = 1;
    rows_args.out = out;
    EXPECT_EQ(LaunchFp8Rows(rows_args, c.half, runtime->stream()), 0);
  }
  const auto get = [](const CudaBuffer& buffer, auto* to) {
    to->resize(static_cast<size_t>(buffer.bytes()) / sizeof(*to->data()));
    std::memcpy(to->data(), buffer.as<char>(), static_cast<size_t>(buffer.bytes()));
  };
  Normed normed;
  get(*y, &normed.y);
  get(*x_d, &normed.residual);
  get(*codes, &normed.codes);
  get(*scales, &normed.scales);
  return normed;
}

TEST(Fp8RowsTest, ANormMakesTheBitsOfTheKernelBehindIt) {
  for (const bool half : {false, true}) {
    for (const Fp8Scaling scaling : {Fp8Scaling::kRows, Fp8Scaling::kBlocks}) {
      for (NormCase c : std::vector<NormCase>{{.cols = 301, .products = 2},
                                              {.cols = 128, .in_place = true},
                                              {.cols = 2304, .products = 1},
                                              {.cols = 2056, .chosen = true, .products = 1},
                                              {.cols = 264, .products = 2, .of_exchange = true},
                                              {.cols = 4100, .products = 1, .of_exchange = true}}) {
        c.half = half;
        c.scaling = scaling;
        const int64_t launches = simt::LaunchesOf("Fp8Rows");
        const Normed fused = RunNorm(c, true);
        EXPECT_EQ(simt::LaunchesOf("Fp8Rows"), launches);
        const Normed want = RunNorm(c, false);
        EXPECT_EQ(simt::LaunchesOf("Fp8Rows"), launches + 1);
        SCOPED_TRACE(absl::StrCat(c.cols, " columns", half ? " half" : "",
                                  scaling == Fp8Scaling::kBlocks ? " blocks" : "",
                                  c.of_exchange ? " of an exchange" : ""));
        EXPECT_EQ(fused.y, want.y);
        EXPECT_EQ(fused.residual, want.residual);
        EXPECT_EQ(fused.codes, want.codes);
        EXPECT_TRUE(SameBits(fused.scales, want.scales));
        EXPECT_NE(want.codes[0], 0xee);
      }
    }
  }
}

TEST(Fp8RowsTest, AMissingBarrierShows) {
  const NormCase c = {.cols = 2304, .scaling = Fp8Scaling::kRows};
  const Normed want = RunNorm(c, true);
  int caught = 0;
  for (uint32_t seed = 1; seed < 4; ++seed) {
    simt::SetSeed(100 * seed + 7);
    EXPECT_EQ(RunNorm(c, true).codes, want.codes);
    simt::SetFault(simt::Fault::kFp8RowsNoBarrier);
    caught += RunNorm(c, true).codes == want.codes ? 0 : 1;
    simt::SetFault(simt::Fault::kNone);
  }
  EXPECT_GE(caught, 2);
}

}  // namespace
}  // namespace phalanx::cuda
