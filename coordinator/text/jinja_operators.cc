#include "coordinator/text/jinja_operators.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/jinja_functions.h"

namespace phalanx::jinja {
namespace {

absl::Status TooLong(int64_t bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat("a string of ", bytes, " bytes, at most ", kMaxStringBytes, " are made"));
}

absl::Status DoesNotFit() { return absl::InvalidArgumentError("the result does not fit 64 bits"); }

// Where the characters of a string begin; takes no memory for ASCII.
class Characters {
 public:
  explicit Characters(std::string_view text) : size_(text.size()) {
    const bool ascii = std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
    if (!ascii) offsets_ = CharacterOffsets(text);
  }
  int64_t count() const { return static_cast<int64_t>(offsets_.empty() ? size_ : offsets_.size() - 1); }
  size_t operator[](int64_t i) const {
    return offsets_.empty() ? static_cast<size_t>(i) : offsets_[static_cast<size_t>(i)];
  }

 private:
  size_t size_;
  std::vector<size_t> offsets_;
};

absl::StatusOr<Value> LoopAttribute(const Loop& loop, const std::string& name, const Value& object) {
  const auto count = static_cast<int64_t>(loop.items.size());
  const auto at = static_cast<size_t>(loop.index);
  if (name == "index") return Value::Int(loop.index + 1);
  if (name == "index0") return Value::Int(loop.index);
  if (name == "revindex") return Value::Int(count - loop.index);
  if (name == "revindex0") return Value::Int(count - loop.index - 1);
  if (name == "first") return Value::Bool(loop.index == 0);
  if (name == "last") return Value::Bool(loop.index == count - 1);
  if (name == "length") return Value::Int(count);
  if (name == "depth") return Value::Int(loop.depth);
  if (name == "depth0") return Value::Int(loop.depth - 1);
  if (name == "previtem") return at > 0 ? loop.items[at - 1] : Value(Undefined{"there is no previous item"});
  if (name == "nextitem") {
    return at + 1 < loop.items.size() ? loop.items[at + 1] : Value(Undefined{"there is no next item"});
  }
  if (name == "cycle" || name == "changed") return Value::MakeMethod(name, object);
  return Value(Undefined{name});
}

absl::StatusOr<Value> Repeat(const Value& sequence, int64_t times, Budget* budget) {
  times = std::max<int64_t>(times, 0);
  if (const Text* text = sequence.text()) {
    if (!text->empty() && times > kMaxStringBytes / static_cast<int64_t>(text->size())) {
      return TooLong(kMaxStringBytes + 1);
    }
    PHX_RETURN_IF_ERROR(budget->Charge(times * static_cast<int64_t>(text->size())));
    TextBuilder out;
    for (int64_t i = 0; i < times; ++i) out.Append(*text);
    return Value(std::move(out).Build());
  }
  const std::vector<Value>& items = sequence.list()->items;
  if (!items.empty() && times > kMaxValueWeight / static_cast<int64_t>(items.size())) {
    return TooLong(kMaxValueWeight + 1);
  }
  PHX_RETURN_IF_ERROR(budget->Charge(times * static_cast<int64_t>(items.size()) * 32));
  std::vector<Value> out;
  for (int64_t i = 0; i < times; ++i) out.insert(out.end(), items.begin(), items.end());
  return Value::MakeList(std::move(out), sequence.list()->kind);
}

absl::StatusOr<Value> IntArithmetic(std::string_view op, int64_t a, int64_t b) {
  int64_t out = 0;
  if (op == "+")
    return __builtin_add_overflow(a, b, &out) ? DoesNotFit() : absl::StatusOr<Value>(Value::Int(out));
  if (op == "-")
    return __builtin_sub_overflow(a, b, &out) ? DoesNotFit() : absl::StatusOr<Value>(Value::Int(out));
  if (op == "*")
    return __builtin_mul_overflow(a, b, &out) ? DoesNotFit() : absl::StatusOr<Value>(Value::Int(out));
  if (op == "**") {
    if (b < 0) {
      if (a == 0) return absl::InvalidArgumentError("0 to a negative power");
      return Value::Float(std::pow(static_cast<double>(a), static_cast<double>(b)));
    }
    int64_t result = 1;
    for (; b > 0; b >>= 1) {
      if ((b & 1) != 0 && __builtin_mul_overflow(result, a, &result)) return DoesNotFit();
      if (b > 1 && __builtin_mul_overflow(a, a, &a)) return DoesNotFit();
    }
    return Value::Int(result);
  }
  if (b == 0) return absl::InvalidArgumentError("division by zero");
  if (op == "/") return Value::Float(static_cast<double>(a) / static_cast<double>(b));
  if (a == INT64_MIN && b == -1) return op == "%" ? absl::StatusOr<Value>(Value::Int(0)) : DoesNotFit();
  const int64_t rest = a % b;
  const bool floor = rest != 0 && (rest < 0) != (b < 0);
  return Value::Int(op == "//" ? a / b - (floor ? 1 : 0) : rest + (floor ? b : 0));
}

absl::StatusOr<Value> FloatArithmetic(std::string_view op, double a, double b) {
  if (op == "+") return Value::Float(a + b);
  if (op == "-") return Value::Float(a - b);
  if (op == "*") return Value::Float(a * b);
  if (op == "**") {
    const double power = std::pow(a, b);
    if (std::isnan(power) || std::isinf(power))
      return absl::InvalidArgumentError("a power that is no number");
    return Value::Float(power);
  }
  if (b == 0) return absl::InvalidArgumentError("division by zero");
  if (op == "/") return Value::Float(a / b);
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  if (rest == 0) rest = std::copysign(0.0, b);
  if (op == "%") return Value::Float(rest);
  double quotient = (a - rest) / b;
  if (quotient != 0) {
    const double floor = std::floor(quotient);
    quotient = quotient - floor > 0.5 ? floor + 1 : floor;
  } else {
    quotient = std::copysign(0.0, a / b);
  }
  return Value::Float(quotient);
}

bool IsSequence(const Value& v) {
  return v.text() != nullptr || v.is_list(List::Kind::kList) || v.is_list(List::Kind::kTuple);
}

absl::Status NoOperator(std::string_view op, const Value& left, const Value& right) {
  return absl::InvalidArgumentError(
      absl::StrCat("operator ", ToAbsl(op), " between ", Describe(left), " and ", Describe(right)));
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item, Budget* budget) {
  if (const Text* text = container.text()) {
    if (item.text() == nullptr) return NoOperator("in", item, container);
    PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(text->size()) / 4 + 1));
    return FindText(text->view(), item.text()->view(), 0) != std::string_view::npos;
  }
  if (const Dict* dict = container.dict()) {
    if (!IsKey(item)) return WrongType("a key of a mapping", item, "a str, number, none or tuple");
    PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(dict->entries.size())));
    return dict->Find(item) != nullptr;
  }
  if (container.list() != nullptr || container.is_undefined() || container.loop() != nullptr) {
    PHX_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(container, budget));
    for (const Value& one : items) {
      PHX_RETURN_IF_ERROR(budget->Charge(std::min(one.extent().weight, item.extent().weight)));
      if (one.Equals(item)) return true;
    }
    return false;
  }
  return NoOperator("in", item, container);
}

}  // namespace

