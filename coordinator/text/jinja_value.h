// Values of the Jinja subset.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace phalanx::jinja {

class Value;

// Nesting and weight of lists and mappings are bounded, so that walking one by recursion is safe and takes
// bounded time even where it holds the same value many times over.
inline constexpr int kMaxValueDepth = 64;
inline constexpr int64_t kMaxValueWeight = int64_t{1} << 26;

// A string's weight is its size, any other scalar's 1; that of a list or mapping is the sum over its items,
// plus 1.
struct Extent {
  int depth = 0;
  int64_t weight = 1;
};

struct List {
  std::vector<Value> items;
  Extent extent;
};

// Keys in order of insertion. Also what a namespace holds.
struct Dict {
  std::vector<std::pair<std::string, Value>> entries;
  Extent extent;

  // Null when absent.
  const Value* Find(std::string_view key) const;
  void Set(std::string_view key, Value value);
};

struct Undefined {
  std::string name;  // for messages
};
struct None {};
// Mutable, and therefore never inside another value.
struct Namespace {
  std::shared_ptr<Dict> dict;
};

// Cheap to copy: all but a namespace is shared and immutable.
class Value {
 public:
  using String = std::shared_ptr<const std::string>;
  using ListPtr = std::shared_ptr<const List>;
  using DictPtr = std::shared_ptr<const Dict>;

  Value() : value_(None{}) {}
  Value(Undefined v) : value_(std::move(v)) {}  // NOLINT(google-explicit-constructor)
  static Value Bool(bool v) { return Value(Variant(std::in_place_type<bool>, v)); }
  static Value Int(int64_t v) { return Value(Variant(std::in_place_type<int64_t>, v)); }
  static Value Str(std::string v) {
    return Value(Variant(std::make_shared<const std::string>(std::move(v))));
  }
  // InvalidArgument if nested too deep or too heavy; Unimplemented for a namespace inside.
  static absl::StatusOr<Value> MakeList(std::vector<Value> items);
  static absl::StatusOr<Value> MakeDict(Dict dict);
  static Value MakeNamespace(Dict dict) {
    return Value(Variant(Namespace{std::make_shared<Dict>(std::move(dict))}));
  }

  bool is_undefined() const { return std::holds_alternative<Undefined>(value_); }
  bool is_none() const { return std::holds_alternative<None>(value_); }
  const Undefined* undefined() const { return std::get_if<Undefined>(&value_); }
  const bool* boolean() const { return std::get_if<bool>(&value_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&value_); }
  // As Python's arithmetic has it: a bool is 0 or 1.
  std::optional<int64_t> number() const {
    if (boolean() != nullptr) return *boolean() ? 1 : 0;
    if (integer() != nullptr) return *integer();
    return std::nullopt;
  }
  // Null unless of that kind.
  const std::string* string() const {
    const String* s = std::get_if<String>(&value_);
    return s == nullptr ? nullptr : s->get();
  }
  const List* list() const {
    const ListPtr* l = std::get_if<ListPtr>(&value_);
    return l == nullptr ? nullptr : l->get();
  }
  const Dict* dict() const {
    const DictPtr* d = std::get_if<DictPtr>(&value_);
    return d == nullptr ? nullptr : d->get();
  }
  Dict* name_space() const {
    const Namespace* n = std::get_if<Namespace>(&value_);
    return n == nullptr ? nullptr : n->dict.get();
  }

  Extent extent() const;
  // Python's name of the kind, for messages.
  const char* kind() const;
  bool truthy() const;
  bool Equals(const Value& other) const;

 private:
  using Variant = std::variant<Undefined, None, bool, int64_t, String, ListPtr, DictPtr, Namespace>;
  explicit Value(Variant v) : value_(std::move(v)) {}

  Variant value_;
};

// What {{ value }} prints. Unimplemented for lists, mappings and namespaces (Python's repr).
absl::StatusOr<std::string> ToText(const Value& value);

// json.dumps(value, ensure_ascii=False, indent=indent); indent below 0: on one line.
absl::StatusOr<std::string> ToJson(const Value& value, int64_t indent);

// As Python's str.isspace.
bool IsSpace(uint32_t code_point);

// Byte offsets of the characters of valid UTF-8, and its size at the end.
std::vector<size_t> CharacterOffsets(std::string_view text);
// The code point of the character that `text`, valid UTF-8, begins with.
uint32_t CodePoint(std::string_view text);
void AppendCodePoint(uint32_t code_point, std::string* out);

// Offset of `part` in `text` at or after `from`, npos if there is none. Linear in the text even in the worst
// case.
size_t FindText(std::string_view text, std::string_view part, size_t from);

// Without the characters at either end that are in `chars` (null: white space).
std::string_view Strip(std::string_view text, bool left, bool right, const std::string* chars);

}  // namespace phalanx::jinja
