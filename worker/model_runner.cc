#include "worker/model_runner.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "worker/models/model.h"

namespace phalanx {
namespace {

// Raised whenever the order of operations of a model in models/ changes, as OpsInfo::kernel_version is by a
// kernel.
constexpr int kModelVersion = 1;
constexpr int64_t kDeviceTimeoutMs = 60000;
constexpr int64_t kAlignment = 64;

// What ranks tell each other before the first step. Plain bytes: all ranks run the same binary's layout.
struct RankReport {
  int32_t code = 0;  // absl::StatusCode
  char message[400] = {};
  char kv_type[8] = {};
  char fingerprint[256] = {};
  char options[160] = {};
  int64_t kv_blocks = 0;
};
static_assert(std::is_trivially_copyable_v<RankReport>);

template <size_t N>
void PutText(const std::string& text, char (&out)[N]) {
  const size_t size = std::min(text.size(), N - 1);
  std::memcpy(out, text.data(), size);
  out[size] = '\0';
}

template <size_t N>
std::string Text(const char (&text)[N]) {
  return std::string(text, strnlen(text, N));
}

absl::Status ValidateOptions(const ModelConfig& config, const ModelRunnerOptions& options) {
  const auto at_least_one = [](const char* name, int64_t value) {
    return value >= 1 ? absl::OkStatus()
                      : absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", must be at least 1"));
  };
  PHX_RETURN_IF_ERROR(at_least_one("max_tokens_per_step", options.max_tokens_per_step));
  PHX_RETURN_IF_ERROR(at_least_one("max_logits_per_step", options.max_logits_per_step));
  PHX_RETURN_IF_ERROR(at_least_one("max_kv_blocks", options.max_kv_blocks));
  if (options.max_kv_blocks > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_kv_blocks is ", options.max_kv_blocks, ", must be below 2^31"));
  }
  if (options.block_size < 1 || kAttentionChunk % options.block_size != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("block_size is ", options.block_size, ", must divide ", kAttentionChunk));
  }
  if (options.context_length < 1 || options.context_length > config.context_length) {
    return absl::InvalidArgumentError(absl::StrCat("context_length is ", options.context_length,
                                                   ", must be 1 to the model's ", config.context_length));
  }
  return absl::OkStatus();
}

// Every rank's report; the first error in order of ranks, so that all ranks fail alike.
absl::StatusOr<std::vector<RankReport>> ExchangeReports(Collective* collective, const absl::Status& status,
                                                        RankReport report) {
  report.code = static_cast<int32_t>(status.code());
  PutText(std::string(status.message()), report.message);
  std::vector<RankReport> reports(collective->size());
  if (absl::Status met = collective->AllGather(&report, sizeof(report), reports.data()); !met.ok()) {
    return status.ok() ? met : status;
  }
  if (!status.ok()) return status;
  for (int r = 0; r < collective->size(); ++r) {
    if (reports[r].code == 0) continue;
    return absl::Status(static_cast<absl::StatusCode>(reports[r].code),
                        absl::StrCat("rank ", r, ": ", Text(reports[r].message)));
  }
  return reports;
}

// All ranks must be alike in `field`; the first that differs from rank 0 is named.
template <size_t N>
absl::Status ExpectAlike(const std::vector<RankReport>& reports, char (RankReport::*field)[N],
                         const char* what) {
  for (size_t r = 1; r < reports.size(); ++r) {
    const std::string first = Text(reports[0].*field);
    const std::string other = Text(reports[r].*field);
    if (first == other) continue;
    return absl::FailedPreconditionError(absl::StrCat("the ranks of a group must have one ", what,
                                                      ": rank 0 has '", first, "', rank ", r, " has '", other,
                                                      "'"));
  }
  return absl::OkStatus();
}

