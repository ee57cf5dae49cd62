#include "coordinator/text/jinja_functions.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx::jinja {
namespace {

constexpr int64_t kMaxStringBytes = kMaxValueWeight;
constexpr int64_t kMaxRange = 100000;  // Jinja's sandbox has the same
constexpr int64_t kMaxIndent = 16;

struct Signature {
  CallKind kind;
  std::string_view name;
  size_t least, most;  // positional arguments
  std::vector<std::string_view> keywords = {};
  bool any_keyword = false;
};

const std::vector<Signature>& Signatures() {
  static const auto* const kSignatures = new std::vector<Signature>{
      {CallKind::kFilter, "trim", 0, 1},
      {CallKind::kFilter, "length", 0, 0},
      {CallKind::kFilter, "count", 0, 0},
      {CallKind::kFilter, "first", 0, 0},
      {CallKind::kFilter, "last", 0, 0},
      {CallKind::kFilter, "default", 0, 2, {"boolean"}},
      {CallKind::kFilter, "d", 0, 2, {"boolean"}},
      {CallKind::kFilter, "replace", 2, 2},
      {CallKind::kFilter, "join", 0, 1},
      {CallKind::kFilter, "string", 0, 0},
      {CallKind::kFilter, "tojson", 0, 0, {"indent"}},
      {CallKind::kTest, "defined", 0, 0},
      {CallKind::kTest, "undefined", 0, 0},
      {CallKind::kTest, "none", 0, 0},
      {CallKind::kTest, "string", 0, 0},
      {CallKind::kTest, "mapping", 0, 0},
      {CallKind::kTest, "iterable", 0, 0},
      {CallKind::kTest, "sequence", 0, 0},
      {CallKind::kTest, "number", 0, 0},
      {CallKind::kTest, "integer", 0, 0},
      {CallKind::kTest, "boolean", 0, 0},
      {CallKind::kTest, "true", 0, 0},
      {CallKind::kTest, "false", 0, 0},
      {CallKind::kMethod, "split", 1, 1},
      {CallKind::kMethod, "strip", 0, 1},
      {CallKind::kMethod, "lstrip", 0, 1},
      {CallKind::kMethod, "rstrip", 0, 1},
      {CallKind::kMethod, "startswith", 1, 1},
      {CallKind::kMethod, "endswith", 1, 1},
      {CallKind::kMethod, "replace", 2, 2},
      {CallKind::kMethod, "get", 1, 2},
      {CallKind::kFunction, "raise_exception", 1, 1},
      {CallKind::kFunction, "namespace", 0, 0, {}, true},
      {CallKind::kFunction, "range", 1, 2},
  };
  return *kSignatures;
}

const char* KindName(CallKind kind) {
  switch (kind) {
    case CallKind::kFilter:
      return "filter";
    case CallKind::kTest:
      return "test";
    case CallKind::kMethod:
      return "method";
    case CallKind::kFunction:
      return "function";
  }
  return "";
}

absl::Status WrongType(std::string_view what, const Value& value, std::string_view wanted) {
  std::string name;
  if (value.undefined() != nullptr) name = absl::StrCat(" ('", value.undefined()->name, "')");
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(what), ": ", value.kind(), name, " found, ", ToAbsl(wanted), " wanted"));
}

absl::StatusOr<const std::string*> StringOf(std::string_view what, const Value& value) {
  if (value.string() == nullptr) return WrongType(what, value, "a str");
  return value.string();
}

absl::StatusOr<Value> Split(const std::string& text, const std::string& separator) {
  if (separator.empty()) return absl::InvalidArgumentError("split: empty separator");
  std::vector<Value> parts;
  size_t at = 0;
  for (size_t found; (found = FindText(text, separator, at)) != std::string::npos;
       at = found + separator.size()) {
    parts.push_back(Value::Str(text.substr(at, found - at)));
  }
  parts.push_back(Value::Str(text.substr(at)));
  return Value::MakeList(std::move(parts));
}

