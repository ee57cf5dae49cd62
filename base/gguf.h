// Reads GGUF files (version 2 and 3, little endian), also those that are split in parts. Files are
// memory-mapped and never copied: tensors are views into the mapping. Format:
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "base/mapped_file.h"

namespace phalanx {

// A stored tensor. dims are innermost first as in the file: a matrix [out, in] has dims {in, out}.
struct GgufTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> dims;
  const uint8_t* data = nullptr;  // into the mapping; lives as long as the GgufFile
  int64_t bytes = 0;
  // The name of a type of which we know only the size, with TensorTypes::kAny; dtype means nothing then.
  std::string_view foreign_type = {};

  std::string_view type_name() const { return foreign_type.empty() ? DTypeName(dtype) : foreign_type; }
};

// Arrays of strings are views into the mapping.
using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string_view,
                               std::vector<std::string_view>, std::vector<int64_t>, std::vector<double>>;

// Thread safety: immutable after Open. The file must not be truncated while it is open (reads would fault).
class GgufFile {
 public:
  // Errors name the file and the offending key, tensor or offset: NotFound (no such file), InvalidArgument
  // (not GGUF, truncated, impossible counts, tensor outside the file or overlapping header), Unimplemented
  // (a tensor type we do not read, named). Allocates no more than a small multiple of the header's size.
  // TensorTypes::kAny is for those who do not read the tensors' data. Of a split file any part may be named;
  // all are opened as one whose metadata and path are the first's: NotFound names a part that is missing.
  enum class TensorTypes { kReadable, kAny };
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path,
                                                        TensorTypes types = TensorTypes::kReadable);

  const std::string& path() const { return path_; }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }

  // Null when absent.
  const GgufTensor* FindTensor(std::string_view name) const;
  const GgufValue* FindValue(std::string_view key) const;

  // Typed look-ups. NotFound naming key and file when absent; InvalidArgument when of another type.
  // Integers of any width convert where the value fits; floats accept f32 and f64.
  absl::StatusOr<int64_t> GetInt(std::string_view key) const;
  absl::StatusOr<double> GetFloat(std::string_view key) const;
  absl::StatusOr<bool> GetBool(std::string_view key) const;
  absl::StatusOr<std::string_view> GetString(std::string_view key) const;
  absl::StatusOr<std::vector<std::string_view>> GetStrings(std::string_view key) const;
  absl::StatusOr<std::vector<int64_t>> GetInts(std::string_view key) const;

  // Identifies the weights without reading all of them: a 64-bit hash over the whole header, the file's size
  // and three 4 KiB samples (first, middle, last) of every tensor.
  uint64_t ContentHash() const;
  // MappedFile::identity() of every part.
  std::string identity() const;
  // Paths of every part.
  std::vector<std::string> files() const;

 private:
  GgufFile() = default;
  static absl::StatusOr<std::unique_ptr<GgufFile>> OpenPart(const std::string& path, TensorTypes types);
  // Of a part, all of them; of a file that is whole, itself.
  static absl::StatusOr<std::unique_ptr<GgufFile>> JoinParts(std::unique_ptr<GgufFile> part,
                                                             TensorTypes types);
  // Fills everything below from the mapping.
  absl::Status Parse(TensorTypes types);
  template <typename T>
  absl::StatusOr<const T*> Get(std::string_view key, std::string_view wanted) const;

  std::string path_;
  std::unique_ptr<MappedFile> map_;
  int64_t header_bytes_ = 0;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string, size_t, std::less<>> tensor_index_;
  // The parts after this, the first one; their tensors are among tensors_, behind this file's own.
  std::vector<std::unique_ptr<GgufFile>> parts_;
  size_t num_own_tensors_ = 0;
};

}  // namespace phalanx
