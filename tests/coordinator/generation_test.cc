#include "coordinator/generation.h"

#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/text/detokenizer.h"
#include "tests/coordinator/transcript.h"

namespace phalanx::coordinator {
namespace {

// Tokens 0..255 are the bytes, 256.. are a few longer ones, the last is a control token.
const TokenBytes& Table() {
  static const TokenBytes& table = *[] {
    auto* t = new TokenBytes;
    for (int i = 0; i < 256; ++i) t->bytes.push_back(std::string(1, static_cast<char>(i)));
    for (const char* word :
         {"hello", " world", "STOP", "ST", "OP now", "\xe2\x82", "<end>", "<think>", "</think>"})
      t->bytes.push_back(word);
    t->is_control.assign(t->bytes.size(), false);
    for (const size_t control : {262, 263, 264}) t->is_control[control] = true;
    return t;
  }();
  return table;
}
constexpr const char* kNames[] = {"hello", "world", "STOP", "ST", "OP", "euro2", "end", "think", "/think"};

// Commands: new [stop=A,B] [max=] [min=] [logprobs=] [prompt-logprobs=] [text=no]
// [split=yes] [opened=FAMILY]; attempt; scheduled;
// out [offset=] [ids=] [finish=stop|length] [stop-id=] [attempt=] [logprobs=N] [prompt=N]; at SECONDS; usage.
// ids: numbers, or the names above.
class GenerationDriver {
 public:
  std::string Execute(const Command& c) {
    const std::string& verb = c.words.at(0);
    if (verb == "at") {
      now_ = std::stod(c.words.at(1));
    } else if (verb == "new") {
      Sampling sampling;
      sampling.max_tokens = static_cast<int32_t>(c.Number("max", 100));
      sampling.min_tokens = static_cast<int32_t>(c.Number("min"));
      sampling.logprobs = static_cast<int32_t>(c.Number("logprobs", -1));
      sampling.prompt_logprobs = static_cast<int32_t>(c.Number("prompt-logprobs", -1));
      std::istringstream stops(c.Arg("stop"));
      for (std::string stop; std::getline(stops, stop, ',');) sampling.stop.push_back(stop);
      TokenLog log(sampling, 0);
      log.BeginAttempt("f");
      Generation::Text text;
      if (c.Arg("text") != "no") {
        text.tokens = std::shared_ptr<const TokenBytes>(std::shared_ptr<void>(), &Table());
      }
      text.split_reasoning = c.Arg("split") == "yes";
      text.opened = FindReasoningFamily(c.Arg("opened"));
      generation_ = std::make_unique<Generation>(std::move(log), 5, std::move(text), now_);
      next_ = 0;
    } else if (verb == "attempt") {
      return absl::StrCat("attempt ", generation_->log().BeginAttempt("g"), "\n");
    } else if (verb == "scheduled") {
      generation_->OnScheduled(now_);
    } else if (verb == "usage") {
      const Generation::Usage u = generation_->usage(now_);
      return absl::StrCat("prompt ", u.prompt_tokens, " completion ", u.completion_tokens, " queue ",
                          u.queue_seconds, " first ", u.time_to_first_token_seconds, " total ",
                          u.total_seconds, u.reasoning_tokens > 0 ? " reasoning " : "",
                          u.reasoning_tokens > 0 ? absl::StrCat(u.reasoning_tokens) : "", "\n");
    } else if (verb == "out") {
      return Output(c);
    } else {
      ADD_FAILURE() << "unknown command " << verb;
    }
    return "";
  }

