// GGUF files that are split in parts, as llama.cpp's gguf-split does: NAME-00001-of-00003.gguf, ...; each has
// the keys split.no and split.count, the first has the metadata.
#include <cstdio>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/gguf.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

constexpr int64_t kMaxParts = 65535;  // the key has 16 bits

std::string PartSuffix(int64_t no, int64_t count) {
  char text[64];
  std::snprintf(text, sizeof(text), "-%05lld-of-%05lld.gguf", static_cast<long long>(no + 1),
                static_cast<long long>(count));
  return text;
}

absl::StatusOr<int64_t> Key(const GgufFile& file, const char* key, int64_t min, int64_t max) {
  PHX_ASSIGN_OR_RETURN(const int64_t value, file.GetInt(key));
  if (value >= min && value <= max) return value;
  return absl::InvalidArgumentError(
      absl::StrCat(file.path(), ": ", key, " is ", value, ", must be ", min, " to ", max));
}

}  // namespace

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::JoinParts(std::unique_ptr<GgufFile> part,
                                                              TensorTypes types) {
  if (part->FindValue("split.count") == nullptr) return part;
  PHX_ASSIGN_OR_RETURN(const int64_t count, Key(*part, "split.count", 0, kMaxParts));
  if (count <= 1) return part;
  PHX_ASSIGN_OR_RETURN(const int64_t given, Key(*part, "split.no", 0, count - 1));
  const std::string path = part->path(), suffix = PartSuffix(given, count);
  if (!path.ends_with(suffix)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is part ", given + 1, " of ", count,
                                                   " of a split file; its name must end in ", suffix,
                                                   " for the others to be found"));
  }
  const std::string stem = path.substr(0, path.size() - suffix.size());
  std::unique_ptr<GgufFile> whole;
  for (int64_t no = 0; no < count; ++no) {
    std::unique_ptr<GgufFile> next;
    if (no == given) {
      next = std::move(part);
    } else {
      const std::string next_path = stem + PartSuffix(no, count);
      absl::StatusOr<std::unique_ptr<GgufFile>> opened = OpenPart(next_path, types);
      if (absl::IsNotFound(opened.status())) {
        return absl::NotFoundError(
            absl::StrCat(path, ": is part ", given + 1, " of ", count, "; ", next_path, " is missing"));
      }
      PHX_RETURN_IF_ERROR(opened.status());
      next = *std::move(opened);
    }
    PHX_RETURN_IF_ERROR(Key(*next, "split.count", count, count).status());
    PHX_RETURN_IF_ERROR(Key(*next, "split.no", no, no).status());
    if (whole == nullptr) {
      whole = std::move(next);
      continue;
    }
    for (const GgufTensor& tensor : next->tensors_) {
      if (!whole->tensor_index_.emplace(tensor.name, whole->tensors_.size()).second) {
        return absl::InvalidArgumentError(
            absl::StrCat(next->path(), ": tensor ", Quote(tensor.name), " is in an earlier part too"));
      }
      whole->tensors_.push_back(tensor);
    }
    whole->parts_.push_back(std::move(next));
  }
  if (whole->FindValue("split.tensors.count") != nullptr) {
    const auto held = static_cast<int64_t>(whole->tensors_.size());
    PHX_ASSIGN_OR_RETURN(const int64_t wanted, whole->GetInt("split.tensors.count"));
    if (held != wanted) {
      return absl::InvalidArgumentError(absl::StrCat(whole->path(), ": split.tensors.count is ", wanted,
                                                     ", but its ", count, " parts hold ", held, " tensors"));
    }
  }
  return whole;
}

}  // namespace phalanx
