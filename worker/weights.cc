#include "worker/weights.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

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

void TensorFinder::Problem(const StoredTensor& tensor, const std::string& what) {
  problems_.push_back(absl::StrCat(tensor.name, " ", what));
}

WeightSource TensorFinder::Matrix(std::string_view name, int64_t rows, int64_t cols) {
  const std::string module(name);
  if (checkpoint_.config().int4 && Has(module + ".qweight")) return Int4Matrix(module, rows, cols);
  int64_t slice = -1;
  const StoredTensor* tensor = Find(module + ".weight", {rows, cols}, &slice);
  if (tensor == nullptr) return {};
  if (!tensor->dtype.has_value()) {
    Problem(*tensor, absl::StrCat("is ", tensor->type, ", which no matrix is made from"));
    return {};
  }
  WeightSource source{.data = tensor->data,
                      .dtype = *tensor->dtype,
                      .rows = rows,
                      .cols = cols,
                      .first_row = std::max<int64_t>(slice, 0) * rows};
  if (source.dtype == DType::kF8E4M3) FindF8Scales(module, *tensor, &source);
  return source;
}

void TensorFinder::FindF8Scales(const std::string& module, const StoredTensor& weight, WeightSource* source) {
  const ModelConfig& config = checkpoint_.config();
  // Of activations; not used, since those are not rounded to FP8.
  if (Has(module + ".input_scale")) wanted_.insert(checkpoint_.Locate(module + ".input_scale").name);
  const StoredTensor* scale = nullptr;
  for (const char* suffix : {".weight_scale_inv", ".weight_scale"}) {
    if (!Has(module + suffix)) continue;
    const std::string name = checkpoint_.Locate(module + suffix).name;
    wanted_.insert(name);
    if (scale != nullptr) {
      problems_.push_back(absl::StrCat(weight.name, " has two scales, ", scale->name, " and ", name));
      return;
    }
    scale = checkpoint_.FindTensor(name);
  }
  if (scale == nullptr) {
    if (config.quantisation == Quantisation::kNone) return;  // plain numbers
    problems_.push_back(absl::StrCat(module, ".weight_scale_inv or .weight_scale is missing (", weight.name,
                                     " is ", weight.type, ")"));
    return;
  }
  if (scale->dtype != DType::kF32 && scale->dtype != DType::kF16 && scale->dtype != DType::kBF16) {
    Problem(*scale, absl::StrCat("is ", scale->type, ", must be F32, BF16 or F16"));
    return;
  }
  WeightScales& scales = source->scales;
  scales.data = scale->data;
  scales.dtype = *scale->dtype;
  const std::vector<int64_t>& shape = scale->shape;
  const int64_t elements = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  std::vector<int64_t> blocks;
  if (config.fp8) {
    blocks = {(source->rows + config.fp8->rows - 1) / config.fp8->rows,
              (source->cols + config.fp8->cols - 1) / config.fp8->cols};
  }
  if (config.fp8 && shape == blocks) {
    scales.block_rows = config.fp8->rows;
    scales.block_cols = config.fp8->cols;
    scales.stride = blocks[1];
  } else if (elements == 1 && shape.size() <= 2) {
    scales.block_rows = std::max<int64_t>(source->rows, 1);
    scales.block_cols = std::max<int64_t>(source->cols, 1);
    scales.stride = 1;
  } else if (shape == std::vector{source->rows} || shape == std::vector{source->rows, int64_t{1}}) {
    scales.block_rows = 1;
    scales.block_cols = std::max<int64_t>(source->cols, 1);
    scales.stride = 1;
  } else {
    Problem(*scale, absl::StrCat("has the shape ", Shape(shape), ", must be one number",
                                 config.fp8 ? absl::StrCat(", one a block ", Shape(blocks)) : "",
                                 " or one a row ", Shape({source->rows, 1})));
  }
}

const StoredTensor* TensorFinder::FindTyped(const std::string& name, const std::vector<int64_t>& shape,
                                            std::initializer_list<std::string_view> types) {
  int64_t slice = -1;
  const StoredTensor* tensor = Find(name, shape, &slice);
  if (tensor == nullptr || std::find(types.begin(), types.end(), tensor->type) != types.end()) return tensor;
  Problem(*tensor, absl::StrCat("is ", tensor->type, ", must be ",
                                absl::StrJoin(types, " or ", [](std::string* out, std::string_view type) {
                                  out->append(type);
                                })));
  return nullptr;
}

WeightSource TensorFinder::Int4Matrix(const std::string& module, int64_t rows, int64_t cols) {
  const ModelConfig& config = checkpoint_.config();
  const bool awq = config.quantisation == Quantisation::kAwq;
  if (rows % 8 != 0 || (!awq && cols % 8 != 0)) {
    problems_.push_back(absl::StrCat(module, " is ", Shape({rows, cols}),
                                     ", 4-bit matrices must have a multiple of 8 rows",
                                     awq ? "" : " and columns"));
  }
  const int64_t group_size = config.int4->group_size == 0 ? cols : config.int4->group_size;
  const int64_t groups = (cols + group_size - 1) / group_size;
  const StoredTensor* words = FindTyped(
      module + ".qweight", awq ? std::vector{cols, rows / 8} : std::vector{cols / 8, rows}, {"I32"});
  const StoredTensor* zeros = FindTyped(module + ".qzeros", {groups, rows / 8}, {"I32"});
  const StoredTensor* scales = FindTyped(module + ".scales", {groups, rows}, {"F16", "BF16", "F32"});
  const StoredTensor* index = nullptr;
  if (!awq && Has(module + ".g_idx")) {
    index = FindTyped(module + ".g_idx", {cols}, {"I32"});
    if (index == nullptr) return {};
  }
  if (words == nullptr || zeros == nullptr || scales == nullptr) return {};
  WeightSource source{.data = words->data,
                      .dtype = awq ? DType::kAwq : DType::kGptq,
                      .rows = rows,
                      .cols = cols,
                      .stored_rows = rows,
                      .groups = {.scales = scales->data,
                                 .scales_dtype = *scales->dtype,
                                 .zeros = reinterpret_cast<const int32_t*>(zeros->data),
                                 .zero_offset = config.int4->zero_offset,
                                 .group_size = group_size}};
  if (index == nullptr) return source;
  bool in_order = true;
  for (int64_t c = 0; c < cols; ++c) {
    int32_t group = 0;
    std::memcpy(&group, index->data + c * 4, sizeof(group));
    if (group < 0 || group >= groups) {
      Problem(*index, absl::StrCat("[", c, "] is ", group, ", must be a group, 0 to ", groups - 1));
      return {};
    }
    in_order &= group == c / group_size;
  }
  if (!in_order) source.groups.group_of = reinterpret_cast<const int32_t*>(index->data);
  return source;
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
  // Rows of these lie across all pages.
  if (source.dtype == DType::kAwq || source.dtype == DType::kGptq) return;
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
