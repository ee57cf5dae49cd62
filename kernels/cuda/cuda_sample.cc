// CudaOps::Sample, Route and GroupedMatmul: what the host gives them goes to the device in one copy a call.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/sampling.h"

namespace phalanx::cuda {
namespace {

constexpr int64_t kRowsAtOnce = 64;
constexpr int64_t kAlignment = 64;

// Arrays one behind the other.
class Plan {
 public:
  explicit Plan(std::vector<char>* bytes) : bytes_(*bytes) { bytes_.clear(); }
  template <typename T>
  int64_t Add(const std::vector<T>& values) {
    const size_t at = (bytes_.size() + kAlignment - 1) / kAlignment * kAlignment;
    bytes_.resize(at + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(T));
    return static_cast<int64_t>(at);
  }

 private:
  std::vector<char>& bytes_;
};

SampleRowArgs RowArgs(const SampleRow& row, std::vector<SampleBias>* bias, std::vector<SampleCount>* counts,
                      std::vector<int32_t>* banned) {
  SampleRowArgs args;
  args.temperature = row.temperature;
  args.top_p = row.top_p;
  args.min_p = row.min_p;
  args.repetition_penalty = row.repetition_penalty;
  args.frequency_penalty = row.frequency_penalty;
  args.presence_penalty = row.presence_penalty;
  args.top_k = row.top_k;
  args.target = row.target;
  args.num_top = row.num_top;
  args.adjusts = row.adjusts_logits();
  args.uniform = SampleUniform(row.seed, row.choice, row.position);
  args.bias_begin = static_cast<int32_t>(bias->size());
  args.counts_begin = static_cast<int32_t>(counts->size());
  args.banned_begin = static_cast<int32_t>(banned->size());
  if (row.target < 0 && row.bias != nullptr) {
    for (const TokenBias& b : *row.bias) bias->push_back({b.id, b.bias});
  }
  if (row.target < 0 && row.has_penalties()) {
    for (const TokenCounts::Entry& e : row.counts->entries()) {
      counts->push_back({e.id, static_cast<int32_t>(e.num_output)});
    }
  }
  for (const auto& ids : row.banned) {
    if (row.target < 0 && ids != nullptr) banned->insert(banned->end(), ids->begin(), ids->end());
  }
  args.bias_end = static_cast<int32_t>(bias->size());
  args.counts_end = static_cast<int32_t>(counts->size());
  args.banned_end = static_cast<int32_t>(banned->size());
  return args;
}

}  // namespace

absl::Status CudaOps::Sample(const SampleParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  if (p.num_rows == 0) return absl::OkStatus();
  if (p.vocab_size > 1 << 30) {
    return absl::InvalidArgumentError(
        absl::StrCat("Sample: vocab_size is ", p.vocab_size, ", must be below 2^30"));
  }
  std::vector<SampleRowArgs> rows;
  std::vector<SampleBias> bias;
  std::vector<SampleCount> counts;
  std::vector<int32_t> banned;
  for (const SampleRow& row : p.rows) rows.push_back(RowArgs(row, &bias, &counts, &banned));
  Plan plan(&sample_plan_);
  const int64_t rows_at = plan.Add(rows), bias_at = plan.Add(bias), counts_at = plan.Add(counts),
                banned_at = plan.Add(banned),
                shares_at = plan.Add(std::vector<int32_t>(p.share_begin.begin(), p.share_begin.end()));
  const auto bytes = static_cast<int64_t>(sample_plan_.size());
  PHX_ASSIGN_OR_RETURN(char* const device, sample_device_.Get<char>(bytes));
  PHX_RETURN_IF_ERROR(runtime_->Copy(device, sample_plan_.data(), bytes, CopyKind::kToDevice));

  SampleArgs args;
  args.logits = p.logits;
  args.num_rows = p.num_rows;
  args.vocab = static_cast<int>(p.vocab_size);
  args.num_shares = p.num_shares;
  args.share_cols = p.share_cols;
  args.share_begin = reinterpret_cast<const int32_t*>(device + shares_at);
  args.rows = reinterpret_cast<const SampleRowArgs*>(device + rows_at);
  args.bias = reinterpret_cast<const SampleBias*>(device + bias_at);
  args.counts = reinterpret_cast<const SampleCount*>(device + counts_at);
  args.banned = reinterpret_cast<const int32_t*>(device + banned_at);
  args.ids = p.ids;
  args.logprobs = p.logprobs;
  args.top_ids = p.top_ids;
  args.top_logprobs = p.top_logprobs;
  args.max_top = kMaxTopLogprobs;
  args.scratch_stride = SampleScratchBytes(args.vocab);
  const int64_t at_once = std::min(kRowsAtOnce, p.num_rows);
  PHX_ASSIGN_OR_RETURN(args.scratch, sample_scratch_.Get<char>(at_once * args.scratch_stride));
  for (args.first_row = 0; args.first_row < p.num_rows; args.first_row += at_once) {
    const auto count = static_cast<int>(std::min(at_once, p.num_rows - args.first_row));
    PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchSample(args, count, runtime_->stream()), "Sample"));
  }
  return absl::OkStatus();
}

