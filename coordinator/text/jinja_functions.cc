// Tests and global functions, and how arguments find their parameters.
#include "coordinator/text/jinja_functions.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/jinja_unicode.h"
#include "coordinator/text/utf8.h"

namespace phalanx::jinja {
namespace {

constexpr int64_t kMaxRange = 100000;  // Jinja's sandbox has the same

constexpr std::string_view kTests[] = {
    "boolean", "callable", "defined",  "divisibleby", "eq",      "equalto", "even",      "false",
    "filter",  "float",    "ge",       "greaterthan", "gt",      "in",      "integer",   "iterable",
    "le",      "lessthan", "lower",    "lt",          "mapping", "ne",      "none",      "number",
    "odd",     "sameas",   "sequence", "string",      "test",    "true",    "undefined", "upper",
    "==",      "!=",       "<",        "<=",          ">",       ">="};

// A test that compares, as the operator; empty for any other.
std::string_view Operator(std::string_view test) {
  if (test == "eq" || test == "equalto" || test == "==") return "==";
  if (test == "ne" || test == "!=") return "!=";
  if (test == "lt" || test == "lessthan" || test == "<") return "<";
  if (test == "le" || test == "<=") return "<=";
  if (test == "gt" || test == "greaterthan" || test == ">") return ">";
  if (test == "ge" || test == ">=") return ">=";
  if (test == "in") return "in";
  return {};
}

absl::StatusOr<int64_t> IntOf(std::string_view what, const Value& value) {
  if (!value.number()) return WrongType(what, value, "an int");
  return *value.number();
}

// Whether all letters are of one case, and there are any.
absl::StatusOr<bool> AllInCase(const Value& value, bool upper) {
  PHX_ASSIGN_OR_RETURN(const Text text, ToText(value));
  bool any = false;
  for (size_t at = 0; at < text.size(); at += NextUtf8(text.view().substr(at)).bytes) {
    const uint32_t c = CodePoint(text.view().substr(at));
    if (!HasCase(c)) continue;
    if (IsUpper(c) != upper) return false;
    any = true;
  }
  return any;
}

absl::StatusOr<Value> Range(const Arguments& arguments, Budget* budget) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("range()", arguments, {"start", "stop", "step"}, 1));
  PHX_ASSIGN_OR_RETURN(const int64_t first, args.IntOf(0, 0));
  PHX_ASSIGN_OR_RETURN(const int64_t stop, args.IntOf(1, 0));
  PHX_ASSIGN_OR_RETURN(const int64_t step, args.IntOf(2, 1));
  const int64_t begin = args.has(1) ? first : 0, end = args.has(1) ? stop : first;
  if (step == 0) return absl::InvalidArgumentError("range(): the step is 0");
  std::vector<Value> items;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange) {
      return absl::InvalidArgumentError(absl::StrCat("range() of more than ", kMaxRange, " numbers"));
    }
    items.push_back(Value::Int(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(items.size()) * 32));
  return Value::MakeList(std::move(items), List::Kind::kRange);
}

constexpr const char* kMonths[] = {"January", "February", "March",     "April",   "May",      "June",
                                   "July",    "August",   "September", "October", "November", "December"};
constexpr const char* kDays[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                 "Thursday", "Friday", "Saturday"};

