#include "worker/model_runner.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "worker/models/model.h"
#include "worker/step_batch.h"

namespace phalanx {
namespace {

// Raised whenever the order of operations of a model in models/ changes, as OpsInfo::kernel_version is by a
// kernel.
constexpr int kModelVersion = 1;
constexpr int64_t kDeviceTimeoutMs = 60000;  // of a device that waits for no other

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
  for (size_t i = 0; i < options.replay_rows.size(); ++i) {
    const int rows = options.replay_rows[i];
    if (rows < 1 || rows > kMaxReplayRows || (i > 0 && rows <= options.replay_rows[i - 1])) {
      return absl::InvalidArgumentError(
          absl::StrCat("replay_rows has ", rows, " at ", i, ", must be rising, 1 to ", kMaxReplayRows));
    }
  }
  return absl::OkStatus();
}

// Every rank's report; the first error in order of ranks, so that all ranks fail alike.
absl::StatusOr<std::vector<RankReport>> ExchangeReports(Collective* collective, const absl::Status& status,
                                                        RankReport report) {
  report.code = static_cast<int32_t>(status.code());
  PutText(std::string(status.message()), report.message);
  std::vector<RankReport> reports(collective->size());
  if (absl::Status met = collective->AllGatherOnHost(&report, sizeof(report), reports.data()); !met.ok()) {
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

  StepBatch batch;
  int64_t num_logits = 0;                     // of the last Launch; the batch may be filled up beyond them
  std::vector<int> replay_rows;               // rising; empty where nothing is replayed
  int64_t launched = 0, launched_before = 0;  // marks behind the last two Launches
  int64_t sampled_mark = 0;
  std::unique_ptr<Buffer> logits;    // fp32 [R, max_vocab_share] of this rank
  std::unique_ptr<Buffer> gathered;  // [size] of those; null in a group of one
  SampleParams sample;
  std::unique_ptr<Buffer> ids, logprobs, top_ids, top_logprobs;
  StepResult result;
  bool want_logprobs = false;  // of the Sample that was started
  std::vector<int> num_top;    // of its rows
  std::vector<float> host_logprobs, host_top_logprobs;
  std::vector<int32_t> host_top_ids;
  absl::Status dead;  // the first error

  absl::Status Load(const Checkpoint& checkpoint, RankReport* report);
  absl::Status AllocateBuffers();
  absl::Status RecordReplays();
  absl::Status Launch(const StepPlan& step);
  absl::Status StartSample(const std::vector<SampleRow>& samples);
  absl::Status FinishSample();
  // `wait` for the device with a timeout, again and again while it may be waiting for peers that live.
  absl::Status Await(absl::FunctionRef<absl::Status(int64_t timeout_ms)> wait) const;
  absl::Status Await(int64_t mark) const {
    return Await([this, mark](int64_t timeout_ms) { return ops->Wait(mark, timeout_ms); });
  }
  absl::Status AwaitAll() const {
    return Await([this](int64_t timeout_ms) { return ops->Synchronize(timeout_ms); });
  }

  const float* all_logits() const {
    return static_cast<const float*>((gathered ? gathered : logits)->data());
  }
  // After an error nothing runs any more: block tables and cache may have parted from the other ranks'.
  absl::Status Keep(absl::Status status) {
    if (dead.ok() && !status.ok()) {
      dead = status;
      ops->StopReplays();
    }
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
  PHX_RETURN_IF_ERROR(batch.Init(ops, {.max_tokens = max_tokens,
                                       .max_logits = max_logits,
                                       .context_length = options.context_length,
                                       .block_size = options.block_size,
                                       .vocab_size = config.vocab_size,
                                       .num_rope_modes = config.rope.size()}));
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

// Steps of no sequences: the longest first, which need the most memory.
absl::Status ModelRunner::Impl::RecordReplays() {
  if (!ops->info().replays) return absl::OkStatus();
  for (const int rows : options.replay_rows) {
    if (rows <= std::min(options.max_tokens_per_step, options.max_logits_per_step)) {
      replay_rows.push_back(rows);
    }
  }
  for (auto rows = replay_rows.rbegin(); rows != replay_rows.rend(); ++rows) {
    PHX_RETURN_IF_ERROR(batch.Build(StepPlan(), tables, 0, static_cast<const int32_t*>(ids->data()), *rows));
    PHX_RETURN_IF_ERROR(model->Forward(batch.rows(), cache.get(), static_cast<float*>(logits->data())));
  }
  return AwaitAll();
}

absl::Status ModelRunner::Impl::Await(absl::FunctionRef<absl::Status(int64_t)> wait) const {
  const auto began = std::chrono::steady_clock::now();
  while (true) {
    const absl::Status status = wait(kDeviceTimeoutMs);
    const auto waited = std::chrono::steady_clock::now() - began;
    if (!absl::IsDeadlineExceeded(status) || collective->size() == 1 ||
        waited > std::chrono::milliseconds(options.peers_timeout_ms)) {
      return status;
    }
    PHX_RETURN_IF_ERROR(collective->Check());
  }
}

absl::Status ModelRunner::Impl::Launch(const StepPlan& step) {
  // So that a rank that nobody's result makes wait is no more than two steps ahead of its device.
  PHX_RETURN_IF_ERROR(Await(launched_before));
  PHX_RETURN_IF_ERROR(tables.Apply(step));
  const int64_t padded = ops->info().replays ? RowsToReplay(step, replay_rows) : 0;
  PHX_RETURN_IF_ERROR(
      batch.Build(step, tables, num_logits, static_cast<const int32_t*>(ids->data()), padded));
  num_logits = step.num_logits();
  if (step.rows.empty()) return absl::OkStatus();
  auto* own = static_cast<float*>(logits->data());
  PHX_RETURN_IF_ERROR(model->Forward(batch.rows(), cache.get(), own));
  launched_before = launched;
  PHX_ASSIGN_OR_RETURN(launched, ops->Mark());
  if (gathered == nullptr) return absl::OkStatus();
  // A step ends with an exchange of another kind than its sums', so that a recorded one finds them at the
  // same places.
  if (num_logits == 0) return collective->enqueues() ? collective->Barrier() : absl::OkStatus();
  const int64_t bytes = num_logits * plan.max_vocab_share * static_cast<int64_t>(sizeof(float));
  return collective->AllGather(own, bytes, gathered->data());
}

absl::Status ModelRunner::Impl::StartSample(const std::vector<SampleRow>& samples) {
  result.ids.clear();
  result.logprobs.clear();
  num_top.clear();
  if (static_cast<int64_t>(samples.size()) != num_logits) {
    return absl::InternalError(
        absl::StrCat(samples.size(), " samples for the ", num_logits, " logits rows of the last step"));
  }
  if (samples.empty()) return absl::OkStatus();
  for (const SampleRow& row : samples) num_top.push_back(row.num_top);
  want_logprobs =
      std::any_of(samples.begin(), samples.end(), [](const SampleRow& row) { return row.num_top >= 0; });
  sample.logits = all_logits();
  sample.num_rows = num_logits;
  sample.rows = samples;
  sample.logprobs = want_logprobs ? static_cast<float*>(logprobs->data()) : nullptr;
  sample.top_ids = want_logprobs ? static_cast<int32_t*>(top_ids->data()) : nullptr;
  sample.top_logprobs = want_logprobs ? static_cast<float*>(top_logprobs->data()) : nullptr;
  PHX_RETURN_IF_ERROR(ops->Sample(sample));
  const int64_t rows = num_logits;
  result.ids.resize(rows);
  PHX_RETURN_IF_ERROR(ops->Copy(result.ids.data(), ids->data(), rows * 4, CopyKind::kToHost));
  if (want_logprobs) {
    host_logprobs.resize(rows);
    host_top_ids.resize(rows * kMaxTopLogprobs);
    host_top_logprobs.resize(rows * kMaxTopLogprobs);
    PHX_RETURN_IF_ERROR(ops->Copy(host_logprobs.data(), logprobs->data(), rows * 4, CopyKind::kToHost));
    PHX_RETURN_IF_ERROR(
        ops->Copy(host_top_ids.data(), top_ids->data(), rows * kMaxTopLogprobs * 4, CopyKind::kToHost));
    PHX_RETURN_IF_ERROR(ops->Copy(host_top_logprobs.data(), top_logprobs->data(), rows * kMaxTopLogprobs * 4,
                                  CopyKind::kToHost));
  }
  PHX_ASSIGN_OR_RETURN(sampled_mark, ops->Mark());
  return absl::OkStatus();
}

absl::Status ModelRunner::Impl::FinishSample() {
  if (result.ids.empty()) return absl::OkStatus();
  PHX_RETURN_IF_ERROR(Await(sampled_mark));
  PHX_RETURN_IF_ERROR(collective->Completed());
  const auto rows = static_cast<int64_t>(result.ids.size());
  result.logprobs.resize(rows);
  for (int64_t r = 0; r < rows && want_logprobs; ++r) {
    if (num_top[r] < 0) continue;
    TokenLogprobs& out = result.logprobs[r];
    out.id = result.ids[r];
    out.logprob = host_logprobs[r];
    for (int i = 0; i < std::min({num_top[r], kMaxTopLogprobs, config.vocab_size}); ++i) {
      const int64_t at = r * kMaxTopLogprobs + i;
      out.top.emplace_back(host_top_ids[at], host_top_logprobs[at]);
    }
  }
  return absl::OkStatus();
}

ModelRunner::ModelRunner(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ModelRunner::~ModelRunner() {
  // What was recorded reads this model's memory, and may hold its collective's calls.
  if (impl_->ops != nullptr) impl_->ops->StopReplays();
}

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
  PHX_RETURN_IF_ERROR(impl->RecordReplays());
  return std::unique_ptr<ModelRunner>(new ModelRunner(std::move(impl)));
}

absl::Status ModelRunner::Launch(const StepPlan& plan) {
  PHX_RETURN_IF_ERROR(impl_->dead);
  return impl_->Keep(impl_->Launch(plan));
}

absl::StatusOr<StepResult> ModelRunner::Sample(const std::vector<SampleRow>& samples) {
  PHX_RETURN_IF_ERROR(StartSample(samples));
  return FinishSample();
}

absl::Status ModelRunner::StartSample(const std::vector<SampleRow>& samples) {
  PHX_RETURN_IF_ERROR(impl_->dead);
  return impl_->Keep(impl_->StartSample(samples));
}

absl::StatusOr<StepResult> ModelRunner::FinishSample() {
  PHX_RETURN_IF_ERROR(impl_->dead);
  PHX_RETURN_IF_ERROR(impl_->Keep(impl_->FinishSample()));
  return impl_->result;
}

bool ModelRunner::runs_ahead() const { return impl_->ops->info().queued; }

absl::Status ModelRunner::ShareSampled() {
  PHX_RETURN_IF_ERROR(impl_->dead);
  if (impl_->num_logits == 0 || impl_->collective->size() == 1) return absl::OkStatus();
  return impl_->Keep(impl_->collective->Broadcast(impl_->ids->data(), impl_->num_logits * 4, 0));
}

absl::StatusOr<std::vector<float>> ModelRunner::ReadLogits() {
  PHX_RETURN_IF_ERROR(impl_->dead);
  const int64_t rows = impl_->num_logits;
  const int64_t share = impl_->plan.max_vocab_share;
  const int64_t vocab = impl_->config.vocab_size;
  std::vector<float> shares(rows * share * impl_->collective->size());
  if (rows == 0) return shares;
  PHX_RETURN_IF_ERROR(impl_->ops->Copy(shares.data(), impl_->all_logits(),
                                       static_cast<int64_t>(shares.size() * sizeof(float)),
                                       CopyKind::kToHost));
  PHX_RETURN_IF_ERROR(impl_->AwaitAll());
  PHX_RETURN_IF_ERROR(impl_->collective->Completed());
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

std::vector<int> ModelRunner::replay_rows() const { return impl_->replay_rows; }

int64_t ModelRunner::weight_bytes() const { return impl_->model->weight_bytes(); }

int64_t ModelRunner::memory_bytes() const {
  int64_t bytes =
      impl_->model->weight_bytes() + impl_->model->workspace_bytes() + impl_->kv_bytes + impl_->batch.bytes();
  for (const auto* buffer : {&impl_->logits, &impl_->gathered, &impl_->ids, &impl_->logprobs, &impl_->top_ids,
                             &impl_->top_logprobs}) {
    if (*buffer != nullptr) bytes += (*buffer)->bytes();
  }
  return bytes;
}

}  // namespace phalanx
