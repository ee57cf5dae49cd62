// The collectives of a device under the suites of tests/worker/collective: on the emulator, whose memory is
// the host's. Calls are waited for, so that they fail as calls of the other collectives do.

#include "base/status_macros.h"
#include "kernels/backends.h"
#include "tests/cuda/device_group.h"
#include "tests/worker/collective/group.h"
#include "tests/worker/forwarding_ops.h"

namespace phalanx {
namespace {

class SynchronousCollective : public ForwardingCollective {
 public:
  SynchronousCollective(std::unique_ptr<Ops> ops, std::unique_ptr<Collective> inner)
      : ForwardingCollective(std::move(inner)), ops_(std::move(ops)) {}
  ~SynchronousCollective() override { inner_.reset(); }

  absl::Status TreeAllReduce(int64_t count, float* out) override {
    return Wait(inner_->TreeAllReduce(count, out));
  }
  // With the group's own Ops, whatever `ops` is.
  absl::Status TreeAllReduceRmsNorm(int64_t count, float* out, Ops*, const RmsNormParams& norm) override {
    return Wait(inner_->TreeAllReduceRmsNorm(count, out, ops_.get(), norm));
  }
  absl::Status AllGather(const void* in, int64_t bytes, void* out) override {
    return Wait(inner_->AllGather(in, bytes, out));
  }
  absl::Status Broadcast(void* data, int64_t bytes, int root) override {
    return Wait(inner_->Broadcast(data, bytes, root));
  }
  absl::Status Barrier() override { return Wait(inner_->Barrier()); }

 private:
  absl::Status Wait(const absl::Status& enqueued) {
    PHX_RETURN_IF_ERROR(enqueued);
    PHX_RETURN_IF_ERROR(ops_->Synchronize(60000));
    return inner_->Completed();
  }

  const std::unique_ptr<Ops> ops_;
};

}  // namespace

std::vector<Transport> TestedTransports() {
  return {Transport::kVirtual, Transport::kPeer, Transport::kNccl};
}

absl::StatusOr<std::vector<std::unique_ptr<Collective>>> CreateTestedGroup(Transport transport,
                                                                           const CollectiveOptions& options) {
  std::vector<std::unique_ptr<Ops>> ops;
  std::vector<Ops*> views;
  for (int r = 0; r < options.size; ++r) {
    PHX_ASSIGN_OR_RETURN(std::unique_ptr<Ops> of_rank, CreateOps({kEmulatedCudaRung, Compute::kFast, 1}));
    ops.push_back(std::move(of_rank));
    views.push_back(ops.back().get());
  }
  const ExchangePath path = transport == Transport::kVirtual ? ExchangePath::kVirtual
                            : transport == Transport::kPeer  ? ExchangePath::kPeer
                                                             : ExchangePath::kNccl;
  PHX_ASSIGN_OR_RETURN(auto group, CreateDeviceGroup(views, options, path, 64 * 1024));
  for (size_t r = 0; r < group.size(); ++r) {
    group[r] = std::make_unique<SynchronousCollective>(std::move(ops[r]), std::move(group[r]));
  }
  return group;
}

}  // namespace phalanx
