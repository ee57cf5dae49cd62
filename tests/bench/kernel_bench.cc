// kernel_bench [--quick] [--threads N] [--rung NAME] [--attention] [--cpu-time]: first measures this
// machine's limits, then the kernels, each figure beside its share of the limit: the larger of (weight bytes
// / read bandwidth) and (operations / peak of the unit used) over the time taken. "cache": the same weight
// again and again. "dram": enough copies that each is read from memory. --cpu-time: one thread, by its own
// CPU time, for a busy machine.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "kernels/ops.h"
#include "tests/bench/limits.h"

namespace phalanx {
namespace {

struct MachinePeaks {
  double dram_gb_s = 0;
  double cache_gb_s = 0;
  double gflop_s = 0;  // of the products' unit
};

struct Options {
  bool quick = false;
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::string rung;             // empty: all but the reference
  bool only_attention = false;  // --attention
};

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "kernel_bench: %s\n", value.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(value);
}

void OrDie(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "kernel_bench: %s\n", status.ToString().c_str());
  std::exit(1);
}

bool cpu_time = false;  // --cpu-time

double Seconds() {
  if (cpu_time) {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Median seconds of a call, over about `budget` seconds.
double Time(double budget, const std::function<void()>& call) {
  call();
  std::vector<double> times;
  const double end = Seconds() + budget;
  do {
    const double begin = Seconds();
    call();
    times.push_back(Seconds() - begin);
  } while (Seconds() < end || times.size() < 5);
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

std::vector<float> Normal(int64_t n) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = normal(generator);
  return v;
}

class Bench {
 public:
  Bench(const Options& options, const MachinePeaks& peaks, std::unique_ptr<Ops> ops)
      : options_(options), peaks_(peaks), ops_(std::move(ops)) {}

  void Run() {
    std::printf("\n%s, weights %s, KV %s; at most %.0f GFLOP/s\n", ops_->info().instruction_set.c_str(),
                std::string(DTypeName(ops_->info().weight_dtype)).c_str(), KvTypeName(ops_->info().kv_type),
                peaks_.gflop_s);
    if (options_.only_attention || IsQuantised(ops_->info().kv_type)) return Attentions();
    for (const int shards : {1, 8}) {
      for (const auto& [k, n] : {std::pair<int64_t, int64_t>{576, 1536}, {2048, 8192}})
        Products(DType::kF32, k, n, shards);
    }
    if (ops_->info().weight_dtype == DType::kBF16) {
      for (const DType dtype : {DType::kQ8_0, DType::kQ4_1}) {
        for (const auto& [k, n] : {std::pair<int64_t, int64_t>{576, 1536}, {2048, 8192}})
          Products(dtype, k, n, 1);
      }
    }
    Attentions();
    Small();
  }

 private:
  void Attentions() {
    Attention(1, 1, 512);
    Attention(1, 1, 4096);
    Attention(32, 1, 256);
    Attention(16, 1, options_.quick ? 512 : 8192);  // beyond the nearer caches
    Attention(1, 512, 512);
    Attention(1, 512, 4096);
  }

  // Weights N(0, 1), or blocks of any numbers with a scale of 2^-7.
  void Products(DType dtype, int64_t k, int64_t n, int shards) {
    const std::vector<float> w = Normal(n * k);
    std::vector<uint8_t> blocks(dtype == DType::kF32 ? 0 : static_cast<size_t>(RowBytes(dtype, n * k)));
    for (size_t i = 0; i < blocks.size(); ++i) {
      const size_t at = i % static_cast<size_t>(BlockBytes(dtype));
      const bool scale = at < (dtype == DType::kQ4_1 ? 4 : 2);
      blocks[i] = static_cast<uint8_t>(scale ? (at % 2 == 0 ? 0 : 0x20) : i * 2654435761u >> 13);
    }
    PackWeightParams pack;
    const void* data = dtype == DType::kF32 ? static_cast<const void*>(w.data()) : blocks.data();
    pack.pieces = {{{data, dtype, n, k}, {0, n}}};
    pack.cols = {0, k};
    if (shards > 1) {
      for (int s = 0; s <= shards; ++s) pack.shard_cuts.push_back(k / 32 * s / shards * 32);
    }
    std::vector<std::unique_ptr<PackedWeight>> copies;
    copies.push_back(OrDie(ops_->PackWeight(pack)));
    const int64_t dram_bytes = options_.quick ? 20'000'000 : 600'000'000;
    while (static_cast<int64_t>(copies.size()) * copies[0]->bytes() < dram_bytes) {
      copies.push_back(OrDie(ops_->PackWeight(pack)));
    }
    const std::vector<float> x = Normal(512 * k);
    auto y_buffer = OrDie(ops_->Allocate(512 * n * 4));
    auto* const y = static_cast<float*>(y_buffer->data());
    for (const int64_t rows : {1, 8, 32, 512}) {
      for (const bool dram : {false, true}) {
        size_t next = 0;
        const double seconds = Time(options_.quick ? 0.0 : 0.3, [&] {
          const PackedWeight* weight = copies[next].get();
          if (dram) next = (next + 1) % copies.size();
          Matrix x_m{const_cast<float*>(x.data()), rows, k, k};
          if (shards > 1) {
            OrDie(ops_->ShardedMatmul({x_m, weight, y}));
          } else {
            MatmulParams p;
            p.x = x_m;
            p.weight = weight;
            p.y = {y, rows, n, n};
            OrDie(ops_->Matmul(p));
          }
        });
        const double bytes = static_cast<double>(copies[0]->bytes()), flop = 2.0 * rows * n * k;
        const double gb_s = dram ? peaks_.dram_gb_s : peaks_.cache_gb_s;
        const double limit = std::max(bytes / gb_s, flop / peaks_.gflop_s) / 1e9;
        std::printf(
            "  %s%s K=%-5lld N=%-5lld M=%-4lld %-5s %9.1f us %7.1f GB/s %8.1f GFLOP/s %4.0f %% of "
            "limit\n",
            dtype == DType::kF32 ? "matmul" : std::string(DTypeName(dtype)).c_str(),
            shards > 1 ? " S=8" : "    ", static_cast<long long>(k), static_cast<long long>(n),
            static_cast<long long>(rows), dram ? "dram" : "cache", seconds * 1e6, bytes / seconds / 1e9,
            flop / seconds / 1e9, limit / seconds * 100);
      }
    }
  }

  // SmolLM2-135M's heads: 9 query heads on 3 KV heads of 64 channels.
  void Attention(int64_t sequences, int64_t rows, int64_t length) {
    const KvCacheShape shape = {1, 3, 64, 64, 32};
    const int64_t blocks = (length + 31) / 32;
    auto cache = OrDie(ops_->CreateKvCache(shape, blocks * sequences));
    auto table = OrDie(ops_->MakeRopeTable({10000.0, 64, false, {}, 1.0f}, length));
    const std::vector<int32_t> kv_head_of = {0, 0, 0, 1, 1, 1, 2, 2, 2};
    std::vector<std::vector<int32_t>> block_tables(static_cast<size_t>(sequences));
    RopeStoreKvParams store;
    std::vector<float> q = Normal(std::max(length, sequences * rows) * 576), k = Normal(length * 192), v = k;
    std::vector<int32_t> positions(static_cast<size_t>(length)), modes(positions);
    std::vector<int64_t> slots(static_cast<size_t>(length));
    double store_seconds = 0;
    for (int64_t s = 0; s < sequences; ++s) {
      for (int64_t b = 0; b < blocks; ++b) block_tables[s].push_back(static_cast<int32_t>(s * blocks + b));
      for (int64_t p = 0; p < length; ++p) {
        positions[p] = static_cast<int32_t>(p);
        slots[p] = s * blocks * 32 + p;
      }
      store.q = {q.data(), length, 576, 576};
      store.k = {k.data(), length, 192, 192};
      store.v = {v.data(), length, 192, 192};
      store.num_heads = 9;
      store.positions = positions.data();
      store.rope_mode = modes.data();
      store.tables = {table.get()};
      store.cache = cache.get();
      store.slots = slots.data();
      const double begin = Seconds();
      OrDie(ops_->RopeStoreKv(store));
      store_seconds = Seconds() - begin;
    }
    std::vector<float> out(static_cast<size_t>(sequences * rows * 576));
    AttentionParams p;
    p.q = {q.data(), sequences * rows, 576, 576};
    p.num_heads = 9;
    p.kv_head_of = kv_head_of.data();
    p.cache = cache.get();
    p.scale = 0.125f;
    for (int64_t s = 0; s < sequences; ++s)
      p.sequences.push_back({s * rows, rows, length - rows, block_tables[s].data()});
    p.out = {out.data(), sequences * rows, 576, 576};
    const double seconds = Time(options_.quick ? 0.0 : 0.2, [&] { OrDie(ops_->Attention(p)); });
    double keys = 0;
    for (int64_t r = 0; r < rows; ++r) keys += static_cast<double>(length - rows + r + 1);
    const double flop = sequences * keys * 9 * 4 * 64;
    const double bytes =
        static_cast<double>(sequences) * static_cast<double>(ops_->KvBlockBytes(shape) * blocks);
    std::printf(
        "  attention %lld x %lld rows at %lld: %9.1f us %7.1f GB/s of KV %8.1f GFLOP/s %4.0f %% of peak; "
        "store %.2f us a row\n",
        static_cast<long long>(sequences), static_cast<long long>(rows), static_cast<long long>(length),
        seconds * 1e6, bytes / seconds / 1e9, flop / seconds / 1e9,
        flop / seconds / 1e9 / peaks_.gflop_s * 100, store_seconds / static_cast<double>(length) * 1e6);
  }

  void Small() {
    const int64_t hidden = 576, ffn = 1536, vocab = 49152;
    std::vector<float> residual = Normal(hidden), add(residual), weight(residual), y(residual),
                       gate_up = Normal(2 * ffn), act(static_cast<size_t>(ffn)), logits = Normal(vocab);
    RmsNormParams norm;
    norm.residual = {residual.data(), 1, hidden, hidden};
    norm.weight = weight.data();
    norm.y = {y.data(), 1, hidden, hidden};
    const double budget = options_.quick ? 0.0 : 0.05;
    std::printf("  one row: RmsNorm(%lld) %.2f us", static_cast<long long>(hidden),
                Time(budget, [&] { OrDie(ops_->RmsNorm(norm)); }) * 1e6);
    std::printf(", SwiGlu(%lld) %.2f us", static_cast<long long>(ffn),
                Time(budget, [&] {
                  OrDie(ops_->SwiGlu({{gate_up.data(), 1, 2 * ffn, 2 * ffn}, {act.data(), 1, ffn, ffn}}));
                }) * 1e6);
    int32_t id = 0;
    SampleParams sample;
    sample.logits = logits.data();
    sample.num_rows = 1;
    sample.vocab_size = vocab;
    sample.share_cols = vocab;
    sample.share_begin = {0, vocab};
    sample.rows.resize(1);
    sample.ids = &id;
    const auto time_sample = [&](const char* name) {
      std::printf(", %s %.0f us", name, Time(budget, [&] {
                                          ++sample.rows[0].position;
                                          OrDie(ops_->Sample(sample));
                                        }) * 1e6);
    };
    time_sample("greedy(49152)");
    sample.rows[0].temperature = 0.7f;
    time_sample("temperature");
    sample.rows[0].top_p = 0.9f;
    time_sample("top-p");
    sample.rows[0].top_k = 50;
    time_sample("top-k 50");
    std::printf("\n");
    Controls();
  }

  // What the controls of a request cost a row of a large vocabulary.
  void Controls() {
    const int64_t vocab = 200064;
    const std::vector<float> logits = Normal(vocab);
    auto counts = std::make_shared<TokenCounts>(vocab);
    for (int64_t i = 0; i < 4000; ++i) counts->AddOutput(static_cast<int32_t>(i * 7919 % vocab));
    int32_t id = 0;
    SampleParams sample;
    sample.logits = logits.data();
    sample.num_rows = 1;
    sample.vocab_size = sample.share_cols = vocab;
    sample.share_begin = {0, vocab};
    sample.rows.resize(1);
    sample.ids = &id;
    SampleRow& row = sample.rows[0];
    std::printf("  one row of %lld:", static_cast<long long>(vocab));
    for (const float temperature : {0.0f, 0.7f}) {
      double plain = 0;
      for (const bool penalties : {false, true}) {
        row = SampleRow();
        row.temperature = temperature;
        if (penalties) {
          row.repetition_penalty = 1.1f;
          row.presence_penalty = 0.5f;
          row.counts = counts;
        }
        const double seconds = Time(options_.quick ? 0.0 : 0.05, [&] {
          ++row.position;
          OrDie(ops_->Sample(sample));
        });
        std::printf(" %s%s %.0f us", temperature == 0 ? "greedy" : "temperature",
                    penalties ? " with penalties of 4000 tokens" : "", seconds * 1e6);
        if (penalties) std::printf(" (%.2f x),", seconds / plain);
        if (!penalties) std::printf(",");
        plain = seconds;
      }
    }
    row = SampleRow();
    row.temperature = 0.7f;
    row.min_p = 0.05f;
    std::printf(" min-p %.0f us\n", Time(options_.quick ? 0.0 : 0.05, [&] {
                                      ++row.position;
                                      OrDie(ops_->Sample(sample));
                                    }) * 1e6);
  }

  const Options& options_;
  const MachinePeaks& peaks_;
  std::unique_ptr<Ops> ops_;
};

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--quick") {
      options.quick = true;
    } else if (arg == "--threads" && i + 1 < argc) {
      options.threads = std::max(1, std::atoi(argv[++i]));
    } else if (arg == "--cpu-time") {
      cpu_time = true;
      options.threads = 1;
    } else if (arg == "--attention") {
      options.only_attention = true;
    } else if (arg == "--rung" && i + 1 < argc) {
      options.rung = argv[++i];
    } else {
      std::fprintf(stderr,
                   "kernel_bench: unknown argument \"%s\"; usage: kernel_bench [--quick] [--threads N] "
                   "[--rung NAME] [--attention] [--cpu-time]\n",
                   arg.c_str());
      return 1;
    }
  }
  const std::vector<std::string> rungs = AvailableRungs();
  const double dram_mb = options.quick ? 64 : 1500, cache_mb = 16;
  MachinePeaks peaks;
  peaks.dram_gb_s = ReadBandwidth(static_cast<int64_t>(dram_mb * 1e6), options.threads) / 1e9;
  peaks.cache_gb_s = ReadBandwidth(static_cast<int64_t>(cache_mb * 1e6), options.threads) / 1e9;
  std::printf("%s, %d threads%s\nlimits: read %.1f GB/s from %.0f MB, %.1f GB/s from %.0f MB\n",
              OrDie(CreateOps({"reference", Compute::kFast, 1}))->info().device.c_str(), options.threads,
              options.quick ? " (quick: figures mean little)" : "", peaks.dram_gb_s, dram_mb,
              peaks.cache_gb_s, cache_mb);
  for (const std::string& rung : rungs) {
    if (rung == "reference" || (!options.rung.empty() && rung != options.rung)) continue;
    for (const Compute compute : {Compute::kFp32, Compute::kFast}) {
      if (compute == Compute::kFp32 && (rung == "amx" || rung == "avx512_bf16"))
        continue;  // avx512's kernels
      peaks.gflop_s = PeakFlops(rung, compute, options.threads) / 1e9;
      Bench(options, peaks, OrDie(CreateOps({rung, compute, options.threads}))).Run();
      if (compute == Compute::kFp32) continue;
      for (const KvType type : {KvType::kInt8, KvType::kFp8}) {
        Bench(options, peaks, OrDie(CreateOps({rung, compute, options.threads, type}))).Run();
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) { return phalanx::Main(argc, argv); }
