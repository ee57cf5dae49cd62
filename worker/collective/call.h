// What a call of a collective is, and what is wrong with it: the same words whatever carries the bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/collective/collective.h"

namespace phalanx {

struct CollectiveCall {
  enum Kind : uint8_t {
    kConnect = 1,
    kBarrier,
    kTreeAllReduce,
    kTreeAllReduceGather,
    kAllGather,
    kBroadcast
  };
  Kind kind;
  uint8_t root = 0;
  int64_t count = 0;  // below 2^48

  // In 64 bits, so that ranks can compare theirs.
  uint64_t packed() const {
    return uint64_t{kind} << 56 | uint64_t{root} << 48 | static_cast<uint64_t>(count);
  }
  static CollectiveCall Unpack(uint64_t packed);
  std::string ToString() const;
};

// Errors of this rank's arguments, naming the value and what would be right.
absl::Status CheckSumsBuffer(const CollectiveOptions& options, int64_t count);
// `sums_count`: of SumsBuffer since the last TreeAllReduce; -1: none.
absl::Status CheckTreeAllReduce(int64_t count, int64_t sums_count);
absl::Status CheckAllGather(const CollectiveOptions& options, int64_t bytes);
absl::Status CheckBroadcast(const CollectiveOptions& options, int64_t bytes, int root);

// FailedPrecondition naming both ranks and both calls.
absl::Status CallsDiffer(int peer, const CollectiveCall& peers, int rank, const CollectiveCall& own);
// DeadlineExceeded naming the ranks: of kConnect they may be anywhere, else they live.
absl::Status DidNotCome(const std::vector<int>& missing, int size, const CollectiveCall& call,
                        int64_t timeout_ms);
// Between two signs of life.
inline int64_t BeatMs(const CollectiveOptions& options) { return options.silence_ms * 2 / 7; }

}  // namespace phalanx