absl::StatusOr<Value> Replace(const std::string& text, const std::string& old, const std::string& by) {
  if (old.empty()) return absl::UnimplementedError("replace: of an empty string");
  std::string out;
  size_t at = 0;
  for (size_t found; (found = FindText(text, old, at)) != std::string::npos; at = found + old.size()) {
    out.append(text, at, found - at).append(by);
    if (out.size() > static_cast<size_t>(kMaxStringBytes)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("replace: a string above ", kMaxStringBytes, " bytes"));
    }
  }
  return Value::Str(out.append(text, at));
}

absl::StatusOr<Value> Join(const Value& input, const std::string& separator) {
  std::string out;
  const auto add = [&](std::string_view item, bool first) -> absl::Status {
    if (!first) out.append(separator);
    out.append(item);
    if (out.size() > static_cast<size_t>(kMaxStringBytes)) {
      return absl::ResourceExhaustedError(absl::StrCat("join: a string above ", kMaxStringBytes, " bytes"));
    }
    return absl::OkStatus();
  };
  if (input.undefined() != nullptr) return Value::Str("");
  if (const std::string* text = input.string()) {
    const std::vector<size_t> offsets = CharacterOffsets(*text);
    for (size_t i = 0; i + 1 < offsets.size(); ++i) {
      PHX_RETURN_IF_ERROR(
          add(std::string_view(*text).substr(offsets[i], offsets[i + 1] - offsets[i]), i == 0));
    }
  } else if (const List* list = input.list()) {
    for (size_t i = 0; i < list->items.size(); ++i) {
      PHX_ASSIGN_OR_RETURN(const std::string item, ToText(list->items[i]));
      PHX_RETURN_IF_ERROR(add(item, i == 0));
    }
  } else {
    return WrongType("join", input, "a list or a str");
  }
  return Value::Str(std::move(out));
}

Value FirstOrLast(const Value& input, bool first, std::string_view what) {
  if (const std::string* text = input.string(); text != nullptr && !text->empty()) {
    const std::vector<size_t> offsets = CharacterOffsets(*text);
    const size_t i = first ? 0 : offsets.size() - 2;
    return Value::Str(text->substr(offsets[i], offsets[i + 1] - offsets[i]));
  }
  if (const List* list = input.list(); list != nullptr && !list->items.empty()) {
    return first ? list->items.front() : list->items.back();
  }
  return Undefined{absl::StrCat(ToAbsl(what), " of an empty ", input.kind())};
}

}  // namespace

absl::Status CheckCall(CallKind kind, std::string_view name, size_t positional,
                       const std::vector<std::string>& keywords) {
  std::string supported;
  for (const Signature& s : Signatures()) {
    if (s.kind != kind) continue;
    absl::StrAppend(&supported, supported.empty() ? "" : ", ", ToAbsl(s.name));
    if (s.name != name) continue;
    const std::string what = absl::StrCat(KindName(kind), " '", ToAbsl(name), "'");
    if (positional < s.least || positional > s.most) {
      // More or fewer may be right in Jinja (split without a separator), so it is not InvalidArgument.
      return absl::UnimplementedError(absl::StrCat(what, " with ", positional,
                                                   " arguments; supported: ", s.least,
                                                   s.least == s.most ? "" : absl::StrCat(" to ", s.most)));
    }
    for (const std::string& keyword : keywords) {
      if (!s.any_keyword && std::find(s.keywords.begin(), s.keywords.end(), keyword) == s.keywords.end()) {
        return absl::UnimplementedError(absl::StrCat(what, " with the keyword '", keyword, "'"));
      }
    }
    return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrCat(KindName(kind), " '", ToAbsl(name), "' is not supported; supported: ", supported));
}

bool IsFunction(std::string_view name) {
  const std::vector<Signature>& all = Signatures();
  return std::any_of(all.begin(), all.end(),
                     [name](const Signature& s) { return s.kind == CallKind::kFunction && s.name == name; });
}

absl::StatusOr<int64_t> Length(const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.string() != nullptr) return static_cast<int64_t>(CharacterOffsets(*value.string()).size()) - 1;
  if (value.list() != nullptr) return static_cast<int64_t>(value.list()->items.size());
  if (value.dict() != nullptr) return static_cast<int64_t>(value.dict()->entries.size());
  return WrongType("length", value, "a str, list or mapping");
}

