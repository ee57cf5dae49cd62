// Filters of strings and numbers.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <iterator>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/jinja_functions.h"
#include "coordinator/text/jinja_unicode.h"
#include "coordinator/text/utf8.h"

namespace phalanx::jinja {
namespace {

constexpr int64_t kMaxIndent = 1000;

constexpr std::string_view kFilters[] = {
    "abs",    "batch",      "capitalize", "count",   "d",       "default", "dictsort", "e",
    "escape", "first",      "float",      "format",  "groupby", "indent",  "int",      "items",
    "join",   "last",       "length",     "list",    "lower",   "map",     "max",      "min",
    "reject", "rejectattr", "replace",    "reverse", "round",   "safe",    "select",   "selectattr",
    "slice",  "sort",       "string",     "sum",     "title",   "tojson",  "trim",     "truncate",
    "unique", "upper",      "wordcount"};

absl::StatusOr<Value> Indent(const Text& text, const Arguments& arguments, Budget* budget) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("indent", arguments, {"width", "first", "blank"}, 0));
  Text indent;
  if (args.has(0) && args[0].text() != nullptr) {
    indent = *args[0].text();
  } else {
    PHX_ASSIGN_OR_RETURN(const int64_t width, args.IntOf(0, 4));
    if (width > kMaxIndent) {
      return absl::InvalidArgumentError(
          absl::StrCat("indent: width ", width, ", at most ", kMaxIndent, " is supported"));
    }
    indent = Text(std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' '), false);
  }
  PHX_ASSIGN_OR_RETURN(const Text ended, Concat(text, Text("\n", false), budget));
  PHX_ASSIGN_OR_RETURN(const Value lines, SplitLines(ended, false, budget));
  TextBuilder out;
  if (args.truthy(1)) out.Append(indent);
  bool first = true;
  for (const Value& line : lines.list()->items) {
    if (!first) {
      out.Append("\n", false);
      if (args.truthy(2) || !line.text()->empty()) out.Append(indent);
    }
    first = false;
    out.Append(*line.text());
    if (out.size() > static_cast<size_t>(kMaxStringBytes)) {
      return absl::ResourceExhaustedError(absl::StrCat("indent: a string above ", kMaxStringBytes, " bytes"));
    }
  }
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(out.size())));
  return Value(std::move(out).Build());
}

absl::StatusOr<Value> ToJsonFilter(const Value& input, const Arguments& arguments, Budget* budget) {
  PHX_ASSIGN_OR_RETURN(
      const Bound args,
      Bound::Bind("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"}, 0));
  JsonStyle style;
  style.ensure_ascii = args.truthy(0);
  style.sort_keys = args.truthy(3);
  if (args.has(1) && args[1].text() != nullptr) {
    style.indent = std::string(args[1].text()->view());
  } else if (args.has(1) && !args[1].is_none()) {
    PHX_ASSIGN_OR_RETURN(const int64_t indent, args.IntOf(1, 0));
    if (indent > kMaxIndent) {
      return absl::InvalidArgumentError(
          absl::StrCat("tojson: indent ", indent, " is not supported; 0 to ", kMaxIndent, " are"));
    }
    style.indent = std::string(static_cast<size_t>(std::max<int64_t>(indent, 0)), ' ');
  }
  if (style.indent) style.item_separator.resize(1);
  if (args.has(2) && !args[2].is_none()) {
    const List* two = args[2].list();
    if (two == nullptr || two->items.size() != 2 || two->items[0].text() == nullptr ||
        two->items[1].text() == nullptr) {
      return WrongType("tojson: separators", args[2], "a tuple of two str");
    }
    style.item_separator = std::string(two->items[0].text()->view());
    style.key_separator = std::string(two->items[1].text()->view());
  }
  PHX_RETURN_IF_ERROR(budget->Charge(input.extent().weight * 4));
  PHX_ASSIGN_OR_RETURN(Text json, ToJson(input, style));
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(json.size())));
  return Value(std::move(json));
}

