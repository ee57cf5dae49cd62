// The kernels for sm_90a: their index arithmetic, and their text on the emulator.
#include "kernels/cuda/hopper.h"
#include "kernels/cuda/emulator/simt.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>

#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/half.h"
#include "kernels/cuda/hopper_device.h"
#include "kernels/cuda/runtime.h"
#include "kernels/numeric.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::cuda {
namespace {

TEST(HopperLayoutTest, TheSwizzleExchangesUnitsOfARow) {
  static_assert(SwizzledAddress(SwizzledAddress(0x12345)) == 0x12345);
  std::set<uint32_t> seen;
  for (uint32_t at = 0; at < 8 * kSwizzlePeriod; at += 16) {
    const uint32_t to = SwizzledAddress(at);
    EXPECT_TRUE(seen.insert(to).second) << at;
    EXPECT_EQ(to / kSwizzleRow, at / kSwizzleRow) << "stays in its row";
    EXPECT_EQ(to % 16, 0u);
    EXPECT_EQ(SwizzledAddress(at + 7), to + 7) << "units stay whole";
    EXPECT_EQ(SwizzledAddress(at + kSwizzlePeriod), to + kSwizzlePeriod) << "the period";
    // As ordinary stores of the kernels write such tiles.
    EXPECT_EQ(static_cast<int>(to), Swizzled(static_cast<int>(at / kSwizzleRow), at / 16 % 8, kSwizzleRow));
  }
  EXPECT_EQ(*seen.rbegin(), 8u * kSwizzlePeriod - 16);
}

TEST(HopperLayoutTest, DescriptorsSayWhereTilesLie) {
  const auto field = [](uint64_t d, int first) { return static_cast<uint32_t>(d >> first & 0x3fff) * 16; };
  static_assert(MatrixDescriptor(0, 0, 0) == uint64_t{1} << 62);
  for (const uint32_t tile : {1024u, 0x8000u, 0x38c00u - 1024u}) {
    for (int step = 0; step < 4; ++step) {
      const uint64_t rows = RowsDescriptor(tile, step);
      EXPECT_EQ(field(rows, 0), tile + 32u * step);
      EXPECT_EQ(field(rows, 32), 1024u) << "8 rows on";
      EXPECT_EQ(rows >> 62, 1u);
      EXPECT_EQ(rows >> 46 & 0xffff, 0u) << "no base offset";
      const uint64_t columns = ColumnsDescriptor(tile, 128, step);
      EXPECT_EQ(field(columns, 0), tile + 2048u * step) << "16 rows on";
      EXPECT_EQ(field(columns, 16), 128u * 128u) << "64 columns on";
      EXPECT_EQ(field(columns, 32), 1024u);
    }
  }
}

TEST(HopperLayoutTest, TilesAreTakenOnce) {
  for (const int tiles_x : {1, 2, 15, 16, 17, 33, 50}) {
    for (const int tiles_w : {1, 3, 20, 141}) {
      std::set<std::pair<int, int>> seen;
      for (int i = 0; i < tiles_x * tiles_w; ++i) {
        const TileAt at = TileOf(i, tiles_x, tiles_w);
        ASSERT_TRUE(at.x >= 0 && at.x < tiles_x && at.w >= 0 && at.w < tiles_w) << i;
        ASSERT_TRUE(seen.insert({at.x, at.w}).second) << i;
      }
    }
  }
  // 132 tiles that run at once touch few rows of x and of W.
  std::set<int> x, w;
  for (int i = 0; i < 132; ++i) {
    x.insert(TileOf(i, 32, 140).x);
    w.insert(TileOf(i, 32, 140).w);
  }
  EXPECT_EQ(x.size(), 16u);
  EXPECT_EQ(w.size(), 9u);
}

TEST(HopperLayoutTest, NarrowTilesWhereWideOnesLeaveMultiprocessorsIdle) {
  EXPECT_EQ(TileRowsOfW(4096, 35840, 132), 256);
  EXPECT_EQ(TileRowsOfW(8192, 5120, 132), 256);
  EXPECT_EQ(TileRowsOfW(512, 5120, 132), 256);  // 80 or 160 tiles
  EXPECT_EQ(TileRowsOfW(256, 5120, 132), 128);  // 40 or 80
  EXPECT_EQ(TileRowsOfW(128, 1 << 20, 132), 256);
  EXPECT_EQ(TileRowsOfW(1, 128, 132), 128);
}

TEST(HopperLayoutTest, PagesThatAreNotThereReadAsZeros) {
  const int32_t table[] = {3, 0, -1, 5, 0x7fffffff, 2};
  constexpr int64_t kBlocks = 5;
  const auto row = [&](int page) { return PageRow(table, page, 5, kBlocks, 4, 2); };
  EXPECT_EQ(row(0), 14);
  EXPECT_EQ(row(1), 2);
  for (const int page : {2, 3, 4, 5, 100}) EXPECT_EQ(row(page), 20) << page;  // 100: beyond the table
}

class HopperTest : public testing::Test {
 protected:
  ~HopperTest() override { simt::SetFault(simt::Fault::kNone); }
  const std::shared_ptr<Runtime> runtime_ = CreateEmulatedRuntime();
};

// Whether a product is right. Operands are small integers, so that every sum is exact in any order.
testing::AssertionResult Product(const std::shared_ptr<Runtime>& runtime, int rows, int n, int k,
                                 int multiprocessors, bool half, bool y_fp32, bool with_bias) {
  Random random(7);
  const auto value = [&] { return static_cast<float>(random.Below(5)) - 2; };
  const auto narrow = [&](float v) { return half ? HalfFromFloat(v) : Bf16FromFloat(v); };
  const int64_t x_stride = (k + 7) / 8 * 8 + 8, w_stride = (k + 63) / 64 * 64, y_stride = (n + 7) / 8 * 8 + 8;
  // What lies beside the operands must not matter.
  std::vector<uint16_t> x(static_cast<size_t>(rows * x_stride), 0x7fff),
      w(static_cast<size_t>(n * w_stride), 0x7fff);
  std::vector<float> xf(static_cast<size_t>(rows * k)), wf(static_cast<size_t>(n * k)),
      bias(static_cast<size_t>(n));
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < k; ++c) x[r * x_stride + c] = narrow(xf[r * k + c] = value());
  }
  for (int r = 0; r < n; ++r) {
    for (int c = 0; c < k; ++c) w[r * w_stride + c] = narrow(wf[r * k + c] = value());
  }
  for (float& v : bias) v = value();
  auto x_d = OrDie(CudaBuffer::Of(runtime, x)), w_d = OrDie(CudaBuffer::Of(runtime, w));
  auto bias_d = OrDie(CudaBuffer::Of(runtime, bias));
  const std::vector<uint32_t> poison(static_cast<size_t>(rows * y_stride), 0xabababab);
  auto y_d = OrDie(CudaBuffer::Of(runtime, poison));
  HopperGemmArgs args;
  args.x = x_d->as<uint16_t>();
  args.weight = w_d->as<uint16_t>();
  args.bias = with_bias ? bias_d->as<float>() : nullptr;
  args.y = y_d->data();
  args.x_stride = x_stride;
  args.weight_stride = w_stride;
  args.y_stride = y_stride;
  args.rows = rows;
  args.n = n;
  args.k = k;
  args.y_fp32 = y_fp32;
  args.multiprocessors = multiprocessors;
  simt::Stream stream(/*lazy=*/false);
  if (LaunchHopperGemm(args, half, &stream) != 0) return testing::AssertionFailure() << "not launched";
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < y_stride; ++c) {
      const int64_t at = r * y_stride + c;
      const uint16_t got16 = y_d->as<uint16_t>()[at];
      const float got = y_fp32 ? y_d->as<float>()[at] : half ? FloatFromF16(got16) : FloatFromBf16(got16);
      if (c >= n) {
        if ((y_fp32 ? FloatBits(got) : got16 * 0x10001u) == 0xabababab) continue;
        return testing::AssertionFailure() << "written beside row " << r;
      }
      float want = with_bias ? bias[c] : 0.0f;
      for (int i = 0; i < k; ++i) want += xf[r * k + i] * wf[c * k + i];
      if (got == (half || y_fp32 ? want : RoundToBf16(want))) continue;
      return testing::AssertionFailure()
             << rows << " rows, N " << n << ", K " << k << ": row " << r << ", column " << c << " is " << got;
    }
  }
  return testing::AssertionSuccess();
}

