#include "worker/weights.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/strings.h"
#include "kernels/dequantize.h"

namespace phalanx {
namespace {

// A file of another model would name every tensor it has.
constexpr size_t kMaxProblems = 20;

std::string Shape(const std::vector<int64_t>& dims) {
  return absl::StrCat("[", absl::StrJoin(dims, ", "), "]");
}

}  // namespace

bool TensorFinder::Has(std::string_view name) const {
  return checkpoint_.FindTensor(checkpoint_.Locate(name).name) != nullptr;
}

const StoredTensor* TensorFinder::Find(std::string_view hf_name, const std::vector<int64_t>& shape,
                                       int64_t* slice) {
  const TensorPlace place = checkpoint_.Locate(hf_name);
  wanted_.insert(place.name);
  *slice = place.slice;
  const StoredTensor* tensor = checkpoint_.FindTensor(place.name);
  if (tensor == nullptr) {
    problems_.push_back(absl::StrCat(place.name, " is missing"));
    return nullptr;
  }
  std::vector<int64_t> expected = shape;
  if (place.slice >= 0) expected.insert(expected.begin(), place.slices);
  if (tensor->shape != expected) {
    problems_.push_back(
        absl::StrCat(place.name, " has the shape ", Shape(tensor->shape), ", must be ", Shape(expected)));
    return nullptr;
  }
  return tensor;
}

WeightSource TensorFinder::Matrix(std::string_view name, int64_t rows, int64_t cols) {
  int64_t slice = -1;
  const StoredTensor* tensor = Find(absl::StrCat(ToAbsl(name), ".weight"), {rows, cols}, &slice);
  if (tensor == nullptr) return {};
  if (!tensor->dtype.has_value()) {
    problems_.push_back(absl::StrCat(tensor->name, " is ", tensor->type, ", which no matrix is made from"));
    return {};
  }
  return {.data = tensor->data,
          .dtype = *tensor->dtype,
          .rows = rows,
          .cols = cols,
          .first_row = std::max<int64_t>(slice, 0) * rows};
}

std::vector<float> TensorFinder::OptionalVector(std::string_view name, int64_t size) {
  return Has(name) ? Vector(name, size) : std::vector<float>();
}

std::vector<float> TensorFinder::Vector(std::string_view name, int64_t size) {
  int64_t slice = -1;
  const StoredTensor* tensor = Find(name, {size}, &slice);
  if (tensor == nullptr) return {};
  if (!tensor->dtype.has_value() || BlockElements(*tensor->dtype) != 1 || tensor->dtype == DType::kF8E4M3) {
    problems_.push_back(absl::StrCat(tensor->name, " is ", tensor->type, ", must be F32, BF16 or F16"));
    return {};
  }
  std::vector<float> values(static_cast<size_t>(size));
  DequantizeRow(*tensor->dtype, tensor->data, 0, size, values.data());
  return values;
}

absl::Status TensorFinder::Finish() const {
  std::vector<std::string> problems = problems_;
  for (const StoredTensor& tensor : checkpoint_.tensors()) {
    const bool allowed = std::any_of(allowed_.begin(), allowed_.end(), [&](const std::string& prefix) {
      return tensor.name.starts_with(prefix);
    });
    if (!allowed && !wanted_.contains(tensor.name) && !checkpoint_.IsUnused(tensor.name)) {
      problems.push_back(
          absl::StrCat(tensor.name, " ", Shape(tensor.shape), " is not known to this architecture"));
    }
  }
  if (problems.empty()) return absl::OkStatus();
  const size_t total = problems.size();
  problems.resize(std::min(total, kMaxProblems));
  return absl::InvalidArgumentError(
      absl::StrCat(checkpoint_.path(), ": ", total, " tensor", total == 1 ? "" : "s",
                   " not as the model needs them (shapes outermost first): ", absl::StrJoin(problems, "; "),
                   total > kMaxProblems ? absl::StrCat("; and ", total - kMaxProblems, " more") : ""));
}

void ReleasePages(const WeightSource& source, Range rows) {
  const int64_t row_bytes = RowBytes(source.dtype, source.cols);
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t base = reinterpret_cast<uintptr_t>(source.data) + source.first_row * row_bytes;
  // Whole pages inside the rows only.
  const uintptr_t begin = (base + rows.begin * row_bytes + page - 1) / page * page;
  const uintptr_t end = (base + rows.end * row_bytes) / page * page;
  if (begin >= end) return;
  // Advice: where it fails the pages just stay.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace phalanx