absl::Status Budget::Charge(int64_t work) {
  left_ -= std::min(work, int64_t{1} << 40);
  if (left_ >= 0) return absl::OkStatus();
  left_ = -1;
  return absl::ResourceExhaustedError("the chat template takes too much work");
}

absl::Status WrongType(std::string_view what, const Value& value, std::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(what), ": ", Describe(value), " found, ", ToAbsl(wanted), " wanted"));
}

bool IsKey(const Value& v) {
  if (v.is_list(List::Kind::kTuple)) {
    return std::all_of(v.list()->items.begin(), v.list()->items.end(), IsKey);
  }
  return v.text() != nullptr || v.is_none() || v.as_double().has_value() || v.big() != nullptr;
}

absl::StatusOr<std::vector<Value>> Iterate(const Value& value, Budget* budget) {
  std::vector<Value> items;
  if (const List* list = value.list()) {
    PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(list->items.size()) * 8));
    if (list->kind != List::Kind::kGenerator) return list->items;
    items.assign(list->items.begin() + static_cast<ptrdiff_t>(list->consumed), list->items.end());
    list->consumed = list->items.size();
  } else if (const Dict* dict = value.dict()) {
    PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(dict->entries.size()) * 8));
    for (const auto& entry : dict->entries) items.push_back(entry.first);
  } else if (const Text* text = value.text()) {
    PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(text->size()) * 64));
    const std::vector<size_t> offsets = CharacterOffsets(text->view());
    for (size_t i = 0; i + 1 < offsets.size(); ++i) {
      items.emplace_back(text->Sub(offsets[i], offsets[i + 1] - offsets[i]));
    }
  } else if (!value.is_undefined()) {
    return absl::InvalidArgumentError(absl::StrCat(Describe(value), " cannot be iterated"));
  }
  return items;
}