// Packs a step's arrays one behind the other, so that they reach the device in one copy.
class Staging {
 public:
  absl::Status Allocate(Ops* ops, int64_t bytes) {
    host_.resize(bytes);
    PHX_ASSIGN_OR_RETURN(device_, ops->Allocate(bytes));
    return absl::OkStatus();
  }
  void Clear() { used_ = 0; }
  // Space for n elements; *device gets where they will lie.
  template <typename T>
  T* Take(int64_t n, const T** device) {
    const int64_t offset = used_;
    used_ += (n * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    *device = reinterpret_cast<const T*>(static_cast<const char*>(device_->data()) + offset);
    return reinterpret_cast<T*>(host_.data() + offset);
  }
  absl::Status Send(Ops* ops) { return ops->Copy(device_->data(), host_.data(), used_, CopyKind::kToDevice); }
  int64_t bytes() const { return device_->bytes(); }

 private:
  std::vector<char> host_;
  std::unique_ptr<Buffer> device_;
  int64_t used_ = 0;
};

}  // namespace

std::string Fingerprint(const Checkpoint& checkpoint, const OpsInfo& info, int num_shards) {
  return absl::StrFormat("weights=%016x dtype=%s kv=%s backend=%s isa=%s kernels=%d models=%d shards=%d",
                         checkpoint.ContentHash(), ToAbsl(DTypeName(info.weight_dtype)),
                         KvTypeName(info.kv_type), info.backend, info.instruction_set, info.kernel_version,
                         kModelVersion, num_shards);
}

CollectiveNeeds CollectiveNeedsOf(const ModelConfig& config, const ShardPlan& plan,
                                  const ModelRunnerOptions& options) {
  const int64_t logits =
      plan.max_vocab_share * options.max_logits_per_step * static_cast<int64_t>(sizeof(float));
  // Outputs of routed and of shared experts are summed in one exchange.
  const int products = config.moe && config.moe->num_shared_experts > 0 ? 2 : 1;
  return {.max_elements = int64_t{config.hidden_size} * options.max_tokens_per_step * products,
          .max_gather_bytes = std::max<int64_t>(logits, sizeof(RankReport))};
}

struct ModelRunner::Impl {
  ModelConfig config;
  ShardPlan plan;
  int rank = 0;
  Ops* ops = nullptr;
  Collective* collective = nullptr;
  ModelRunnerOptions options;

  std::unique_ptr<Model> model;
  std::unique_ptr<KvCache> cache;  // null where the rank holds no KV heads
  int64_t kv_bytes = 0;
  BlockTables tables{0};
  int64_t num_blocks = 0;

  Staging staging;
  ForwardBatch batch;
  std::unique_ptr<Buffer> logits;    // fp32 [R, max_vocab_share] of this rank
  std::unique_ptr<Buffer> gathered;  // [size] of those; null in a group of one
  SampleParams sample;
  std::unique_ptr<Buffer> ids, logprobs, top_ids, top_logprobs;
  StepResult result;
  std::vector<float> host_logprobs, host_top_logprobs;
  std::vector<int32_t> host_top_ids;
  absl::Status dead;  // the first error

  absl::Status Load(const Checkpoint& checkpoint, RankReport* report);
  absl::Status AllocateBuffers();
  absl::Status CheckRow(const PlanRow& row, const std::vector<int32_t>* table, int64_t last_logits) const;
  absl::Status BuildBatch(const StepPlan& step);
  absl::Status Launch(const StepPlan& step);
  absl::Status Sample(const std::vector<SampleRow>& samples);
  absl::Status ReadLogprobs(const std::vector<SampleRow>& samples);

  const float* all_logits() const {
    return static_cast<const float*>((gathered ? gathered : logits)->data());
  }
  // After an error nothing runs any more: block tables and cache may have parted from the other ranks'.
  absl::Status Keep(absl::Status status) {
    if (dead.ok() && !status.ok()) dead = status;
    return status;
  }
};

