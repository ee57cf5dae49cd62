// cuda_bench [--rung NAME] [--mode invariant|fast] [--tiny] [--only LIST] [--json FILE]: the kernels of a
// device at the shapes of Phi-4-mini and Phi-4, each beside what the device copies (bytes read plus written,
// measured in this run).
//
// Times are the device's own: the median of several runs of many calls, enqueued together. Operands rotate
// over more memory than the L2 holds. GB/s count the bytes that must move once: packed weights, keys and
// values, activations in and out. Few rows are replayed as a step's work is (Ops::Replay). --tiny: small
// shapes, one run, to see that it works; its figures mean nothing. --only: of products, decode, prefill,
// sampling, rows; and fp8, which is not run unless asked for: a product by FP8 weights beside its bf16 one
// (in mode fast by cuBLASLt, FP8 by FP8).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "kernels/numeric.h"
#include "kernels/ops.h"
#include "nlohmann/json.hpp"
#include "tests/bench/device_inputs.h"

namespace phalanx {
namespace {

constexpr int64_t kRotatedBytes = int64_t{256} << 20;  // the L2 of an H200: 60 MB
constexpr int kBlockSize = 32;
constexpr int kShards = 8;
constexpr int64_t kMaxReplayed = 64;  // rows

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "cuda_bench: %s\n", value.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(value);
}
void OrDie(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "cuda_bench: %s\n", status.ToString().c_str());
  std::exit(1);
}

struct Flags {
  std::string rung = "cuda";
  DeviceMode mode = DeviceMode::kInvariant;
  bool tiny = false;
  std::string json;
  std::vector<std::string> only = {"products", "decode", "prefill", "sampling", "rows"};
  bool Wants(const char* part) const { return std::find(only.begin(), only.end(), part) != only.end(); }
};

class Bench {
 public:
  Bench(const Flags& flags, std::unique_ptr<Ops> ops) : flags_(flags), ops_(std::move(ops)) {
    const OpsInfo& info = ops_->info();
    json_ = {{"device", info.device},
             {"backend", info.backend},
             {"instruction_set", info.instruction_set},
             {"mode", flags.mode == DeviceMode::kFast ? "fast" : "invariant"},
             {"tiny", flags.tiny},
             {"rows", nlohmann::json::array()}};
    std::printf("%s (%s)%s\n", info.device.c_str(), info.instruction_set.c_str(),
                flags.tiny ? ", tiny shapes: the figures mean nothing" : "");
  }

  void Run() {
    Copy();
    std::printf("%-40s %10s %9s %9s %8s\n", "", "us", "GB/s", "TFLOP/s", "of copy");
    std::vector<Model> models(std::begin(kModels), std::end(kModels));
    if (flags_.tiny) models.assign(std::begin(kTinyModels), std::end(kTinyModels));
    for (const Model& model : models) {
      if (flags_.Wants("products")) Products(model);
      if (flags_.Wants("fp8")) Fp8(model);
      if (flags_.Wants("decode")) Decode(model);
      if (flags_.Wants("prefill")) Prefill(model);
      if (flags_.Wants("rows")) Rows(model);
    }
    if (flags_.Wants("sampling")) Sampling();
    if (!flags_.json.empty()) {
      std::FILE* const out = std::fopen(flags_.json.c_str(), "w");
      if (out == nullptr) {
        std::fprintf(stderr, "cuda_bench: cannot write %s\n", flags_.json.c_str());
        std::exit(1);
      }
      std::fprintf(out, "%s\n", json_.dump(1).c_str());
      std::fclose(out);
    }
  }

 private:
  // Median seconds of one call. `replayed`: calls are recorded, `per_replay` at a time, so that the host's
  // work for each is not what is timed; then `sequences` are those that calls to Attention get.
  double Time(const std::function<absl::Status()>& call, bool replayed = false, int per_replay = 1,
              absl::Span<const AttentionSequence> sequences = {}) {
    constexpr double kRunSeconds = 0.02;
    constexpr int kRuns = 7, kMaxCalls = 2000;
    ReplayParams replay;
    replay.key = {1, ++num_timed_, 0};
    replay.sequences = sequences;
    const auto once = [&]() -> absl::Status {
      for (int i = 0; i < per_replay; ++i) {
        if (absl::Status s = call(); !s.ok()) return s;
      }
      return absl::OkStatus();
    };
    const auto run = [&](int times) {
      return OrDie(ops_->Time([&]() -> absl::Status {
               for (int i = 0; i < times; ++i) {
                 if (absl::Status s = replayed ? ops_->Replay(replay, once) : once(); !s.ok()) return s;
               }
               return absl::OkStatus();
             })) /
             times;
    };
    const double first = run(1);
    if (flags_.tiny) return first / per_replay;
    const double estimate = run(3);
    const int times =
        static_cast<int>(std::clamp(kRunSeconds / std::max(estimate, 1e-7), 3.0, 1.0 * kMaxCalls));
    std::vector<double> runs;
    for (int i = 0; i < kRuns; ++i) runs.push_back(run(times));
    std::nth_element(runs.begin(), runs.begin() + kRuns / 2, runs.end());
    return runs[kRuns / 2] / per_replay;
  }

