#include "worker/rank_loader.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/logging.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "worker/collective/device_collective.h"
#include "worker/host_resources.h"
#include "worker/verify_weights.h"

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
  int64_t elements = 1;
  for (const int64_t dim : tensor.shape) elements *= dim;
  return words ? elements * 8 : elements;
}

}  // namespace

int64_t EstimateWeightBytes(const Checkpoint& checkpoint, const OpsInfo& info, int num_ranks) {
  int64_t bytes = 0;
  const std::string table = checkpoint.Locate("model.embed_tokens.weight").name;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    // Rows of the embedding are read from the file, but where it is the head too.
    if (tensor.name == table && !checkpoint.config().tied_embeddings) continue;
    const int64_t elements = PackedElements(checkpoint, tensor);
    // Words of 4-bit matrices have no type of their own.
    const DType stored = tensor.dtype.value_or(DType::kAwq);
    const bool kept =
        std::find(info.kept_dtypes.begin(), info.kept_dtypes.end(), stored) != info.kept_dtypes.end();
    bytes += RowBytes(kept ? stored : info.weight_dtype, elements);
    // Scales that lie apart in the file: of 64 columns 4 bytes.
    if (kept && (stored == DType::kAwq || stored == DType::kF8E4M3)) bytes += elements / 16;
  }
  return bytes / num_ranks;
}

