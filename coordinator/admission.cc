#include "coordinator/admission.h"

#include <algorithm>
#include <limits>
#include <string_view>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx::coordinator {
namespace {

absl::Status CheckIds(const std::vector<int32_t>& ids, const char* field, const ModelLimits& model) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= model.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(field, "[", i, "] is ", ids[i], "; token ids of model '",
                                                     model.name, "' are 0 to ", model.vocab_size - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status Bad(const char* field, const auto& value, const char* right) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; it must be ", right));
}

// Not NaN either.
bool Within(const std::optional<float>& value, float least, float most) {
  return !value || (*value >= least && *value <= most);
}

absl::Status CheckNumbers(const SamplingFields& s) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  if (!Within(s.temperature, 0, kLargest)) {
    return Bad("sampling.temperature", *s.temperature,
               "a finite number of at least 0 (0 takes the best token)");
  }
  if (s.top_k && *s.top_k < 0) return Bad("sampling.top_k", *s.top_k, "at least 0 (0 keeps all tokens)");
  if (s.top_p && !(*s.top_p > 0 && *s.top_p <= 1)) {
    return Bad("sampling.top_p", *s.top_p, "greater than 0 and at most 1 (1 keeps all tokens)");
  }
  if (!Within(s.min_p, 0, 1)) return Bad("sampling.min_p", *s.min_p, "0 to 1 (0 keeps all tokens)");
  if (s.repetition_penalty &&
      !(*s.repetition_penalty > 0 && *s.repetition_penalty <= kMaxRepetitionPenalty)) {
    return Bad("sampling.repetition_penalty", *s.repetition_penalty,
               "greater than 0 and at most 1000 (1: no penalty)");
  }
  if (!Within(s.presence_penalty, -2, 2)) {
    return Bad("sampling.presence_penalty", *s.presence_penalty, "-2 to 2 (0: no penalty)");
  }
  if (!Within(s.frequency_penalty, -2, 2)) {
    return Bad("sampling.frequency_penalty", *s.frequency_penalty, "-2 to 2 (0: no penalty)");
  }
  if (s.n && (*s.n < 1 || *s.n > kMaxChoices)) return Bad("sampling.n", *s.n, "1 to 128 choices");
  if (s.max_tokens && *s.max_tokens < 0) {
    return Bad("sampling.max_tokens", *s.max_tokens, "at least 0 (0 only reads the prompt)");
  }
  if (s.min_tokens && *s.min_tokens < 0) return Bad("sampling.min_tokens", *s.min_tokens, "at least 0");
  if (s.min_tokens && s.max_tokens && *s.min_tokens > *s.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("sampling.min_tokens is ", *s.min_tokens,
                                                   "; it must be 0 to sampling.max_tokens, which is ",
                                                   *s.max_tokens));
  }
  if (s.max_reasoning_tokens && *s.max_reasoning_tokens < 0) {
    return Bad("sampling.max_reasoning_tokens", *s.max_reasoning_tokens, "at least 0 (absent: no limit)");
  }
  return absl::OkStatus();
}

absl::Status CheckLogitBias(const SamplingFields& s, const ModelLimits& model) {
  for (const auto& [id, bias] : s.logit_bias) {
    if (id < 0 || id >= model.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("sampling.logit_bias names token ", id,
                                                     "; token ids of model '", model.name, "' are 0 to ",
                                                     model.vocab_size - 1));
    }
    if (!(bias >= -100 && bias <= 100)) {
      return absl::InvalidArgumentError(
          absl::StrCat("sampling.logit_bias[", id, "] is ", bias, "; it must be -100 to 100"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const SamplingFields& s, const ModelLimits& model) {
  for (size_t i = 0; i < s.stop.size(); ++i) {
    if (s.stop[i].empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("sampling.stop[", i, "] is empty; a stop string needs at least one character"));
    }
    if (s.stop[i].size() > kMaxStopBytes) {
      return absl::InvalidArgumentError(absl::StrCat("sampling.stop[", i, "] has ", s.stop[i].size(),
                                                     " bytes; at most ", kMaxStopBytes, " are allowed"));
    }
  }
  PHX_RETURN_IF_ERROR(CheckIds(s.stop_token_ids, "sampling.stop_token_ids", model));
  if (!s.stop.empty() && !model.has_tokenizer) {
    return absl::FailedPreconditionError(absl::StrCat("sampling.stop needs text, but model '", model.name,
                                                      "' ", model.missing_text,
                                                      "; use sampling.stop_token_ids"));
  }
  if (s.max_reasoning_tokens && !model.has_tokenizer) {
    return absl::FailedPreconditionError(
        absl::StrCat("sampling.max_reasoning_tokens needs a tokenizer for "
                     "the marks of reasoning, but model '",
                     model.name, "' ", model.missing_text));
  }
  return absl::OkStatus();
}

absl::Status TooMany(const char* field, size_t count, const char* what, int most) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, " has ", count, " ", what, "; at most ", most, " are allowed"));
}

