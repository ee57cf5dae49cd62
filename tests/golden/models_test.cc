// Tiny models of every class and file format against transformers in fp32 (tests/golden/models): logits of
// every position of a prompt, greedy tokens, the bits of quantised weights, and the same bits for every
// number of ranks. PHALANX_GOLDEN_MODELS names another folder, made by make_model_fixtures.py --seed.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "kernels/dequantize.h"
#include "tests/golden/model_references.h"
#include "tests/kernels/tested_rungs.h"
#include "tests/worker/test_group.h"
#include "worker/checkpoint.h"
#include "worker/weights.h"

namespace phalanx {
namespace {

constexpr int kBlockSize = 32;
constexpr int kNumBlocks = 64;
constexpr int kMaxTokens = 512;
constexpr double kMaxError = 1e-4;  // of a row: largest difference over largest logit
constexpr double kClearGap = 1e-3;  // greedy tokens nearer than this may differ

const std::vector<ModelReference>& References() {
  static const auto* const references = [] {
    const char* folder = std::getenv("PHALANX_GOLDEN_MODELS");
    return new std::vector<ModelReference>(
        ReadModelReferences(folder != nullptr ? folder : PHALANX_SOURCE_DIR "/tests/golden/models"));
  }();
  return *references;
}

struct Case {
  const ModelReference* reference;
  std::string path;
  std::string name() const {
    const std::string stem = std::filesystem::path(path).filename().string();
    return absl::StrReplaceAll(absl::StrCat(reference->name, "_", stem), {{".", "_"}, {"-", "_"}});
  }
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name(); }

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const ModelReference& reference : References()) {
    for (const std::string& path : reference.checkpoints) cases.push_back({&reference, path});
  }
  return cases;
}

// What a group says to all prompts of a reference, in one batch.
struct Answers {
  std::vector<float> logits;         // of the prompts, one after the other
  std::vector<float> decode_logits;  // of the steps after them
  std::vector<std::vector<int32_t>> greedy;
};

class ModelsTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    auto checkpoint = Checkpoint::Open(GetParam().path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
  }

  const ModelReference& reference() const { return *GetParam().reference; }

  static StepPlan AddRow(StepPlan plan, TestTables* tables, uint32_t sequence, uint32_t rope_mode,
                         size_t position, std::vector<int32_t> tokens) {
    tables->Grow(&plan, sequence, static_cast<int64_t>(position + tokens.size()));
    PlanRow row;
    row.sequence = sequence;
    row.rope_mode = rope_mode;
    row.first_position = static_cast<int32_t>(position);
    row.tokens = std::move(tokens);
    row.logit_offsets.resize(row.tokens.size());
    std::iota(row.logit_offsets.begin(), row.logit_offsets.end(), 0);
    plan.rows.push_back(std::move(row));
    return plan;
  }

  absl::StatusOr<Answers> Run(const std::string& rung, int num_ranks, int num_shards) const {
    TestGroupOptions options;
    options.num_ranks = num_ranks;
    options.num_shards = num_shards;
    options.ops = {.rung = rung, .compute = Compute::kFp32, .num_threads = 1};
    options.runner = {.max_tokens_per_step = kMaxTokens,
                      .max_logits_per_step = kMaxTokens,
                      .block_size = kBlockSize,
                      .kv_bytes = int64_t{1} << 28,
                      .max_kv_blocks = kNumBlocks};
    PHX_ASSIGN_OR_RETURN(const std::unique_ptr<TestGroup> group, TestGroup::Create(*checkpoint_, options));
    std::vector<int32_t> order(kNumBlocks);
    std::iota(order.begin(), order.end(), 0);
    std::swap(order[3], order[kNumBlocks - 2]);
    TestTables tables(kNumBlocks, kBlockSize, order);

    const std::vector<ReferencePrompt>& prompts = reference().prompts;
    Answers answers;
    answers.greedy.resize(prompts.size());
    StepPlan plan;
    size_t last = 0;
    for (size_t i = 0; i < prompts.size(); ++i) {
      plan =
          AddRow(std::move(plan), &tables, static_cast<uint32_t>(i), prompts[i].rope_mode, 0, prompts[i].ids);
      last += prompts[i].ids.size();
    }
    tables.Finish(&plan);
    PHX_ASSIGN_OR_RETURN(StepResult result, group->Step(plan, std::vector<SampleRow>(last), &answers.logits));
    std::vector<int32_t> next(prompts.size());
    last = 0;
    for (size_t i = 0; i < prompts.size(); ++i) {
      last += prompts[i].ids.size();
      next[i] = result.ids[last - 1];
    }
    while (true) {
      StepPlan step;
      std::vector<size_t> rows;
      for (size_t i = 0; i < prompts.size(); ++i) {
        std::vector<int32_t>& greedy = answers.greedy[i];
        if (greedy.size() == prompts[i].greedy.size()) continue;
        greedy.push_back(next[i]);
        if (greedy.size() == prompts[i].greedy.size()) continue;
        step = AddRow(std::move(step), &tables, static_cast<uint32_t>(i), prompts[i].rope_mode,
                      prompts[i].ids.size() + greedy.size() - 1, {next[i]});
        rows.push_back(i);
      }
      if (rows.empty()) return answers;
      tables.Finish(&step);
      std::vector<float> logits;
      PHX_ASSIGN_OR_RETURN(result, group->Step(step, std::vector<SampleRow>(rows.size()), &logits));
      answers.decode_logits.insert(answers.decode_logits.end(), logits.begin(), logits.end());
      for (size_t r = 0; r < rows.size(); ++r) next[rows[r]] = result.ids[r];
    }
  }

  // The largest error of a row; complains of greedy tokens that differ.
  double Compare(const Answers& answers, const std::string& who) const {
    const auto vocab = static_cast<size_t>(checkpoint_->config().vocab_size);
    double worst = 0;
    size_t at = 0;
    for (size_t i = 0; i < reference().prompts.size(); ++i) {
      const ReferencePrompt& prompt = reference().prompts[i];
      if (prompt.logits.size() != prompt.ids.size() * vocab) {
        ADD_FAILURE() << who << ": vocabulary of " << vocab;
        return 1;
      }
      for (size_t row = 0; row < prompt.ids.size(); ++row, at += vocab) {
        double difference = 0, largest = 0;
        for (size_t v = 0; v < vocab; ++v) {
          const double want = prompt.logits[row * vocab + v];
          const double off = std::fabs(answers.logits[at + v] - want);
          difference = std::isnan(off) ? HUGE_VAL : std::max(difference, off);
          largest = std::max(largest, std::fabs(want));
        }
        if (difference / largest > kMaxError && worst <= kMaxError) {
          ADD_FAILURE() << who << ": prompt " << prompt.name << ", position " << row << " is off by "
                        << difference / largest << " of the largest logit " << largest;
        }
        worst = std::max(worst, difference / largest);
      }
      const std::vector<int32_t>& got = answers.greedy[i];
      const size_t same = std::mismatch(got.begin(), got.end(), prompt.greedy.begin()).first - got.begin();
      if (same < got.size() && prompt.gaps[same] > kClearGap) {
        ADD_FAILURE() << who << ": prompt " << prompt.name << ", greedy token " << same << " is " << got[same]
                      << ", transformers: " << prompt.greedy[same] << " by " << prompt.gaps[same];
      }
    }
    return worst;
  }

  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_P(ModelsTest, LogitsAndGreedyTokensAreTransformersOnAnyNumberOfRanks) {
  for (const std::string& rung : TestedRungs()) {
    double worst = 0;
    std::string degrees;
    for (const int num_shards : {kDefaultShards, 2 * kDefaultShards}) {
      std::optional<Answers> alone;
      for (const int num_ranks : reference().degrees) {
        const bool fits = num_shards == kDefaultShards ? num_ranks <= num_shards : num_ranks > kDefaultShards;
        if (!fits) continue;
        if (!alone.has_value()) {
          absl::StatusOr<Answers> answers = Run(rung, 1, num_shards);
          ASSERT_TRUE(answers.ok()) << rung << ": " << answers.status();
          alone = *std::move(answers);
          worst = std::max(worst, Compare(*alone, absl::StrCat(rung, ", one rank")));
        }
        absl::StrAppend(&degrees, degrees.empty() ? "" : " ", num_ranks);
        if (num_ranks == 1) continue;
        const absl::StatusOr<Answers> answers = Run(rung, num_ranks, num_shards);
        ASSERT_TRUE(answers.ok()) << rung << ", " << num_ranks << " ranks: " << answers.status();
        const auto same_bits = [](const std::vector<float>& a, const std::vector<float>& b) {
          return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
        };
        EXPECT_TRUE(same_bits(answers->logits, alone->logits)) << rung << ", " << num_ranks << " ranks";
        EXPECT_TRUE(same_bits(answers->decode_logits, alone->decode_logits))
            << rung << ", " << num_ranks << " ranks";
      }
    }
    EXPECT_LE(worst, kMaxError) << rung;
    std::printf("%s, %s: off by %.1e of the largest logit (limit %.0e); same bits on %s ranks\n",
                GetParam().name().c_str(), rung.c_str(), worst, kMaxError, degrees.c_str());
  }
}

