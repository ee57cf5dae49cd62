#include "kernels/cpu/cpu_ops.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/validate.h"

namespace phalanx {
namespace {

constexpr SamplingLoops kAvx2SamplingLoops = {Avx2FindMax, Avx2ExpWeights, Avx2SumBlock};

// A rung: what it needs, its kernels of each Compute and the name of the arithmetic of kFast.
struct Rung {
  const char* name;
  std::string (*missing)();
  const GemmKernels* fp32;
  const GemmKernels* fast;
  const QuantKernels* quant;  // of kFast
  const char* instruction_set;
};
constexpr Rung kRungs[] = {
    {"avx2", MissingForAvx2, &kAvx2GemmF32, &kAvx2GemmBf16, &kAvx2Quant, "avx2"},
    {"avx512", MissingForAvx512, &kAvx512GemmF32, &kAvx512GemmBf16, &kAvx512Quant, "avx512-vnni"},
    {"avx512_bf16", MissingForAvx512Bf16, &kAvx512GemmF32, &kAvx512Bf16Gemm, &kAvx512Quant, "avx512-bf16"},
    {"amx", MissingForAmx, &kAvx512GemmF32, &kAmxGemmBf16, &kAmxQuant, "amx-bf16"},
};

const Rung* FindRung(const std::string& name) {
  for (const Rung& rung : kRungs) {
    if (rung.name == name) return &rung;
  }
  return nullptr;
}

float* RowOf(const Matrix& m, int64_t row) { return static_cast<float*>(m.data) + row * m.stride; }

}  // namespace

bool CpuOps::IsRung(const std::string& rung) { return FindRung(rung) != nullptr; }

absl::StatusOr<std::unique_ptr<Ops>> CpuOps::Create(const OpsOptions& options) {
  const Rung& rung = *FindRung(options.rung);
  if (const std::string missing = rung.missing(); !missing.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("rung \"", options.rung, "\" cannot run on this host: it lacks ", missing));
  }
  // In fp32 all rungs have the bits of AVX2.
  if (options.compute == Compute::kFp32) {
    return std::unique_ptr<Ops>(new CpuOps(options, *rung.fp32, nullptr, "avx2"));
  }
  return std::unique_ptr<Ops>(new CpuOps(options, *rung.fast, rung.quant, rung.instruction_set));
}

CpuOps::CpuOps(const OpsOptions& options, const GemmKernels& kernels, const QuantKernels* quant,
               const char* instruction_set)
    : ReferenceOps(options, kAvx2SamplingLoops),
      kernels_(kernels),
      kv_format_(KvFormat::Of(info_.kv_type, kernels.format)),
      quant_(quant),
      pool_(options.num_threads, options.cpus),
      gemm_(pool_),
      grouped_(pool_, gemm_),
      attention_(pool_, kernels),
      samplers_(static_cast<size_t>(options.num_threads), Sampler(kAvx2SamplingLoops)),
      routes_(static_cast<size_t>(options.num_threads)),
      logits_(static_cast<size_t>(options.num_threads)),
      key_(static_cast<size_t>(options.num_threads)) {
  info_.backend = "cpu";
  if (quant != nullptr) info_.kept_dtypes = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1};
  info_.instruction_set = instruction_set;
}

template <typename Body>
void CpuOps::ForRows(int64_t rows, int64_t elements_per_row, Body&& body) {
  constexpr int64_t kSmall = 16384;
  if (rows * elements_per_row < kSmall) {
    for (int64_t r = 0; r < rows; ++r) body(r, 0);
    return;
  }
  const int64_t per_task = std::max<int64_t>(1, kSmall / 4 / std::max<int64_t>(1, elements_per_row));
  pool_.Run((rows + per_task - 1) / per_task, [&](int64_t task, int thread) {
    const int64_t end = std::min(rows, (task + 1) * per_task);
    for (int64_t r = task * per_task; r < end; ++r) body(r, thread);
  });
}

absl::StatusOr<std::unique_ptr<PackedWeight>> CpuOps::PackWeight(const PackWeightParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  return CpuWeight::Pack(kernels_, quant_, p, pool_, weight_memory_);
}

bool CpuOps::UseWeightMemory(WeightMemory* memory) {
  weight_memory_ = memory;
  return true;
}

