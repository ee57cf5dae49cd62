// A group of ranks in one process: a thread and an Ops per rank, joined by thread collectives.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/model_config.h"
#include "base/shard_plan.h"
#include "base/status_macros.h"
#include "kernels/ops.h"
#include "worker/collective/collective.h"
#include "worker/model_runner.h"

namespace phalanx {

struct TestGroupOptions {
  int num_ranks = 1;
  int num_shards = kDefaultShards;
  OpsOptions ops;
  ModelRunnerOptions runner;
  std::function<void(int rank, ModelRunnerOptions*)> change_runner;  // makes one rank differ; may be null
  int64_t timeout_ms = 60000;                                        // of one exchange
  // Makes the ranks' collectives of their Ops; null: between threads, in host memory.
  std::function<absl::StatusOr<std::vector<std::unique_ptr<Collective>>>(const std::vector<Ops*>& ops,
                                                                         const CollectiveOptions& options)>
      create_collectives;
  // Put between the runner and the real thing; null: nothing.
  std::function<std::unique_ptr<Ops>(int rank, std::unique_ptr<Ops>)> wrap_ops;
  std::function<std::unique_ptr<Collective>(int rank, std::unique_ptr<Collective>)> wrap_collective;
};

class TestGroup {
 public:
  static absl::StatusOr<std::unique_ptr<TestGroup>> Create(const Checkpoint& checkpoint,
                                                           const TestGroupOptions& options) {
    auto group = std::unique_ptr<TestGroup>(new TestGroup());
    group->config_ = checkpoint.config();
    PHX_ASSIGN_OR_RETURN(group->plan_, MakeShardPlan(group->config_, options.num_shards, options.num_ranks));
    const CollectiveNeeds needs = CollectiveNeedsOf(group->config_, group->plan_, options.runner);
    CollectiveOptions collective;
    collective.size = options.num_ranks;
    collective.num_shards = options.num_shards;
    collective.id = "test";
    collective.max_elements = needs.max_elements;
    // Wrappers may gather whole sums.
    collective.max_gather_bytes = std::max<int64_t>(needs.max_gather_bytes, needs.max_elements * 4);
    collective.timeout_ms = options.timeout_ms;
    for (int r = 0; r < options.num_ranks; ++r) {
      PHX_ASSIGN_OR_RETURN(std::unique_ptr<Ops> ops, CreateOps(options.ops));
      group->ops_.push_back(options.wrap_ops ? options.wrap_ops(r, std::move(ops)) : std::move(ops));
    }
    if (options.create_collectives) {
      std::vector<Ops*> ops;
      for (const auto& of_rank : group->ops_) ops.push_back(of_rank.get());
      PHX_ASSIGN_OR_RETURN(group->collectives_, options.create_collectives(ops, collective));
    } else {
      PHX_ASSIGN_OR_RETURN(group->collectives_, CreateThreadCollectives(collective));
    }
    for (int r = 0; r < options.num_ranks; ++r) {
      if (options.wrap_collective) {
        group->collectives_[r] = options.wrap_collective(r, std::move(group->collectives_[r]));
      }
    }
    group->runners_.resize(options.num_ranks);
    PHX_RETURN_IF_ERROR(group->OnAllRanks([&](int r) -> absl::Status {
      ModelRunnerOptions runner = options.runner;
      if (options.change_runner) options.change_runner(r, &runner);
      PHX_ASSIGN_OR_RETURN(group->runners_[r],
                           ModelRunner::Create(checkpoint, group->config_, group->plan_, r,
                                               group->ops_[r].get(), group->collectives_[r].get(), runner));
      return absl::OkStatus();
    }));
    return group;
  }

  // Runs `work` for every rank at once, rank 0 on this thread; the first error in order of ranks.
  absl::Status OnAllRanks(const std::function<absl::Status(int rank)>& work) {
    std::vector<absl::Status> statuses(ops_.size());
    std::vector<std::thread> threads;
    for (size_t r = 1; r < ops_.size(); ++r) {
      threads.emplace_back([&, r] { statuses[r] = work(static_cast<int>(r)); });
    }
    statuses[0] = work(0);
    for (std::thread& thread : threads) thread.join();
    for (const absl::Status& status : statuses) PHX_RETURN_IF_ERROR(status);
    return absl::OkStatus();
  }

  // A whole step on all ranks, as the loops of leader and follower do it. `logits` may be null.
  absl::StatusOr<StepResult> Step(const StepPlan& plan, const std::vector<SampleRow>& samples,
                                  std::vector<float>* logits = nullptr) {
    StepResult result;
    PHX_RETURN_IF_ERROR(OnAllRanks([&](int r) -> absl::Status {
      PHX_RETURN_IF_ERROR(runners_[r]->Launch(plan));
      if (r == 0) {
        PHX_ASSIGN_OR_RETURN(result, runners_[r]->Sample(samples));
        if (logits != nullptr) {
          PHX_ASSIGN_OR_RETURN(*logits, runners_[r]->ReadLogits());
        }
      }
      return runners_[r]->ShareSampled();
    }));
    return result;
  }

  const ModelConfig& config() const { return config_; }
  const ShardPlan& plan() const { return plan_; }
  ModelRunner& runner(int rank) { return *runners_[rank]; }
  Ops& ops(int rank) { return *ops_[rank]; }

 private:
  TestGroup() = default;

  ModelConfig config_;
  ShardPlan plan_;
  std::vector<std::unique_ptr<Collective>> collectives_;
  std::vector<std::unique_ptr<Ops>> ops_;
  std::vector<std::unique_ptr<ModelRunner>> runners_;
};

// Keeps block tables as a leader does: hands out block ids in a given order and fills in a plan's deltas.
class TestTables {
 public:
  TestTables(int64_t num_blocks, int block_size, std::vector<int32_t> order)
      : tables_(num_blocks), block_size_(block_size), free_(std::move(order)) {}

  // Adds the blocks that positions [0, end) of `sequence` need and it does not have.
  void Grow(StepPlan* plan, uint32_t sequence, int64_t end) {
    std::vector<int32_t>& held = Held(sequence);
    PlanBlocks delta{.sequence = sequence, .first_index = static_cast<uint32_t>(held.size()), .blocks = {}};
    while (static_cast<int64_t>(held.size()) * block_size_ < end) {
      held.push_back(free_.back());
      delta.blocks.push_back(free_.back());
      free_.pop_back();
    }
    if (!delta.blocks.empty()) plan->blocks.push_back(std::move(delta));
  }
  void Release(StepPlan* plan, uint32_t sequence) {
    plan->released.push_back(sequence);
    std::vector<int32_t>& held = Held(sequence);
    free_.insert(free_.begin(), held.begin(), held.end());
    held.clear();
  }
  // Numbers the plan and sets its checksum.
  void Finish(StepPlan* plan) {
    plan->step = ++step_;
    tables_.Apply(*plan).IgnoreError();  // complains of the checksum, which is not set yet
    plan->checksum = tables_.Checksum();
  }

 private:
  std::vector<int32_t>& Held(uint32_t sequence) {
    if (held_.size() <= sequence) held_.resize(sequence + 1);
    return held_[sequence];
  }

  BlockTables tables_;
  int block_size_;
  std::vector<int32_t> free_;
  std::vector<std::vector<int32_t>> held_;
  uint64_t step_ = 0;
};

}  // namespace phalanx
