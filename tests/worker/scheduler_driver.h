// Runs requests through a scheduler and whatever stands for the model, with each step planned before the one
// before it is committed, or not.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/check.h"
#include "base/token_bytes.h"
#include "worker/scheduler.h"

namespace phalanx {

struct DrivenRequest {
  std::vector<int32_t> tokens;  // the whole log, what `generated` gave included
  std::vector<size_t> forced;   // indices in it
  Finish finish = Finish::kNone;
  std::optional<int32_t> stop_id;
  absl::Status error;
  bool operator==(const DrivenRequest&) const = default;
};

inline void PrintTo(const DrivenRequest& r, std::ostream* out) {
  *out << r.tokens.size() << " tokens:";
  for (int32_t id : r.tokens) *out << " " << id;
  *out << "; forced:";
  for (size_t i : r.forced) *out << " " << i;
  *out << "; finish " << static_cast<int>(r.finish) << " " << r.error;
}

using StepFunction = std::function<absl::StatusOr<StepResult>(const PlannedStep& step)>;

// By request. Every request must be accepted or queued.
inline std::map<uint64_t, DrivenRequest> Drive(const SchedulerOptions& options,
                                               const std::vector<SequenceRequest>& requests, bool ahead,
                                               const StepFunction& run) {
  Scheduler scheduler(options);
  std::map<uint64_t, DrivenRequest> all;
  std::map<uint64_t, size_t> num_prompt;
  std::map<uint32_t, uint64_t>
      request_of;  // by the sequence's id in plans: ids are given in order of admission
  for (const SequenceRequest& r : requests) {
    const absl::StatusOr<Admission> answer = scheduler.Submit(r);
    PHX_CHECK(answer.ok(), answer.status().ToString());
    PHX_CHECK(*answer == Admission::kAccepted, "the test's group has room for all");
    request_of[static_cast<uint32_t>(request_of.size() + 1)] = r.request;
    all[r.request].tokens = r.generated;
    num_prompt[r.request] = r.prompt.size();
  }
  const auto plan = [&] {
    std::optional<PlannedStep> step = scheduler.Plan();
    if (!step) return step;
    size_t next = 0;
    for (const PlanRow& row : step->plan.rows) {
      const uint64_t request = request_of.at(row.sequence);
      for (size_t i = 0; i < row.logit_offsets.size(); ++i) {
        const SampleRow& sample = step->samples[next++];
        if (sample.target >= 0) all[request].forced.push_back(sample.position - num_prompt[request]);
      }
    }
    return step;
  };
  std::optional<PlannedStep> current = plan();
  while (current) {
    std::optional<PlannedStep> next;
    if (ahead) next = plan();
    const absl::StatusOr<StepResult> result = run(*current);
    PHX_CHECK(result.ok(), result.status().ToString());
    const absl::Status good = CheckResult(current->samples, options.vocab_size, *result);
    PHX_CHECK(good.ok(), good.ToString());
    for (const SequenceOutput& out : scheduler.Commit(*result)) {
      DrivenRequest& said = all[out.request];
      EXPECT_EQ(out.offset, static_cast<int32_t>(said.tokens.size()));
      EXPECT_EQ(said.finish, Finish::kNone);
      EXPECT_TRUE(said.error.ok()) << "output after a failure";
      EXPECT_TRUE(out.error.ok() || (out.tokens.empty() && out.finish == Finish::kNone));
      said.tokens.insert(said.tokens.end(), out.tokens.begin(), out.tokens.end());
      said.finish = out.finish;
      said.stop_id = out.stop_id;
      said.error = out.error;
    }
    EXPECT_TRUE(scheduler.CheckInvariants().ok()) << scheduler.CheckInvariants();
    current = ahead ? std::move(next) : plan();
    // Nothing could be planned ahead of the last token; there may be more after it.
    if (!current) current = plan();
  }
  EXPECT_TRUE(scheduler.idle());
  EXPECT_EQ(scheduler.load().blocks_used, 0);
  // A forced token that was planned and then discarded was not said.
  for (auto& [request, said] : all) {
    const size_t num_said = said.tokens.size();
    std::erase_if(said.forced, [num_said](size_t index) { return index >= num_said; });
  }
  return all;
}

// Tokens in square brackets are control tokens; `num_fillers` of two letters follow.
inline std::shared_ptr<const TokenBytes> MakeTokenBytes(std::initializer_list<std::string_view> texts,
                                                        int num_fillers) {
  auto tokens = std::make_shared<TokenBytes>();
  for (std::string_view text : texts) {
    const bool control = text.size() > 1 && text.front() == '[';
    tokens->bytes.emplace_back(control ? text.substr(1, text.size() - 2) : text);
    tokens->is_control.push_back(control);
  }
  for (int i = 0; i < num_fillers; ++i) {
    tokens->bytes.push_back({static_cast<char>('a' + i / 26), static_cast<char>('a' + i % 26)});
    tokens->is_control.push_back(false);
  }
  return tokens;
}

inline int32_t IdOf(const TokenBytes& tokens, std::string_view text) {
  for (size_t id = 0; id < tokens.bytes.size(); ++id) {
    if (tokens.bytes[id] == text) return static_cast<int32_t>(id);
  }
  PHX_CHECK(false, std::string(text));
  return -1;
}

inline std::vector<int32_t> IdsOf(const TokenBytes& tokens, const std::vector<std::string_view>& texts) {
  std::vector<int32_t> ids;
  for (std::string_view text : texts) ids.push_back(IdOf(tokens, text));
  return ids;
}

}  // namespace phalanx
