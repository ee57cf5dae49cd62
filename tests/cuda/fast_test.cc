// Mode fast: which algorithm a product takes, how that is kept, and that the kernels of few rows and the
// library give the same results.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cublaslt_cache.h"
#include "kernels/cuda/emulator/simt.h"
#include "tests/cuda/fake_cublaslt.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::cuda {
namespace {

using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

ProductKey SomeKey() { return {"NVIDIA_H200", 130100, 1, 5120, 17920, 64, lt::kBF16, lt::kF32}; }
ProductChoice SomeChoice() {
  ProductChoice choice;
  choice.workspace = 4096;
  for (uint64_t i = 0; i < 8; ++i) choice.algorithm.data[i] = 0x0123456789abcdef * (i + 1);
  return choice;
}

TEST(ProductCacheTest, BucketsArePowersOfTwo) {
  for (const auto& [rows, bucket] : std::vector<std::pair<int64_t, int64_t>>{{1, 32},
                                                                             {17, 32},
                                                                             {32, 32},
                                                                             {33, 64},
                                                                             {64, 64},
                                                                             {65, 128},
                                                                             {4097, 8192},
                                                                             {16384, 16384},
                                                                             {1 << 20, 16384}}) {
    EXPECT_EQ(BucketOf(rows), bucket) << rows;
  }
}

TEST(ProductCacheTest, EntriesAreReadAsWritten) {
  const std::string line = FormatEntry(SomeKey(), SomeChoice());
  const auto entry = ParseEntry(line);
  ASSERT_TRUE(entry.has_value()) << line;
  EXPECT_EQ(entry->first, SomeKey());
  EXPECT_FALSE(entry->second.own);
  EXPECT_EQ(entry->second.workspace, 4096u);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(entry->second.algorithm.data[i], SomeChoice().algorithm.data[i]);
  // Every altered character, and every shortened line, is no entry.
  for (size_t i = 0; i < line.size(); ++i) {
    std::string altered = line;
    altered[i] = altered[i] == '0' ? '1' : '0';
    EXPECT_FALSE(ParseEntry(altered).has_value()) << altered;
    EXPECT_FALSE(ParseEntry(line.substr(0, i)).has_value());
  }
  EXPECT_FALSE(ParseEntry(line + " ").has_value());
  EXPECT_EQ(DeviceWord("NVIDIA H200 \xff"), "NVIDIA_H200__");
}

class FastTest : public testing::Test {
 protected:
  FastTest() : folder_(testing::TempDir() + "fast_test." + std::to_string(getpid())) {
    TheFakeCublasLt() = FakeCublasLt();
  }
  ~FastTest() override {
    TheFakeCublasLt() = FakeCublasLt();
    std::filesystem::remove_all(folder_);
  }

  std::unique_ptr<LtProducts> Create(std::function<absl::Status(const LtProblem&)> own = nullptr,
                                     int version = 0) {
    LtOptions options;
    options.cache_folder = folder_;
    options.own = std::move(own);
    options.own_version = version;
    options.clock = [] { return TheFakeCublasLt().clock; };
    return OrDie(LtProducts::Create(runtime_, FakeTable(), options));
  }

  // A product of ones: every element is k.
  absl::Status Product(LtProducts& products, int64_t rows, int64_t n = 24, int64_t k = 16,
                       bool may_search = true, bool y_fp32 = true) {
    const std::vector<uint16_t> ones(static_cast<size_t>(std::max(n, rows) * k), 0x3f80);
    auto w = OrDie(CudaBuffer::Of(runtime_, ones)), x = OrDie(CudaBuffer::Of(runtime_, ones));
    auto y = OrDie(CudaBuffer::Create(runtime_, rows * n * 4));
    LtProblem p;
    p.weight = w->as<uint16_t>();
    p.x = x->as<uint16_t>();
    p.y = y->data();
    p.weight_stride = p.x_stride = p.k = k;
    p.rows = rows;
    p.n = p.y_stride = n;
    p.y_fp32 = y_fp32;
    EXPECT_TRUE(LtProducts::Takes(p));
    PHX_RETURN_IF_ERROR(products.Run(p, may_search));
    for (int64_t i = 0; i < rows * n; ++i) {
      EXPECT_EQ(y_fp32 ? y->as<float>()[i] : FloatFromBf16(y->as<uint16_t>()[i]), static_cast<float>(k));
    }
    return absl::OkStatus();
  }