  void Report(const std::string& group, const std::string& name, double seconds, double bytes, double flop) {
    std::printf("%-40s %10.1f %9.0f %9.1f %7.1f%%\n", absl::StrCat(group, " ", name).c_str(), seconds * 1e6,
                bytes / seconds / 1e9, flop / seconds / 1e12, bytes / seconds / copy_ * 100);
    std::fflush(stdout);
    json_["rows"].push_back({{"group", group},
                             {"name", name},
                             {"microseconds", seconds * 1e6},
                             {"bytes_per_second", bytes / seconds},
                             {"flops", flop / seconds},
                             {"share_of_copy", bytes / seconds / copy_}});
  }

  std::unique_ptr<Buffer> Allocate(int64_t bytes) { return OrDie(ops_->Allocate(bytes)); }
  // Activations, rounded from bf16 to what the device keeps.
  std::unique_ptr<Buffer> Activations(int64_t n, double deviation = 1) {
    std::vector<uint16_t> values = Values(n, deviation);
    return Upload(values.data(), n * 2);
  }
  std::unique_ptr<Buffer> Upload(const void* data, int64_t bytes) {
    auto buffer = Allocate(bytes);
    OrDie(ops_->Copy(buffer->data(), data, bytes, CopyKind::kToDevice));
    OrDie(ops_->Synchronize(60000));
    return buffer;
  }
  // How many operands of so many bytes are beyond every cache.
  int64_t Copies(int64_t bytes) const {
    return flags_.tiny ? 2 : std::max<int64_t>(2, (kRotatedBytes + bytes - 1) / bytes);
  }

  void Copy() {
    const int64_t bytes = flags_.tiny ? 1 << 20 : int64_t{2} << 30;
    auto from = Allocate(bytes), to = Allocate(bytes);
    const double seconds =
        Time([&] { return ops_->Copy(to->data(), from->data(), bytes, CopyKind::kOnDevice); });
    copy_ = 2.0 * static_cast<double>(bytes) / seconds;
    json_["copy_bytes_per_second"] = copy_;
    std::printf("copy on the device: %.0f GB/s, read plus written\n", copy_ / 1e9);
  }

  void Products(const Model& m) {
    const int64_t q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
    Product(m, "qkv", q + 2 * kv, m.hidden, false);
    Product(m, "attention out", m.hidden, q, true);
    Product(m, "gate up", 2 * m.ffn, m.hidden, false);
    Product(m, "down", m.hidden, m.ffn, true);
    Product(m, "head", m.vocab, m.hidden, false);
    const std::vector<DType>& kept = ops_->info().kept_dtypes;
    for (const auto& [name, dtype] :
         {std::pair{"gate up fp8", DType::kF8E4M3}, {"gate up awq", DType::kAwq}}) {
      if (std::find(kept.begin(), kept.end(), dtype) != kept.end())
        Product(m, name, 2 * m.ffn, m.hidden, false, dtype);
    }
  }

  void Fp8(const Model& m) {
    const std::vector<int64_t> counts =
        flags_.tiny ? std::vector<int64_t>{1, 40} : std::vector<int64_t>{1, 16, 64, 256, 2048, 8192};
    const int64_t n = 2 * m.ffn;
    Product(m, "gate up by bf16", n, m.hidden, false, DType::kBF16, false, counts);
    Product(m, "gate up by fp8 rows", n, m.hidden, false, DType::kF8E4M3, true, counts);
    Product(m, "gate up by fp8 blocks", n, m.hidden, false, DType::kF8E4M3, false, counts);
  }

