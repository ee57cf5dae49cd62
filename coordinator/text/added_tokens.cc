#include "coordinator/text/added_tokens.h"

#include <algorithm>

#include "coordinator/text/unicode.h"

namespace phalanx {
namespace {

uint64_t Edge(uint32_t node, char byte) {
  return static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(byte);
}

// White_Space at the beginning and at the end of valid UTF-8, in bytes.
size_t SpacesBefore(std::string_view text) {
  const CharKinds& kinds = CharKinds::Get();
  size_t end = text.size();
  while (end > 0) {
    const size_t last = LastCharacter(text.substr(0, end));
    if (kinds.Of(DecodeUtf8(text.data() + last).code_point) != kSpace) break;
    end = last;
  }
  return text.size() - end;
}
size_t SpacesAfter(std::string_view text) {
  const CharKinds& kinds = CharKinds::Get();
  size_t at = 0;
  while (at < text.size()) {
    const Character c = DecodeUtf8(text.data() + at);
    if (kinds.Of(c.code_point) != kSpace) break;
    at += c.bytes;
  }
  return at;
}

bool EndsWithWord(std::string_view text) {
  return !text.empty() && IsWordCharacter(DecodeUtf8(text.data() + LastCharacter(text)).code_point);
}
bool StartsWithWord(std::string_view text) {
  return !text.empty() && IsWordCharacter(DecodeUtf8(text.data()).code_point);
}

}  // namespace

void AddedTokens::Add(std::string_view name, Token token) {
  if (name.empty()) return;
  begins_[static_cast<unsigned char>(name[0])] = true;
  uint32_t node = 0;
  for (const char byte : name) {
    const auto [it, fresh] = children_.try_emplace(Edge(node, byte), static_cast<uint32_t>(token_of_.size()));
    if (fresh) token_of_.push_back(-1);
    node = it->second;
  }
  if (token_of_[node] >= 0) return;
  token_of_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

int32_t AddedTokens::Longest(std::string_view text, size_t* bytes) const {
  int32_t found = -1;
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto it = children_.find(Edge(node, text[i]));
    if (it == children_.end()) break;
    node = it->second;
    if (token_of_[node] < 0) continue;
    found = token_of_[node];
    *bytes = i + 1;
  }
  return found;
}

void AddedTokens::Split(std::string_view text, bool with_control,
                        absl::FunctionRef<void(std::string_view)> on_text,
                        absl::FunctionRef<void(int32_t)> on_token) const {
  size_t done = 0;
  size_t spaces_begin = 0,
         spaces_end = 0;  // white space that was counted: names may be of white space themselves
  for (size_t at = 0; at < text.size() && !tokens_.empty();) {
    size_t bytes = 0;
    const int32_t index =
        begins_[static_cast<unsigned char>(text[at])] ? Longest(text.substr(at), &bytes) : -1;
    if (index < 0) {
      ++at;
      continue;
    }
    const Token& token = tokens_[static_cast<size_t>(index)];
    size_t begin = at, end = at + bytes;
    at = end;
    if (token.is_control && !with_control) continue;
    if (token.single_word && (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end))))
      continue;
    // Never back over what the token before took (all of this one, maybe: `tokenizers` gives up there).
    if (token.lstrip && end < done) continue;
    if (token.lstrip && begin > done) begin -= SpacesBefore(text.substr(done, begin - done));
    if (token.rstrip) {
      if (end < spaces_begin || end > spaces_end) {
        spaces_begin = end;
        spaces_end = end + SpacesAfter(text.substr(end));
      }
      end = spaces_end;
    }
    if (begin > done) on_text(text.substr(done, begin - done));
    on_token(token.id);
    done = end;
  }
  if (done < text.size()) on_text(text.substr(done));
}

}  // namespace phalanx