// Python's float() of a string; absent if it is none.
std::optional<double> ParseFloat(std::string_view text) {
  const std::string s(Strip(text, true, true));
  std::string plain;
  for (size_t i = 0; i < s.size(); ++i) {
    const auto digit = [&s](size_t at) { return at < s.size() && s[at] >= '0' && s[at] <= '9'; };
    if (s[i] == '_' && i > 0 && digit(i - 1) && digit(i + 1)) continue;
    plain.push_back(s[i]);
  }
  if (plain.find_first_of("xXpP_") != std::string::npos) return std::nullopt;
  double value = 0;
  return absl::SimpleAtod(plain, &value) ? std::optional<double>(value) : std::nullopt;
}

std::optional<Value> IntOfDouble(double v) {
  if (std::isnan(v) || std::isinf(v)) return std::nullopt;
  if (std::fabs(v) < 9.2e18) return Value::Int(static_cast<int64_t>(v));
  return Value::Big(absl::StrFormat("%.0f", std::trunc(v)));
}

// Python's int() of a string; absent if it is none.
std::optional<Value> ParseInt(std::string_view text, int64_t base) {
  const std::string s(Strip(text, true, true));
  size_t at = !s.empty() && (s[0] == '-' || s[0] == '+') ? 1 : 0;
  if ((base == 16 || base == 2 || base == 8 || base == 0) && s.size() > at + 2 && s[at] == '0') {
    const char p = static_cast<char>(s[at + 1] | 0x20);
    const int64_t named = p == 'x' ? 16 : p == 'o' ? 8 : p == 'b' ? 2 : 0;
    if (named != 0 && (base == named || base == 0)) {
      base = named;
      at += 2;
      if (s[at] == '_') ++at;
    }
  }
  if (base == 0) base = 10;
  std::string digits;
  for (bool after_digit = false; at < s.size(); ++at) {
    const char c = s[at];
    const int digit = c >= '0' && c <= '9'                     ? c - '0'
                      : (c | 0x20) >= 'a' && (c | 0x20) <= 'z' ? (c | 0x20) - 'a' + 10
                                                               : 99;
    if (c == '_' && after_digit && at + 1 < s.size()) {
      after_digit = false;
      continue;
    }
    if (digit >= base) return std::nullopt;
    digits.push_back(c);
    after_digit = true;
  }
  if (digits.empty() || s.back() == '_') return std::nullopt;
  const char* const sign = s[0] == '-' ? "-" : "";
  errno = 0;
  const long long value = std::strtoll(absl::StrCat(sign, digits).c_str(), nullptr, static_cast<int>(base));
  if (errno == 0) return Value::Int(value);
  if (base != 10) return std::nullopt;
  digits.erase(0, digits.find_first_not_of('0'));
  return Value::Big(absl::StrCat(sign, digits));
}

absl::StatusOr<Value> ToInt(const Value& input, const Arguments& arguments) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("int", arguments, {"default", "base"}, 0));
  PHX_ASSIGN_OR_RETURN(const int64_t base, args.IntOf(1, 10));
  const Value otherwise = args.Or(0, Value::Int(0));
  if (base != 0 && (base < 2 || base > 36)) return otherwise;
  if (input.big() != nullptr) return input;
  if (input.number()) return Value::Int(*input.number());
  std::optional<double> real;
  if (const Text* text = input.text()) {
    if (const std::optional<Value> value = ParseInt(text->view(), base)) return *value;
    real = ParseFloat(text->view());
  } else if (input.real() != nullptr) {
    real = *input.real();
  }
  return (real ? IntOfDouble(*real) : std::nullopt).value_or(otherwise);
}

absl::StatusOr<Value> ToFloat(const Value& input, const Arguments& arguments) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("float", arguments, {"default"}, 0));
  std::optional<double> real = input.as_double();
  if (input.text() != nullptr) real = ParseFloat(input.text()->view());
  if (input.big() != nullptr) real = ParseFloat(input.big()->digits);
  return real ? Value::Float(*real) : args.Or(0, Value::Float(0));
}

