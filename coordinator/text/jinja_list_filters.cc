// Filters of lists and mappings.
#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/jinja_functions.h"
#include "coordinator/text/jinja_unicode.h"

namespace phalanx::jinja {
namespace {

constexpr int64_t kItemWork = 64;

// What `attribute` names in an item: the parts between its dots, one after the other.
class Getter {
 public:
  // With `several`, commas part more than one of them and the result is a list. None stands for the item
  // itself.
  static absl::StatusOr<Getter> Make(const Value& attribute, bool several) {
    Getter getter;
    getter.several_ = several;
    if (attribute.is_none()) return getter;
    if (attribute.number()) {
      getter.paths_.push_back({attribute});
      return getter;
    }
    if (attribute.text() == nullptr) return WrongType("attribute", attribute, "a str or an int");
    std::string_view text = attribute.text()->view();
    while (true) {
      const size_t comma = several ? text.find(',') : std::string_view::npos;
      getter.paths_.push_back(Path(text.substr(0, comma)));
      if (comma == std::string_view::npos) return getter;
      text.remove_prefix(comma + 1);
    }
  }

  absl::StatusOr<Value> Get(const Value& item, const Value* otherwise, bool ignore_case,
                            Budget* budget) const {
    std::vector<Value> found;
    for (const std::vector<Value>& path : paths_) {
      Value value = item;
      for (const Value& part : path) {
        PHX_ASSIGN_OR_RETURN(value, GetItem(value, part, budget));
        if (otherwise != nullptr && value.is_undefined()) value = *otherwise;
      }
      found.push_back(std::move(value));
    }
    if (paths_.empty()) found.push_back(item);
    if (ignore_case) {
      for (Value& value : found) {
        if (value.text() != nullptr) value = InCase(*value.text(), Case::kLower);
      }
    }
    if (!several_ || found.size() == 1) return found[0];
    return Value::MakeList(std::move(found));
  }

 private:
  static std::vector<Value> Path(std::string_view text) {
    std::vector<Value> path;
    while (true) {
      const size_t dot = text.find('.');
      const std::string part(text.substr(0, dot));
      int64_t index = 0;
      const bool digits = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
      path.push_back(digits && absl::SimpleAtoi(part, &index) ? Value::Int(index) : Value::Str(part));
      if (dot == std::string_view::npos) return path;
      text.remove_prefix(dot + 1);
    }
  }

  std::vector<std::vector<Value>> paths_;
  bool several_ = false;
};

Arguments From(const Arguments& arguments, size_t first) {
  Arguments rest;
  const auto skipped = static_cast<ptrdiff_t>(std::min(first, arguments.positional.size()));
  rest.positional.assign(arguments.positional.begin() + skipped, arguments.positional.end());
  return rest;
}

absl::StatusOr<Value> Map(const Value& input, const Arguments& arguments, Context* context) {
  if (!input.truthy()) return Value::MakeList({}, List::Kind::kGenerator);
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, &context->budget));
  std::vector<Value> out;
  if (arguments.positional.empty()) {
    PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("map", arguments, {"attribute", "default"}, 1));
    PHX_ASSIGN_OR_RETURN(const Getter getter, Getter::Make(args[0], false));
    const Value otherwise = args.Or(1, Value());
    for (const Value& item : items) {
      PHX_RETURN_IF_ERROR(context->budget.Charge(kItemWork));
      PHX_ASSIGN_OR_RETURN(
          Value value, getter.Get(item, otherwise.is_none() ? nullptr : &otherwise, false, &context->budget));
      out.push_back(std::move(value));
    }
  } else {
    const Text* name = arguments.positional[0].text();
    if (name == nullptr) return WrongType("map", arguments.positional[0], "the name of a filter");
    Arguments rest = From(arguments, 1);
    rest.keywords = arguments.keywords;
    for (const Value& item : items) {
      PHX_RETURN_IF_ERROR(context->budget.Charge(kItemWork));
      PHX_ASSIGN_OR_RETURN(Value value, CallFilter(name->view(), item, rest, context));
      out.push_back(std::move(value));
    }
  }
  return Value::MakeList(std::move(out), List::Kind::kGenerator);
}