int64_t CpuOps::KvBlockBytes(const KvCacheShape& shape) const {
  return CpuKvCache::BlockBytes(shape, kv_format_);
}

absl::StatusOr<std::unique_ptr<KvCache>> CpuOps::CreateKvCache(const KvCacheShape& shape,
                                                               int64_t num_blocks) {
  PHX_RETURN_IF_ERROR(Validate(shape, num_blocks, info_.kv_type));
  return CpuKvCache::Create(shape, num_blocks, kv_format_);
}

absl::Status CpuOps::RmsNorm(const RmsNormParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  PHX_RETURN_IF_ERROR(CheckHostContents(p));
  const int64_t hidden = p.residual.cols;
  const auto add = [&](int64_t t) {
    if (p.add2 == nullptr) return Avx2Add(RowOf(p.residual, t), p.add + t * hidden, hidden);
    Avx2AddBoth(RowOf(p.residual, t), p.add + t * hidden, p.add2 + t * hidden, hidden);
  };
  const auto norm = [&](int64_t i, int64_t row) {
    Avx2RmsNorm(RowOf(p.residual, row), p.weight, p.eps, hidden, RowOf(p.y, i));
  };
  if (p.rows == nullptr) {
    ForRows(p.y.rows, 2 * hidden, [&](int64_t t, int) {
      if (p.add != nullptr) add(t);
      norm(t, t);
    });
    return absl::OkStatus();
  }
  if (p.add != nullptr) ForRows(p.residual.rows, hidden, [&](int64_t t, int) { add(t); });
  ForRows(p.y.rows, 2 * hidden, [&](int64_t i, int) { norm(i, p.rows[i]); });
  return absl::OkStatus();
}

absl::Status CpuOps::Matmul(const MatmulParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  const auto* weight = dynamic_cast<const CpuWeight*>(p.weight);
  if (weight == nullptr || &weight->kernels() != &kernels_) {
    return absl::InvalidArgumentError("Matmul: weight was packed by other Ops");
  }
  return gemm_.Matmul(p.x, *weight, p.bias, p.y);
}

absl::Status CpuOps::ShardedMatmul(const ShardedMatmulParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  const auto* weight = dynamic_cast<const CpuWeight*>(p.weight);
  if (weight == nullptr || &weight->kernels() != &kernels_) {
    return absl::InvalidArgumentError("ShardedMatmul: weight was packed by other Ops");
  }
  return gemm_.ShardedMatmul(p.x, *weight, p.sums,
                             p.tree_stride == 0 ? p.x.rows * weight->n() : p.tree_stride);
}

absl::Status CpuOps::SwiGlu(const SwiGluParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  ForRows(p.y.rows, 4 * p.y.cols, [&](int64_t t, int) {
    const float* gate = RowOf(p.gate_up, t);
    Avx2SwiGlu(gate, gate + p.y.cols, p.y.cols, RowOf(p.y, t));
  });
  return absl::OkStatus();
}

absl::Status CpuOps::GatedMatmul(const GatedMatmulParams& p) {
  const auto* weight = dynamic_cast<const CpuWeight*>(p.weight);
  if (weight == nullptr || &weight->kernels() != &kernels_ || !CpuGemm::CanGate(*weight, p.x.rows)) {
    return Ops::GatedMatmul(p);
  }
  MatmulParams product;
  product.x = p.x;
  product.weight = p.weight;
  product.y = p.gate_up;
  PHX_RETURN_IF_ERROR(Validate(product));
  PHX_RETURN_IF_ERROR(Validate(SwiGluParams{.gate_up = p.gate_up, .y = p.y}));
  return gemm_.GatedMatmul(p.x, *weight, p.y);
}

