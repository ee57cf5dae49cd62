#include "coordinator/text/jinja_lexer.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/jinja_value.h"
#include "coordinator/text/utf8.h"

namespace phalanx::jinja {
namespace {

constexpr size_t kMaxBrackets = 200;  // open at a time; the parser has closer bounds

// Longer operators first.
constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", "<=", ">=", "+", "-", "*",
                                           "/",  "%",  "~",  "<",  ">",  "=",  "(", ")", "[",
                                           "]",  "{",  "}",  ",",  ".",  ":",  "|", ";"};

// All line ends become \n, and one at the very end goes.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      out.push_back('\n');
    } else {
      out.push_back(source[i]);
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) {
      PHX_RETURN_IF_ERROR(LexTextAndOpener());
    }
    Emit(Token::Kind::kEnd, "end of template");
    return std::move(tokens_);
  }

 private:
  bool StartsWith(std::string_view s) const { return source_.substr(at_, s.size()) == s; }
  char Peek(size_t ahead = 0) const { return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0'; }
  void Emit(Token::Kind kind, std::string_view text) { tokens_.push_back({kind, std::string(text), line_}); }
  void Advance(size_t bytes) {
    line_ += static_cast<int>(std::count(source_.begin() + at_, source_.begin() + at_ + bytes, '\n'));
    at_ += bytes;
    line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
  }
  void SkipSpace() {
    while (at_ < source_.size() && IsSpace(CodePoint(source_.substr(at_)))) {
      Advance(NextUtf8(source_.substr(at_)).bytes);
    }
  }
  absl::Status Fail(const std::string& message, int line = 0) const {
    return ErrorAt(line == 0 ? line_ : line, absl::StatusCode::kInvalidArgument, message);
  }

  absl::Status LexTextAndOpener();
  absl::Status LexTag(Token::Kind end);
  absl::StatusOr<bool> LexTagEnd(Token::Kind end);
  absl::Status LexTagToken();
  absl::Status LexNumber();
  absl::StatusOr<bool> LexRaw();
  absl::Status LexString();

  std::string_view source_;
  size_t at_ = 0;
  std::string brackets_;  // open ones of the tag, as what closes them
  int line_ = 1;
  bool line_starting_ = true;  // the last token ended with a line
  std::vector<Token> tokens_;
};

absl::Status Lexer::LexTextAndOpener() {
  size_t opener = at_;
  while (opener < source_.size()) {
    opener = source_.find('{', opener);
    if (opener == std::string_view::npos) opener = source_.size();
    if (opener + 1 < source_.size()) {
      const char second = source_[opener + 1];
      if (second == '{' || second == '%' || second == '#') break;
    }
    if (opener < source_.size()) ++opener;
  }
  std::string_view text = source_.substr(at_, opener - at_);
  if (opener == source_.size()) {
    if (!text.empty()) Emit(Token::Kind::kText, text);
    Advance(text.size());
    return absl::OkStatus();
  }
  const char type = source_[opener + 1];
  const char sign = opener + 2 < source_.size() ? source_[opener + 2] : '\0';
  const size_t text_bytes = text.size();
  if (sign == '-') {
    text = Strip(text, /*left=*/false, /*right=*/true);
  } else if (sign != '+' && type != '{') {
    // lstrip_blocks: white space alone between the line's start and the tag goes.
    const size_t newline = text.rfind('\n');
    const size_t start = newline == std::string_view::npos ? 0 : newline + 1;
    if ((start > 0 || line_starting_) && Strip(text.substr(start), true, false).empty()) {
      text = text.substr(0, start);
    }
  }
  if (!text.empty()) Emit(Token::Kind::kText, text);
  Advance(text_bytes);
  const int line = line_;
  if (type == '%') {
    PHX_ASSIGN_OR_RETURN(const bool raw, LexRaw());
    if (raw) return absl::OkStatus();
  }
  if (type == '{') Emit(Token::Kind::kVariableBegin, "{{");
  if (type == '%') Emit(Token::Kind::kBlockBegin, "{%");
  Advance(sign == '-' || sign == '+' ? 3 : 2);
  if (type == '{') return LexTag(Token::Kind::kVariableEnd);
  if (type == '%') return LexTag(Token::Kind::kBlockEnd);

  const size_t end = source_.find("#}", at_);
  if (end == std::string_view::npos) return Fail("comment {# is not closed", line);
  const char before = end > at_ ? source_[end - 1] : '\0';
  Advance(end + 2 - at_);
  if (before == '-') {
    SkipSpace();
  } else if (before != '+' && Peek() == '\n') {
    Advance(1);
  }
  return absl::OkStatus();
}

absl::Status Lexer::LexTag(Token::Kind end) {
  const int line = line_;
  while (true) {
    SkipSpace();
    if (at_ >= source_.size()) {
      return Fail(end == Token::Kind::kBlockEnd ? "tag {% is not closed" : "tag {{ is not closed", line);
    }
    PHX_ASSIGN_OR_RETURN(const bool ended, LexTagEnd(end));
    if (ended) return absl::OkStatus();
    PHX_RETURN_IF_ERROR(LexTagToken());
  }
}

