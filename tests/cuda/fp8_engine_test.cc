// The engine in mode fast with weights of e4m3: what a product reads of a norm is quantised by the norm's
// kernel, be it one of its own or that of an exchange, and the logits have the bits that they have when the
// kernel behind it does that.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <deque>
#include <numeric>

#include "kernels/backends.h"
#include "kernels/cuda/emulator/simt.h"
#include "kernels/cuda/runtime.h"
#include "kernels/dequantize.h"
#include "kernels/fp8.h"
#include "tests/cuda/device_group.h"
#include "tests/cuda/fake_cublaslt.h"
#include "tests/worker/forwarding_ops.h"
#include "tests/worker/test_group.h"
#include "tests/worker/tiny_model.h"

namespace phalanx {
namespace {

constexpr const char* kRung = "cuda-fast-fp8";
constexpr int kLayers = 2, kTokens = 40, kBlockSize = 16, kNumBlocks = 8;

const bool registered = [] {
  RegisterBackend(kRung, [](const OpsOptions& options) -> absl::StatusOr<std::unique_ptr<Ops>> {
    OpsOptions fast = options;
    fast.device_mode = DeviceMode::kFast;
    fast.cache_folder = "/proc/none";  // where nothing can be kept
    return cuda::CreateCudaOps(cuda::CreateEmulatedRuntime(), fast, &cuda::FakeTable());
  });
  return true;
}();

struct Case {
  bool blocks = false;  // scales of 128 x 128; else none
  int num_ranks = 1;    // that exchange by kernels which read the peers' memory
  bool told = true;     // norms are told what reads them
};

// Packs every weight as e4m3.
class Fp8Ops : public ForwardingOps {
 public:
  Fp8Ops(std::unique_ptr<Ops> inner, const Case& c) : ForwardingOps(std::move(inner)), case_(c) {}

  absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(const PackWeightParams& params) override {
    PackWeightParams p = params;
    for (WeightPiece& piece : p.pieces) {
      WeightSource& s = piece.source;
      std::vector<float> wide(static_cast<size_t>(s.rows * s.cols));
      DequantizeTile(s, {0, s.rows}, {0, s.cols}, wide.data(), s.cols);
      std::vector<uint8_t>& codes = codes_.emplace_back();
      for (const float v : wide) codes.push_back(E4m3FromFloatBits(std::bit_cast<uint32_t>(v)));
      s = {codes.data(), DType::kF8E4M3, s.rows, s.cols};
      if (!case_.blocks) continue;
      s.scales.block_rows = s.scales.block_cols = 128;
      s.scales.stride = (s.cols + 127) / 128;
      std::vector<float>& scales = scales_.emplace_back((s.rows + 127) / 128 * s.scales.stride, 0.75f);
      s.scales.data = scales.data();
    }
    return inner_->PackWeight(p);
  }
  absl::Status RmsNorm(const RmsNormParams& p) override {
    RmsNormParams norm = p;
    if (!case_.told) norm.read_by = nullptr;
    return inner_->RmsNorm(norm);
  }
  absl::Status GatedShardedMatmul(const GatedShardedMatmulParams& p) override {
    return inner_->GatedShardedMatmul(p);
  }

 private:
  const Case case_;
  std::deque<std::vector<uint8_t>> codes_;
  std::deque<std::vector<float>> scales_;
};

class Fp8Collective : public ForwardingCollective {
 public:
  Fp8Collective(std::unique_ptr<Collective> inner, bool told)
      : ForwardingCollective(std::move(inner)), told_(told) {}
  absl::Status TreeAllReduceRmsNorm(int64_t count, float* out, Ops* ops, const RmsNormParams& p) override {
    RmsNormParams norm = p;
    if (!told_) norm.read_by = nullptr;
    return inner_->TreeAllReduceRmsNorm(count, out, ops, norm);
  }

