// That the emulator finds what it is for: each fault, switched on inside a kernel, changes the result under
// some order of warps; without faults the order changes no bit.
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <numeric>

#include "kernels/backends.h"
#include "kernels/cuda/emulator/hopper_emulated.h"
#include "kernels/cuda/emulator/simt.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx {
namespace {

using simt::Fault;

class FaultsTest : public testing::Test {
 protected:
  ~FaultsTest() override { simt::SetFault(Fault::kNone); }

  // Runs under a few orders, without the fault and with it.
  void ExpectCaught(Fault fault, const std::function<std::vector<float>(Ops&)>& run) {
    auto ops = OrDie(CreateOps({kEmulatedCudaRung, Compute::kFast, 1}));
    simt::SetSeed(1);
    const std::vector<float> want = run(*ops);
    for (const float v : want) ASSERT_TRUE(std::isfinite(v));
    int caught = 0;
    constexpr int kOrders = 5;
    for (int seed = 0; seed < kOrders; ++seed) {
      simt::SetSeed(static_cast<uint32_t>(100 * seed + 7));
      EXPECT_TRUE(SameBits(want, run(*ops))) << "the order of warps shows without a fault";
      simt::SetFault(fault);
      simt::SetSeed(static_cast<uint32_t>(100 * seed + 7));
      caught += SameBits(want, run(*ops)) ? 0 : 1;
      simt::SetFault(Fault::kNone);
    }
    EXPECT_GE(caught, kOrders - 1) << "of " << kOrders << " orders";
  }

  static std::vector<float> Product(Ops& ops, int64_t rows) {
    Random random(3);
    const int64_t n = 100, k = 700;
    const std::vector<float> w = random.Normal(n * k), x = random.Normal(rows * k);
    PackWeightParams pack;
    pack.pieces = {{{w.data(), DType::kF32, n, k}, {0, n}}};
    pack.cols = {0, k};
    auto weight = OrDie(ops.PackWeight(pack));
    DeviceMatrix x_m(ops, rows, k, x, 4), y(ops, rows, n, 0, true);
    EXPECT_TRUE(ops.Matmul({x_m.view(), weight.get(), nullptr, y.view(), true}).ok());
    return y.Get();
  }

  // With a weight that stays quantised.
  static std::vector<float> QuantisedProduct(Ops& ops, int64_t rows) {
    Random random(7);
    const int64_t n = 100, k = 704;
    std::vector<uint8_t> w(static_cast<size_t>(RowBytes(DType::kQ4_0, n * k)));
    for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<uint8_t>(i % 18 == 1 ? 0x20 : random.Below(256));
    PackWeightParams pack;
    pack.pieces = {{{w.data(), DType::kQ4_0, n, k}, {0, n}}};
    pack.cols = {0, k};
    auto weight = OrDie(ops.PackWeight(pack));
    EXPECT_LT(weight->bytes(), n * k);
    DeviceMatrix x_m(ops, rows, k, random.Normal(rows * k), 4), y(ops, rows, n, 0, true);
    EXPECT_TRUE(ops.Matmul({x_m.view(), weight.get(), nullptr, y.view(), true}).ok());
    return y.Get();
  }

