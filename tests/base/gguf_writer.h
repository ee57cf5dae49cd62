// Writes small GGUF files for tests: metadata in the order it is set, tensors quantised from floats.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/dtype.h"

namespace phalanx {

// To nearest, ties to even; overflow to infinity.
inline uint16_t FloatToHalf(float f) {
  const auto bits = std::bit_cast<uint32_t>(f);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const float magnitude = std::fabs(f);
  if (std::isnan(f)) return sign | 0x7e00;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  if (magnitude == 0) return sign;
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude = [0.5, 1) * 2^exponent
  const int unit = exponent - 11 < -24 ? -24 : exponent - 11;
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, -unit)));
  return static_cast<uint16_t>(sign | (units + (static_cast<uint32_t>(unit + 24) << 10)));
}

inline uint16_t FloatToBf16(float f) {
  const auto bits = std::bit_cast<uint32_t>(f);
  if (std::isnan(f)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// `values` in the file's form. Their number is a multiple of BlockElements(dtype).
inline std::string EncodeTensor(DType dtype, const std::vector<float>& values) {
  std::string out;
  const auto put = [&out](auto v) { out.append(reinterpret_cast<const char*>(&v), sizeof(v)); };
  if (dtype == DType::kF32) {
    for (const float v : values) put(v);
    return out;
  }
  if (dtype == DType::kF16 || dtype == DType::kBF16) {
    for (const float v : values) put(dtype == DType::kF16 ? FloatToHalf(v) : FloatToBf16(v));
    return out;
  }
  const auto nibble = [](float v) { return static_cast<int>(std::fmin(15.0f, std::fmax(0.0f, v + 0.5f))); };
  for (size_t block = 0; block < values.size(); block += 32) {
    const float* x = &values[block];
    float low = x[0], high = x[0], largest = x[0];  // largest: in magnitude, with its sign
    for (int i = 1; i < 32; ++i) {
      low = std::fmin(low, x[i]);
      high = std::fmax(high, x[i]);
      if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
    }
    if (dtype == DType::kQ8_0) {
      const float d = std::fabs(largest) / 127.0f;
      put(FloatToHalf(d));
      for (int i = 0; i < 32; ++i) put(static_cast<int8_t>(d == 0 ? 0 : std::lround(x[i] / d)));
    } else if (dtype == DType::kQ4_0) {
      const float d = largest / -8.0f;
      const float inverse = d == 0 ? 0 : 1.0f / d;
      put(FloatToHalf(d));
      for (int i = 0; i < 16; ++i) {
        put(static_cast<uint8_t>(nibble(x[i] * inverse + 8) | nibble(x[i + 16] * inverse + 8) << 4));
      }
    } else {
      const float d = (high - low) / 15.0f;
      const float inverse = d == 0 ? 0 : 1.0f / d;
      put(FloatToHalf(d));
      put(FloatToHalf(low));
      for (int i = 0; i < 16; ++i) {
        put(static_cast<uint8_t>(nibble((x[i] - low) * inverse) | nibble((x[i + 16] - low) * inverse) << 4));
      }
    }
  }
  return out;
}

class GgufWriter {
 public:
  // Number in the file of a tensor type.
  static uint32_t TypeNumber(DType dtype) {
    switch (dtype) {
      case DType::kF32:
        return 0;
      case DType::kF16:
        return 1;
      case DType::kBF16:
        return 30;
      case DType::kQ8_0:
        return 8;
      case DType::kQ4_0:
        return 2;
      case DType::kQ4_1:
        return 3;
      case DType::kQ4_K:
        return 12;
      case DType::kQ5_K:
        return 13;
      case DType::kQ6_K:
        return 14;
      case DType::kF8E4M3:
      case DType::kAwq:
      case DType::kGptq:
        break;  // no types of GGUF files
    }
    return ~0u;
  }

  void SetU32(std::string_view key, uint32_t v) { Set(key, 4, Raw(v)); }
  void SetI32(std::string_view key, int32_t v) { Set(key, 5, Raw(v)); }
  void SetF32(std::string_view key, float v) { Set(key, 6, Raw(v)); }
  void SetBool(std::string_view key, bool v) { Set(key, 7, Raw(static_cast<uint8_t>(v))); }
  void SetString(std::string_view key, std::string_view v) { Set(key, 8, String(v)); }
  void SetU64(std::string_view key, uint64_t v) { Set(key, 10, Raw(v)); }
  void SetF64(std::string_view key, double v) { Set(key, 12, Raw(v)); }
  void SetStrings(std::string_view key, const std::vector<std::string>& values) {
    std::string body = Raw(uint32_t{8}) + Raw(uint64_t{values.size()});
    for (const std::string& v : values) body += String(v);
    Set(key, 9, body);
  }
  void SetI32s(std::string_view key, const std::vector<int32_t>& values) {
    std::string body = Raw(uint32_t{5}) + Raw(uint64_t{values.size()});
    for (const int32_t v : values) body += Raw(v);
    Set(key, 9, body);
  }
  void SetF32s(std::string_view key, const std::vector<float>& values) {
    std::string body = Raw(uint32_t{6}) + Raw(uint64_t{values.size()});
    for (const float v : values) body += Raw(v);
    Set(key, 9, body);
  }
  // A value as it stands in the file, behind its type number.
  void Set(std::string_view key, uint32_t type, std::string_view body) {
    metadata_ += String(key) + Raw(type) + std::string(body);
    ++num_entries_;
  }

  // dims innermost first: a matrix [out, in] has dims {in, out} and `values` row by row.
  void AddTensor(std::string_view name, DType dtype, const std::vector<int64_t>& dims,
                 const std::vector<float>& values) {
    AddRawTensor(name, TypeNumber(dtype), dims, EncodeTensor(dtype, values));
  }
  void AddRawTensor(std::string_view name, uint32_t type, const std::vector<int64_t>& dims,
                    std::string bytes) {
    AddTensorInfo(name, type, dims, data_.size());
    data_ += bytes;
    data_.resize((data_.size() + 31) / 32 * 32);
  }
  // Only the description, with any offset into the data: for hostile files.
  void AddTensorInfo(std::string_view name, uint32_t type, const std::vector<int64_t>& dims,
                     uint64_t offset) {
    infos_ += String(name) + Raw(static_cast<uint32_t>(dims.size()));
    for (const int64_t dim : dims) infos_ += Raw(dim);
    infos_ += Raw(type) + Raw(offset);
    ++num_tensors_;
  }

  std::string Serialize() const {
    std::string out = "GGUF" + Raw(uint32_t{3}) + Raw(num_tensors_) + Raw(num_entries_) + metadata_ + infos_;
    if (num_tensors_ > 0) out.resize((out.size() + 31) / 32 * 32);
    return out + data_;
  }
  // False if the file could not be written.
  bool Write(const std::string& path) const { return WriteBytes(path, Serialize()); }
  static bool WriteBytes(const std::string& path, std::string_view bytes) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    file.close();
    return !file.fail();
  }

  template <typename T>
  static std::string Raw(T v) {
    return std::string(reinterpret_cast<const char*>(&v), sizeof(v));
  }
  static std::string String(std::string_view s) { return Raw(uint64_t{s.size()}) + std::string(s); }

 private:
  std::string metadata_, infos_, data_;
  uint64_t num_entries_ = 0;
  uint64_t num_tensors_ = 0;
};

}  // namespace phalanx
