#include "worker/rank_loader.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/logging.h"
#include "base/status_macros.h"
#include "worker/host_resources.h"

namespace phalanx {
namespace {

// Prompt log-probabilities ask for many logits rows; more than this a step would cost memory for nothing.
constexpr int kMinLogitsPerStep = 128;

// Elements of the matrix or vector that a stored tensor holds: a 4-bit matrix lies in words of 8; its scales
// and zeros, and what else is no weight, are not packed.
int64_t PackedElements(const Checkpoint& checkpoint, const StoredTensor& tensor) {
  const bool words = tensor.name.ends_with(".qweight");
  if (checkpoint.IsUnused(tensor.name) || (!tensor.dtype.has_value() && !words)) return 0;
  for (const char* suffix : {".scales", ".weight_scale", ".weight_scale_inv", ".input_scale"}) {
    if (tensor.name.ends_with(suffix)) return 0;
  }
  int64_t elements = words ? 8 : 1;
  for (const int64_t dim : tensor.shape) elements *= dim;
  return elements;
}

// What this rank's packed weights will about take.
int64_t EstimateWeightBytes(const Checkpoint& checkpoint, DType packed, int num_ranks) {
  int64_t bytes = 0;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    bytes += RowBytes(packed, PackedElements(checkpoint, tensor));
  }
  return bytes / num_ranks;
}

absl::StatusOr<int64_t> ContextLength(const RankSpec& spec, const ModelConfig& config) {
  if (spec.context_length == 0) return config.context_length;
  if (spec.context_length < 1 || spec.context_length > config.context_length) {
    return absl::InvalidArgumentError(absl::StrCat("context_length ", spec.context_length,
                                                   " is not between 1 and ", config.context_length,
                                                   ", the model's own (", spec.path, ")"));
  }
  return spec.context_length;
}

// What the load request says, else the worker's flag.
absl::StatusOr<KvType> KvTypeOf(const RankSpec& spec, const WorkerConfig& config, const ModelConfig& model) {
  const std::optional<KvType> of_worker = KvTypeFromName(config.kv_cache_dtype);
  if (!of_worker) {
    return absl::InvalidArgumentError(absl::StrCat("--kv-cache-dtype is '", config.kv_cache_dtype,
                                                   "'; it must be auto, bf16, fp32 or int8"));
  }
  const KvType type = spec.kv_type != KvType::kAuto ? spec.kv_type : *of_worker;
  if (type == KvType::kInt8 && model.mla) {
    return absl::InvalidArgumentError(absl::StrCat(
        "kv-cache-dtype int8 (of the ", spec.kv_type != KvType::kAuto ? "load request" : "worker's flag",
        ") is not for latent attention (MLA), which ", spec.path, " has; auto, bf16 and fp32 are"));
  }
  return type;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const TokenBytes>> LoadTokenBytes(const std::string& path,
                                                                 const GgufFile* gguf,
                                                                 const std::string& tokenizer,
                                                                 int64_t vocab_size) {
  absl::StatusOr<TokenBytes> bytes = !tokenizer.empty() ? TokenBytesFromTokenizerJson(tokenizer)
                                     : gguf != nullptr  ? TokenBytesFromGguf(*gguf)
                                                        : TokenBytesFromTokenizerJson(path);
  if (!bytes.ok() && !tokenizer.empty()) return bytes.status();
  if (!bytes.ok()) {
    spdlog::warn("no budgets of reasoning tokens: {}", bytes.status().ToString());
    return nullptr;
  }
  if (static_cast<int64_t>(bytes->bytes.size()) > vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the tokenizer of ", tokenizer.empty() ? path : tokenizer, " has ", bytes->bytes.size(),
        " tokens, but the vocabulary of ", path, " has ", vocab_size, "; it must have as many or more"));
  }
  bytes->bytes.resize(vocab_size);
  bytes->is_control.resize(vocab_size, true);
  return std::make_shared<const TokenBytes>(*std::move(bytes));
}