TEST_F(HopperTest, Products) {
  EXPECT_TRUE(Product(runtime_, 130, 300, 200, 2, false, false, true));  // several tiles a block, wide
  EXPECT_TRUE(Product(runtime_, 130, 300, 200, 132, true, true, false));
  EXPECT_TRUE(Product(runtime_, 260, 140, 520, 3, false, true, true));  // the ring comes around in a tile
  EXPECT_TRUE(Product(runtime_, 1, 8, 8, 1, false, false, false));
  EXPECT_TRUE(Product(runtime_, 65, 129, 65, 1, true, false, true));
}

TEST_F(HopperTest, AStageThatIsGivenBackTooEarlyIsSeen) {
  for (uint32_t seed = 0; seed < 3; ++seed) {
    simt::SetFault(simt::Fault::kWgmmaEarlyRelease);
    simt::SetSeed(100 * seed + 7);
    EXPECT_FALSE(Product(runtime_, 130, 256, 700, 1, false, true, false)) << seed;
    simt::SetFault(simt::Fault::kNone);
    simt::SetSeed(100 * seed + 7);
    EXPECT_TRUE(Product(runtime_, 130, 256, 700, 1, false, true, false));
  }
}

// Attention of the last rows of a sequence, several tiles long; what lies behind it in its last block is NaN.
// `whole`: of so many heads that a block takes all tiles, more than there are stages.
std::vector<float> Attend(Ops& ops, int dim, int block_size, bool whole = false) {
  Random random(4);
  const int64_t length = whole ? 700 : 300, rows = whole ? 20 : 50,
                blocks = (length + block_size - 1) / block_size;
  std::vector<int32_t> table(static_cast<size_t>(blocks));
  for (int64_t b = 0; b < blocks; ++b) table[b] = static_cast<int32_t>(blocks - 1 - b);
  std::vector<int32_t> kv_head_of = {0, 0, 0, 1};
  if (whole) {
    kv_head_of.resize(16);
    std::iota(kv_head_of.begin(), kv_head_of.end(), 0);
  }
  const int heads = static_cast<int>(kv_head_of.size()), kv_heads = kv_head_of.back() + 1;
  PagedKv kv(ops, {1, kv_heads, dim, dim, block_size}, blocks, {10000.0, 0, false, {}, 1.0f},
             blocks * block_size);
  const int64_t all = blocks * block_size;
  const std::vector<float> q = random.Normal(all * heads * dim), k = random.Normal(all * kv_heads * dim);
  std::vector<float> v = random.Normal(all * kv_heads * dim);
  std::fill(v.begin() + length * kv_heads * dim, v.end(), kNan);
  kv.Store(0, heads, q, k, v, Positions(0, all), SlotsOf(table, block_size, 0, all));
  return kv.Attend(0, kv_head_of, Rows(q, heads * dim, length - rows, length), length - rows, rows, table);
}

