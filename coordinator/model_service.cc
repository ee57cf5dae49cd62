#include "coordinator/model_service.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/convert.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/utf8.h"

namespace phalanx::coordinator {
namespace {

// Of the bytes that ids stand for: a token may have hundreds.
constexpr size_t kMaxDetokenizedBytes = 32 << 20;
constexpr size_t kMaxPieces = 1 << 20;  // a piece takes forty times a byte of text

absl::StatusOr<std::vector<int32_t>> EncodeWith(std::string_view text, const v1::TokenizeRequest& request,
                                                const Tokenizer& tokenizer) {
  const bool parse_special = !request.has_parse_special() || request.parse_special();
  PHX_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer.Encode(text, parse_special));
  const auto bos = tokenizer.bos_id();
  if (!bos) {
    if (!request.add_bos()) return ids;
    return absl::FailedPreconditionError("add_bos is true, but the model has no BOS token");
  }
  const bool add = request.has_add_bos() ? request.add_bos() : tokenizer.add_bos();
  // As Generate does: a text that names it itself does not get it twice.
  if (add && (ids.empty() || ids[0] != *bos)) ids.insert(ids.begin(), *bos);
  return ids;
}

absl::StatusOr<std::vector<int32_t>> IdsOf(const LoadedModel& model, const v1::TokenizeRequest& request) {
  switch (request.prompt_case()) {
    case v1::TokenizeRequest::kChat: {
      PHX_RETURN_IF_ERROR(CheckSizes(SizesOf(request), model.limits));
      RequestFields fields;
      PHX_RETURN_IF_ERROR(ToChat(request.chat(), &fields));
      PHX_RETURN_IF_ERROR(CheckChat(fields.chat, model.limits));
      return model.Tokenize(fields);
    }
    case v1::TokenizeRequest::kText:
      PHX_RETURN_IF_ERROR(CheckText(model.limits));
      return EncodeWith(request.text(), request, *model.tokenizer);
    case v1::TokenizeRequest::kRaw: {
      PHX_RETURN_IF_ERROR(CheckText(model.limits));
      if (const size_t valid = ValidUtf8Prefix(request.raw()); valid < request.raw().size()) {
        return absl::InvalidArgumentError(absl::StrCat("raw is not UTF-8 at byte offset ", valid));
      }
      return EncodeWith(request.raw(), request, *model.tokenizer);
    }
    case v1::TokenizeRequest::PROMPT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("the request has no prompt; set one of chat, text, raw");
}

}  // namespace

absl::Status TokenizePrompt(const LoadedModel& model, const v1::TokenizeRequest& request,
                            v1::TokenizeResponse* response) {
  PHX_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, IdsOf(model, request));
  if (request.pieces() && ids.size() > kMaxPieces) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", ids.size(),
                                                   " tokens; pieces are told of at most ", kMaxPieces,
                                                   ": send it in parts, or without pieces"));
  }
  response->mutable_ids()->Add(ids.begin(), ids.end());
  if (request.pieces()) {
    const std::vector<std::string>& bytes = model.tokenizer->token_bytes().bytes;
    for (const int32_t id : ids) response->add_pieces(bytes[static_cast<size_t>(id)]);
  }
  response->set_context_length(model.limits.context_length);
  return absl::OkStatus();
}

absl::Status DetokenizeIds(const LoadedModel& model, const v1::DetokenizeRequest& request,
                           v1::DetokenizeResponse* response) {
  PHX_RETURN_IF_ERROR(CheckText(model.limits));
  const bool skip_special = !request.has_skip_special() || request.skip_special();
  const TokenBytes& table = model.tokenizer->token_bytes();
  std::string* raw = response->mutable_raw();
  for (int i = 0; i < request.ids_size(); ++i) {
    const int32_t id = request.ids(i);
    if (id < 0 || id >= model.limits.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("ids[", i, "] is ", id, "; token ids of model '",
                                                     model.limits.name, "' are 0 to ",
                                                     model.limits.vocab_size - 1));
    }
    const auto at = static_cast<size_t>(id);
    // Ids that the model has but its tokenizer has not (a padded vocabulary) stand for no text.
    if (at >= table.bytes.size() || (skip_special && table.is_control[at])) continue;
    raw->append(table.bytes[at]);
    if (raw->size() > kMaxDetokenizedBytes) {
      return absl::InvalidArgumentError(absl::StrCat("the first ", i + 1, " of ", request.ids_size(),
                                                     " ids stand for more than ", kMaxDetokenizedBytes,
                                                     " bytes, the limit; send them in parts"));
    }
  }
  Utf8Stream text;
  text.Feed(*raw, response->mutable_text());
  text.Finish(response->mutable_text());
  return absl::OkStatus();
}

void DescribeModel(const LoadedModel& model, int32_t max_tokens_default, v1::Model* out) {
  const ModelLimits& limits = model.limits;
  out->set_name(model.spec.name);
  out->set_architecture(model.config.architecture);
  out->set_parameters(model.num_parameters);
  out->set_context_length(limits.context_length);
  out->set_vocab_size(limits.vocab_size);
  out->set_has_tokenizer(limits.has_tokenizer);
  out->set_has_chat_template(limits.has_chat_template);
  if (!limits.has_tokenizer) {
    out->set_detail(limits.missing_text);
  } else if (!limits.has_chat_template) {
    out->set_detail(limits.missing_template);
  }
  if (model.config.rope.size() > 1) {
    out->set_rope(model.spec.rope == Rope::kAuto ? v1::ROPE_AUTO : v1::ROPE_LONG);
  }
  v1::SamplingParams* defaults = out->mutable_defaults();
  defaults->set_temperature(limits.defaults.temperature);
  defaults->set_top_k(limits.defaults.top_k);
  defaults->set_top_p(limits.defaults.top_p);
  defaults->set_min_p(limits.defaults.min_p);
  defaults->set_repetition_penalty(limits.defaults.repetition_penalty);
  defaults->set_presence_penalty(limits.defaults.presence_penalty);
  defaults->set_frequency_penalty(limits.defaults.frequency_penalty);
  defaults->set_max_tokens(std::min(max_tokens_default, limits.context_length));
  defaults->set_min_tokens(0);
  defaults->set_n(1);
  defaults->set_ignore_eos(false);
  out->mutable_end_token_ids()->Add(limits.end_ids.begin(), limits.end_ids.end());
}

}  // namespace phalanx::coordinator