absl::Status ModelRunner::Impl::Load(const Checkpoint& checkpoint, RankReport* report) {
  PHX_RETURN_IF_ERROR(ValidateOptions(config, options));
  PHX_ASSIGN_OR_RETURN(model, CreateModel({.checkpoint = &checkpoint,
                                           .config = &config,
                                           .plan = &plan,
                                           .rank = rank,
                                           .ops = ops,
                                           .collective = collective,
                                           .max_tokens = options.max_tokens_per_step,
                                           .max_logits = options.max_logits_per_step,
                                           .context_length = options.context_length}));
  if (options.on_packed) options.kv_bytes = options.on_packed(model->weight_bytes());
  const int64_t block_bytes = ops->KvBlockBytes(model->kv_shape(options.block_size));
  report->kv_blocks = options.max_kv_blocks;
  if (block_bytes > 0) report->kv_blocks = std::min(report->kv_blocks, options.kv_bytes / block_bytes);
  if (report->kv_blocks < 1) {
    return absl::ResourceExhaustedError(absl::StrCat("kv_bytes is ", options.kv_bytes, ", but one block of ",
                                                     options.block_size, " positions takes ", block_bytes));
  }
  return AllocateBuffers();
}

absl::Status ModelRunner::Impl::AllocateBuffers() {
  const int64_t max_tokens = options.max_tokens_per_step;
  const int64_t max_logits = options.max_logits_per_step;
  const int64_t context_blocks = (options.context_length + options.block_size - 1) / options.block_size;
  // Six arrays of a value per token or logits row, the longest of 8 bytes, and a table per row of the plan.
  const int64_t arrays = 6 * ((max_tokens + max_logits) * 8 + kAlignment);
  const int64_t table_bytes = max_tokens * (context_blocks * 4 + kAlignment);
  PHX_RETURN_IF_ERROR(staging.Allocate(ops, arrays + table_bytes));
  batch.sequences.reserve(max_tokens);

  const int64_t logits_bytes = max_logits * plan.max_vocab_share * static_cast<int64_t>(sizeof(float));
  PHX_ASSIGN_OR_RETURN(logits, ops->Allocate(logits_bytes));
  if (collective->size() > 1) {
    PHX_ASSIGN_OR_RETURN(gathered, ops->Allocate(logits_bytes * collective->size()));
  }
  PHX_ASSIGN_OR_RETURN(ids, ops->Allocate(max_logits * 4));
  PHX_ASSIGN_OR_RETURN(logprobs, ops->Allocate(max_logits * 4));
  PHX_ASSIGN_OR_RETURN(top_ids, ops->Allocate(max_logits * kMaxTopLogprobs * 4));
  PHX_ASSIGN_OR_RETURN(top_logprobs, ops->Allocate(max_logits * kMaxTopLogprobs * 4));

  sample.vocab_size = config.vocab_size;
  sample.num_shares = collective->size();
  sample.share_cols = plan.max_vocab_share;
  for (const Rank& r : plan.ranks) sample.share_begin.push_back(r.vocab.begin);
  sample.share_begin.push_back(config.vocab_size);
  sample.ids = static_cast<int32_t*>(ids->data());
  return absl::OkStatus();
}

