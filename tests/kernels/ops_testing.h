// Helpers of the tests of Ops: arrays on the device with sentinels behind them, and random inputs.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/half.h"
#include "kernels/numeric.h"
#include "kernels/ops.h"
#include "tests/kernels/tested_rungs.h"

namespace phalanx {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) {
    ADD_FAILURE() << value.status().ToString();
    std::abort();
  }
  return *std::move(value);
}

// An array in the memory of `ops`, with sentinels behind it that are NaN as floats: a kernel that reads past
// the end spoils its result, one that writes past the end is seen by the destructor.
template <typename T>
class DeviceArray {
 public:
  DeviceArray(Ops& ops, const std::vector<T>& values) : ops_(ops), count_(values.size()) {
    buffer_ = OrDie(ops.Allocate(static_cast<int64_t>(bytes() + kGuardBytes)));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer_->data()) % 64, 0u);
    const std::vector<uint8_t> guard(kGuardBytes, 0xff);
    EXPECT_TRUE(
        ops.Copy(buffer_->data(), values.data(), static_cast<int64_t>(bytes()), CopyKind::kToDevice).ok());
    EXPECT_TRUE(ops.Copy(static_cast<uint8_t*>(buffer_->data()) + bytes(), guard.data(), kGuardBytes,
                         CopyKind::kToDevice)
                    .ok());
  }
  ~DeviceArray() {
    std::vector<uint8_t> guard(kGuardBytes);
    EXPECT_TRUE(ops_.Copy(guard.data(), static_cast<uint8_t*>(buffer_->data()) + bytes(), kGuardBytes,
                          CopyKind::kToHost)
                    .ok());
    for (size_t i = 0; i < guard.size(); ++i) {
      if (guard[i] == 0xff) continue;
      ADD_FAILURE() << "byte " << i << " behind an array of " << bytes() << " bytes was written";
      break;
    }
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() { return static_cast<T*>(buffer_->data()); }
  std::vector<T> Get() {
    EXPECT_TRUE(ops_.Synchronize(10000).ok());
    std::vector<T> values(count_);
    EXPECT_TRUE(
        ops_.Copy(values.data(), buffer_->data(), static_cast<int64_t>(bytes()), CopyKind::kToHost).ok());
    return values;
  }

 private:
  static constexpr size_t kGuardBytes = 256;
  size_t bytes() const { return count_ * sizeof(T); }

  Ops& ops_;
  size_t count_;
  std::unique_ptr<Buffer> buffer_;
};

// A matrix of activations (or of fp32) whose rows lie `padding` elements apart; the padding is NaN and must
// stay so. Values are rounded to the activations' type.
class DeviceMatrix {
 public:
  DeviceMatrix(Ops& ops, int64_t rows, int64_t cols, const std::vector<float>& values, int64_t padding = 0,
               bool fp32 = false)
      : rows_(rows),
        cols_(cols),
        stride_(cols + padding),
        dtype_(fp32 ? DType::kF32 : ops.activation_dtype()),
        array_(ops, Bytes(values)) {}
  // Filled with NaN: every element must be written.
  DeviceMatrix(Ops& ops, int64_t rows, int64_t cols, int64_t padding = 0, bool fp32 = false)
      : DeviceMatrix(ops, rows, cols, std::vector<float>(static_cast<size_t>(rows * cols), kNan), padding,
                     fp32) {}

  Matrix view() { return {array_.data(), rows_, cols_, stride_}; }
  std::vector<float> Get() {
    const std::vector<uint8_t> bytes = array_.Get();
    std::vector<float> values;
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < stride_; ++c) {
        const float v = Load(bytes.data() + (r * stride_ + c) * BlockBytes(dtype_));
        if (c < cols_) {
          values.push_back(v);
        } else if (!std::isnan(v)) {
          ADD_FAILURE() << "padding column " << c - cols_ << " of row " << r << " was written";
        }
      }
    }
    return values;
  }

 private:
  float Load(const uint8_t* from) const {
    if (dtype_ == DType::kF32) {
      float v = 0;
      std::memcpy(&v, from, 4);
      return v;
    }
    uint16_t v = 0;
    std::memcpy(&v, from, 2);
    return dtype_ == DType::kF16 ? FloatFromF16(v) : FloatFromBf16(v);
  }
  std::vector<uint8_t> Bytes(const std::vector<float>& values) const {
    EXPECT_EQ(static_cast<int64_t>(values.size()), rows_ * cols_);
    std::vector<uint8_t> bytes(static_cast<size_t>(rows_ * stride_ * BlockBytes(dtype_)));
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < stride_; ++c) {
        const float v = c < cols_ ? values[r * cols_ + c] : kNan;
        const uint16_t narrow = dtype_ == DType::kF16 ? cuda::HalfFromFloat(v) : Bf16FromFloat(v);
        std::memcpy(bytes.data() + (r * stride_ + c) * BlockBytes(dtype_),
                    dtype_ == DType::kF32 ? static_cast<const void*>(&v) : &narrow,
                    static_cast<size_t>(BlockBytes(dtype_)));
      }
    }
    return bytes;
  }

  int64_t rows_, cols_, stride_;
  DType dtype_;
  DeviceArray<uint8_t> array_;
};

