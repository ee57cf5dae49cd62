#include "coordinator/text/jinja_value.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "coordinator/text/utf8.h"

namespace phalanx::jinja {
namespace {

void AppendJsonString(std::string_view s, std::string* out) {
  out->push_back('"');
  for (const char c : s) {
    switch (c) {
      case '"':
        out->append("\\\"");
        break;
      case '\\':
        out->append("\\\\");
        break;
      case '\n':
        out->append("\\n");
        break;
      case '\r':
        out->append("\\r");
        break;
      case '\t':
        out->append("\\t");
        break;
      case '\b':
        out->append("\\b");
        break;
      case '\f':
        out->append("\\f");
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out->append(absl::StrFormat("\\u%04x", c));
        } else {
          out->push_back(c);
        }
    }
  }
  out->push_back('"');
}

absl::Status AppendJson(const Value& value, int64_t indent, int64_t level, std::string* out) {
  const auto new_line = [&](int64_t at) {
    if (indent >= 0) out->append("\n").append(static_cast<size_t>(indent * at), ' ');
  };
  const std::string_view comma = indent >= 0 ? "," : ", ";
  if (value.is_none()) {
    out->append("null");
  } else if (const bool* b = value.boolean()) {
    out->append(*b ? "true" : "false");
  } else if (const int64_t* i = value.integer()) {
    absl::StrAppend(out, *i);
  } else if (const std::string* s = value.string()) {
    AppendJsonString(*s, out);
  } else if (const List* list = value.list()) {
    out->push_back('[');
    for (size_t n = 0; n < list->items.size(); ++n) {
      if (n > 0) out->append(comma);
      new_line(level + 1);
      PHX_RETURN_IF_ERROR(AppendJson(list->items[n], indent, level + 1, out));
    }
    if (!list->items.empty()) new_line(level);
    out->push_back(']');
  } else if (const Dict* dict = value.dict()) {
    out->push_back('{');
    for (size_t n = 0; n < dict->entries.size(); ++n) {
      if (n > 0) out->append(comma);
      new_line(level + 1);
      AppendJsonString(dict->entries[n].first, out);
      out->append(": ");
      PHX_RETURN_IF_ERROR(AppendJson(dict->entries[n].second, indent, level + 1, out));
    }
    if (!dict->entries.empty()) new_line(level);
    out->push_back('}');
  } else {
    return absl::InvalidArgumentError(absl::StrCat("tojson: ", value.kind(), " is not JSON serializable"));
  }
  return absl::OkStatus();
}

// Makes `item` count in the extent of what holds it.
absl::Status Include(const Value& item, Extent* extent) {
  if (item.name_space() != nullptr) return absl::UnimplementedError("a namespace inside another value");
  const Extent inner = item.extent();
  extent->depth = std::max(extent->depth, inner.depth + 1);
  extent->weight += inner.weight;
  if (extent->depth > kMaxValueDepth || extent->weight > kMaxValueWeight) {
    return absl::InvalidArgumentError(absl::StrCat("lists or mappings nested more than ", kMaxValueDepth,
                                                   " deep or holding more than ", kMaxValueWeight, " bytes"));
  }
  return absl::OkStatus();
}

}  // namespace

const Value* Dict::Find(std::string_view key) const {
  for (const auto& [name, value] : entries) {
    if (name == key) return &value;
  }
  return nullptr;
}

void Dict::Set(std::string_view key, Value value) {
  for (auto& [name, old] : entries) {
    if (name == key) {
      old = std::move(value);
      return;
    }
  }
  entries.emplace_back(key, std::move(value));
}

absl::StatusOr<Value> Value::MakeList(std::vector<Value> items) {
  auto list = std::make_shared<List>();
  for (const Value& item : items) PHX_RETURN_IF_ERROR(Include(item, &list->extent));
  list->items = std::move(items);
  return Value(Variant(ListPtr(std::move(list))));
}

absl::StatusOr<Value> Value::MakeDict(Dict dict) {
  dict.extent = {};
  for (const auto& entry : dict.entries) PHX_RETURN_IF_ERROR(Include(entry.second, &dict.extent));
  return Value(Variant(DictPtr(std::make_shared<const Dict>(std::move(dict)))));
}

Extent Value::extent() const {
  if (list() != nullptr) return list()->extent;
  if (dict() != nullptr) return dict()->extent;
  if (string() != nullptr) return {0, static_cast<int64_t>(string()->size())};
  return {};
}

const char* Value::kind() const {
  static constexpr const char* kKinds[] = {"undefined", "none", "bool",    "int",
                                           "str",       "list", "mapping", "namespace"};
  return kKinds[value_.index()];
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (boolean() != nullptr) return *boolean();
  if (integer() != nullptr) return *integer() != 0;
  if (string() != nullptr) return !string()->empty();
  if (list() != nullptr) return !list()->items.empty();
  if (dict() != nullptr) return !dict()->entries.empty();
  return true;
}

bool Value::Equals(const Value& other) const {
  if (is_undefined() || other.is_undefined()) return is_undefined() && other.is_undefined();
  if (is_none() || other.is_none()) return is_none() && other.is_none();
  if (number() && other.number()) return *number() == *other.number();
  if (string() != nullptr && other.string() != nullptr) return *string() == *other.string();
  if (list() != nullptr && other.list() != nullptr) {
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
  return name_space() != nullptr && name_space() == other.name_space();
}

absl::StatusOr<std::string> ToText(const Value& value) {
  if (value.is_undefined()) return std::string();
  if (value.is_none()) return std::string("None");
  if (value.boolean() != nullptr) return std::string(*value.boolean() ? "True" : "False");
  if (value.integer() != nullptr) return absl::StrCat(*value.integer());
  if (value.string() != nullptr) return *value.string();
  return absl::UnimplementedError(absl::StrCat("a ", value.kind(), " as text"));
}

absl::StatusOr<std::string> ToJson(const Value& value, int64_t indent) {
  std::string out;
  PHX_RETURN_IF_ERROR(AppendJson(value, indent, 0, &out));
  return out;
}

bool IsSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

std::vector<size_t> CharacterOffsets(std::string_view text) {
  std::vector<size_t> offsets;
  for (size_t at = 0; at < text.size(); at += NextUtf8(text.substr(at)).bytes) offsets.push_back(at);
  offsets.push_back(text.size());
  return offsets;
}

uint32_t CodePoint(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  const size_t length = NextUtf8(text).bytes;
  if (length == 1) return lead;
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

std::string_view Strip(std::string_view text, bool left, bool right, const std::string* chars) {
  const auto goes = [chars](std::string_view character) {
    return chars == nullptr ? IsSpace(CodePoint(character)) : chars->find(character) != std::string::npos;
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