absl::StatusOr<Value> Select(const Value& input, const Arguments& arguments, bool wanted, bool by_attribute,
                             Context* context) {
  if (!input.truthy()) return Value::MakeList({}, List::Kind::kGenerator);
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, &context->budget));
  const size_t first = by_attribute ? 1 : 0;
  if (arguments.positional.size() < first)
    return absl::InvalidArgumentError("an attribute's name is missing");
  PHX_ASSIGN_OR_RETURN(const Getter getter,
                       Getter::Make(by_attribute ? arguments.positional[0] : Value(), false));
  const Value test = arguments.positional.size() > first ? arguments.positional[first] : Value();
  if (!test.is_none() && test.text() == nullptr) return WrongType("select", test, "the name of a test");
  if (!test.is_none()) PHX_RETURN_IF_ERROR(CheckTest(test.text()->view()));
  Arguments rest = From(arguments, first + 1);
  rest.keywords = arguments.keywords;
  std::vector<Value> out;
  for (const Value& item : items) {
    PHX_RETURN_IF_ERROR(context->budget.Charge(kItemWork));
    PHX_ASSIGN_OR_RETURN(const Value value, getter.Get(item, nullptr, false, &context->budget));
    bool passes = value.truthy();
    if (!test.is_none()) {
      PHX_ASSIGN_OR_RETURN(passes, CallTest(test.text()->view(), value, rest, context));
    }
    if (passes == wanted) out.push_back(item);
  }
  return Value::MakeList(std::move(out), List::Kind::kGenerator);
}

// Sorts by the keys; stable.
absl::StatusOr<std::vector<Value>> SortBy(const std::vector<Value>& items, const std::vector<Value>& keys,
                                          bool reverse, Budget* budget) {
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  absl::Status failed;
  const auto before = [&](size_t a, size_t b) {
    if (!failed.ok()) return false;
    const absl::StatusOr<bool> less =
        reverse ? Less(keys[b], keys[a], budget) : Less(keys[a], keys[b], budget);
    if (!less.ok()) failed = less.status();
    return less.ok() && *less;
  };
  // A merge sort, which stays within bounds whatever the comparison says.
  std::stable_sort(order.begin(), order.end(), before);
  PHX_RETURN_IF_ERROR(failed);
  std::vector<Value> out;
  for (const size_t i : order) out.push_back(items[i]);
  return out;
}

absl::StatusOr<std::vector<Value>> KeysOf(const std::vector<Value>& items, const Getter& getter,
                                          bool ignore_case, Budget* budget) {
  std::vector<Value> keys;
  for (const Value& item : items) {
    PHX_RETURN_IF_ERROR(budget->Charge(kItemWork));
    PHX_ASSIGN_OR_RETURN(Value key, getter.Get(item, nullptr, ignore_case, budget));
    keys.push_back(std::move(key));
  }
  return keys;
}

absl::StatusOr<Value> Sort(const Value& input, const Arguments& arguments, Budget* budget) {
  PHX_ASSIGN_OR_RETURN(const Bound args,
                       Bound::Bind("sort", arguments, {"reverse", "case_sensitive", "attribute"}, 0));
  PHX_ASSIGN_OR_RETURN(const Getter getter, Getter::Make(args.Or(2, Value()), true));
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> keys, KeysOf(items, getter, !args.truthy(1), budget));
  PHX_ASSIGN_OR_RETURN(std::vector<Value> sorted, SortBy(items, keys, args.truthy(0), budget));
  return Value::MakeList(std::move(sorted));
}

