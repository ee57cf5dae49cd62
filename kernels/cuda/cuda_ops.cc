#include "kernels/cuda/cuda_ops.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/strings.h"
#include "kernels/cuda/cuda_exchange.h"
#include "kernels/cuda/half.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/quant_weight.h"
#include "kernels/dequantize.h"
#include "kernels/numeric.h"
#include "kernels/quantised_kv.h"
#include "kernels/validate.h"

namespace phalanx::cuda {
namespace {

constexpr int kKernelVersion = 4;
// Partial sums of a product over many shards and rows are made for as many rows at once as fit.
constexpr int64_t kMaxPartialBytes = int64_t{256} << 20;

absl::Status CheckFits(const char* call, const char* field, int64_t value) {
  if (value <= std::numeric_limits<int32_t>::max()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(call, ": ", field, " is ", value, ", must be below 2^31"));
}

uint16_t* Activations(const Matrix& m) { return static_cast<uint16_t*>(m.data); }

std::vector<uint64_t> Probe(const WeightSource& source) {
  const int64_t bytes = RowBytes(source.dtype, source.rows * source.cols);
  const char* data =
      static_cast<const char*>(source.data) + RowBytes(source.dtype, source.first_row * source.cols);
  std::vector<uint64_t> probes;
  for (int64_t i = 0; i < 32 && bytes >= 8; ++i) {
    uint64_t v = 0;
    std::memcpy(&v, data + (bytes - 8) * i / 31, 8);
    probes.push_back(v);
  }
  return probes;
}

bool SameSource(const WeightSource& a, const WeightSource& b) {
  return a.data == b.data && a.dtype == b.dtype && a.rows == b.rows && a.cols == b.cols &&
         a.first_row == b.first_row && a.scales.data == b.scales.data;
}

}  // namespace

CudaOps::CudaOps(std::shared_ptr<Runtime> runtime, const OpsOptions& options,
                 std::unique_ptr<FastProducts> fast)
    : runtime_(std::move(runtime)),
      half_(options.fp16),
      fast_(std::move(fast)),
      packed_x_(runtime_),
      partials_(runtime_),
      widened_(runtime_),
      sample_device_(runtime_),
      sample_scratch_(runtime_),
      route_scratch_(runtime_),
      group_scratch_(runtime_),
      graphs_(options.graphs) {
  const DeviceInfo& device = runtime_->device();
  info_.backend = device.emulated ? "cuda-emulated" : "cuda";
  info_.instruction_set = absl::StrCat(device.architecture, fast_ != nullptr ? "-fast" : "-invariant");
  info_.device = device.name;
  if (fast_ != nullptr && !fast_->Describe().empty()) absl::StrAppend(&info_.device, ", ", fast_->Describe());
  info_.weight_dtype = half_ ? DType::kF16 : DType::kBF16;
  info_.kv_type = IsQuantised(options.kv_type) ? options.kv_type : KvType::kBf16;
  info_.kept_dtypes = QuantPacking::KeptTypes();
  info_.kernel_version = kKernelVersion;
  info_.free_bytes = device.free_bytes;
  info_.exchanges = true;
  info_.queued = true;
  // Of an emulated device there is nothing to be gained but tests.
  info_.replays = graphs_ == DeviceGraphs::kOn || (graphs_ == DeviceGraphs::kAuto && !device.emulated);
}

absl::StatusOr<std::unique_ptr<Buffer>> CudaOps::Allocate(int64_t bytes) {
  return CudaBuffer::Create(runtime_, bytes);
}

absl::StatusOr<std::unique_ptr<PackedWeight>> CudaOps::PackWeight(const PackWeightParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  if (fast_ != nullptr && fast_->fp8() != nullptr) {
    PHX_ASSIGN_OR_RETURN(std::unique_ptr<Fp8Weight> weight, fast_->fp8()->Pack(p));
    if (weight != nullptr) return weight;
  }
  if (fast_ != nullptr && !QuantPacking::Plan(p).has_value()) return FastWeight::Pack(runtime_, half_, p);
  return CudaWeight::Pack(runtime_, half_, p);
}

absl::StatusOr<std::unique_ptr<RopeTable>> CudaOps::MakeRopeTable(const RopeConfig& config,
                                                                  int64_t num_positions) {
  PHX_RETURN_IF_ERROR(Validate(config, num_positions));
  return CudaRopeTable::Create(runtime_, config, num_positions);
}

int64_t CudaOps::KvBlockBytes(const KvCacheShape& shape) const {
  return CudaKvCache::BlockBytes(shape, CodecOf(info_.kv_type));
}

absl::StatusOr<std::unique_ptr<KvCache>> CudaOps::CreateKvCache(const KvCacheShape& shape,
                                                                int64_t num_blocks) {
  PHX_RETURN_IF_ERROR(Validate(shape, num_blocks, info_.kv_type));
  return CudaKvCache::Create(runtime_, shape, CodecOf(info_.kv_type), num_blocks);
}

absl::Status CudaOps::Copy(void* to, const void* from, int64_t bytes, CopyKind kind) {
  if (bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat("Copy: bytes is ", bytes, ", must be at least 0"));
  }
  if (bytes == 0) return absl::OkStatus();
  if (to == nullptr || from == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("Copy: ", to == nullptr ? "to" : "from", " is null, must hold ", bytes, " bytes"));
  }
  return runtime_->Copy(to, from, bytes, kind);
}

