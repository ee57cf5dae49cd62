// A real model against transformers in fp32 (smollm2_reference.json, see make_smollm2_reference.py):
// log-probabilities of a text, greedy answers, and the same bits for every number of ranks. Prints its
// figures.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/test_data.h"
#include "tests/worker/test_group.h"

namespace phalanx {
namespace {

constexpr int kBlockSize = 32;
constexpr int kNumBlocks = 128;
constexpr int kChunk = 128;

struct Golden {
  nlohmann::json reference;
  std::unique_ptr<Checkpoint> file;
  std::string missing;  // why the test cannot run
};

const Golden& Data() {
  static const Golden* const data = [] {
    auto* golden = new Golden();
    std::ifstream json(PHALANX_SOURCE_DIR "/tests/golden/smollm2_reference.json");
    golden->reference = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
    EXPECT_FALSE(golden->reference.is_discarded()) << "tests/golden/smollm2_reference.json is no JSON";
    const auto name = golden->reference["gguf"]["file"].get<std::string>();
    const std::optional<std::string> path = FindTestData(name);
    if (!path) {
      golden->missing = MissingTestData(name);
      return golden;
    }
    absl::StatusOr<std::unique_ptr<Checkpoint>> file = Checkpoint::Open(*path);
    EXPECT_TRUE(file.ok()) << file.status();
    if (file.ok()) golden->file = *std::move(file);
    return golden;
  }();
  return *data;
}

// The plain loops take 0.2 s a token: they are run only where nothing else can be, and then on less.
std::vector<std::string> Rungs() {
  std::vector<std::string> rungs = AvailableRungs();
  if (rungs.size() > 1) std::erase(rungs, "reference");
  return rungs;
}

struct Backend {
  std::string rung;
  Compute compute;
  KvType kv_type = KvType::kAuto;
  std::string name() const {
    return absl::StrCat(rung, compute == Compute::kFp32 ? "_fp32" : "_fast",
                        IsQuantised(kv_type) ? absl::StrCat("_", KvTypeName(kv_type), "_kv") : "");
  }
  bool exact() const { return compute == Compute::kFp32 && kv_type == KvType::kAuto; }
};
void PrintTo(const Backend& backend, std::ostream* out) { *out << backend.name(); }

std::vector<Backend> Backends() {
  std::vector<Backend> backends;
  for (const std::string& rung : Rungs()) {
    for (const Compute compute : {Compute::kFp32, Compute::kFast}) backends.push_back({rung, compute});
  }
  // In fp32 arithmetic all that differs is what codes do to keys and values.
  backends.push_back({Rungs().front(), Compute::kFp32, KvType::kInt8});
  for (const KvType type : {KvType::kInt8, KvType::kFp8}) {
    backends.push_back({Rungs().back(), Compute::kFast, type});
  }
  return backends;
}

class GoldenTest : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (!Data().missing.empty()) GTEST_SKIP() << Data().missing;
    ASSERT_NE(Data().file, nullptr);
  }

  static bool IsSlow() { return GetParam().rung == "reference"; }

  std::unique_ptr<TestGroup> MakeGroup(int num_ranks) const {
    TestGroupOptions options;
    options.num_ranks = num_ranks;
    options.ops = {.rung = GetParam().rung,
                   .compute = GetParam().compute,
                   .num_threads = num_ranks == 1 ? 2 : 1,
                   .kv_type = GetParam().kv_type};
    options.runner = {.max_tokens_per_step = 512,
                      .max_logits_per_step = kChunk,
                      .context_length = 2048,
                      .block_size = kBlockSize,
                      .kv_bytes = int64_t{1} << 30,
                      .max_kv_blocks = kNumBlocks};
    absl::StatusOr<std::unique_ptr<TestGroup>> group = TestGroup::Create(*Data().file, options);
    EXPECT_TRUE(group.ok()) << group.status();
    return group.ok() ? *std::move(group) : nullptr;
  }
  static TestTables Tables() {
    std::vector<int32_t> order(kNumBlocks);
    std::iota(order.begin(), order.end(), 0);
    return TestTables(kNumBlocks, kBlockSize, order);
  }
  // Appends a row to the plan; logits of all its tokens or of the last one.
  static void AddRow(StepPlan* plan, TestTables* tables, uint32_t sequence, int64_t position,
                     const std::vector<int32_t>& tokens, bool all_logits) {
    PlanRow row;
    row.sequence = sequence;
    row.first_position = static_cast<int32_t>(position);
    row.tokens = tokens;
    row.logit_offsets.resize(all_logits ? tokens.size() : 1, static_cast<int32_t>(tokens.size()) - 1);
    if (all_logits) std::iota(row.logit_offsets.begin(), row.logit_offsets.end(), 0);
    tables->Grow(plan, sequence, position + static_cast<int64_t>(tokens.size()));
    plan->rows.push_back(std::move(row));
  }
};

