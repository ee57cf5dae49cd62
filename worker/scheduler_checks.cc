#include "worker/scheduler_checks.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace phalanx {
namespace {

template <typename... Parts>
absl::Status Invalid(const SequenceRequest& r, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("request ", r.request, ": ", parts...));
}

absl::Status CheckIds(const SequenceRequest& r, const char* name, const std::vector<int32_t>& ids,
                      int64_t vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    return Invalid(r, name, "[", i, "] is ", ids[i], "; token ids are 0 to ", vocab_size - 1);
  }
  return absl::OkStatus();
}

absl::Status CheckLogitControls(const SequenceRequest& r, int64_t vocab_size) {
  const SampleRow& s = r.sampling;
  if (!(s.min_p >= 0 && s.min_p <= 1)) return Invalid(r, "min_p is ", s.min_p, "; it must be 0 to 1");
  if (!(s.repetition_penalty > 0) || !std::isfinite(s.repetition_penalty)) {
    return Invalid(r, "repetition_penalty is ", s.repetition_penalty,
                   "; it must be finite and over 0 (1: none)");
  }
  for (auto [name, value] : {std::pair{"presence_penalty", s.presence_penalty},
                             std::pair{"frequency_penalty", s.frequency_penalty}}) {
    if (!(value >= -2 && value <= 2)) return Invalid(r, name, " is ", value, "; it must be -2 to 2");
  }
  if (s.bias == nullptr) return absl::OkStatus();
  if (static_cast<int64_t>(s.bias->size()) > kMaxLogitBias) {
    return Invalid(r, "logit_bias has ", s.bias->size(), " tokens; it can have ", kMaxLogitBias);
  }
  int32_t last = -1;
  for (const TokenBias& b : *s.bias) {
    if (b.id < 0 || b.id >= vocab_size) {
      return Invalid(r, "logit_bias is of token ", b.id, "; token ids are 0 to ", vocab_size - 1);
    }
    if (b.id <= last) {
      return Invalid(r, "logit_bias has token ", b.id, " after ", last, "; ids must rise");
    }
    if (!(b.bias >= -100 && b.bias <= 100)) {
      return Invalid(r, "logit_bias of token ", b.id, " is ", b.bias, "; it must be -100 to 100");
    }
    last = b.id;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRequest(const SchedulerOptions& o, const SequenceRequest& r) {
  const int64_t num_prompt = static_cast<int64_t>(r.prompt.size());
  const int64_t num_generated = static_cast<int64_t>(r.generated.size());
  if (num_prompt == 0) return Invalid(r, "the prompt is empty; it needs at least one token");
  if (r.max_tokens < 0) return Invalid(r, "max_tokens is ", r.max_tokens, "; it must be 0 or more");
  const int64_t longest = o.context_length - (r.max_tokens > 0 ? 1 : 0);
  if (num_prompt > longest) {
    return Invalid(r, "the prompt has ", num_prompt, " tokens; with max_tokens ", r.max_tokens,
                   " and a context of ", o.context_length, " it can have ", longest);
  }
  const int64_t limit = std::min<int64_t>(r.max_tokens, o.context_length - num_prompt);
  if (num_generated > 0 && num_generated >= limit) {
    return Invalid(r, "it is complete: ", num_generated,
                   " tokens are generated and max_tokens and context allow ", limit);
  }
  PHX_RETURN_IF_ERROR(CheckIds(r, "prompt", r.prompt, o.vocab_size));
  PHX_RETURN_IF_ERROR(CheckIds(r, "generated", r.generated, o.vocab_size));
  if (r.min_tokens < 0 || r.min_tokens > r.max_tokens) {
    return Invalid(r, "min_tokens is ", r.min_tokens, "; it must be 0 to max_tokens, which is ",
                   r.max_tokens);
  }
  for (int64_t i = r.min_tokens; i < num_generated; ++i) {
    if (!std::binary_search(r.stop_ids.begin(), r.stop_ids.end(), r.generated[i])) continue;
    return Invalid(r, "it is complete: the generated tokens hold the stop id ", r.generated[i]);
  }
  const SampleRow& s = r.sampling;
  if (!std::isfinite(s.temperature) || s.temperature < 0) {
    return Invalid(r, "temperature is ", s.temperature, "; it must be finite and 0 or more");
  }
  if (!(s.top_p > 0 && s.top_p <= 1))
    return Invalid(r, "top_p is ", s.top_p, "; it must be over 0 and at most 1");
  if (s.top_k < 0) return Invalid(r, "top_k is ", s.top_k, "; it must be 0 (all) or more");
  PHX_RETURN_IF_ERROR(CheckLogitControls(r, o.vocab_size));
  if (r.thinking.has_value()) {
    const absl::Status status = CheckThinkingBudget(*r.thinking, o.token_bytes.get(), o.vocab_size);
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat("request ", r.request, ": ", status.message()));
    }
  }
  for (auto [name, value] :
       {std::pair{"logprobs", r.logprobs}, std::pair{"prompt_logprobs", r.prompt_logprobs}}) {
    if (value < -1 || value > kMaxTopLogprobs) {
      return Invalid(r, name, " is ", value, "; it must be -1 (none) or 0 to ", kMaxTopLogprobs);
    }
  }
  if (r.cache_salt.size() > kMaxCacheSaltBytes) {
    return Invalid(r, "cache_salt has ", r.cache_salt.size(), " bytes; it can have ", kMaxCacheSaltBytes);
  }
  if (r.rope_mode >= static_cast<uint32_t>(o.num_rope_modes)) {
    return Invalid(r, "rope_mode is ", r.rope_mode, "; the model has ", o.num_rope_modes);
  }
  return absl::OkStatus();
}