absl::StatusOr<Value> Round(const Value& input, const Arguments& arguments) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("round", arguments, {"precision", "method"}, 0));
  PHX_ASSIGN_OR_RETURN(const int64_t precision, args.IntOf(0, 0));
  const Value method_value = args.Or(1, Value::Str("common"));
  const std::string_view method = method_value.text() == nullptr ? "" : method_value.text()->view();
  if (method != "common" && method != "ceil" && method != "floor") {
    return absl::InvalidArgumentError("round: the method must be common, ceil or floor");
  }
  if (precision < -300 || precision > 300)
    return absl::UnimplementedError(absl::StrCat("round: precision ", precision));
  if (!input.as_double()) return WrongType("round", input, "a number");
  if (method == "common" && input.number() && precision >= 0) return Value::Int(*input.number());
  const double v = *input.as_double();
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return Value::Float(std::ceil(v * scale) / scale);
  if (method == "floor") return Value::Float(std::floor(v * scale) / scale);
  if (precision < 0) {
    const double rounded = std::nearbyint(v * scale) / scale;
    return input.number() ? Value::Int(static_cast<int64_t>(rounded)) : Value::Float(rounded);
  }
  if (std::isnan(v) || std::isinf(v)) return input;
  return Value::Float(std::strtod(absl::StrFormat("%.*f", static_cast<int>(precision), v).c_str(), nullptr));
}

// Jinja's own, which capitalizes behind white space and ( - { [ <.
Text Title(const Text& text) {
  TextBuilder out;
  const std::string_view all = text.view();
  size_t begin = 0;
  const auto put = [&](size_t end) { out.Append(InCase(text.Sub(begin, end - begin), Case::kCapitalized)); };
  for (size_t at = 0; at < all.size();) {
    const size_t bytes = NextUtf8(all.substr(at)).bytes;
    const uint32_t c = CodePoint(all.substr(at));
    if (c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || IsSpace(c)) {
      put(at);
      out.Append(text.Sub(at, bytes));
      begin = at + bytes;
    }
    at += bytes;
  }
  put(all.size());
  return std::move(out).Build();
}

absl::StatusOr<Value> Truncate(const Text& text, const Arguments& arguments) {
  PHX_ASSIGN_OR_RETURN(const Bound args,
                       Bound::Bind("truncate", arguments, {"length", "killwords", "end", "leeway"}, 0));
  PHX_ASSIGN_OR_RETURN(const int64_t length, args.IntOf(0, 255));
  PHX_ASSIGN_OR_RETURN(const int64_t leeway, args.IntOf(3, 5));
  Text end("...", false);
  if (args.has(2)) {
    PHX_ASSIGN_OR_RETURN(end, args.TextOf(2));
  }
  const int64_t end_length = CountCharacters(end.view());
  if (length < end_length || leeway < 0)
    return absl::InvalidArgumentError("truncate: length is below that of end");
  const std::vector<size_t> offsets = CharacterOffsets(text.view());
  if (static_cast<int64_t>(offsets.size()) - 1 <= length + leeway) return Value(text);
  Text cut = text.Sub(0, offsets[static_cast<size_t>(length - end_length)]);
  if (!args.truthy(1)) {
    const size_t space = cut.view().rfind(' ');
    if (space != std::string_view::npos) cut = cut.Sub(0, space);
  }
  return Value(Text::Concat(cut, end));
}

absl::StatusOr<Value> Default(const Value& input, const Arguments& arguments) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("default", arguments, {"default_value", "boolean"}, 0));
  if (!input.is_undefined() && (!args.truthy(1) || input.truthy())) return input;
  return args.Or(0, Value(Text()));
}

absl::StatusOr<Value> Abs(const Value& input) {
  if (input.number() && *input.number() >= 0) return Value::Int(*input.number());
  if (input.number()) return Negate(input);
  if (input.real() != nullptr) return Value::Float(std::fabs(*input.real()));
  return WrongType("abs", input, "a number");
}

