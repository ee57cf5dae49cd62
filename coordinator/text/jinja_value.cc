#include "coordinator/text/jinja_value.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/text/utf8.h"

namespace phalanx::jinja {
namespace {

absl::Status Grow(const Value& item, Extent* extent) {
  if (item.name_space() != nullptr || item.loop() != nullptr || item.macro() != nullptr) {
    return absl::UnimplementedError(absl::StrCat("a ", item.kind(), " inside another value"));
  }
  const Extent of_item = item.extent();
  extent->depth = std::max(extent->depth, of_item.depth + 1);
  extent->weight += of_item.weight;
  if (extent->depth > kMaxValueDepth) {
    return absl::InvalidArgumentError(absl::StrCat("a value nested more than ", kMaxValueDepth, " deep"));
  }
  if (extent->weight > kMaxValueWeight) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a list or mapping of more than ", kMaxValueWeight, " bytes"));
  }
  return absl::OkStatus();
}

bool EqualNumbers(const Value& a, const Value& b) {
  if (a.big() != nullptr || b.big() != nullptr) {
    return a.big() != nullptr && b.big() != nullptr && a.big()->digits == b.big()->digits;
  }
  if (a.number() && b.number()) return *a.number() == *b.number();
  return *a.as_double() == *b.as_double();
}

bool IsNumber(const Value& v) { return v.as_double().has_value() || v.big() != nullptr; }

}  // namespace

const Value* Dict::Find(std::string_view key) const {
  for (const auto& entry : entries) {
    const Text* text = entry.first.text();
    if (text != nullptr && text->view() == key) return &entry.second;
  }
  return nullptr;
}

const Value* Dict::Find(const Value& key) const {
  if (key.text() != nullptr) return Find(key.text()->view());
  for (const auto& entry : entries) {
    if (entry.first.Equals(key)) return &entry.second;
  }
  return nullptr;
}

void Dict::Set(const Value& key, Value value) {
  if (const Value* found = Find(key)) {
    *const_cast<Value*>(found) = std::move(value);
  } else {
    entries.emplace_back(key, std::move(value));
  }
}

void Dict::Set(std::string_view key, Value value) { Set(Value::Str(std::string(key)), std::move(value)); }

absl::StatusOr<Value> Value::MakeList(std::vector<Value> items, List::Kind kind) {
  List list;
  list.kind = kind;
  for (const Value& item : items) PHX_RETURN_IF_ERROR(Grow(item, &list.extent));
  list.items = std::move(items);
  return Value(Variant(std::make_shared<const List>(std::move(list))));
}

absl::StatusOr<Value> Value::MakeDict(Dict dict) {
  dict.extent = {};
  for (const auto& [key, value] : dict.entries) {
    PHX_RETURN_IF_ERROR(Grow(key, &dict.extent));
    PHX_RETURN_IF_ERROR(Grow(value, &dict.extent));
  }
  return Value(Variant(std::make_shared<const Dict>(std::move(dict))));
}

Extent Value::extent() const {
  if (list() != nullptr) return list()->extent;
  if (dict() != nullptr) return dict()->extent;
  if (text() != nullptr) return {0, static_cast<int64_t>(text()->size())};
  return {};
}

const char* Value::kind() const {
  static constexpr const char* kKinds[] = {"undefined", "none",  "bool",    "int",     "float",
                                           "int",       "str",   "list",    "mapping", "namespace",
                                           "loop",      "macro", "function"};
  if (list() != nullptr) {
    static constexpr const char* kLists[] = {"list", "tuple", "generator", "view of a mapping", "range"};
    return kLists[static_cast<int>(list()->kind)];
  }
  return kKinds[value_.index()];
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (boolean() != nullptr) return *boolean();
  if (integer() != nullptr) return *integer() != 0;
  if (real() != nullptr) return *real() != 0;
  if (text() != nullptr) return !text()->empty();
  if (list() != nullptr) return list()->kind == List::Kind::kGenerator || !list()->items.empty();
  if (dict() != nullptr) return !dict()->entries.empty();
  return true;
}

