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
#include "coordinator/text/jinja_text.h"

namespace phalanx::jinja {

class Value;
struct Stmt;
struct Scope;

// Nesting and weight of lists and mappings are bounded, so that walking one by recursion is safe and takes
// bounded time even where it holds the same value many times over.
inline constexpr int kMaxValueDepth = 72;
inline constexpr int64_t kMaxValueWeight = int64_t{1} << 27;
inline constexpr int64_t kMaxStringBytes = int64_t{1} << 26;

// A string's weight is its size, any other scalar's 1; that of a list or mapping is the sum over its items,
// plus 1.
struct Extent {
  int depth = 0;
  int64_t weight = 1;
};

struct List {
  enum class Kind { kList, kTuple, kGenerator, kView, kRange };
  Kind kind = Kind::kList;
  std::vector<Value> items;
  Extent extent;
  mutable size_t consumed = 0;  // of a generator, which can be walked once
};

// Keys in order of insertion: strings, other scalars or tuples.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  Extent extent;

  // Null when absent.
  const Value* Find(std::string_view key) const;
  const Value* Find(const Value& key) const;
  void Set(const Value& key, Value value);
  void Set(std::string_view key, Value value);
};

struct Undefined {
  std::string name;  // for messages
};
struct None {};
// An integer that does not fit 64 bits; only passed on.
struct BigInt {
  std::string digits;
};
// Mutable, and therefore never inside another value.
struct Namespace {
  std::shared_ptr<Dict> dict;
};
// The variable `loop`.
struct Loop {
  std::vector<Value> items;
  int64_t index = 0;  // from 0
  int64_t depth = 1;
  std::shared_ptr<Value> changed;  // what loop.changed() last got
};
struct Macro {
  const Stmt* stmt;
  std::weak_ptr<Scope> scope;  // where it was defined
};
// A global function, or a method with the value it belongs to.
struct Function {
  std::string name;
  std::shared_ptr<const Value> self;  // null for a global
};

// Cheap to copy: all but namespaces and loops is shared and immutable.
class Value {
 public:
  Value() : value_(None{}) {}
  Value(Undefined v) : value_(std::move(v)) {}  // NOLINT(google-explicit-constructor)
  Value(Text v) : value_(std::move(v)) {}       // NOLINT(google-explicit-constructor)
  static Value Bool(bool v) { return Value(Variant(std::in_place_type<bool>, v)); }
  static Value Int(int64_t v) { return Value(Variant(std::in_place_type<int64_t>, v)); }
  static Value Float(double v) { return Value(Variant(std::in_place_type<double>, v)); }
  static Value Big(std::string digits) { return Value(Variant(BigInt{std::move(digits)})); }
  // Written by the template or, where `user` is set, by a user.
  static Value Str(std::string v, bool user = false) { return Value(Variant(Text(std::move(v), user))); }
  // InvalidArgument if nested too deep or too heavy; Unimplemented for something mutable inside.
  static absl::StatusOr<Value> MakeList(std::vector<Value> items, List::Kind kind = List::Kind::kList);
  static absl::StatusOr<Value> MakeDict(Dict dict);
  static Value MakeNamespace(Dict dict) {
    return Value(Variant(Namespace{std::make_shared<Dict>(std::move(dict))}));
  }
  static Value MakeLoop(std::shared_ptr<Loop> loop) { return Value(Variant(std::move(loop))); }
  static Value MakeMacro(Macro macro) {
    return Value(Variant(std::make_shared<const Macro>(std::move(macro))));
  }
  static Value MakeFunction(std::string name) {
    return Value(Variant(std::make_shared<const Function>(Function{std::move(name), nullptr})));
  }
  static Value MakeMethod(std::string name, const Value& self) {
    return Value(Variant(
        std::make_shared<const Function>(Function{std::move(name), std::make_shared<const Value>(self)})));
  }

