// The engine without a coordinator: prefill and decode of one group in this process, against what the machine
// can do.
//
//   engine_bench [--model FILE] [--tp D] [--threads N] [--shards N] [--compute fp32|fast]
//                [--rung auto|reference|avx2|avx512|avx512_bf16|amx|cuda] [--prefill N] [--prompt N]
//                [--steps N] [--batches 1,8,32] [--kv-cache-dtype auto|bf16|fp32|int8|fp8] [--repeats N]
//                [--cuda-mode invariant|fast] [--cuda-graphs off|auto|on] [--against-shards N] [--json]
//
// Without --model: a small random model, to see that the bench runs. Prefill: a prompt of --prefill tokens
// (512) in one step. Decode: sequences with a prompt of --prompt tokens (64@2048: 64 sequences, of
// 2048 each), --steps steps of one token each, greedy. Each figure is the best of --repeats runs (3). With
// --against-shards another group of so many shards runs in turn with the first: the median of their times'
// ratios. Bandwidth: packed weights and the KV cache that a step reads, times steps a second, over what as
// many threads read from a buffer as large (a device: over what it copies, bytes read and written).
// Operations: two for each weight and token, the head only for rows with logits, over the peak of the rung's
// instruction.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "tests/bench/limits.h"
#include "tests/worker/test_group.h"
#include "tests/worker/tiny_model.h"

namespace phalanx {
namespace {

constexpr int kBlockSize = 32;

struct Flags {
  std::string model;
  int tp = 1;
  int threads = 1;
  int shards = kDefaultShards;
  int against_shards = 0;  // none
  std::string compute = "fast";
  std::string rung = "auto";
  KvType kv_type = KvType::kAuto;
  int prefill = 512;
  int prompt = 128;
  int steps = 64;
  struct Batch {
    int size = 0;
    int prompt = 0;  // 0: --prompt
  };
  std::vector<Batch> batches = {{1}, {8}, {32}};
  DeviceMode mode = DeviceMode::kInvariant;
  DeviceGraphs graphs = DeviceGraphs::kAuto;
  int repeats = 3;
  bool json = false;
};

[[noreturn]] void Fail(const std::string& message) {
  std::fprintf(stderr, "engine_bench: %s\n", message.c_str());
  std::exit(1);
}

int Number(const std::string& name, const std::string& text) {
  int value = 0;
  if (!absl::SimpleAtoi(text, &value) || value < 1)
    Fail(absl::StrCat(name, " ", text, ": must be a number from 1"));
  return value;
}

Flags ParseFlags(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--json") {
      flags.json = true;
      continue;
    }
    if (i + 1 == argc) Fail(absl::StrCat(name, ": unknown, or lacks its value"));
    const std::string value = argv[++i];
    if (name == "--model") {
      flags.model = value;
    } else if (name == "--tp") {
      flags.tp = Number(name, value);
    } else if (name == "--shards") {
      flags.shards = Number(name, value);
    } else if (name == "--against-shards") {
      flags.against_shards = Number(name, value);
    } else if (name == "--threads") {
      flags.threads = Number(name, value);
    } else if (name == "--compute" && (value == "fp32" || value == "fast")) {
      flags.compute = value;
    } else if (name == "--kv-cache-dtype" && KvTypeFromName(value)) {
      flags.kv_type = *KvTypeFromName(value);
    } else if (name == "--rung") {
      flags.rung = value;
    } else if (name == "--prefill") {
      flags.prefill = Number(name, value);
    } else if (name == "--prompt") {
      flags.prompt = Number(name, value);
    } else if (name == "--steps") {
      flags.steps = Number(name, value);
    } else if (name == "--repeats") {
      flags.repeats = Number(name, value);
    } else if (name == "--batches") {
      flags.batches.clear();
      for (const auto batch : absl::StrSplit(value, ',')) {
        const std::pair<std::string, std::string> parts = absl::StrSplit(batch, absl::MaxSplits('@', 1));
        flags.batches.push_back(
            {Number(name, parts.first), parts.second.empty() ? 0 : Number(name, parts.second)});
      }
    } else if (name == "--cuda-mode" && (value == "invariant" || value == "fast")) {
      flags.mode = value == "fast" ? DeviceMode::kFast : DeviceMode::kInvariant;
    } else if (name == "--cuda-graphs" && (value == "off" || value == "auto" || value == "on")) {
      flags.graphs = value == "off"  ? DeviceGraphs::kOff
                     : value == "on" ? DeviceGraphs::kOn
                                     : DeviceGraphs::kAuto;
    } else {
      Fail(absl::StrCat(name, " ", value, ": unknown option or value"));
    }
  }
  flags.shards = std::max(flags.tp, flags.shards);
  if (flags.against_shards > 0 && flags.against_shards < flags.tp)
    Fail(absl::StrCat("--against-shards ", flags.against_shards, ": fewer than the ", flags.tp,
                      " ranks of --tp"));
  return flags;
}

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Plans made beforehand, so that only the ranks' work is timed.
struct Run {
  std::vector<StepPlan> plans;
  size_t timed_from = 0;
};