absl::Status CheckLogprobs(const std::optional<int32_t>& value, const char* field) {
  if (value && (*value < 0 || *value > kMaxLogprobs)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is ", *value, "; it must be 0 to ", kMaxLogprobs, ", or absent for none"));
  }
  return absl::OkStatus();
}

bool IsPrintable(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) == 0x7f;
  });
}

// Roles besides the usual ones are those that the model's template asks for.
bool KnowsRole(const ModelLimits& model, const std::string& role) {
  if (role == "system" || role == "user" || role == "assistant" || role == "tool") return true;
  if (role.empty() || role.size() > 64) return false;
  return std::all_of(role.begin(), role.end(),
                     [](char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_'; }) &&
         (model.chat_template.find(absl::StrCat("'", role, "'")) != std::string::npos ||
          model.chat_template.find(absl::StrCat("\"", role, "\"")) != std::string::npos);
}

absl::Status TooLong(const char* what, int64_t size, const char* unit, const ModelLimits& model) {
  return absl::InvalidArgumentError(absl::StrCat("the prompt (", what, ") has ", size, " ", unit,
                                                 ", more than the context of ", model.context_length,
                                                 " tokens of model '", model.name, "' can hold"));
}

}  // namespace

absl::Status CheckText(const ModelLimits& model) {
  if (model.has_tokenizer) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("text needs a tokenizer, but model '", model.name, "' ",
                                                    model.missing_text, "; send tokens"));
}

absl::Status CheckChat(const std::vector<Message>& chat, const ModelLimits& model) {
  if (chat.empty()) {
    return absl::InvalidArgumentError("chat.messages is empty; it needs at least one message");
  }
  for (size_t i = 0; i < chat.size(); ++i) {
    if (!KnowsRole(model, chat[i].role)) {
      return absl::InvalidArgumentError(
          absl::StrCat("chat.messages[", i, "].role is ", Quote(chat[i].role),
                       "; it must be system, user, assistant or tool, or one that the chat template of "
                       "model '",
                       model.name, "' names"));
    }
  }
  if (!model.has_tokenizer) {
    return absl::FailedPreconditionError(absl::StrCat("chat needs a tokenizer, but model '", model.name, "' ",
                                                      model.missing_text, "; send tokens"));
  }
  if (!model.has_chat_template) {
    return absl::FailedPreconditionError(absl::StrCat("chat needs a chat template, but model '", model.name,
                                                      "' ", model.missing_template, "; send text or tokens"));
  }
  return absl::OkStatus();
}

