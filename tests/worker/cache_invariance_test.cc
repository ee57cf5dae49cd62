// What the scheduler may do to a sequence changes no bit of its tokens and log-probabilities: a beginning
// from the prefix cache, preemption, guesses, and any number of ranks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/kernels/tested_rungs.h"
#include "tests/worker/test_group.h"
#include "tests/worker/tiny_classes.h"
#include "tests/worker/tiny_model.h"
#include "worker/scheduler.h"

namespace phalanx {
namespace {

constexpr int kBlock = 16;
constexpr int kContext = 400;

struct Said {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs, prompt_logprobs;
  Finish finish = Finish::kNone;
  bool operator==(const Said&) const = default;
};

void PrintTo(const Said& s, std::ostream* out) {
  for (size_t i = 0; i < s.tokens.size(); ++i) *out << s.tokens[i] << ":" << s.logprobs[i] << " ";
  *out << "and " << s.prompt_logprobs.size() << " of the prompt";
}

// A scheduler and the ranks that run its plans.
class Served {
 public:
  Served(const Checkpoint& file, const OpsOptions& ops, int num_ranks, int64_t num_blocks,
         int max_guesses = 0) {
    TestGroupOptions o;
    o.num_ranks = num_ranks;
    o.ops = ops;
    o.runner = {.max_tokens_per_step = 64,
                .max_logits_per_step = 32,
                .context_length = kContext,
                .block_size = kBlock,
                .kv_bytes = int64_t{1} << 28,
                .max_kv_blocks = num_blocks};
    auto group = TestGroup::Create(file, o);
    PHX_CHECK(group.ok(), group.status().ToString());
    group_ = *std::move(group);
    SchedulerOptions s;
    s.num_blocks = group_->runner(0).num_kv_blocks();
    s.block_size = kBlock;
    s.context_length = kContext;
    s.vocab_size = group_->config().vocab_size;
    s.max_tokens_per_step = 64;
    s.max_logits_per_step = 32;
    s.max_sequences = 8;
    s.max_guesses = max_guesses;
    s.max_guessing = 8;
    scheduler_ = std::make_unique<Scheduler>(s);
  }

  // All at once, each step planned before the one before it is committed.
  std::map<uint64_t, Said> Run(const std::vector<SequenceRequest>& requests) {
    for (const SequenceRequest& r : requests) EXPECT_TRUE(scheduler_->Submit(r).ok());
    std::map<uint64_t, Said> all;
    std::optional<PlannedStep> current = scheduler_->Plan();
    while (current) {
      std::optional<PlannedStep> next = scheduler_->Plan();
      const absl::StatusOr<StepResult> result = group_->Step(current->plan, current->samples);
      PHX_CHECK(result.ok(), result.status().ToString());
      for (const SequenceOutput& out : scheduler_->Commit(*result)) {
        Said& said = all[out.request];
        EXPECT_EQ(out.offset, static_cast<int32_t>(said.tokens.size()));
        said.tokens.insert(said.tokens.end(), out.tokens.begin(), out.tokens.end());
        for (const TokenLogprobs& l : out.logprobs) said.logprobs.push_back(l.logprob);
        for (const TokenLogprobs& l : out.prompt_logprobs) said.prompt_logprobs.push_back(l.logprob);
        said.finish = out.finish;
      }
      EXPECT_TRUE(scheduler_->CheckInvariants().ok()) << scheduler_->CheckInvariants();
      current = next ? std::move(next) : scheduler_->Plan();
    }
    EXPECT_TRUE(scheduler_->idle());
    return all;
  }
  SchedulerLoad load() const { return scheduler_->load(); }