class Random {
 public:
  explicit Random(uint32_t seed) : generator_(seed) {}
  std::vector<float> Normal(int64_t n, float deviation = 1.0f) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = normal(generator_);
    return values;
  }
  int64_t Below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(generator_); }
  std::mt19937& generator() { return generator_; }

 private:
  std::mt19937 generator_;
};

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline std::vector<float> Rows(const std::vector<float>& m, int64_t cols, int64_t begin, int64_t end) {
  return {m.begin() + begin * cols, m.begin() + end * cols};
}

// A cache on `ops` whose every slot was poisoned with NaN, and block tables over shuffled blocks.
class PagedKv {
 public:
  PagedKv(Ops& ops, const KvCacheShape& shape, int64_t num_blocks, const RopeConfig& rope,
          int64_t num_positions)
      : ops_(ops), shape_(shape), rope_offset_(0) {
    cache_ = OrDie(ops.CreateKvCache(shape, num_blocks));
    table_ = OrDie(ops.MakeRopeTable(rope, num_positions));
    for (int layer = 0; layer < shape.num_layers; ++layer) {
      const int64_t slots = num_blocks * shape.block_size;
      std::vector<int64_t> all(static_cast<size_t>(slots));
      for (int64_t s = 0; s < slots; ++s) all[s] = s;
      std::vector<float> k(static_cast<size_t>(slots * shape.num_kv_heads * shape.key_dim), kNan);
      std::vector<float> v(static_cast<size_t>(slots * shape.num_kv_heads * shape.value_dim), kNan);
      Store(layer, 0, {}, k, v, std::vector<int32_t>(all.size(), 0), all);
    }
  }
  void set_rope_offset(int offset) { rope_offset_ = offset; }
  const KvCache* cache() const { return cache_.get(); }

  // Returns the rotated queries [T, num_heads * key_dim].
  std::vector<float> Store(int layer, int num_heads, const std::vector<float>& q, const std::vector<float>& k,
                           const std::vector<float>& v, const std::vector<int32_t>& positions,
                           const std::vector<int64_t>& slots, int64_t padding = 0) {
    const auto rows = static_cast<int64_t>(positions.size());
    DeviceMatrix q_m(ops_, rows, int64_t{num_heads} * shape_.key_dim, q, padding);
    DeviceMatrix k_m(ops_, rows, int64_t{shape_.num_kv_heads} * shape_.key_dim, Quantisable(k), padding);
    DeviceMatrix v_m(ops_, rows, int64_t{shape_.num_kv_heads} * shape_.value_dim, Quantisable(v), padding);
    DeviceArray<int32_t> positions_a(ops_, positions);
    DeviceArray<int32_t> modes(ops_, std::vector<int32_t>(positions.size(), 0));
    DeviceArray<int64_t> slots_a(ops_, slots);
    RopeStoreKvParams p;
    p.q = q_m.view();
    p.k = k_m.view();
    p.v = v_m.view();
    p.num_heads = num_heads;
    p.positions = positions_a.data();
    p.rope_mode = modes.data();
    p.tables = {table_.get()};
    p.rope_offset = rope_offset_;
    p.cache = cache_.get();
    p.layer = layer;
    p.slots = slots_a.data();
    const absl::Status status = ops_.RopeStoreKv(p);
    EXPECT_TRUE(status.ok()) << status.ToString();
    return q_m.Get();
  }

  // Rows [first, first + rows) of one sequence; q is [rows, num_heads * key_dim], rotated.
  std::vector<float> Attend(int layer, const std::vector<int32_t>& kv_head_of, const std::vector<float>& q,
                            int64_t first_position, int64_t rows, const std::vector<int32_t>& block_table,
                            int latent = 0, int64_t padding = 0) {
    const auto heads = static_cast<int64_t>(kv_head_of.size());
    const int value_dim = latent > 0 ? latent : shape_.value_dim;
    DeviceMatrix q_m(ops_, rows, heads * shape_.key_dim, q, padding);
    DeviceMatrix out(ops_, rows, heads * value_dim, padding);
    DeviceArray<int32_t> blocks(ops_, block_table);
    AttentionParams p;
    p.q = q_m.view();
    p.num_heads = static_cast<int>(heads);
    p.kv_head_of = kv_head_of.data();
    p.cache = cache_.get();
    p.layer = layer;
    p.scale = 1.0f / std::sqrt(static_cast<float>(shape_.key_dim));
    p.latent_value_dim = latent;
    p.sequences = {{0, rows, first_position, blocks.data()}};
    p.out = out.view();
    const absl::Status status = ops_.Attention(p);
    EXPECT_TRUE(status.ok()) << status.ToString();
    return out.Get();
  }