 private:
  std::string Output(const Command& c) {
    SequenceOutput out;
    std::istringstream ids(c.Arg("ids"));
    for (std::string id; std::getline(ids, id, ',');) {
      const auto* name = std::find(std::begin(kNames), std::end(kNames), id);
      out.token_ids.push_back(
          name == std::end(kNames) ? std::stoi(id) : 256 + static_cast<int32_t>(name - std::begin(kNames)));
    }
    out.attempt = static_cast<uint32_t>(c.Number("attempt", generation_->log().attempt()));
    out.offset = static_cast<int32_t>(c.Number("offset", next_));
    next_ = out.offset + static_cast<int32_t>(out.token_ids.size());
    for (int64_t i = 0; i < c.Number("logprobs"); ++i) {
      out.logprobs.push_back({{static_cast<int32_t>(i), -1.0f * static_cast<float>(i)}, {}});
    }
    out.prompt_first_position = 1;
    out.prompt_logprobs.resize(static_cast<size_t>(c.Number("prompt")));
    if (c.Arg("finish") == "stop") out.finish = FinishReason::kStop;
    if (c.Arg("finish") == "length") out.finish = FinishReason::kLength;
    if (c.args.contains("stop-id")) out.stop_token_id = static_cast<int32_t>(c.Number("stop-id"));
    Told told;
    const absl::Status status = generation_->OnOutput(std::move(out), now_, &told);
    if (!status.ok()) return status.ToString() + "\n";
    std::string shown;
    if (!told.prompt_logprobs.empty()) {
      absl::StrAppend(&shown, "prompt logprobs from ", told.prompt_first_position, ": ",
                      told.prompt_logprobs.size(), "\n");
    }
    if (told.has_chunk()) {
      absl::StrAppend(&shown, "chunk ", told.offset, ": [", absl::StrJoin(told.token_ids, " "), "] '",
                      told.text, "'");
      if (!told.reasoning.empty()) absl::StrAppend(&shown, " reasoning '", told.reasoning, "'");
      if (!told.logprobs.empty()) absl::StrAppend(&shown, " ", told.logprobs.size(), " logprobs");
      shown += "\n";
    }
    if (told.finish != FinishReason::kNone) {
      absl::StrAppend(&shown, "finished: ", told.finish == FinishReason::kStop ? "stop" : "length");
      if (!told.matched_stop.empty()) absl::StrAppend(&shown, " '", told.matched_stop, "'");
      if (told.matched_stop_id) absl::StrAppend(&shown, " id ", *told.matched_stop_id);
      absl::StrAppend(&shown, generation_->wants_abort() ? ", abort" : "", ", log ",
                      generation_->log().ids().size(), "\n");
    }
    return shown;
  }

  std::unique_ptr<Generation> generation_;
  double now_ = 0;
  int32_t next_ = 0;
};

// However a text is cut into tokens and steps, the same is told.
TEST(Generation, SplitsReasoningOverRandomCuts) {
  const std::string text =
      "\n<think>Because \xe2\x82\xac </thin and <b>.</think>\n\nSo: 4\xe2\x82\xac STOP it";
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    auto table = std::make_shared<TokenBytes>();
    for (size_t at = 0; at < text.size();) {
      const size_t size = 1 + random() % 9;
      table->bytes.push_back(text.substr(at, size));
      at += size;
    }
    const auto size = static_cast<int32_t>(table->bytes.size());
    table->is_control.assign(table->bytes.size(), false);
    Sampling sampling;
    sampling.max_tokens = size;
    sampling.stop = {"STOP", "Because"};  // the second is only in the reasoning
    TokenLog log(sampling, 0);
    log.BeginAttempt("f");
    Generation generation(std::move(log), 1, {table, true, nullptr}, 0);
    std::string reasoning, answer;
    FinishReason finish = FinishReason::kNone;
    for (int32_t at = 0; at < size && finish == FinishReason::kNone;) {
      SequenceOutput output;
      output.attempt = 1;
      output.offset = at;
      for (auto n = static_cast<int32_t>(random() % 4); n >= 0 && at < size; --n)
        output.token_ids.push_back(at++);
      if (at == size) output.finish = FinishReason::kLength;
      Told told;
      ASSERT_TRUE(generation.OnOutput(output, 0, &told).ok());
      EXPECT_TRUE(told.reasoning.empty() || answer.empty()) << "reasoning after the answer";
      reasoning += told.reasoning;
      answer += told.text;
      finish = told.finish;
    }
    EXPECT_EQ(reasoning, "Because \xe2\x82\xac </thin and <b>.");
    EXPECT_EQ(answer, "\n\nSo: 4\xe2\x82\xac ");
    EXPECT_EQ(finish, FinishReason::kStop);
    EXPECT_GT(generation.usage(0).reasoning_tokens, 0);
    EXPECT_LT(generation.usage(0).reasoning_tokens, size);
  }
}

TEST(Generation, Transcripts) { RunTranscripts<GenerationDriver>("generation"); }

}  // namespace
}  // namespace phalanx::coordinator
