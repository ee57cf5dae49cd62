// Launchers of the exchanges' kernels (all_reduce.cu), and what the ranks' devices share. As kernels.h.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels.h"

namespace phalanx::cuda {

inline constexpr int kMaxPeers = 16;       // ranks that see each other's memory
inline constexpr int kMaxSubtrees = 64;    // of all ranks
inline constexpr int kMaxPendingSums = 6;  // of the tree, beside the one in hand

// At the head of each rank's memory that peers map. Zeroed memory is a rank that has not come.
struct RankSignals {
  // Exchanges are counted from 1 (modulo 2^32); arrived[r] is the last one that rank r came to, written by
  // it.
  uint32_t arrived[kMaxPeers];
  uint64_t call[2][kMaxPeers];  // what it called there, by the count's parity; written before `arrived`
  // Of the owner's device alone. The last block of a kernel counts, so that a replayed graph goes on
  // counting.
  uint32_t done;   // exchanges whose kernel has ended
  int32_t blocks;  // of the running kernel that have ended
};

enum FaultKind : uint32_t { kNoFault = 0, kMissingFault = 1, kCallFault = 2 };

// In host memory that the device sees.
struct HostSignals {
  uint32_t stop;              // not 0: waits end. Set by the host, and by a device that gives up
  uint32_t stopped;           // a wait ended so
  uint32_t fault[kMaxPeers];  // FaultKind, by peer; written after the calls
  uint64_t own_call[kMaxPeers];
  uint64_t peer_call[kMaxPeers];
};

// How a kernel waits for its peers.
struct ArrivalArgs {
  int rank = 0;
  int size = 1;  // 1: nobody is waited for
  RankSignals* signals[kMaxPeers] = {};
  HostSignals* host = nullptr;
  uint64_t call = 0;
  uint64_t timeout_ns = 0;
};

// The order in which rows are added: after row i is taken, the pending sums are merged merges[i] times.
struct TreeArgs {
  const float* rows[kMaxSubtrees] = {};  // fp32 [count] of each subtree, left to right
  uint8_t merges[kMaxSubtrees] = {};
  int num_rows = 0;
};

// dst[begin, end) = the tree's sums. dst may be a row.
struct TreeSumArgs {
  ArrivalArgs arrival;
  TreeArgs tree;
  int64_t begin = 0, end = 0;
  float* dst = nullptr;
};
int LaunchTreeSum(const TreeSumArgs& args, void* stream);

// residual += sums of the tree (of the first product and then, where products is 2, of the second behind it,
// added first), y = rmsnorm(residual): RmsNorm's bits. norm.add, add2 and chosen are not looked at.
struct TreeSumNormArgs {
  ArrivalArgs arrival;
  TreeArgs tree;
  RmsNormArgs norm;
  int products = 1;
};
int LaunchTreeSumNorm(const TreeSumNormArgs& args, bool half, void* stream);

// to[to_begin[p], ...) = from[p] of bytes[p], for every part whose from is not null.
struct CopyPartsArgs {
  ArrivalArgs arrival;
  const char* from[kMaxPeers] = {};
  char* to[kMaxPeers] = {};
  int64_t bytes[kMaxPeers] = {};
  int num_parts = 0;
};
int LaunchCopyParts(const CopyPartsArgs& args, void* stream);

// Of mode fast: narrow [count] = the sums of num_rows rows of fp32 [count], from the first on, rounded to 16
// bits; and out = narrow.
struct NarrowSumsArgs {
  const float* sums = nullptr;
  int num_rows = 0;
  int64_t count = 0;
  uint16_t* narrow = nullptr;
  float* out = nullptr;
};
int LaunchNarrowSums(const NarrowSumsArgs& args, bool half, void* stream);
int LaunchWidenSums(const NarrowSumsArgs& args, bool half, void* stream);

}  // namespace phalanx::cuda
