// Filters, tests, methods and functions of the Jinja subset.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja_value.h"

namespace phalanx::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;
};

enum class CallKind { kFilter, kTest, kMethod, kFunction };

// OK if there is such a thing and it takes these arguments; else Unimplemented naming it and what is
// supported, or InvalidArgument. For the parser: the value it is applied to is not counted.
absl::Status CheckCall(CallKind kind, std::string_view name, size_t positional,
                       const std::vector<std::string>& keywords);

bool IsFunction(std::string_view name);

// The callee was checked.
absl::StatusOr<Value> CallFilter(std::string_view name, const Value& input, const Arguments& arguments);
absl::StatusOr<bool> CallTest(std::string_view name, const Value& input);
absl::StatusOr<Value> CallMethod(std::string_view name, const Value& object, const Arguments& arguments);
absl::StatusOr<Value> CallFunction(std::string_view name, const Arguments& arguments);

// In characters for a string. InvalidArgument for a value that has no length.
absl::StatusOr<int64_t> Length(const Value& value);

// object[begin:end:step] of a list or a string. InvalidArgument if the step is 0.
absl::StatusOr<Value> Slice(const Value& object, const std::optional<int64_t> (&bounds)[3]);

}  // namespace phalanx::jinja