// Takes the tag's end, with the white space that goes with it.
absl::StatusOr<bool> Lexer::LexTagEnd(Token::Kind end) {
  const bool block = end == Token::Kind::kBlockEnd;
  const std::string_view close = block ? "%}" : "}}";
  const bool has_sign = Peek() == '-' || (block && Peek() == '+');
  const char sign = has_sign ? Peek() : '\0';
  if (!brackets_.empty() || source_.substr(at_ + (has_sign ? 1 : 0), 2) != close) return false;
  Emit(end, close);
  Advance(has_sign ? 3 : 2);
  if (sign == '-') {
    SkipSpace();
  } else if (block && sign != '+' && Peek() == '\n') {
    Advance(1);  // trim_blocks
  }
  return true;
}

absl::Status Lexer::LexTagToken() {
  const char c = Peek();
  if (c == '\'' || c == '"') return LexString();
  const auto is_word = [](char w) { return absl::ascii_isalnum(static_cast<unsigned char>(w)) || w == '_'; };
  if (absl::ascii_isdigit(static_cast<unsigned char>(c))) return LexNumber();
  if (is_word(c)) {
    size_t length = 1;
    while (is_word(Peek(length))) ++length;
    const std::string_view word = source_.substr(at_, length);
    Emit(Token::Kind::kName, word);
    Advance(length);
    return absl::OkStatus();
  }
  for (const std::string_view op : kOperators) {
    if (StartsWith(op)) {
      static constexpr std::string_view kOpen = "([{", kClose = ")]}";
      if (const size_t opens = kOpen.find(c); opens != std::string_view::npos) {
        if (brackets_.size() >= kMaxBrackets) {
          return ErrorAt(line_, absl::StatusCode::kUnimplemented, "an expression this deep is not supported");
        }
        brackets_ += kClose[opens];
      }
      if (kClose.find(c) != std::string_view::npos) {
        if (brackets_.empty() || brackets_.back() != c) {
          return Fail(absl::StrCat("unexpected '", std::string(1, c), "'"));
        }
        brackets_.pop_back();
      }
      Emit(Token::Kind::kOperator, op);
      Advance(op.size());
      return absl::OkStatus();
    }
  }
  return Fail(absl::StrCat("unexpected character '",
                           absl::CEscape(ToAbsl(source_.substr(at_, NextUtf8(source_.substr(at_)).bytes))),
                           "'"));
}

// As Jinja's: underscores between digits, 0x, 0o and 0b; a float has digits on both sides of its point.
absl::Status Lexer::LexNumber() {
  std::string text;
  size_t length = 0;
  const auto digits = [&](int base) {
    const size_t before = text.size();
    while (true) {
      const char c = absl::ascii_tolower(static_cast<unsigned char>(Peek(length)));
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
      if (digit < base) {
        text.push_back(c);
      } else if (c != '_' || text.size() == before) {
        return text.size() > before;
      }
      ++length;
    }
  };
  const char prefix = absl::ascii_tolower(static_cast<unsigned char>(Peek(1)));
  const int base = Peek() != '0' ? 10 : prefix == 'x' ? 16 : prefix == 'o' ? 8 : prefix == 'b' ? 2 : 10;
  if (base != 10) length = 2;
  const auto digit_at = [this](size_t at) {
    return absl::ascii_isdigit(static_cast<unsigned char>(Peek(at)));
  };
  bool good = digits(base), real = false;
  const bool attribute =
      !tokens_.empty() && tokens_.back().kind == Token::Kind::kOperator && tokens_.back().text == ".";
  if (base == 10 && !attribute) {
    if (Peek(length) == '.' && digit_at(length + 1)) {
      real = true;
      text.push_back('.');
      ++length;
      good = digits(10);
    }
    const bool sign = Peek(length + 1) == '+' || Peek(length + 1) == '-';
    if ((Peek(length) == 'e' || Peek(length) == 'E') && digit_at(length + (sign ? 2 : 1))) {
      real = true;
      text.push_back('e');
      if (sign) text.push_back(Peek(length + 1));
      length += sign ? 2 : 1;
      good = digits(10);
    }
    if (!real && text.size() > 1 && text[0] == '0' && text.find_first_not_of('0') != std::string::npos) {
      good = false;
    }
  }
  const char next = Peek(length);
  if (!good || source_[at_ + length - 1] == '_' || next == '_' ||
      absl::ascii_isalnum(static_cast<unsigned char>(next))) {
    return Fail(absl::StrCat("bad number '", ToAbsl(source_.substr(at_, length)), "'"));
  }
  if (base != 10) {
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (error != std::errc() || end != text.data() + text.size()) {
      return Fail(absl::StrCat("integer ", ToAbsl(source_.substr(at_, 40)), " does not fit 64 bits"));
    }
    text = absl::StrCat(value);
  }
  Emit(real ? Token::Kind::kFloat : Token::Kind::kInteger, text);
  Advance(length);
  return absl::OkStatus();
}