// Seconds that rank 0 takes for the plans from run.timed_from on; every rank runs them in its own thread.
double Seconds(TestGroup* group, const Run& run) {
  double begin = 0, end = 0;
  const absl::Status status = group->OnAllRanks([&](int rank) -> absl::Status {
    for (size_t i = 0; i < run.plans.size(); ++i) {
      if (rank == 0 && i == run.timed_from) begin = Now();
      PHX_RETURN_IF_ERROR(group->runner(rank).Launch(run.plans[i]));
      if (rank == 0) {
        const std::vector<SampleRow> samples(run.plans[i].num_logits());
        PHX_RETURN_IF_ERROR(group->runner(0).Sample(samples).status());
      }
      PHX_RETURN_IF_ERROR(group->runner(rank).ShareSampled());
    }
    if (rank == 0) end = Now();
    return absl::OkStatus();
  });
  if (!status.ok()) Fail(status.ToString());
  return end - begin;
}

class Bench {
 public:
  Bench(TestGroup* group, int64_t num_blocks) : group_(group) {
    std::vector<int32_t> order(num_blocks);
    for (int64_t i = 0; i < num_blocks; ++i) order[i] = static_cast<int32_t>(num_blocks - 1 - i);
    tables_ = std::make_unique<TestTables>(num_blocks, kBlockSize, order);
  }

  double Prefill(int num_tokens) {
    Run run;
    Add(&run, {0}, 0, num_tokens);
    const double seconds = Seconds(group_, run);
    Release({0});
    return seconds;
  }

  double Decode(int batch, int prompt, int steps) {
    Run run;
    std::vector<uint32_t> ids;
    for (int i = 0; i < batch; ++i) {
      ids.push_back(static_cast<uint32_t>(i));
      Add(&run, {ids.back()}, 0, prompt);
    }
    Add(&run, ids, prompt, 1);  // the first step of all together has literal ids
    run.timed_from = run.plans.size();
    for (int s = 1; s <= steps; ++s) Add(&run, ids, prompt + s, 0);
    const double seconds = Seconds(group_, run);
    Release(ids);
    return seconds;
  }

 private:
  // A step in which each sequence runs `num_tokens` literal tokens, or (0) the one sampled before.
  void Add(Run* run, const std::vector<uint32_t>& ids, int position, int num_tokens) {
    StepPlan plan;
    for (size_t i = 0; i < ids.size(); ++i) {
      PlanRow row;
      row.sequence = ids[i];
      row.first_position = position;
      for (int t = 0; t < num_tokens; ++t) {
        row.tokens.push_back(
            static_cast<int32_t>((position + t * 31 + ids[i] * 7) % group_->config().vocab_size));
      }
      if (num_tokens == 0) row.tokens.push_back(-1 - static_cast<int32_t>(i));
      row.logit_offsets = {static_cast<int32_t>(row.tokens.size()) - 1};
      tables_->Grow(&plan, ids[i], position + static_cast<int64_t>(row.tokens.size()));
      plan.rows.push_back(std::move(row));
    }
    tables_->Finish(&plan);
    run->plans.push_back(std::move(plan));
  }
  void Release(const std::vector<uint32_t>& ids) {
    StepPlan plan;
    for (const uint32_t id : ids) tables_->Release(&plan, id);
    tables_->Finish(&plan);
    Run run;
    run.plans.push_back(std::move(plan));
    Seconds(group_, run);
  }

  TestGroup* group_;
  std::unique_ptr<TestTables> tables_;
};

int64_t LayerWeights(const ModelConfig& c) {
  const int64_t qkv = int64_t{c.num_heads} * c.key_dim + int64_t{c.num_kv_heads} * (c.key_dim + c.value_dim);
  const int64_t output = int64_t{c.num_heads} * c.value_dim;
  return c.num_layers * c.hidden_size * (qkv + output + 3 * int64_t{c.ffn_size});
}
int64_t HeadWeights(const ModelConfig& c) { return int64_t{c.vocab_size} * c.hidden_size; }