absl::Status CudaOps::Synchronize(int64_t timeout_ms) { return runtime_->Synchronize(timeout_ms); }

absl::StatusOr<double> CudaOps::Time(const std::function<absl::Status()>& work) {
  return runtime_->Time(work);
}

absl::StatusOr<const uint16_t*> CudaOps::TableOf(const WeightSource& source) {
  std::vector<uint64_t> probes = Probe(source);
  for (Table& table : tables_) {
    if (!SameSource(table.source, source)) continue;
    if (table.probes == probes) return table.values->as<const uint16_t>();
    std::swap(table, tables_.back());
    tables_.pop_back();
    break;
  }
  Table table;
  table.source = source;
  table.probes = std::move(probes);
  PHX_ASSIGN_OR_RETURN(table.values, CudaBuffer::Create(runtime_, source.rows * source.cols * 2));
  const int64_t rows_at_once = std::max<int64_t>(1, (int64_t{1} << 20) / std::max<int64_t>(1, source.cols));
  std::vector<float> rows;
  std::vector<uint16_t> narrow;
  for (int64_t r = 0; r < source.rows && source.cols > 0; r += rows_at_once) {
    const int64_t end = std::min(source.rows, r + rows_at_once);
    rows.resize(static_cast<size_t>((end - r) * source.cols));
    DequantizeTile(source, {r, end}, {0, source.cols}, rows.data(), source.cols);
    narrow.resize(rows.size());
    std::transform(rows.begin(), rows.end(), narrow.begin(),
                   [&](float v) { return half_ ? HalfFromFloat(v) : Bf16FromFloat(v); });
    PHX_RETURN_IF_ERROR(runtime_->Copy(table.values->as<uint16_t>() + r * source.cols, narrow.data(),
                                       static_cast<int64_t>(narrow.size()) * 2, CopyKind::kToDevice));
  }
  tables_.push_back(std::move(table));
  return tables_.back().values->as<const uint16_t>();
}

absl::StatusOr<std::unique_ptr<Exchange>> CudaOps::CreateExchange(const ExchangeOptions& options) {
  return cuda::CreateExchange(runtime_, half_, fast_.get(), options);
}

absl::Status CudaOps::Embed(const EmbedParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  EmbedArgs args;
  PHX_ASSIGN_OR_RETURN(args.table, TableOf(p.table));
  args.vocab = p.table.rows;
  args.token_ids = p.token_ids;
  args.from_sampled = p.from_sampled;
  args.sampled = p.sampled;
  args.x = Activations(p.x);
  args.rows = p.x.rows;
  args.cols = p.x.cols;
  args.stride = p.x.stride;
  return runtime_->ToStatus(LaunchEmbed(args, runtime_->stream()), "Embed");
}

absl::Status CudaOps::RmsNorm(const RmsNormParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  PHX_ASSIGN_OR_RETURN(const RmsNormArgs args, NormArgs(p, fast_.get()));
  return runtime_->ToStatus(LaunchRmsNorm(args, half_, runtime_->stream()), "RmsNorm");
}

absl::StatusOr<const CudaWeight*> CudaOps::Own(const char* call, const PackedWeight* weight) const {
  const auto* own = dynamic_cast<const CudaWeight*>(weight);
  if (own != nullptr && own->owner() == runtime_.get()) return own;
  return absl::InvalidArgumentError(absl::StrCat(call, ": weight was packed by other Ops"));
}

const FastWeight* CudaOps::AsFast(const PackedWeight* weight) const {
  const auto* fast = dynamic_cast<const FastWeight*>(weight);
  return fast_ != nullptr && fast != nullptr && fast->owner() == runtime_.get() ? fast : nullptr;
}

