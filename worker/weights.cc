#include "worker/weights.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/strings.h"

namespace phalanx {
namespace {

// A file of another model would name every tensor it has.
constexpr size_t kMaxProblems = 20;

std::string Shape(const std::vector<int64_t>& dims) {
  return absl::StrCat("[", absl::StrJoin(dims, ", "), "]");
}

}  // namespace

const GgufTensor* TensorFinder::Find(std::string_view name, const std::vector<int64_t>& dims, bool optional) {
  wanted_.emplace(name);
  const GgufTensor* tensor = file_.FindTensor(name);
  if (tensor == nullptr) {
    if (!optional) problems_.push_back(absl::StrCat(ToAbsl(name), " is missing"));
    return nullptr;
  }
  if (tensor->dims != dims) {
    problems_.push_back(
        absl::StrCat(ToAbsl(name), " has the shape ", Shape(tensor->dims), ", must be ", Shape(dims)));
    return nullptr;
  }
  return tensor;
}

WeightSource TensorFinder::Matrix(std::string_view name, int64_t rows, int64_t cols) {
  const GgufTensor* tensor = Find(name, {cols, rows}, /*optional=*/false);
  if (tensor == nullptr) return {};
  return {.data = tensor->data, .dtype = tensor->dtype, .rows = rows, .cols = cols};
}

const float* TensorFinder::OptionalVector(std::string_view name, int64_t size) {
  const GgufTensor* tensor = Find(name, {size}, /*optional=*/true);
  if (tensor == nullptr) return nullptr;
  if (tensor->dtype != DType::kF32) {
    problems_.push_back(
        absl::StrCat(ToAbsl(name), " is ", ToAbsl(DTypeName(tensor->dtype)), ", must be F32"));
    return nullptr;
  }
  return reinterpret_cast<const float*>(tensor->data);
}

const float* TensorFinder::Vector(std::string_view name, int64_t size) {
  if (file_.FindTensor(name) == nullptr) {
    Find(name, {size}, /*optional=*/false);
    return nullptr;
  }
  return OptionalVector(name, size);
}

absl::Status TensorFinder::Finish() const {
  std::vector<std::string> problems = problems_;
  for (const GgufTensor& tensor : file_.tensors()) {
    if (!wanted_.contains(tensor.name)) {
      problems.push_back(
          absl::StrCat(tensor.name, " ", Shape(tensor.dims), " is not known to this architecture"));
    }
  }
  if (problems.empty()) return absl::OkStatus();
  const size_t total = problems.size();
  problems.resize(std::min(total, kMaxProblems));
  return absl::InvalidArgumentError(
      absl::StrCat(file_.path(), ": ", total, " tensor", total == 1 ? "" : "s",
                   " not as the model needs them (shapes innermost first): ", absl::StrJoin(problems, "; "),
                   total > kMaxProblems ? absl::StrCat("; and ", total - kMaxProblems, " more") : ""));
}

void ReleasePages(const WeightSource& source, Range rows) {
  const int64_t row_bytes = RowBytes(source.dtype, source.cols);
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto base = reinterpret_cast<uintptr_t>(source.data);
  // Whole pages inside the rows only.
  const uintptr_t begin = (base + rows.begin * row_bytes + page - 1) / page * page;
  const uintptr_t end = (base + rows.end * row_bytes) / page * page;
  if (begin >= end) return;
  // Advice: where it fails the pages just stay.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace phalanx
