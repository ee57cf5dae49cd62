// What one launch writes of a row: rotated queries, and codes and scales of keys and values, with the bits
// that kernels/quantised_kv.h gives to the rotated numbers.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/emulator/simt.h"
#include "kernels/quantised_kv.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::cuda {
namespace {

constexpr int kRows = 5, kHeads = 3, kKvHeads = 2, kKeyDim = 72, kValueDim = 40, kBlockSize = 4,
              kNumBlocks = 3;

struct RopeCase {
  bool half, interleaved;
  int rope_half, rope_offset;
  KvCodec codec;
};

template <KvCodec kCodec>
void ExpectGroups(const RopeCase& c, const std::vector<float>& want, const uint8_t* codes,
                  const uint16_t* scales) {
  for (size_t first = 0; first < want.size(); first += kKvGroup) {
    const auto n = static_cast<int64_t>(std::min<size_t>(kKvGroup, want.size() - first));
    uint8_t group[kKvGroup];
    const uint16_t scale = QuantiseKv<kCodec>(want.data() + first, n, group);
    EXPECT_EQ(scales[first / kKvGroup], scale) << c.half << c.interleaved;
    EXPECT_EQ(std::memcmp(codes + first, group, static_cast<size_t>(n)), 0) << c.half << c.interleaved;
  }
}

void Check(const RopeCase& c) {
  const std::shared_ptr<Runtime> runtime = CreateEmulatedRuntime();
  Random random(3);
  const auto narrow = [&](float v) { return c.half ? HalfFromFloat(v) : Bf16FromFloat(v); };
  const auto wide = [&](uint16_t v) { return c.half ? FloatFromF16(v) : FloatFromBf16(v); };
  const auto activations = [&](int64_t cols) {
    std::vector<uint16_t> x;
    for (const float v : random.Normal(kRows * cols, 4.0f)) x.push_back(narrow(v));
    return x;
  };
  const std::vector<uint16_t> q = activations(kHeads * kKeyDim + 1), k = activations(kKvHeads * kKeyDim + 3),
                              v = activations(kKvHeads * kValueDim + 5);
  const std::vector<int32_t> positions = {0, 6, 3, 1, 99}, modes = {0, 0, 1, 0, 0};
  const std::vector<int64_t> slots = {11, 2, 4, -1, 7};
  auto q_d = OrDie(CudaBuffer::Of(runtime, q)), k_d = OrDie(CudaBuffer::Of(runtime, k)),
       v_d = OrDie(CudaBuffer::Of(runtime, v)), positions_d = OrDie(CudaBuffer::Of(runtime, positions)),
       modes_d = OrDie(CudaBuffer::Of(runtime, modes)), slots_d = OrDie(CudaBuffer::Of(runtime, slots));
  const KvCacheShape shape = {1, kKvHeads, kKeyDim, kValueDim, kBlockSize};
  auto cache = OrDie(CudaKvCache::Create(runtime, shape, c.codec, kNumBlocks));
  RopeStoreArgs args;
  std::vector<std::unique_ptr<CudaRopeTable>> tables;
  for (const double theta : {10000.0, 500.0}) {
    const RopeConfig rope = {theta, 2 * c.rope_half, c.interleaved, {}, 1.0f};
    tables.push_back(OrDie(CudaRopeTable::Create(runtime, rope, 8)));
    args.tables[args.num_tables++] = tables.back()->args();
  }
  args.q = q_d->as<uint16_t>();
  args.k = k_d->as<uint16_t>();
  args.v = v_d->as<uint16_t>();
  args.rows = kRows;
  args.q_stride = kHeads * kKeyDim + 1;
  args.k_stride = kKvHeads * kKeyDim + 3;
  args.v_stride = kKvHeads * kValueDim + 5;
  args.num_heads = kHeads;
  args.positions = positions_d->as<int32_t>();
  args.rope_mode = modes_d->as<int32_t>();
  args.slots = slots_d->as<int64_t>();
  args.rope_offset = c.rope_offset;
  args.cache = cache->Layer(0);
  ASSERT_EQ(LaunchRopeStore(args, c.half, runtime->stream()), 0);

  const auto rotated = [&](size_t row, const uint16_t* x) {
    std::vector<float> y;
    for (int i = 0; i < kKeyDim; ++i) y.push_back(wide(x[i]));
    const RopeTableArgs& table = args.tables[modes[row]];
    for (int i = 0; i < table.half; ++i) {
      float& a = y[static_cast<size_t>(c.rope_offset + (c.interleaved ? 2 * i : i))];
      float& b = y[static_cast<size_t>(c.rope_offset + (c.interleaved ? 2 * i + 1 : i + table.half))];
      const bool inside = positions[row] < table.num_positions;
      const float cos = inside ? table.cos[positions[row] * table.half + i] : kNan;
      const float sin = inside ? table.sin[positions[row] * table.half + i] : kNan;
      const float first = a * cos - b * sin;
      b = b * cos + a * sin;
      a = first;
    }
    return y;
  };
  const int key_groups = (kKeyDim + kKvGroup - 1) / kKvGroup;
  const int value_groups = (kValueDim + kKvGroup - 1) / kKvGroup;
  for (size_t row = 0; row < kRows; ++row) {
    for (int head = 0; head < kHeads; ++head) {
      const int64_t at = static_cast<int64_t>(row) * args.q_stride + head * kKeyDim;
      const std::vector<float> want = rotated(row, q.data() + at);
      for (int i = 0; i < kKeyDim; ++i) {
        const float got = wide(args.q[at + i]), v = wide(narrow(want[static_cast<size_t>(i)]));
        EXPECT_TRUE(got == v || (std::isnan(got) && std::isnan(v))) << "row " << row << " channel " << i;
      }
    }
    if (slots[row] < 0) continue;
    for (int head = 0; head < kKvHeads; ++head) {
      const int64_t to = (slots[row] / kBlockSize * kKvHeads + head) * kBlockSize + slots[row] % kBlockSize;
      const std::vector<float> key =
          rotated(row, k.data() + static_cast<int64_t>(row) * args.k_stride + head * kKeyDim);
      std::vector<float> value;
      for (int i = 0; i < kValueDim; ++i) {
        value.push_back(
            wide(v[row * static_cast<size_t>(args.v_stride) + static_cast<size_t>(head * kValueDim + i)]));
      }
      const auto* keys = reinterpret_cast<const uint8_t*>(args.cache.keys) + to * args.cache.key_pitch;
      const auto* values = reinterpret_cast<const uint8_t*>(args.cache.values) + to * args.cache.value_pitch;
      const uint16_t* key_scales = args.cache.key_scales + to * key_groups;
      const uint16_t* value_scales = args.cache.value_scales + to * value_groups;
      if (c.codec == KvCodec::kInt8) {
        ExpectGroups<KvCodec::kInt8>(c, key, keys, key_scales);
        ExpectGroups<KvCodec::kInt8>(c, value, values, value_scales);
      } else {
        ExpectGroups<KvCodec::kE4m3>(c, key, keys, key_scales);
        ExpectGroups<KvCodec::kE4m3>(c, value, values, value_scales);
      }
    }
  }
  // No other slot was written.
  int64_t written = 0;
  for (int64_t i = 0; i < kNumBlocks * kKvHeads * kBlockSize; ++i) {
    written += args.cache.value_scales[i * value_groups] != 0 ? 1 : 0;
  }
  EXPECT_EQ(written, (kRows - 1) * kKvHeads);
}

TEST(RopeStoreTest, OneLaunchWritesCodesOfRotatedKeys) {
  for (const bool half : {false, true}) {
    for (const KvCodec codec : {KvCodec::kInt8, KvCodec::kE4m3}) {
      const int64_t launches = simt::LaunchesOf("RopeStore");
      Check({half, false, 36, 0, codec});
      Check({half, false, 20, 9, codec});
      Check({half, true, 36, 0, codec});
      Check({half, true, 17, 30, codec});
      EXPECT_EQ(simt::LaunchesOf("RopeStore"), launches + 4);
    }
  }
}

}  // namespace
}  // namespace phalanx::cuda