absl::StatusOr<Value> Slice(const Value& object, const std::optional<int64_t> (&bounds)[3]) {
  std::vector<size_t> offsets;
  if (object.string() != nullptr) offsets = CharacterOffsets(*object.string());
  const auto size =
      static_cast<int64_t>(object.list() != nullptr ? object.list()->items.size() : offsets.size() - 1);

  // As Python's slice.indices.
  const int64_t step = std::clamp(bounds[2].value_or(1), -size - 1, size + 1);
  if (step == 0) return absl::InvalidArgumentError("a slice's step is 0");
  const int64_t low = step > 0 ? 0 : -1, high = step > 0 ? size : size - 1;
  const auto clip = [&](int64_t bound) { return std::clamp(bound < 0 ? bound + size : bound, low, high); };
  const int64_t begin = bounds[0] ? clip(*bounds[0]) : (step > 0 ? low : high);
  const int64_t end = bounds[1] ? clip(*bounds[1]) : (step > 0 ? high : low);
  std::vector<Value> items;
  std::string text;
  for (int64_t i = begin; step > 0 ? i < end : i > end; i += step) {
    if (object.list() != nullptr) {
      items.push_back(object.list()->items[i]);
    } else {
      text.append(*object.string(), offsets[i], offsets[i + 1] - offsets[i]);
    }
  }
  if (object.string() != nullptr) return Value::Str(std::move(text));
  return Value::MakeList(std::move(items));
}

absl::StatusOr<Value> CallFilter(std::string_view name, const Value& input, const Arguments& arguments) {
  const std::vector<Value>& args = arguments.positional;
  if (name == "trim") {
    PHX_ASSIGN_OR_RETURN(const std::string text, ToText(input));
    const std::string* chars = nullptr;
    if (!args.empty() && !args[0].is_none()) {
      PHX_ASSIGN_OR_RETURN(chars, StringOf(name, args[0]));
    }
    return Value::Str(std::string(Strip(text, true, true, chars)));
  }
  if (name == "length" || name == "count") {
    PHX_ASSIGN_OR_RETURN(const int64_t length, Length(input));
    return Value::Int(length);
  }
  if (name == "first" || name == "last") {
    if (input.string() == nullptr && input.list() == nullptr && !input.is_undefined()) {
      if (input.dict() != nullptr)
        return absl::UnimplementedError(absl::StrCat(ToAbsl(name), " of a mapping"));
      return WrongType(name, input, "a list or a str");
    }
    return FirstOrLast(input, name == "first", name);
  }
  if (name == "default" || name == "d") {
    bool falsy_too = args.size() > 1 && args[1].truthy();
    for (const auto& keyword : arguments.keywords) falsy_too = keyword.second.truthy();
    if (!input.is_undefined() && (!falsy_too || input.truthy())) return input;
    return args.empty() ? Value::Str("") : args[0];
  }
  if (name == "replace") {
    PHX_ASSIGN_OR_RETURN(const std::string text, ToText(input));
    PHX_ASSIGN_OR_RETURN(const std::string* old, StringOf(name, args[0]));
    PHX_ASSIGN_OR_RETURN(const std::string* by, StringOf(name, args[1]));
    return Replace(text, *old, *by);
  }
  if (name == "join") {
    std::string separator;
    if (!args.empty()) {
      PHX_ASSIGN_OR_RETURN(separator, ToText(args[0]));
    }
    return Join(input, separator);
  }
  if (name == "string") {
    PHX_ASSIGN_OR_RETURN(std::string text, ToText(input));
    return Value::Str(std::move(text));
  }
  if (name == "tojson") {
    int64_t indent = -1;
    for (const auto& keyword : arguments.keywords) {
      if (keyword.second.is_none()) continue;
      if (keyword.second.integer() == nullptr) return WrongType("tojson: indent", keyword.second, "an int");
      indent = *keyword.second.integer();
      if (indent < 0 || indent > kMaxIndent) {
        return absl::InvalidArgumentError(
            absl::StrCat("tojson: indent ", indent, " is not supported; 0 to ", kMaxIndent, " are"));
      }
    }
    PHX_ASSIGN_OR_RETURN(std::string json, ToJson(input, indent));
    return Value::Str(std::move(json));
  }
  return absl::InternalError(absl::StrCat("filter '", ToAbsl(name), "' is listed but not built"));
}

