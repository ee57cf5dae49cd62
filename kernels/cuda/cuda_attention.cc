// CudaOps::Attention, and Replay, whose one argument it is.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/hopper.h"

namespace phalanx::cuda {

absl::StatusOr<AttentionPlan*> CudaOps::PlanOf(const AttentionLayout& layout) {
  if (recording_ == nullptr) {
    if (attention_plan_ == nullptr || !(attention_plan_->layout() == layout)) {
      PHX_ASSIGN_OR_RETURN(attention_plan_, AttentionPlan::Create(runtime_, layout, /*fixed=*/false));
    }
    return attention_plan_.get();
  }
  const auto found =
      std::find_if(replay_plans_.begin(), replay_plans_.end(),
                   [&](const std::unique_ptr<AttentionPlan>& plan) { return plan->layout() == layout; });
  if (found != replay_plans_.end()) return found->get();
  PHX_ASSIGN_OR_RETURN(replay_plans_.emplace_back(), AttentionPlan::Create(runtime_, layout, /*fixed=*/true));
  return replay_plans_.back().get();
}

absl::Status CudaOps::Attention(const AttentionParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  const auto* cache = dynamic_cast<const CudaKvCache*>(p.cache);
  if (cache == nullptr || cache->owner() != runtime_.get()) {
    return absl::InvalidArgumentError("Attention: cache was made by other Ops");
  }
  AttentionArgs args;
  args.cache = cache->Layer(p.layer);
  args.latent = p.latent_value_dim > 0;
  args.value_dim = args.latent ? p.latent_value_dim : cache->shape().value_dim;
  if (args.value_dim == 0 || p.num_heads == 0) return absl::OkStatus();
  if (!AttentionSupports(args.cache.key_dim, args.value_dim)) {
    return absl::UnimplementedError(
        absl::StrCat("Attention: key_dim ", args.cache.key_dim, " and ", args.value_dim,
                     " channels of values; the CUDA kernels take up to 576 and 512"));
  }
  args.q = static_cast<const uint16_t*>(p.q.data);
  args.q_stride = p.q.stride;
  args.out = static_cast<uint16_t*>(p.out.data);
  args.out_stride = p.out.stride;
  args.scale = p.scale;
  PHX_ASSIGN_OR_RETURN(AttentionPlan* const plan, PlanOf(LayoutOf(p, cache->num_blocks(), args.value_dim)));
  if (recording_ == nullptr) {
    const bool hopper =
        fast_ != nullptr && !IsQuantised(info_.kv_type) && fast_->hopper() && p.scale > 0 &&
        cache->num_blocks() * args.cache.num_heads < int64_t{1} << 30 &&
        HopperAttentionSupports(args.cache.key_dim, args.value_dim, args.cache.block_size, args.latent);
    PHX_RETURN_IF_ERROR(plan->Upload(p.sequences, hopper));
  } else if (std::find(recording_->plans.begin(), recording_->plans.end(), plan) == recording_->plans.end()) {
    // The first call of this piece of work makes the items for all.
    recording_->plans.push_back(plan);
    if (!recording_->records) PHX_RETURN_IF_ERROR(plan->Upload(recording_->sequences));
    PHX_RETURN_IF_ERROR(plan->MakeItems());
  }
  return plan->Attend(args, p.q.rows, half_);
}

absl::Status CudaOps::Enqueue(Recording* recording, const std::function<absl::Status()>& enqueue) {
  recording_ = recording;
  absl::Status status = enqueue();
  recording_ = nullptr;
  return status;
}

absl::StatusOr<std::unique_ptr<Graph>> CudaOps::Record(Recording* recording,
                                                       const std::function<absl::Status()>& enqueue) {
  PHX_RETURN_IF_ERROR(runtime_->StartRecording());
  const absl::Status enqueued = Enqueue(recording, enqueue);
  absl::StatusOr<std::unique_ptr<Graph>> graph = runtime_->FinishRecording();
  if (!enqueued.ok()) return enqueued;
  return graph;
}

absl::Status CudaOps::Replay(const ReplayParams& p, const std::function<absl::Status()>& enqueue) {
  if (!info_.replays) return enqueue();
  if (recording_ != nullptr) return absl::FailedPreconditionError("Replay: called inside another");
  Replayed& work = replayed_[p.key];
  if (work.graph != nullptr) {
    for (AttentionPlan* plan : work.plans) PHX_RETURN_IF_ERROR(plan->Upload(p.sequences));
    ++replay_stats_.replayed;
    return runtime_->Launch(work.graph.get());
  }
  // Once for its work, which takes the memory that it needs, and once for the recording.
  Recording first{.records = false, .sequences = p.sequences, .plans = {}};
  PHX_RETURN_IF_ERROR(Enqueue(&first, enqueue));
  if (work.refused) return absl::OkStatus();
  Recording second{.records = true, .sequences = p.sequences, .plans = {}};
  absl::StatusOr<std::unique_ptr<Graph>> graph = Record(&second, enqueue);
  const absl::Status status = graph.status();
  if (!status.ok()) {
    if (graphs_ == DeviceGraphs::kOn) {
      return absl::Status(status.code(), absl::StrCat("Replay: cannot be recorded: ", status.message()));
    }
    work.refused = true;
    ++replay_stats_.not_recorded;
    return absl::OkStatus();
  }
  work.graph = *std::move(graph);
  work.plans = std::move(second.plans);
  ++replay_stats_.recorded;
  replay_stats_.bytes += work.graph->bytes();
  // What it uses stays where it is.
  for (Scratch* scratch : {&packed_x_, &partials_, &widened_, &route_scratch_, &group_scratch_})
    scratch->Keep();
  if (fast_ != nullptr) fast_->KeepScratch();
  return absl::OkStatus();
}

void CudaOps::StopReplays() {
  replayed_.clear();
  info_.replays = false;
  replay_stats_.recorded = replay_stats_.bytes = 0;
}

}  // namespace phalanx::cuda
