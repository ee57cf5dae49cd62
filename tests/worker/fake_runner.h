// A StepRunner without a model: its KV cache holds the tokens themselves, and the id sampled after a sequence
// is a hash of all its tokens, read back through the block tables. So any wrong block, position, reference or
// order of steps changes tokens, and GenerateAlone says what a sequence must give whatever runs beside it.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/step_runner.h"

namespace phalanx {

inline uint64_t HashToken(uint64_t state, uint64_t token) {
  state = (state ^ token) * 0x9e3779b97f4a7c15u;
  return state ^ (state >> 29);
}

// What the fake model says after a context: a hash of it and of all that a row's choice reads, past the
// banned ids; -1 where all are banned. With top_k 3 it mostly repeats itself.
inline int32_t FakeSample(uint64_t context, const SampleRow& row, int64_t vocab_size) {
  if (row.target >= 0) return row.target;
  uint64_t draw = HashToken(HashToken(HashToken(context, row.seed), row.choice), row.position);
  if (row.top_k == 3 && draw % 8 != 0) draw = row.position % 3;
  if (row.counts != nullptr) {
    for (const TokenCounts::Entry& e : row.counts->entries()) {
      draw = HashToken(HashToken(draw, static_cast<uint64_t>(e.id)), static_cast<uint64_t>(e.num_output));
    }
  }
  for (int64_t i = 0; i < vocab_size; ++i) {
    const auto id =
        static_cast<int32_t>((draw + static_cast<uint64_t>(i)) % static_cast<uint64_t>(vocab_size));
    const auto bans = [id](const auto& ids) {
      return ids != nullptr && std::count(ids->begin(), ids->end(), id) > 0;
    };
    if (!bans(row.banned[0]) && !bans(row.banned[1])) return id;
  }
  return -1;
}

inline TokenLogprobs FakeLogprobs(uint64_t context, const SampleRow& row, int32_t id) {
  TokenLogprobs out{id, -static_cast<float>(HashToken(context, static_cast<uint64_t>(id)) % 1000) / 100, {}};
  for (int i = 0; i < row.num_top; ++i) out.top.push_back({i, -static_cast<float>(i)});
  return out;
}

// The tokens a request without a thinking budget generates, from a plain loop.
inline std::vector<int32_t> GenerateAlone(const SequenceRequest& r, int64_t context_length,
                                          int64_t vocab_size) {
  uint64_t context = 0;
  for (int32_t t : r.prompt) context = HashToken(context, t);
  std::vector<int32_t> generated;
  SampleRow row = r.sampling;
  row.target = -1;
  row.position = r.prompt.size();
  const auto counts = std::make_shared<TokenCounts>(vocab_size);
  if (row.has_penalties()) row.counts = counts;
  if (row.repetition_penalty != 1) {
    for (int32_t id : r.prompt) counts->AddPrompt(id);
  }
  const auto stop_ids = std::make_shared<const std::vector<int32_t>>(r.stop_ids);
  while (static_cast<int32_t>(generated.size()) < r.max_tokens &&
         static_cast<int64_t>(row.position) < context_length) {
    const bool may_stop = static_cast<int32_t>(generated.size()) >= r.min_tokens;
    row.banned[0] = may_stop ? nullptr : stop_ids;
    generated.push_back(FakeSample(context, row, vocab_size));
    counts->AddOutput(generated.back());
    if (may_stop && std::count(r.stop_ids.begin(), r.stop_ids.end(), generated.back()) > 0) break;
    context = HashToken(context, generated.back());
    ++row.position;
  }
  return generated;
}

class FakeRunner : public StepRunner {
 public:
  explicit FakeRunner(const SchedulerOptions& options)
      : options_(options),
        tables_(options.num_blocks),
        kv_(options.num_blocks * options.block_size, kUnwritten) {}

