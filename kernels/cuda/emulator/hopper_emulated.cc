#include "kernels/cuda/emulator/hopper_emulated.h"

#include <deque>
#include <map>
#include <vector>

namespace phalanx::cuda {
namespace {

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue
constexpr int kMaxWarps = 32;
constexpr int kMaxYields = 1 << 22;

// An mbarrier's 8 bytes; and by its address, how many barriers the block had met when it was initialised.
thread_local std::map<const void*, int64_t> t_initialised;
struct Barrier {
  int32_t bytes;      // of the phase that are still to come
  uint16_t arrivals;  // that end a phase
  int16_t left : 15;
  uint16_t phase : 1;
};
static_assert(sizeof(Barrier) <= sizeof(uint64_t));

Barrier* Of(uint64_t* barrier) {
  simt::CheckShared(barrier, 8, "an mbarrier outside of shared memory or not aligned to 8");
  const auto at = t_initialised.find(barrier);
  if (at == t_initialised.end() || at->second >= simt::BlockBarriers()) {
    simt::Fail("uses an mbarrier with no barrier behind its initialisation");
  }
  return reinterpret_cast<Barrier*>(barrier);
}

void EndPhase(Barrier* b) {
  if (b->left < 0) simt::Fail("more arrivals than an mbarrier expects");
  if (b->left != 0 || b->bytes != 0) return;
  b->left = static_cast<int16_t>(b->arrivals);
  b->phase ^= 1;
}

template <typename Done>
void WaitUntil(Done done, const char* what) {
  for (int i = 0; !done(); ++i) {
    if (i == kMaxYields) simt::Fail(what);
    simt::Yield();
  }
}

char* SharedAt(uint32_t address) {
  char* at = simt::SharedMemory() + (static_cast<int64_t>(address) - 1024);
  simt::CheckShared(at - (address & 15), 16, "a matrix descriptor that leads out of shared memory");
  return at;
}

float Element(uint32_t address, bool half) {
  uint16_t v = 0;
  std::memcpy(&v, SharedAt(SwizzledAddress(address)), 2);
  return half ? FloatFromF16(v) : FloatFromBf16(v);
}

float Register(uint32_t pair, int i, bool half) {
  const auto v = static_cast<uint16_t>(i == 0 ? pair : pair >> 16);
  return half ? FloatFromF16(v) : FloatFromBf16(v);
}

// What one warp has issued.
struct Product {
  WgmmaOperand lanes[simt::kWarp];
};
struct Queue {
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
};
thread_local Queue t_queues[kMaxWarps];

void Execute(const Product& p, int warp) {
  const WgmmaOperand& o = p.lanes[0];
  float a[16][16];
  std::vector<float> b(static_cast<size_t>(16 * o.n));  // [k][n]
  const auto start = [](uint64_t d) { return static_cast<uint32_t>(d & 0x3fff) << 4; };
  const auto leading = [](uint64_t d) { return static_cast<uint32_t>(d >> 16 & 0x3fff) << 4; };
  const auto stride = [](uint64_t d) { return static_cast<uint32_t>(d >> 32 & 0x3fff) << 4; };
  for (const uint64_t d : {o.from_registers ? o.b : o.a, o.b}) {
    if (d >> 62 != 1) simt::Fail("a matrix descriptor without the 128-byte swizzle");
  }
  for (int r = 0; r < 16; ++r) {
    for (int k = 0; k < 16; ++k) {
      if (o.from_registers) {
        const WgmmaOperand& lane = p.lanes[r % 8 * 4 + k % 8 / 2];
        a[r][k] = Register(lane.registers[r / 8 + k / 8 * 2], k % 2, o.half);
      } else {
        const auto row = static_cast<uint32_t>(warp % 4 * 16 + r);
        a[r][k] = Element(start(o.a) + row / 8 * stride(o.a) + row % 8 * 128 + static_cast<uint32_t>(k) * 2,
                          o.half);
      }
    }
  }
  for (uint32_t k = 0; k < 16; ++k) {
    for (uint32_t n = 0; n < static_cast<uint32_t>(o.n); ++n) {
      const uint32_t at =
          o.columns ? start(o.b) + n / 64 * leading(o.b) + k / 8 * stride(o.b) + k % 8 * 128 + n % 64 * 2
                    : start(o.b) + n / 8 * stride(o.b) + n % 8 * 128 + k * 2;
      b[k * static_cast<uint32_t>(o.n) + n] = Element(at, o.half);
    }
  }
  std::vector<float> row(static_cast<size_t>(o.n));
  for (int r = 0; r < 16; ++r) {
    const auto at = [&](int n) -> float& {
      return p.lanes[r % 8 * 4 + n % 8 / 2].d[n / 8 * 4 + r / 8 * 2 + n % 2];
    };
    for (int n = 0; n < o.n; ++n) row[static_cast<size_t>(n)] = o.add ? at(n) : 0.0f;
    for (int k = 0; k < 16; ++k) {
      const float* from = b.data() + static_cast<int64_t>(k) * o.n;
      for (int n = 0; n < o.n; ++n) row[static_cast<size_t>(n)] += a[r][k] * from[n];
    }
    for (int n = 0; n < o.n; ++n) at(n) = row[static_cast<size_t>(n)];
  }
}

void Issue(void* const* operands) {
  Product product;
  for (int i = 0; i < simt::kWarp; ++i) {
    product.lanes[i] = *static_cast<const WgmmaOperand*>(operands[i]);
    const WgmmaOperand &lane = product.lanes[i], &first = product.lanes[0];
    if (lane.a != first.a || lane.b != first.b || lane.add != first.add || lane.n != first.n) {
      simt::Fail("lanes of a wgmma differ in their descriptors");
    }
  }
  t_queues[ThreadIndex() / simt::kWarp].open.push_back(product);
}

void Commit(void* const*) {
  Queue& queue = t_queues[ThreadIndex() / simt::kWarp];
  queue.groups.push_back(std::move(queue.open));
  queue.open.clear();
}

void Wait(void* const* operands) {
  const int warp = ThreadIndex() / simt::kWarp;
  Queue& queue = t_queues[warp];
  simt::Delay();
  while (static_cast<int>(queue.groups.size()) > *static_cast<const int*>(operands[0])) {
    for (const Product& product : queue.groups.front()) Execute(product, warp);
    queue.groups.pop_front();
  }
}

struct Group {
  int arrived = 0, generation = 0;
};
thread_local Group t_groups[16];

}  // namespace

int CheckTensorMap(const TensorMap& map, int rank) {
  if (reinterpret_cast<uintptr_t>(map.data) % 16 != 0 || map.box[0] * 2 > 128) return kInvalidValue;
  for (int i = 0; i < rank; ++i) {
    if (map.dims[i] == 0 || map.dims[i] > uint64_t{1} << 32 || map.box[i] == 0 || map.box[i] > 256) {
      return kInvalidValue;
    }
  }
  for (int i = 0; i < rank - 1; ++i) {
    if (map.strides[i] % 16 != 0 || map.strides[i] >= uint64_t{1} << 40) return kInvalidValue;
  }
  return 0;
}

void BarrierInit(uint64_t* barrier, int arrivals) {
  simt::CheckShared(barrier, 8, "an mbarrier outside of shared memory or not aligned to 8");
  t_initialised[barrier] = simt::BlockBarriers();
  *reinterpret_cast<Barrier*>(barrier) = {0, static_cast<uint16_t>(arrivals), static_cast<int16_t>(arrivals),
                                          0};
}

void BarrierArrive(uint64_t* barrier) {
  --Of(barrier)->left;
  EndPhase(Of(barrier));
}

void BarrierExpect(uint64_t* barrier, int bytes) {
  Of(barrier)->bytes += bytes;
  BarrierArrive(barrier);
}

void BarrierWait(uint64_t* barrier, int parity) {
  WaitUntil([b = Of(barrier), parity] { return b->phase != parity; }, "an mbarrier's phase does not end");
}

void CopyBox3(void* shared, const TensorMap* map, uint64_t* barrier, int x, int y, int z) {
  if (SharedAddress(shared) % kSwizzlePeriod != 0)
    simt::Fail("a box to an address that is not aligned to 1 KiB");
  uint32_t to = SharedAddress(shared);
  int bytes = 0;
  for (uint32_t k = 0; k < map->box[2]; ++k) {
    for (uint32_t j = 0; j < map->box[1]; ++j) {
      for (uint32_t i = 0; i < map->box[0]; ++i, to += 2, bytes += 2) {
        const int64_t at[3] = {int64_t{x} + i, int64_t{y} + j, int64_t{z} + k};
        uint16_t v = 0;
        bool inside = true;
        for (int d = 0; d < 3; ++d)
          inside = inside && at[d] >= 0 && at[d] < static_cast<int64_t>(map->dims[d]);
        if (inside) {
          std::memcpy(&v,
                      map->data + at[0] * 2 + at[1] * static_cast<int64_t>(map->strides[0]) +
                          at[2] * static_cast<int64_t>(map->strides[1]),
                      2);
        }
        std::memcpy(SharedAt(SwizzledAddress(to)), &v, 2);
      }
    }
  }
  Of(barrier)->bytes -= bytes;
  EndPhase(Of(barrier));
}

void SyncGroup(int id, int threads) {
  Group& group = t_groups[id];
  const int generation = group.generation;
  if (++group.arrived == threads) {
    group.arrived = 0;
    ++group.generation;
    return;
  }
  WaitUntil([&] { return group.generation != generation; }, "a named barrier is not met");
}

void RunWgmma(WgmmaOperand* operand) { simt::WarpCollective(Issue, operand); }
void WgmmaCommit() { simt::WarpCollective(Commit, nullptr); }
void WgmmaWaitFor(int pending) { simt::WarpCollective(Wait, &pending); }

}  // namespace phalanx::cuda
