// Reads safetensors files, memory-mapped, and finds those of a Hugging Face directory.
// source: https://github.com/huggingface/safetensors#format
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/mapped_file.h"

namespace phalanx {

struct SafetensorsTensor {
  std::string name;
  std::string dtype = {};           // "BF16", "F8_E4M3", ...
  std::vector<int64_t> shape = {};  // outermost first
  int64_t elements = 0;
  const uint8_t* data = nullptr;  // into the mapping, of any alignment; lives as long as the file's object
  int64_t bytes = 0;
};

// Thread safety: immutable after Open. The file must not be truncated while it is open.
class SafetensorsFile {
 public:
  // NotFound, or InvalidArgument naming file, tensor and value: no such format, a tensor whose bytes are not
  // what its shape takes, overlap another's or reach past the file's end, a name that is there twice.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  const std::string& path() const { return map_->path(); }
  const std::string& identity() const { return map_->identity(); }
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }
  // Identifies the weights without reading all of them: of the header, the file's size and samples of every
  // tensor.
  uint64_t ContentHash() const;

 private:
  SafetensorsFile() = default;

  std::unique_ptr<MappedFile> map_;
  int64_t header_bytes_ = 0;
  std::vector<SafetensorsTensor> tensors_;
};

// A directory's files with weights.
struct SafetensorsIndex {
  std::string path;                               // of the index; "" where there is none
  std::vector<std::string> files;                 // names in the directory, each once
  std::map<std::string, std::string> weight_map;  // tensor → name of its file; empty without an index
};

// As model.safetensors.index.json says; without one model.safetensors, else all *.safetensors there are (none
// is no error). InvalidArgument for an index that is none or names a file outside the directory.
absl::StatusOr<SafetensorsIndex> FindSafetensors(const std::string& directory);

}  // namespace phalanx
