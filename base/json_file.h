// JSON from files, without exceptions: what is wrong becomes a Status that names file, key and value.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace phalanx {

// Objects and arrays in each other at most.
inline constexpr int kMaxJsonDepth = 64;

// Adds up what values take in memory once they are parsed. "[[],[],..." takes forty times its text: such a
// text is refused before.
class JsonMemory {
 public:
  explicit JsonMemory(int64_t limit) : limit_(limit), left_(limit) {}
  // What the document of a text may take where nothing else is said. Published files are far below.
  static int64_t LimitFor(size_t text_bytes) {
    return (int64_t{16} << 20) + 4 * static_cast<int64_t>(text_bytes);
  }

  // Each is false once the limit is passed.
  bool Scalar() { return Take(32); }  // with its share of an array that grows
  bool String(size_t bytes) { return Take(64 + bytes); }
  bool Container() { return Take(96); }
  bool Key(size_t bytes) { return Take(80 + bytes); }  // its place in an object
  bool Take(size_t bytes) { return (left_ -= static_cast<int64_t>(bytes)) >= 0; }

  // "takes more than ... bytes of memory".
  std::string Problem() const;

 private:
  const int64_t limit_;
  int64_t left_;
};

// InvalidArgument naming `name` and the place for what is no JSON, nested deeper than kMaxJsonDepth or would
// take more than max_memory (0: JsonMemory::LimitFor).
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const std::string& name,
                                         int64_t max_memory = 0);

// The whole of a regular file. NotFound; InvalidArgument where it is larger than max_bytes, or no regular
// file.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes);
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, int64_t max_bytes);

// A scalar for messages, cut; other values by their kind.
std::string ShowJson(const nlohmann::json& value);

// Typed look-ups in an object that must outlive this. Errors are InvalidArgument and name "file: prefix.key",
// the value and what it must be; a key that is absent or null is the same, and an error only without
// "Optional": then *out keeps its value.
class JsonKeys {
 public:
  JsonKeys(const nlohmann::json& object, std::string file, std::string prefix = "")
      : object_(object), file_(std::move(file)), prefix_(std::move(prefix)) {}

  // Null where the key is absent or null.
  const nlohmann::json* Find(std::string_view key) const;
  std::string Name(std::string_view key) const;  // "file: prefix.key"
  const nlohmann::json& object() const { return object_; }
  const std::string& file() const { return file_; }

  absl::Status Int(std::string_view key, int64_t min, int64_t max, int* out) const;
  absl::Status OptionalInt(std::string_view key, int64_t min, int64_t max, int* out) const;
  // Finite and above 0.
  absl::Status Positive(std::string_view key, double* out) const;
  absl::Status OptionalPositive(std::string_view key, double* out) const;
  absl::Status OptionalBool(std::string_view key, bool* out) const;
  absl::Status OptionalString(std::string_view key, std::string* out) const;

  absl::Status Missing(std::string_view key, std::string_view must) const;
  absl::Status Bad(std::string_view key, const nlohmann::json& value, std::string_view must) const;
  // Unimplemented: "file: key is VALUE, which is not supported; supported: WHAT".
  absl::Status Unsupported(std::string_view key, const nlohmann::json& value,
                           std::string_view supported) const;

 private:
  const nlohmann::json& object_;
  const std::string file_;
  const std::string prefix_;
};

}  // namespace phalanx
