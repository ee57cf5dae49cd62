#include "worker/checkpoint.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "worker/checkpoint_formats.h"
#include "worker/gguf_names.h"

namespace phalanx {
namespace {

class GgufCheckpoint : public Checkpoint {
 public:
  GgufCheckpoint(std::unique_ptr<GgufFile> file, ModelConfig config)
      : Checkpoint(file->path(), std::move(config)), file_(std::move(file)), hash_(file_->ContentHash()) {}

  absl::Status AddTensors() {
    for (const GgufTensor& tensor : file_->tensors()) {
      PHX_RETURN_IF_ERROR(AddTensor({.name = tensor.name,
                                     .type = std::string(tensor.type_name()),
                                     .dtype = tensor.dtype,
                                     .shape = {tensor.dims.rbegin(), tensor.dims.rend()},
                                     .data = tensor.data,
                                     .bytes = tensor.bytes}));
    }
    return absl::OkStatus();
  }
  TensorPlace Locate(std::string_view hf_name) const override { return GgufPlaceOf(config(), hf_name); }
  uint64_t ContentHash() const override { return hash_; }
  std::string FilesIdentity() const override { return file_->identity(); }
  std::vector<std::string> Files() const override { return file_->files(); }
  const GgufFile* gguf() const override { return file_.get(); }
  bool IsUnused(std::string_view name) const override {
    // Read with the config.
    if (name == "rope_freqs.weight" || name == "rope_factors_long.weight" ||
        name == "rope_factors_short.weight") {
      return true;
    }
    const int layer = LayerOf(name, "blk.");
    return layer >= config().num_layers && layer < config().num_layers + config().num_mtp_layers;
  }

 private:
  std::unique_ptr<GgufFile> file_;
  const uint64_t hash_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::FromGguf(std::unique_ptr<GgufFile> file) {
  PHX_ASSIGN_OR_RETURN(ModelConfig config, ModelConfigFromGguf(*file));
  auto checkpoint = std::make_unique<GgufCheckpoint>(std::move(file), std::move(config));
  PHX_RETURN_IF_ERROR(checkpoint->AddTensors());
  return checkpoint;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return OpenHfCheckpoint(path);
  if (path.ends_with(".safetensors")) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": a safetensors file lacks its model's config; the directory that holds both is wanted"));
  }
  PHX_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  return FromGguf(std::move(file));
}

const StoredTensor* Checkpoint::FindTensor(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

absl::Status Checkpoint::AddTensor(StoredTensor tensor) {
  if (!index_.emplace(tensor.name, tensors_.size()).second) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": tensor ", Quote(tensor.name), " is in more than one of its files"));
  }
  tensors_.push_back(std::move(tensor));
  return absl::OkStatus();
}

int LayerOf(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return -1;
  const size_t dot = name.find('.', prefix.size());
  int layer = -1;
  if (dot == std::string_view::npos ||
      !absl::SimpleAtoi(ToAbsl(name.substr(prefix.size(), dot - prefix.size())), &layer)) {
    return -1;
  }
  return layer;
}

}  // namespace phalanx