absl::StatusOr<bool> CallTest(std::string_view name, const Value& v) {
  if (name == "defined") return !v.is_undefined();
  if (name == "undefined") return v.is_undefined();
  if (name == "none") return v.is_none();
  if (name == "string") return v.string() != nullptr;
  if (name == "mapping") return v.dict() != nullptr;
  if (name == "iterable" || name == "sequence") {  // undefined is both, as in Jinja
    return v.string() != nullptr || v.list() != nullptr || v.dict() != nullptr || v.is_undefined();
  }
  if (name == "number") return v.integer() != nullptr || v.boolean() != nullptr;
  if (name == "integer") return v.integer() != nullptr;
  if (name == "boolean") return v.boolean() != nullptr;
  if (name == "true") return v.boolean() != nullptr && *v.boolean();
  if (name == "false") return v.boolean() != nullptr && !*v.boolean();
  return absl::InternalError(absl::StrCat("test '", ToAbsl(name), "' is listed but not built"));
}

absl::StatusOr<Value> CallMethod(std::string_view name, const Value& object, const Arguments& arguments) {
  const std::vector<Value>& args = arguments.positional;
  if (name == "get") {
    if (object.dict() == nullptr) return WrongType("get()", object, "a mapping");
    PHX_ASSIGN_OR_RETURN(const std::string* key, StringOf("get()", args[0]));
    if (const Value* value = object.dict()->Find(*key)) return *value;
    return args.size() > 1 ? args[1] : Value();
  }
  PHX_ASSIGN_OR_RETURN(const std::string* text, StringOf(absl::StrCat(ToAbsl(name), "()"), object));
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const std::string* chars = nullptr;
    if (!args.empty() && !args[0].is_none()) {
      PHX_ASSIGN_OR_RETURN(chars, StringOf(name, args[0]));
    }
    return Value::Str(std::string(Strip(*text, name != "rstrip", name != "lstrip", chars)));
  }
  PHX_ASSIGN_OR_RETURN(const std::string* first, StringOf(name, args[0]));
  if (name == "split") return Split(*text, *first);
  if (name == "startswith") return Value::Bool(text->compare(0, first->size(), *first) == 0);
  if (name == "endswith") {
    return Value::Bool(text->size() >= first->size() &&
                       text->compare(text->size() - first->size(), first->size(), *first) == 0);
  }
  if (name == "replace") {
    PHX_ASSIGN_OR_RETURN(const std::string* by, StringOf(name, args[1]));
    return Replace(*text, *first, *by);
  }
  return absl::InternalError(absl::StrCat("method '", ToAbsl(name), "' is listed but not built"));
}

absl::StatusOr<Value> CallFunction(std::string_view name, const Arguments& arguments) {
  const std::vector<Value>& args = arguments.positional;
  if (name == "namespace") {
    Dict dict;
    for (const auto& [key, value] : arguments.keywords) {
      if (value.name_space() != nullptr) return absl::UnimplementedError("a namespace inside another value");
      dict.Set(key, value);
    }
    return Value::MakeNamespace(std::move(dict));
  }
  if (name == "range") {
    for (const Value& arg : args) {
      if (arg.integer() == nullptr) return WrongType("range()", arg, "an int");
    }
    const int64_t begin = args.size() > 1 ? *args[0].integer() : 0;
    const int64_t end = *args.back().integer();
    int64_t count = 0;
    if (end > begin && (__builtin_sub_overflow(end, begin, &count) || count > kMaxRange)) {
      return absl::InvalidArgumentError(absl::StrCat("range() of more than ", kMaxRange));
    }
    std::vector<Value> items;
    for (int64_t i = 0; i < count; ++i) items.push_back(Value::Int(begin + i));
    return Value::MakeList(std::move(items));
  }
  return CheckCall(CallKind::kFunction, name, args.size(), {});
}

}  // namespace phalanx::jinja