absl::Status SchedulerOptions::Validate() const {
  const std::pair<const char*, int64_t> positive[] = {
      {"num_blocks", num_blocks},       {"context_length", context_length},
      {"vocab_size", vocab_size},       {"num_rope_modes", num_rope_modes},
      {"block_size", block_size},       {"max_tokens_per_step", max_tokens_per_step},
      {"max_sequences", max_sequences}, {"max_logits_per_step", max_logits_per_step},
  };
  for (const auto& [name, value] : positive) {
    if (value < 1 || value > INT32_MAX) {
      return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; it must be 1 to ", INT32_MAX));
    }
  }
  for (const auto& [name, value] :
       {std::pair{"max_queued", max_queued}, std::pair{"max_guesses", max_guesses},
        std::pair{"max_guessing", max_guessing}}) {
    if (value < 0)
      return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; it must be 0 or more"));
  }
  const int most = std::min(max_tokens_per_step, max_logits_per_step);
  if (max_sequences > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_sequences is ", max_sequences, "; it must be at most max_tokens_per_step (",
                     max_tokens_per_step, ") and max_logits_per_step (", max_logits_per_step, ")"));
  }
  return absl::OkStatus();
}

absl::Status CheckResult(const std::vector<SampleRow>& samples, int64_t vocab_size,
                         const StepResult& result) {
  const size_t n = samples.size();
  if (result.ids.size() != n) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", n, " logits rows has ", result.ids.size(), " sampled ids"));
  }
  if (result.logprobs.size() != n && !result.logprobs.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", n, " logits rows has log-probabilities of ", result.logprobs.size()));
  }
  for (size_t i = 0; i < n; ++i) {
    if (result.ids[i] < -1 || result.ids[i] >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("logits row ", i, " has the sampled id ", result.ids[i],
                                                     "; token ids are 0 to ", vocab_size - 1));
    }
    if (samples[i].num_top >= 0 && result.logprobs.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("logits row ", i, " has no log-probabilities"));
    }
  }
  return absl::OkStatus();
}

}  // namespace phalanx
