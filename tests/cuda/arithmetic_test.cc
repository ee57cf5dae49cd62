// Orders of additions and places of roundings that the kernels' heads promise and that no comparison within a
// tolerance, nor one between two of our own kernels, would see change.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/gemm_fp8.h"
#include "kernels/cuda/runtime.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx {
namespace {

std::unique_ptr<Ops> Create(bool half, DeviceMode mode = DeviceMode::kInvariant) {
  OpsOptions options;
  options.fp16 = half;
  options.device_mode = mode;
  return OrDie(cuda::CreateCudaOps(cuda::CreateEmulatedRuntime(), options));
}

// Columns [begin, end) of a product, in fp32.
std::vector<float> Product(Ops& ops, const std::vector<float>& w, int64_t n, const std::vector<float>& x,
                           int64_t rows, Range columns) {
  const auto k = static_cast<int64_t>(w.size()) / n;
  PackWeightParams pack;
  pack.pieces = {{{w.data(), DType::kF32, n, k}, {0, n}}};
  pack.cols = columns;
  const auto weight = OrDie(ops.PackWeight(pack));
  std::vector<float> part;
  for (int64_t t = 0; t < rows; ++t) {
    part.insert(part.end(), x.begin() + t * k + columns.begin, x.begin() + t * k + columns.end);
  }
  DeviceMatrix x_m(ops, rows, columns.size(), part), y(ops, rows, n, 0, /*fp32=*/true);
  EXPECT_TRUE(ops.Matmul({x_m.view(), weight.get(), nullptr, y.view(), true}).ok());
  return y.Get();
}

// By the kernel for few rows and by the one for many. Three segments: of two the order could not be told.
TEST(ArithmeticTest, SegmentsOfKAreAddedFromTheFirst) {
  const auto ops = Create(false);
  Random random(1);
  const int64_t n = 20, k = 3000;
  const std::vector<float> w = random.Normal(n * k);
  for (const int64_t rows : {3, 70}) {
    const std::vector<float> x = random.Normal(rows * k);
    const std::vector<float> got = Product(*ops, w, n, x, rows, {0, k});
    const std::vector<float> first = Product(*ops, w, n, x, rows, {0, 1024}),
                             second = Product(*ops, w, n, x, rows, {1024, 2048}),
                             third = Product(*ops, w, n, x, rows, {2048, k});
    int others = 0;  // elements that would tell another order
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i], first[i] + second[i] + third[i]) << rows << " rows, element " << i;
      others += got[i] != first[i] + (second[i] + third[i]) ? 1 : 0;
    }
    EXPECT_GT(others, 10);
  }
}

// Sums of squares are exact, so that every bit is known.
TEST(ArithmeticTest, TheNormIsRoundedOnceAndToTheNearest) {
  for (const bool half : {false, true}) {
    const auto ops = Create(half);
    Random random(2);
    const int64_t rows = 4, cols = 600;
    std::vector<float> x;
    for (int64_t i = 0; i < rows * cols; ++i) x.push_back(static_cast<float>(random.Below(15) - 7));
    const std::vector<float> weight = random.Normal(cols);
    DeviceMatrix residual(*ops, rows, cols, x), y(*ops, rows, cols);
    DeviceArray<float> weight_a(*ops, weight);
    RmsNormParams p;
    p.residual = residual.view();
    p.weight = weight_a.data();
    p.eps = 1e-5f;
    p.y = y.view();
    ASSERT_TRUE(ops->RmsNorm(p).ok());
    const std::vector<float> got = y.Get();
    const auto narrow = [half](float v) {
      return half ? FloatFromF16(cuda::HalfFromFloat(v)) : RoundToBf16(v);
    };
    for (int64_t r = 0; r < rows; ++r) {
      float sum = 0;
      for (int64_t c = 0; c < cols; ++c) sum += x[r * cols + c] * x[r * cols + c];
      const float factor = 1.0f / std::sqrt(sum / static_cast<float>(cols) + p.eps);
      for (int64_t c = 0; c < cols; ++c) {
        ASSERT_EQ(got[r * cols + c], narrow(x[r * cols + c] * factor * weight[c]))
            << "row " << r << " column " << c << (half ? " of fp16" : "");
      }
    }
  }
}