  KvCache* cache() { return cache_.get(); }

 private:
  // What a device quantises is a bf16: a code of another number may be the next one.
  std::vector<float> Quantisable(std::vector<float> x) const {
    if (kTestsDevice && IsQuantised(ops_.info().kv_type)) {
      for (float& v : x) v = RoundToBf16(v);
    }
    return x;
  }

  Ops& ops_;
  KvCacheShape shape_;
  int rope_offset_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<RopeTable> table_;
};

inline std::vector<int64_t> SlotsOf(const std::vector<int32_t>& block_table, int block_size, int64_t begin,
                                    int64_t end) {
  std::vector<int64_t> slots;
  for (int64_t p = begin; p < end; ++p) {
    slots.push_back(int64_t{block_table[p / block_size]} * block_size + p % block_size);
  }
  return slots;
}

inline std::vector<int32_t> Positions(int64_t begin, int64_t end) {
  std::vector<int32_t> positions;
  for (int64_t p = begin; p < end; ++p) positions.push_back(static_cast<int32_t>(p));
  return positions;
}

// Every rung there is, whether or not this host can run it.
inline const std::vector<std::string>& AllRungs() {
  static const std::vector<std::string> rungs = {"reference", "avx2", "avx512", "avx512_bf16", "amx"};
  return rungs;
}

struct RungCase {
  std::string rung;
  Compute compute;
  KvType kv_type = KvType::kAuto;
  bool fp16 = false;
};

inline void PrintTo(const RungCase& c, std::ostream* os) {
  *os << c.rung << (c.compute == Compute::kFp32 ? " fp32" : c.fp16 ? " fp16" : " fast");
  if (c.kv_type != KvType::kAuto) *os << " kv " << KvTypeName(c.kv_type);
}

inline std::vector<RungCase> RungCases() {
  std::vector<RungCase> cases;
  for (const std::string& rung : TestedRungs()) {
    if (kTestsDevice) {
      for (const bool fp16 : {false, true}) cases.push_back({rung, Compute::kFast, KvType::kAuto, fp16});
      continue;
    }
    for (const Compute compute : {Compute::kFp32, Compute::kFast}) cases.push_back({rung, compute});
  }
  return cases;
}

// Whether it has loops of its own that read the codes of a quantised cache.
inline bool ReadsCodes(const RungCase& c) {
  return c.compute == Compute::kFp32 ? c.rung == "reference" || c.rung == "avx2"
                                     : c.rung == "amx" || c.rung == "avx512_bf16";
}

// The same, each with the KV cache of its arithmetic and with int8, AVX2 with every type, those that read
// codes with fp8; a device with 16 bits and, where activations are bf16, int8 and fp8.
inline std::vector<RungCase> RungAndKvCases() {
  std::vector<RungCase> cases;
  if (kTestsDevice) {
    cases = RungCases();
    for (const KvType type : {KvType::kInt8, KvType::kFp8}) {
      cases.push_back({cases[0].rung, Compute::kFast, type});
    }
    return cases;
  }
  for (const RungCase& c : RungCases()) {
    const KvType own = c.compute == Compute::kFp32 ? KvType::kF32 : KvType::kBf16;
    for (const KvType type : {KvType::kBf16, KvType::kF32, KvType::kInt8}) {
      if (type == own || type == KvType::kInt8 || c.rung == "avx2")
        cases.push_back({c.rung, c.compute, type});
    }
    if (ReadsCodes(c)) cases.push_back({c.rung, c.compute, KvType::kFp8});
  }
  return cases;
}

inline std::string RungCaseName(const testing::TestParamInfo<RungCase>& info) {
  std::string name = info.param.rung;
  std::replace(name.begin(), name.end(), '-', '_');
  name += info.param.compute == Compute::kFp32 ? "_fp32" : info.param.fp16 ? "_fp16" : "_fast";
  if (info.param.kv_type != KvType::kAuto) name += "_kv_" + std::string(KvTypeName(info.param.kv_type));
  return name;
}

// Prints what ran and what this host could not run.
inline void PrintRungs() {
  std::string ran, lacking;
  for (const std::string& rung : AllRungs()) {
    const auto ops = CreateOps({rung, Compute::kFast, 1});
    if (ops.ok()) {
      ran += " " + rung + "(" + (*ops)->info().instruction_set + ")";
    } else {
      lacking += " [" + std::string(ops.status().message()) + "]";
    }
  }
  std::printf("rungs that run here:%s; not here:%s\n", ran.c_str(),
              lacking.empty() ? " none" : lacking.c_str());
}

}  // namespace phalanx
