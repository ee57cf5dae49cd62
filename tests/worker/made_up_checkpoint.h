// Random weights under Hugging Face's names, for models of any shape. They lie in a mapped file that nobody
// else sees, since whoever packs weights gives their pages back.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "kernels/numeric.h"
#include "worker/checkpoint.h"

namespace phalanx {

class MadeUpCheckpoint : public Checkpoint {
 public:
  // `bytes`: room for all tensors.
  MadeUpCheckpoint(ModelConfig config, int64_t bytes, uint32_t seed)
      : Checkpoint("made up", std::move(config)), bytes_(bytes), random_(seed) {
    std::string path = (std::filesystem::temp_directory_path() / "made_up.XXXXXX").string();
    const int file = mkstemp(path.data());
    PHX_CHECK(file >= 0 && ftruncate(file, bytes) == 0, path);
    unlink(path.c_str());
    void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    PHX_CHECK(memory != MAP_FAILED, path);
    memory_ = static_cast<uint8_t*>(memory);
  }
  ~MadeUpCheckpoint() override { munmap(memory_, bytes_); }

  // `name`.weight [rows, cols] in BF16: values of about `scale` at the output of a product with normalised
  // inputs.
  void AddMatrix(const std::string& name, int64_t rows, int64_t cols, double scale = 1) {
    std::normal_distribution<float> normal(0,
                                           static_cast<float>(scale / std::sqrt(static_cast<double>(cols))));
    uint8_t* at = Add(name + ".weight", DType::kBF16, {rows, cols});
    for (int64_t i = 0; i < rows * cols; ++i, at += 2) {
      const uint16_t value = Bf16FromFloat(normal(random_));
      std::memcpy(at, &value, 2);
    }
  }
  // [size] in F32.
  void AddVector(const std::string& name, int64_t size, float mean, float deviation = 0.2f) {
    std::normal_distribution<float> normal(mean, deviation);
    uint8_t* at = Add(name, DType::kF32, {size});
    for (int64_t i = 0; i < size; ++i, at += 4) {
      const float value = normal(random_);
      std::memcpy(at, &value, 4);
    }
  }

  TensorPlace Locate(std::string_view hf_name) const override { return {std::string(hf_name)}; }
  uint64_t ContentHash() const override { return 1; }
  std::string FilesIdentity() const override { return "made up"; }
  std::vector<std::string> Files() const override { return {path()}; }
  bool IsUnused(std::string_view) const override { return false; }

 private:
  uint8_t* Add(std::string name, DType dtype, std::vector<int64_t> shape) {
    int64_t elements = 1;
    for (const int64_t dim : shape) elements *= dim;
    uint8_t* const data = memory_ + used_;
    StoredTensor tensor;
    tensor.name = std::move(name);
    tensor.type = std::string(DTypeName(dtype));
    tensor.dtype = dtype;
    tensor.shape = std::move(shape);
    tensor.data = data;
    tensor.bytes = RowBytes(dtype, elements);
    used_ += (tensor.bytes + 63) / 64 * 64;
    PHX_CHECK(used_ <= bytes_, tensor.name);
    const absl::Status added = AddTensor(std::move(tensor));
    PHX_CHECK(added.ok(), added.ToString());
    return data;
  }

  uint8_t* memory_ = nullptr;
  int64_t bytes_ = 0, used_ = 0;
  std::mt19937 random_;
};

}  // namespace phalanx
