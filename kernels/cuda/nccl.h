// The few functions of NCCL that we use, found at run time (dlopen), and the types that they take, so that
// neither building nor starting needs NCCL. The values are those of its nccl.h.
#pragma once

#include <climits>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace phalanx::cuda {

using NcclComm = void*;
struct NcclUniqueId {
  char bytes[128];
};
enum NcclResult : int { kNcclSuccess = 0, kNcclInProgress = 7 };
inline constexpr int kNcclUint8 = 1, kNcclFloat16 = 6, kNcclBfloat16 = 9;  // ncclDataType_t
inline constexpr int kNcclSum = 0;                                         // ncclRedOp_t

// ncclConfig_t as of 2.28. An older library takes the fields that it knows: they are in the order of their
// coming, and `size` says how many there are.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef;
  unsigned version = 22800;
  int blocking = 0;
  int cga_cluster_size = INT_MIN;
  int min_ctas = INT_MIN;
  int max_ctas = INT_MIN;
  const char* net_name = nullptr;
  int split_share = INT_MIN;
  int traffic_class = INT_MIN;
  const char* comm_name = nullptr;
  int collnet_enable = INT_MIN;
  int cta_policy = INT_MIN;
  int shrink_share = INT_MIN;
  int nvls_ctas = INT_MIN;
  int channels_per_net_peer = INT_MIN;
  int nvlink_centric_sched = INT_MIN;
};

struct NcclApi {
  int (*GetVersion)(int* version) = nullptr;
  int (*GetUniqueId)(NcclUniqueId* id) = nullptr;
  int (*CommInitRankConfig)(NcclComm* comm, int size, NcclUniqueId id, int rank,
                            NcclConfig* config) = nullptr;
  int (*CommGetAsyncError)(NcclComm comm, int* state) = nullptr;
  int (*CommAbort)(NcclComm comm) = nullptr;
  int (*GroupStart)() = nullptr;
  int (*GroupEnd)() = nullptr;
  int (*Send)(const void* data, size_t count, int type, int peer, NcclComm comm, void* stream) = nullptr;
  int (*Recv)(void* data, size_t count, int type, int peer, NcclComm comm, void* stream) = nullptr;
  const char* (*GetErrorString)(int result) = nullptr;
  const char* (*GetLastError)(NcclComm comm) = nullptr;
  int (*AllReduce)(const void* data, void* out, size_t count, int type, int op, NcclComm comm,
                   void* stream) = nullptr;
};

// libnccl.so.2, opened once, where the system finds it or in the folders of the toolkit and of Python's
// wheels that NCCL_LIBRARY_PATH names. FailedPrecondition saying what is missing.
absl::StatusOr<const NcclApi*> LoadNccl();
// From now on LoadNccl gives `api`; null: the library again. For tests.
void SetNcclForTesting(const NcclApi* api);
// "2.28.9".
std::string NcclVersionText(int version);

}  // namespace phalanx::cuda
