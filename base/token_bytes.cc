#include "base/token_bytes.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/byte_alphabet.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "base/tokenizer_json.h"

namespace phalanx {
namespace {

// tokenizer.ggml.token_type
enum TokenType : int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

}  // namespace

bool LooksLikeMark(std::string_view name) {
  for (const std::string_view bar : {std::string_view("|"), std::string_view("\uff5c")}) {
    if (name.size() > 2 * bar.size() + 2 && name.front() == '<' && name.back() == '>' &&
        name.substr(1, bar.size()) == bar && name.substr(name.size() - 1 - bar.size(), bar.size()) == bar) {
      return true;
    }
  }
  return false;
}

absl::StatusOr<TokenBytes> TokenBytesFromGguf(const GgufFile& file) {
  PHX_ASSIGN_OR_RETURN(const std::string_view model, file.GetString("tokenizer.ggml.model"));
  if (model != "gpt2") {
    return absl::UnimplementedError(absl::StrCat(file.path(), ": tokenizer.ggml.model '", ToAbsl(model),
                                                 "' is not supported; supported is 'gpt2' (byte-level BPE)"));
  }
  PHX_ASSIGN_OR_RETURN(const std::vector<std::string_view> tokens, file.GetStrings("tokenizer.ggml.tokens"));
  PHX_ASSIGN_OR_RETURN(const std::vector<int64_t> types, file.GetInts("tokenizer.ggml.token_type"));
  if (tokens.empty() || tokens.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tokenizer.ggml.tokens has ", tokens.size(),
                                                   " entries, must be 1 to 2^31-1"));
  }
  if (types.size() != tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tokenizer.ggml.token_type has ",
                                                   types.size(), " entries, tokenizer.ggml.tokens ",
                                                   tokens.size(), "; they must be equally many"));
  }
  TokenBytes table;
  table.bytes.reserve(tokens.size());
  table.is_control.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    switch (types[id]) {
      case kNormal:
        table.bytes.push_back(BytesOrPiece(tokens[id]));
        break;
      case kUnknown:
      case kControl:
      case kUserDefined:
      case kUnused:
        table.bytes.emplace_back(tokens[id]);
        break;
      default:
        return absl::InvalidArgumentError(absl::StrCat(
            file.path(), ": tokenizer.ggml.token_type of token ", id, " is ", types[id],
            ", must be 1 to 5 (normal, unknown, control, user-defined, unused) in a 'gpt2' tokenizer"));
    }
    table.is_control.push_back(types[id] != kNormal && types[id] != kUserDefined);
  }
  return table;
}

absl::StatusOr<TokenBytes> TokenBytesFromTokenizerJson(const std::string& directory) {
  PHX_ASSIGN_OR_RETURN(const TokenizerJson json, ReadTokenizerJson(directory));
  return TokenBytesOf(json);
}

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  for (std::string& text : stops) {
    if (text.empty()) continue;
    Stop stop;
    stop.fallback.assign(text.size(), 0);
    for (size_t i = 1, border = 0; i < text.size(); ++i) {
      while (border > 0 && text[i] != text[border]) border = stop.fallback[border - 1];
      if (text[i] == text[border]) ++border;
      stop.fallback[i] = border;
    }
    stop.text = std::move(text);
    stops_.push_back(std::move(stop));
  }
}

bool StopMatcher::Feed(std::string_view piece, std::string* out) {
  if (!matched_.empty()) return true;
  for (const char c : piece) {
    held_.push_back(c);
    const Stop* found = nullptr;
    for (Stop& stop : stops_) {
      while (stop.matched > 0 && c != stop.text[stop.matched]) stop.matched = stop.fallback[stop.matched - 1];
      if (c == stop.text[stop.matched]) ++stop.matched;
      if (stop.matched == stop.text.size() && (found == nullptr || found->text.size() < stop.text.size())) {
        found = &stop;
      }
    }
    if (found != nullptr) {
      out->append(held_, 0, held_.size() - found->text.size());
      matched_ = found->text;
      held_.clear();
      return true;
    }
  }
  size_t keep = 0;
  for (const Stop& stop : stops_) keep = std::max(keep, stop.matched);
  out->append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return false;
}

void StopMatcher::Finish(std::string* out) {
  out->append(held_);
  held_.clear();
  for (Stop& stop : stops_) stop.matched = 0;
}

}  // namespace phalanx