const Fp8Weight* CudaOps::AsFp8(const PackedWeight* weight) const {
  const auto* fp8 = dynamic_cast<const Fp8Weight*>(weight);
  return fp8 != nullptr && fp8->owner() == runtime_.get() ? fp8 : nullptr;
}

absl::Status CudaOps::Product(const char* call, const Matrix& x, const PackedWeight* packed,
                              const float* bias, void* y, int64_t y_stride, int64_t tree_stride, bool y_fp32,
                              bool gated) {
  const bool may_search = !runtime_->device().emulated;
  if (const FastWeight* fast = AsFast(packed); fast != nullptr) {
    return fast_->Product(call, x, *fast, bias, y, y_stride, tree_stride, y_fp32, may_search);
  }
  if (const Fp8Weight* fp8 = AsFp8(packed); fp8 != nullptr) {
    return fast_->fp8()->Product(call, x, *fp8, bias, y, y_stride, tree_stride, y_fp32, may_search);
  }
  PHX_ASSIGN_OR_RETURN(const CudaWeight* own, Own(call, packed));
  const CudaWeight& weight = *own;
  if (x.rows == 0 || weight.n() == 0) return absl::OkStatus();
  PHX_RETURN_IF_ERROR(CheckFits(call, "x.rows", x.rows));
  void* const stream = runtime_->stream();
  const bool direct = weight.aligned() && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % 8 == 0;
  GemmArgs args = weight.Args(!direct);
  args.bias = bias;
  args.y_stride = y_stride;
  args.tree_stride = tree_stride;
  args.y_fp32 = y_fp32;
  if (gated) {
    args.n /= 2;
    args.up_tiles = args.n / kGemmRowTile;
  }
  args.rows = static_cast<int>(x.rows);
  int64_t rows_at_once = x.rows;
  if (GemmSplits(args) && args.num_segments > 0) {
    const int64_t row_bytes = args.num_segments * weight.n() * 4;
    rows_at_once = std::max<int64_t>(1, std::min(x.rows, kMaxPartialBytes / row_bytes));
    PHX_ASSIGN_OR_RETURN(args.partials, partials_.Get<float>(rows_at_once * args.num_segments * weight.n()));
  }
  if (!direct) {
    PackRowsArgs pack = weight.PackArgs();
    pack.x = Activations(x);
    pack.x_stride = x.stride;
    pack.rows = static_cast<int>(x.rows);
    PHX_ASSIGN_OR_RETURN(pack.out, packed_x_.Get<uint16_t>(x.rows * pack.total_blocks * kGemmBlock));
    PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchPackRows(pack, stream), call));
    args.x = pack.out;
    args.x_stride = int64_t{pack.total_blocks} * kGemmBlock;
  } else {
    args.x = Activations(x);
    args.x_stride = x.stride;
  }
  const uint16_t* const first_x = args.x;
  for (int64_t r = 0; r < x.rows; r += rows_at_once) {
    args.rows = static_cast<int>(std::min(rows_at_once, x.rows - r));
    args.x = first_x + r * args.x_stride;
    args.y = static_cast<char*>(y) + r * y_stride * (y_fp32 ? 4 : 2);
    PHX_RETURN_IF_ERROR(LaunchProduct(call, args));
  }
  return absl::OkStatus();
}

absl::Status CudaOps::Matmul(const MatmulParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  return Product("Matmul", p.x, p.weight, p.bias, p.y.data, p.y.stride, 0, p.y_fp32);
}

absl::Status CudaOps::ShardedMatmul(const ShardedMatmulParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  const int64_t tree_stride = p.tree_stride == 0 ? p.x.rows * p.weight->n() : p.tree_stride;
  return Product("ShardedMatmul", p.x, p.weight, nullptr, p.sums, p.weight->n(), tree_stride, true);
}

absl::Status CudaOps::HeadMatmul(const HeadMatmulParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  if (p.weights.empty()) return absl::OkStatus();
  const auto heads = static_cast<int64_t>(p.weights.size());
  const int64_t k = p.weights[0]->k(), n = p.weights[0]->n(), rest = p.x.cols / heads - k;
  for (int64_t h = 0; h < heads; ++h) {
    const Matrix x = {Activations(p.x) + h * (k + rest), p.x.rows, k, p.x.stride};
    PHX_RETURN_IF_ERROR(Product("HeadMatmul", x, p.weights[static_cast<size_t>(h)], nullptr,
                                Activations(p.y) + h * (n + rest), p.y.stride, 0, false));
  }
  CopyRowsArgs copy;
  copy.x = Activations(p.x) + k;
  copy.x_stride = p.x.stride;
  copy.x_pitch = k + rest;
  copy.y = Activations(p.y) + n;
  copy.y_stride = p.y.stride;
  copy.y_pitch = n + rest;
  copy.rows = p.x.rows;
  copy.heads = heads;
  copy.cols = rest;
  return runtime_->ToStatus(LaunchCopyRows(copy, runtime_->stream()), "HeadMatmul");
}