double MostOff(const std::vector<float>& want, const std::vector<float>& got) {
  double most = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double off = std::abs(double{want[i]} - got[i]);
    most = std::isnan(off) ? 1e9 : std::max(most, off);
  }
  return most;
}

TEST_F(HopperTest, StagesOfAttentionAreFilledAgainWhenTheyWereRead) {
  OpsOptions options;
  options.device_mode = DeviceMode::kFast;
  auto ops = OrDie(CreateCudaOps(CreateEmulatedRuntime(), options));
  auto plain = OrDie(CreateCudaOps(CreateEmulatedRuntime(), OpsOptions()));
  for (const int dim : {64, 128}) {
    const std::vector<float> want = Attend(*plain, dim, 32, true);
    EXPECT_LT(MostOff(want, Attend(*ops, dim, 32, true)), 0.02);
    simt::SetFault(simt::Fault::kWgmmaEarlyRelease);
    EXPECT_GT(MostOff(want, Attend(*ops, dim, 32, true)), 0.02);
    simt::SetFault(simt::Fault::kNone);
  }
}

TEST_F(HopperTest, FaultsOfAttentionAreSeen) {
  OpsOptions options;
  options.device_mode = DeviceMode::kFast;
  auto ops = OrDie(CreateCudaOps(CreateEmulatedRuntime(), options));
  auto plain = OrDie(CreateCudaOps(CreateEmulatedRuntime(), OpsOptions()));
  for (const auto& [dim, block_size] : std::vector<std::pair<int, int>>{{64, 16}, {96, 32}, {128, 8}}) {
    const std::vector<float> want = Attend(*plain, dim, block_size);
    for (const simt::Fault fault : {simt::Fault::kNone, simt::Fault::kAttentionWrongPage,
                                    simt::Fault::kAttentionMaskOffByOne, simt::Fault::kWgmmaTailNotCleared}) {
      simt::SetFault(fault);
      const std::vector<float> got = Attend(*ops, dim, block_size);
      simt::SetFault(simt::Fault::kNone);
      const double most = MostOff(want, got);
      EXPECT_EQ(most > 0.02, fault != simt::Fault::kNone)
          << most << " off, fault " << static_cast<int>(fault) << ", width " << dim;
    }
  }
}

}  // namespace
}  // namespace phalanx::cuda
