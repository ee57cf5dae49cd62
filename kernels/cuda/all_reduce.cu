// Kernels of the exchanges between ranks. A kernel first tells the peers that this rank came (what it
// enqueued before is then seen by them), waits until they came, and then reads their memory.
//
// No block waits for another block of its own kernel: every block tells the peers the same, and what a kernel
// writes for the peers is only said by the next one. So nothing need run at the same time as anything else of
// its rank.
//
// Reads of the peers' memory come behind the acquire of the flag by a thread of the block and a barrier; a
// slot is not written again before all ranks came to a later exchange.
#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/rows.cuh"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 64;
constexpr int kGroup = 8;   // rows that are loaded before they are added
constexpr int kUnit = 4;    // elements of a thread
constexpr int kSpins = 32;  // looks at the flag between two at the clock

// True when all peers came to this exchange, to the same call. Else the host knows why, and the kernel must
// touch nothing. All threads of the block call it.
PHX_DEVICE bool Arrive(const ArrivalArgs& a, int* failed) {
  if (a.size == 1) return true;
  RankSignals* const own = a.signals[a.rank];
  const uint32_t count = own->done + (PHX_FAULT(kExchangeOldEpoch) ? 0 : 1);
  const int peer = ThreadIndex();
  if (peer == 0) *failed = 0;
  SyncThreads();
  const bool has_peer = peer < a.size && peer != a.rank;
  if (has_peer) {
    a.signals[peer]->call[count & 1][a.rank] = a.call;
    StoreReleaseSystem(&a.signals[peer]->arrived[a.rank], count);
  }
  SyncThreads();  // all peers are told before anyone waits
  if (has_peer) {
    const uint32_t* const arrived = &own->arrived[peer];
    const uint64_t start = GlobalNanoseconds();
    bool came = PHX_FAULT(kExchangeNoWait), stopped = false;
    while (true) {
      for (int i = 0; i < kSpins && !came; ++i) {
        came = static_cast<int32_t>(LoadAcquireSystem(arrived) - count) >= 0;
        if (!came) SpinPause();
      }
      if (came) break;
      stopped = LoadAcquireSystem(&a.host->stop) != 0;
      if (stopped || GlobalNanoseconds() - start > a.timeout_ns) break;
    }
    const uint64_t call = came ? own->call[count & 1][peer] : 0;
    if (stopped) {
      StoreReleaseSystem(&a.host->stopped, 1);
    } else if (!came || call != a.call) {
      a.host->own_call[peer] = a.call;
      a.host->peer_call[peer] = call;
      StoreReleaseSystem(&a.host->fault[peer], came ? kCallFault : kMissingFault);
    }
    if (stopped || !came || call != a.call) *failed = 1;
  }
  SyncThreads();
  if (*failed != 0 && peer == 0) StoreReleaseSystem(&a.host->stop, 1);
  return *failed == 0;
}

// All threads of the block, at its end.
PHX_DEVICE void Depart(const ArrivalArgs& a) {
  if (a.size == 1) return;
  SyncThreads();
  if (ThreadIndex() != 0) return;
  RankSignals* const own = a.signals[a.rank];
  if (AtomicAdd(&own->blocks, 1) == GridX() - 1) {
    own->blocks = 0;
    own->done += 1;
  }
}

PHX_DEVICE void LoadUnit(const float* from, int64_t count, float (&v)[kUnit]) {
  if (count >= kUnit && (reinterpret_cast<uintptr_t>(from) & 15) == 0) {
    const Quad q = LoadQuad(from);
    PHX_UNROLL
    for (int i = 0; i < kUnit; ++i) v[i] = FloatFromBits(q.v[i]);
    return;
  }
  PHX_UNROLL
  for (int i = 0; i < kUnit; ++i) v[i] = i < count ? from[i] : 0.0f;
}

PHX_DEVICE void StoreUnit(float* to, int64_t count, const float (&v)[kUnit]) {
  if (count >= kUnit && (reinterpret_cast<uintptr_t>(to) & 15) == 0) {
    Quad q;
    PHX_UNROLL
    for (int i = 0; i < kUnit; ++i) q.v[i] = FloatBits(v[i]);
    StoreQuad(to, q);
    return;
  }
  PHX_UNROLL
  for (int i = 0; i < kUnit; ++i) {
    if (i < count) to[i] = v[i];
  }
}