  // The same of e4m3, with scales 1 and x_scale, by which every element is more.
  absl::Status Fp8Product(LtProducts& products, Fp8Scaling scaling, int64_t rows = 20, float x_scale = 2) {
    const int64_t n = 32, k = 16;
    auto ones = OrDie(CudaBuffer::Of(runtime_, std::vector<uint8_t>(n * k, 0x38)));
    auto w_scales = OrDie(CudaBuffer::Of(runtime_, std::vector<float>(n, 1))),
         x_scales = OrDie(CudaBuffer::Of(runtime_, std::vector<float>(n, x_scale)));
    auto y = OrDie(CudaBuffer::Create(runtime_, rows * n * 4));
    LtProblem p;
    p.weight = p.x = ones->data();
    p.y = y->data();
    p.weight_stride = p.x_stride = p.k = k;
    p.rows = rows;
    p.n = p.y_stride = n;
    p.y_fp32 = true;
    p.weight_scales = w_scales->as<float>();
    p.x_scales = x_scales->as<float>();
    p.scaling = scaling;
    EXPECT_TRUE(LtProducts::Takes(p));
    PHX_RETURN_IF_ERROR(products.Run(p, true));
    for (int64_t i = 0; i < rows * n; ++i) EXPECT_EQ(y->as<float>()[i], x_scale * k);
    scales_.push_back(std::move(x_scales));
    return absl::OkStatus();
  }

  std::string Text() {
    std::ifstream in(folder_ + "/products.txt");
    return {std::istreambuf_iterator<char>(in), {}};
  }