bool Value::Equals(const Value& other) const {
  if (is_undefined() || other.is_undefined()) return is_undefined() && other.is_undefined();
  if (is_none() || other.is_none()) return is_none() && other.is_none();
  if (IsNumber(*this) && IsNumber(other)) return EqualNumbers(*this, other);
  if (text() != nullptr && other.text() != nullptr) return text()->view() == other.text()->view();
  if (list() != nullptr && other.list() != nullptr) {
    if (list()->kind != other.list()->kind || list()->kind == List::Kind::kGenerator) {
      return list() == other.list();
    }
    return std::equal(list()->items.begin(), list()->items.end(), other.list()->items.begin(),
                      other.list()->items.end(), [](const Value& x, const Value& y) { return x.Equals(y); });
  }
  if (dict() != nullptr && other.dict() != nullptr) {
    return dict()->entries.size() == other.dict()->entries.size() &&
           std::all_of(dict()->entries.begin(), dict()->entries.end(), [&other](const auto& entry) {
             const Value* match = other.dict()->Find(entry.first);
             return match != nullptr && match->Equals(entry.second);
           });
  }
  if (name_space() != nullptr) return name_space() == other.name_space();
  if (loop() != nullptr) return loop() == other.loop();
  if (macro() != nullptr) return macro() == other.macro();
  if (function() != nullptr && other.function() != nullptr) {
    return function() == other.function() ||
           (function()->self == nullptr && other.function()->self == nullptr &&
            function()->name == other.function()->name);
  }
  return false;
}

bool Value::HasUser() const {
  if (text() != nullptr) return text()->has_user();
  if (list() != nullptr) {
    return std::any_of(list()->items.begin(), list()->items.end(),
                       [](const Value& v) { return v.HasUser(); });
  }
  if (dict() != nullptr) {
    return std::any_of(dict()->entries.begin(), dict()->entries.end(),
                       [](const auto& e) { return e.first.HasUser() || e.second.HasUser(); });
  }
  return false;
}

std::string Describe(const Value& value) {
  if (value.undefined() != nullptr) return absl::StrCat("undefined ('", value.undefined()->name, "')");
  return value.kind();
}

bool IsSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

std::vector<size_t> CharacterOffsets(std::string_view text) {
  std::vector<size_t> offsets;
  offsets.reserve(text.size() / 2 + 2);
  for (size_t at = 0; at < text.size(); ++at) {
    if ((static_cast<unsigned char>(text[at]) & 0xc0) != 0x80) offsets.push_back(at);
  }
  offsets.push_back(text.size());
  return offsets;
}

int64_t CountCharacters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

uint32_t CodePoint(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return lead;
  const size_t length = NextUtf8(text).bytes;
  uint32_t code_point = lead & (0xff >> (length + 1));
  for (size_t i = 1; i < length; ++i)
    code_point = code_point << 6 | (static_cast<unsigned char>(text[i]) & 0x3f);
  return code_point;
}

void AppendCodePoint(uint32_t c, std::string* out) {
  const auto put = [out](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | c >> 6), put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | c >> 12), put(0x80 | (c >> 6 & 0x3f)), put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | c >> 18), put(0x80 | (c >> 12 & 0x3f)), put(0x80 | (c >> 6 & 0x3f)), put(0x80 | (c & 0x3f));
  }
}

size_t FindText(std::string_view text, std::string_view part, size_t from) {
  constexpr size_t kShort = 16;  // bounds find's worst case, a factor of the part's size
  if (part.size() <= kShort) return text.find(part, from);
  const void* found = memmem(text.data() + from, text.size() - from, part.data(), part.size());
  return found == nullptr ? std::string_view::npos
                          : static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

std::string_view Strip(std::string_view text, bool left, bool right, std::optional<std::string_view> chars) {
  const auto goes = [chars](std::string_view character) {
    return chars ? chars->find(character) != std::string_view::npos : IsSpace(CodePoint(character));
  };
  while (left && !text.empty()) {
    const size_t bytes = NextUtf8(text).bytes;
    if (!goes(text.substr(0, bytes))) break;
    text.remove_prefix(bytes);
  }
  while (right && !text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xc0) == 0x80) --start;
    if (!goes(text.substr(start))) break;
    text.remove_suffix(text.size() - start);
  }
  return text;
}

}  // namespace phalanx::jinja