  absl::Status Launch(const StepPlan& plan) override {
    if (plan.step != ++step_)
      return absl::InternalError(absl::StrCat("step ", plan.step, " after ", step_ - 1));
    if (plan.num_tokens() > options_.max_tokens_per_step ||
        plan.num_logits() > options_.max_logits_per_step) {
      return absl::InternalError(absl::StrCat("step ", plan.step, " is too large"));
    }
    PHX_RETURN_IF_ERROR(tables_.Apply(plan));
    contexts_.clear();
    positions_.clear();
    for (const PlanRow& row : plan.rows) PHX_RETURN_IF_ERROR(RunRow(row));
    return absl::OkStatus();
  }

  absl::StatusOr<StepResult> Sample(const std::vector<SampleRow>& samples) override {
    if (samples.size() != contexts_.size()) return absl::InternalError("wrong number of samples");
    StepResult result;
    bool any = false;
    for (size_t i = 0; i < samples.size(); ++i) {
      if (samples[i].position != positions_[i] + 1)
        return absl::InternalError("a sample has a wrong position");
      const bool none = samples[i].seed == broken_seed && samples[i].position == broken_position;
      result.ids.push_back(none ? -1 : FakeSample(contexts_[i], samples[i], options_.vocab_size));
      result.logprobs.emplace_back();
      if (samples[i].num_top >= 0)
        result.logprobs.back() = FakeLogprobs(contexts_[i], samples[i], result.ids[i]);
      any |= samples[i].num_top >= 0;
    }
    if (!any) result.logprobs.clear();
    sampled_ = result.ids;
    return result;
  }

  absl::Status ShareSampled() override {
    previous_ = std::move(sampled_);
    sampled_.clear();
    return absl::OkStatus();
  }

  // The logits for this position of the sequences with this seed hold a NaN.
  uint64_t broken_seed = 0, broken_position = 0;

 protected:
  std::vector<int32_t> sampled_;    // by this step; a follower's subclass gets them from the leader
  std::vector<uint64_t> contexts_;  // [num_logits] of the last Launch

 private:
  static constexpr int32_t kUnwritten = -1;

  absl::Status RunRow(const PlanRow& row) {
    const std::vector<int32_t>& table = *tables_.Find(row.sequence);
    size_t next_logit = 0;
    for (size_t i = 0; i < row.tokens.size(); ++i) {
      const size_t position = row.first_position + i;
      int32_t token = row.tokens[i];
      if (token < 0) {
        const size_t logit = -1 - int64_t{token};
        if (logit >= previous_.size())
          return absl::InternalError(absl::StrCat("no logits row ", logit, " before"));
        token = std::max(previous_[logit], 0);  // of a sequence without logits: its end is not known yet
      }
      if (position / options_.block_size >= table.size())
        return absl::InternalError("a position has no block");
      if (tables_.holders(table[position / options_.block_size]) > 1) {
        return absl::InternalError(
            absl::StrCat("sequence ", row.sequence, " writes position ", position, " of a shared block"));
      }
      // What an earlier sequence left in the block must not be taken for this one's.
      if (position % options_.block_size == 0) {
        std::fill_n(&Slot(table, position), options_.block_size, kUnwritten);
      }
      Slot(table, position) = token;
      if (next_logit == row.logit_offsets.size() || row.logit_offsets[next_logit] != static_cast<int32_t>(i))
        continue;
      ++next_logit;
      uint64_t context = 0;
      for (size_t p = 0; p <= position; ++p) {
        if (Slot(table, p) == kUnwritten) {
          return absl::InternalError(
              absl::StrCat("sequence ", row.sequence, " reads position ", p, " unwritten"));
        }
        context = HashToken(context, Slot(table, p));
      }
      contexts_.push_back(context);
      positions_.push_back(position);
    }
    if (next_logit != row.logit_offsets.size())
      return absl::InternalError("logit_offsets are out of order or range");
    return absl::OkStatus();
  }

  int32_t& Slot(const std::vector<int32_t>& table, size_t position) {
    return kv_[int64_t{table[position / options_.block_size]} * options_.block_size +
               position % options_.block_size];
  }

  const SchedulerOptions options_;
  BlockTables tables_;
  std::vector<int32_t> kv_;
  std::vector<int32_t> previous_;
  uint64_t step_ = 0;
  std::vector<uint64_t> positions_;
};

}  // namespace phalanx