// In the C locale, at midnight of the day.
absl::StatusOr<Value> Strftime(const Arguments& arguments, const Date& date) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("strftime_now()", arguments, {"format"}, 1));
  PHX_ASSIGN_OR_RETURN(const Text format_text, args.TextOf(0));
  const std::string_view format = format_text.view();
  static constexpr int kBefore[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
  const bool leap = (date.year % 4 == 0 && date.year % 100 != 0) || date.year % 400 == 0;
  const int day_of_year = kBefore[date.month - 1] + (leap && date.month > 2 ? 1 : 0) + date.day;
  const int before = date.year - 1;
  const int weekday =
      (before * 365 + before / 4 - before / 100 + before / 400 + day_of_year) % 7;  // 0: Sunday
  const std::string month = kMonths[date.month - 1], day = kDays[weekday];
  std::string out;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 == format.size()) {
      out.push_back(format[i]);
      continue;
    }
    const bool short_form = format[i + 1] == '-' && i + 2 < format.size();
    i += short_form ? 2 : 1;
    const auto number = [&](int value, int width) {
      out += short_form ? absl::StrCat(value) : absl::StrFormat("%0*d", width, value);
    };
    switch (format[i]) {
      case 'd':
        number(date.day, 2);
        break;
      case 'e':
        out += short_form ? absl::StrCat(date.day) : absl::StrFormat("%2d", date.day);
        break;
      case 'm':
        number(date.month, 2);
        break;
      case 'Y':
        out += absl::StrCat(date.year);
        break;
      case 'y':
        number(date.year % 100, 2);
        break;
      case 'j':
        number(day_of_year, 3);
        break;
      case 'b':
      case 'h':
        out += month.substr(0, 3);
        break;
      case 'B':
        out += month;
        break;
      case 'a':
        out += day.substr(0, 3);
        break;
      case 'A':
        out += day;
        break;
      case 'u':
        out += absl::StrCat(weekday == 0 ? 7 : weekday);
        break;
      case 'w':
        out += absl::StrCat(weekday);
        break;
      case 'F':
        out += absl::StrFormat("%04d-%02d-%02d", date.year, date.month, date.day);
        break;
      case 'D':
      case 'x':
        out += absl::StrFormat("%02d/%02d/%02d", date.month, date.day, date.year % 100);
        break;
      case 'H':
      case 'M':
      case 'S':
        number(0, 2);
        break;
      case 'I':
        number(12, 2);
        break;
      case 'p':
        out += "AM";
        break;
      case 'f':
        out += "000000";
        break;
      case 'T':
      case 'X':
        out += "00:00:00";
        break;
      case 'R':
        out += "00:00";
        break;
      case 'z':
      case 'Z':
        break;
      case 'n':
        out += '\n';
        break;
      case 't':
        out += '\t';
        break;
      case '%':
        out += '%';
        break;
      default:
        return absl::UnimplementedError(
            absl::StrCat("strftime_now(): %", ToAbsl(format.substr(i, NextUtf8(format.substr(i)).bytes)),
                         " is not supported"));
    }
  }
  return Value::Str(std::move(out), format_text.has_user());
}

}  // namespace

absl::StatusOr<Bound> Bound::Bind(std::string_view what, const Arguments& arguments,
                                  std::initializer_list<std::string_view> names, size_t least) {
  Bound bound;
  bound.what_ = std::string(what);
  bound.names_ = names;
  bound.values_.resize(names.size());
  if (arguments.positional.size() > names.size()) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(what), ": ", arguments.positional.size(),
                                                   " arguments, at most ", names.size(), " are taken"));
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) bound.values_[i] = arguments.positional[i];
  for (const auto& [name, value] : arguments.keywords) {
    const auto it = std::find(bound.names_.begin(), bound.names_.end(), name);
    const auto i = static_cast<size_t>(it - bound.names_.begin());
    if (it == bound.names_.end() || bound.values_[i]) {
      return absl::InvalidArgumentError(
          absl::StrCat(ToAbsl(what), ": keyword '", name, "' ",
                       it == bound.names_.end() ? "is unknown" : "is twice there"));
    }
    bound.values_[i] = value;
  }
  for (size_t i = 0; i < least; ++i) {
    if (!bound.values_[i]) {
      return absl::InvalidArgumentError(
          absl::StrCat(ToAbsl(what), ": argument '", ToAbsl(bound.names_[i]), "' is missing"));
    }
  }
  return bound;
}

absl::StatusOr<Text> Bound::TextOf(size_t i) const {
  const Value& value = *values_[i];
  if (value.text() == nullptr) return WrongType(absl::StrCat(what_, ": ", ToAbsl(names_[i])), value, "a str");
  return *value.text();
}

absl::StatusOr<int64_t> Bound::IntOf(size_t i, int64_t otherwise) const {
  if (!has(i)) return otherwise;
  return jinja::IntOf(absl::StrCat(what_, ": ", ToAbsl(names_[i])), *values_[i]);
}

absl::Status CheckTest(std::string_view name) {
  if (std::find(std::begin(kTests), std::end(kTests), name) != std::end(kTests)) return absl::OkStatus();
  std::string supported;
  for (const std::string_view test : kTests)
    absl::StrAppend(&supported, supported.empty() ? "" : ", ", ToAbsl(test));
  return absl::UnimplementedError(
      absl::StrCat("test '", ToAbsl(name), "' is not supported; supported: ", supported));
}