absl::StatusOr<Value> DictSort(const Value& input, const Arguments& arguments, Context* context) {
  PHX_ASSIGN_OR_RETURN(const Bound args,
                       Bound::Bind("dictsort", arguments, {"case_sensitive", "by", "reverse"}, 0));
  const Value by = args.Or(1, Value::Str("key"));
  const bool by_key = by.text() != nullptr && by.text()->view() == "key";
  if (!by_key && (by.text() == nullptr || by.text()->view() != "value")) {
    return absl::InvalidArgumentError("dictsort: can sort by key or value");
  }
  if (input.dict() == nullptr) return WrongType("dictsort", input, "a mapping");
  PHX_ASSIGN_OR_RETURN(const Value pairs, CallMethod("items", input, {}, context));
  PHX_ASSIGN_OR_RETURN(const Getter getter, Getter::Make(Value::Int(by_key ? 0 : 1), false));
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> keys,
                       KeysOf(pairs.list()->items, getter, !args.truthy(0), &context->budget));
  PHX_ASSIGN_OR_RETURN(std::vector<Value> sorted,
                       SortBy(pairs.list()->items, keys, args.truthy(2), &context->budget));
  return Value::MakeList(std::move(sorted));
}

absl::StatusOr<Value> Unique(const Value& input, const Arguments& arguments, Budget* budget) {
  PHX_ASSIGN_OR_RETURN(const Bound args,
                       Bound::Bind("unique", arguments, {"case_sensitive", "attribute"}, 0));
  PHX_ASSIGN_OR_RETURN(const Getter getter, Getter::Make(args.Or(1, Value()), false));
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> keys, KeysOf(items, getter, !args.truthy(0), budget));
  std::vector<Value> out;
  std::vector<const Value*> seen;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!IsKey(keys[i])) return WrongType("unique", keys[i], "a str, number, none or tuple");
    PHX_RETURN_IF_ERROR(budget->Charge(static_cast<int64_t>(seen.size()) * 8));
    if (std::any_of(seen.begin(), seen.end(), [&](const Value* v) { return v->Equals(keys[i]); })) continue;
    seen.push_back(&keys[i]);
    out.push_back(items[i]);
  }
  return Value::MakeList(std::move(out), List::Kind::kGenerator);
}

absl::StatusOr<Value> MinOrMax(const Value& input, const Arguments& arguments, bool max, Budget* budget) {
  PHX_ASSIGN_OR_RETURN(const Bound args,
                       Bound::Bind(max ? "max" : "min", arguments, {"case_sensitive", "attribute"}, 0));
  PHX_ASSIGN_OR_RETURN(const Getter getter, Getter::Make(args.Or(1, Value()), false));
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  if (items.empty()) return Value(Undefined{"no aggregated item, the sequence was empty"});
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> keys, KeysOf(items, getter, !args.truthy(0), budget));
  size_t best = 0;
  for (size_t i = 1; i < items.size(); ++i) {
    PHX_ASSIGN_OR_RETURN(const bool better,
                         max ? Less(keys[best], keys[i], budget) : Less(keys[i], keys[best], budget));
    if (better) best = i;
  }
  return items[best];
}

absl::StatusOr<Value> Sum(const Value& input, const Arguments& arguments, Budget* budget) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("sum", arguments, {"attribute", "start"}, 0));
  PHX_ASSIGN_OR_RETURN(const Getter getter, Getter::Make(args.Or(0, Value()), false));
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  Value sum = args.Or(1, Value::Int(0));
  if (sum.text() != nullptr) return WrongType("sum: start", sum, "no str");
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> values, KeysOf(items, getter, false, budget));
  for (const Value& value : values) {
    PHX_ASSIGN_OR_RETURN(sum, Arithmetic("+", sum, value, budget));
  }
  return sum;
}

