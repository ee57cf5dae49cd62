#include "worker/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/gguf_names.h"

namespace phalanx {
namespace {

class GgufCheckpoint : public Checkpoint {
 public:
  GgufCheckpoint(std::unique_ptr<GgufFile> file, ModelConfig config)
      : Checkpoint(file->path(), std::move(config)), file_(std::move(file)) {
    for (const GgufTensor& tensor : file_->tensors()) {
      StoredTensor stored{.name = tensor.name,
                          .type = std::string(tensor.type_name()),
                          .dtype = tensor.dtype,
                          .shape = {tensor.dims.rbegin(), tensor.dims.rend()},
                          .data = tensor.data,
                          .bytes = tensor.bytes};
      AddTensor(std::move(stored));
    }
  }
  TensorPlace Locate(std::string_view hf_name) const override {
    return GgufPlaceOf(this->config().architecture, hf_name);
  }
  uint64_t ContentHash() const override { return file_->ContentHash(); }
  const GgufFile* gguf() const override { return file_.get(); }

 private:
  std::unique_ptr<GgufFile> file_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::FromGguf(std::unique_ptr<GgufFile> file) {
  PHX_ASSIGN_OR_RETURN(ModelConfig config, ModelConfigFromGguf(*file));
  return std::make_unique<GgufCheckpoint>(std::move(file), std::move(config));
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  PHX_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  return FromGguf(std::move(file));
}

const StoredTensor* Checkpoint::FindTensor(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

void Checkpoint::AddTensor(StoredTensor tensor) {
  index_.emplace(tensor.name, tensors_.size());
  tensors_.push_back(std::move(tensor));
}

}  // namespace phalanx
