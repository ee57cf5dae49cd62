// NCCL's functions between threads of one process, for the path over NCCL where there is no GPU: a library of
// the same contract, as far as we use it. A communicator does not block: operations are under way until
// somebody asks how they are. One whose peer is gone stays so, as on a device.
#pragma once

#include "kernels/cuda/nccl.h"

namespace phalanx::cuda {

const NcclApi* FakeNccl();
// Calls of AllReduce by all ranks so far.
int FakeAllReduces();

// Of all communicators, from now on.
struct FakeNcclFaults {
  bool abort_hangs = false;  // CommAbort does not return for 3 s
  int async_error = 0;       // what CommGetAsyncError finds, where not 0
};
void SetFakeNcclFaults(const FakeNcclFaults& faults);

}  // namespace phalanx::cuda
