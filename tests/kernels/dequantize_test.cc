// Every quantised type beside other people's code: tests/golden/make_dequantize_reference.py.
#include "kernels/dequantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/safetensors.h"
#include "kernels/ops.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;

absl::Status ValidatePacking(const WeightSource& source, int64_t rows) {
  PackWeightParams params;
  params.pieces = {{source, {0, rows}}};
  params.cols = {0, source.cols};
  return Validate(params);
}

struct Case {
  const char* name;
  DType dtype;
  int64_t block_rows = 0, block_cols = 0;  // FP8
  int64_t group_size = 0;                  // 4-bit
  int zero_offset = 0;
};

constexpr Case kCases[] = {
    {"q4_k", DType::kQ4_K},
    {"q5_k", DType::kQ5_K},
    {"q6_k", DType::kQ6_K},
    {"f8_codes", DType::kF8E4M3, 1, 256},
    {"f8_blocks", DType::kF8E4M3, 8, 16},
    {"f8_blocks_bf16", DType::kF8E4M3, 4, 8},
    {"f8_rows_f16", DType::kF8E4M3, 1, 20},
    {"awq", DType::kAwq, 0, 0, 32},
    {"awq_bf16", DType::kAwq, 0, 0, 16},
    {"gptq", DType::kGptq, 0, 0, 16, 1},
    {"gptq_v2", DType::kGptq, 0, 0, 32},
    {"gptq_act", DType::kGptq, 0, 0, 16, 1},
    {"gptq_one_group", DType::kGptq, 0, 0, 40, 1},
};

class DequantizeTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    auto file = SafetensorsFile::Open(PHALANX_SOURCE_DIR "/tests/golden/dequantize_reference.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
    const Case& c = GetParam();
    const SafetensorsTensor* values = Find("values");
    ASSERT_NE(values, nullptr);
    rows_ = values->shape[0];
    cols_ = values->shape[1];
    want_.resize(static_cast<size_t>(rows_ * cols_));
    std::memcpy(want_.data(), values->data, want_.size() * sizeof(float));
    source_ = {.data = Find("stored")->data, .dtype = c.dtype, .rows = rows_, .cols = cols_};
    const SafetensorsTensor* scales = Find("scales");
    const DType scales_dtype = scales == nullptr         ? DType::kF32
                               : scales->dtype == "F16"  ? DType::kF16
                               : scales->dtype == "BF16" ? DType::kBF16
                                                         : DType::kF32;
    if (c.block_rows > 0) {
      source_.scales = {.data = scales->data,
                        .dtype = scales_dtype,
                        .block_rows = c.block_rows,
                        .block_cols = c.block_cols,
                        .stride = (cols_ + c.block_cols - 1) / c.block_cols};
    }
    if (c.group_size > 0) {
      const SafetensorsTensor* group_of = Find("group_of");
      source_.stored_rows = rows_;
      source_.groups = {
          .scales = scales->data,
          .scales_dtype = scales_dtype,
          .zeros = reinterpret_cast<const int32_t*>(Find("zeros")->data),
          .zero_offset = c.zero_offset,
          .group_of = group_of == nullptr ? nullptr : reinterpret_cast<const int32_t*>(group_of->data),
          .group_size = c.group_size};
    }
  }
  const SafetensorsTensor* Find(const std::string& part) const {
    for (const SafetensorsTensor& tensor : file_->tensors()) {
      if (tensor.name == std::string(GetParam().name) + "." + part) return &tensor;
    }
    return nullptr;
  }
  // Rows `first` on of `source` are rows `at` on of the reference.
  void ExpectTile(const WeightSource& source, Range rows, Range cols, int64_t at) {
    const int64_t stride = cols.size() + 3;
    std::vector<float> out(static_cast<size_t>(rows.size() * stride + 1), -77.0f);
    DequantizeTile(source, rows, cols, out.data(), stride);
    for (int64_t r = 0; r < rows.size(); ++r) {
      for (int64_t c = 0; c < stride; ++c) {
        const float got = out[static_cast<size_t>(r * stride + c)];
        const float want =
            c < cols.size() ? want_[static_cast<size_t>((at + r) * cols_ + cols.begin + c)] : -77.0f;
        if (std::isnan(want) && std::isnan(got)) continue;
        ASSERT_EQ(std::memcmp(&got, &want, sizeof(got)), 0)
            << "row " << at + r << ", column " << cols.begin + c << ": " << got << ", must be " << want;
      }
    }
    ASSERT_EQ(out.back(), -77.0f);
  }

  std::unique_ptr<SafetensorsFile> file_;
  int64_t rows_ = 0, cols_ = 0;
  std::vector<float> want_;
  WeightSource source_;
};