namespace {

// Of the file of this program: another build may pack weights in another way.
std::string ProgramIdentity() {
  struct stat info;
  if (stat("/proc/self/exe", &info) != 0) return absl::StrCat("pid ", getpid());
  return absl::StrCat(info.st_dev, ":", info.st_ino, ":", info.st_size, ":", info.st_mtim.tv_sec, ".",
                      info.st_mtim.tv_nsec);
}

// Files survive a restart of the host in folders on a disk, perhaps without all that was written.
std::string BootId() {
  std::ifstream in("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(in, id);
  return id;
}

// Null where this rank is to have weights of its own; why, is logged.
absl::StatusOr<std::unique_ptr<SharedWeights>> OpenSharedWeights(const RankSpec& spec,
                                                                 const WorkerConfig& config,
                                                                 const LoadedRank& rank, int64_t weight_bytes,
                                                                 const std::function<bool()>& cancelled) {
  const auto own = [](const std::string& why) {
    spdlog::info("weights are not shared with other workers: {}", why);
    return nullptr;
  };
  if (config.shared_weights == "off") return own("--shared-weights is off");
  if (weight_bytes < config.min_shared_weight_bytes) {
    return own(absl::StrCat("about ", weight_bytes >> 10, " KiB are not worth it"));
  }
  const OpsInfo& info = rank.ops->info();
  SharedWeightsOptions options;
  options.folder = config.shared_weights;
  options.model_key = absl::StrCat(
      rank.checkpoint->FilesIdentity(), "\n", absl::StrFormat("%016x", rank.checkpoint->ContentHash()), "\n",
      ProgramIdentity(), "\n", BootId(), "\n", info.backend, " ", info.instruction_set, " ",
      ToAbsl(DTypeName(info.weight_dtype)), " ", info.kernel_version, " ", spec.num_shards, " shards, ",
      spec.num_ranks, " ranks");
  options.slice_key = absl::StrCat("rank ", spec.rank);
  // Padding, and the step that files grow by.
  options.expected_bytes = weight_bytes + weight_bytes / 32 + (int64_t{4} << 20);
  options.wait = std::chrono::milliseconds(config.shared_weights_wait_ms);
  options.cancelled = cancelled;
  SharedWeights::RemoveUnused(options.folder, options.model_key);
  if (!rank.ops->UseWeightMemory(nullptr)) {
    return own(absl::StrCat("those of the backend ", info.backend, " cannot be"));
  }
  absl::StatusOr<std::unique_ptr<SharedWeights>> weights = SharedWeights::Open(options);
  if (absl::IsCancelled(weights.status())) return weights.status();
  if (!weights.ok()) {
    spdlog::warn("weights are not shared with other workers: {}", std::string(weights.status().message()));
    return nullptr;
  }
  return weights;
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
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-cache-dtype is '", config.kv_cache_dtype, "'; it must be ", kKvTypeChoices));
  }
  const KvType type = spec.kv_type != KvType::kAuto ? spec.kv_type : *of_worker;
  if (IsQuantised(type) && model.mla) {
    return absl::InvalidArgumentError(absl::StrCat(
        "kv-cache-dtype ", KvTypeName(type), " (of the ",
        spec.kv_type != KvType::kAuto ? "load request" : "worker's flag",
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

namespace {

// The vocabulary and the width of a config.json size memory before the weights are looked for: they must be
// the file's.
absl::Status CheckEmbedding(const Checkpoint& checkpoint) {
  const std::string name = checkpoint.Locate("model.embed_tokens.weight").name;
  const StoredTensor* tensor = checkpoint.FindTensor(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": tensor ", name, " is missing"));
  }
  const std::vector<int64_t> shape = {checkpoint.config().vocab_size, checkpoint.config().hidden_size};
  if (tensor->shape == shape) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      checkpoint.path(), ": tensor ", name, " has the shape [", absl::StrJoin(tensor->shape, ", "),
      "], must be [", absl::StrJoin(shape, ", "), "], the config's vocabulary and width"));
}

}  // namespace

std::string KernelRung(const WorkerConfig& config) {
  return config.device == "cpu" ? config.rung : config.device;
}

DeviceMode DeviceModeOf(const WorkerConfig& config) {
  return config.cuda_mode == "fast" ? DeviceMode::kFast : DeviceMode::kInvariant;
}

DeviceGraphs GraphsOf(const WorkerConfig& config) {
  return config.cuda_graphs == "on"    ? DeviceGraphs::kOn
         : config.cuda_graphs == "off" ? DeviceGraphs::kOff
                                       : DeviceGraphs::kAuto;
}

namespace {

// Of a backend that replays.
void LogReplays(const LoadedRank& rank) {
  const ReplayStats stats = rank.ops->replay_stats();
  spdlog::info("steps of {} rows are replayed: {} graphs in {} KiB of the device's memory",
               absl::StrJoin(rank.runner->replay_rows(), ", "), stats.recorded, stats.bytes >> 10);
  if (stats.not_recorded > 0) {
    spdlog::warn(
        "{} pieces of steps cannot be recorded and are enqueued each time; --cuda-graphs on says why",
        stats.not_recorded);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<LoadedRank>> LoadRank(const RankSpec& spec, const WorkerConfig& config,
                                                     const std::function<bool()>& cancelled,
                                                     const std::function<void(Collective*)>& on_collective) {
  auto rank = std::make_unique<LoadedRank>();
  PHX_ASSIGN_OR_RETURN(rank->checkpoint, Checkpoint::Open(spec.path));
  if (config.verify_weights) {
    const bool corrupt = std::count(config.debug_faults.begin(), config.debug_faults.end(), "corrupt") > 0;
    PHX_RETURN_IF_ERROR(VerifyWeights(rank->checkpoint->Files(), cancelled, corrupt));
  }
  PHX_RETURN_IF_ERROR(CheckEmbedding(*rank->checkpoint));
  rank->config = rank->checkpoint->config();
  PHX_ASSIGN_OR_RETURN(rank->plan, MakeShardPlan(rank->config, spec.num_shards, spec.num_ranks));
  PHX_ASSIGN_OR_RETURN(rank->options.context_length, ContextLength(spec, rank->config));
  if (spec.rank == 0) {
    PHX_ASSIGN_OR_RETURN(rank->token_bytes, LoadTokenBytes(spec.path, rank->checkpoint->gguf(),
                                                           spec.tokenizer, rank->config.vocab_size));
  }
  const HostResources host = ReadHostResources();
  OpsOptions ops_options;
  ops_options.rung = KernelRung(config);
  ops_options.device_mode = DeviceModeOf(config);
  ops_options.cache_folder = config.cache_folder;
  ops_options.graphs = GraphsOf(config);
  ops_options.dependent_launch = config.cuda_dependent_launch == "on";
  ops_options.fp16 = config.cuda_dtype == "fp16";
  ops_options.compute = spec.compute;
  ops_options.num_threads =
      config.threads > 0 ? config.threads : std::max(1, host.cpus / spec.workers_on_host);
  std::string not_pinned;
  PHX_ASSIGN_OR_RETURN(ops_options.cpus, CpusToPin(config.pin_threads, ops_options.num_threads, &not_pinned));
  PHX_ASSIGN_OR_RETURN(ops_options.kv_type, KvTypeOf(spec, config, rank->config));
  ops_options.gpu = config.gpu;
  ops_options.gpu_of_rank = spec.rank;
  PHX_ASSIGN_OR_RETURN(rank->ops, CreateOps(ops_options));
  const OpsInfo& device = rank->ops->info();
  // A device has memory of its own, and to itself.
  const int64_t available_memory = device.free_bytes > 0 ? device.free_bytes : host.memory_available;
  const int sharers = device.free_bytes > 0 ? 1 : spec.workers_on_host;
  rank->fingerprint = Fingerprint(*rank->checkpoint, rank->ops->info(), spec.num_shards);

  const int64_t weight_bytes = EstimateWeightBytes(*rank->checkpoint, rank->ops->info(), spec.num_ranks);
  ModelRunnerOptions& options = rank->options;
  options.max_tokens_per_step = config.max_tokens_per_step;
  options.max_logits_per_step = std::max(kMinLogitsPerStep, config.max_sequences);
  options.block_size = config.kv_block_size;
  options.peers_timeout_ms = int64_t{config.exchange_timeout_seconds} * 1000;
  const int64_t blocks_per_sequence = (options.context_length + options.block_size - 1) / options.block_size;
  options.max_kv_blocks =
      std::min<int64_t>(blocks_per_sequence * config.max_sequences, std::numeric_limits<int32_t>::max());
  spdlog::info(
      "rank {} of {}: {} threads ({}), about {} MiB of weights, KV cache in {}, {} MiB available to {} "
      "workers",
      spec.rank, spec.num_ranks, ops_options.num_threads,
      ops_options.cpus.empty() ? absl::StrCat("not pinned: ", not_pinned)
                               : absl::StrCat("pinned to CPUs ", absl::StrJoin(ops_options.cpus, " ")),
      weight_bytes >> 20, KvTypeName(rank->ops->info().kv_type), available_memory >> 20, sharers);

  const CollectiveNeeds needs = CollectiveNeedsOf(rank->config, rank->plan, options);
  CollectiveOptions collective;
  collective.rank = spec.rank;
  collective.size = spec.num_ranks;
  collective.num_shards = spec.num_shards;
  collective.id = spec.collective_id;
  collective.max_elements = needs.max_elements;
  collective.max_gather_bytes = needs.max_gather_bytes;
  collective.connect_timeout_ms = config.connect_timeout_ms;
  collective.timeout_ms = int64_t{config.exchange_timeout_seconds} * 1000;
  collective.cancelled = cancelled;
  collective.tcp = config.CollectiveListen();
  collective.meet = spec.meet;
  if (device.exchanges) {
    PHX_ASSIGN_OR_RETURN(std::unique_ptr<Collective> host,
                         CreateCollective(spec.collective, HostHalf(collective)));
    PHX_ASSIGN_OR_RETURN(rank->collective,
                         CreateDeviceCollective(rank->ops.get(), std::move(host), collective,
                                                config.gpu_exchange == "peer"   ? ExchangePath::kPeer
                                                : config.gpu_exchange == "nccl" ? ExchangePath::kNccl
                                                                                : ExchangePath::kAuto));
  } else {
    PHX_ASSIGN_OR_RETURN(rank->collective, CreateCollective(spec.collective, collective));
  }
  on_collective(rank->collective.get());

  // Behind the collective: all ranks must have met it soon, and this may wait for another worker.
  absl::StatusOr<std::unique_ptr<SharedWeights>> shared =
      OpenSharedWeights(spec, config, *rank, weight_bytes, cancelled);
  if (!shared.ok()) {
    on_collective(nullptr);
    return shared.status();
  }
  rank->shared_weights = *std::move(shared);
  SharedWeights* const memory = rank->shared_weights.get();
  if (memory != nullptr) rank->ops->UseWeightMemory(memory);
  // Memory of weights that are there already is not available any more, that of files removed is.
  const bool was_packed = memory != nullptr && memory->was_packed();
  const int64_t available = device.free_bytes > 0 ? available_memory : ReadHostResources().memory_available;
  options.on_packed = [&, memory, was_packed, available, sharers](int64_t packed_bytes) {
    int64_t own_bytes = packed_bytes;
    // A device holds the embedding's table, too.
    if (device.free_bytes > 0) {
      own_bytes += RowBytes(device.weight_dtype, int64_t{rank->config.vocab_size} * rank->config.hidden_size);
    }
    if (memory != nullptr) {
      memory->Finish();
      if (was_packed) own_bytes -= memory->bytes();
      if (!memory->given_up())
        spdlog::info("weights shared: {} MiB of {}, {}", memory->bytes() >> 20, memory->path(),
                     was_packed ? "packed before by another worker" : "packed by this one");
    }
    return KvCacheBytes(available, sharers, config.kv_fraction, own_bytes, config.kv_bytes);
  };

  absl::StatusOr<std::unique_ptr<ModelRunner>> runner =
      ModelRunner::Create(*rank->checkpoint, rank->config, rank->plan, spec.rank, rank->ops.get(),
                          rank->collective.get(), options);
  if (!runner.ok()) {
    on_collective(nullptr);
    return runner.status();
  }
  rank->runner = *std::move(runner);
  options.on_packed = nullptr;
  // Now that all ranks of the group have found theirs.
  if (memory != nullptr) SharedWeights::RemoveUnused(config.shared_weights, "");
  spdlog::info("rank {} of {}: {} MiB held, {} KV blocks of {} positions, {}", spec.rank, spec.num_ranks,
               rank->runner->memory_bytes() >> 20, rank->runner->num_kv_blocks(), options.block_size,
               rank->fingerprint);
  if (rank->ops->info().replays) LogReplays(*rank);
  return rank;
}

}  // namespace phalanx
