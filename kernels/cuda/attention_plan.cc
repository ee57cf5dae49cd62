#include "kernels/cuda/attention_plan.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/hopper.h"

namespace phalanx::cuda {
namespace {

// With fewer blocks than this a prefill's chunks are shared out too: no chip is filled otherwise. How items
// are cut changes no bit.
constexpr int64_t kFewItems = 264;
constexpr int64_t kMaxPartialBytes = int64_t{64} << 20;
// Blocks of a fixed grid, at most: as many as a large chip holds at once, two on each of 132 multiprocessors,
// so that those without an item cost nothing.
constexpr int64_t kFixedBlocks = 264;
constexpr int64_t kItemBlocks = 64;
constexpr int kRowsPerItem = 16;
constexpr int64_t kAlignment = 64;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

bool AttentionLayout::operator==(const AttentionLayout& other) const {
  const auto same = [](const AttentionHeads& a, const AttentionHeads& b) {
    return a.first_head == b.first_head && a.heads == b.heads;
  };
  return key_dim == other.key_dim && value_dim == other.value_dim && max_chunks == other.max_chunks &&
         head_list == other.head_list &&
         std::equal(kv_heads.begin(), kv_heads.end(), other.kv_heads.begin(), other.kv_heads.end(), same);
}

AttentionLayout LayoutOf(const AttentionParams& p, int64_t cache_blocks, int value_dim) {
  const KvCacheShape& shape = p.cache->shape();
  AttentionLayout layout;
  layout.key_dim = shape.key_dim;
  layout.value_dim = value_dim;
  layout.max_chunks = CeilDiv(cache_blocks * shape.block_size, kAttentionChunk);
  layout.kv_heads.resize(static_cast<size_t>(shape.num_kv_heads));
  layout.head_list.reserve(static_cast<size_t>(p.num_heads));
  for (int g = 0; g < shape.num_kv_heads; ++g) {
    AttentionHeads& heads = layout.kv_heads[static_cast<size_t>(g)];
    heads.first_head = static_cast<int32_t>(layout.head_list.size());
    for (int h = 0; h < p.num_heads; ++h) {
      if (p.kv_head_of[h] == g) layout.head_list.push_back(h);
    }
    heads.heads = static_cast<int32_t>(layout.head_list.size()) - heads.first_head;
  }
  return layout;
}

absl::StatusOr<std::unique_ptr<AttentionPlan>> AttentionPlan::Create(const std::shared_ptr<Runtime>& runtime,
                                                                     const AttentionLayout& layout,
                                                                     bool fixed) {
  std::unique_ptr<AttentionPlan> plan(new AttentionPlan(runtime, layout, fixed));
  const auto aligned = [](size_t bytes) {
    return CeilDiv(static_cast<int64_t>(bytes), kAlignment) * kAlignment;
  };
  plan->heads_at_ = aligned(sizeof(AttentionCounts));
  plan->list_at_ = plan->heads_at_ + aligned(layout.kv_heads.size() * sizeof(AttentionHeads));
  plan->sequences_at_ = plan->list_at_ + aligned(layout.head_list.size() * sizeof(int32_t));
  plan->max_partials_ = kMaxPartialBytes / ((layout.partial_pitch() + 2) * 4);
  if (!fixed) return plan;
  plan->max_partials_ = std::min(plan->max_partials_, kFewItems * kRowsPerItem * layout.max_chunks);
  const int64_t whole = plan->WholeItems(kMaxReplayRows);
  PHX_RETURN_IF_ERROR(plan->Reserve(
      plan->sequences_at_ + kMaxReplayRows * static_cast<int64_t>(sizeof(AttentionSequenceArgs)),
      whole + std::min(kFewItems * layout.max_chunks, plan->max_partials_), kFewItems, plan->max_partials_));
  return plan;
}

int64_t AttentionPlan::WholeItems(int64_t rows) const {
  int64_t items = 0;
  for (const AttentionHeads& heads : layout_.kv_heads) items += rows * CeilDiv(heads.heads, kRowsPerItem);
  return items;
}

absl::Status AttentionPlan::Reserve(int64_t said_bytes, int64_t items, int64_t combined, int64_t partials) {
  PHX_RETURN_IF_ERROR(said_device_.Get(said_bytes).status());
  PHX_RETURN_IF_ERROR(items_.Get<AttentionItem>(items).status());
  PHX_RETURN_IF_ERROR(combined_.Get<AttentionItem>(combined).status());
  return partials_.Get<float>(partials * (layout_.partial_pitch() + 2)).status();
}

absl::Status AttentionPlan::Upload(absl::Span<const AttentionSequence> sequences, bool hopper) {
  int64_t most_rows = 0, most_heads = 0, rows = 0;
  for (const AttentionHeads& heads : layout_.kv_heads) {
    most_heads = std::max<int64_t>(most_heads, heads.heads);
  }
  for (const AttentionSequence& s : sequences) {
    most_rows = std::max(most_rows, s.num_rows);
    rows += s.num_rows;
    if (s.first_position + s.num_rows > int64_t{1} << 30) {
      return absl::InvalidArgumentError(absl::StrCat("Attention: a sequence ends at position ",
                                                     s.first_position + s.num_rows, ", must be below 2^30"));
    }
  }
  if (fixed_ && rows > kMaxReplayRows) {
    return absl::InvalidArgumentError(absl::StrCat("Attention inside Replay: sequences have ", rows,
                                                   " rows, must be at most ", kMaxReplayRows));
  }
  const bool many = !fixed_ && most_rows * most_heads > kRowsPerItem;
  AttentionCounts counts;
  hopper = hopper && many;
  counts.rows_per_item =
      hopper ? kHopperRows : AttentionRowsPerItem(layout_.key_dim, layout_.value_dim, many);
  const auto tiles_of = [&](int64_t num_rows) {
    int64_t tiles = 0;
    for (const AttentionHeads& heads : layout_.kv_heads) {
      tiles += CeilDiv(num_rows * heads.heads, counts.rows_per_item);
    }
    return tiles;
  };
  int64_t whole = 0;
  for (const AttentionSequence& s : sequences) whole += tiles_of(s.num_rows);
  const bool cut = whole < (hopper ? runtime_->device().multiprocessors : kFewItems);

  said_.assign(static_cast<size_t>(sequences_at_), 0);
  int64_t items = 0, combined = 0, partials = 0;
  for (const AttentionSequence& s : sequences) {
    if (s.num_rows == 0) continue;
    const int64_t tiles = tiles_of(s.num_rows);
    const int64_t chunks = CeilDiv(s.first_position + s.num_rows, kAttentionChunk);
    const int64_t own = s.num_rows * static_cast<int64_t>(layout_.head_list.size()) * chunks;
    AttentionSequenceArgs args;
    args.block_table = s.block_table;
    args.first_position = static_cast<int32_t>(s.first_position);
    args.first_token = static_cast<int32_t>(s.first_row);
    args.num_rows = static_cast<int32_t>(s.num_rows);
    args.first_item = static_cast<int32_t>(items);
    args.first_combined = static_cast<int32_t>(combined);
    args.first_partial = partials;
    if (cut && chunks > 1 && partials + own <= max_partials_) {
      args.chunks = static_cast<int32_t>(chunks);
      items += tiles * chunks;
      combined += tiles;
      partials += own;
    } else {
      items += tiles;
    }
    ++counts.sequences;
    const auto* bytes = reinterpret_cast<const char*>(&args);
    said_.insert(said_.end(), bytes, bytes + sizeof(args));
  }
  if (items > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Attention: a call makes ", items, " items, must be below 2^31"));
  }
  counts.items = static_cast<int32_t>(items);
  counts.combined = static_cast<int32_t>(combined);
  std::memcpy(said_.data(), &counts, sizeof(counts));
  std::memcpy(said_.data() + heads_at_, layout_.kv_heads.data(),
              layout_.kv_heads.size() * sizeof(AttentionHeads));
  if (!layout_.head_list.empty()) {
    std::memcpy(said_.data() + list_at_, layout_.head_list.data(),
                layout_.head_list.size() * sizeof(int32_t));
  }
  // The layers of a step ask for the same.
  if (said_ == last_said_) return absl::OkStatus();
  const auto bytes = static_cast<int64_t>(said_.size());
  if (!fixed_) PHX_RETURN_IF_ERROR(Reserve(bytes, items, combined, partials));
  PHX_ASSIGN_OR_RETURN(void* const device, said_device_.Get(bytes));
  counts_ = counts;
  num_partials_ = partials;
  last_said_.clear();
  PHX_RETURN_IF_ERROR(runtime_->Copy(device, said_.data(), bytes, CopyKind::kToDevice));
  if (!fixed_) PHX_RETURN_IF_ERROR(MakeItems());
  last_said_ = said_;
  return absl::OkStatus();
}

absl::Status AttentionPlan::MakeItems() {
  PHX_ASSIGN_OR_RETURN(char* const said, said_device_.Get<char>(sequences_at_));
  AttentionItemsArgs args;
  args.counts = reinterpret_cast<const AttentionCounts*>(said);
  args.kv_heads = reinterpret_cast<const AttentionHeads*>(said + heads_at_);
  args.num_kv_heads = static_cast<int>(layout_.kv_heads.size());
  args.sequences = reinterpret_cast<const AttentionSequenceArgs*>(said + sequences_at_);
  PHX_ASSIGN_OR_RETURN(args.items, items_.Get<AttentionItem>(1));
  PHX_ASSIGN_OR_RETURN(args.combined, combined_.Get<AttentionItem>(1));
  const int64_t blocks = fixed_ ? kItemBlocks : std::min<int64_t>(counts_.sequences, kItemBlocks);
  return runtime_->ToStatus(LaunchAttentionItems(args, static_cast<int>(blocks), runtime_->stream()),
                            "Attention");
}

absl::Status AttentionPlan::Attend(AttentionArgs args, int64_t rows, bool half) {
  const bool many = counts_.rows_per_item > kRowsPerItem, hopper = counts_.rows_per_item == kHopperRows;
  int64_t blocks = counts_.items, combine_blocks = counts_.combined;
  int64_t partials = num_partials_;
  if (fixed_) {
    if (rows > kMaxReplayRows) {
      return absl::InvalidArgumentError(
          absl::StrCat("Attention inside Replay: q.rows is ", rows, ", must be at most ", kMaxReplayRows));
    }
    const int64_t whole = WholeItems(rows);
    blocks = std::min(kFixedBlocks, whole * layout_.max_chunks);
    combine_blocks = layout_.max_chunks > 1 ? std::min(kFewItems, whole) : 0;
    partials = max_partials_;
  }
  if (blocks == 0) return absl::OkStatus();
  PHX_ASSIGN_OR_RETURN(char* const said, said_device_.Get<char>(sequences_at_));
  args.counts = reinterpret_cast<const AttentionCounts*>(said);
  args.head_list = reinterpret_cast<const int32_t*>(said + list_at_);
  PHX_ASSIGN_OR_RETURN(args.items, items_.Get<AttentionItem>(1));
  PHX_ASSIGN_OR_RETURN(args.combined, combined_.Get<AttentionItem>(1));
  args.partial_pitch = layout_.partial_pitch();
  PHX_ASSIGN_OR_RETURN(args.partial_out, partials_.Get<float>(partials * (args.partial_pitch + 2)));
  args.partial_max = args.partial_out + partials * args.partial_pitch;
  args.partial_sum = args.partial_max + partials;
  void* const stream = runtime_->stream();
  PHX_RETURN_IF_ERROR(
      runtime_->ToStatus(hopper ? LaunchHopperAttention(args, static_cast<int>(blocks), half, stream)
                                : LaunchAttention(args, static_cast<int>(blocks), many, half, stream),
                         "Attention"));
  return runtime_->ToStatus(
      LaunchAttentionCombine(args, many ? counts_.rows_per_item : kRowsPerItem,
                             static_cast<int>(combine_blocks), half, runtime_->stream()),
      "Attention");
}

}  // namespace phalanx::cuda
