// Methods of strings, lists and mappings.
#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/jinja_functions.h"
#include "coordinator/text/jinja_unicode.h"
#include "coordinator/text/utf8.h"

namespace phalanx::jinja {
namespace {

constexpr std::string_view kStringMethods[] = {
    "capitalize", "casefold",     "center",       "count",   "encode",     "endswith",    "expandtabs",
    "find",       "format",       "format_map",   "index",   "isalnum",    "isalpha",     "isascii",
    "isdecimal",  "isdigit",      "isidentifier", "islower", "isnumeric",  "isprintable", "isspace",
    "istitle",    "isupper",      "join",         "ljust",   "lower",      "lstrip",      "maketrans",
    "partition",  "removeprefix", "removesuffix", "replace", "rfind",      "rindex",      "rjust",
    "rpartition", "rsplit",       "rstrip",       "split",   "splitlines", "startswith",  "strip",
    "swapcase",   "title",        "translate",    "upper",   "zfill"};
constexpr std::string_view kListMethods[] = {"append", "clear", "copy",   "count",   "extend", "index",
                                             "insert", "pop",   "remove", "reverse", "sort"};
constexpr std::string_view kDictMethods[] = {"clear", "copy",    "fromkeys",   "get",    "items", "keys",
                                             "pop",   "popitem", "setdefault", "update", "values"};
// What Jinja's sandbox forbids.
constexpr std::string_view kMutating[] = {"append",  "clear", "extend",  "insert",     "pop",   "remove",
                                          "reverse", "sort",  "popitem", "setdefault", "update"};

template <size_t kSize>
bool IsIn(const std::string_view (&names)[kSize], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

absl::Status NotSupported(std::string_view name, const Value& object) {
  return absl::UnimplementedError(
      absl::StrCat("method '", ToAbsl(name), "' of a ", object.kind(), " is not supported"));
}

absl::Status TooLong(std::string_view what) {
  return absl::ResourceExhaustedError(
      absl::StrCat(ToAbsl(what), ": a string above ", kMaxStringBytes, " bytes"));
}

// startswith and endswith: one string or a tuple of them.
absl::StatusOr<Value> BeginsOrEnds(std::string_view name, const Text& text, const Arguments& arguments) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind(name, arguments, {"prefix"}, 1));
  std::vector<Value> parts = {args[0]};
  if (args[0].is_list(List::Kind::kTuple)) parts = args[0].list()->items;
  for (const Value& part : parts) {
    if (part.text() == nullptr) return WrongType(name, part, "a str or a tuple of them");
    const std::string_view all = text.view(), one = part.text()->view();
    if (one.size() > all.size()) continue;
    if (name == "startswith" ? all.substr(0, one.size()) == one
                             : all.substr(all.size() - one.size()) == one) {
      return Value::Bool(true);
    }
  }
  return Value::Bool(false);
}

absl::StatusOr<Value> FindOrCount(std::string_view name, const Text& text, const Arguments& arguments) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind(name, arguments, {"sub"}, 1));
  PHX_ASSIGN_OR_RETURN(const Text part, args.TextOf(0));
  const std::string_view all = text.view(), one = part.view();
  if (name == "count") {
    if (one.empty()) return Value::Int(CountCharacters(all) + 1);
    int64_t count = 0;
    for (size_t at = 0; (at = FindText(all, one, at)) != std::string_view::npos; at += one.size()) ++count;
    return Value::Int(count);
  }
  size_t found = FindText(all, one, 0);
  if (name[0] == 'r' && found != std::string_view::npos) {
    for (size_t next = found; next != std::string_view::npos; next = FindText(all, one, found + 1)) {
      found = next;
      if (found + 1 > all.size()) break;
    }
    if (one.empty()) found = all.size();
  }
  if (found != std::string_view::npos) return Value::Int(CountCharacters(all.substr(0, found)));
  if (name == "find" || name == "rfind") return Value::Int(-1);
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(name), ": the part is not in the string"));
}