using QuantisedModelsTest = ModelsTest;

TEST_P(QuantisedModelsTest, WeightsHaveTheBitsOfTheFormat) {
  TensorFinder finder(*checkpoint_);
  finder.Allow("");
  int compared = 0;
  for (const ReferenceMatrix& matrix : reference().matrices) {
    if (matrix.checkpoint != GetParam().path) continue;
    WeightSource source;
    if (const StoredTensor* tensor = checkpoint_->FindTensor(matrix.tensor); tensor != nullptr) {
      ASSERT_TRUE(tensor->dtype.has_value()) << matrix.tensor << " is " << tensor->type;
      source = {.data = tensor->data, .dtype = *tensor->dtype, .rows = matrix.rows, .cols = matrix.cols};
    } else {
      source = finder.Matrix(matrix.tensor, matrix.rows, matrix.cols);
    }
    ASSERT_TRUE(finder.Finish().ok()) << finder.Finish();
    std::vector<float> got(matrix.values.size());
    // By rows, each cut in two inside a block.
    const int64_t cut = matrix.cols / 2 + 3;
    for (size_t row = 0; row * matrix.cols < got.size(); ++row) {
      float* out = got.data() + row * matrix.cols;
      DequantizeRow(source, static_cast<int64_t>(row), 0, cut, out);
      DequantizeRow(source, static_cast<int64_t>(row), cut, matrix.cols, out + cut);
    }
    EXPECT_EQ(std::memcmp(got.data(), matrix.values.data(), got.size() * sizeof(float)), 0)
        << matrix.tensor << ": differs from value "
        << std::mismatch(got.begin(), got.end(), matrix.values.begin()).first - got.begin() << " on";
    ++compared;
  }
  EXPECT_GT(compared, 0);
}

std::string NameOf(const testing::TestParamInfo<Case>& info) { return info.param.name(); }

std::vector<Case> QuantisedCases() {
  std::vector<Case> cases = Cases();
  std::erase_if(cases, [](const Case& c) { return c.reference->matrices.empty(); });
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Golden, ModelsTest, testing::ValuesIn(Cases()), NameOf);
INSTANTIATE_TEST_SUITE_P(Golden, QuantisedModelsTest, testing::ValuesIn(QuantisedCases()), NameOf);

}  // namespace
}  // namespace phalanx
