// Typed look-ups in a GGUF file that was read (gguf.cc reads it).
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/gguf.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {

const GgufTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

const GgufValue* GgufFile::FindValue(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

template <typename T>
absl::StatusOr<const T*> GgufFile::Get(std::string_view key, std::string_view wanted) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return absl::NotFoundError(absl::StrCat(path_, ": key ", Quote(key), " is missing"));
  const T* typed = std::get_if<T>(value);
  if (typed == nullptr) {
    static constexpr const char* kHeld[] = {
        "an unsigned integer", "a signed integer",     "a float",           "a bool", "a string",
        "an array of strings", "an array of integers", "an array of floats"};
    return absl::InvalidArgumentError(absl::StrCat(path_, ": key ", Quote(key), " holds ",
                                                   kHeld[value->index()], ", must be ", ToAbsl(wanted)));
  }
  return typed;
}

absl::StatusOr<int64_t> GgufFile::GetInt(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value != nullptr) {
    if (const auto* u = std::get_if<uint64_t>(value)) {
      if (*u > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return absl::InvalidArgumentError(
            absl::StrCat(path_, ": key ", Quote(key), " is ", *u, ", must be below 2^63"));
      }
      return static_cast<int64_t>(*u);
    }
  }
  PHX_ASSIGN_OR_RETURN(const int64_t* i, Get<int64_t>(key, "an integer"));
  return *i;
}

absl::StatusOr<double> GgufFile::GetFloat(std::string_view key) const {
  PHX_ASSIGN_OR_RETURN(const double* value, Get<double>(key, "a float"));
  return *value;
}

absl::StatusOr<bool> GgufFile::GetBool(std::string_view key) const {
  PHX_ASSIGN_OR_RETURN(const bool* value, Get<bool>(key, "a bool"));
  return *value;
}

absl::StatusOr<std::string_view> GgufFile::GetString(std::string_view key) const {
  PHX_ASSIGN_OR_RETURN(const std::string_view* value, Get<std::string_view>(key, "a string"));
  return *value;
}

absl::StatusOr<std::vector<std::string_view>> GgufFile::GetStrings(std::string_view key) const {
  PHX_ASSIGN_OR_RETURN(const std::vector<std::string_view>* value,
                       Get<std::vector<std::string_view>>(key, "an array of strings"));
  return *value;
}

absl::StatusOr<std::vector<int64_t>> GgufFile::GetInts(std::string_view key) const {
  PHX_ASSIGN_OR_RETURN(const std::vector<int64_t>* value,
                       Get<std::vector<int64_t>>(key, "an array of integers"));
  return *value;
}

}  // namespace phalanx