absl::Status CudaOps::SwiGlu(const SwiGluParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  SwiGluArgs args;
  args.gate_up = Activations(p.gate_up);
  args.rows = p.y.rows;
  args.cols = p.y.cols;
  args.stride = p.gate_up.stride;
  args.y = Activations(p.y);
  args.y_stride = p.y.stride;
  return runtime_->ToStatus(LaunchSwiGlu(args, half_, runtime_->stream()), "SwiGlu");
}

absl::Status CudaOps::RopeStoreKv(const RopeStoreKvParams& p) {
  PHX_RETURN_IF_ERROR(Validate(p));
  const auto* cache = dynamic_cast<const CudaKvCache*>(p.cache);
  if (cache == nullptr || cache->owner() != runtime_.get()) {
    return absl::InvalidArgumentError("RopeStoreKv: cache was made by other Ops");
  }
  if (p.tables.size() > kMaxRopeTables) {
    return absl::InvalidArgumentError(
        absl::StrCat("RopeStoreKv: ", p.tables.size(), " tables, must be at most ", kMaxRopeTables));
  }
  RopeStoreArgs args;
  for (size_t i = 0; i < p.tables.size(); ++i) {
    const auto* table = dynamic_cast<const CudaRopeTable*>(p.tables[i]);
    if (table == nullptr || table->owner() != runtime_.get()) {
      return absl::InvalidArgumentError(absl::StrCat("RopeStoreKv: tables[", i, "] was made by other Ops"));
    }
    args.tables[i] = table->args();
  }
  args.num_tables = static_cast<int>(p.tables.size());
  args.q = Activations(p.q);
  args.k = Activations(p.k);
  args.v = Activations(p.v);
  args.rows = p.q.rows;
  args.q_stride = p.q.stride;
  args.k_stride = p.k.stride;
  args.v_stride = p.v.stride;
  args.num_heads = p.num_heads;
  args.positions = p.positions;
  args.rope_mode = p.rope_mode;
  args.slots = p.slots;
  args.rope_offset = p.rope_offset;
  args.cache = cache->Layer(p.layer);
  return runtime_->ToStatus(LaunchRopeStore(args, half_, runtime_->stream()), "RopeStoreKv");
}

absl::StatusOr<std::unique_ptr<Ops>> CreateCudaOps(std::unique_ptr<Runtime> runtime,
                                                   const OpsOptions& options, const lt::Table* cublaslt) {
  if (options.compute == Compute::kFp32) {
    return absl::UnimplementedError(
        "compute fp32 is not for the CUDA backend: its products take bf16 or fp16; use compute fast, or a "
        "CPU rung");
  }
  if (options.kv_type == KvType::kF32) {
    return absl::UnimplementedError(absl::StrCat(
        "a KV cache of ", KvTypeName(options.kv_type),
        " is not for the CUDA backend: its kernels read 16 bits, int8 or fp8; use auto, bf16, int8 or fp8"));
  }
  const std::shared_ptr<Runtime> shared = std::move(runtime);
  std::unique_ptr<FastProducts> fast;
  if (options.device_mode == DeviceMode::kFast) {
    lt::Table found;
    if (cublaslt == nullptr && !shared->device().emulated) {
      PHX_ASSIGN_OR_RETURN(found, lt::OpenLibrary());
      cublaslt = &found;
    }
    PHX_ASSIGN_OR_RETURN(fast, FastProducts::Create(shared, options.fp16, options.cache_folder, cublaslt));
  }
  if (options.dependent_launch) {
    const DeviceInfo& device = shared->device();
    if (!device.emulated && device.architecture != "sm_90") {
      return absl::UnimplementedError(absl::StrCat(
          "dependent launch is for devices of sm_90, whose kernels wait for each other; this one is ",
          device.architecture));
    }
  }
  dependent_launch = options.dependent_launch;
  return std::make_unique<CudaOps>(shared, options, std::move(fast));
}

}  // namespace phalanx::cuda