absl::StatusOr<Value> Partition(bool from_right, const Text& text, const Arguments& arguments) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("partition", arguments, {"sep"}, 1));
  PHX_ASSIGN_OR_RETURN(const Text separator, args.TextOf(0));
  if (separator.empty()) return absl::InvalidArgumentError("partition: empty separator");
  const size_t at =
      from_right ? text.view().rfind(separator.view()) : FindText(text.view(), separator.view(), 0);
  if (at == std::string_view::npos) {
    return from_right ? Value::MakeList({Text(), Text(), text}, List::Kind::kTuple)
                      : Value::MakeList({text, Text(), Text()}, List::Kind::kTuple);
  }
  return Value::MakeList({text.Sub(0, at), text.Sub(at, separator.size()), text.Sub(at + separator.size())},
                         List::Kind::kTuple);
}

absl::StatusOr<Value> Justify(std::string_view name, const Text& text, const Arguments& arguments,
                              Budget* budget) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind(name, arguments, {"width", "fillchar"}, 1));
  PHX_ASSIGN_OR_RETURN(const int64_t width, args.IntOf(0, 0));
  std::string fill = name == "zfill" ? "0" : " ";
  if (args.has(1)) {
    PHX_ASSIGN_OR_RETURN(const Text one, args.TextOf(1));
    fill = std::string(one.view());
    if (CountCharacters(fill) != 1)
      return absl::InvalidArgumentError(absl::StrCat(ToAbsl(name), ": one character fills"));
  }
  const int64_t length = CountCharacters(text.view()), missing = width - length;
  if (missing <= 0) return Value(text);
  if (missing > kMaxStringBytes / 4) return TooLong(name);
  PHX_RETURN_IF_ERROR(budget->Charge(missing * 4));
  int64_t left = name == "rjust" || name == "zfill" ? missing : 0;
  if (name == "center") left = missing / 2 + (missing & width & 1);
  const std::string_view view = text.view();
  const bool sign = name == "zfill" && !view.empty() && (view[0] == '-' || view[0] == '+');
  TextBuilder out;
  if (sign) out.Append(text.Sub(0, 1));
  for (int64_t i = 0; i < left; ++i) out.Append(fill, false);
  out.Append(text.Sub(sign ? 1 : 0));
  for (int64_t i = left; i < missing; ++i) out.Append(fill, false);
  return Value(std::move(out).Build());
}

absl::StatusOr<Value> IsAll(std::string_view name, const Text& text) {
  const std::string_view view = text.view();
  bool cased = false;
  for (size_t at = 0; at < view.size(); at += NextUtf8(view.substr(at)).bytes) {
    const uint32_t c = CodePoint(view.substr(at));
    const bool digit = c >= '0' && c <= '9', letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    bool good = true;
    if (name == "isspace") {
      good = IsSpace(c);
    } else if (name == "isascii") {
      good = c < 0x80;
    } else if (name == "islower" || name == "isupper") {
      if (HasCase(c)) {
        cased = true;
        good = IsUpper(c) == (name == "isupper");
      }
    } else if (name == "isprintable") {
      good = IsPrintable(c);
    } else if (c >= 0x80 && !(name == "isalpha" && HasCase(c)) && !(name == "isalnum" && HasCase(c))) {
      return absl::UnimplementedError(
          absl::StrCat("method '", ToAbsl(name), "' of other than ASCII is not supported"));
    } else if (name == "isalpha") {
      good = letter || c >= 0x80;
    } else if (name == "isalnum") {
      good = letter || digit || c >= 0x80;
    } else {
      good = digit;
    }
    if (!good) return Value::Bool(false);
  }
  if (name == "islower" || name == "isupper") return Value::Bool(cased);
  return Value::Bool(!view.empty() || name == "isascii" || name == "isprintable");
}