 private:
  std::unique_ptr<TestGroup> group_;
  std::unique_ptr<Scheduler> scheduler_;
};

// Some have a long beginning in common, one over a border of attention chunks; sampled with all that state
// there is in a sequence.
std::vector<SequenceRequest> Requests(int vocab, int num_rope_modes) {
  std::vector<SequenceRequest> requests;
  for (uint64_t i = 1; i <= 7; ++i) {
    SequenceRequest r;
    r.request = i;
    const uint64_t common = i % 3 == 0 ? 0 : i == 7 ? kAttentionChunk + 10 : 40;
    for (uint64_t j = 0; j < common; ++j) r.prompt.push_back(static_cast<int32_t>((j * j * 29 + 5) % vocab));
    for (uint64_t j = 0; j < 1 + i * 5; ++j) {
      r.prompt.push_back(static_cast<int32_t>((j * 31 + i * 7) % vocab));
    }
    r.max_tokens = 45;
    r.sampling.temperature = i % 2 == 0 ? 0.0f : 0.8f;
    r.sampling.seed = i;
    r.sampling.repetition_penalty = i % 3 == 1 ? 1.2f : 1.0f;
    // One says the same again and again, one draws between two tokens: there is something to guess.
    const auto only = [](std::vector<TokenBias> bias) {
      return std::make_shared<const std::vector<TokenBias>>(std::move(bias));
    };
    if (i == 2) r.sampling.bias = only({{3, 100}});
    if (i == 3) r.sampling.bias = only({{3, 60}, {4, 60}});
    r.logprobs = 0;
    r.prompt_logprobs = i == 5 ? 0 : -1;
    r.priority = static_cast<int32_t>(i % 2);
    r.rope_mode = static_cast<uint32_t>(i == 4 && num_rope_modes > 1);
    requests.push_back(r);
  }
  return requests;
}

void ExpectInvariant(const Checkpoint& file, const std::string& rung, Compute compute = Compute::kFast,
                     KvType kv_type = KvType::kAuto) {
  const OpsOptions ops = {.rung = rung, .compute = compute, .num_threads = 1, .kv_type = kv_type};
  std::vector<SequenceRequest> requests =
      Requests(file.config().vocab_size, static_cast<int>(file.config().rope.size()));
  std::map<uint64_t, Said> want;
  for (const SequenceRequest& r : requests) {
    Served alone(file, ops, 1, 200);
    want[r.request] = alone.Run({r}).at(r.request);
    EXPECT_EQ(alone.load().prefix_hit_tokens, 0u);
    EXPECT_EQ(want[r.request].tokens.size(), 45u);
  }
  for (const int ranks : {1, 2, 3}) {
    SCOPED_TRACE(absl::StrCat(ranks, " ranks"));
    Served roomy(file, ops, ranks, 200);
    EXPECT_EQ(roomy.Run(requests), want);
    const uint64_t first = roomy.load().prefix_hit_tokens;
    EXPECT_EQ(roomy.Run(requests), want) << "from the cache";
    EXPECT_GT(roomy.load().prefix_hit_tokens, first + 100);
    EXPECT_EQ(roomy.load().preemptions, 0u);
    // The longest alone needs 20.
    Served tight(file, ops, ranks, 22);
    EXPECT_EQ(tight.Run(requests), want);
    EXPECT_GT(tight.load().preemptions, 0u);
    EXPECT_EQ(tight.Run(requests), want);
    EXPECT_GT(tight.load().prefix_hit_tokens, 0u);
    EXPECT_EQ(tight.load().blocks_used, 0);
    Served guessing(file, ops, ranks, 24, /*max_guesses=*/5);
    EXPECT_EQ(guessing.Run(requests), want);
    EXPECT_GT(guessing.load().accepted_tokens, 5u);
    EXPECT_GT(guessing.load().drafted_tokens, guessing.load().accepted_tokens);
  }
}

class CacheInvariance : public testing::TestWithParam<std::string> {};

TEST_P(CacheInvariance, OfLlama) { ExpectInvariant(*OpenTinyModel(TinyModelOptions()), GetParam()); }

TEST_P(CacheInvariance, OfLlamaInFp32) {
  if (!RepeatsOn(GetParam())) GTEST_SKIP() << "the best rung is enough under a sanitizer";
  ExpectInvariant(*OpenTinyModel(TinyModelOptions()), GetParam(), Compute::kFp32);
}

// The rungs take turns: what holds a cache's blocks knows nothing of what is in them.
TEST_P(CacheInvariance, OfLlamaWithQuantisedKv) {
  if (!RepeatsOn(GetParam())) GTEST_SKIP() << "the best rung is enough under a sanitizer";
  const bool fp8 = GetParam() == "reference" || GetParam() == "avx512";
  ExpectInvariant(*OpenTinyModel(TinyModelOptions()), GetParam(), Compute::kFast,
                  fp8 ? KvType::kFp8 : KvType::kInt8);
}

TEST_P(CacheInvariance, OfDeepseek) { ExpectInvariant(*TinyDeepseek({}), GetParam()); }

INSTANTIATE_TEST_SUITE_P(Rungs, CacheInvariance, testing::ValuesIn(TestedRungs()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace phalanx