  const std::string folder_;
  const std::shared_ptr<Runtime> runtime_ = CreateEmulatedRuntime();
  std::vector<std::unique_ptr<CudaBuffer>> scales_;  // of all products, each at a place of its own
};

TEST_F(FastTest, TheFastestIsTakenOncePerBucket) {
  FakeCublasLt& fake = TheFakeCublasLt();
  fake.costs = {5, -1, 2, 3};
  auto products = Create();
  ASSERT_TRUE(Product(*products, 20).ok());
  EXPECT_EQ(fake.heuristics, 1);
  EXPECT_EQ(fake.asked_rows, 32) << "candidates are those of a full bucket";
  EXPECT_THAT(fake.alignment, ElementsAre(16, 16, 16, 16));
  EXPECT_EQ(fake.runs.back(), 2);
  EXPECT_THAT(fake.runs, Contains(0));
  fake.runs.clear();
  for (const int64_t rows : {20, 17, 32}) ASSERT_TRUE(Product(*products, rows).ok());
  EXPECT_THAT(fake.runs, ElementsAre(2, 2, 2));
  EXPECT_EQ(fake.heuristics, 1);
  ASSERT_TRUE(Product(*products, 33).ok());
  EXPECT_EQ(fake.heuristics, 2) << "another bucket";
  ASSERT_TRUE(Product(*products, 20, 32).ok());
  EXPECT_EQ(fake.heuristics, 3) << "another shape";
  ASSERT_TRUE(Product(*products, 20, 32, 16, true, false).ok());
  EXPECT_EQ(fake.heuristics, 4) << "another type of y";
  products.reset();
  EXPECT_EQ(fake.live_objects, 0);
}

TEST_F(FastTest, ChoicesAreKeptForTheDeviceAndTheLibrary) {
  FakeCublasLt& fake = TheFakeCublasLt();
  fake.costs = {5, 2};
  ASSERT_TRUE(Product(*Create(), 20).ok());
  EXPECT_EQ(fake.heuristics, 1);
  ASSERT_TRUE(Product(*Create(), 25).ok());
  EXPECT_EQ(fake.heuristics, 1) << "read from the file";
  EXPECT_EQ(fake.runs.back(), 1);
  fake.version = 130200;
  ASSERT_TRUE(Product(*Create(), 20).ok());
  EXPECT_EQ(fake.heuristics, 2) << "another library";
  fake.version = 130100;
  ASSERT_TRUE(Product(*Create(), 20).ok());
  EXPECT_EQ(fake.heuristics, 2) << "both are kept";
  ASSERT_TRUE(Product(*Create(nullptr, 1), 20).ok());
  EXPECT_EQ(fake.heuristics, 3) << "another version of our kernels";
  for (const auto& file : std::filesystem::directory_iterator(folder_)) {
    EXPECT_EQ(file.path().filename(), "products.txt") << "nothing half written is left";
  }
}

// Ranks that begin together.
TEST_F(FastTest, ChoicesOfAnotherProcessStayInTheFile) {
  FakeCublasLt& fake = TheFakeCublasLt();
  fake.costs = {5, 2};
  auto one = Create(), other = Create();
  ASSERT_TRUE(Product(*one, 20, 24).ok());
  ASSERT_TRUE(Product(*other, 20, 32).ok());
  EXPECT_EQ(fake.heuristics, 2);
  auto third = Create();
  for (const int64_t n : {24, 32}) ASSERT_TRUE(Product(*third, 20, n).ok());
  EXPECT_EQ(fake.heuristics, 2) << "both are known";
}

TEST_F(FastTest, FormsOfScalesAreSearchedApart) {
  TheFakeCublasLt().costs = {5, 2};
  auto products = Create();
  for (const Fp8Scaling scaling : {Fp8Scaling::kRows, Fp8Scaling::kBlocks}) {
    ASSERT_TRUE(Fp8Product(*products, scaling).ok());
  }
  EXPECT_EQ(TheFakeCublasLt().heuristics, 2);
}

TEST_F(FastTest, AProductHasItsOwnScalesWhoseverPlanItTakes) {
  TheFakeCublasLt().costs = {5, 2};
  auto products = Create();
  for (const float scale : {2.0f, 3.0f}) {
    ASSERT_TRUE(Fp8Product(*products, Fp8Scaling::kRows, 20, scale).ok());
  }
  EXPECT_EQ(TheFakeCublasLt().heuristics, 1);
}

TEST_F(FastTest, ChoicesOfFp8AreKeptWithHowTheyAdd) {
  FakeCublasLt& fake = TheFakeCublasLt();
  fake.costs = {5, 2, 3};
  ASSERT_TRUE(Fp8Product(*Create(), Fp8Scaling::kRows).ok());
  EXPECT_EQ(fake.heuristics, 1);
  EXPECT_EQ(fake.runs.back(), 1);
  EXPECT_THAT(fake.fast_sums, Each(true));
  EXPECT_THAT(Text(), HasSubstr(" cublaslt-fast-sums "));
  fake.fast_sums.clear();
  ASSERT_TRUE(Fp8Product(*Create(), Fp8Scaling::kRows, 24).ok());
  EXPECT_EQ(fake.heuristics, 1) << "read from the file";
  EXPECT_EQ(fake.runs.back(), 1);
  EXPECT_EQ(fake.fast_sums, std::vector<bool>{true});
  // Other forms, and 16 bits, are searched apart.
  ASSERT_TRUE(Fp8Product(*Create(), Fp8Scaling::kBlocks).ok());
  EXPECT_EQ(fake.heuristics, 2);
  EXPECT_FALSE(fake.fast_sums.back());
  ASSERT_TRUE(Product(*Create(), 20, 32).ok());
  EXPECT_EQ(fake.heuristics, 3);
  // A library without them any more.
  fake.has_fast_sums = false;
  ASSERT_TRUE(Fp8Product(*Create(), Fp8Scaling::kRows).ok());
  EXPECT_EQ(fake.heuristics, 5) << "with, and without";
  EXPECT_FALSE(fake.fast_sums.back());
  // None at all: said once, and then known.
  fake.has_fp8 = false;
  auto products = Create();
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(Fp8Product(*products, Fp8Scaling::kBlocks, 40).code(), absl::StatusCode::kUnimplemented);
    EXPECT_EQ(fake.heuristics, 6);
  }
}

