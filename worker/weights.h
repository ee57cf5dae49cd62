// Finds a model's tensors in its file, and frees the pages of those that were packed.
//
// A model first names every tensor it wants, with its shape; Finish() then says in one error all that is
// wrong, so that a file made by another tool is understood at the first try:
//
//   TensorFinder tensors(file);
//   WeightSource up = tensors.Matrix("blk.0.ffn_up.weight", ffn_size, hidden_size);
//   ...
//   PHX_RETURN_IF_ERROR(tensors.Finish());   // only now may the sources be used
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "base/gguf.h"
#include "kernels/ops.h"

namespace phalanx {

class TensorFinder {
 public:
  explicit TensorFinder(const GgufFile& file) : file_(file) {}

  // A matrix [rows, cols] of any type that the file reader knows.
  WeightSource Matrix(std::string_view name, int64_t rows, int64_t cols);
  // [size] F32, into the mapping.
  const float* Vector(std::string_view name, int64_t size);
  // Null where the file has no such tensor.
  const float* OptionalVector(std::string_view name, int64_t size);
  // The file may hold this tensor; somebody else reads it.
  void Allow(std::string_view name) { wanted_.emplace(name); }

  // InvalidArgument naming every tensor that is missing, misshapen or not known to the model.
  absl::Status Finish() const;

 private:
  const GgufTensor* Find(std::string_view name, const std::vector<int64_t>& dims, bool optional);

  const GgufFile& file_;
  std::set<std::string, std::less<>> wanted_;
  std::vector<std::string> problems_;
};

// Rows `rows` of a mapped tensor are packed: the process gives its pages back (they are read again from the
// file if somebody touches them), so that loading does not hold the weights twice. `source` is part of a
// GgufFile.
void ReleasePages(const WeightSource& source, Range rows);

}  // namespace phalanx