absl::StatusOr<std::unique_ptr<LoadedRank>> LoadRank(const RankSpec& spec, const WorkerConfig& config,
                                                     const std::function<bool()>& cancelled,
                                                     const std::function<void(Collective*)>& on_collective) {
  auto rank = std::make_unique<LoadedRank>();
  PHX_ASSIGN_OR_RETURN(rank->checkpoint, Checkpoint::Open(spec.path));
  rank->config = rank->checkpoint->config();
  PHX_ASSIGN_OR_RETURN(rank->plan, MakeShardPlan(rank->config, spec.num_shards, spec.num_ranks));
  PHX_ASSIGN_OR_RETURN(rank->options.context_length, ContextLength(spec, rank->config));
  if (spec.rank == 0) {
    PHX_ASSIGN_OR_RETURN(rank->token_bytes, LoadTokenBytes(spec.path, rank->checkpoint->gguf(),
                                                           spec.tokenizer, rank->config.vocab_size));
  }
  const HostResources host = ReadHostResources();
  OpsOptions ops_options;
  ops_options.rung = config.rung;
  ops_options.compute = spec.compute;
  ops_options.num_threads =
      config.threads > 0 ? config.threads : std::max(1, host.cpus / spec.workers_on_host);
  PHX_ASSIGN_OR_RETURN(ops_options.kv_type, KvTypeOf(spec, config, rank->config));
  PHX_ASSIGN_OR_RETURN(rank->ops, CreateOps(ops_options));
  rank->fingerprint = Fingerprint(*rank->checkpoint, rank->ops->info(), spec.num_shards);

  const int64_t weight_bytes =
      EstimateWeightBytes(*rank->checkpoint, rank->ops->info().weight_dtype, spec.num_ranks);
  ModelRunnerOptions& options = rank->options;
  options.max_tokens_per_step = config.max_tokens_per_step;
  options.max_logits_per_step = std::max(kMinLogitsPerStep, config.max_sequences);
  options.block_size = config.kv_block_size;
  options.kv_bytes = KvCacheBytes(host.memory_available, spec.workers_on_host, config.kv_fraction,
                                  weight_bytes, config.kv_bytes);
  const int64_t blocks_per_sequence = (options.context_length + options.block_size - 1) / options.block_size;
  options.max_kv_blocks =
      std::min<int64_t>(blocks_per_sequence * config.max_sequences, std::numeric_limits<int32_t>::max());
  spdlog::info(
      "rank {} of {}: {} threads, about {} MiB of weights, up to {} MiB of KV cache in {} ({} MiB available "
      "to "
      "{} workers)",
      spec.rank, spec.num_ranks, ops_options.num_threads, weight_bytes >> 20, options.kv_bytes >> 20,
      KvTypeName(rank->ops->info().kv_type), host.memory_available >> 20, spec.workers_on_host);

  const CollectiveNeeds needs = CollectiveNeedsOf(rank->config, rank->plan, options);
  CollectiveOptions collective;
  collective.rank = spec.rank;
  collective.size = spec.num_ranks;
  collective.num_shards = spec.num_shards;
  collective.id = spec.collective_id;
  collective.max_elements = needs.max_elements;
  collective.max_gather_bytes = needs.max_gather_bytes;
  collective.connect_timeout_ms = config.connect_timeout_ms;
  collective.timeout_ms = config.collective_timeout_ms;
  collective.cancelled = cancelled;
  PHX_ASSIGN_OR_RETURN(rank->collective, CreateCollective(spec.collective, collective));
  on_collective(rank->collective.get());

  absl::StatusOr<std::unique_ptr<ModelRunner>> runner =
      ModelRunner::Create(*rank->checkpoint, rank->config, rank->plan, spec.rank, rank->ops.get(),
                          rank->collective.get(), options);
  if (!runner.ok()) {
    on_collective(nullptr);
    return runner.status();
  }
  rank->runner = *std::move(runner);
  spdlog::info("rank {} of {}: {} MiB held, {} KV blocks of {} positions, {}", spec.rank, spec.num_ranks,
               rank->runner->memory_bytes() >> 20, rank->runner->num_kv_blocks(), options.block_size,
               rank->fingerprint);
  return rank;
}

}  // namespace phalanx