  static std::vector<float> Attend(Ops& ops, int64_t rows) {
    Random random(4);
    const int64_t length = 300;
    const std::vector<int32_t> kv_head_of = {0, 0, 0, 1};
    std::vector<int32_t> table(19);
    std::iota(table.rbegin(), table.rend(), 0);
    PagedKv kv(ops, {1, 2, 64, 64, 16}, 19, {10000.0, 0, false, {}, 1.0f}, length);
    const std::vector<float> q = random.Normal(length * 4 * 64);
    kv.Store(0, 4, q, random.Normal(length * 128), random.Normal(length * 128), Positions(0, length),
             SlotsOf(table, 16, 0, length));
    // Not up to the end, so that there is a key too many.
    return kv.Attend(0, kv_head_of, Rows(q, 256, length - rows - 1, length - 1), length - rows - 1, rows,
                     table);
  }
};

TEST_F(FaultsTest, MissingBarrierOfTheProductsPipeline) {
  for (const int64_t rows : {5, 90}) {
    ExpectCaught(Fault::kGemmNoBarrier, [&](Ops& ops) { return Product(ops, rows); });
    ExpectCaught(Fault::kGemmNoBarrier, [&](Ops& ops) { return QuantisedProduct(ops, rows); });
  }
}
TEST_F(FaultsTest, MissingWaitForTheProductsCopies) {
  for (const int64_t rows : {5, 90}) {
    ExpectCaught(Fault::kGemmNoWait, [&](Ops& ops) { return Product(ops, rows); });
    ExpectCaught(Fault::kGemmNoWait, [&](Ops& ops) { return QuantisedProduct(ops, rows); });
  }
}
TEST_F(FaultsTest, SwappedFragment) {
  for (const int64_t rows : {5, 90}) {
    ExpectCaught(Fault::kGemmSwappedFragment, [&](Ops& ops) { return Product(ops, rows); });
  }
}
TEST_F(FaultsTest, MissingBarrierBeforeTheProductsResultsTakeTheStages) {
  ExpectCaught(Fault::kGemmNoEpilogueBarrier, [&](Ops& ops) { return Product(ops, 90); });
}
TEST_F(FaultsTest, WrongPage) {
  for (const int64_t rows : {1, 40}) {
    ExpectCaught(Fault::kAttentionWrongPage, [&](Ops& ops) { return Attend(ops, rows); });
  }
}
TEST_F(FaultsTest, MaskOffByOne) {
  for (const int64_t rows : {1, 40}) {
    ExpectCaught(Fault::kAttentionMaskOffByOne, [&](Ops& ops) { return Attend(ops, rows); });
  }
}
TEST_F(FaultsTest, MissingBarrierBetweenProbabilitiesAndOutputs) {
  for (const int64_t rows : {1, 40}) {
    ExpectCaught(Fault::kAttentionNoBarrier, [&](Ops& ops) { return Attend(ops, rows); });
  }
}
TEST_F(FaultsTest, MissingWaitForKeysAndValues) {
  for (const int64_t rows : {1, 40}) {
    ExpectCaught(Fault::kAttentionNoWait, [&](Ops& ops) { return Attend(ops, rows); });
  }
}
TEST_F(FaultsTest, MissingBarrierOfTheNorm) {
  ExpectCaught(Fault::kNormNoBarrier, [](Ops& ops) {
    Random random(5);
    DeviceMatrix x(ops, 8, 600, random.Normal(8 * 600)), y(ops, 8, 600);
    DeviceArray<float> weight(ops, random.Normal(600));
    RmsNormParams p;
    p.residual = x.view();
    p.weight = weight.data();
    p.y = y.view();
    EXPECT_TRUE(ops.RmsNorm(p).ok());
    return y.Get();
  });
}
TEST_F(FaultsTest, MissingBarrierOfSampling) {
  ExpectCaught(Fault::kSampleNoBarrier, [](Ops& ops) {
    Random random(6);
    const int64_t rows = 16, vocab = 700;
    DeviceArray<float> logits(ops, random.Normal(rows * vocab, 3));
    DeviceArray<int32_t> ids(ops, std::vector<int32_t>(rows, -9));
    SampleParams p;
    p.logits = logits.data();
    p.num_rows = rows;
    p.vocab_size = p.share_cols = vocab;
    p.share_begin = {0, vocab};
    p.rows.resize(rows);
    p.ids = ids.data();
    EXPECT_TRUE(ops.Sample(p).ok());
    const std::vector<int32_t> got = ids.Get();
    return std::vector<float>(got.begin(), got.end());
  });
}

// What the order of lanes hides, as an instruction of the whole warp waits for them all.
TEST(EmulatorTest, DiesOfAFilledTileThatIsReadWithoutABarrier) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto run = [](bool barrier) {
    alignas(16) static const uint16_t from[32 * 8] = {};
    simt::Launch("Tile", {}, {32, 1, 1}, 32 * 16, [barrier] {
      cuda::WaitForPrevious();
      char* const own = cuda::SharedMemory() + cuda::ThreadIndex() * 16;
      cuda::CopyAsync(own, from + cuda::ThreadIndex() * 8, 16);
      cuda::CommitCopies();
      cuda::WaitCopies<0>();
      if (barrier) cuda::SyncWarp();
      uint32_t r[4];
      cuda::LdMatrix(r, own);
    });
    std::_Exit(0);
  };
  EXPECT_EXIT(run(true), testing::ExitedWithCode(0), "");
  EXPECT_DEATH(run(false), "what cp.async brought, and no barrier lies between");
}
TEST(EmulatorTest, DiesOfAnMbarrierThatIsUsedWithoutABarrierBehindItsInitialisation) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto run = [](bool barrier) {
    simt::Launch("Mbarrier", {}, {32, 1, 1}, 8, [barrier] {
      cuda::WaitForPrevious();
      auto* const mbarrier = reinterpret_cast<uint64_t*>(cuda::SharedMemory());
      if (cuda::ThreadIndex() == 0) cuda::BarrierInit(mbarrier, 32);
      if (barrier) cuda::SyncThreads();
      cuda::BarrierArrive(mbarrier);
      cuda::BarrierWait(mbarrier, 0);
    });
    std::_Exit(0);
  };
  EXPECT_EXIT(run(true), testing::ExitedWithCode(0), "");
  EXPECT_DEATH(run(false), "no barrier behind its initialisation");
}