// '{} {0} {name}' without what may follow a ':' or '!'.
absl::StatusOr<Value> Format(const Text& text, const Arguments& arguments) {
  const std::string_view format = text.view();
  TextBuilder out;
  size_t next = 0, at = 0;
  while (at < format.size()) {
    const size_t brace = format.find_first_of("{}", at);
    out.Append(text.Sub(at, brace == std::string_view::npos ? brace : brace - at));
    if (brace == std::string_view::npos) break;
    if (format.substr(brace, 2) == "{{" || format.substr(brace, 2) == "}}") {
      out.Append(text.Sub(brace, 1));
      at = brace + 2;
      continue;
    }
    const size_t close = format.find('}', brace);
    if (format[brace] == '}' || close == std::string_view::npos) {
      return absl::InvalidArgumentError("format: a single brace");
    }
    const std::string field(format.substr(brace + 1, close - brace - 1));
    const Value* value = nullptr;
    if (field.find_first_of(".[:!{") != std::string::npos) {
      return absl::UnimplementedError(absl::StrCat("format: field ", Quote(field), " is not supported"));
    }
    if (field.find_first_not_of("0123456789") == std::string::npos && field.size() < 6) {
      const size_t index = field.empty() ? next++ : static_cast<size_t>(std::stoul(field));
      if (index < arguments.positional.size()) value = &arguments.positional[index];
    } else {
      for (const auto& keyword : arguments.keywords) {
        if (keyword.first == field) value = &keyword.second;
      }
    }
    if (value == nullptr)
      return absl::InvalidArgumentError(absl::StrCat("format: no argument for ", Quote(field)));
    PHX_ASSIGN_OR_RETURN(const Text piece, ToText(*value));
    out.Append(piece);
    if (out.size() > static_cast<size_t>(kMaxStringBytes)) return TooLong("format");
    at = close + 1;
  }
  return Value(std::move(out).Build());
}

absl::StatusOr<Value> CallStringMethod(std::string_view name, const Text& text, const Value& object,
                                       const Arguments& arguments, Budget* budget) {
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind(name, arguments, {"chars"}, 0));
    return StripText(text, name != "rstrip", name != "lstrip", args.Or(0, Value()), budget);
  }
  if (name == "startswith" || name == "endswith") return BeginsOrEnds(name, text, arguments);
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(text.size())));
  if (text.is_markup() && (name == "replace" || name == "join" || name == "format" || name == "center" ||
                           name == "ljust" || name == "rjust" || name == "zfill")) {
    return absl::UnimplementedError(
        absl::StrCat("method '", ToAbsl(name), "' of what is safe is not supported"));
  }
  if (name == "split" || name == "rsplit") {
    PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind(name, arguments, {"sep", "maxsplit"}, 0));
    PHX_ASSIGN_OR_RETURN(const int64_t most, args.IntOf(1, -1));
    return Split(text, args.Or(0, Value()), most, name == "rsplit", budget);
  }
  if (name == "splitlines") {
    PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind(name, arguments, {"keepends"}, 0));
    return SplitLines(text, args.truthy(0), budget);
  }
  if (name == "replace") {
    PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind(name, arguments, {"old", "new", "count"}, 2));
    PHX_ASSIGN_OR_RETURN(const Text old, args.TextOf(0));
    PHX_ASSIGN_OR_RETURN(const Text by, args.TextOf(1));
    PHX_ASSIGN_OR_RETURN(const int64_t most, args.IntOf(2, -1));
    return Replace(text, old, by, most, budget);
  }
  if (name == "join") {
    PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind(name, arguments, {"iterable"}, 1));
    if (args[0].is_undefined()) return Value(Text());
    PHX_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(args[0], budget));
    return Join(items, text, /*only_strings=*/true, budget);
  }
  if (name == "count" || name == "find" || name == "rfind" || name == "index" || name == "rindex") {
    return FindOrCount(name, text, arguments);
  }
  if (name == "partition" || name == "rpartition") return Partition(name == "rpartition", text, arguments);
  if (name == "center" || name == "ljust" || name == "rjust" || name == "zfill") {
    return Justify(name, text, arguments, budget);
  }
  if (name == "format") return Format(text, arguments);
  if (name == "removeprefix" || name == "removesuffix") {
    PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind(name, arguments, {"part"}, 1));
    PHX_ASSIGN_OR_RETURN(const Text part, args.TextOf(0));
    PHX_ASSIGN_OR_RETURN(const Value has,
                         BeginsOrEnds(name == "removeprefix" ? "startswith" : "endswith", text, arguments));
    if (!has.truthy()) return Value(text);
    const size_t rest = text.size() - part.size();
    return Value(name == "removeprefix" ? text.Sub(part.size()) : text.Sub(0, rest));
  }
  PHX_RETURN_IF_ERROR(Bound::Bind(name, arguments, {}, 0).status());
  if (name == "upper") return Value(InCase(text, Case::kUpper));
  if (name == "lower") return Value(InCase(text, Case::kLower));
  if (name == "title") return Value(InCase(text, Case::kTitle));
  if (name == "capitalize") return Value(InCase(text, Case::kCapitalized));
  if (name == "swapcase") return Value(InCase(text, Case::kSwapped));
  if (name.substr(0, 2) == "is" && name != "istitle" && name != "isidentifier") return IsAll(name, text);
  return NotSupported(name, object);
}