absl::StatusOr<int64_t> Length(const Value& value, Budget* budget) {
  if (value.is_undefined()) return 0;
  if (const Text* text = value.text()) {
    PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(text->size()) / 4 + 1));
    return CountCharacters(text->view());
  }
  if (value.list() != nullptr && value.list()->kind != List::Kind::kGenerator) {
    return static_cast<int64_t>(value.list()->items.size());
  }
  if (value.dict() != nullptr) return static_cast<int64_t>(value.dict()->entries.size());
  if (value.loop() != nullptr) return static_cast<int64_t>(value.loop()->items.size());
  return WrongType("length", value, "a str, list or mapping");
}

absl::StatusOr<Value> GetAttribute(const Value& object, const std::string& name, Budget* budget) {
  if (object.is_undefined()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", object.undefined()->name, "' is undefined and has no '", name, "'"));
  }
  if (object.loop() != nullptr) return LoopAttribute(*object.loop(), name, object);
  if (IsMethod(object, name)) return Value::MakeMethod(name, object);
  if (object.macro() != nullptr)
    return absl::UnimplementedError(absl::StrCat("attribute '", name, "' of a macro"));
  const Dict* dict = object.dict() != nullptr ? object.dict() : object.name_space();
  if (dict == nullptr) return Value(Undefined{name});
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(dict->entries.size())));
  const Value* value = dict->Find(name);
  return value != nullptr ? *value : Value(Undefined{name});
}

absl::StatusOr<Value> GetItem(const Value& object, const Value& key, Budget* budget) {
  if (object.is_undefined()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", object.undefined()->name, "' is undefined and cannot be indexed"));
  }
  if (const Dict* dict = object.dict(); dict != nullptr && IsKey(key)) {
    PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(dict->entries.size())));
    if (const Value* value = dict->Find(key)) return *value;
  }
  if (const Text* name = key.text()) {
    if (object.dict() == nullptr || IsMethod(object, name->view())) {
      return GetAttribute(object, std::string(name->view()), budget);
    }
    return Value(Undefined{std::string(name->view().substr(0, 80))});
  }
  if (const std::optional<int64_t> index = key.number(); index && object.dict() == nullptr) {
    int64_t i = *index;
    if (const List* list = object.list();
        list != nullptr && list->kind != List::Kind::kGenerator && list->kind != List::Kind::kView) {
      const auto size = static_cast<int64_t>(list->items.size());
      if (i < 0) i += size;
      if (i >= 0 && i < size) return list->items[static_cast<size_t>(i)];
    } else if (const Text* text = object.text()) {
      PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(text->size())));
      const Characters at(text->view());
      if (i < 0) i += at.count();
      if (i >= 0 && i < at.count()) return Value(text->Sub(at[i], at[i + 1] - at[i]));
    }
    return Value(Undefined{absl::StrCat("index ", *index)});
  }
  return Value(Undefined{absl::StrCat(Describe(object), " indexed by ", Describe(key))});
}