// Of one position: int8 and fp8 have two bytes for each 32 channels.
int64_t KvBytes(const ModelConfig& c, KvType type) {
  const int64_t elements = c.num_layers * int64_t{c.num_kv_heads} * (c.key_dim + c.value_dim);
  if (IsQuantised(type)) return elements * 34 / 32;
  return elements * (type == KvType::kBf16 ? 2 : 4);
}

// Bytes a second that a device reads and writes, together, when it copies.
double CopyBandwidth(Ops* ops) {
  const int64_t bytes = ops->info().free_bytes > 0 ? int64_t{1} << 30 : int64_t{1} << 20;
  const auto from = ops->Allocate(bytes), to = ops->Allocate(bytes);
  if (!from.ok() || !to.ok()) Fail("no room on the device to measure what it copies");
  double best = 0;
  for (int i = 0; i < 10; ++i) {
    const absl::StatusOr<double> seconds =
        ops->Time([&] { return ops->Copy((*to)->data(), (*from)->data(), bytes, CopyKind::kOnDevice); });
    if (!seconds.ok()) Fail(seconds.status().ToString());
    best = std::max(best, 2.0 * static_cast<double>(bytes) / *seconds);
  }
  return best;
}

// The figures of one group and the machine's limits beside them.
class Report {
 public:
  Report(const Flags& flags, TestGroup* group) : flags_(flags), group_(group) {
    const ModelConfig& config = group->config();
    const OpsInfo& info = group->ops(0).info();
    for (int r = 0; r < flags.tp; ++r) weight_bytes_ += group->runner(r).weight_bytes();
    const int threads = flags.tp * flags.threads;
    if (info.backend == "cpu" || info.backend == "reference") {
      bandwidth_ = ReadBandwidth(weight_bytes_, threads);
      const std::string rung = flags.rung == "auto" ? AvailableRungs().back() : flags.rung;
      peak_ = PeakFlops(rung, flags.compute == "fp32" ? Compute::kFp32 : Compute::kFast, threads);
    } else {
      bandwidth_ = CopyBandwidth(&group->ops(0));
    }
    json_ = {{"model", config.name},
             {"backend", info.backend},
             {"instruction_set", info.instruction_set},
             {"device", info.device},
             {"compute", flags.compute},
             {"kv_cache_dtype", KvTypeName(info.kv_type)},
             {"tp", flags.tp},
             {"threads_per_rank", flags.threads},
             {"shards", flags.shards},
             {"against_shards", flags.against_shards},
             {"weight_bytes", weight_bytes_},
             {"read_bytes_per_second", bandwidth_},
             {"peak_flops", peak_}};
    if (flags.json) return;
    std::printf("%s, %s (%s) on %s, %s, tp %d x %d threads\n", config.name.c_str(), info.backend.c_str(),
                info.instruction_set.c_str(), info.device.c_str(), flags.compute.c_str(), flags.tp,
                flags.threads);
    std::printf("weights %.1f MB, read at most %.1f GB/s; %.1f GFLOP/s at most\n",
                static_cast<double>(weight_bytes_) / 1e6, bandwidth_ / 1e9, peak_ / 1e9);
    std::printf("%-14s %10s %10s %12s %12s", "", "tok/s", "ms/step", "of bandwidth", "of FLOP/s");
    if (flags.against_shards > 0)
      std::printf("   %d shards' time over %d's", flags.shards, flags.against_shards);
    std::printf("\n");
  }

  // `kv_read`: positions that all steps together read. `times`: seconds of each run, and of those in turn
  // with them.
  void Add(const std::string& name, int64_t tokens, int64_t logits, int steps, double kv_read,
           const std::vector<std::vector<double>>& times) {
    const double seconds = *std::min_element(times[0].begin(), times[0].end());
    const double tokens_per_second = static_cast<double>(tokens) / seconds;
    const double kv_bytes = static_cast<double>(KvBytes(group_->config(), group_->ops(0).info().kv_type));
    const double bytes = static_cast<double>(weight_bytes_) * steps + kv_read * kv_bytes;
    const double bandwidth_share = bytes / seconds / bandwidth_;
    const double operations = 2.0 * static_cast<double>(LayerWeights(group_->config()) * tokens +
                                                        HeadWeights(group_->config()) * logits);
    const double peak_share = peak_ > 0 ? operations / seconds / peak_ : 0;
    json_[name] = {{"tokens_per_second", tokens_per_second},
                   {"ms_per_step", seconds / steps * 1e3},
                   {"share_of_bandwidth", bandwidth_share},
                   {"share_of_peak_flops", peak_share}};
    double ratio = 0;
    if (times.size() > 1) {
      std::vector<double> ratios;
      for (size_t i = 0; i < times[0].size(); ++i) ratios.push_back(times[0][i] / times[1][i]);
      std::sort(ratios.begin(), ratios.end());
      ratio = ratios[ratios.size() / 2];
      json_[name]["time_against_shards"] = ratio;
    }
    if (flags_.json) return;
    std::printf("%-14s %10.1f %10.3f %11.1f%% %11.1f%%", name.c_str(), tokens_per_second,
                seconds / steps * 1e3, bandwidth_share * 100, peak_share * 100);
    if (ratio > 0) std::printf("   %.3f", ratio);
    std::printf("\n");
  }