absl::Status ModelRunner::Impl::CheckRow(const PlanRow& row, const std::vector<int32_t>* table,
                                         int64_t last_logits) const {
  const auto error = [&row](const auto&... parts) {
    return absl::InternalError(absl::StrCat("step plan, row of sequence ", row.sequence, ": ", parts...));
  };
  if (table == nullptr) return error("no such sequence");
  if (row.tokens.empty()) return error("no tokens");
  const int64_t end = int64_t{row.first_position} + static_cast<int64_t>(row.tokens.size());
  const int64_t room =
      std::min<int64_t>(static_cast<int64_t>(table->size()) * options.block_size, options.context_length);
  if (row.first_position < 0 || end > room) {
    return error("positions ", row.first_position, " to ", end, ", must be 0 to ", room, ", what its ",
                 table->size(), " blocks and the context hold");
  }
  for (int64_t i = row.first_position / options.block_size; i * options.block_size < end; ++i) {
    if (tables.holders((*table)[i]) > 1) {
      return error("positions ", row.first_position, " to ", end, " write block ", (*table)[i], ", which ",
                   tables.holders((*table)[i]), " sequences hold");
    }
  }
  if (row.rope_mode >= config.rope.size()) {
    return error("RoPE mode ", row.rope_mode, ", must be below ", config.rope.size());
  }
  for (const int32_t token : row.tokens) {
    if (token >= config.vocab_size) return error("token ", token, ", must be below ", config.vocab_size);
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

absl::Status ModelRunner::Impl::BuildBatch(const StepPlan& step) {
  const int64_t last_logits = batch.num_logits;
  const int64_t num_tokens = step.num_tokens();
  const int64_t num_logits = step.num_logits();
  if (num_tokens > options.max_tokens_per_step || num_logits > options.max_logits_per_step) {
    return absl::InternalError(absl::StrCat("step plan ", step.step, " has ", num_tokens, " tokens and ",
                                            num_logits, " logits rows; at most ", options.max_tokens_per_step,
                                            " and ", options.max_logits_per_step, " are allowed"));
  }
  batch.num_tokens = num_tokens;
  batch.num_logits = num_logits;
  batch.sampled = static_cast<const int32_t*>(ids->data());
  batch.sequences.clear();
  staging.Clear();
  int32_t* token_ids = staging.Take(num_tokens, &batch.token_ids);
  int32_t* from_sampled = staging.Take(num_tokens, &batch.from_sampled);
  int32_t* positions = staging.Take(num_tokens, &batch.positions);
  int32_t* rope_mode = staging.Take(num_tokens, &batch.rope_mode);
  int64_t* slots = staging.Take(num_tokens, &batch.slots);
  int32_t* logit_rows = staging.Take(num_logits, &batch.logit_rows);

  int64_t t = 0;
  for (const PlanRow& row : step.rows) {
    const std::vector<int32_t>* table = tables.Find(row.sequence);
    PHX_RETURN_IF_ERROR(CheckRow(row, table, last_logits));
    const auto num_rows = static_cast<int64_t>(row.tokens.size());
    const int64_t blocks = (row.first_position + num_rows + options.block_size - 1) / options.block_size;
    AttentionSequence sequence = {.first_row = t, .num_rows = num_rows, .first_position = row.first_position};
    std::copy_n(table->begin(), blocks, staging.Take(blocks, &sequence.block_table));
    batch.sequences.push_back(sequence);
    for (const int32_t offset : row.logit_offsets) *logit_rows++ = static_cast<int32_t>(t + offset);
    for (int64_t i = 0; i < num_rows; ++i, ++t) {
      const int32_t token = row.tokens[i];
      const int64_t position = row.first_position + i;
      token_ids[t] = std::max(token, 0);
      from_sampled[t] = token >= 0 ? -1 : -1 - token;
      positions[t] = static_cast<int32_t>(position);
      rope_mode[t] = static_cast<int32_t>(row.rope_mode);
      slots[t] = int64_t{(*table)[position / options.block_size]} * options.block_size +
                 position % options.block_size;
    }
  }
  return num_tokens == 0 ? absl::OkStatus() : staging.Send(ops);
}

absl::Status ModelRunner::Impl::Launch(const StepPlan& step) {
  PHX_RETURN_IF_ERROR(tables.Apply(step));
  PHX_RETURN_IF_ERROR(BuildBatch(step));
  if (batch.num_tokens == 0) return absl::OkStatus();
  auto* own = static_cast<float*>(logits->data());
  PHX_RETURN_IF_ERROR(model->Forward(batch, cache.get(), own));
  if (batch.num_logits == 0 || gathered == nullptr) return absl::OkStatus();
  const int64_t bytes = batch.num_logits * plan.max_vocab_share * static_cast<int64_t>(sizeof(float));
  return collective->AllGather(own, bytes, gathered->data());
}

absl::Status ModelRunner::Impl::Sample(const std::vector<SampleRow>& samples) {
  result.ids.clear();
  result.logprobs.clear();
  if (static_cast<int64_t>(samples.size()) != batch.num_logits) {
    return absl::InternalError(
        absl::StrCat(samples.size(), " samples for the ", batch.num_logits, " logits rows of the last step"));
  }
  if (samples.empty()) return absl::OkStatus();
  const bool want_logprobs =
      std::any_of(samples.begin(), samples.end(), [](const SampleRow& row) { return row.num_top >= 0; });
  sample.logits = all_logits();
  sample.num_rows = batch.num_logits;
  sample.rows = samples;
  sample.logprobs = want_logprobs ? static_cast<float*>(logprobs->data()) : nullptr;
  sample.top_ids = want_logprobs ? static_cast<int32_t*>(top_ids->data()) : nullptr;
  sample.top_logprobs = want_logprobs ? static_cast<float*>(top_logprobs->data()) : nullptr;
  PHX_RETURN_IF_ERROR(ops->Sample(sample));
  result.ids.resize(samples.size());
  PHX_RETURN_IF_ERROR(ops->Copy(result.ids.data(), ids->data(), batch.num_logits * 4, CopyKind::kToHost));
  if (want_logprobs) return ReadLogprobs(samples);
  result.logprobs.resize(samples.size());
  return ops->Synchronize(kDeviceTimeoutMs);
}

absl::Status ModelRunner::Impl::ReadLogprobs(const std::vector<SampleRow>& samples) {
  const int64_t rows = batch.num_logits;
  host_logprobs.resize(rows);
  host_top_ids.resize(rows * kMaxTopLogprobs);
  host_top_logprobs.resize(rows * kMaxTopLogprobs);
  PHX_RETURN_IF_ERROR(ops->Copy(host_logprobs.data(), logprobs->data(), rows * 4, CopyKind::kToHost));
  PHX_RETURN_IF_ERROR(
      ops->Copy(host_top_ids.data(), top_ids->data(), rows * kMaxTopLogprobs * 4, CopyKind::kToHost));
  PHX_RETURN_IF_ERROR(ops->Copy(host_top_logprobs.data(), top_logprobs->data(), rows * kMaxTopLogprobs * 4,
                                CopyKind::kToHost));
  PHX_RETURN_IF_ERROR(ops->Synchronize(kDeviceTimeoutMs));
  result.logprobs.resize(rows);
  for (int64_t r = 0; r < rows; ++r) {
    if (samples[r].num_top < 0) continue;
    TokenLogprobs& out = result.logprobs[r];
    out.id = result.ids[r];
    out.logprob = host_logprobs[r];
    for (int i = 0; i < std::min({samples[r].num_top, kMaxTopLogprobs, config.vocab_size}); ++i) {
      const int64_t at = r * kMaxTopLogprobs + i;
      out.top.emplace_back(host_top_ids[at], host_top_logprobs[at]);
    }
  }
  return absl::OkStatus();
}

ModelRunner::ModelRunner(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ModelRunner::~ModelRunner() = default;

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Create(const Checkpoint& checkpoint,
                                                                 const ModelConfig& config,
                                                                 const ShardPlan& plan, int rank, Ops* ops,
                                                                 Collective* collective,
                                                                 const ModelRunnerOptions& options) {
  if (rank != collective->rank() || collective->size() != static_cast<int>(plan.ranks.size())) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", rank, " of a plan for ", plan.ranks.size(),
                                                   " ranks, but the collective is rank ", collective->rank(),
                                                   " of ", collective->size()));
  }
  auto impl = std::make_unique<Impl>();
  impl->config = config;
  impl->plan = plan;
  impl->rank = rank;
  impl->ops = ops;
  impl->collective = collective;
  impl->options = options;
  if (impl->options.context_length == 0) impl->options.context_length = config.context_length;

  RankReport report;
  PutText(KvTypeName(ops->info().kv_type), report.kv_type);
  PutText(Fingerprint(checkpoint, ops->info(), plan.num_shards), report.fingerprint);
  PutText(absl::StrFormat("max_tokens_per_step=%d max_logits_per_step=%d context_length=%d block_size=%d",
                          impl->options.max_tokens_per_step, impl->options.max_logits_per_step,
                          impl->options.context_length, impl->options.block_size),
          report.options);
  const absl::Status loaded = impl->Load(checkpoint, &report);
  PHX_ASSIGN_OR_RETURN(const std::vector<RankReport> reports, ExchangeReports(collective, loaded, report));
  PHX_RETURN_IF_ERROR(ExpectAlike(reports, &RankReport::kv_type, "KV cache type (--kv-cache-dtype)"));
  PHX_RETURN_IF_ERROR(ExpectAlike(reports, &RankReport::fingerprint, "fingerprint"));
  PHX_RETURN_IF_ERROR(ExpectAlike(reports, &RankReport::options, "set of options"));

  impl->num_blocks = reports[0].kv_blocks;
  for (const RankReport& r : reports) impl->num_blocks = std::min(impl->num_blocks, r.kv_blocks);
  impl->tables = BlockTables(impl->num_blocks);
  const KvCacheShape shape = impl->model->kv_shape(options.block_size);
  absl::Status cached;
  if (shape.num_kv_heads > 0) {
    impl->kv_bytes = ops->KvBlockBytes(shape) * impl->num_blocks;
    absl::StatusOr<std::unique_ptr<KvCache>> cache = ops->CreateKvCache(shape, impl->num_blocks);
    if (cache.ok()) impl->cache = *std::move(cache);
    cached = cache.status();
  }
  PHX_RETURN_IF_ERROR(ExchangeReports(collective, cached, report).status());
  return std::unique_ptr<ModelRunner>(new ModelRunner(std::move(impl)));
}

