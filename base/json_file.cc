#include "base/json_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

using nlohmann::json;

// Looks at all of a text, keeps nothing but what is wrong.
class Checker : public nlohmann::json_sax<json> {
 public:
  explicit Checker(int64_t max_memory) : memory_(max_memory) {}
  const std::string& problem() const { return problem_; }

  bool null() override { return Fits(memory_.Scalar()); }
  bool boolean(bool) override { return Fits(memory_.Scalar()); }
  bool number_integer(number_integer_t) override { return Fits(memory_.Scalar()); }
  bool number_unsigned(number_unsigned_t) override { return Fits(memory_.Scalar()); }
  bool number_float(number_float_t, const string_t&) override { return Fits(memory_.Scalar()); }
  bool string(string_t& value) override { return Fits(memory_.String(value.size())); }
  bool binary(binary_t&) override { return true; }
  bool key(string_t& name) override { return Fits(memory_.Key(name.size())); }
  bool start_object(std::size_t) override { return Enter(); }
  bool start_array(std::size_t) override { return Enter(); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }
  bool parse_error(std::size_t position, const std::string& last_token,
                   const nlohmann::detail::exception&) override {
    problem_ = absl::StrCat("not valid JSON at byte ", position, ", near ", Quote(last_token));
    return false;
  }

 private:
  bool Enter() {
    if (++depth_ <= kMaxJsonDepth) return Fits(memory_.Container());
    problem_ = absl::StrCat("objects and arrays nested deeper than ", kMaxJsonDepth);
    return false;
  }
  bool Leave() {
    --depth_;
    return true;
  }

  bool Fits(bool fits) {
    if (!fits) problem_ = memory_.Problem();
    return fits;
  }

  JsonMemory memory_;
  int depth_ = 0;
  std::string problem_;
};

}  // namespace

std::string JsonMemory::Problem() const {
  return absl::StrCat("its values would take more than ", limit_, " bytes of memory");
}

absl::StatusOr<json> ParseJson(std::string_view text, const std::string& name, int64_t max_memory) {
  Checker checker(max_memory > 0 ? max_memory : JsonMemory::LimitFor(text.size()));
  if (!json::sax_parse(text.begin(), text.end(), &checker)) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", checker.problem()));
  }
  return json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  // O_NONBLOCK: a pipe's open would wait for its writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  if (info.st_size > max_bytes) {
    close(fd);
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", info.st_size, " bytes, must be at most ", max_bytes));
  }
  std::string text(static_cast<size_t>(info.st_size), '\0');
  size_t done = 0;
  ssize_t got = 1;
  while (done < text.size() && got > 0) {
    do {
      got = read(fd, text.data() + done, text.size() - done);
    } while (got < 0 && errno == EINTR);
    if (got > 0) done += static_cast<size_t>(got);
  }
  const int read_errno = errno;
  close(fd);
  if (got < 0) return absl::ErrnoToStatus(read_errno, absl::StrCat("cannot read ", path));
  text.resize(done);
  return text;
}

absl::StatusOr<json> ReadJsonFile(const std::string& path, int64_t max_bytes) {
  PHX_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, max_bytes));
  return ParseJson(text, path);
}

std::string ShowJson(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (const auto* text = value.get_ptr<const std::string*>()) return Quote(*text);
  return value.dump();
}

const json* JsonKeys::Find(std::string_view key) const {
  const auto it = object_.find(std::string(key));
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

std::string JsonKeys::Name(std::string_view key) const {
  return absl::StrCat(file_, ": ", prefix_, prefix_.empty() ? "" : ".", ToAbsl(key));
}

absl::Status JsonKeys::Missing(std::string_view key, std::string_view must) const {
  return absl::InvalidArgumentError(absl::StrCat(Name(key), " is missing, must be ", ToAbsl(must)));
}

absl::Status JsonKeys::Bad(std::string_view key, const json& value, std::string_view must) const {
  return absl::InvalidArgumentError(
      absl::StrCat(Name(key), " is ", ShowJson(value), ", must be ", ToAbsl(must)));
}

absl::Status JsonKeys::Unsupported(std::string_view key, const json& value,
                                   std::string_view supported) const {
  return absl::UnimplementedError(absl::StrCat(Name(key), " is ", ShowJson(value),
                                               ", which is not supported; supported: ", ToAbsl(supported)));
}

absl::Status JsonKeys::Int(std::string_view key, int64_t min, int64_t max, int* out) const {
  const std::string must = absl::StrCat("an integer from ", min, " to ", max);
  const json* value = Find(key);
  if (value == nullptr) return Missing(key, must);
  if (value->is_number_unsigned()) {
    const auto number = value->get<uint64_t>();
    if (number > static_cast<uint64_t>(max) || static_cast<int64_t>(number) < min) {
      return Bad(key, *value, must);
    }
    *out = static_cast<int>(number);
    return absl::OkStatus();
  }
  if (!value->is_number_integer()) return Bad(key, *value, must);
  const auto number = value->get<int64_t>();
  if (number < min || number > max) return Bad(key, *value, must);
  *out = static_cast<int>(number);
  return absl::OkStatus();
}

absl::Status JsonKeys::OptionalInt(std::string_view key, int64_t min, int64_t max, int* out) const {
  return Find(key) == nullptr ? absl::OkStatus() : Int(key, min, max, out);
}

absl::Status JsonKeys::Positive(std::string_view key, double* out) const {
  constexpr std::string_view kMust = "a finite number above 0";
  const json* value = Find(key);
  if (value == nullptr) return Missing(key, kMust);
  if (!value->is_number()) return Bad(key, *value, kMust);
  const auto number = value->get<double>();
  if (!std::isfinite(number) || number <= 0) return Bad(key, *value, kMust);
  *out = number;
  return absl::OkStatus();
}

absl::Status JsonKeys::OptionalPositive(std::string_view key, double* out) const {
  return Find(key) == nullptr ? absl::OkStatus() : Positive(key, out);
}

absl::Status JsonKeys::OptionalBool(std::string_view key, bool* out) const {
  const json* value = Find(key);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_boolean()) return Bad(key, *value, "true or false");
  *out = value->get<bool>();
  return absl::OkStatus();
}

absl::Status JsonKeys::OptionalString(std::string_view key, std::string* out) const {
  const json* value = Find(key);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_string()) return Bad(key, *value, "a string");
  *out = value->get<std::string>();
  return absl::OkStatus();
}

}  // namespace phalanx