  bool is_undefined() const { return std::holds_alternative<Undefined>(value_); }
  bool is_none() const { return std::holds_alternative<None>(value_); }
  // Null unless of that kind.
  const Undefined* undefined() const { return std::get_if<Undefined>(&value_); }
  const bool* boolean() const { return std::get_if<bool>(&value_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&value_); }
  const double* real() const { return std::get_if<double>(&value_); }
  const BigInt* big() const { return std::get_if<BigInt>(&value_); }
  const Text* text() const { return std::get_if<Text>(&value_); }
  const List* list() const { return Pointee<List>(); }
  const Dict* dict() const { return Pointee<Dict>(); }
  const Macro* macro() const { return Pointee<Macro>(); }
  const Function* function() const { return Pointee<Function>(); }
  Loop* loop() const {
    const auto* l = std::get_if<std::shared_ptr<Loop>>(&value_);
    return l == nullptr ? nullptr : l->get();
  }
  Dict* name_space() const {
    const Namespace* n = std::get_if<Namespace>(&value_);
    return n == nullptr ? nullptr : n->dict.get();
  }
  bool is_list(List::Kind kind) const { return list() != nullptr && list()->kind == kind; }
  // As Python's arithmetic has it: a bool is 0 or 1.
  std::optional<int64_t> number() const {
    if (boolean() != nullptr) return *boolean() ? 1 : 0;
    if (integer() != nullptr) return *integer();
    return std::nullopt;
  }
  // The same, or a float.
  std::optional<double> as_double() const {
    if (real() != nullptr) return *real();
    if (const std::optional<int64_t> n = number()) return static_cast<double>(*n);
    return std::nullopt;
  }

  Extent extent() const;
  // Python's name of the kind, for messages.
  const char* kind() const;
  bool truthy() const;
  bool Equals(const Value& other) const;
  // Whether a user wrote any of the text in it.
  bool HasUser() const;

 private:
  using Variant =
      std::variant<Undefined, None, bool, int64_t, double, BigInt, Text, std::shared_ptr<const List>,
                   std::shared_ptr<const Dict>, Namespace, std::shared_ptr<Loop>,
                   std::shared_ptr<const Macro>, std::shared_ptr<const Function>>;
  explicit Value(Variant v) : value_(std::move(v)) {}
  template <typename T>
  const T* Pointee() const {
    const auto* p = std::get_if<std::shared_ptr<const T>>(&value_);
    return p == nullptr ? nullptr : p->get();
  }

  Variant value_;
};

// For messages: "undefined ('x')", "str".
std::string Describe(const Value& value);

// What {{ value }} prints: Python's str(). Unimplemented for what prints an address there.
absl::StatusOr<Text> ToText(const Value& value);
// Python's repr().
absl::StatusOr<Text> ReprText(const Value& value);
// As Python's repr of a float.
std::string FloatText(double value);

struct JsonStyle {
  std::optional<std::string> indent;  // of one level; absent: all on one line
  std::string item_separator = ", ", key_separator = ": ";
  bool ensure_ascii = false;
  bool sort_keys = false;
};
// json.dumps.
absl::StatusOr<Text> ToJson(const Value& value, const JsonStyle& style);

// As json.loads: numbers exact, of equal keys the last, keys in order. All text in it is a user's.
// InvalidArgument says what is wrong and at which byte.
absl::StatusOr<Value> ParseJson(std::string_view json);

// As Python's str.isspace.
bool IsSpace(uint32_t code_point);

// Byte offsets of the characters of valid UTF-8, and its size at the end.
std::vector<size_t> CharacterOffsets(std::string_view text);
int64_t CountCharacters(std::string_view text);
// The code point of the character that `text`, valid UTF-8, begins with.
uint32_t CodePoint(std::string_view text);
void AppendCodePoint(uint32_t code_point, std::string* out);

// Offset of `part` in `text` at or after `from`, npos if there is none. Linear in the text even in the worst
// case.
size_t FindText(std::string_view text, std::string_view part, size_t from);

// Without the characters at either end that are in `chars` (absent: white space).
std::string_view Strip(std::string_view text, bool left, bool right,
                       std::optional<std::string_view> chars = std::nullopt);

}  // namespace phalanx::jinja