  void Product(const Model& m, const std::string& what, int64_t n, int64_t k, bool sharded,
               DType dtype = DType::kBF16, bool scaled_rows = false, std::vector<int64_t> counts = {}) {
    const bool head = what == "head", quantised = dtype != DType::kBF16;
    // Rows repeat: what is timed reads packed copies, which are equal anyway.
    const Stored stored(dtype, std::min<int64_t>(n, 4096), k, scaled_rows);
    PackWeightParams pack;
    for (int64_t r = 0; r < n; r += stored.source.rows) {
      pack.pieces.push_back({stored.source, {0, std::min(stored.source.rows, n - r)}});
    }
    pack.cols = {0, k};
    if (sharded) {
      for (int s = 0; s <= kShards; ++s) pack.shard_cuts.push_back(k / 32 * s / kShards * 32);
    }
    std::vector<std::unique_ptr<PackedWeight>> weights;
    const int64_t copies = Copies(quantised ? n * k / 2 : n * k * 2);
    while (static_cast<int64_t>(weights.size()) < copies) weights.push_back(OrDie(ops_->PackWeight(pack)));
    if (counts.empty()) {
      counts = {1, 2, 4, 8, 16, 32, 64, 256, 2048};
      if (head) counts = {1, 2, 4, 8, 16, 32, 64};
      if (quantised) counts = {1, 16, 64, 2048};
      if (flags_.tiny) counts = {1, 16, 40};
    }
    const int64_t most = counts.back();
    auto x = Activations(most * k), y = Allocate(most * n * 4);
    for (const int64_t rows : counts) {
      size_t next = 0;
      const double seconds = Time(
          [&] {
            const PackedWeight* const weight = weights[next].get();
            next = (next + 1) % weights.size();
            const Matrix x_m = {x->data(), rows, k, k};
            if (sharded) return ops_->ShardedMatmul({x_m, weight, static_cast<float*>(y->data())});
            MatmulParams p;
            p.x = x_m;
            p.weight = weight;
            p.y = {y->data(), rows, n, n};
            p.y_fp32 = head;
            return ops_->Matmul(p);
          },
          rows <= kMaxReplayed, static_cast<int>(2 * weights.size()));
      const double out = sharded || head ? 4 : 2;
      const double bytes = static_cast<double>(weights[0]->bytes()) + 2.0 * static_cast<double>(rows * k) +
                           out * static_cast<double>(rows * n);
      Report(absl::StrCat("product ", m.name), absl::StrFormat("%s M=%d", what, rows), seconds, bytes,
             2.0 * static_cast<double>(rows) * static_cast<double>(n) * static_cast<double>(k));
    }
  }

  // A cache with `sequences` of `length` positions, and what Attention needs to read it.
  struct Paged {
    std::unique_ptr<KvCache> cache;
    std::unique_ptr<RopeTable> table;
    std::vector<std::unique_ptr<Buffer>> block_tables;
    std::vector<int32_t> kv_head_of;
    KvCacheShape shape;
  };
  Paged MakeCache(const Model& m, int64_t sequences, int64_t length) {
    Paged paged;
    const int64_t blocks = (length + kBlockSize - 1) / kBlockSize;
    paged.shape = {1, static_cast<int>(m.kv_heads), static_cast<int>(m.head_dim),
                   static_cast<int>(m.head_dim), kBlockSize};
    paged.cache = OrDie(ops_->CreateKvCache(paged.shape, blocks * sequences));
    paged.table =
        OrDie(ops_->MakeRopeTable({10000.0, static_cast<int>(m.rotary_dim), false, {}, 1.0f}, length));
    for (int64_t h = 0; h < m.heads; ++h)
      paged.kv_head_of.push_back(static_cast<int32_t>(h * m.kv_heads / m.heads));
    const int64_t width = m.kv_heads * m.head_dim;
    auto k = Activations(length * width), v = Activations(length * width);
    std::vector<int32_t> positions(static_cast<size_t>(length)), zeros(positions.size(), 0);
    for (int64_t p = 0; p < length; ++p) positions[p] = static_cast<int32_t>(p);
    auto positions_d = Upload(positions.data(), length * 4), modes_d = Upload(zeros.data(), length * 4);
    for (int64_t s = 0; s < sequences; ++s) {
      // Blocks of a sequence lie apart, as after some hours of serving.
      std::vector<int32_t> order(static_cast<size_t>(blocks));
      for (int64_t b = 0; b < blocks; ++b) order[b] = static_cast<int32_t>(b * sequences + s);
      std::vector<int64_t> slots(static_cast<size_t>(length));
      for (int64_t p = 0; p < length; ++p)
        slots[p] = int64_t{order[p / kBlockSize]} * kBlockSize + p % kBlockSize;
      auto slots_d = Upload(slots.data(), length * 8);
      RopeStoreKvParams store;
      store.q = {k->data(), length, 0, 0};
      store.k = {k->data(), length, width, width};
      store.v = {v->data(), length, width, width};
      store.positions = static_cast<const int32_t*>(positions_d->data());
      store.rope_mode = static_cast<const int32_t*>(modes_d->data());
      store.tables = {paged.table.get()};
      store.cache = paged.cache.get();
      store.slots = static_cast<const int64_t*>(slots_d->data());
      OrDie(ops_->RopeStoreKv(store));
      OrDie(ops_->Synchronize(60000));
      paged.block_tables.push_back(Upload(order.data(), blocks * 4));
    }
    return paged;
  }
  AttentionParams Params(const Model& m, const Paged& paged, void* q, void* out, int64_t rows_per_sequence,
                         int64_t length) {
    AttentionParams p;
    const auto sequences = static_cast<int64_t>(paged.block_tables.size());
    const int64_t width = m.heads * m.head_dim;
    p.q = {q, sequences * rows_per_sequence, width, width};
    p.num_heads = static_cast<int>(m.heads);
    p.kv_head_of = paged.kv_head_of.data();
    p.cache = paged.cache.get();
    p.scale = 1 / std::sqrt(static_cast<float>(m.head_dim));
    for (int64_t s = 0; s < sequences; ++s) {
      p.sequences.push_back({s * rows_per_sequence, rows_per_sequence, length - rows_per_sequence,
                             static_cast<const int32_t*>(paged.block_tables[s]->data())});
    }
    p.out = {out, sequences * rows_per_sequence, width, width};
    return p;
  }