TEST_P(GoldenTest, LogprobsOfATextAreTransformers) {
  const auto ids = Data().reference["prompt_logprobs"]["ids"].get<std::vector<int32_t>>();
  auto want = Data().reference["prompt_logprobs"]["logprobs"].get<std::vector<double>>();
  if (IsSlow()) want.resize(64);
  const auto group = MakeGroup(1);
  ASSERT_NE(group, nullptr);
  TestTables tables = Tables();
  double sum = 0, largest = 0, mean = 0;
  for (size_t begin = 0; begin < want.size(); begin += kChunk) {
    const size_t end = std::min(begin + kChunk, want.size());
    StepPlan plan;
    AddRow(&plan, &tables, 0, static_cast<int64_t>(begin), {ids.begin() + begin, ids.begin() + end}, true);
    tables.Finish(&plan);
    std::vector<SampleRow> samples(end - begin);
    for (size_t i = 0; i < samples.size(); ++i) {
      samples[i].target = ids[begin + i + 1];
      samples[i].num_top = 0;
    }
    const auto result = group->Step(plan, samples);
    ASSERT_TRUE(result.ok()) << result.status();
    for (size_t i = 0; i < samples.size(); ++i) {
      const double difference = std::fabs(result->logprobs[i].logprob - want[begin + i]);
      sum += difference;
      largest = std::max(largest, difference);
      mean += result->logprobs[i].logprob;
    }
  }
  const auto n = static_cast<double>(want.size());
  const double limit = GetParam().exact()                     ? 1e-3
                       : GetParam().kv_type == KvType::kFp8   ? 0.1
                       : GetParam().compute == Compute::kFp32 ? 0.03
                                                              : 0.05;
  const double transformers = std::accumulate(want.begin(), want.end(), 0.0) / n;
  std::printf(
      "%s: log-probabilities of %zu tokens: mean absolute difference %.2e (limit %.0e), largest %.2e, mean "
      "%.6f "
      "(transformers: %.6f)\n",
      GetParam().name().c_str(), want.size(), sum / n, limit, largest, mean / n, transformers);
  EXPECT_LT(sum / n, limit);
}