absl::Status CpuOps::GatedShardedMatmul(const GatedShardedMatmulParams& p) {
  const auto* gate_up = dynamic_cast<const CpuWeight*>(p.gate_up);
  const auto* down = dynamic_cast<const CpuWeight*>(p.down);
  if (gate_up == nullptr || down == nullptr || &gate_up->kernels() != &kernels_ ||
      &down->kernels() != &kernels_ || !CpuGemm::CanGate(*gate_up, *down, p.x.rows)) {
    return Ops::GatedShardedMatmul(p);
  }
  MatmulParams product;
  product.x = p.x;
  product.weight = p.gate_up;
  product.y = p.gated_from;
  const ShardedMatmulParams sharded = {
      .x = p.gated, .weight = p.down, .sums = p.sums, .tree_stride = p.tree_stride};
  PHX_RETURN_IF_ERROR(Validate(product));
  PHX_RETURN_IF_ERROR(Validate(SwiGluParams{.gate_up = p.gated_from, .y = p.gated}));
  PHX_RETURN_IF_ERROR(Validate(sharded));
  return gemm_.GatedShardedMatmul(p.x, *gate_up, *down, p.sums,
                                  p.tree_stride == 0 ? p.x.rows * down->n() : p.tree_stride);
}

absl::Status CpuOps::RopeStoreKv(const RopeStoreKvParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  PHX_RETURN_IF_ERROR(CheckHostContents(p));
  auto* cache = dynamic_cast<CpuKvCache*>(p.cache);
  if (cache == nullptr || cache->format() != kv_format_) {
    return absl::InvalidArgumentError("RopeStoreKv: cache was made by other Ops");
  }
  for (size_t i = 0; i < p.tables.size(); ++i) {
    if (dynamic_cast<const HostRopeTable*>(p.tables[i]) == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("RopeStoreKv: tables[", i, "] was made by other Ops"));
    }
  }
  const KvCacheShape& shape = cache->shape();
  for (auto& key : key_) key.resize(static_cast<size_t>(shape.key_dim));
  ForRows(p.q.rows, 2 * (p.q.cols + p.k.cols + p.v.cols), [&](int64_t t, int thread) {
    const auto& table = *static_cast<const HostRopeTable*>(p.tables[static_cast<size_t>(p.rope_mode[t])]);
    float* q = RowOf(p.q, t);
    for (int h = 0; h < p.num_heads; ++h) {
      RotateHead(table, p.positions[t], q + int64_t{h} * shape.key_dim + p.rope_offset);
    }
    if (p.slots[t] < 0) return;
    float* key = key_[static_cast<size_t>(thread)].data();
    for (int g = 0; g < shape.num_kv_heads; ++g) {
      std::copy_n(RowOf(p.k, t) + int64_t{g} * shape.key_dim, shape.key_dim, key);
      RotateHead(table, p.positions[t], key + p.rope_offset);
      const float* value = shape.value_dim == 0 ? nullptr : RowOf(p.v, t) + int64_t{g} * shape.value_dim;
      cache->Store(p.slots[t], p.layer, g, key, value);
    }
  });
  return absl::OkStatus();
}

absl::Status CpuOps::Attention(const AttentionParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  PHX_RETURN_IF_ERROR(CheckHostContents(p));
  const auto* cache = dynamic_cast<const CpuKvCache*>(p.cache);
  if (cache == nullptr || cache->format() != kv_format_) {
    return absl::InvalidArgumentError("Attention: cache was made by other Ops");
  }
  return attention_.Run(p, *cache);
}

absl::Status CpuOps::Route(const RouteParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  // Choosing costs about as much as so many elementwise operations on each score.
  ForRows(p.num_tokens, int64_t{p.num_experts} * 8,
          [&](int64_t t, int thread) { RouteRow(p, t, routes_[static_cast<size_t>(thread)]); });
  return absl::OkStatus();
}

absl::Status CpuOps::GroupedMatmul(const GroupedMatmulParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  PHX_RETURN_IF_ERROR(CheckHostContents(p));
  for (size_t e = 0; e < p.experts.size(); ++e) {
    if (p.experts[e] == nullptr) continue;
    const auto* weight = dynamic_cast<const CpuWeight*>(p.experts[e]);
    if (weight == nullptr || &weight->kernels() != &kernels_) {
      return absl::InvalidArgumentError(
          absl::StrCat("GroupedMatmul: experts[", e, "] was packed by other Ops"));
    }
  }
  return grouped_.Run(p);
}

absl::Status CpuOps::Sample(const SampleParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  ForRows(p.num_rows, p.vocab_size, [&](int64_t r, int thread) {
    SampleRowInto(p, r, samplers_[static_cast<size_t>(thread)], logits_[static_cast<size_t>(thread)]);
  });
  return absl::OkStatus();
}

}  // namespace phalanx