TEST_P(DequantizeTest, WholeMatrix) {
  ASSERT_NO_FATAL_FAILURE(ExpectTile(source_, {0, rows_}, {0, cols_}, 0));
}

TEST_P(DequantizeTest, AnyRowsAndColumns) {
  for (int64_t first = 0; first < rows_; first += 3) {
    for (int64_t last = first; last <= rows_; last += 5) {
      ASSERT_NO_FATAL_FAILURE(ExpectTile(source_.Rows({first, rows_}), {0, last - first}, {0, cols_}, first));
      ASSERT_NO_FATAL_FAILURE(ExpectTile(source_, {first, last}, {cols_ / 3, cols_ - 1}, first));
    }
  }
  const int64_t row = rows_ - 1;
  for (int64_t begin = 0; begin <= cols_; begin += cols_ < 100 ? 1 : 7) {
    for (int64_t end = begin; end <= cols_; end += cols_ < 100 ? 1 : 11) {
      ASSERT_NO_FATAL_FAILURE(ExpectTile(source_, {row, row + 1}, {begin, end}, row));
    }
  }
}

TEST_P(DequantizeTest, PackWeightTakesIt) { EXPECT_EQ(ValidatePacking(source_, rows_), absl::OkStatus()); }

INSTANTIATE_TEST_SUITE_P(Types, DequantizeTest, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ValidateSourceTest, NamesScalesAndGroupsThatCannotBeRight) {
  const float scale = 1;
  const int32_t zeros[8] = {};
  const int32_t negative[8] = {0, -1};
  const WeightSource fp8 = {.data = zeros,
                            .dtype = DType::kF8E4M3,
                            .rows = 4,
                            .cols = 8,
                            .scales = {.data = &scale, .block_rows = 4, .block_cols = 4, .stride = 2}};
  const WeightSource gptq = {.data = zeros,
                             .dtype = DType::kGptq,
                             .rows = 8,
                             .cols = 8,
                             .stored_rows = 8,
                             .groups = {.scales = &scale, .zeros = zeros, .group_size = 8}};
  const auto error = [](WeightSource source, const std::function<void(WeightSource&)>& change) {
    change(source);
    return std::string(ValidatePacking(source, 4).message());
  };
  EXPECT_EQ(error(fp8, [](WeightSource&) {}), "");
  EXPECT_EQ(error(gptq, [](WeightSource&) {}), "");
  EXPECT_THAT(error(fp8, [](WeightSource& s) { s.scales.stride = 1; }), HasSubstr(".scales.stride is 1"));
  EXPECT_THAT(error(fp8, [](WeightSource& s) { s.scales.block_rows = 0; }), HasSubstr("block_rows is 0"));
  EXPECT_THAT(error(fp8, [](WeightSource& s) { s.scales.block_cols = 0; }), HasSubstr("block_cols is 0"));
  EXPECT_THAT(error(fp8, [](WeightSource& s) { s.scales.dtype = DType::kQ8_0; }), HasSubstr("is Q8_0"));
  EXPECT_THAT(error(fp8, [](WeightSource& s) { s.dtype = DType::kBF16; }),
              HasSubstr("must be none for BF16"));
  EXPECT_THAT(error(fp8, [](WeightSource& s) { s.first_row = -1; }), HasSubstr(".first_row is -1"));
  EXPECT_THAT(error(gptq, [](WeightSource& s) { s.first_row = 1; }), HasSubstr(".stored_rows is 8"));
  EXPECT_THAT(error(gptq, [](WeightSource& s) { s.groups.scales = nullptr; }), HasSubstr("scales is null"));
  EXPECT_THAT(error(gptq, [](WeightSource& s) { s.groups.zeros = nullptr; }), HasSubstr("zeros is null"));
  EXPECT_THAT(error(gptq, [](WeightSource& s) { s.groups.group_size = 0; }), HasSubstr("group_size is 0"));
  EXPECT_THAT(error(gptq, [](WeightSource& s) { s.groups.zero_offset = 2; }), HasSubstr("zero_offset is 2"));
  EXPECT_THAT(error(gptq, [&](WeightSource& s) { s.groups.group_of = negative; }),
              HasSubstr("group_of[1] is -1"));
}

}  // namespace
}  // namespace phalanx