  void Finish() const {
    if (flags_.json) std::printf("%s\n", json_.dump(2).c_str());
  }

 private:
  const Flags flags_;
  TestGroup* group_;
  int64_t weight_bytes_ = 0;
  double bandwidth_ = 0;
  double peak_ = 0;
  nlohmann::json json_;
};

std::unique_ptr<Checkpoint> OpenModel(const Flags& flags) {
  if (flags.model.empty()) {
    TinyModelOptions options;
    options.context = 4096;
    return OpenTinyModel(options);
  }
  absl::StatusOr<std::unique_ptr<Checkpoint>> file = Checkpoint::Open(flags.model);
  if (!file.ok()) Fail(file.status().ToString());
  return *std::move(file);
}

int Main(int argc, char** argv) {
  const Flags flags = ParseFlags(argc, argv);
  const std::unique_ptr<Checkpoint> file = OpenModel(flags);
  int max_batch = 1, longest_prompt = flags.prompt;
  for (const Flags::Batch& batch : flags.batches) {
    max_batch = std::max(max_batch, batch.size);
    longest_prompt = std::max(longest_prompt, batch.prompt);
  }
  const int longest = std::max(longest_prompt + flags.steps + 1, flags.prefill);
  TestGroupOptions options;
  options.num_ranks = flags.tp;
  options.ops = {.rung = flags.rung,
                 .compute = flags.compute == "fp32" ? Compute::kFp32 : Compute::kFast,
                 .num_threads = flags.threads,
                 .kv_type = flags.kv_type,
                 .device_mode = flags.mode,
                 .graphs = flags.graphs};
  options.runner = {.max_tokens_per_step = std::max({flags.prefill, longest_prompt, max_batch}),
                    .max_logits_per_step = max_batch,
                    .context_length = longest,
                    .block_size = kBlockSize,
                    .kv_bytes = int64_t{1} << 40,
                    .max_kv_blocks = int64_t{max_batch} * (longest / kBlockSize + 1)};
  std::vector<std::unique_ptr<TestGroup>> groups;
  std::vector<Bench> benches;
  for (const int shards : {flags.shards, flags.against_shards}) {
    if (shards == 0) continue;
    options.num_shards = shards;
    absl::StatusOr<std::unique_ptr<TestGroup>> group = TestGroup::Create(*file, options);
    if (!group.ok()) Fail(group.status().ToString());
    groups.push_back(*std::move(group));
    benches.emplace_back(groups.back().get(), groups.back()->runner(0).num_kv_blocks());
  }

  Report report(flags, groups[0].get());
  const auto times = [&](const auto& measure) {
    std::vector<std::vector<double>> seconds(benches.size());
    for (int i = 0; i < flags.repeats; ++i) {
      for (size_t g = 0; g < benches.size(); ++g) seconds[g].push_back(measure(benches[g]));
    }
    return seconds;
  };
  report.Add(absl::StrCat("prefill ", flags.prefill), flags.prefill, 1, 1, flags.prefill,
             times([&](Bench& bench) { return bench.Prefill(flags.prefill); }));
  for (const Flags::Batch& batch : flags.batches) {
    const int prompt = batch.prompt > 0 ? batch.prompt : flags.prompt;
    const int64_t tokens = int64_t{batch.size} * flags.steps;
    const double positions = prompt + 0.5 * flags.steps;
    report.Add(absl::StrCat("decode ", batch.size, batch.prompt > 0 ? absl::StrCat("@", batch.prompt) : ""),
               tokens, tokens, flags.steps, static_cast<double>(tokens) * positions,
               times([&](Bench& bench) { return bench.Decode(batch.size, prompt, flags.steps); }));
  }
  report.Finish();
  return 0;
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) { return phalanx::Main(argc, argv); }