absl::StatusOr<Value> GroupBy(const Value& input, const Arguments& arguments, Budget* budget) {
  PHX_ASSIGN_OR_RETURN(const Bound args,
                       Bound::Bind("groupby", arguments, {"attribute", "default", "case_sensitive"}, 1));
  PHX_ASSIGN_OR_RETURN(const Getter getter, Getter::Make(args[0], false));
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  const Value otherwise = args.Or(1, Value());
  std::vector<Value> pairs, keys;
  for (const Value& item : items) {
    PHX_RETURN_IF_ERROR(budget->Charge(kItemWork));
    PHX_ASSIGN_OR_RETURN(
        Value key, getter.Get(item, otherwise.is_none() ? nullptr : &otherwise, !args.truthy(2), budget));
    PHX_ASSIGN_OR_RETURN(Value pair, Value::MakeList({key, item}, List::Kind::kTuple));
    keys.push_back(std::move(key));
    pairs.push_back(std::move(pair));
  }
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> sorted, SortBy(pairs, keys, false, budget));
  std::vector<Value> groups;
  for (size_t begin = 0; begin < sorted.size();) {
    const Value& key = sorted[begin].list()->items[0];
    std::vector<Value> members;
    size_t end = begin;
    for (; end < sorted.size() && sorted[end].list()->items[0].Equals(key); ++end) {
      members.push_back(sorted[end].list()->items[1]);
    }
    // The group's name is the first member's, whatever its case.
    PHX_ASSIGN_OR_RETURN(Value name,
                         getter.Get(members[0], otherwise.is_none() ? nullptr : &otherwise, false, budget));
    PHX_ASSIGN_OR_RETURN(Value list, Value::MakeList(std::move(members)));
    PHX_ASSIGN_OR_RETURN(Value group,
                         Value::MakeList({std::move(name), std::move(list)}, List::Kind::kTuple));
    groups.push_back(std::move(group));
    begin = end;
  }
  return Value::MakeList(std::move(groups));
}

absl::StatusOr<Value> BatchOrSlice(std::string_view name, const Value& input, const Arguments& arguments,
                                   Budget* budget) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind(name, arguments, {"count", "fill_with"}, 1));
  PHX_ASSIGN_OR_RETURN(const int64_t count, args.IntOf(0, 0));
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  if (count < 1 || count > 100000)
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(name), ": ", count, " parts"));
  const auto size = static_cast<int64_t>(items.size());
  PHX_RETURN_IF_ERROR(budget->Charge((size + count) * kItemWork));
  const bool fill = args.has(1) && !args[1].is_none();
  std::vector<Value> parts;
  const auto add = [&](int64_t begin, int64_t end, int64_t filled) -> absl::Status {
    std::vector<Value> part(items.begin() + begin, items.begin() + end);
    for (int64_t i = 0; fill && i < filled; ++i) part.push_back(args[1]);
    PHX_ASSIGN_OR_RETURN(Value list, Value::MakeList(std::move(part)));
    parts.push_back(std::move(list));
    return absl::OkStatus();
  };
  if (name == "batch") {
    for (int64_t begin = 0; begin < size; begin += count) {
      PHX_RETURN_IF_ERROR(
          add(begin, std::min(begin + count, size), std::max<int64_t>(begin + count - size, 0)));
    }
  } else {
    const int64_t each = size / count, more = size % count;
    for (int64_t n = 0, begin = 0; n < count; ++n) {
      const int64_t end = begin + each + (n < more ? 1 : 0);
      PHX_RETURN_IF_ERROR(add(begin, end, n >= more && more > 0 ? 1 : 0));
      begin = end;
    }
  }
  return Value::MakeList(std::move(parts), List::Kind::kGenerator);
}

absl::StatusOr<Value> FirstOrLast(const Value& input, bool first, Budget* budget) {
  const Value none = Undefined{absl::StrCat(first ? "first" : "last", " of an empty ", input.kind())};
  if (const List* list = input.list(); list != nullptr && list->kind == List::Kind::kGenerator) {
    if (!first) return WrongType("last", input, "a list, str or mapping");
    return list->consumed < list->items.size() ? list->items[list->consumed++] : none;
  }
  if (const Text* text = input.text()) {
    if (text->empty()) return none;
    return GetItem(input, Value::Int(first ? 0 : -1), budget);
  }
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  if (items.empty()) return none;
  return first ? items.front() : items.back();
}

