#include "coordinator/prompt.h"

#include <algorithm>
#include <utility>

#include "base/status_macros.h"

namespace phalanx::coordinator {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

std::string NameOf(const Tokenizer& tokenizer, std::optional<int32_t> id) {
  return id ? tokenizer.token_bytes().bytes[static_cast<size_t>(*id)] : "";
}

}  // namespace

ControlNames::ControlNames(const TokenBytes& table) {
  for (size_t id = 0; id < table.bytes.size(); ++id) {
    if (table.is_control[id] && !table.bytes[id].empty()) names_.push_back(table.bytes[id]);
  }
  std::sort(names_.begin(), names_.end(), [](const std::string& a, const std::string& b) {
    if (a[0] != b[0]) return static_cast<uint8_t>(a[0]) < static_cast<uint8_t>(b[0]);
    return a.size() != b.size() ? a.size() > b.size() : a < b;
  });
  for (const std::string& name : names_) ++first_[static_cast<uint8_t>(name[0]) + 1u];
  for (size_t b = 1; b < first_.size(); ++b) first_[b] += first_[b - 1];
}

bool ControlNames::IsName(std::string_view text) const {
  if (text.empty()) return false;
  const auto byte = static_cast<uint8_t>(text[0]);
  for (size_t n = first_[byte]; n < first_[byte + 1u]; ++n) {
    if (names_[n] == text) return true;
  }
  return false;
}

std::string ControlNames::Fence(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<uint8_t>(text[i]);
    size_t length = 0;
    for (size_t n = first_[byte]; n < first_[byte + 1u] && length == 0; ++n) {
      if (text.substr(i, names_[n].size()) == names_[n]) length = names_[n].size();
    }
    if (length > 0) {
      out += kFenceBegin;
      out += text.substr(i, length);
      out += kFenceEnd;
      i += length;
      continue;
    }
    if (text[i] == kFenceBegin || text[i] == kFenceEnd) {
      out += kReplacement;
    } else {
      out += text[i];
    }
    ++i;
  }
  return out;
}

absl::StatusOr<std::vector<int32_t>> EncodeChat(const std::vector<Message>& chat,
                                                const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                                                const ControlNames& names) {
  std::vector<ChatMessage> messages;
  for (const Message& message : chat) messages.push_back({message.role, names.Fence(message.content)});
  RenderOptions options;
  options.add_generation_prompt = true;
  options.bos_token = NameOf(tokenizer, tokenizer.bos_id());
  options.eos_token = NameOf(tokenizer, tokenizer.eos_id());
  PHX_ASSIGN_OR_RETURN(const std::string rendered, chat_template.Render(messages, options));

  std::vector<int32_t> ids;
  const auto encode = [&](std::string_view part, bool parse_special) -> absl::Status {
    if (part.empty()) return absl::OkStatus();
    PHX_ASSIGN_OR_RETURN(const std::vector<int32_t> more, tokenizer.Encode(part, parse_special));
    ids.insert(ids.end(), more.begin(), more.end());
    return absl::OkStatus();
  };
  // A template may cut a text anywhere: a fence that lost its other half is dropped and fences nothing.
  constexpr std::string_view kFences("\x02\x03", 2);
  std::string open;  // outside fences, not yet encoded
  std::string_view rest = rendered;
  while (true) {
    const size_t begin = rest.find_first_of(kFences);
    open += rest.substr(0, begin);
    if (begin == std::string_view::npos) break;
    const bool opens = rest[begin] == ControlNames::kFenceBegin;
    rest.remove_prefix(begin + 1);
    if (!opens) continue;
    const size_t end = rest.find_first_of(kFences);
    if (end == std::string_view::npos || rest[end] != ControlNames::kFenceEnd ||
        !names.IsName(rest.substr(0, end))) {
      continue;
    }
    PHX_RETURN_IF_ERROR(encode(open, /*parse_special=*/true));
    open.clear();
    PHX_RETURN_IF_ERROR(encode(rest.substr(0, end), /*parse_special=*/false));
    rest.remove_prefix(end + 1);
  }
  PHX_RETURN_IF_ERROR(encode(open, /*parse_special=*/true));
  return ids;
}

absl::StatusOr<std::vector<int32_t>> EncodeText(std::string_view text, const Tokenizer& tokenizer) {
  PHX_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer.Encode(text, /*parse_special=*/true));
  const std::optional<int32_t> bos = tokenizer.bos_id();
  if (tokenizer.add_bos() && bos && (ids.empty() || ids[0] != *bos)) ids.insert(ids.begin(), *bos);
  return ids;
}

}  // namespace phalanx::coordinator