 private:
  const bool told_;
};

// Logits of all positions of a prompt.
std::vector<float> Prefill(const Checkpoint& file, const Case& c) {
  TestGroupOptions options;
  options.num_ranks = c.num_ranks;
  options.ops = {.rung = kRung, .compute = Compute::kFast, .num_threads = 1};
  options.runner = {.max_tokens_per_step = kTokens,
                    .max_logits_per_step = kTokens,
                    .context_length = 0,
                    .block_size = kBlockSize,
                    .kv_bytes = int64_t{1} << 24,
                    .max_kv_blocks = kNumBlocks};
  options.wrap_ops = [&](int, std::unique_ptr<Ops> ops) {
    return std::make_unique<Fp8Ops>(std::move(ops), c);
  };
  if (c.num_ranks > 1) {
    options.create_collectives = [&](const auto& ops, const CollectiveOptions& collective) {
      return CreateDeviceGroup(ops, collective, ExchangePath::kPeer);
    };
    options.wrap_collective = [&](int, std::unique_ptr<Collective> collective) {
      return std::make_unique<Fp8Collective>(std::move(collective), c.told);
    };
  }
  const auto group = TestGroup::Create(file, options);
  EXPECT_TRUE(group.ok()) << group.status();
  if (!group.ok()) return {};
  std::vector<int32_t> order(kNumBlocks);
  std::iota(order.begin(), order.end(), 0);
  TestTables tables(kNumBlocks, kBlockSize, order);
  StepPlan plan;
  tables.Grow(&plan, 0, kTokens);
  PlanRow row;
  row.sequence = 0;
  for (int i = 0; i < kTokens; ++i) {
    row.tokens.push_back((i * 37 + 5) % 144);
    row.logit_offsets.push_back(i);
  }
  plan.rows.push_back(row);
  tables.Finish(&plan);
  std::vector<float> logits;
  const auto result = (*group)->Step(plan, std::vector<SampleRow>(kTokens), &logits);
  EXPECT_TRUE(result.ok()) << result.status();
  return logits;
}

TEST(Fp8EngineTest, NormsQuantiseWhatProductsRead) {
  TinyModelOptions model;
  model.layers = kLayers;
  model.hidden = 128;
  model.heads = 4;
  model.kv_heads = 2;
  model.key_dim = model.value_dim = 64;
  model.ffn = 256;
  model.vocab = 144;
  const auto file = OpenTinyModel(model, "fp8_engine");
  for (Case c : std::vector<Case>{{}, {.blocks = true}, {.num_ranks = 2}}) {
    SCOPED_TRACE(testing::Message() << "blocks " << c.blocks << ", " << c.num_ranks << " ranks");
    const auto launches = [] {
      return std::vector<int64_t>{simt::LaunchesOf("Fp8Rows"), simt::LaunchesOf("RmsNorm"),
                                  simt::LaunchesOf("TreeSumNorm")};
    };
    const std::vector<int64_t> before = launches();
    const std::vector<float> told = Prefill(*file, c);
    const std::vector<int64_t> between = launches();
    c.told = false;
    const std::vector<float> untold = Prefill(*file, c);
    const std::vector<int64_t> after = launches();
    // Left are the attention's outputs, and what comes out of the gates. A share of the head, of 72 rows,
    // stays 16 bits wide.
    EXPECT_EQ(between[0] - before[0], c.num_ranks * 2 * kLayers);
    EXPECT_EQ(after[0] - between[0], c.num_ranks * 4 * kLayers + (c.num_ranks == 1 ? 1 : 0));
    // The first norm has nothing to add, the head's is of chosen rows.
    const int of_exchanges = c.num_ranks > 1 ? c.num_ranks * (2 * kLayers - 1) : 0;
    EXPECT_EQ(between[2] - before[2], of_exchanges);
    EXPECT_EQ(between[1] - before[1], c.num_ranks * (2 * kLayers + 1) - of_exchanges);
    ASSERT_EQ(told.size(), static_cast<size_t>(kTokens * model.vocab));
    EXPECT_EQ(std::memcmp(told.data(), untold.data(), told.size() * 4), 0);
  }
}

}  // namespace
}  // namespace phalanx
