#include "worker/step_batch.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace phalanx {
namespace {

constexpr int64_t kAlignment = 64;
// Of a sequence in a step that is replayed: a token and guesses. Longer ones are chunks of prompts, for which
// Ops have better kernels than for a few rows.
constexpr size_t kMaxReplayTokens = 16;

}  // namespace

int64_t RowsToReplay(const StepPlan& step, const std::vector<int>& replay_rows) {
  if (step.rows.empty()) return 0;
  for (const PlanRow& row : step.rows) {
    if (row.tokens.size() > kMaxReplayTokens || row.logit_offsets.empty()) return 0;
  }
  const auto found = std::lower_bound(replay_rows.begin(), replay_rows.end(), step.num_tokens());
  return found == replay_rows.end() ? 0 : *found;
}

absl::Status StepBatch::Init(Ops* ops, const StepBatchLimits& limits) {
  ops_ = ops;
  limits_ = limits;
  const int64_t context_blocks = (limits.context_length + limits.block_size - 1) / limits.block_size;
  // Six arrays of a value per token or logits row, the longest of 8 bytes, and a table per row of the plan.
  const int64_t arrays = 6 * ((limits.max_tokens + limits.max_logits) * 8 + kAlignment);
  const int64_t table_bytes = limits.max_tokens * (context_blocks * 4 + kAlignment);
  host_.resize(arrays + table_bytes);
  PHX_ASSIGN_OR_RETURN(device_, ops->Allocate(arrays + table_bytes));
  batch_.sequences.reserve(limits.max_tokens);
  return absl::OkStatus();
}

template <typename T>
T* StepBatch::Take(int64_t n, const T** device) {
  const int64_t offset = used_;
  used_ += (n * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
  *device = reinterpret_cast<const T*>(static_cast<const char*>(device_->data()) + offset);
  return reinterpret_cast<T*>(host_.data() + offset);
}

absl::Status StepBatch::CheckRow(const PlanRow& row, const BlockTables& tables, int64_t last_logits) const {
  const std::vector<int32_t>* table = tables.Find(row.sequence);
  const auto error = [&row](const auto&... parts) {
    return absl::InternalError(absl::StrCat("step plan, row of sequence ", row.sequence, ": ", parts...));
  };
  if (table == nullptr) return error("no such sequence");
  if (row.tokens.empty()) return error("no tokens");
  const int64_t end = int64_t{row.first_position} + static_cast<int64_t>(row.tokens.size());
  const int64_t room =
      std::min<int64_t>(static_cast<int64_t>(table->size()) * limits_.block_size, limits_.context_length);
  if (row.first_position < 0 || end > room) {
    return error("positions ", row.first_position, " to ", end, ", must be 0 to ", room, ", what its ",
                 table->size(), " blocks and the context hold");
  }
  for (int64_t i = row.first_position / limits_.block_size; i * limits_.block_size < end; ++i) {
    if (tables.holders((*table)[i]) > 1) {
      return error("positions ", row.first_position, " to ", end, " write block ", (*table)[i], ", which ",
                   tables.holders((*table)[i]), " sequences hold");
    }
  }
  if (row.rope_mode >= limits_.num_rope_modes) {
    return error("RoPE mode ", row.rope_mode, ", must be below ", limits_.num_rope_modes);
  }
  for (const int32_t token : row.tokens) {
    if (token >= limits_.vocab_size) return error("token ", token, ", must be below ", limits_.vocab_size);
    if (token < 0 && -1 - int64_t{token} >= last_logits) {
      return error("refers to logits row ", -1 - int64_t{token}, " of the step before, which had ",
                   last_logits);
    }
  }
  int32_t last = -1;
  for (const int32_t offset : row.logit_offsets) {
    if (offset <= last || offset >= static_cast<int64_t>(row.tokens.size())) {
      return error("logits offset ", offset, ", must be rising and below ", row.tokens.size());
    }
    last = offset;
  }
  return absl::OkStatus();
}

absl::Status StepBatch::Build(const StepPlan& step, const BlockTables& tables, int64_t last_logits,
                              const int32_t* sampled, int64_t padded) {
  const int64_t num_tokens = step.num_tokens();
  const int64_t num_logits = step.num_logits();
  if (num_tokens > limits_.max_tokens || num_logits > limits_.max_logits) {
    return absl::InternalError(absl::StrCat("step plan ", step.step, " has ", num_tokens, " tokens and ",
                                            num_logits, " logits rows; at most ", limits_.max_tokens, " and ",
                                            limits_.max_logits, " are allowed"));
  }
  batch_.replays = padded > 0;
  batch_.num_tokens = std::max(num_tokens, padded);
  batch_.num_logits = std::max(num_logits, padded);
  batch_.sampled = sampled;
  batch_.sequences.clear();
  used_ = 0;
  int32_t* token_ids = Take(batch_.num_tokens, &batch_.token_ids);
  int32_t* from_sampled = Take(batch_.num_tokens, &batch_.from_sampled);
  int32_t* positions = Take(batch_.num_tokens, &batch_.positions);
  int32_t* rope_mode = Take(batch_.num_tokens, &batch_.rope_mode);
  int64_t* slots = Take(batch_.num_tokens, &batch_.slots);
  int32_t* logit_rows = Take(batch_.num_logits, &batch_.logit_rows);
  std::fill(logit_rows + num_logits, logit_rows + batch_.num_logits, 0);

  int64_t t = 0;
  for (const PlanRow& row : step.rows) {
    const std::vector<int32_t>* table = tables.Find(row.sequence);
    PHX_RETURN_IF_ERROR(CheckRow(row, tables, last_logits));
    const auto num_rows = static_cast<int64_t>(row.tokens.size());
    const int64_t blocks = (row.first_position + num_rows + limits_.block_size - 1) / limits_.block_size;
    AttentionSequence sequence = {.first_row = t, .num_rows = num_rows, .first_position = row.first_position};
    std::copy_n(table->begin(), blocks, Take(blocks, &sequence.block_table));
    batch_.sequences.push_back(sequence);
    for (const int32_t offset : row.logit_offsets) *logit_rows++ = static_cast<int32_t>(t + offset);
    for (int64_t i = 0; i < num_rows; ++i, ++t) {
      const int32_t token = row.tokens[i];
      const int64_t position = row.first_position + i;
      token_ids[t] = std::max(token, 0);
      from_sampled[t] = token >= 0 ? -1 : -1 - token;
      positions[t] = static_cast<int32_t>(position);
      rope_mode[t] = static_cast<int32_t>(row.rope_mode);
      slots[t] = int64_t{(*table)[position / limits_.block_size]} * limits_.block_size +
                 position % limits_.block_size;
    }
  }
  // Rows that no sequence has: they store nothing, and nobody reads what they make.
  for (; t < batch_.num_tokens; ++t) {
    token_ids[t] = 0;
    from_sampled[t] = -1;
    positions[t] = 0;
    rope_mode[t] = 0;
    slots[t] = -1;
  }
  if (batch_.num_tokens == 0) return absl::OkStatus();
  return ops_->Copy(device_->data(), host_.data(), used_, CopyKind::kToDevice);
}

}  // namespace phalanx