absl::StatusOr<Value> CallDictMethod(std::string_view name, const Dict& dict, const Value& object,
                                     const Arguments& arguments, Budget* budget) {
  if (name == "get") {
    PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("get()", arguments, {"key", "default"}, 1));
    if (!IsKey(args[0])) return WrongType("get()", args[0], "a str, number, none or tuple");
    PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(dict.entries.size())));
    if (const Value* value = dict.Find(args[0])) return *value;
    return args.Or(1, Value());
  }
  if (name == "fromkeys") return NotSupported(name, object);
  PHX_RETURN_IF_ERROR(Bound::Bind(name, arguments, {}, 0).status());
  if (name == "copy") return object;
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(dict.entries.size()) * 64));
  std::vector<Value> items;
  for (const auto& [key, value] : dict.entries) {
    if (name == "items") {
      PHX_ASSIGN_OR_RETURN(Value pair, Value::MakeList({key, value}, List::Kind::kTuple));
      items.push_back(std::move(pair));
    } else {
      items.push_back(name == "keys" ? key : value);
    }
  }
  return Value::MakeList(std::move(items), List::Kind::kView);
}

absl::StatusOr<Value> CallListMethod(std::string_view name, const List& list, const Value& object,
                                     const Arguments& arguments, Budget* budget) {
  if (name == "copy") return object;
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind(name, arguments, {"value"}, 1));
  int64_t count = 0;
  for (size_t i = 0; i < list.items.size(); ++i) {
    PHX_RETURN_IF_ERROR(budget->Charge(std::min(list.items[i].extent().weight, args[0].extent().weight)));
    if (!list.items[i].Equals(args[0])) continue;
    if (name == "index") return Value::Int(static_cast<int64_t>(i));
    ++count;
  }
  if (name == "index") return absl::InvalidArgumentError("index: the value is not in the list");
  return Value::Int(count);
}

absl::StatusOr<Value> CallLoopMethod(std::string_view name, Loop* loop, const Arguments& arguments) {
  if (name == "cycle") {
    if (arguments.positional.empty()) return absl::InvalidArgumentError("loop.cycle() without values");
    return arguments.positional[static_cast<size_t>(loop->index) % arguments.positional.size()];
  }
  PHX_ASSIGN_OR_RETURN(Value now, Value::MakeList(arguments.positional, List::Kind::kTuple));
  if (loop->changed != nullptr && loop->changed->Equals(now)) return Value::Bool(false);
  loop->changed = std::make_shared<Value>(std::move(now));
  return Value::Bool(true);
}

}  // namespace

bool IsMethod(const Value& object, std::string_view name) {
  if (object.text() != nullptr) return IsIn(kStringMethods, name);
  if (object.dict() != nullptr) return IsIn(kDictMethods, name);
  if (object.is_list(List::Kind::kList)) return IsIn(kListMethods, name);
  return object.list() != nullptr && (name == "count" || name == "index") &&
         (object.list()->kind == List::Kind::kTuple || object.list()->kind == List::Kind::kRange);
}

absl::StatusOr<Value> CallMethod(std::string_view name, const Value& object, const Arguments& arguments,
                                 Context* context) {
  Budget* budget = &context->budget;
  if (object.text() != nullptr) return CallStringMethod(name, *object.text(), object, arguments, budget);
  if (object.loop() != nullptr) return CallLoopMethod(name, object.loop(), arguments);
  if (IsIn(kMutating, name)) {
    return absl::InvalidArgumentError(absl::StrCat("method '", ToAbsl(name), "' would change a ",
                                                   object.kind(), ", which a template may not"));
  }
  if (object.dict() != nullptr) return CallDictMethod(name, *object.dict(), object, arguments, budget);
  if (object.list() != nullptr) return CallListMethod(name, *object.list(), object, arguments, budget);
  return NotSupported(name, object);
}

}  // namespace phalanx::jinja