absl::StatusOr<bool> CallTest(std::string_view name, const Value& v, const Arguments& arguments,
                              Context* context) {
  PHX_RETURN_IF_ERROR(CheckTest(name));
  const std::string what = absl::StrCat("test '", ToAbsl(name), "'");
  const std::string_view op = Operator(name);
  const bool takes_one = !op.empty() || name == "divisibleby" || name == "sameas";
  if (!arguments.keywords.empty() || arguments.positional.size() != (takes_one ? 1u : 0u)) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " takes ", takes_one ? "one argument" : "no argument"));
  }
  if (!op.empty()) return Compare(op, v, arguments.positional[0], &context->budget);
  if (name == "defined") return !v.is_undefined();
  if (name == "undefined") return v.is_undefined();
  if (name == "none") return v.is_none();
  if (name == "string") return v.text() != nullptr;
  if (name == "mapping") return v.dict() != nullptr;
  if (name == "iterable") {  // undefined is, as in Jinja
    return v.text() != nullptr || v.list() != nullptr || v.dict() != nullptr || v.is_undefined() ||
           v.loop() != nullptr;
  }
  if (name == "sequence") {
    return v.text() != nullptr || v.dict() != nullptr || v.is_undefined() ||
           (v.list() != nullptr && v.list()->kind != List::Kind::kGenerator &&
            v.list()->kind != List::Kind::kView);
  }
  if (name == "number") return v.as_double().has_value() || v.big() != nullptr;
  if (name == "integer") return v.integer() != nullptr || v.big() != nullptr;
  if (name == "float") return v.real() != nullptr;
  if (name == "boolean") return v.boolean() != nullptr;
  if (name == "true") return v.boolean() != nullptr && *v.boolean();
  if (name == "false") return v.boolean() != nullptr && !*v.boolean();
  if (name == "callable") return v.function() != nullptr || v.macro() != nullptr;
  if (name == "lower" || name == "upper") return AllInCase(v, name == "upper");
  if (name == "sameas") {
    const Value& other = arguments.positional[0];
    if (v.is_none() || v.boolean() != nullptr || other.is_none() || other.boolean() != nullptr) {
      return std::string_view(v.kind()) == other.kind() && v.Equals(other);
    }
    return absl::UnimplementedError("test 'sameas' is supported for none, true and false only");
  }
  if (name == "filter" || name == "test") {
    return v.text() != nullptr &&
           (name == "filter" ? CheckFilter(v.text()->view()) : CheckTest(v.text()->view())).ok();
  }
  // odd, even, divisibleby
  PHX_ASSIGN_OR_RETURN(
      const Value rest,
      Arithmetic("%", v, takes_one ? arguments.positional[0] : Value::Int(2), &context->budget));
  if (!rest.as_double()) return WrongType(what, v, "a number");
  return *rest.as_double() == (name == "odd" ? 1 : 0);
}

bool IsFunction(std::string_view name, const Context& context) {
  return name == "raise_exception" || name == "namespace" || name == "range" || name == "dict" ||
         (name == "strftime_now" && context.today.has_value());
}

absl::StatusOr<Value> MakeMapping(const Arguments& arguments, Budget* budget) {
  Dict dict;
  if (arguments.positional.size() > 1) return absl::InvalidArgumentError("a mapping of more than one value");
  if (!arguments.positional.empty()) {
    const Value& from = arguments.positional[0];
    if (from.dict() != nullptr) {
      dict.entries = from.dict()->entries;
    } else {
      PHX_ASSIGN_OR_RETURN(const std::vector<Value> pairs, Iterate(from, budget));
      for (const Value& pair : pairs) {
        PHX_ASSIGN_OR_RETURN(const std::vector<Value> two, Iterate(pair, budget));
        if (two.size() != 2) return absl::InvalidArgumentError("a mapping of what is no pairs");
        if (!IsKey(two[0])) return WrongType("a key of a mapping", two[0], "a str, number, none or tuple");
        PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(dict.entries.size())));
        dict.Set(two[0], two[1]);
      }
    }
  }
  for (const auto& [key, value] : arguments.keywords) dict.Set(key, value);
  return Value::MakeDict(std::move(dict));
}

absl::StatusOr<Value> CallFunction(std::string_view name, const Arguments& arguments, Context* context) {
  if (name == "raise_exception") {
    PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("raise_exception()", arguments, {"message"}, 1));
    PHX_ASSIGN_OR_RETURN(const Text message, ToText(args[0]));
    return absl::InvalidArgumentError(ToAbsl(message.view()));
  }
  if (name == "range") return Range(arguments, &context->budget);
  if (name == "strftime_now") return Strftime(arguments, *context->today);
  PHX_ASSIGN_OR_RETURN(const Value mapping, MakeMapping(arguments, &context->budget));
  if (name == "dict") return mapping;
  for (const auto& entry : mapping.dict()->entries) {
    if (entry.first.text() != nullptr && entry.first.text()->view().substr(0, 1) == "_") {
      return absl::InvalidArgumentError("namespace(): a name that begins with '_'");
    }
  }
  return Value::MakeNamespace(*mapping.dict());
}

}  // namespace phalanx::jinja