absl::StatusOr<Value> Slice(const Value& object, const Value (&bounds)[3], Budget* budget) {
  if (object.is_undefined()) return WrongType("a slice", object, "a list or a str");
  const List* list = object.list();
  const Text* text = object.text();
  if (text == nullptr &&
      (list == nullptr || list->kind == List::Kind::kGenerator || list->kind == List::Kind::kView)) {
    return Value(Undefined{absl::StrCat("a slice of a ", object.kind())});
  }
  std::optional<int64_t> at[3];
  for (int part = 0; part < 3; ++part) {
    if (bounds[part].is_none()) continue;
    at[part] = bounds[part].number();
    if (!at[part]) return Value(Undefined{"a slice with a bound that is no int"});
  }
  if (text != nullptr) PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(text->size())));
  const Characters offsets(text != nullptr ? text->view() : std::string_view());
  const int64_t size = list != nullptr ? static_cast<int64_t>(list->items.size()) : offsets.count();

  // As Python's slice.indices.
  const int64_t step = std::clamp(at[2].value_or(1), -size - 1, size + 1);
  if (step == 0) return absl::InvalidArgumentError("a slice's step is 0");
  const int64_t low = step > 0 ? 0 : -1, high = step > 0 ? size : size - 1;
  const auto clip = [&](int64_t bound) { return std::clamp(bound < 0 ? bound + size : bound, low, high); };
  const int64_t begin = at[0] ? clip(*at[0]) : (step > 0 ? low : high);
  const int64_t end = at[1] ? clip(*at[1]) : (step > 0 ? high : low);
  if (text != nullptr && step == 1) {
    if (end <= begin) return Value(Text());
    return Value(text->Sub(offsets[begin], offsets[end] - offsets[begin]));
  }
  PHX_RETURN_IF_ERROR(budget->Charge(size * 4));
  std::vector<Value> items;
  TextBuilder out;
  for (int64_t i = begin; step > 0 ? i < end : i > end; i += step) {
    if (list != nullptr) {
      items.push_back(list->items[static_cast<size_t>(i)]);
    } else {
      out.Append(text->Sub(offsets[i], offsets[i + 1] - offsets[i]));
    }
  }
  if (text != nullptr) return Value(std::move(out).Build());
  return Value::MakeList(std::move(items), list->kind);
}

Text Escape(const Text& text) {
  if (text.is_markup()) return text;
  TextBuilder out;
  const std::string_view all = text.view();
  for (size_t at = 0; at < all.size();) {
    const size_t special = std::min(all.find_first_of("&<>\"'", at), all.size());
    out.Append(text.Sub(at, special - at));
    if (special == all.size()) break;
    static constexpr std::string_view kNames[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
    out.Append(kNames[std::string_view("&<>\"'").find(all[special])], text.Sub(special, 1).has_user());
    at = special + 1;
  }
  return std::move(out).Build().AsMarkup();
}

absl::StatusOr<Text> Concat(const Text& left, const Text& right, Budget* budget) {
  if (left.is_markup() != right.is_markup()) return Concat(Escape(left), Escape(right), budget);
  const auto size = static_cast<int64_t>(left.size() + right.size());
  if (size > kMaxStringBytes) return TooLong(size);
  const size_t before = left.size();
  Text sum = Text::Concat(left, right);
  if (left.is_markup()) sum = sum.AsMarkup();
  // What was appended in place costs no copy of what was there.
  PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(
      right.size() + (before > 0 && sum.view().data() == left.view().data() ? 0 : before))));
  return sum;
}