// Of what prints as `text`.
absl::StatusOr<Value> CallTextFilter(std::string_view name, const Text& text, const Arguments& arguments,
                                     Budget* budget) {
  if (name == "trim") {
    PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("trim", arguments, {"chars"}, 0));
    return StripText(text, true, true, args.Or(0, Value()), budget);
  }
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(text.size())));
  if (name == "replace") {
    PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("replace", arguments, {"old", "new", "count"}, 2));
    PHX_ASSIGN_OR_RETURN(const Text old, ToText(args[0]));
    PHX_ASSIGN_OR_RETURN(const Text by, ToText(args[1]));
    PHX_ASSIGN_OR_RETURN(const int64_t most, args.has(2) && args[2].is_none() ? -1 : args.IntOf(2, -1));
    return Replace(text, old, by, most, budget);
  }
  if (name == "truncate") return Truncate(text, arguments);
  if (name == "indent") return Indent(text, arguments, budget);
  if (name == "format") {
    if (!arguments.keywords.empty() && !arguments.positional.empty()) {
      return absl::InvalidArgumentError("format: positional and keyword arguments at once");
    }
    absl::StatusOr<Value> values = arguments.keywords.empty()
                                       ? Value::MakeList(arguments.positional, List::Kind::kTuple)
                                       : MakeMapping(arguments, budget);
    PHX_RETURN_IF_ERROR(values.status());
    return PercentFormat(text, *values, budget);
  }
  PHX_RETURN_IF_ERROR(Bound::Bind(name, arguments, {}, 0).status());
  if (name == "string") return Value(text);
  if (name == "safe") return Value(text.AsMarkup());
  if (name == "escape" || name == "e") return Value(Escape(text));
  if (name == "upper") return Value(InCase(text, Case::kUpper));
  if (name == "lower") return Value(InCase(text, Case::kLower));
  if (name == "capitalize") return Value(InCase(text, Case::kCapitalized));
  if (name == "title") return Value(Title(text));
  if (name == "wordcount") {
    int64_t count = 0;
    bool in_word = false;
    for (const char c : text.view()) {
      const bool word = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                        c == '_' || (c & 0x80) != 0;
      count += word && !in_word ? 1 : 0;
      in_word = word;
    }
    return Value::Int(count);
  }
  return absl::InternalError(absl::StrCat("filter '", ToAbsl(name), "' is listed but not built"));
}

}  // namespace

absl::Status CheckFilter(std::string_view name) {
  if (std::find(std::begin(kFilters), std::end(kFilters), name) != std::end(kFilters))
    return absl::OkStatus();
  std::string supported;
  for (const std::string_view filter : kFilters) {
    absl::StrAppend(&supported, supported.empty() ? "" : ", ", ToAbsl(filter));
  }
  return absl::UnimplementedError(
      absl::StrCat("filter '", ToAbsl(name), "' is not supported; supported: ", supported));
}

absl::StatusOr<Value> CallFilter(std::string_view name, const Value& input, const Arguments& arguments,
                                 Context* context) {
  Budget* budget = &context->budget;
  PHX_RETURN_IF_ERROR(CheckFilter(name));
  if (name == "default" || name == "d") return Default(input, arguments);
  if (name == "tojson") return ToJsonFilter(input, arguments, budget);
  if (name == "length" || name == "count") {
    PHX_RETURN_IF_ERROR(Bound::Bind(name, arguments, {}, 0).status());
    PHX_ASSIGN_OR_RETURN(const int64_t length, Length(input, budget));
    return Value::Int(length);
  }
  if (name == "int") return ToInt(input, arguments);
  if (name == "float") return ToFloat(input, arguments);
  if (name == "round") return Round(input, arguments);
  if (name == "abs") {
    PHX_RETURN_IF_ERROR(Bound::Bind(name, arguments, {}, 0).status());
    return Abs(input);
  }
  PHX_ASSIGN_OR_RETURN(const std::optional<Value> of_list, CallListFilter(name, input, arguments, context));
  if (of_list) return *of_list;
  if (name == "indent" && input.text() == nullptr) return WrongType("indent", input, "a str");
  PHX_RETURN_IF_ERROR(budget->Charge(input.text() != nullptr ? 1 : input.extent().weight * 4));
  PHX_ASSIGN_OR_RETURN(const Text text, ToText(input));
  return CallTextFilter(name, text, arguments, budget);
}

}  // namespace phalanx::jinja
