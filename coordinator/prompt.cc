#include "coordinator/prompt.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace phalanx::coordinator {
namespace {

std::string NameOf(const Tokenizer& tokenizer, std::optional<int32_t> id) {
  return id ? tokenizer.token_bytes().bytes[static_cast<size_t>(*id)] : "";
}

std::vector<ChatMessage> MessagesOf(const std::vector<Message>& chat) {
  std::vector<ChatMessage> messages;
  for (const Message& m : chat) {
    ChatMessage message{m.role, m.content, m.reasoning, {}, m.tool_call_id, m.name};
    for (const ToolCall& call : m.tool_calls)
      message.tool_calls.push_back({call.id, call.name, call.arguments});
    messages.push_back(std::move(message));
  }
  return messages;
}

phalanx::SystemPrompt PolicyOf(SystemPrompt policy) {
  switch (policy) {
    case SystemPrompt::kHonour:
      return phalanx::SystemPrompt::kHonour;
    case SystemPrompt::kModel:
      return phalanx::SystemPrompt::kModel;
    case SystemPrompt::kAppend:
      return phalanx::SystemPrompt::kAppend;
  }
  return phalanx::SystemPrompt::kHonour;
}

// Whether a user wrote a byte of text[begin, end).
class Origin {
 public:
  explicit Origin(const std::vector<size_t>& borders) : borders_(borders) {}

  bool HasUser(size_t begin, size_t end) const {
    const auto border = std::upper_bound(borders_.begin(), borders_.end(), begin);
    return (border - borders_.begin()) % 2 == 1 || (border != borders_.end() && *border < end);
  }

 private:
  const std::vector<size_t>& borders_;
};

}  // namespace

ControlNames::ControlNames(const TokenBytes& table) {
  for (size_t id = 0; id < table.bytes.size(); ++id) {
    const std::string& name = table.bytes[id];
    if (!name.empty() && (table.is_control[id] || LooksLikeMark(name))) names_.push_back(name);
  }
  std::sort(names_.begin(), names_.end(), [](const std::string& a, const std::string& b) {
    if (a[0] != b[0]) return static_cast<uint8_t>(a[0]) < static_cast<uint8_t>(b[0]);
    return a.size() != b.size() ? a.size() > b.size() : a < b;
  });
  for (const std::string& name : names_) ++first_[static_cast<uint8_t>(name[0]) + 1u];
  for (size_t b = 1; b < first_.size(); ++b) first_[b] += first_[b - 1];
}

size_t ControlNames::LengthAt(std::string_view text, size_t at) const {
  const auto byte = static_cast<uint8_t>(text[at]);
  for (size_t n = first_[byte]; n < first_[byte + 1u]; ++n) {
    if (text.substr(at, names_[n].size()) == names_[n]) return names_[n].size();
  }
  return 0;
}

absl::StatusOr<std::vector<int32_t>> EncodeChat(const std::vector<Message>& chat,
                                                const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                                                const ControlNames& names, const ChatOptions& options,
                                                int64_t most_bytes) {
  RenderOptions render;
  render.continue_final_message = options.continue_final_message;
  render.add_generation_prompt = options.add_generation_prompt.value_or(!options.continue_final_message);
  render.bos_token = NameOf(tokenizer, tokenizer.bos_id());
  render.eos_token = NameOf(tokenizer, tokenizer.eos_id());
  render.tools = options.tools;
  render.variables = options.template_kwargs;
  render.date = options.date;
  render.system_prompt = PolicyOf(options.system_prompt);
  const absl::StatusOr<RenderedChat> rendered = chat_template.RenderChat(MessagesOf(chat), render);
  if (absl::IsResourceExhausted(rendered.status())) {
    // To a client that code says "try again later", but this chat will never fit.
    return absl::InvalidArgumentError(absl::StrCat("chat is too large: ", rendered.status().message()));
  }
  PHX_RETURN_IF_ERROR(rendered.status());

  const std::string_view text = rendered->text;
  if (most_bytes > 0 && static_cast<int64_t>(text.size()) > most_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("chat is too large: its template makes ", text.size(),
                                                   " bytes of it, and the context holds at most ",
                                                   most_bytes));
  }
  const Origin origin(rendered->borders);
  std::vector<int32_t> ids;
  const auto encode = [&](size_t begin, size_t end, bool parse_special) -> absl::Status {
    if (begin == end) return absl::OkStatus();
    PHX_ASSIGN_OR_RETURN(const std::vector<int32_t> more,
                         tokenizer.Encode(text.substr(begin, end - begin), parse_special));
    ids.insert(ids.end(), more.begin(), more.end());
    return absl::OkStatus();
  };
  // Text is cut at control tokens only, so that its tokens are those of the whole. A stretch between two of
  // them that has a user's name in it is encoded as text; the rest is encoded at once.
  size_t done = 0;    // encoded so far
  size_t behind = 0;  // the end of the last control token
  bool as_text = false;
  for (size_t at = 0; at < text.size();) {
    const size_t length = names.LengthAt(text, at);
    if (length == 0) {
      ++at;
    } else if (origin.HasUser(at, at + length)) {
      as_text = true;
      ++at;
    } else {
      if (as_text) {
        PHX_RETURN_IF_ERROR(encode(done, behind, /*parse_special=*/true));
        PHX_RETURN_IF_ERROR(encode(behind, at, /*parse_special=*/false));
        done = at;
        as_text = false;
      }
      behind = at += length;
    }
  }
  PHX_RETURN_IF_ERROR(encode(done, as_text ? behind : text.size(), /*parse_special=*/true));
  if (as_text) PHX_RETURN_IF_ERROR(encode(behind, text.size(), /*parse_special=*/false));
  return ids;
}

absl::StatusOr<std::vector<int32_t>> EncodeText(std::string_view text, const Tokenizer& tokenizer) {
  PHX_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer.Encode(text, /*parse_special=*/true));
  const std::optional<int32_t> bos = tokenizer.bos_id();
  if (tokenizer.add_bos() && bos && (ids.empty() || ids[0] != *bos)) ids.insert(ids.begin(), *bos);
  return ids;
}

}  // namespace phalanx::coordinator