TEST_F(FastTest, DamagedAndForeignLinesAreIgnored) {
  FakeCublasLt& fake = TheFakeCublasLt();
  fake.costs = {5, 2};
  ASSERT_TRUE(Product(*Create(), 20).ok());
  std::string text = Text();
  ASSERT_FALSE(text.empty());
  const std::string foreign = FormatEntry(SomeKey(), SomeChoice());
  text[text.size() / 2] ^= 1;
  std::ofstream(folder_ + "/products.txt") << "garbage\n"
                                           << text << "\n"
                                           << foreign << "\n"
                                           << std::string(10, '\0');
  ASSERT_TRUE(Product(*Create(), 20).ok());
  EXPECT_EQ(fake.heuristics, 2) << "the entry was damaged";
  EXPECT_THAT(Text(), HasSubstr(foreign));
  EXPECT_THAT(Text(), Not(HasSubstr("garbage")));
  ASSERT_TRUE(Product(*Create(), 20).ok());
  EXPECT_EQ(fake.heuristics, 2);
}

TEST_F(FastTest, AnAlgorithmThatTheLibraryNoLongerTakesIsSearchedAgain) {
  FakeCublasLt& fake = TheFakeCublasLt();
  fake.costs = {5, 4, 2};
  ASSERT_TRUE(Product(*Create(), 20).ok());
  fake.costs = {5, 4};
  ASSERT_TRUE(Product(*Create(), 20).ok());
  EXPECT_EQ(fake.runs.back(), 1);
}

TEST_F(FastTest, AFolderThatCannotBeWrittenCostsNoMoreThanTheSearch) {
  std::ofstream(folder_) << "a file";
  TheFakeCublasLt().costs = {5, 2};
  auto products = Create();
  EXPECT_TRUE(Product(*products, 20).ok());
  EXPECT_EQ(TheFakeCublasLt().runs.back(), 1);
  EXPECT_TRUE(Product(*products, 20).ok());
  EXPECT_EQ(TheFakeCublasLt().heuristics, 1);
}

TEST_F(FastTest, OurOwnKernelIsTakenWhereItIsFaster) {
  FakeCublasLt& fake = TheFakeCublasLt();
  fake.costs = {3};
  int own_runs = 0;
  double own_cost = 2;
  const auto own = [&](const LtProblem& p) {
    if (p.rows > 64) return absl::UnimplementedError("too many");
    ++own_runs;
    fake.clock += own_cost;
    std::fill_n(static_cast<float*>(p.y), p.rows * p.n, static_cast<float>(p.k));
    return absl::OkStatus();
  };
  auto products = Create(own);
  ASSERT_TRUE(Product(*products, 20).ok());
  fake.runs.clear();
  own_runs = 0;
  ASSERT_TRUE(Product(*products, 20).ok());
  ASSERT_TRUE(Product(*Create(own), 30).ok());
  EXPECT_EQ(own_runs, 2);
  EXPECT_THAT(fake.runs, ElementsAre());
  ASSERT_TRUE(Product(*products, 65).ok());
  EXPECT_THAT(fake.runs, Not(ElementsAre()));
  own_cost = 4;
  ASSERT_TRUE(Product(*products, 40).ok());
  EXPECT_EQ(fake.runs.back(), 0);
}

