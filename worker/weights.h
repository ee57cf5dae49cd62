// Finds a model's tensors in its files, and frees the pages of those that were packed.
//
// A model first names every tensor it wants, with its shape; Finish() then says in one error all that is
// wrong, so that a file made by another tool is understood at the first try:
//
//   TensorFinder tensors(checkpoint);
//   WeightSource up = tensors.Matrix("model.layers.0.mlp.up_proj", ffn_size, hidden_size);
//   ...
//   PHX_RETURN_IF_ERROR(tensors.Finish());   // only now may the sources be used
#pragma once

#include <cstdint>
#include <initializer_list>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "kernels/ops.h"
#include "worker/checkpoint.h"

namespace phalanx {

class TensorFinder {
 public:
  explicit TensorFinder(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  // The matrix [rows, cols] of the module `name`, in any of the ways in which files hold one: `name`.weight
  // of a plain or block type, or the tensors of a quantised matrix.
  WeightSource Matrix(std::string_view name, int64_t rows, int64_t cols);
  // [size], as fp32: `name` is whole, with its ".weight" or ".bias".
  std::vector<float> Vector(std::string_view name, int64_t size);
  // Empty where there is no such tensor.
  std::vector<float> OptionalVector(std::string_view name, int64_t size);
  bool Has(std::string_view name) const;
  // There may be this tensor; somebody else reads it. By the file's own name; `prefix` of it.
  void Allow(std::string_view prefix) { allowed_.emplace_back(prefix); }

  // InvalidArgument naming every tensor that is missing, misshapen or not known to the model.
  absl::Status Finish() const;

 private:
  WeightSource Int4Matrix(const std::string& module, int64_t rows, int64_t cols);
  void FindF8Scales(const std::string& module, const StoredTensor& weight, WeightSource* source);
  const StoredTensor* FindTyped(const std::string& name, const std::vector<int64_t>& shape,
                                std::initializer_list<std::string_view> types);
  void Problem(const StoredTensor& tensor, const std::string& what);
  // `slice` gets what Locate says. Null, and a problem noted, where it is missing or of another shape.
  const StoredTensor* Find(std::string_view hf_name, const std::vector<int64_t>& shape, int64_t* slice);

  const Checkpoint& checkpoint_;
  std::set<std::string, std::less<>> wanted_;
  std::vector<std::string> allowed_;
  std::vector<std::string> problems_;
};

// Rows of a mapped matrix are packed: the process gives its pages back (they are read again from the file if
// somebody touches them), so that loading does not hold the weights twice. `source` is part of a Checkpoint.
void ReleasePages(const WeightSource& source, Range rows);

}  // namespace phalanx