  void Decode(const Model& m) {
    const auto cases = flags_.tiny ? std::vector<std::pair<int64_t, int64_t>>{{2, 300}}
                                   : std::vector<std::pair<int64_t, int64_t>>{
                                         {1, 1024}, {1, 16384}, {8, 4096}, {32, 4096}, {64, 2048}};
    for (const auto& [batch, length] : cases) {
      const Paged paged = MakeCache(m, batch, length);
      const int64_t width = m.heads * m.head_dim;
      auto q = Activations(batch * width), out = Allocate(batch * width * 2);
      const AttentionParams p = Params(m, paged, q->data(), out->data(), 1, length);
      const double seconds = Time([&] { return ops_->Attention(p); }, true, 1, p.sequences);
      const double keys = static_cast<double>(batch * length);
      // The small caches of the first cases fit the L2: what they read there is said as bandwidth all the
      // same.
      Report(absl::StrCat("decode attention ", m.name), absl::StrFormat("batch %d at %d", batch, length),
             seconds, keys * static_cast<double>(2 * m.kv_heads * m.head_dim * 2),
             4 * keys * static_cast<double>(width));
    }
  }

  void Prefill(const Model& m) {
    for (const int64_t length :
         flags_.tiny ? std::vector<int64_t>{80} : std::vector<int64_t>{2048, 4096, 8192, 16384}) {
      const Paged paged = MakeCache(m, 1, length);
      const int64_t width = m.heads * m.head_dim;
      auto q = Activations(length * width), out = Allocate(length * width * 2);
      const AttentionParams p = Params(m, paged, q->data(), out->data(), length, length);
      const double seconds = Time([&] { return ops_->Attention(p); });
      const double pairs = 0.5 * static_cast<double>(length) * static_cast<double>(length + 1);
      Report(absl::StrCat("prefill attention ", m.name), absl::StrFormat("%d causal", length), seconds,
             static_cast<double>(length * (2 * width + 2 * m.kv_heads * m.head_dim) * 2),
             4 * pairs * static_cast<double>(width));
    }
  }

  void Rows(const Model& m) {
    const std::vector<int64_t> counts =
        flags_.tiny ? std::vector<int64_t>{3} : std::vector<int64_t>{1, 64, 2048};
    const std::vector<float> ones(static_cast<size_t>(m.hidden), 1.0f);
    auto weight = Upload(ones.data(), m.hidden * 4);
    for (const int64_t rows : counts) {
      auto residual = Activations(rows * m.hidden), y = Allocate(rows * m.hidden * 2);
      auto add = Allocate(rows * m.hidden * 4);  // zeros: the residual must not grow from call to call
      RmsNormParams norm;
      norm.residual = {residual->data(), rows, m.hidden, m.hidden};
      norm.add = static_cast<const float*>(add->data());
      norm.weight = static_cast<const float*>(weight->data());
      norm.y = {y->data(), rows, m.hidden, m.hidden};
      Report(absl::StrCat("rows ", m.name), absl::StrFormat("add, norm T=%d", rows),
             Time([&] { return ops_->RmsNorm(norm); }, rows <= kMaxReplayed, 16),
             static_cast<double>(rows * m.hidden * (2 + 2 + 4 + 2)), 0);
      auto gate_up = Activations(rows * 2 * m.ffn), act = Allocate(rows * m.ffn * 2);
      const SwiGluParams glu = {{gate_up->data(), rows, 2 * m.ffn, 2 * m.ffn},
                                {act->data(), rows, m.ffn, m.ffn}};
      Report(absl::StrCat("rows ", m.name), absl::StrFormat("SwiGLU T=%d", rows),
             Time([&] { return ops_->SwiGlu(glu); }, rows <= kMaxReplayed, 16),
             static_cast<double>(rows * m.ffn * 6), 0);
    }
  }

