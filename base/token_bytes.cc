#include "base/token_bytes.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"

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

// GPT-2's byte alphabet: printable Latin-1 bytes stand for themselves, the other 68 for U+0100 and up, in
// order. Returns code point -> byte, -1 where a code point stands for none.
constexpr int kAlphabetEnd = 0x100 + 68;
std::array<int, kAlphabetEnd> ByteOfCodePoint() {
  std::array<int, kAlphabetEnd> table;
  table.fill(-1);
  int next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    table[printable ? b : next++] = b;
  }
  return table;
}

// The bytes a piece in GPT-2's alphabet stands for. A piece with any other character stands for itself, as in
// Hugging Face's byte-level decoder.
std::string DecodePiece(std::string_view piece) {
  static const std::array<int, kAlphabetEnd> kTable = ByteOfCodePoint();
  std::string out;
  out.reserve(piece.size());
  for (size_t i = 0; i < piece.size();) {
    // The alphabet ends below U+0800: one or two bytes a character.
    const auto lead = static_cast<unsigned char>(piece[i]);
    int code_point = -1;
    if (lead < 0x80) {
      code_point = lead;
      i += 1;
    } else if (lead >= 0xc2 && lead < 0xe0 && i + 1 < piece.size() &&
               (static_cast<unsigned char>(piece[i + 1]) & 0xc0) == 0x80) {
      code_point = (lead & 0x1f) << 6 | (static_cast<unsigned char>(piece[i + 1]) & 0x3f);
      i += 2;
    }
    if (code_point < 0 || code_point >= kAlphabetEnd || kTable[code_point] < 0) return std::string(piece);
    out.push_back(static_cast<char>(kTable[code_point]));
  }
  return out;
}

}  // namespace

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
        table.bytes.push_back(DecodePiece(tokens[id]));
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
