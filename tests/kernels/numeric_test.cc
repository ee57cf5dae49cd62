// Number formats, dequantisation of hand-made blocks, and the random numbers of sampling.
#include "kernels/numeric.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/dequantize.h"
#include "kernels/fp8.h"
#include "kernels/sampling.h"

namespace phalanx {
namespace {

TEST(NumericTest, Bf16RoundsToNearestEven) {
  EXPECT_EQ(RoundToBf16(1.0f), 1.0f);
  EXPECT_EQ(RoundToBf16(1.0f + 0x1p-8f), 1.0f);            // halfway, to even below
  EXPECT_EQ(RoundToBf16(1.0f + 0x3p-8f), 1.0f + 0x2p-7f);  // halfway, to even above
  EXPECT_EQ(RoundToBf16(1.0f + 0x1p-8f + 0x1p-20f), 1.0f + 0x1p-7f);
  EXPECT_EQ(RoundToBf16(-0.0f), 0.0f);
  EXPECT_TRUE(std::signbit(RoundToBf16(-0.0f)));
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(RoundToBf16(inf), inf);
  EXPECT_EQ(RoundToBf16(std::numeric_limits<float>::max()), inf);
  EXPECT_TRUE(std::isnan(RoundToBf16(std::bit_cast<float>(0x7f800001u))));  // would round to infinity
  EXPECT_TRUE(std::isnan(RoundToBf16(std::bit_cast<float>(0x7fffffffu))));
}

TEST(NumericTest, F16IsExact) {
  EXPECT_EQ(FloatFromF16(0x3c00), 1.0f);
  EXPECT_EQ(FloatFromF16(0xc000), -2.0f);
  EXPECT_EQ(FloatFromF16(0x7bff), 65504.0f);
  EXPECT_EQ(FloatFromF16(0x0400), 0x1p-14f);
  EXPECT_EQ(FloatFromF16(0x0001), 0x1p-24f);  // subnormal
  EXPECT_EQ(FloatFromF16(0x83ff), -1023 * 0x1p-24f);
  EXPECT_EQ(FloatFromF16(0x7c00), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(FloatFromF16(0x7e00)));
  EXPECT_TRUE(std::signbit(FloatFromF16(0x8000)));
}

// By the format's definition.
constexpr float E4m3Value(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  float v = exponent == 0 ? static_cast<float>(mantissa) : static_cast<float>(8 + mantissa);
  for (int e = exponent == 0 ? 1 : exponent; e < 10; ++e) v /= 2;
  for (int e = exponent; e > 10; --e) v *= 2;
  return code < 128 ? v : -v;
}

constexpr bool E4m3CodesAreTheirNumbers() {
  for (int code = 0; code < 256; ++code) {
    const uint32_t bits = FloatBitsFromE4m3(static_cast<uint8_t>(code));
    if (E4m3FromFloatBits(bits) != code) return false;
    if ((code & 0x7f) == 0x7f) {
      if ((bits & 0x7fffffffu) != 0x7fc00000u) return false;
      continue;
    }
    const float value = E4m3Value(code),
                tiny = std::bit_cast<float>(E4m3TinyBits(static_cast<uint32_t>(code)));
    if (bits != std::bit_cast<uint32_t>(value)) return false;
    if (std::bit_cast<uint32_t>(tiny * std::bit_cast<float>(kE4m3FromTiny)) != bits) return false;
  }
  return true;
}
static_assert(E4m3CodesAreTheirNumbers());

uint8_t E4m3(float v) { return E4m3FromFloatBits(std::bit_cast<uint32_t>(v)); }

// Between neighbouring codes: to the nearer, halfway to the even one.
TEST(NumericTest, E4m3RoundsToNearestEven) {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = E4m3Value(code), high = E4m3Value(code + 1), middle = (low + high) / 2;
    const int even = code % 2 == 0 ? code : code + 1;
    for (const int sign : {0, 0x80}) {
      const auto of = [sign](float v) { return E4m3(sign != 0 ? -v : v); };
      EXPECT_EQ(of(middle), even | sign) << low;
      EXPECT_EQ(of(std::nextafter(middle, 0.0f)), code | sign) << low;
      EXPECT_EQ(of(std::nextafter(middle, 1e9f)), (code + 1) | sign) << low;
    }
  }
}

TEST(NumericTest, E4m3Saturates) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const float v : {448.0f, 460.0f, 1e5f, std::numeric_limits<float>::max(), inf}) {
    EXPECT_EQ(E4m3(v), 0x7e) << v;
    EXPECT_EQ(E4m3(-v), 0xfe) << v;
  }
  EXPECT_EQ(E4m3(std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_EQ(E4m3(-0.0f), 0x80);
  EXPECT_EQ(E4m3(std::numeric_limits<float>::quiet_NaN()) & 0x7f, 0x7f);
  EXPECT_EQ(E4m3FromFloatBits(0xff800001u), 0xff);
}

TEST(NumericTest, ExpIsWithinTwoUlp) {
  for (float x = -87.0f; x < 88.0f; x += 0.0137f) {
    const double want = std::exp(double{x});
    EXPECT_NEAR(Exp(x), want, want * 2.5e-7) << x;
  }
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(-std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_EQ(Exp(-1000.0f), 0.0f);
  EXPECT_TRUE(std::isfinite(Exp(1000.0f)));
  EXPECT_TRUE(std::isnan(Exp(std::numeric_limits<float>::quiet_NaN())));
}

std::vector<float> Part(DType dtype, const void* row, int64_t begin, int64_t end) {
  std::vector<float> out(static_cast<size_t>(end - begin) + 1, -77.0f);
  DequantizeRow(dtype, row, begin, end, out.data());
  EXPECT_EQ(out.back(), -77.0f) << "wrote past the end";
  out.pop_back();
  return out;
}

void ExpectAllParts(DType dtype, const std::vector<uint8_t>& row, const std::vector<float>& want) {
  const auto n = static_cast<int64_t>(want.size());
  for (int64_t begin = 0; begin <= n; ++begin) {
    for (int64_t end = begin; end <= n; ++end) {
      ASSERT_EQ(Part(dtype, row.data(), begin, end),
                std::vector<float>(want.begin() + begin, want.begin() + end))
          << DTypeName(dtype) << " [" << begin << ", " << end << ")";
    }
  }
}

void PutF16(std::vector<uint8_t>& row, uint16_t h) {
  row.push_back(static_cast<uint8_t>(h));
  row.push_back(static_cast<uint8_t>(h >> 8));
}

TEST(DequantizeTest, Q8_0) {
  std::vector<uint8_t> row;
  std::vector<float> want;
  for (const uint16_t scale : {uint16_t{0x3800}, uint16_t{0xc000}}) {  // 0.5, -2
    PutF16(row, scale);
    for (int j = 0; j < 32; ++j) {
      const auto q = static_cast<int8_t>(j * 8 - 128);
      row.push_back(static_cast<uint8_t>(q));
      want.push_back(FloatFromF16(scale) * q);
    }
  }
  EXPECT_EQ(want[0], -64.0f);
  ExpectAllParts(DType::kQ8_0, row, want);
}

// Low nibbles are elements 0..15, high nibbles 16..31.
TEST(DequantizeTest, Q4_0AndQ4_1) {
  std::vector<uint8_t> q4_0, q4_1;
  std::vector<float> want_0(64), want_1(64);
  for (int b = 0; b < 2; ++b) {
    PutF16(q4_0, 0x3400);  // 0.25
    PutF16(q4_1, 0x3400);
    PutF16(q4_1, b == 0 ? 0x3c00 : 0xbc00);  // 1, -1
    for (int j = 0; j < 16; ++j) {
      const int low = (j + b) % 16, high = (15 - j + b) % 16;
      q4_0.push_back(static_cast<uint8_t>(high << 4 | low));
      q4_1.push_back(static_cast<uint8_t>(high << 4 | low));
      const float m = b == 0 ? 1.0f : -1.0f;
      want_0[b * 32 + j] = 0.25f * static_cast<float>(low - 8);
      want_0[b * 32 + 16 + j] = 0.25f * static_cast<float>(high - 8);
      want_1[b * 32 + j] = 0.25f * static_cast<float>(low) + m;
      want_1[b * 32 + 16 + j] = 0.25f * static_cast<float>(high) + m;
    }
  }
  ExpectAllParts(DType::kQ4_0, q4_0, want_0);
  ExpectAllParts(DType::kQ4_1, q4_1, want_1);
}

TEST(DequantizeTest, PlainTypes) {
  const std::vector<float> values = {1.0f, -2.5f, 0x1p-20f, 300.0f, 0.0f};
  std::vector<uint8_t> f32(values.size() * 4), bf16, f16;
  std::memcpy(f32.data(), values.data(), f32.size());
  std::vector<float> want_bf16;
  for (const float v : values) {
    const uint16_t h = Bf16FromFloat(v);
    bf16.push_back(static_cast<uint8_t>(h));
    bf16.push_back(static_cast<uint8_t>(h >> 8));
    want_bf16.push_back(RoundToBf16(v));
  }
  for (const uint16_t h : {0x3c00, 0xc100, 0x0010}) PutF16(f16, h);
  ExpectAllParts(DType::kF32, f32, values);
  ExpectAllParts(DType::kBF16, bf16, want_bf16);
  ExpectAllParts(DType::kF16, f16, {1.0f, -2.5f, 0x1p-20f});
}

// source: known answers of Random123 (kat_vectors, philox4x32 10)
TEST(PhiloxTest, KnownAnswers) {
  using U4 = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}), (U4{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (U4{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (U4{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, UniformsLieInTheUnitInterval) {
  double sum = 0;
  for (uint64_t p = 0; p < 10000; ++p) {
    const double u = SampleUniform(7, 1, p << 20);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.02);
  EXPECT_NE(SampleUniform(1, 0, 5), SampleUniform(1, 1, 5));
  EXPECT_NE(SampleUniform(1, 0, 5), SampleUniform(uint64_t{1} << 32 | 1, 0, 5));
  EXPECT_NE(SampleUniform(1, 0, 5), SampleUniform(1, 0, uint64_t{1} << 32 | 5));
}

// top-p keeps the smallest set of best tokens that reaches it; top-k counts ties by lower id.
TEST(SamplerTest, KeepsExactlyTheCandidates) {
  Sampler sampler(PortableSamplingLoops());
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  const std::vector<float> logits = {std::log(0.125f), std::log(0.5f), std::log(0.25f), std::log(0.125f)};
  const auto seen = [&](int32_t top_k, float top_p) {
    std::vector<int> counts(4);
    for (uint64_t p = 0; p < 400; ++p) {
      SampleRow row;
      row.temperature = 1;
      row.top_k = top_k;
      row.top_p = top_p;
      row.position = p;
      ++counts[sampler.Sample(logits.data(), 4, row).id];
    }
    std::vector<bool> present;
    for (const int c : counts) present.push_back(c > 0);
    return present;
  };
  using B = std::vector<bool>;
  EXPECT_EQ(seen(0, 1.0f), (B{true, true, true, true}));
  EXPECT_EQ(seen(0, 0.45f), (B{false, true, false, false}));
  EXPECT_EQ(seen(0, 0.55f), (B{false, true, true, false}));
  EXPECT_EQ(seen(0, 0.8f), (B{true, true, true, false}));
  EXPECT_EQ(seen(3, 1.0f), (B{true, true, true, false}));
  EXPECT_EQ(seen(2, 0.6f), (B{false, true, false, false}));  // of the two kept, the first has 2/3
  EXPECT_EQ(seen(2, 0.7f), (B{false, true, true, false}));
}

// The candidate search by buckets finds the same set as a sort of everything.
TEST(SamplerTest, TopPIsThatOfASort) {
  Sampler sampler(PortableSamplingLoops());
  std::mt19937 generator(3);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 40; ++round) {
    std::vector<float> logits(200);
    const float width = round % 4 == 0 ? 0.0f : round % 4 == 1 ? 0.01f : round % 4 == 2 ? 1.0f : 40.0f;
    for (float& l : logits) l = std::round(normal(generator) * 16 * width) / 16;
    SampleRow row;
    row.temperature = round % 3 == 0 ? 0.2f : 1.5f;
    row.top_p = std::array{0.0f, 0.1f, 0.5f, 0.93f, 0.99999f}[round % 5];
    std::vector<int> order(200);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    double total = 0, kept = 0;
    for (const int i : order) total += std::exp((double{logits[i]} - logits[order[0]]) / row.temperature);
    std::vector<bool> may(200), must(200);
    for (size_t i = 0; i < order.size(); ++i) {
      const double weight = std::exp((double{logits[order[i]]} - logits[order[0]]) / row.temperature);
      may[order[i]] = i == 0 || kept < row.top_p * total * (1 + 1e-6);
      must[order[i]] = (i == 0 || kept < row.top_p * total * (1 - 1e-6)) && weight > 0.02 * row.top_p * total;
      kept += weight;
    }
    std::vector<bool> seen(200);
    for (uint64_t p = 0; p < 2000; ++p) {
      row.position = p;
      const int32_t id = sampler.Sample(logits.data(), 200, row).id;
      ASSERT_TRUE(may[id]) << "round " << round << " drew token " << id << ", which top-p excludes";
      seen[id] = true;
    }
    for (int i = 0; i < 200; ++i)
      EXPECT_TRUE(seen[i] || !must[i]) << "round " << round << " never drew " << i;
  }
}

TEST(SamplerTest, TopPOfFlatAndWideRows) {
  Sampler sampler(PortableSamplingLoops());
  std::vector<float> logits(3000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = -static_cast<float>((i * 7919) % 3000) * 0.01f;
  SampleRow row;
  row.temperature = 1;
  row.top_p = 0.999999f;
  int64_t far = 0;
  for (uint64_t p = 0; p < 3000; ++p) {
    row.position = p;
    const int32_t id = sampler.Sample(logits.data(), 3000, row).id;
    ASSERT_GE(id, 0);
    far += logits[id] < -5.0f;
  }
  EXPECT_NEAR(static_cast<double>(far) / 3000, std::exp(-5.0), 0.006);
}

}  // namespace
}  // namespace phalanx
