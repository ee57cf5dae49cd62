// Python's text % arguments.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "coordinator/text/jinja_operators.h"

namespace phalanx::jinja {
namespace {

struct Directive {
  std::string flags;
  int64_t width = 0;
  int64_t precision = -1;
  char type = 0;
};

constexpr int64_t kMaxWidth = 1000;

absl::StatusOr<std::string> FormatNumber(const Directive& d, const Value& value) {
  const std::string wanted = absl::StrCat("%", std::string(1, d.type));
  if (d.type == 'd' || d.type == 'i' || d.type == 'u' || d.type == 'x' || d.type == 'X' || d.type == 'o') {
    std::optional<int64_t> n = value.number();
    if (!n && value.real() != nullptr && d.type != 'x' && d.type != 'X' && d.type != 'o' &&
        std::fabs(*value.real()) < 9e18) {
      n = static_cast<int64_t>(*value.real());
    }
    if (!n) return WrongType(wanted, value, "an int");
    const uint64_t magnitude = *n < 0 ? uint64_t{0} - static_cast<uint64_t>(*n) : static_cast<uint64_t>(*n);
    std::string digits = d.type == 'x'   ? absl::StrFormat("%x", magnitude)
                         : d.type == 'X' ? absl::StrFormat("%X", magnitude)
                         : d.type == 'o' ? absl::StrFormat("%o", magnitude)
                                         : absl::StrCat(magnitude);
    if (d.precision > static_cast<int64_t>(digits.size())) {
      digits.insert(0, static_cast<size_t>(d.precision) - digits.size(), '0');
    }
    return absl::StrCat(*n < 0 ? "-" : "", digits);
  }
  if (!value.as_double()) return WrongType(wanted, value, "a number");
  const int precision = static_cast<int>(d.precision < 0 ? 6 : d.precision);
  const double v = *value.as_double();
  switch (d.type) {
    case 'f':
    case 'F':
      return absl::StrFormat("%.*f", precision, v);
    case 'e':
      return absl::StrFormat("%.*e", precision, v);
    case 'E':
      return absl::StrFormat("%.*E", precision, v);
    case 'g':
      return absl::StrFormat("%.*g", precision, v);
    default:
      return absl::StrFormat("%.*G", precision, v);
  }
}

// Reads the digits at `*at`.
int64_t ReadCount(std::string_view text, size_t* at) {
  int64_t count = 0;
  for (; *at < text.size() && text[*at] >= '0' && text[*at] <= '9'; ++*at) {
    count = std::min<int64_t>(count * 10 + (text[*at] - '0'), kMaxWidth + 1);
  }
  return count;
}

absl::Status Pad(const Directive& d, bool number, Text* text) {
  const int64_t missing = d.width - CountCharacters(text->view());
  if (missing <= 0) return absl::OkStatus();
  const bool left = d.flags.find('-') != std::string::npos;
  const bool zeros = number && !left && d.flags.find('0') != std::string::npos;
  const std::string fill(static_cast<size_t>(missing), zeros ? '0' : ' ');
  TextBuilder out;
  const bool sign = zeros && (text->view()[0] == '-' || text->view()[0] == '+');
  if (sign) out.Append(text->Sub(0, 1));
  if (!left) out.Append(fill, false);
  out.Append(text->Sub(sign ? 1 : 0));
  if (left) out.Append(fill, false);
  *text = std::move(out).Build();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Value> PercentFormat(const Text& text, const Value& arguments, Budget* budget) {
  const std::string_view format = text.view();
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(format.size())));
  const bool tuple = arguments.is_list(List::Kind::kTuple);
  size_t used = 0;
  const auto next = [&]() -> absl::StatusOr<Value> {
    if (tuple ? used < arguments.list()->items.size() : used == 0) {
      return tuple ? arguments.list()->items[used++] : (++used, arguments);
    }
    return absl::InvalidArgumentError("not enough arguments for a format string");
  };
  TextBuilder out;
  size_t at = 0;
  while (true) {
    const size_t percent = format.find('%', at);
    out.Append(text.Sub(at, percent == std::string_view::npos ? percent : percent - at));
    if (percent == std::string_view::npos) break;
    at = percent + 1;
    Directive d;
    std::optional<Value> named;
    if (at < format.size() && format[at] == '(') {
      const size_t close = format.find(')', at);
      if (close == std::string_view::npos) return absl::InvalidArgumentError("a format's key is not closed");
      if (arguments.dict() == nullptr) return WrongType("%(key)", arguments, "a mapping");
      const Value* found = arguments.dict()->Find(format.substr(at + 1, close - at - 1));
      if (found == nullptr) return absl::InvalidArgumentError("a format's key is not in the mapping");
      named = *found;
      used = 1;
      at = close + 1;
    }
    while (at < format.size() && std::string_view("#0- +").find(format[at]) != std::string_view::npos) {
      d.flags += format[at++];
    }
    d.width = ReadCount(format, &at);
    if (at < format.size() && format[at] == '.') d.precision = ReadCount(format, &++at);
    if (at >= format.size()) return absl::InvalidArgumentError("an incomplete format");
    if (d.width > kMaxWidth || d.precision > kMaxWidth) {
      return absl::UnimplementedError(absl::StrCat("a format wider than ", kMaxWidth));
    }
    d.type = format[at++];
    if (d.type == '%') {
      out.Append("%", false);
      continue;
    }
    if (std::string_view("srdiuxXofFeEgG").find(d.type) == std::string_view::npos) {
      return absl::UnimplementedError(absl::StrCat("format %", std::string(1, d.type), " is not supported"));
    }
    if (!named) {
      PHX_ASSIGN_OR_RETURN(named, next());
    }
    Text piece;
    const bool number = d.type != 's' && d.type != 'r';
    if (number) {
      PHX_ASSIGN_OR_RETURN(std::string formatted, FormatNumber(d, *named));
      if (formatted[0] != '-' && d.flags.find('+') != std::string::npos)
        formatted = absl::StrCat("+", formatted);
      if (formatted[0] != '-' && formatted[0] != '+' && d.flags.find(' ') != std::string::npos) {
        formatted = absl::StrCat(" ", formatted);
      }
      piece = Text(std::move(formatted), false);
    } else {
      absl::StatusOr<Text> shown = d.type == 's' ? ToText(*named) : ReprText(*named);
      PHX_RETURN_IF_ERROR(shown.status());
      piece = *std::move(shown);
      if (d.precision >= 0 && CountCharacters(piece.view()) > d.precision) {
        piece = piece.Sub(0, CharacterOffsets(piece.view())[static_cast<size_t>(d.precision)]);
      }
    }
    PHX_RETURN_IF_ERROR(Pad(d, number, &piece));
    PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(piece.size())));
    out.Append(piece);
    if (out.size() > static_cast<size_t>(kMaxStringBytes)) {
      return absl::ResourceExhaustedError(absl::StrCat("a string above ", kMaxStringBytes, " bytes"));
    }
  }
  if (tuple ? used < arguments.list()->items.size()
            : used == 0 && arguments.dict() == nullptr && !arguments.is_list(List::Kind::kList)) {
    return absl::InvalidArgumentError("not all arguments of a format string are used");
  }
  return Value(std::move(out).Build());
}

}  // namespace phalanx::jinja