  void Sampling() {
    const int64_t rows = flags_.tiny ? 2 : 64, vocab = flags_.tiny ? 1000 : 200064;
    const std::vector<uint16_t> narrow = Values(rows * vocab, 2);
    std::vector<float> values(narrow.size());
    std::transform(narrow.begin(), narrow.end(), values.begin(), [](uint16_t v) { return FloatFromBf16(v); });
    std::vector<std::unique_ptr<Buffer>> logits;
    const int64_t copies = Copies(rows * vocab * 4);
    while (static_cast<int64_t>(logits.size()) < copies)
      logits.push_back(Upload(values.data(), rows * vocab * 4));
    auto ids = Allocate(rows * 4);
    struct Kind {
      const char* name;
      float temperature, top_p;
      int32_t top_k;
    };
    for (const Kind& kind : {Kind{"greedy", 0, 1, 0}, Kind{"temperature", 0.8f, 1, 0},
                             Kind{"top-p 0.9", 0.8f, 0.9f, 0}, Kind{"top-k 50, top-p 0.9", 0.8f, 0.9f, 50}}) {
      SampleParams p;
      p.num_rows = rows;
      p.vocab_size = p.share_cols = vocab;
      p.share_begin = {0, vocab};
      p.rows.resize(static_cast<size_t>(rows));
      for (int64_t r = 0; r < rows; ++r) {
        p.rows[r].temperature = kind.temperature;
        p.rows[r].top_p = kind.top_p;
        p.rows[r].top_k = kind.top_k;
        p.rows[r].seed = static_cast<uint64_t>(r);
      }
      p.ids = static_cast<int32_t*>(ids->data());
      size_t next = 0;
      const double seconds = Time([&] {
        p.logits = static_cast<const float*>(logits[next]->data());
        next = (next + 1) % logits.size();
        for (SampleRow& row : p.rows) ++row.position;
        return ops_->Sample(p);
      });
      Report("sampling", absl::StrFormat("%d x %d %s", rows, vocab, kind.name), seconds,
             static_cast<double>(rows * vocab * 4), 0);
    }
  }

  const Flags flags_;
  std::unique_ptr<Ops> ops_;
  double copy_ = 1;
  int64_t num_timed_ = 0;
  nlohmann::json json_;
};

[[noreturn]] void Usage(const std::string& message) {
  std::fprintf(stderr,
               "cuda_bench: %s; usage: cuda_bench [--rung NAME] [--mode invariant|fast] [--tiny] [--only "
               "PART,...] [--json FILE]; parts: "
               "products, decode, prefill, sampling, rows, fp8\n",
               message.c_str());
  std::exit(1);
}

int Main(int argc, char** argv) {
  Flags flags;
  std::vector<std::string> parts = flags.only;
  parts.push_back("fp8");
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--tiny") {
      flags.tiny = true;
      continue;
    }
    if (i + 1 == argc) Usage(absl::StrCat(name, " is unknown or lacks its value"));
    const std::string value = argv[++i];
    if (name == "--rung") {
      flags.rung = value;
    } else if (name == "--mode" && (value == "invariant" || value == "fast")) {
      flags.mode = value == "fast" ? DeviceMode::kFast : DeviceMode::kInvariant;
    } else if (name == "--json") {
      flags.json = value;
    } else if (name == "--only") {
      flags.only = absl::StrSplit(value, ',');
      for (const std::string& part : flags.only) {
        if (std::find(parts.begin(), parts.end(), part) == parts.end())
          Usage(absl::StrCat("--only ", part, " is unknown"));
      }
    } else {
      Usage(absl::StrCat(name, " is unknown"));
    }
  }
  OpsOptions options;
  options.rung = flags.rung;
  options.device_mode = flags.mode;
  options.graphs = DeviceGraphs::kAuto;
  std::unique_ptr<Ops> ops = OrDie(CreateOps(options));
  if (ops->activation_dtype() != DType::kBF16)
    Usage(absl::StrCat("--rung ", flags.rung, " keeps no bf16: it is no device"));
  Bench(flags, std::move(ops)).Run();
  return 0;
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) { return phalanx::Main(argc, argv); }
