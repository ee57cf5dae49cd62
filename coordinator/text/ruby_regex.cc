#include "coordinator/text/ruby_regex.h"

#include <cctype>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

// White_Space; PCRE2's own \s adds U+180E.
#define PHX_WHITE_SPACE \
  "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

class Translator {
 public:
  explicit Translator(std::string_view regex) : regex_(regex) {}

  absl::StatusOr<std::string> Run() {
    if (Skip("(?i)")) out_ = "(?i)";  // elsewhere Ruby takes the alternatives that follow into it
    while (at_ < regex_.size()) PHX_RETURN_IF_ERROR(Next());
    return out_;
  }

 private:
  absl::Status Unsupported(std::string_view what) const {
    return absl::UnimplementedError(absl::StrCat("regular expression ", Quote(regex_), " at ", at_, ": ",
                                                 ToAbsl(what), " is not supported"));
  }
  bool Skip(std::string_view what) {
    if (regex_.substr(at_, what.size()) != what) return false;
    at_ += what.size();
    return true;
  }
  char Peek(size_t ahead = 0) const { return at_ + ahead < regex_.size() ? regex_[at_ + ahead] : '\0'; }

  absl::Status Next() {
    switch (Peek()) {
      case '(':
        return Open();
      case ')':
        if (groups_.empty()) return Unsupported("an unmatched ')'");
        atom_ = groups_.back();
        groups_.pop_back();
        out_ += regex_[at_++];
        return absl::OkStatus();
      case '[':
        return Class();
      case '{':
        return Interval();
      case '*':
      case '+':
      case '?':
        out_ += regex_[at_++];
        // Lazy and possessive: the same in both. More than that is a quantifier of a quantifier in Ruby.
        if (Peek() == '?' || Peek() == '+') out_ += regex_[at_++];
        if (IsQuantifier(Peek())) return Unsupported("a quantifier of a quantifier");
        return absl::OkStatus();
      case '\\':
        atom_ = out_.size();
        return Escape(false);
      default:
        atom_ = out_.size();
        do {
          out_ += regex_[at_++];
        } while ((static_cast<unsigned char>(Peek()) & 0xc0) == 0x80);  // a character is one atom
        return absl::OkStatus();
    }
  }

  static bool IsQuantifier(char c) { return c == '*' || c == '+' || c == '?' || c == '{'; }

  absl::Status Open() {
    groups_.push_back(out_.size());
    for (const std::string_view kind : {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
      if (!Skip(kind)) continue;
      out_ += kind;
      return absl::OkStatus();
    }
    if (Peek(1) == '?') return Unsupported("this kind of group");
    out_ += "(";
    ++at_;
    return absl::OkStatus();
  }

  absl::Status Interval() {
    const size_t end = regex_.find('}', at_);
    const std::string_view inside =
        end == std::string_view::npos ? std::string_view() : regex_.substr(at_ + 1, end - at_ - 1);
    const size_t comma = inside.find(',');
    const bool numbers =
        !inside.empty() && std::isdigit(static_cast<unsigned char>(inside[0])) != 0 &&
        inside.find_first_not_of("0123456789,") == std::string_view::npos &&
        (comma == std::string_view::npos || inside.find(',', comma + 1) == std::string_view::npos);
    if (!numbers) return Unsupported("a '{' that is no interval like {1,3}");
    at_ = end + 1;
    const std::string interval = absl::StrCat("{", ToAbsl(inside), "}");
    if (Peek() == '+') {
      // Not possessive in Ruby: any number of intervals.
      ++at_;
      out_.insert(atom_, "(?:");
      out_ += interval + ")+";
    } else {
      if (Peek() == '?' && comma == std::string_view::npos) return Unsupported("'?' behind {n}");
      out_ += interval;
      if (Peek() == '?') out_ += regex_[at_++];
    }
    if (IsQuantifier(Peek())) return Unsupported("a quantifier of a quantifier");
    return absl::OkStatus();
  }

  absl::Status Class() {
    atom_ = out_.size();
    out_ += '[';
    ++at_;
    if (Skip("^")) out_ += '^';
    if (Peek() == ']') return Unsupported("an empty class or a ']' first in a class");
    while (Peek() != ']') {
      if (at_ >= regex_.size()) return Unsupported("a class without an end");
      if (Peek() == '[') return Unsupported("a class or '[' in a class");
      if (Peek() == '&' && Peek(1) == '&') return Unsupported("'&&' in a class");
      if (Peek() == '\\') {
        PHX_RETURN_IF_ERROR(Escape(true));
      } else {
        out_ += regex_[at_++];
      }
    }
    out_ += regex_[at_++];
    return absl::OkStatus();
  }

  absl::Status Escape(bool in_class) {
    const char c = Peek(1);
    if (c == 's' || (c == 'S' && !in_class)) {
      at_ += 2;
      out_ += in_class ? PHX_WHITE_SPACE : c == 's' ? "[" PHX_WHITE_SPACE "]" : "[^" PHX_WHITE_SPACE "]";
      return absl::OkStatus();
    }
    if ((c == 'p' || c == 'P') && Peek(2) == '{') {
      const size_t end = regex_.find('}', at_);
      if (end == std::string_view::npos) return Unsupported("a property without an end");
      out_ += regex_.substr(at_, end + 1 - at_);
      at_ = end + 1;
      return absl::OkStatus();
    }
    if (c == 'u' || (c == 'x' && Peek(2) == '{')) {
      const size_t digits = at_ + (c == 'u' ? 2 : 3);
      const size_t end = c == 'u' ? digits + 4 : regex_.find('}', digits);
      const std::string_view code =
          end <= regex_.size() ? regex_.substr(digits, end - digits) : std::string_view();
      if (code.empty() || code.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
        return Unsupported("an escape without its hexadecimal digits");
      }
      absl::StrAppend(&out_, "\\x{", ToAbsl(code), "}");
      at_ = end + (c == 'u' ? 0 : 1);
      return absl::OkStatus();
    }
    const std::string_view plain = in_class ? "SdDnrtf" : "dDnrtfAz";
    const bool sign = c != '\0' && std::ispunct(static_cast<unsigned char>(c)) != 0;
    if (!sign && c != ' ' && plain.find(c) == std::string_view::npos) {
      return Unsupported(absl::StrCat("the escape \\", std::string(1, c)));
    }
    out_ += regex_.substr(at_, 2);
    at_ += 2;
    return absl::OkStatus();
  }

  const std::string_view regex_;
  size_t at_ = 0;
  std::string out_;
  size_t atom_ = 0;             // where in out_ what a quantifier would repeat begins
  std::vector<size_t> groups_;  // where in out_ the open groups began
};

#undef PHX_WHITE_SPACE

}  // namespace

absl::StatusOr<std::string> Pcre2FromRuby(std::string_view regex) { return Translator(regex).Run(); }

}  // namespace phalanx