absl::StatusOr<Value> Reverse(const Value& input, Budget* budget) {
  if (const Text* text = input.text()) {
    const Value back[3] = {Value(), Value(), Value::Int(-1)};
    return Slice(Value(*text), back, budget);
  }
  if (input.is_undefined()) return Value::MakeList({}, List::Kind::kGenerator);
  PHX_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(input, budget));
  std::reverse(items.begin(), items.end());
  return Value::MakeList(std::move(items),
                         input.is_list(List::Kind::kGenerator) ? List::Kind::kList : List::Kind::kGenerator);
}

absl::StatusOr<Value> JoinFilter(const Value& input, const Arguments& arguments, Budget* budget) {
  PHX_ASSIGN_OR_RETURN(const Bound args, Bound::Bind("join", arguments, {"d", "attribute"}, 0));
  PHX_ASSIGN_OR_RETURN(const Text separator, ToText(args.Or(0, Value(Text()))));
  PHX_ASSIGN_OR_RETURN(const Getter getter, Getter::Make(args.Or(1, Value()), false));
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(input, budget));
  PHX_ASSIGN_OR_RETURN(const std::vector<Value> values, KeysOf(items, getter, false, budget));
  return Join(values, separator, /*only_strings=*/false, budget);
}

}  // namespace

absl::StatusOr<std::optional<Value>> CallListFilter(std::string_view name, const Value& input,
                                                    const Arguments& arguments, Context* context) {
  Budget* budget = &context->budget;
  const auto dispatch = [&]() -> absl::StatusOr<Value> {
    if (name == "map") return Map(input, arguments, context);
    if (name == "select" || name == "reject")
      return Select(input, arguments, name == "select", false, context);
    if (name == "selectattr" || name == "rejectattr") {
      return Select(input, arguments, name == "selectattr", true, context);
    }
    if (name == "sort") return Sort(input, arguments, budget);
    if (name == "dictsort") return DictSort(input, arguments, context);
    if (name == "unique") return Unique(input, arguments, budget);
    if (name == "min" || name == "max") return MinOrMax(input, arguments, name == "max", budget);
    if (name == "sum") return Sum(input, arguments, budget);
    if (name == "groupby") return GroupBy(input, arguments, budget);
    if (name == "batch" || name == "slice") return BatchOrSlice(name, input, arguments, budget);
    if (name == "join") return JoinFilter(input, arguments, budget);
    PHX_RETURN_IF_ERROR(Bound::Bind(name, arguments, {}, 0).status());
    if (name == "first" || name == "last") return FirstOrLast(input, name == "first", budget);
    if (name == "reverse") return Reverse(input, budget);
    if (name == "list") {
      PHX_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(input, budget));
      return Value::MakeList(std::move(items));
    }
    // items
    if (input.is_undefined()) return Value::MakeList({}, List::Kind::kGenerator);
    if (input.dict() == nullptr) return WrongType("items", input, "a mapping");
    PHX_ASSIGN_OR_RETURN(const Value pairs, CallMethod("items", input, {}, context));
    return Value::MakeList(pairs.list()->items, List::Kind::kGenerator);
  };
  for (const char* known : {"map",    "select", "reject", "selectattr", "rejectattr", "sort",  "dictsort",
                            "unique", "min",    "max",    "sum",        "groupby",    "batch", "slice",
                            "join",   "first",  "last",   "reverse",    "list",       "items"}) {
    if (name != known) continue;
    PHX_ASSIGN_OR_RETURN(Value value, dispatch());
    return std::optional<Value>(std::move(value));
  }
  return std::optional<Value>();
}

}  // namespace phalanx::jinja