absl::Status ModelRunner::Launch(const StepPlan& plan) {
  PHX_RETURN_IF_ERROR(impl_->dead);
  return impl_->Keep(impl_->Launch(plan));
}

absl::StatusOr<StepResult> ModelRunner::Sample(const std::vector<SampleRow>& samples) {
  PHX_RETURN_IF_ERROR(impl_->dead);
  PHX_RETURN_IF_ERROR(impl_->Keep(impl_->Sample(samples)));
  return impl_->result;
}

absl::Status ModelRunner::ShareSampled() {
  PHX_RETURN_IF_ERROR(impl_->dead);
  if (impl_->batch.num_logits == 0 || impl_->collective->size() == 1) return absl::OkStatus();
  return impl_->Keep(impl_->collective->Broadcast(impl_->ids->data(), impl_->batch.num_logits * 4, 0));
}

absl::StatusOr<std::vector<float>> ModelRunner::ReadLogits() {
  PHX_RETURN_IF_ERROR(impl_->dead);
  const int64_t rows = impl_->batch.num_logits;
  const int64_t share = impl_->plan.max_vocab_share;
  const int64_t vocab = impl_->config.vocab_size;
  std::vector<float> shares(rows * share * impl_->collective->size());
  if (rows == 0) return shares;
  PHX_RETURN_IF_ERROR(impl_->ops->Copy(shares.data(), impl_->all_logits(),
                                       static_cast<int64_t>(shares.size() * sizeof(float)),
                                       CopyKind::kToHost));
  PHX_RETURN_IF_ERROR(impl_->ops->Synchronize(kDeviceTimeoutMs));
  std::vector<float> out(rows * vocab);
  for (size_t s = 0; s < impl_->plan.ranks.size(); ++s) {
    const Range range = impl_->plan.ranks[s].vocab;
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(&shares[(static_cast<int64_t>(s) * rows + r) * share], range.size(),
                  &out[r * vocab + range.begin]);
    }
  }
  return out;
}

int64_t ModelRunner::num_kv_blocks() const { return impl_->num_blocks; }

int64_t ModelRunner::weight_bytes() const { return impl_->model->weight_bytes(); }

int64_t ModelRunner::memory_bytes() const {
  int64_t bytes = impl_->model->weight_bytes() + impl_->model->workspace_bytes() + impl_->kv_bytes +
                  impl_->staging.bytes();
  for (const auto* buffer : {&impl_->logits, &impl_->gathered, &impl_->ids, &impl_->logprobs, &impl_->top_ids,
                             &impl_->top_logprobs}) {
    if (*buffer != nullptr) bytes += (*buffer)->bytes();
  }
  return bytes;
}

}  // namespace phalanx
