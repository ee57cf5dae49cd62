// CudaOps::Attention: cuts a call into the kernels' items.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_ops.h"

namespace phalanx::cuda {
namespace {

// With fewer blocks than this a prefill's chunks are shared out too: no chip is filled otherwise. How items
// are cut changes no bit.
constexpr int64_t kFewItems = 264;
constexpr int64_t kMaxPartials = int64_t{1} << 18;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

absl::Status CudaOps::PlanAttention(const AttentionParams& p) {
  const KvCacheShape& shape = p.cache->shape();
  const int value_dim = p.latent_value_dim > 0 ? p.latent_value_dim : shape.value_dim;
  std::vector<std::vector<int32_t>> heads_of(static_cast<size_t>(shape.num_kv_heads));
  for (int h = 0; h < p.num_heads; ++h) heads_of[static_cast<size_t>(p.kv_head_of[h])].push_back(h);
  std::vector<int32_t> head_list, first_head;
  size_t most_heads = 0;
  for (const std::vector<int32_t>& heads : heads_of) {
    first_head.push_back(static_cast<int32_t>(head_list.size()));
    head_list.insert(head_list.end(), heads.begin(), heads.end());
    most_heads = std::max(most_heads, heads.size());
  }
  int64_t most_rows = 0;
  for (const AttentionSequence& s : p.sequences) most_rows = std::max(most_rows, s.num_rows);
  const bool many = most_rows * static_cast<int64_t>(most_heads) > 16;
  const int rows_per_item = AttentionRowsPerItem(shape.key_dim, value_dim, many);

  // Whole rows first; they are cut into chunks where there are few.
  std::vector<AttentionItem> whole, items, combined;
  int64_t num_partials = 0;
  for (const AttentionSequence& s : p.sequences) {
    if (s.first_position + s.num_rows > int64_t{1} << 30) {
      return absl::InvalidArgumentError(absl::StrCat("Attention: a sequence ends at position ",
                                                     s.first_position + s.num_rows, ", must be below 2^30"));
    }
    for (int g = 0; g < shape.num_kv_heads && s.num_rows > 0; ++g) {
      const auto heads = static_cast<int64_t>(heads_of[static_cast<size_t>(g)].size());
      const int64_t packed = s.num_rows * heads;
      for (int64_t row = 0; row < packed; row += rows_per_item) {
        AttentionItem item;
        item.block_table = s.block_table;
        item.first_position = static_cast<int32_t>(s.first_position);
        item.first_token = static_cast<int32_t>(s.first_row);
        item.kv_head = g;
        item.first_row = static_cast<int32_t>(row);
        item.rows = static_cast<int32_t>(std::min<int64_t>(rows_per_item, packed - row));
        item.first_head = first_head[static_cast<size_t>(g)];
        item.heads = static_cast<int32_t>(heads);
        const int64_t limit = s.first_position + (row + item.rows - 1) / heads + 1;
        item.end_chunk = static_cast<int32_t>(CeilDiv(limit, kAttentionChunk));
        whole.push_back(item);
      }
    }
  }
  const bool split = static_cast<int64_t>(whole.size()) < kFewItems;
  for (AttentionItem item : whole) {
    const int32_t chunks = item.end_chunk;
    const int64_t partials = int64_t{item.rows} * chunks;
    if (!split || chunks == 1 || num_partials + partials > kMaxPartials) {
      items.push_back(item);
      continue;
    }
    item.partial = num_partials;
    item.partial_chunks = chunks;
    num_partials += partials;
    combined.push_back(item);
    for (item.first_chunk = 0; item.first_chunk < chunks; ++item.first_chunk) {
      item.end_chunk = item.first_chunk + 1;
      items.push_back(item);
    }
  }

  const size_t item_bytes = items.size() * sizeof(AttentionItem);
  const size_t combined_bytes = combined.size() * sizeof(AttentionItem);
  std::vector<char> plan(item_bytes + combined_bytes + head_list.size() * sizeof(int32_t));
  const auto put = [&plan](size_t at, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(plan.data() + at, from, bytes);
  };
  put(0, items.data(), item_bytes);
  put(item_bytes, combined.data(), combined_bytes);
  put(item_bytes + combined_bytes, head_list.data(), head_list.size() * sizeof(int32_t));
  num_items_ = static_cast<int64_t>(items.size());
  num_combined_ = static_cast<int64_t>(combined.size());
  num_partials_ = num_partials;
  combined_offset_ = static_cast<int64_t>(item_bytes);
  heads_offset_ = static_cast<int64_t>(item_bytes + combined_bytes);
  many_ = many;
  // The layers of a step ask for the same.
  if (plan == attention_plan_) return absl::OkStatus();
  attention_plan_ = std::move(plan);
  const auto bytes = static_cast<int64_t>(attention_plan_.size());
  if (bytes == 0) return absl::OkStatus();
  PHX_ASSIGN_OR_RETURN(void* const device, attention_device_.Get(bytes));
  return runtime_->Copy(device, attention_plan_.data(), bytes, CopyKind::kToDevice);
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
  PHX_RETURN_IF_ERROR(PlanAttention(p));
  if (num_items_ == 0) return absl::OkStatus();
  PHX_ASSIGN_OR_RETURN(char* const plan,
                       attention_device_.Get<char>(static_cast<int64_t>(attention_plan_.size())));
  args.items = reinterpret_cast<const AttentionItem*>(plan);
  args.num_items = static_cast<int>(num_items_);
  args.head_list = reinterpret_cast<const int32_t*>(plan + heads_offset_);
  args.q = static_cast<const uint16_t*>(p.q.data);
  args.q_stride = p.q.stride;
  args.out = static_cast<uint16_t*>(p.out.data);
  args.out_stride = p.out.stride;
  args.scale = p.scale;
  if (num_partials_ > 0) {
    args.partial_pitch = static_cast<int>(CeilDiv(args.value_dim, 8) * 8);
    PHX_ASSIGN_OR_RETURN(args.partial_out,
                         attention_partials_.Get<float>(num_partials_ * (args.partial_pitch + 2)));
    args.partial_max = args.partial_out + num_partials_ * args.partial_pitch;
    args.partial_sum = args.partial_max + num_partials_;
  }
  PHX_RETURN_IF_ERROR(
      runtime_->ToStatus(LaunchAttention(args, many_, half_, runtime_->stream()), "Attention"));
  return runtime_->ToStatus(
      LaunchAttentionCombine(args, reinterpret_cast<const AttentionItem*>(plan + combined_offset_),
                             static_cast<int>(num_combined_), half_, runtime_->stream()),
      "Attention");
}

}  // namespace phalanx::cuda
