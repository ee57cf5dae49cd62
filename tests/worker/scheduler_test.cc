// Golden transcripts are in tests/worker/testdata/scheduler/: commands, and indented under each what it
// answered. PHALANX_REWRITE=1 writes the answers anew; the diff is what gets reviewed.
#include "worker/scheduler.h"

#include "worker/speculation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;

int64_t Int(absl::string_view text) {
  int64_t value = 0;
  if (!absl::SimpleAtoi(text, &value)) ADD_FAILURE() << "not a number: " << text;
  return value;
}

// "5", "5,6,9" or "5..9", joined by commas.
std::vector<int32_t> Ids(absl::string_view text) {
  std::vector<int32_t> ids;
  for (absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    const std::vector<absl::string_view> range = absl::StrSplit(part, "..");
    for (int64_t id = Int(range[0]); id <= Int(range.back()); ++id) ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

template <typename T>
std::string List(const std::vector<T>& values) {
  return absl::StrCat("[", absl::StrJoin(values, " "), "]");
}

std::string Name(uint64_t source, uint64_t request, uint32_t attempt) {
  return absl::StrCat(source, "/", request, attempt == 0 ? "" : absl::StrCat(" attempt ", attempt));
}

std::string Text(const TokenLogprobs& l) {
  std::string text = absl::StrCat(l.id, ":", l.logprob);
  for (const auto& [id, logprob] : l.top) absl::StrAppend(&text, " (", id, ":", logprob, ")");
  return text;
}

// Runs the commands of one transcript against a scheduler, with a follower's tables beside it.
class Transcript {
 public:
  // The lines that a command answers.
  std::vector<std::string> Run(absl::string_view line) {
    lines_.clear();
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    const std::vector<absl::string_view> args(words.begin() + 1, words.end());
    if (words[0] == "options") {
      Options(args);
    } else if (words[0] == "submit") {
      Submit(args);
    } else if (words[0] == "abort") {
      const std::pair<absl::string_view, absl::string_view> name = absl::StrSplit(args[0], '/');
      scheduler_->Abort(Int(name.first), Int(name.second));
    } else if (words[0] == "abort-source") {
      scheduler_->AbortSource(Int(args[0]));
    } else if (words[0] == "plan") {
      Plan();
    } else if (words[0] == "commit") {
      Commit(args);
    } else if (words[0] == "load") {
      const SchedulerLoad load = scheduler_->load();
      Say("blocks ", load.blocks_used, " running ", load.running, " queued ", load.queued,
          load.blocks_cached == 0 ? "" : absl::StrCat(" cached ", load.blocks_cached),
          load.prefix_hit_tokens == 0
              ? ""
              : absl::StrCat(" hits ", load.prefix_hit_tokens, "/", load.prefix_query_tokens),
          load.preemptions == 0 ? "" : absl::StrCat(" preemptions ", load.preemptions),
          load.drafted_tokens == 0
              ? ""
              : absl::StrCat(" accepted ", load.accepted_tokens, "/", load.drafted_tokens),
          scheduler_->idle() ? " idle" : "");
    } else {
      Say("unknown command");
    }
    if (const absl::Status status = scheduler_->CheckInvariants(); !status.ok())
      Say("INVARIANT ", status.message());
    return lines_;
  }

 private:
  template <typename... Parts>
  void Say(const Parts&... parts) {
    lines_.push_back(absl::StrCat("  ", parts...));
  }

  void Options(const std::vector<absl::string_view>& args) {
    SchedulerOptions o;
    o.num_blocks = 16;
    o.block_size = 4;
    o.context_length = 64;
    o.vocab_size = 100;
    o.num_rope_modes = 2;
    o.max_tokens_per_step = 8;
    o.max_sequences = 4;
    o.max_logits_per_step = 8;
    for (absl::string_view arg : args) {
      const std::pair<absl::string_view, absl::string_view> kv = absl::StrSplit(arg, '=');
      const int value = static_cast<int>(Int(kv.second));
      if (kv.first == "blocks")
        o.num_blocks = value;
      else if (kv.first == "context")
        o.context_length = value;
      else if (kv.first == "tokens")
        o.max_tokens_per_step = value;
      else if (kv.first == "sequences")
        o.max_sequences = value;
      else if (kv.first == "logits")
        o.max_logits_per_step = value;
      else if (kv.first == "guesses")
        o.max_guesses = value;
      else if (kv.first == "queued")
        o.max_queued = value;
      else
        Say("unknown option ", arg);
    }
    scheduler_ = std::make_unique<Scheduler>(o);
    tables_ = std::make_unique<BlockTables>(o.num_blocks);
  }

  void Submit(const std::vector<absl::string_view>& args) {
    SequenceRequest r;
    const std::pair<absl::string_view, absl::string_view> name = absl::StrSplit(args[0], '/');
    r.source = Int(name.first);
    r.request = Int(name.second);
    for (size_t i = 1; i < args.size(); ++i) {
      const std::pair<absl::string_view, absl::string_view> kv = absl::StrSplit(args[i], '=');
      if (kv.first == "attempt")
        r.attempt = static_cast<uint32_t>(Int(kv.second));
      else if (kv.first == "prompt")
        r.prompt = Ids(kv.second);
      else if (kv.first == "generated")
        r.generated = Ids(kv.second);
      else if (kv.first == "max")
        r.max_tokens = static_cast<int32_t>(Int(kv.second));
      else if (kv.first == "stop")
        r.stop_ids = Ids(kv.second);
      else if (kv.first == "logprobs")
        r.logprobs = static_cast<int32_t>(Int(kv.second));
      else if (kv.first == "prompt_logprobs")
        r.prompt_logprobs = static_cast<int32_t>(Int(kv.second));
      else if (kv.first == "rope")
        r.rope_mode = static_cast<uint32_t>(Int(kv.second));
      else if (kv.first == "priority")
        r.priority = static_cast<int32_t>(Int(kv.second));
      else if (kv.first == "salt")
        r.cache_salt = std::string(kv.second);
      else if (kv.first == "seed")
        r.sampling.seed = Int(kv.second);
      else if (kv.first == "top_k")
        r.sampling.top_k = static_cast<int32_t>(Int(kv.second));
      else if (kv.first == "top_p")
        r.sampling.top_p = std::stof(std::string(kv.second));
      else if (kv.first == "temperature")
        r.sampling.temperature = std::stof(std::string(kv.second));
      else
        Say("unknown field ", args[i]);
    }
    const absl::StatusOr<Admission> answer = scheduler_->Submit(std::move(r));
    if (!answer.ok()) {
      Say(absl::StatusCodeToString(answer.status().code()), ": ", answer.status().message());
    } else {
      Say(*answer == Admission::kAccepted ? "accepted" : "queued");
    }
  }

  void Plan() {
    if (planned_.size() == 2) return Say("WRONG: two steps are uncommitted");
    const std::optional<PlannedStep> planned = scheduler_->Plan();
    for (const Scheduler::Admitted& a : scheduler_->TakeAdmitted())
      Say("admitted ", Name(a.source, a.request, a.attempt));
    if (!planned) return Say("nothing to run");
    const StepPlan& plan = planned->plan;
    Say("step ", plan.step);
    if (!plan.released.empty()) Say("release ", List(plan.released));
    for (const PlanBlocks& b : plan.blocks)
      Say("blocks of ", b.sequence, " from ", b.first_index, " ", List(b.blocks));
    size_t next_sample = 0;
    for (const PlanRow& row : plan.rows) {
      Say("row of ", row.sequence, " at ", row.first_position, " ", List(row.tokens),
          row.rope_mode == 0 ? "" : absl::StrCat(" rope ", row.rope_mode));
      for (int32_t offset : row.logit_offsets) {
        const SampleRow& s = planned->samples[next_sample];
        Say("  logits ", next_sample++, " of ", row.first_position + offset, " for position ", s.position,
            s.target < 0 ? "" : absl::StrCat(" target ", s.target),
            s.num_top < 0 ? "" : absl::StrCat(" top ", s.num_top),
            s.seed == 0 ? "" : absl::StrCat(" seed ", s.seed));
      }
    }
    if (next_sample != planned->samples.size()) Say("WRONG: ", planned->samples.size(), " samples");
    if (const absl::Status status = tables_->Apply(plan); !status.ok()) Say("DIVERGED ", status.message());
    planned_.push_back(*planned);
  }

  // The arguments are the ids sampled, in order; rows with a target give it.
  void Commit(const std::vector<absl::string_view>& args) {
    if (planned_.empty()) return Say("WRONG: no step is planned");
    const PlannedStep planned = planned_.front();
    StepResult result;
    size_t next = 0;
    for (const SampleRow& s : planned.samples) {
      if (s.target < 0 && next == args.size()) return Say("WRONG: too few ids");
      result.ids.push_back(s.target >= 0 ? s.target : static_cast<int32_t>(Int(args[next++])));
      result.logprobs.emplace_back();
      if (s.num_top >= 0) {
        result.logprobs.back() = {result.ids.back(), -0.5f, {}};
        for (int i = 0; i < s.num_top; ++i)
          result.logprobs.back().top.push_back({i, -1.0f - static_cast<float>(i)});
      }
    }
    if (next != args.size()) return Say("WRONG: too many ids");
    planned_.erase(planned_.begin());
    for (const SequenceOutput& out : scheduler_->Commit(result)) {
      Say(Name(out.source, out.request, out.attempt), " offset ", out.offset, " tokens ", List(out.tokens),
          out.finish == Finish::kNone   ? ""
          : out.finish == Finish::kStop ? " finish stop"
                                        : " finish length",
          out.stop_id ? absl::StrCat(" ", *out.stop_id) : "",
          out.cached_prompt_tokens == 0 ? "" : absl::StrCat(" cached ", out.cached_prompt_tokens));
      for (const TokenLogprobs& l : out.logprobs) Say("  ", Text(l));
      for (size_t i = 0; i < out.prompt_logprobs.size(); ++i) {
        Say("  prompt ", out.prompt_first_position + i, " is ", Text(out.prompt_logprobs[i]));
      }
    }
  }

  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<BlockTables> tables_;
  std::vector<PlannedStep> planned_;
  std::vector<std::string> lines_;
};

const char kTranscripts[] = PHALANX_SOURCE_DIR "/tests/worker/testdata/scheduler";

std::vector<std::string> TranscriptNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kTranscripts)) {
    if (entry.path().extension() == ".txt") names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class SchedulerTranscript : public ::testing::TestWithParam<std::string> {};

TEST_P(SchedulerTranscript, AnswersAsWritten) {
  const std::string path = absl::StrCat(kTranscripts, "/", GetParam(), ".txt");
  std::stringstream file;
  file << std::ifstream(path).rdbuf();
  const std::string text = file.str();
  Transcript transcript;
  std::string expected, actual;
  int commands = 0;
  for (absl::string_view line : absl::StrSplit(absl::StripSuffix(text, "\n"), '\n')) {
    absl::StrAppend(&expected, line, "\n");
    if (absl::StartsWith(line, "  ")) continue;
    absl::StrAppend(&actual, line, "\n");
    if (line.empty() || line[0] == '#') continue;
    ++commands;
    for (const std::string& answer : transcript.Run(line)) absl::StrAppend(&actual, answer, "\n");
  }
  EXPECT_GT(commands, 0) << path;
  EXPECT_THAT(actual, ::testing::AllOf(
                          ::testing::Not(HasSubstr("  INVARIANT")), ::testing::Not(HasSubstr("  DIVERGED")),
                          ::testing::Not(HasSubstr("  WRONG")), ::testing::Not(HasSubstr("  unknown"))));
  if (std::getenv("PHALANX_REWRITE") != nullptr) {
    std::ofstream(path) << actual;
  } else {
    EXPECT_EQ(actual, expected) << "PHALANX_REWRITE=1 rewrites " << path;
  }
}

INSTANTIATE_TEST_SUITE_P(All, SchedulerTranscript, ::testing::ValuesIn(TranscriptNames()),
                         [](const auto& info) { return info.param; });

TEST(SchedulerOptions, ValidateNamesTheOption) {
  SchedulerOptions good;
  good.num_blocks = 8;
  good.context_length = 64;
  good.vocab_size = 100;
  EXPECT_TRUE(good.Validate().ok()) << good.Validate();
  EXPECT_THAT(std::string(SchedulerOptions().Validate().message()), HasSubstr("num_blocks is 0"));
  SchedulerOptions bad = good;
  bad.max_sequences = 129;
  EXPECT_THAT(std::string(bad.Validate().message()), HasSubstr("max_sequences is 129; it must be at most"));
  bad = good;
  bad.block_size = 0;
  EXPECT_THAT(std::string(bad.Validate().message()), HasSubstr("block_size is 0"));
  bad = good;
  bad.context_length = int64_t{1} << 31;
  EXPECT_THAT(std::string(bad.Validate().message()), HasSubstr("context_length is 2147483648"));
  bad = good;
  bad.max_queued = -1;
  EXPECT_THAT(std::string(bad.Validate().message()), HasSubstr("max_queued is -1"));
  EXPECT_DEATH(Scheduler{bad}, "max_queued is -1");
}

TEST(GuessNext, TakesWhatFollowedTheLongestMatch) {
  std::vector<int32_t> guess = {99};
  GuessNext({1, 2, 3, 4, 5}, {}, 4, &guess);
  EXPECT_THAT(guess, ::testing::IsEmpty());
  // One token alone is no match.
  GuessNext({1, 2, 3, 4}, {2}, 4, &guess);
  EXPECT_THAT(guess, ::testing::IsEmpty());
  GuessNext({1, 2, 3, 4, 5}, {1, 2}, 2, &guess);
  EXPECT_THAT(guess, ::testing::ElementsAre(3, 4));
  // The latest of two equal ones; the longer one of two.
  GuessNext({1, 2, 3, 1, 2, 4}, {1, 2}, 1, &guess);
  EXPECT_THAT(guess, ::testing::ElementsAre(4));
  GuessNext({9, 1, 2, 3, 1, 2, 4}, {9, 1, 2}, 1, &guess);
  EXPECT_THAT(guess, ::testing::ElementsAre(3));
  // A loop goes on.
  GuessNext({7, 8}, {7, 8, 7, 8}, 5, &guess);
  EXPECT_THAT(guess, ::testing::ElementsAre(7, 8, 7, 8, 7));
  GuessNext({5, 5, 5}, {}, 2, &guess);
  EXPECT_THAT(guess, ::testing::ElementsAre(5, 5));
  GuessNext({5}, {5}, 2, &guess);
  EXPECT_THAT(guess, ::testing::IsEmpty());
}

TEST(GuessRecord, GoesOnWhileHalfAreRight) {
  GuessRecord record;
  EXPECT_TRUE(record.pays());
  EXPECT_EQ(record.length(), 3);
  record.Verified(3, 3);
  EXPECT_EQ(record.length(), 6);
  record.Verified(6, 1);
  EXPECT_EQ(record.length(), 2);
  EXPECT_TRUE(record.pays());
  record.Verified(2, 0);
  EXPECT_FALSE(record.pays());
  for (int i = 0; i < 2; ++i) record.Observed(true);
  EXPECT_TRUE(record.pays());
}

TEST(CheckResult, NamesTheRow) {
  SampleRow plain, with_logprobs;
  with_logprobs.num_top = 0;
  EXPECT_TRUE(CheckResult({}, 10, {}).ok());
  EXPECT_TRUE(CheckResult({plain}, 10, {{9}, {}}).ok());
  EXPECT_TRUE(CheckResult({with_logprobs}, 10, {{0}, {TokenLogprobs{}}}).ok());
  const auto message = [](const absl::Status& status) { return std::string(status.message()); };
  EXPECT_THAT(message(CheckResult({plain}, 10, {})), HasSubstr("1 logits rows has 0 sampled ids"));
  EXPECT_THAT(message(CheckResult({plain, plain}, 10, {{1, 10}, {}})),
              HasSubstr("logits row 1 has the sampled id 10"));
  EXPECT_THAT(message(CheckResult({plain}, 10, {{-2}, {}})), HasSubstr("logits row 0 has the sampled id -2"));
  EXPECT_TRUE(CheckResult({plain}, 10, {{-1}, {}}).ok()) << "its sequence fails by itself";
  EXPECT_THAT(message(CheckResult({plain, with_logprobs}, 10, {{1, 2}, {}})),
              HasSubstr("row 1 has no log-prob"));
  EXPECT_THAT(message(CheckResult({plain}, 10, {{1}, {{}, {}}})), HasSubstr("has log-probabilities of 2"));
}

TEST(Scheduler, RefusesRequestsThatAStepCouldNotRun) {
  SchedulerOptions o;
  o.num_blocks = 4;
  o.block_size = 4;
  o.context_length = 32;
  o.vocab_size = 100;
  SequenceRequest good;
  good.prompt = {1, 2, 3};
  good.max_tokens = 4;
  const auto bias = [](std::vector<TokenBias> b) {
    return std::make_shared<const std::vector<TokenBias>>(std::move(b));
  };
  struct Case {
    const char* expected;
    std::function<void(SequenceRequest*)> spoil;
  };
  const Case cases[] = {
      {"prompt is empty", [](SequenceRequest* r) { r->prompt.clear(); }},
      {"max_tokens is -1", [](SequenceRequest* r) { r->max_tokens = -1; }},
      {"prompt has 32 tokens; with max_tokens 4 and a context of 32 it can have 31",
       [](SequenceRequest* r) { r->prompt.assign(32, 1); }},
      {"it can have 32", [](SequenceRequest* r) { r->prompt.assign(33, 1), r->max_tokens = 0; }},
      {"4 tokens are generated and max_tokens and context allow 4",
       [](SequenceRequest* r) { r->generated.assign(4, 1); }},
      {"hold the stop id 9",
       [](SequenceRequest* r) {
         r->generated = {8, 9, 7}, r->stop_ids = {50, 9};
       }},
      {"prompt[1] is 100; token ids are 0 to 99", [](SequenceRequest* r) { r->prompt[1] = 100; }},
      {"prompt[0] is -1", [](SequenceRequest* r) { r->prompt[0] = -1; }},
      {"generated[0] is -7", [](SequenceRequest* r) { r->generated = {-7}; }},
      {"temperature is -1", [](SequenceRequest* r) { r->sampling.temperature = -1; }},
      {"temperature is nan", [](SequenceRequest* r) { r->sampling.temperature = std::nanf(""); }},
      {"temperature is inf", [](SequenceRequest* r) { r->sampling.temperature = INFINITY; }},
      {"top_p is 0", [](SequenceRequest* r) { r->sampling.top_p = 0; }},
      {"top_p is 1.5", [](SequenceRequest* r) { r->sampling.top_p = 1.5; }},
      {"top_p is nan", [](SequenceRequest* r) { r->sampling.top_p = std::nanf(""); }},
      {"top_k is -1", [](SequenceRequest* r) { r->sampling.top_k = -1; }},
      {"logprobs is 21", [](SequenceRequest* r) { r->logprobs = 21; }},
      {"prompt_logprobs is -2", [](SequenceRequest* r) { r->prompt_logprobs = -2; }},
      {"min_tokens is -1; it must be 0 to max_tokens, which is 4",
       [](SequenceRequest* r) { r->min_tokens = -1; }},
      {"min_tokens is 5", [](SequenceRequest* r) { r->min_tokens = 5; }},
      {"hold the stop id 9",
       [](SequenceRequest* r) {
         r->generated = {9, 9}, r->stop_ids = {9}, r->min_tokens = 1;
       }},
      {"min_p is -0.5", [](SequenceRequest* r) { r->sampling.min_p = -0.5f; }},
      {"min_p is 1.5", [](SequenceRequest* r) { r->sampling.min_p = 1.5f; }},
      {"min_p is nan", [](SequenceRequest* r) { r->sampling.min_p = std::nanf(""); }},
      {"repetition_penalty is 0", [](SequenceRequest* r) { r->sampling.repetition_penalty = 0; }},
      {"repetition_penalty is -1", [](SequenceRequest* r) { r->sampling.repetition_penalty = -1; }},
      {"repetition_penalty is inf", [](SequenceRequest* r) { r->sampling.repetition_penalty = INFINITY; }},
      {"repetition_penalty is nan",
       [](SequenceRequest* r) { r->sampling.repetition_penalty = std::nanf(""); }},
      {"presence_penalty is 2.5", [](SequenceRequest* r) { r->sampling.presence_penalty = 2.5f; }},
      {"presence_penalty is nan", [](SequenceRequest* r) { r->sampling.presence_penalty = std::nanf(""); }},
      {"frequency_penalty is -2.5", [](SequenceRequest* r) { r->sampling.frequency_penalty = -2.5f; }},
      {"logit_bias is of token 100",
       [&](SequenceRequest* r) {
         r->sampling.bias = bias({{100, 1}});
       }},
      {"logit_bias is of token -1",
       [&](SequenceRequest* r) {
         r->sampling.bias = bias({{-1, 1}});
       }},
      {"logit_bias has token 7 after 7",
       [&](SequenceRequest* r) {
         r->sampling.bias = bias({{7, 1}, {7, 2}});
       }},
      {"logit_bias of token 7 is 100.5",
       [&](SequenceRequest* r) {
         r->sampling.bias = bias({{7, 100.5f}});
       }},
      {"logit_bias of token 7 is nan",
       [&](SequenceRequest* r) {
         r->sampling.bias = bias({{7, std::nanf("")}});
       }},
      {"logit_bias has 1025 tokens",
       [&](SequenceRequest* r) { r->sampling.bias = bias(std::vector<TokenBias>(1025)); }},
      {"thinking.max_tokens is -1",
       [](SequenceRequest* r) {
         r->thinking = ThinkingBudget{-1, "", {}};
       }},
      {"cache_salt has 257 bytes; it can have 256",
       [](SequenceRequest* r) { r->cache_salt.assign(257, 'x'); }},
      {"rope_mode is 1; the model has 1", [](SequenceRequest* r) { r->rope_mode = 1; }},
  };
  SequenceRequest thinks = good;
  thinks.thinking = ThinkingBudget{5, "", {{"think", {1}}}};
  Scheduler scheduler(o);
  EXPECT_EQ(scheduler.Submit(thinks).status().code(), absl::StatusCode::kFailedPrecondition)
      << "no tokenizer";
  for (const Case& c : cases) {
    SequenceRequest request = good;
    c.spoil(&request);
    const absl::StatusOr<Admission> answer = scheduler.Submit(request);
    EXPECT_EQ(answer.status().code(), absl::StatusCode::kInvalidArgument) << c.expected;
    EXPECT_THAT(std::string(answer.status().message()), HasSubstr(c.expected));
  }
  EXPECT_TRUE(scheduler.idle());
  EXPECT_TRUE(scheduler.Submit(good).ok());
}

}  // namespace
}  // namespace phalanx
