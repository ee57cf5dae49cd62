#include "coordinator/loaded_model.h"

#include <utility>

namespace phalanx::coordinator {

absl::StatusOr<std::vector<int32_t>> LoadedModel::Tokenize(const RequestFields& fields) const {
  switch (fields.prompt) {
    case PromptKind::kChat:
      return EncodeChat(fields.chat, *chat_template, *tokenizer, control_names, fields.chat_options,
                        limits.longest_token_bytes * limits.context_length);
    case PromptKind::kText:
      return EncodeText(fields.text, *tokenizer);
    default:
      return fields.tokens;
  }
}

const ReasoningFamily* LoadedModel::OpenedReasoning(const RequestFields& fields,
                                                    const std::vector<int32_t>& ids) const {
  if (tokenizer == nullptr) return nullptr;
  if (fields.prompt == PromptKind::kText) return ReasoningLeftOpen(fields.text);
  // What the template made of a chat's end. A mark is at most as many tokens as it has bytes; white space may
  // follow it.
  constexpr size_t kEndTokens = 64;
  const size_t first =
      fields.prompt == PromptKind::kChat && ids.size() > kEndTokens ? ids.size() - kEndTokens : 0;
  std::string text;
  const TokenBytes& table = tokenizer->token_bytes();
  for (size_t i = first; i < ids.size(); ++i) {
    if (static_cast<size_t>(ids[i]) < table.bytes.size()) text += table.bytes[static_cast<size_t>(ids[i])];
  }
  if (fields.prompt == PromptKind::kTokens) return ReasoningLeftOpen(text);
  if (fields.chat_options.continue_final_message) {
    if (const ReasoningFamily* open = ReasoningLeftOpen(fields.chat.back().content)) return open;
  }
  return ReasoningOpenedAtEnd(text);
}

std::shared_ptr<const TokenBytes> TokensOf(std::shared_ptr<const LoadedModel> model) {
  if (model->tokenizer == nullptr) return nullptr;
  const TokenBytes* tokens = &model->tokenizer->token_bytes();
  return std::shared_ptr<const TokenBytes>(std::move(model), tokens);
}

}  // namespace phalanx::coordinator