// sum = the tree's sums of elements [at, at + count). The pending sums are moved up and down through
// registers: an index that is known only when it runs would put them into memory.
PHX_DEVICE void SumUnit(const TreeArgs& tree, int64_t at, int64_t count, float (&sum)[kUnit]) {
  float pending[kMaxPendingSums][kUnit];
  PHX_UNROLL
  for (int d = 0; d < kMaxPendingSums; ++d) {
    PHX_UNROLL
    for (int i = 0; i < kUnit; ++i) pending[d][i] = 0;
  }
  PHX_UNROLL
  for (int i = 0; i < kUnit; ++i) sum[i] = 0;
  PHX_UNROLL_BY(1)
  for (int first = 0; first < tree.num_rows; first += kGroup) {
    float v[kGroup][kUnit];
    PHX_UNROLL
    for (int r = 0; r < kGroup; ++r) {
      if (first + r < tree.num_rows) LoadUnit(tree.rows[first + r] + at, count, v[r]);
    }
    PHX_UNROLL
    for (int r = 0; r < kGroup; ++r) {
      if (first + r >= tree.num_rows) break;
      PHX_UNROLL
      for (int i = 0; i < kUnit; ++i) {
        PHX_UNROLL
        for (int d = kMaxPendingSums - 1; d > 0; --d) pending[d][i] = pending[d - 1][i];
        pending[0][i] = sum[i];
        sum[i] = v[r][i];
      }
      PHX_UNROLL_BY(1)
      for (int m = tree.merges[first + r]; m > 0; --m) {
        PHX_UNROLL
        for (int i = 0; i < kUnit; ++i) {
          sum[i] = Add(pending[0][i], sum[i]);
          PHX_UNROLL
          for (int d = 0; d + 1 < kMaxPendingSums; ++d) pending[d][i] = pending[d + 1][i];
        }
      }
    }
  }
}

PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) TreeSum(const PHX_PARAMETER TreeSumArgs p) {
  WaitForPrevious();
  int* const failed = reinterpret_cast<int*>(SharedMemory());
  if (Arrive(p.arrival, failed)) {
    for (int64_t at = p.begin + (int64_t{BlockX()} * kThreads + ThreadIndex()) * kUnit; at < p.end;
         at += int64_t{GridX()} * kThreads * kUnit) {
      float sum[kUnit];
      SumUnit(p.tree, at, p.end - at, sum);
      StoreUnit(p.dst + at, p.end - at, sum);
    }
  }
  Depart(p.arrival);
}

// A block a row, as RmsNorm (rows.cu).
template <bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(kNormThreads, 1) TreeSumNorm(const PHX_PARAMETER TreeSumNormArgs p) {
  WaitForPrevious();
  int* const failed = reinterpret_cast<int*>(SharedMemory() + kNormSharedBytes);
  const RmsNormArgs& n = p.norm;
  const int64_t row = BlockX();
  if (Arrive(p.arrival, failed)) {
    uint16_t* const residual = n.residual + row * n.residual_stride;
    float v[8];
    float sum = 0;
    for (int64_t c = ThreadIndex() * 8; c < n.cols; c += kNormThreads * 8) {
      const int64_t count = n.cols - c;
      Load8<kHalf>(residual + c, count, v);
      PHX_UNROLL
      for (int h = 0; h < 8; h += kUnit) {
        float a[kUnit];
        SumUnit(p.tree, row * n.cols + c + h, count - h, a);
        if (p.products > 1) {
          float b[kUnit];
          SumUnit(p.tree, (n.rows + row) * n.cols + c + h, count - h, b);
          PHX_UNROLL
          for (int i = 0; i < kUnit; ++i) a[i] = Add(a[i], b[i]);
        }
        PHX_UNROLL
        for (int i = 0; i < kUnit; ++i) v[h + i] = ToFloat<kHalf>(FromFloat<kHalf>(Add(v[h + i], a[i])));
      }
      Store8<kHalf>(residual + c, count, v);
      PHX_UNROLL
      for (int i = 0; i < 8; ++i) sum = Fma(v[i], v[i], sum);
    }
    FinishNorm<kHalf>(n, row, true, row, sum);
  }
  Depart(p.arrival);
}

PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) CopyParts(const PHX_PARAMETER CopyPartsArgs p) {
  WaitForPrevious();
  int* const failed = reinterpret_cast<int*>(SharedMemory());
  if (Arrive(p.arrival, failed)) {
    const int64_t thread = int64_t{BlockX()} * kThreads + ThreadIndex();
    const int64_t threads = int64_t{GridX()} * kThreads;
    PHX_UNROLL_BY(1)
    for (int part = 0; part < p.num_parts; ++part) {
      const char* const from = p.from[part];
      char* const to = p.to[part];
      if (from == nullptr) continue;
      const bool aligned = ((reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) & 15) == 0;
      const int64_t quads = aligned ? p.bytes[part] / 16 : 0;
      for (int64_t i = thread; i < quads; i += threads) StoreQuad(to + i * 16, LoadQuad(from + i * 16));
      for (int64_t i = quads * 16 + thread; i < p.bytes[part]; i += threads) to[i] = from[i];
    }
  }
  Depart(p.arrival);
}

PHX_DEVICE void StoreFloats8(float* to, int64_t count, const float (&v)[8]) {
  PHX_UNROLL
  for (int h = 0; h < 8; h += kUnit) {
    const float half[kUnit] = {v[h], v[h + 1], v[h + 2], v[h + 3]};
    StoreUnit(to + h, count - h, half);
  }
}

template <bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) NarrowSums(NarrowSumsArgs p) {
  WaitForPrevious();
  for (int64_t at = (int64_t{BlockX()} * kThreads + ThreadIndex()) * 8; at < p.count;
       at += int64_t{GridX()} * kThreads * 8) {
    float sum[8] = {};
    PHX_UNROLL_BY(1)
    for (int r = 0; r < p.num_rows; ++r) {
      float v[8];
      LoadFloats8(p.sums + r * p.count + at, p.count - at, v);
      PHX_UNROLL
      for (int i = 0; i < 8; ++i) sum[i] = Add(sum[i], v[i]);
    }
    Store8<kHalf>(p.narrow + at, p.count - at, sum);
  }
}

template <bool kHalf>
PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) WidenSums(NarrowSumsArgs p) {
  WaitForPrevious();
  for (int64_t at = (int64_t{BlockX()} * kThreads + ThreadIndex()) * 8; at < p.count;
       at += int64_t{GridX()} * kThreads * 8) {
    float v[8];
    Load8<kHalf>(p.narrow + at, p.count - at, v);
    StoreFloats8(p.out + at, p.count - at, v);
  }
}

int Blocks(int64_t units) {
  const int64_t blocks = (units + kThreads - 1) / kThreads;
  return static_cast<int>(blocks < 1 ? 1 : blocks > kMaxBlocks ? kMaxBlocks : blocks);
}

GridDim Grid(int blocks) { return GridDim{static_cast<unsigned>(blocks), 1, 1}; }

// The whole device, as no block waits for a peer.
GridDim GridOfSums(const NarrowSumsArgs& p) {
  const int64_t blocks = (p.count + kThreads * 8 - 1) / (kThreads * 8);
  return Grid(static_cast<int>(blocks < 1 ? 1 : blocks > 1024 ? 1024 : blocks));
}

}  // namespace

int LaunchTreeSum(const TreeSumArgs& p, void* stream) {
  const int blocks = Blocks((p.end - p.begin + kUnit - 1) / kUnit);
  return LaunchKernel("TreeSum", TreeSum, Grid(blocks), kThreads, 128, stream, p);
}

int LaunchTreeSumNorm(const TreeSumNormArgs& p, bool half, void* stream) {
  return LaunchKernel("TreeSumNorm", half ? TreeSumNorm<true> : TreeSumNorm<false>,
                      Grid(static_cast<int>(p.norm.rows)), kNormThreads, kNormSharedBytes + 16, stream, p);
}

int LaunchNarrowSums(const NarrowSumsArgs& p, bool half, void* stream) {
  return LaunchKernel("NarrowSums", half ? NarrowSums<true> : NarrowSums<false>, GridOfSums(p), kThreads, 0,
                      stream, p);
}

int LaunchWidenSums(const NarrowSumsArgs& p, bool half, void* stream) {
  return LaunchKernel("WidenSums", half ? WidenSums<true> : WidenSums<false>, GridOfSums(p), kThreads, 0,
                      stream, p);
}

int LaunchCopyParts(const CopyPartsArgs& p, void* stream) {
  int64_t most = 0;
  for (int i = 0; i < p.num_parts; ++i) most = p.bytes[i] > most ? p.bytes[i] : most;
  return LaunchKernel("CopyParts", CopyParts, Grid(Blocks((most + 15) / 16)), kThreads, 128, stream, p);
}

}  // namespace phalanx::cuda
