#include "coordinator/admission.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

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

absl::Status CheckSampling(const SamplingFields& s, const ModelLimits& model) {
  if (s.temperature && !(std::isfinite(*s.temperature) && *s.temperature >= 0)) {
    return absl::InvalidArgumentError(absl::StrCat("sampling.temperature is ", *s.temperature,
                                                   "; it must be a finite number of at least 0 (0 takes the "
                                                   "best token)"));
  }
  if (s.top_k && *s.top_k < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.top_k is ", *s.top_k, "; it must be at least 0 (0 keeps all tokens)"));
  }
  if (s.top_p && !(*s.top_p > 0 && *s.top_p <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "sampling.top_p is ", *s.top_p, "; it must be greater than 0 and at most 1 (1 keeps all tokens)"));
  }
  if (s.max_tokens && *s.max_tokens < 0) {
    return absl::InvalidArgumentError(absl::StrCat("sampling.max_tokens is ", *s.max_tokens,
                                                   "; it must be at least 0 (0 only reads the prompt)"));
  }
  if (s.stop.size() > kMaxStopStrings) {
    return absl::InvalidArgumentError(absl::StrCat("sampling.stop has ", s.stop.size(), " strings; at most ",
                                                   kMaxStopStrings, " are allowed"));
  }
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
  if (s.stop_token_ids.size() > kMaxStopTokenIds) {
    return absl::InvalidArgumentError(absl::StrCat("sampling.stop_token_ids has ", s.stop_token_ids.size(),
                                                   " ids; at most ", kMaxStopTokenIds, " are allowed"));
  }
  PHX_RETURN_IF_ERROR(CheckIds(s.stop_token_ids, "sampling.stop_token_ids", model));
  if (!s.stop.empty() && !model.has_tokenizer) {
    return absl::FailedPreconditionError(absl::StrCat("sampling.stop needs text, but model '", model.name,
                                                      "' ", model.missing_text,
                                                      "; use sampling.stop_token_ids"));
  }
  return absl::OkStatus();
}

absl::Status CheckLogprobs(const std::optional<int32_t>& value, const char* field) {
  if (value && (*value < 0 || *value > kMaxLogprobs)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is ", *value, "; it must be 0 to ", kMaxLogprobs, ", or absent for none"));
  }
  return absl::OkStatus();
}

absl::Status CheckChat(const RequestFields& fields, const ModelLimits& model) {
  if (fields.chat.empty()) {
    return absl::InvalidArgumentError("chat.messages is empty; it needs at least one message");
  }
  for (size_t i = 0; i < fields.chat.size(); ++i) {
    const std::string& role = fields.chat[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      return absl::InvalidArgumentError(absl::StrCat("chat.messages[", i, "].role is '", role.substr(0, 64),
                                                     "'; it must be system, user or assistant"));
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

absl::Status TooLong(const char* what, int64_t size, const char* unit, const ModelLimits& model) {
  return absl::InvalidArgumentError(absl::StrCat("the prompt (", what, ") has ", size, " ", unit,
                                                 ", more than the context of ", model.context_length,
                                                 " tokens of model '", model.name, "' can hold"));
}

}  // namespace

absl::Status CheckRequest(const RequestFields& fields, const ModelLimits& model) {
  if (fields.request_id.size() > kMaxRequestIdBytes) {
    return absl::InvalidArgumentError(absl::StrCat("request_id has ", fields.request_id.size(),
                                                   " bytes; at most ", kMaxRequestIdBytes, " are allowed"));
  }
  PHX_RETURN_IF_ERROR(CheckSampling(fields.sampling, model));
  PHX_RETURN_IF_ERROR(CheckLogprobs(fields.logprobs, "logprobs"));
  PHX_RETURN_IF_ERROR(CheckLogprobs(fields.prompt_logprobs, "prompt_logprobs"));

  // A text of more bytes than the context's tokens could stand for need not be tokenised to be refused.
  const int64_t most_bytes = model.longest_token_bytes * model.context_length;
  switch (fields.prompt) {
    case PromptKind::kNone:
      return absl::InvalidArgumentError("the request has no prompt; set one of chat, text, tokens");
    case PromptKind::kChat: {
      PHX_RETURN_IF_ERROR(CheckChat(fields, model));
      int64_t bytes = 0;
      for (const Message& message : fields.chat) bytes += static_cast<int64_t>(message.content.size());
      // A template may trim or drop text; no template of use drops most of it.
      if (most_bytes > 0 && bytes > 4 * most_bytes) return TooLong("chat", bytes, "bytes", model);
      return absl::OkStatus();
    }
    case PromptKind::kText:
      if (fields.text.empty())
        return absl::InvalidArgumentError("text is empty; a prompt needs at least one token");
      if (!model.has_tokenizer) {
        return absl::FailedPreconditionError(absl::StrCat("text needs a tokenizer, but model '", model.name,
                                                          "' ", model.missing_text, "; send tokens"));
      }
      if (most_bytes > 0 && static_cast<int64_t>(fields.text.size()) > most_bytes) {
        return TooLong("text", static_cast<int64_t>(fields.text.size()), "bytes", model);
      }
      return absl::OkStatus();
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
  Sampling out;
  out.temperature = s.temperature.value_or(model.temperature);
  out.top_k = s.top_k.value_or(model.top_k);
  out.top_p = s.top_p.value_or(model.top_p);
  out.seed = s.seed.value_or(drawn_seed);
  out.max_tokens =
      s.max_tokens ? *s.max_tokens : static_cast<int32_t>(std::min<int64_t>(room, max_tokens_default));
  out.stop = s.stop;
  out.stop_token_ids = s.stop_token_ids;
  out.ignore_eos = s.ignore_eos;
  if (!s.ignore_eos) out.end_ids = model.end_ids;
  out.end_ids.insert(out.end_ids.end(), s.stop_token_ids.begin(), s.stop_token_ids.end());
  std::sort(out.end_ids.begin(), out.end_ids.end());
  out.end_ids.erase(std::unique(out.end_ids.begin(), out.end_ids.end()), out.end_ids.end());
  out.logprobs = fields.logprobs.value_or(-1);
  out.prompt_logprobs = fields.prompt_logprobs.value_or(-1);
  return out;
}

absl::Status InFlightLimit::Enter() {
  if (count_.fetch_add(1, std::memory_order_relaxed) >= limit_) {
    Leave();
    return absl::ResourceExhaustedError(absl::StrCat("the coordinator already has ", limit_,
                                                     " requests in flight, its limit; try again later"));
  }
  return absl::OkStatus();
}

}  // namespace phalanx::coordinator
