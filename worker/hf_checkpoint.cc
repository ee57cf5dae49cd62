// The Checkpoint of a Hugging Face directory.
#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/hf_config.h"
#include "base/json_file.h"
#include "base/safetensors.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "worker/checkpoint_formats.h"

namespace phalanx {
namespace {

std::optional<DType> DTypeOfSafetensors(std::string_view name) {
  if (name == "BF16") return DType::kBF16;
  if (name == "F16") return DType::kF16;
  if (name == "F32") return DType::kF32;
  if (name == "F8_E4M3") return DType::kF8E4M3;
  return std::nullopt;
}

class HfCheckpoint : public Checkpoint {
 public:
  HfCheckpoint(std::string path, ModelConfig config, uint64_t config_hash)
      : Checkpoint(std::move(path), std::move(config)), hash_(config_hash) {}

  absl::Status Add(std::unique_ptr<SafetensorsFile> file) {
    for (const SafetensorsTensor& tensor : file->tensors()) {
      PHX_RETURN_IF_ERROR(AddTensor({.name = tensor.name,
                                     .type = tensor.dtype,
                                     .dtype = DTypeOfSafetensors(tensor.dtype),
                                     .shape = tensor.shape,
                                     .data = tensor.data,
                                     .bytes = tensor.bytes}));
    }
    const uint64_t file_hash = file->ContentHash();
    hash_ = Fnv1a(hash_, &file_hash, sizeof(file_hash));
    files_.push_back(std::move(file));
    return absl::OkStatus();
  }

  TensorPlace Locate(std::string_view hf_name) const override { return {std::string(hf_name)}; }
  uint64_t ContentHash() const override { return hash_; }
  std::string FilesIdentity() const override {
    std::string identity;
    for (const auto& file : files_) absl::StrAppend(&identity, file->identity(), " ");
    return identity;
  }
  std::vector<std::string> Files() const override {
    std::vector<std::string> paths;
    for (const auto& file : files_) paths.push_back(file->path());
    return paths;
  }

  bool IsUnused(std::string_view name) const override {
    // Some exporters keep RoPE's frequencies, and the output head of a model whose head is its embedding.
    if (name.ends_with(".rotary_emb.inv_freq")) return true;
    if (config().tied_embeddings && name == "lm_head.weight") return true;
    if (name.ends_with(".bias") && IsZeroBias(name)) return true;
    // transformers writes the matrices of no shared experts.
    if (const StoredTensor* tensor = FindTensor(name); tensor != nullptr && tensor->bytes == 0) return true;
    const int layer = LayerOf(name, "model.layers.");
    return layer >= config().num_layers && layer < config().num_layers + config().num_mtp_layers;
  }

 private:
  // Some writers of 4-bit files give every matrix a bias, zeros where the model has none.
  bool IsZeroBias(std::string_view name) const {
    constexpr size_t kSuffix = std::string_view("bias").size();
    if (FindTensor(std::string(name.substr(0, name.size() - kSuffix)) + "qweight") == nullptr) return false;
    const StoredTensor* bias = FindTensor(name);
    return bias != nullptr &&
           std::all_of(bias->data, bias->data + bias->bytes, [](uint8_t b) { return b == 0; });
  }

  uint64_t hash_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
};

// The files must hold what the index says they do.
absl::Status CheckIndex(const SafetensorsIndex& index, const std::string& file_name,
                        const SafetensorsFile& file, size_t* found) {
  for (const SafetensorsTensor& tensor : file.tensors()) {
    const auto entry = index.weight_map.find(tensor.name);
    if (entry == index.weight_map.end()) continue;
    if (entry->second != file_name) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": holds ", Quote(tensor.name), ", which ",
                                                     index.path, " places in ", Quote(entry->second)));
    }
    ++*found;
  }
  return absl::OkStatus();
}

absl::Status NoWeights(const std::string& directory) {
  return absl::NotFoundError(absl::StrCat(
      directory, ": has no weights: neither model.safetensors.index.json nor a *.safetensors file",
      std::filesystem::exists(directory + "/pytorch_model.bin") ||
              std::filesystem::exists(directory + "/pytorch_model.bin.index.json")
          ? "; pytorch_model.bin is not read, it must be converted to safetensors"
          : ""));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenHfCheckpoint(const std::string& directory) {
  const std::string config_path = directory + "/config.json";
  PHX_ASSIGN_OR_RETURN(const std::string text, ReadFile(config_path, kMaxConfigBytes));
  PHX_ASSIGN_OR_RETURN(const nlohmann::json object, ParseJson(text, config_path));
  PHX_ASSIGN_OR_RETURN(HfConfig config, HfConfigFromJson(object, config_path));
  PHX_ASSIGN_OR_RETURN(const SafetensorsIndex index, FindSafetensors(directory));
  if (index.files.empty()) return NoWeights(directory);
  auto checkpoint = std::make_unique<HfCheckpoint>(
      directory, std::move(config.model), Fnv1a(kFnvOffset, text.data(), static_cast<int64_t>(text.size())));
  size_t found = 0;
  for (const std::string& name : index.files) {
    absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(directory + "/" + name);
    if (absl::IsNotFound(file.status()) && !index.path.empty()) {
      return absl::NotFoundError(
          absl::StrCat(index.path, ": names ", Quote(name), ", which is missing in ", directory));
    }
    PHX_RETURN_IF_ERROR(file.status());
    PHX_RETURN_IF_ERROR(CheckIndex(index, name, **file, &found));
    PHX_RETURN_IF_ERROR(checkpoint->Add(*std::move(file)));
  }
  if (found < index.weight_map.size()) {
    for (const auto& [tensor, name] : index.weight_map) {
      if (checkpoint->FindTensor(tensor) != nullptr) continue;
      return absl::InvalidArgumentError(absl::StrCat(index.path, ": places ", Quote(tensor), " in ",
                                                     Quote(name), ", which has no such tensor (and ",
                                                     index.weight_map.size() - found - 1, " more)"));
    }
  }
  return checkpoint;
}

}  // namespace phalanx
