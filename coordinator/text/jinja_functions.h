// Filters, tests, methods and functions of the Jinja subset.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja_operators.h"
#include "coordinator/text/jinja_value.h"

namespace phalanx::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;
};

struct Date {
  int year = 0, month = 0, day = 0;
};

// What a render holds besides its variables.
struct Context {
  Budget budget;
  std::optional<Date> today;  // absent: no strftime_now
};

// The arguments of a call in the order of the names of its parameters; InvalidArgument for one too many, one
// that has no such name, or fewer than `least`.
class Bound {
 public:
  static absl::StatusOr<Bound> Bind(std::string_view what, const Arguments& arguments,
                                    std::initializer_list<std::string_view> names, size_t least);

  bool has(size_t i) const { return values_[i].has_value(); }
  const Value& operator[](size_t i) const { return *values_[i]; }
  // For absent ones.
  Value Or(size_t i, Value otherwise) const { return has(i) ? *values_[i] : std::move(otherwise); }
  bool truthy(size_t i) const { return has(i) && values_[i]->truthy(); }
  absl::StatusOr<Text> TextOf(size_t i) const;
  absl::StatusOr<int64_t> IntOf(size_t i, int64_t otherwise) const;

 private:
  std::string what_;
  std::vector<std::string_view> names_;
  std::vector<std::optional<Value>> values_;
};

// Unimplemented naming it and what is supported if there is no such thing.
absl::Status CheckFilter(std::string_view name);
absl::Status CheckTest(std::string_view name);
bool IsMethod(const Value& object, std::string_view name);
bool IsFunction(std::string_view name, const Context& context);

absl::StatusOr<Value> CallFilter(std::string_view name, const Value& input, const Arguments& arguments,
                                 Context* context);
absl::StatusOr<bool> CallTest(std::string_view name, const Value& input, const Arguments& arguments,
                              Context* context);
absl::StatusOr<Value> CallMethod(std::string_view name, const Value& object, const Arguments& arguments,
                                 Context* context);
absl::StatusOr<Value> CallFunction(std::string_view name, const Arguments& arguments, Context* context);

// Shared by filters and methods.
absl::StatusOr<Value> Split(const Text& text, const Value& separator, int64_t most, bool from_right,
                            Budget* budget);
absl::StatusOr<Value> SplitLines(const Text& text, bool keep_ends, Budget* budget);
absl::StatusOr<Value> Replace(const Text& text, const Text& old, const Text& by, int64_t most,
                              Budget* budget);
absl::StatusOr<Value> Join(const std::vector<Value>& items, const Text& separator, bool only_strings,
                           Budget* budget);
absl::StatusOr<Value> StripText(const Text& text, bool left, bool right, const Value& chars, Budget* budget);
absl::StatusOr<Value> MakeMapping(const Arguments& arguments, Budget* budget);
// Filters of lists, in jinja_list_filters.cc; absent for a name that is none of them.
absl::StatusOr<std::optional<Value>> CallListFilter(std::string_view name, const Value& input,
                                                    const Arguments& arguments, Context* context);

}  // namespace phalanx::jinja