absl::StatusOr<Value> Arithmetic(std::string_view op, const Value& left, const Value& right, Budget* budget) {
  if (op == "+" && left.text() != nullptr && right.text() != nullptr) {
    PHX_ASSIGN_OR_RETURN(Text sum, Concat(*left.text(), *right.text(), budget));
    return Value(std::move(sum));
  }
  if (op == "+" && IsSequence(left) && left.list() != nullptr && right.is_list(left.list()->kind)) {
    std::vector<Value> items = left.list()->items;
    items.insert(items.end(), right.list()->items.begin(), right.list()->items.end());
    PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(items.size()) * 32));
    return Value::MakeList(std::move(items), left.list()->kind);
  }
  if (op == "*" && IsSequence(left) && right.number()) return Repeat(left, *right.number(), budget);
  if (op == "*" && IsSequence(right) && left.number()) return Repeat(right, *left.number(), budget);
  if (op == "%" && left.text() != nullptr && left.text()->is_markup()) {
    return absl::UnimplementedError("operator % of what is safe");
  }
  if (op == "%" && left.text() != nullptr) return PercentFormat(*left.text(), right, budget);
  if (left.number() && right.number()) return IntArithmetic(op, *left.number(), *right.number());
  if (left.as_double() && right.as_double())
    return FloatArithmetic(op, *left.as_double(), *right.as_double());
  if (left.big() != nullptr || right.big() != nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("operator ", ToAbsl(op), " with an int that does not fit 64 bits"));
  }
  return NoOperator(op, left, right);
}

absl::StatusOr<Value> Negate(const Value& value) {
  if (value.real() != nullptr) return Value::Float(-*value.real());
  if (!value.number()) return WrongType("unary -", value, "a number");
  return IntArithmetic("-", 0, *value.number());
}

absl::StatusOr<bool> Less(const Value& left, const Value& right, Budget* budget) {
  PHX_RETURN_IF_ERROR(budget->Charge(std::min(left.extent().weight, right.extent().weight)));
  if (left.number() && right.number()) return *left.number() < *right.number();
  if (left.as_double() && right.as_double()) return *left.as_double() < *right.as_double();
  if (left.text() != nullptr && right.text() != nullptr) return left.text()->view() < right.text()->view();
  if (left.list() != nullptr && right.list() != nullptr && IsSequence(left) &&
      left.list()->kind == right.list()->kind) {
    const std::vector<Value>&a = left.list()->items, &b = right.list()->items;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      if (!a[i].Equals(b[i])) return Less(a[i], b[i], budget);
    }
    return a.size() < b.size();
  }
  return NoOperator("<", left, right);
}

absl::StatusOr<bool> Compare(std::string_view op, const Value& left, const Value& right, Budget* budget) {
  if (op == "==" || op == "!=") {
    int64_t weight = std::min(left.extent().weight, right.extent().weight);
    if (left.dict() != nullptr || left.list() != nullptr) weight *= std::min<int64_t>(weight, 64);
    if (left.dict() != nullptr && right.dict() != nullptr) {
      const auto keys = static_cast<int64_t>(left.dict()->entries.size());
      weight = std::max(weight, keys * keys);
    }
    PHX_RETURN_IF_ERROR(budget->Charge(weight));
    return left.Equals(right) == (op == "==");
  }
  if (op == "in" || op == "not in") {
    PHX_ASSIGN_OR_RETURN(const bool found, Contains(right, left, budget));
    return found == (op == "in");
  }
  if (op == "<") return Less(left, right, budget);
  if (op == ">") return Less(right, left, budget);
  if (left.Equals(right) && !left.is_undefined() && !left.is_none()) {
    return Less(left, right, budget).status().ok() ? absl::StatusOr<bool>(true) : NoOperator(op, left, right);
  }
  return op == "<=" ? Less(left, right, budget) : Less(right, left, budget);
}

}  // namespace phalanx::jinja
