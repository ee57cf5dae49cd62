// What expressions do with values. Errors do not name the line; the caller adds it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja_value.h"

namespace phalanx::jinja {

// Work that may still be done. One unit is about a byte copied, at most some nanoseconds.
class Budget {
 public:
  explicit Budget(int64_t work) : left_(work) {}
  // ResourceExhausted when it is spent.
  absl::Status Charge(int64_t work);

 private:
  int64_t left_;
};

// InvalidArgument: "what: a list found, a str wanted".
absl::Status WrongType(std::string_view what, const Value& value, std::string_view wanted);

// The items a for runs over; takes those of a generator. InvalidArgument for what cannot be iterated.
absl::StatusOr<std::vector<Value>> Iterate(const Value& value, Budget* budget);
// In characters for a string. InvalidArgument for a value that has no length.
absl::StatusOr<int64_t> Length(const Value& value, Budget* budget);
// object.name and object[key]; undefined if there is no such thing.
absl::StatusOr<Value> GetAttribute(const Value& object, const std::string& name, Budget* budget);
absl::StatusOr<Value> GetItem(const Value& object, const Value& key, Budget* budget);
// object[begin:end:step].
absl::StatusOr<Value> Slice(const Value& object, const Value (&bounds)[3], Budget* budget);

// + - * / // % **
absl::StatusOr<Value> Arithmetic(std::string_view op, const Value& left, const Value& right, Budget* budget);
absl::StatusOr<Value> Negate(const Value& value);
// == != < <= > >= in, not in
absl::StatusOr<bool> Compare(std::string_view op, const Value& left, const Value& right, Budget* budget);
absl::StatusOr<bool> Less(const Value& left, const Value& right, Budget* budget);
// left ~ right. ResourceExhausted above kMaxStringBytes.
absl::StatusOr<Text> Concat(const Text& left, const Text& right, Budget* budget);
// `text` with & < > " ' written as HTML has it; itself if it is markup.
Text Escape(const Text& text);
// text % arguments, as Python's: %s %r %d %i %x %X %o %f %e %g %c %%.
absl::StatusOr<Value> PercentFormat(const Text& text, const Value& arguments, Budget* budget);
// Whether the value is hashable, so that it may be a key.
bool IsKey(const Value& value);

}  // namespace phalanx::jinja