// Takes {% raw %}...{% endraw %}, if that is what comes.
absl::StatusOr<bool> Lexer::LexRaw() {
  // {%, a sign, the word, a sign, %}; `*end` is behind it.
  const auto tag = [this](size_t at, std::string_view word, char* before, char* after, size_t* end) {
    at += 2;
    const auto sign = [&](char* out) {
      *out = at < source_.size() && (source_[at] == '-' || source_[at] == '+') ? source_[at] : '\0';
      if (*out != '\0') ++at;
    };
    sign(before);
    const auto skip = [&] {
      const std::string_view rest = source_.substr(at);
      at += rest.size() - Strip(rest, true, false).size();
    };
    skip();
    if (source_.substr(at, word.size()) != word) return false;
    at += word.size();
    skip();
    sign(after);
    if (source_.substr(at, 2) != "%}") return false;
    *end = at + 2;
    return true;
  };
  char before = 0, after = 0;
  size_t end = 0;
  if (!tag(at_, "raw", &before, &after, &end) || after == '+') return false;
  const int line = line_;
  Advance(end - at_);
  if (after == '-') SkipSpace();
  for (size_t close = at_;; close += 2) {
    close = source_.find("{%", close);
    if (close == std::string_view::npos) return Fail("{% raw %} is not closed", line);
    if (!tag(close, "endraw", &before, &after, &end)) continue;
    std::string_view text = source_.substr(at_, close - at_);
    if (before == '-') {
      text = Strip(text, false, true);
    } else if (before != '+') {
      const size_t start = text.rfind('\n') + 1;  // 0 without one
      if ((start > 0 || line_starting_) && Strip(text.substr(start), true, false).empty()) {
        text = text.substr(0, start);
      }
    }
    if (!text.empty()) Emit(Token::Kind::kText, text);
    Advance(end - at_);
    if (after == '-') {
      SkipSpace();
    } else if (after != '+' && Peek() == '\n') {
      Advance(1);
    }
    return true;
  }
}

// Escapes as in Python.
absl::Status Lexer::LexString() {
  const int line = line_;
  const char quote = Peek();
  std::string value;
  size_t i = at_ + 1;
  const auto digits = [&](size_t most, int base, uint32_t* out) {
    size_t n = 0;
    for (*out = 0; n < most && i < source_.size(); ++n, ++i) {
      const char d = source_[i];
      const int digit = absl::ascii_isdigit(static_cast<unsigned char>(d)) ? d - '0'
                        : d >= 'a' && d <= 'f'                             ? d - 'a' + 10
                        : d >= 'A' && d <= 'F'                             ? d - 'A' + 10
                                                                           : 99;
      if (digit >= base) break;
      *out = *out * base + static_cast<uint32_t>(digit);
    }
    return n;
  };
  while (true) {
    if (i >= source_.size()) return Fail("string is not closed", line);
    const char c = source_[i++];
    if (c == quote) break;
    if (c != '\\') {
      value.push_back(c);
      continue;
    }
    if (i >= source_.size()) return Fail("string is not closed", line);
    const char escape = source_[i++];
    static constexpr std::string_view kNames = "ntrabfv\\'\"", kValues = "\n\t\r\a\b\f\v\\'\"";
    if (const size_t known = kNames.find(escape); known != std::string_view::npos) {
      value.push_back(kValues[known]);
    } else if (escape == 'x' || escape == 'u' || escape == 'U') {
      const size_t wanted = escape == 'x' ? 2 : escape == 'u' ? 4 : 8;
      uint32_t code_point = 0;
      if (digits(wanted, 16, &code_point) < wanted || code_point > 0x10ffff ||
          (code_point >= 0xd800 && code_point < 0xe000)) {
        return Fail(absl::StrCat("bad escape \\", std::string(1, escape), " in a string"), line);
      }
      AppendCodePoint(code_point, &value);
    } else if (escape >= '0' && escape <= '7') {
      --i;
      uint32_t code_point = 0;
      digits(3, 8, &code_point);
      AppendCodePoint(code_point, &value);
    } else if (escape == 'N') {
      return ErrorAt(line, absl::StatusCode::kUnimplemented, "escape \\N in a string is not supported");
    } else if (escape != '\n') {  // a line end that is escaped goes; any other escape stands for itself
      value.push_back('\\');
      value.push_back(escape);
    }
  }
  Emit(Token::Kind::kString, value);
  Advance(i - at_);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<Token>> Lex(std::string_view source) {
  const std::string normalized = NormalizeNewlines(source);
  return Lexer(normalized).Run();
}

absl::Status ErrorAt(int line, absl::StatusCode code, const std::string& message) {
  return absl::Status(code, absl::StrCat("line ", line, ": ", message));
}

}  // namespace phalanx::jinja