// Of e4m3, by the kernel of few rows: the sum is 128.
TEST(ArithmeticTest, AnFp8ProductIsScaledBeforeTheBiasIsAdded) {
  const std::shared_ptr<cuda::Runtime> runtime = cuda::CreateEmulatedRuntime();
  const int n = 32, k = 128;
  const auto weight = OrDie(cuda::CudaBuffer::Of(runtime, std::vector<uint8_t>(n * k, 0x38)));
  const auto x = OrDie(cuda::CudaBuffer::Of(runtime, std::vector<uint16_t>(k, Bf16FromFloat(1))));
  const auto scales = OrDie(cuda::CudaBuffer::Of(runtime, std::vector<float>(n, 3.0f)));
  const auto bias = OrDie(cuda::CudaBuffer::Of(runtime, std::vector<float>(n, 0.5f)));
  const auto y = OrDie(cuda::CudaBuffer::Of(runtime, std::vector<float>(n, kNan)));
  cuda::Fp8GemmArgs args;
  args.weight = weight->as<uint8_t>();
  args.scales = scales->as<float>();
  args.x = x->as<uint16_t>();
  args.bias = bias->as<float>();
  args.y = y->data();
  args.weight_stride = args.x_stride = args.k = k;
  args.y_stride = args.n = n;
  args.rows = 1;
  args.y_fp32 = true;
  ASSERT_EQ(cuda::LaunchFp8Gemm(args, false, runtime->stream()), 0);
  for (int i = 0; i < n; ++i) EXPECT_EQ(y->as<float>()[i], 128 * 3.0f + 0.5f);
}

// Two chunks of keys, all with the same score. One chunk's values of a channel add up to what makes the
// result lie in the middle of two numbers of 16 bits, half of the channels below and half above an even one,
// and the other chunk's are zero: one bit more or less in a partial sum, and the result is the other number.
TEST(ArithmeticTest, PartialsOfAttentionKeepEveryBit) {
  constexpr int64_t kLength = 512, kWidth = 16;
  std::vector<int32_t> table(kLength / 16);
  for (size_t b = 0; b < table.size(); ++b) table[b] = static_cast<int32_t>(b);
  for (const bool half : {false, true}) {
    const float unit = half ? 0x1p-10f : 0x1p-7f;  // between 1 and the next number
    std::vector<float> v(kLength * kWidth, 0.0f);
    for (int64_t c = 0; c < kWidth; ++c) {
      const int64_t first = c % 2 * 256;
      for (int64_t key = first; key < first + 256; ++key) v[key * kWidth + c] = 2;
      v[(first + 3 * c) * kWidth + c] += kLength * unit * (c / 2 % 2 == 0 ? 0.5f : 1.5f);
    }
    const std::vector<float> zero(kLength * kWidth, 0.0f);
    for (const DeviceMode mode : {DeviceMode::kInvariant, DeviceMode::kFast}) {
      const auto ops = Create(half, mode);
      PagedKv kv(*ops, {1, 1, kWidth, kWidth, 16}, static_cast<int64_t>(table.size()),
                 {10000.0, 0, false, {}, 1.0f}, kLength);
      kv.Store(0, 1, zero, zero, v, Positions(0, kLength), SlotsOf(table, 16, 0, kLength));
      for (const int64_t rows : {1, 20}) {
        const std::vector<float> got =
            kv.Attend(0, {0}, std::vector<float>(static_cast<size_t>(rows * kWidth), 0.0f), kLength - rows,
                      rows, table);
        for (int64_t c = 0; c < kWidth; ++c) {
          EXPECT_EQ(got[(rows - 1) * kWidth + c], c / 2 % 2 == 0 ? 1.0f : 1.0f + 2 * unit)
              << "channel " << c << " of " << rows << " rows" << (half ? ", fp16" : "")
              << (mode == DeviceMode::kFast ? ", fast" : "");
        }
      }
    }
  }
}

}  // namespace
}  // namespace phalanx