TEST_F(FastTest, WithoutASearchTheLibrarysFirstIsTaken) {
  FakeCublasLt& fake = TheFakeCublasLt();
  fake.costs = {5, 2};
  auto products = Create();
  ASSERT_TRUE(Product(*products, 20, 24, 16, false).ok());
  EXPECT_THAT(fake.runs, ElementsAre(0));
  EXPECT_EQ(Text(), "");
  ASSERT_TRUE(Product(*products, 20).ok());
  ASSERT_TRUE(Product(*products, 20, 24, 16, false).ok());
  EXPECT_EQ(fake.runs.back(), 1) << "what was found stays";
}

TEST_F(FastTest, ErrorsNameTheLibrary) {
  FakeCublasLt& fake = TheFakeCublasLt();
  fake.create_status = 1;
  EXPECT_THAT(LtProducts::Create(runtime_, FakeTable(), {}).status().ToString(),
              HasSubstr("mode fast needs cuBLASLt, and its version 13.1.0 does not start: a fake's error"));
  fake.create_status = 0;
  fake.costs = {-1, -1};
  EXPECT_THAT(Product(*Create(), 20).ToString(), HasSubstr("a product of 20 rows, N 24, K 16"));
  OpsOptions options;
  options.device_mode = DeviceMode::kFast;
  auto ops = OrDie(CreateCudaOps(CreateEmulatedRuntime(), options, &FakeTable()));
  EXPECT_EQ(ops->info().instruction_set, "emulated-fast");
  EXPECT_THAT(ops->info().device, HasSubstr("cuBLASLt 13.1.0"));
  options.device_mode = DeviceMode::kInvariant;
  EXPECT_EQ(OrDie(CreateCudaOps(CreateEmulatedRuntime(), options))->info().instruction_set,
            "emulated-invariant");
}

// The kernel of few rows: without faults the order of warps changes no bit.
TEST_F(FastTest, FaultsOfTheKernelOfFewRowsAreSeen) {
  OpsOptions options;
  options.device_mode = DeviceMode::kFast;
  auto ops = OrDie(CreateCudaOps(CreateEmulatedRuntime(), options));
  Random random(3);
  const int64_t n = 100, k = 1400;
  const std::vector<float> w = random.Normal(n * k);
  PackWeightParams pack;
  pack.pieces = {{{w.data(), DType::kF32, n, k}, {0, n}}};
  pack.cols = {0, k};
  auto weight = OrDie(ops->PackWeight(pack));
  for (const int64_t rows : {5, 12}) {
    const std::vector<float> x = random.Normal(rows * k);
    const auto run = [&](simt::Fault fault, uint32_t seed) {
      DeviceMatrix x_m(*ops, rows, k, x, 4), y(*ops, rows, n, 0, true);
      simt::SetSeed(100 * seed + 7);
      simt::SetFault(fault);
      EXPECT_TRUE(ops->Matmul({x_m.view(), weight.get(), nullptr, y.view(), true}).ok());
      simt::SetFault(simt::Fault::kNone);
      return y.Get();
    };
    const std::vector<float> want = run(simt::Fault::kNone, 0);
    for (const simt::Fault fault : {simt::Fault::kGemmNoWait, simt::Fault::kGemmNoEpilogueBarrier}) {
      int caught = 0;
      for (uint32_t seed = 1; seed < 6; ++seed) {
        EXPECT_TRUE(SameBits(want, run(simt::Fault::kNone, seed)));
        caught += SameBits(want, run(fault, seed)) ? 0 : 1;
      }
      EXPECT_GE(caught, 4) << "fault " << static_cast<int>(fault) << ", " << rows << " rows";
    }
  }
}

TEST(CublasLtLibraryTest, IsOpenedOrSaidToBeMissing) {
  const auto table = lt::OpenLibrary();
  if (table.ok()) {
    EXPECT_EQ(lt::VersionName(table->GetVersion()).substr(0, 3), "13.");
  } else {
    EXPECT_THAT(table.status().ToString(), HasSubstr("libcublasLt.so.13"));
  }
}

}  // namespace
}  // namespace phalanx::cuda