// Contents of device memory are not checked by the host: on the device they make NaN or nothing, and touch no
// array's surroundings (which the arrays themselves, and the page behind each, tell).
TEST(DeviceContentsTest, BadIndicesMakeNanOrNothing) {
  auto ops = OrDie(CreateOps({kEmulatedCudaRung, Compute::kFast, 1}));
  const std::vector<float> table(8 * 4, 1.0f);
  DeviceMatrix x(*ops, 5, 4);
  DeviceArray<int32_t> ids(*ops, {7, 8, -3, 0, 0}), from(*ops, {-1, -1, -1, 0, 1}), sampled(*ops, {9, -1});
  EmbedParams embed;
  embed.table = {table.data(), DType::kF32, 8, 4};
  embed.token_ids = ids.data();
  embed.from_sampled = from.data();
  embed.sampled = sampled.data();
  embed.x = x.view();
  ASSERT_TRUE(ops->Embed(embed).ok());
  const std::vector<float> got = x.Get();
  for (const int row : {1, 2, 3}) EXPECT_TRUE(std::isnan(got[row * 4])) << row;
  EXPECT_EQ(got[0], 1.0f);
  EXPECT_EQ(got[16], 0.0f);

  PagedKv kv(*ops, {1, 1, 16, 16, 16}, 2, {10000.0, 16, false, {}, 1.0f}, 32);
  const std::vector<float> ones(16, 1.0f);
  EXPECT_TRUE(std::isnan(kv.Store(0, 1, ones, ones, ones, {32}, {5})[0])) << "a position beyond the table";
  EXPECT_TRUE(std::isnan(kv.Store(0, 1, ones, ones, ones, {-1}, {-1})[0]));
  kv.Store(0, 1, ones, ones, ones, {0}, {32});  // a slot beyond the cache
  kv.Store(0, 1, ones, ones, ones, {0}, {0});
  EXPECT_EQ(kv.Attend(0, {0}, ones, 0, 1, {0}), ones);
  for (const int32_t block : {2, -1, 0x7fffffff}) kv.Attend(0, {0}, ones, 0, 1, {block});

  DeviceMatrix residual(*ops, 3, 4, std::vector<float>(12, 1.0f)), y(*ops, 2, 4);
  DeviceArray<float> weight(*ops, std::vector<float>(4, 1.0f));
  DeviceArray<int32_t> rows(*ops, {3, -1});
  RmsNormParams norm;
  norm.residual = residual.view();
  norm.weight = weight.data();
  norm.rows = rows.data();
  norm.y = y.view();
  ASSERT_TRUE(ops->RmsNorm(norm).ok());
  for (const float v : y.Get()) EXPECT_TRUE(std::isnan(v));
}

TEST(DeviceOptionsTest, WhatIsMissingIsNamed) {
  const auto message = [](const OpsOptions& options) { return CreateOps(options).status().ToString(); };
  EXPECT_EQ(message({kEmulatedCudaRung, Compute::kFp32, 1}).substr(0, 27), "UNIMPLEMENTED: compute fp32");
  EXPECT_EQ(message({kEmulatedCudaRung, Compute::kFast, 1, KvType::kF32}).substr(0, 33),
            "UNIMPLEMENTED: a KV cache of fp32");
}

// As on a device: only Copy reaches its memory from the host.
TEST(StrictMemoryTest, TheHostDiesOfTouchingTheDevicesMemory) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto write = [](bool by_hand) {
    setenv("PHALANX_EMULATED_STRICT", "1", 1);
    auto ops = OrDie(CreateOps({kEmulatedCudaRung, Compute::kFast, 1}));
    auto buffer = OrDie(ops->Allocate(8));
    const char byte = 1;
    if (!ops->Copy(buffer->data(), &byte, 1, CopyKind::kToDevice).ok()) std::_Exit(2);
    if (by_hand) *static_cast<volatile char*>(buffer->data()) = byte;
    std::_Exit(0);
  };
  EXPECT_EXIT(write(false), testing::ExitedWithCode(0), "");
  EXPECT_DEATH(write(true), "");
}

}  // namespace
}  // namespace phalanx