TEST_P(GoldenTest, GreedyAnswersAreTransformers) {
  if (GetParam().kv_type == KvType::kFp8) GTEST_SKIP() << "3 bits of mantissa are too few for that";
  auto cases = Data().reference["greedy"];
  if (IsSlow()) cases.erase(cases.begin() + 2, cases.end());
  const auto group = MakeGroup(1);
  ASSERT_NE(group, nullptr);
  TestTables tables = Tables();
  // All answers at once: a step for the prompt of each, then steps of one token each.
  std::vector<std::vector<int32_t>> want, got(cases.size());
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < cases.size(); ++i) {
    want.push_back(cases[i]["ids"].get<std::vector<int32_t>>());
    if (IsSlow()) want[i].resize(16);
    const auto prompt = cases[i]["prompt_ids"].get<std::vector<int32_t>>();
    StepPlan plan;
    AddRow(&plan, &tables, static_cast<uint32_t>(i), 0, prompt, false);
    tables.Finish(&plan);
    const auto result = group->Step(plan, std::vector<SampleRow>(1));
    ASSERT_TRUE(result.ok()) << result.status();
    got[i].push_back(result->ids[0]);
    lengths.push_back(static_cast<int64_t>(prompt.size()));
  }
  for (size_t g = 1; g < want[0].size(); ++g) {
    StepPlan plan;
    for (size_t i = 0; i < cases.size(); ++i) {
      // The first of these steps follows a prompt's: its ids are literals.
      const int32_t token = g == 1 ? got[i].back() : -1 - static_cast<int32_t>(i);
      AddRow(&plan, &tables, static_cast<uint32_t>(i), lengths[i]++, {token}, false);
    }
    tables.Finish(&plan);
    const auto result = group->Step(plan, std::vector<SampleRow>(cases.size()));
    ASSERT_TRUE(result.ok()) << result.status();
    for (size_t i = 0; i < cases.size(); ++i) got[i].push_back(result->ids[i]);
  }

  int equal = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    ASSERT_EQ(got[i].size(), want[i].size());
    const size_t at = std::mismatch(got[i].begin(), got[i].end(), want[i].begin()).first - got[i].begin();
    if (at == want[i].size()) {
      ++equal;
      continue;
    }
    const double gap = cases[i]["gaps"][at].get<double>();
    std::printf("%s: answer %zu parts at token %zu, where the reference's two best logits are %.4f apart\n",
                GetParam().name().c_str(), i, at, gap);
    if (GetParam().exact()) {
      ADD_FAILURE() << "answer " << i << ", token " << at << ": " << got[i][at]
                    << ", transformers: " << want[i][at];
    } else {
      // Codes of a cache move a log-probability by up to 0.7, rounding alone by 0.3.
      EXPECT_LT(gap, IsQuantised(GetParam().kv_type) ? 0.5 : 0.25) << "answer " << i << ", token " << at;
    }
  }
  std::printf("%s: %d of %zu greedy answers of %zu tokens are transformers'\n", GetParam().name().c_str(),
              equal, cases.size(), want[0].size());
}

TEST_P(GoldenTest, AnyNumberOfRanksGivesTheSameBits) {
  const auto ids = Data().reference["prompt_logprobs"]["ids"].get<std::vector<int32_t>>();
  const std::vector<int32_t> prompt(ids.begin(), ids.begin() + (IsSlow() ? 8 : 96));
  std::vector<float> alone;
  for (const int num_ranks : {1, 2, 3, 5}) {
    const auto group = MakeGroup(num_ranks);
    ASSERT_NE(group, nullptr);
    TestTables tables = Tables();
    std::vector<float> all, logits;
    StepPlan plan;
    AddRow(&plan, &tables, 0, 0, prompt, true);
    tables.Finish(&plan);
    auto result = group->Step(plan, std::vector<SampleRow>(prompt.size()), &all);
    ASSERT_TRUE(result.ok()) << result.status();
    int32_t reference = -static_cast<int32_t>(prompt.size());
    for (int i = 0; i < 4; ++i) {
      StepPlan decode;
      AddRow(&decode, &tables, 0, static_cast<int64_t>(prompt.size()) + i, {reference}, true);
      tables.Finish(&decode);
      result = group->Step(decode, std::vector<SampleRow>(1), &logits);
      ASSERT_TRUE(result.ok()) << result.status();
      all.insert(all.end(), logits.begin(), logits.end());
      reference = -1;
    }
    if (num_ranks == 1) alone = all;
    ASSERT_EQ(all.size(), alone.size());
    EXPECT_EQ(std::memcmp(all.data(), alone.data(), all.size() * sizeof(float)), 0) << num_ranks << " ranks";
  }
  std::printf("%s: %zu logits have the same bits on 1, 2, 3 and 5 ranks\n", GetParam().name().c_str(),
              alone.size());
}

INSTANTIATE_TEST_SUITE_P(SmolLM2, GoldenTest, testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace phalanx
