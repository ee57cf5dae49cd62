// The fixture of the conformance suite: one rung in one compute mode against the reference. The only place
// with tolerances.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/numeric.h"
#include "kernels/ops.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx {

using testing::HasSubstr;

struct Tolerance {
  double absolute = 0;
  double relative = 0;
  double cosine = 0;  // 1 - cosine of the angle between the two, at most
};

inline void ExpectClose(const std::vector<float>& want, const std::vector<float>& got,
                        const Tolerance& tolerance, const std::string& what) {
  ASSERT_EQ(want.size(), got.size()) << what;
  double dot = 0, want2 = 0, got2 = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_EQ(std::isnan(want[i]), std::isnan(got[i]))
        << what << " at " << i << ": " << want[i] << " " << got[i];
    if (std::isnan(want[i])) continue;
    ASSERT_LE(std::fabs(double{want[i]} - got[i]),
              tolerance.absolute + tolerance.relative * std::fabs(want[i]))
        << what << " at " << i << ": reference " << want[i] << ", got " << got[i];
    dot += double{want[i]} * got[i];
    want2 += double{want[i]} * want[i];
    got2 += double{got[i]} * got[i];
  }
  if (want2 > 0) {
    ASSERT_LE(1 - dot / std::sqrt(want2 * got2), tolerance.cosine) << what;
  }
}

class OpsTest : public testing::TestWithParam<RungCase> {
 protected:
  OpsTest()
      : ops_(OrDie(CreateOps(Options()))),
        reference_(OrDie(CreateOps(
            {"reference", GetParam().fp16 ? Compute::kFp32 : GetParam().compute, 1, GetParam().kv_type}))) {}

  static OpsOptions Options() {
    OpsOptions options = {GetParam().rung, GetParam().compute, 2, GetParam().kv_type, GetParam().fp16};
    options.device_mode = TestedMode();
    return options;
  }

  // Activations are rounded to 16 bits: those of a device always, AMX's and AVX512_BF16's for their products.
  bool device() const { return ops_->activation_dtype() != DType::kF32; }
  bool rounds() const { return ops_->info().instruction_set.ends_with("-bf16") || device(); }
  KvType kv_type() const { return ops_->info().kv_type; }
  // Of elementwise work that is otherwise as exact as `tolerance`.
  Tolerance Elementwise(const Tolerance& tolerance) const {
    return device() ? Tolerance{4e-2, 1.2e-2, 2e-5} : tolerance;
  }
  // A value as an activation.
  float Rounded(float v) const {
    return !device() ? v : GetParam().fp16 ? FloatFromF16(cuda::HalfFromFloat(v)) : RoundToBf16(v);
  }
  // Of a sum of k products of N(0, 1): fp32 sums differ by order, or the activations are rounded to bf16.
  Tolerance ProductTolerance(int64_t k) const {
    const double root = std::sqrt(static_cast<double>(std::max<int64_t>(k, 1)));
    return rounds() ? Tolerance{1.2e-2 * root, 1e-2, 1e-4} : Tolerance{4e-6 * root, 1e-5, 1e-9};
  }
  // Of attention: probabilities and values of order one.
  // Bf16 products round the queries and the weights.
  Tolerance AttentionTolerance() const {
    return rounds() ? Tolerance{2e-2, 2e-2, 5e-5} : Tolerance{2e-5, 2e-5, 1e-9};
  }

  void ExpectAgree(const Tolerance& tolerance, const std::string& what,
                   const std::function<std::vector<float>(Ops&)>& run) {
    ExpectClose(run(*reference_), run(*ops_), tolerance, what);
  }

  std::unique_ptr<Ops> ops_, reference_;
};

// Raw bytes of every quantisation: blocks with random contents and sane scales.
inline std::vector<uint8_t> RandomBlocks(Random& random, DType dtype, int64_t elements) {
  std::vector<uint8_t> bytes(static_cast<size_t>(RowBytes(dtype, elements)));
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.Below(256));
  const auto put_scale = [&](size_t at) {
    const uint16_t scale = static_cast<uint16_t>(0x2000 + random.Below(0x400));  // f16, about 0.01
    std::memcpy(bytes.data() + at, &scale, 2);
  };
  const auto block = static_cast<size_t>(BlockBytes(dtype));
  switch (dtype) {
    case DType::kF32:
      for (size_t i = 0; i < bytes.size(); i += 4) {
        const float v = random.Normal(1)[0];
        std::memcpy(bytes.data() + i, &v, 4);
      }
      break;
    case DType::kF16:
      for (size_t i = 0; i < bytes.size(); i += 2) put_scale(i);
      break;
    case DType::kBF16:
      for (size_t i = 0; i < bytes.size(); i += 2) {
        const uint16_t v = Bf16FromFloat(random.Normal(1)[0]);
        std::memcpy(bytes.data() + i, &v, 2);
      }
      break;
    case DType::kQ8_0:
    case DType::kQ4_0:
      for (size_t i = 0; i < bytes.size(); i += block) put_scale(i);
      break;
    case DType::kQ4_1:
      for (size_t i = 0; i < bytes.size(); i += block) {
        put_scale(i);
        put_scale(i + 2);
      }
      break;
    case DType::kQ4_K:
    case DType::kQ5_K:
      for (size_t i = 0; i < bytes.size(); i += block) {
        put_scale(i);
        put_scale(i + 2);
      }
      break;
    case DType::kQ6_K:
      for (size_t i = 0; i < bytes.size(); i += block) put_scale(i + block - 2);
      break;
    case DType::kF8E4M3:
    case DType::kAwq:
    case DType::kGptq:
      break;  // any bytes
  }
  return bytes;
}

}  // namespace phalanx
