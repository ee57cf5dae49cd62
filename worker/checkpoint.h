// A model's weights, whatever files hold them: a GGUF file (or all parts of a split one), or the safetensors
// files of a Hugging Face directory. Everything is memory-mapped.
//
// Tensors are asked for by their Hugging Face names ("model.layers.0.mlp.up_proj.weight"); a GGUF file has
// others for them, and stacks the experts of a layer in one tensor: Locate() translates.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "base/gguf.h"
#include "base/model_config.h"

namespace phalanx {

// A tensor as it lies in its file.
struct StoredTensor {
  std::string name;               // the file's own
  std::string type;               // "BF16", "Q4_K", "I32", ...
  std::optional<DType> dtype;     // absent: none that weights are computed from (I32, ...)
  std::vector<int64_t> shape;     // outermost first
  const uint8_t* data = nullptr;  // lives as long as the Checkpoint
  int64_t bytes = 0;
};

// Where a tensor is: `slice` of the tensor `name`, whose outermost dimension is `slices`; -1: all of it.
struct TensorPlace {
  std::string name;
  int64_t slice = -1;
  int64_t slices = 0;
};

// Thread safety: immutable.
class Checkpoint {
 public:
  // `path`: a GGUF file or a directory. Errors name the file, and the key or tensor at fault.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path);
  // Of a file that is open already.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> FromGguf(std::unique_ptr<GgufFile> file);
  virtual ~Checkpoint() = default;

  const std::string& path() const { return path_; }
  const ModelConfig& config() const { return config_; }
  const std::vector<StoredTensor>& tensors() const { return tensors_; }

  // By the file's own name. Null when absent.
  const StoredTensor* FindTensor(std::string_view name) const;
  // The place a tensor with this Hugging Face name has, or would have, in these files.
  virtual TensorPlace Locate(std::string_view hf_name) const = 0;
  // Identifies the weights without reading all of them.
  virtual uint64_t ContentHash() const = 0;
  // Identifies the files as they were when opened (MappedFile::identity()), in their order.
  virtual std::string FilesIdentity() const = 0;
  // Paths of the files that hold the weights, in their order.
  virtual std::vector<std::string> Files() const = 0;
  // A tensor, by the file's own name, that such files may have and that no model asks for: layers that
  // predict further tokens, what was read with the config, copies of what is there already.
  virtual bool IsUnused(std::string_view name) const = 0;
  // The GGUF file with the metadata; null for a directory.
  virtual const GgufFile* gguf() const { return nullptr; }

 protected:
  Checkpoint(std::string path, ModelConfig config) : path_(std::move(path)), config_(std::move(config)) {}
  // InvalidArgument for a name that is there already.
  absl::Status AddTensor(StoredTensor tensor);

 private:
  std::string path_;
  ModelConfig config_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
};

}  // namespace phalanx