absl::Status CheckSizes(const RequestSizes& sizes, const ModelLimits& model) {
  if (sizes.request_id_bytes > kMaxRequestIdBytes) {
    return TooMany("request_id", sizes.request_id_bytes, "bytes", kMaxRequestIdBytes);
  }
  if (sizes.cache_salt_bytes > kMaxCacheSaltBytes) {
    return TooMany("cache_salt", sizes.cache_salt_bytes, "bytes", kMaxCacheSaltBytes);
  }
  if (sizes.stop_strings > kMaxStopStrings) {
    return TooMany("sampling.stop", sizes.stop_strings, "strings", kMaxStopStrings);
  }
  if (sizes.stop_token_ids > kMaxStopTokenIds) {
    return TooMany("sampling.stop_token_ids", sizes.stop_token_ids, "ids", kMaxStopTokenIds);
  }
  if (sizes.logit_bias > kMaxLogitBias) {
    return TooMany("sampling.logit_bias", sizes.logit_bias, "tokens", kMaxLogitBias);
  }
  if (sizes.tools > kMaxTools) return TooMany("chat.tools", sizes.tools, "tools", kMaxTools);
  if (sizes.tool_calls > kMaxToolCalls) {
    return TooMany("tool_calls of chat.messages", sizes.tool_calls, "tool calls in all", kMaxToolCalls);
  }

  const auto bytes = static_cast<int64_t>(sizes.prompt_bytes);
  // A text of more bytes than the context's tokens could stand for need not be tokenised to be refused.
  const int64_t most_bytes = model.longest_token_bytes * model.context_length;
  switch (sizes.prompt) {
    case PromptKind::kNone:
      return absl::OkStatus();
    case PromptKind::kChat:
      // However a template writes messages, each takes a token at least.
      if (static_cast<int64_t>(sizes.messages) > 4 * int64_t{model.context_length}) {
        return TooLong("chat", static_cast<int64_t>(sizes.messages), "messages", model);
      }
      // A template may trim or drop text; no template of use drops most of it.
      if (most_bytes > 0 && bytes > 4 * most_bytes) return TooLong("chat", bytes, "bytes", model);
      return absl::OkStatus();
    case PromptKind::kText:
      if (most_bytes > 0 && bytes > most_bytes) return TooLong("text", bytes, "bytes", model);
      return absl::OkStatus();
    case PromptKind::kTokens:
      if (static_cast<int64_t>(sizes.prompt_tokens) > model.context_length) {
        return TooLong("tokens", static_cast<int64_t>(sizes.prompt_tokens), "tokens", model);
      }
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::Status CheckRequest(const RequestFields& fields, const ModelLimits& model) {
  if (!IsPrintable(fields.request_id)) {
    return absl::InvalidArgumentError(
        absl::StrCat("request_id is ", Quote(fields.request_id), "; it must have no control characters"));
  }
  PHX_RETURN_IF_ERROR(CheckNumbers(fields.sampling));
  PHX_RETURN_IF_ERROR(CheckLogitBias(fields.sampling, model));
  PHX_RETURN_IF_ERROR(CheckStops(fields.sampling, model));
  PHX_RETURN_IF_ERROR(CheckLogprobs(fields.logprobs, "logprobs"));
  PHX_RETURN_IF_ERROR(CheckLogprobs(fields.prompt_logprobs, "prompt_logprobs"));
  switch (fields.prompt) {
    case PromptKind::kNone:
      return absl::InvalidArgumentError("the request has no prompt; set one of chat, text, tokens");
    case PromptKind::kChat:
      return CheckChat(fields.chat, model);
    case PromptKind::kText:
      if (fields.text.empty())
        return absl::InvalidArgumentError("text is empty; a prompt needs at least one token");
      return CheckText(model);
    case PromptKind::kTokens:
      if (fields.tokens.empty()) {
        return absl::InvalidArgumentError("tokens.ids is empty; a prompt needs at least one token");
      }
      return CheckIds(fields.tokens, "tokens.ids", model);
  }
  return absl::OkStatus();
}

absl::StatusOr<Sampling> ResolveSampling(const RequestFields& fields, int64_t num_prompt_tokens,
                                         const ModelLimits& model, int32_t max_tokens_default,
                                         uint64_t drawn_seed) {
  const SamplingFields& s = fields.sampling;
  if (num_prompt_tokens == 0) {
    return absl::InvalidArgumentError("the prompt has no tokens; it needs at least one");
  }
  const int64_t room = model.context_length - num_prompt_tokens;
  if (room < 0) return TooLong("tokenised", num_prompt_tokens, "tokens", model);
  if (room == 0 && !(s.max_tokens && *s.max_tokens == 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", num_prompt_tokens, " tokens and fills the context of ",
                     model.context_length, " of model '", model.name, "'; no token can be generated"));
  }
  if (s.max_tokens && *s.max_tokens > room) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.max_tokens is ", *s.max_tokens, "; with a prompt of ", num_prompt_tokens,
                     " tokens the context of ", model.context_length, " leaves room for ", room));
  }
  if (s.min_tokens && *s.min_tokens > room) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.min_tokens is ", *s.min_tokens, "; with a prompt of ", num_prompt_tokens,
                     " tokens the context of ", model.context_length, " leaves room for ", room));
  }
  const SamplingDefaults& defaults = model.defaults;
  Sampling out;
  out.temperature = s.temperature.value_or(defaults.temperature);
  out.top_k = s.top_k.value_or(defaults.top_k);
  out.top_p = s.top_p.value_or(defaults.top_p);
  out.min_p = s.min_p.value_or(defaults.min_p);
  out.repetition_penalty = s.repetition_penalty.value_or(defaults.repetition_penalty);
  out.presence_penalty = s.presence_penalty.value_or(defaults.presence_penalty);
  out.frequency_penalty = s.frequency_penalty.value_or(defaults.frequency_penalty);
  out.logit_bias = s.logit_bias;
  out.seed = s.seed.value_or(drawn_seed);
  out.n = s.n.value_or(1);
  out.min_tokens = s.min_tokens.value_or(0);
  // A larger min_tokens lifts the server's own cap.
  out.max_tokens = s.max_tokens ? *s.max_tokens
                                : static_cast<int32_t>(std::max<int64_t>(
                                      std::min<int64_t>(room, max_tokens_default), out.min_tokens));
  out.max_reasoning_tokens = s.max_reasoning_tokens;
  out.stop = s.stop;
  out.stop_token_ids = s.stop_token_ids;
  out.ignore_eos = s.ignore_eos;
  if (!s.ignore_eos) out.end_ids = model.end_ids;
  out.end_ids.insert(out.end_ids.end(), s.stop_token_ids.begin(), s.stop_token_ids.end());
  std::sort(out.end_ids.begin(), out.end_ids.end());
  out.end_ids.erase(std::unique(out.end_ids.begin(), out.end_ids.end()), out.end_ids.end());
  out.logprobs = fields.logprobs.value_or(-1);
  out.prompt_logprobs = fields.prompt_logprobs.value_or(-1);
  out.priority = fields.priority;
  out.cache_salt = fields.cache_salt;
  return out;
}

absl::Status InFlightLimit::Enter(int64_t count) {
  if (count_.fetch_add(count, std::memory_order_relaxed) + count > limit_) {
    Leave(count);
    return absl::ResourceExhaustedError(absl::StrCat("the coordinator takes ", limit_,
                                                     " requests in flight (choices count one each), its "
                                                     "limit; try again later"));
  }
  return absl::OkStatus();
}

}  // namespace phalanx::coordinator