absl::Status CudaOps::Route(const RouteParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  constexpr int kMaxExperts = 4096;
  if (p.num_experts > kMaxExperts) {
    return absl::UnimplementedError(
        absl::StrCat("Route: num_experts is ", p.num_experts, ", the CUDA kernel takes up to ", kMaxExperts));
  }
  RouteArgs args;
  args.scores = p.scores;
  args.bias = p.bias;
  args.num_tokens = p.num_tokens;
  args.num_experts = p.num_experts;
  args.num_groups = p.num_groups;
  args.top_groups = p.top_groups;
  args.top_k = p.top_k;
  args.sigmoid = p.sigmoid;
  args.normalize = p.normalize;
  args.scale = p.scale;
  args.ids = p.ids;
  args.weights = p.weights;
  return runtime_->ToStatus(LaunchRoute(args, runtime_->stream()), "Route");
}

absl::StatusOr<char*> CudaOps::TableCopy(const std::vector<char>& host) {
  std::unique_ptr<CudaBuffer>& copy = table_copies_[std::string(host.data(), host.size())];
  if (copy == nullptr) {
    PHX_ASSIGN_OR_RETURN(copy, CudaBuffer::Of(runtime_, host));
  }
  return copy->as<char>();
}

absl::Status CudaOps::GroupedMatmul(const GroupedMatmulParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  const int64_t choices = p.num_tokens * p.top_k;
  const int64_t n = p.y.cols;
  if (choices == 0 || n == 0) return absl::OkStatus();
  if (choices > 1 << 30) {
    return absl::InvalidArgumentError(
        absl::StrCat("GroupedMatmul: num_tokens * top_k is ", choices, ", must be below 2^30"));
  }
  void* const stream = runtime_->stream();
  const CudaWeight* any = nullptr;
  const PackedWeight* any_fast = nullptr;
  const Fp8Weight* any_fp8 = nullptr;
  int num_fast = 0;
  const absl::Status several = absl::InvalidArgumentError(
      "GroupedMatmul: experts are kept in several formats, must be of one type and one layout");
  std::vector<const uint16_t*> fragments;
  for (const PackedWeight* expert : p.experts) {
    fragments.push_back(nullptr);
    if (expert == nullptr) continue;
    if (const FastWeight* fast = AsFast(expert); fast != nullptr) {
      any_fast = fast;
      fragments.back() = fast->rows();
      ++num_fast;
      continue;
    }
    if (const Fp8Weight* fp8 = AsFp8(expert); fp8 != nullptr) {
      if (any_fp8 != nullptr && !any_fp8->LiesAs(*fp8)) return several;
      any_fast = any_fp8 = fp8;
      fragments.back() = reinterpret_cast<const uint16_t*>(fp8->rows());
      continue;
    }
    const CudaWeight* const before = any;
    PHX_ASSIGN_OR_RETURN(any, Own("GroupedMatmul", expert));
    if (before != nullptr && !before->LiesAs(*any)) return several;
    fragments.back() = any->fragments();
  }
  // Which experts there are; then, with weights, how shards share them out.
  const auto num_experts = static_cast<int>(fragments.size());
  std::vector<int32_t> tree_begin = {0};
  if (p.weights != nullptr) {
    const int end_shard = p.first_shard + static_cast<int>(p.expert_cuts.size()) - 1;
    for (const Subtree& tree : SubtreesOf(p.first_shard, end_shard)) {
      tree_begin.push_back(tree_begin.back() + tree.count);
    }
  }
  std::vector<char> host;
  Plan plan(&host);
  const int64_t fragments_at = plan.Add(fragments);
  const int64_t cuts_at = plan.Add(std::vector<int64_t>(p.expert_cuts.begin(), p.expert_cuts.end()));
  const int64_t trees_at = plan.Add(tree_begin);
  PHX_ASSIGN_OR_RETURN(char* const device, TableCopy(host));
  const auto* weights = reinterpret_cast<const uint16_t* const*>(device + fragments_at);

  const bool summed = p.weights != nullptr;
  const int64_t maps = num_experts * p.num_tokens;
  PHX_ASSIGN_OR_RETURN(int32_t* const lists, route_scratch_.Get<int32_t>(num_experts + 2 * maps));
  float* products = nullptr;
  if (summed) {
    PHX_ASSIGN_OR_RETURN(products, group_scratch_.Get<float>(choices * n));
  }
  if (any_fp8 != nullptr && (any != nullptr || num_fast > 0)) return several;
  if (any_fast != nullptr && any != nullptr) {
    return absl::UnimplementedError(
        "GroupedMatmul: some experts are packed as 16 bits and others are not; all must be of one type");
  }
  if (any_fast != nullptr) {
    PHX_RETURN_IF_ERROR(
        fast_->Grouped(p, *any_fast, weights, lists, summed ? products : p.y.data, summed ? n : p.y.stride));
  } else if (any != nullptr) {
    ExpertListArgs list;
    list.ids = p.ids;
    list.expert_weights = weights;
    list.num_tokens = static_cast<int>(p.num_tokens);
    list.top_k = p.top_k;
    list.num_experts = num_experts;
    list.counts = lists;
    list.row_map = lists + num_experts;
    list.y_map = list.row_map + maps;
    list.x_per_choice = p.x_per_choice;
    PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchExpertLists(list, stream), "GroupedMatmul"));
    const bool direct =
        any->aligned() && reinterpret_cast<uintptr_t>(p.x.data) % 16 == 0 && p.x.stride % 8 == 0;
    GemmArgs args = any->Args(!direct);
    args.x = static_cast<const uint16_t*>(p.x.data);
    args.x_stride = p.x.stride;
    if (!direct) {
      PackRowsArgs pack = any->PackArgs();
      pack.x = args.x;
      pack.x_stride = p.x.stride;
      pack.rows = static_cast<int>(p.x.rows);
      PHX_ASSIGN_OR_RETURN(pack.out, packed_x_.Get<uint16_t>(p.x.rows * pack.total_blocks * kGemmBlock));
      PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchPackRows(pack, stream), "GroupedMatmul"));
      args.x = pack.out;
      args.x_stride = int64_t{pack.total_blocks} * kGemmBlock;
    }
    args.rows = list.num_tokens;
    args.expert_weights = weights;
    args.num_experts = num_experts;
    args.counts = list.counts;
    args.row_map = list.row_map;
    args.y_map = list.y_map;
    args.y = summed ? products : p.y.data;
    args.y_stride = summed ? n : p.y.stride;
    args.y_fp32 = summed;
    PHX_RETURN_IF_ERROR(LaunchProduct("GroupedMatmul", args));
  }
  if (!summed) {
    ClearMissingArgs clear;
    clear.ids = p.ids;
    clear.expert_weights = weights;
    clear.num_experts = num_experts;
    clear.choices = static_cast<int>(choices);
    clear.n = static_cast<int>(n);
    clear.y = p.y.data;
    clear.y_stride = p.y.stride;
    return runtime_->ToStatus(LaunchClearMissing(clear, stream), "GroupedMatmul");
  }
  CombineChoicesArgs combine;
  combine.products = products;
  combine.ids = p.ids;
  combine.weights = p.weights;
  combine.expert_weights = weights;
  combine.num_tokens = static_cast<int>(p.num_tokens);
  combine.top_k = p.top_k;
  combine.n = static_cast<int>(n);
  combine.num_trees = static_cast<int>(tree_begin.size()) - 1;
  combine.expert_cuts = reinterpret_cast<const int64_t*>(device + cuts_at);
  combine.tree_begin = reinterpret_cast<const int32_t*>(device + trees_at);
  combine.y = static_cast<float*>(p.y.data);
  combine.y_stride = p.y.stride;
  combine.tree_stride = p.tree_stride == 0 ? p.y.rows * p.y.stride : p.tree_stride;
  return runtime_->ToStatus(LaunchCombineChoices(combine, stream), "GroupedMatmul");
}

}  // namespace phalanx::cuda
