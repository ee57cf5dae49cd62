#include "kernels/cuda/gemm_fast_products.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/half.h"
#include "kernels/dequantize.h"
#include "kernels/numeric.h"

namespace phalanx::cuda {
namespace {

static_assert(kFastBlock == kGemmBlock);  // PackRows pads to it

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

absl::StatusOr<std::unique_ptr<FastWeight>> FastWeight::Pack(const std::shared_ptr<Runtime>& runtime,
                                                             bool half, const PackWeightParams& p) {
  std::unique_ptr<FastWeight> w(new FastWeight);
  w->owner_ = runtime.get();
  for (const WeightPiece& piece : p.pieces) w->n_ += piece.rows.size();
  PHX_ASSIGN_OR_RETURN(w->columns_, FastColumns::Of(runtime, p, kFastBlock));
  const int64_t k = w->columns_.k, stride = w->columns_.stride;
  PHX_ASSIGN_OR_RETURN(w->rows_, CudaBuffer::Create(runtime, w->n_ * stride * 2));
  if (k == 0) return w;

  const int64_t rows_at_once = std::max<int64_t>(1, (int64_t{1} << 20) / stride);
  std::vector<float> wide;
  std::vector<uint16_t> narrow;
  int64_t row = 0;
  for (const WeightPiece& piece : p.pieces) {
    for (int64_t r = piece.rows.begin; r < piece.rows.end; r += rows_at_once) {
      const int64_t count = std::min(rows_at_once, piece.rows.end - r);
      wide.resize(static_cast<size_t>(count * k));
      DequantizeTile(piece.source, {r, r + count}, p.cols, wide.data(), k);
      narrow.assign(static_cast<size_t>(count * stride), 0);
      for (int64_t i = 0; i < count; ++i) {
        for (const FastColumns::Part& part : w->columns_.parts) {
          const float* from = wide.data() + i * k + part.x_begin;
          std::transform(from, from + part.cols, narrow.begin() + i * stride + part.begin,
                         [half](float v) { return half ? HalfFromFloat(v) : Bf16FromFloat(v); });
        }
      }
      PHX_RETURN_IF_ERROR(runtime->Copy(w->rows_->as<uint16_t>() + row * stride, narrow.data(),
                                        static_cast<int64_t>(narrow.size()) * 2, CopyKind::kToDevice));
      row += count;
    }
  }
  return w;
}

absl::StatusOr<std::unique_ptr<FastProducts>> FastProducts::Create(const std::shared_ptr<Runtime>& runtime,
                                                                   bool half, const std::string& cache_folder,
                                                                   const lt::Table* table) {
  std::unique_ptr<FastProducts> products(new FastProducts(runtime, half));
  if (table == nullptr) return products;
  LtOptions options;
  options.cache_folder = cache_folder;
  if (products->hopper_) {
    options.own = [self = products.get()](const LtProblem& p) { return self->RunHopper(p); };
    options.own_version = kHopperVersion;
  }
  PHX_ASSIGN_OR_RETURN(products->many_, LtProducts::Create(runtime, *table, std::move(options)));
  products->fp8_ = std::make_unique<Fp8Products>(runtime, half, products->many_.get());
  return products;
}

FastProducts::FastProducts(std::shared_ptr<Runtime> runtime, bool half)
    : runtime_(std::move(runtime)),
      half_(half),
      hopper_(runtime_->device().emulated || runtime_->device().architecture == "sm_90"),
      packed_x_(runtime_),
      sums_(runtime_) {}

absl::Status FastProducts::RunHopper(const LtProblem& p) {
  HopperGemmArgs args;
  args.weight = static_cast<const uint16_t*>(p.weight);
  args.weight_stride = p.weight_stride;
  args.x = static_cast<const uint16_t*>(p.x);
  args.x_stride = p.x_stride;
  args.y = p.y;
  args.y_stride = p.y_stride;
  args.rows = static_cast<int>(p.rows);
  args.n = static_cast<int>(p.n);
  args.k = static_cast<int>(p.k);
  args.y_fp32 = p.y_fp32;
  args.multiprocessors = runtime_->device().multiprocessors;
  const int error = LaunchHopperGemm(args, p.half, runtime_->stream());
  if (error == kNotTaken) return absl::UnimplementedError("not a product for the kernel of sm_90a");
  return runtime_->ToStatus(error, "the product's kernel of sm_90a");
}

std::string FastProducts::Describe() const {
  return many_ == nullptr ? "" : absl::StrCat("cuBLASLt ", many_->version());
}

absl::Status FastProducts::Product(const char* call, const Matrix& x, const FastWeight& weight,
                                   const float* bias, void* y, int64_t y_stride, int64_t tree_stride,
                                   bool y_fp32, bool may_search) {
  if (x.rows == 0 || weight.n() == 0) return absl::OkStatus();
  if (x.rows > 1 << 30) {
    return absl::InvalidArgumentError(absl::StrCat(call, ": x.rows is ", x.rows, ", must be at most 2^30"));
  }
  const FastColumns& columns = weight.columns();
  PHX_ASSIGN_OR_RETURN(const FastInput input, ReadFastInput(*runtime_, call, x, columns, &packed_x_));
  for (size_t i = 0; i < columns.parts.size(); ++i) {
    const FastColumns::Part& part = columns.parts[i];
    LtProblem p;
    p.weight = weight.rows() + part.begin;
    p.weight_stride = columns.stride;
    p.x = input.Columns(part);
    p.x_stride = input.stride;
    p.y = static_cast<char*>(y) + static_cast<int64_t>(i) * tree_stride * (y_fp32 ? 4 : 2);
    p.y_stride = y_stride;
    p.rows = x.rows;
    p.n = weight.n();
    // Packed rows are filled up with zeros.
    p.k = input.packed ? RoundUp(part.cols, kFastBlock) : part.cols;
    p.half = half_;
    p.y_fp32 = y_fp32;
    LtProblem many = p;
    if (bias != nullptr && !y_fp32) {  // a bias is added before the one rounding
      many.y_fp32 = true;
      many.y_stride = RoundUp(p.n, 4);
    }
    const bool by_library = many_ != nullptr && x.rows > kSkinnyRows;
    if (by_library && bias != nullptr && !y_fp32) {
      PHX_ASSIGN_OR_RETURN(many.y, sums_.Get<float>(p.rows * many.y_stride));
    }
    if (by_library && LtProducts::Takes(many)) {
      PHX_RETURN_IF_ERROR(many_->Run(many, may_search));
      if (bias == nullptr) continue;
      BiasRowsArgs add;
      add.x = static_cast<const float*>(many.y);
      add.x_stride = many.y_stride;
      add.bias = bias;
      add.y = p.y;
      add.y_stride = p.y_stride;
      add.y_fp32 = y_fp32;
      add.rows = static_cast<int>(p.rows);
      add.n = static_cast<int>(p.n);
      PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchBiasRows(add, half_, runtime_->stream()), call));
      continue;
    }
    FastGemmArgs args;
    args.weight = weight.rows() + part.begin;
    args.weight_stride = p.weight_stride;
    args.n = static_cast<int>(p.n);
    args.k = static_cast<int>(p.k);
    args.x = input.Columns(part);
    args.x_stride = p.x_stride;
    args.rows = static_cast<int>(p.rows);
    args.bias = bias;
    args.y = p.y;
    args.y_stride = y_stride;
    args.y_fp32 = y_fp32;
    PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchFastGemm(args, half_, runtime_->stream()), call));
  }
  return absl::OkStatus();
}

absl::Status FastProducts::Grouped(const GroupedMatmulParams& p, const PackedWeight& weight,
                                   const uint16_t* const* weights, int32_t* lists, void* y,
                                   int64_t y_stride) {
  const auto num_experts = static_cast<int>(p.experts.size());
  ExpertListArgs list;
  list.ids = p.ids;
  list.expert_weights = weights;
  list.num_tokens = static_cast<int>(p.num_tokens);
  list.top_k = p.top_k;
  list.num_experts = num_experts;
  list.x_per_choice = p.x_per_choice;
  list.counts = lists;
  list.row_map = lists + num_experts;
  list.y_map = list.row_map + num_experts * p.num_tokens;
  PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchExpertLists(list, runtime_->stream()), "GroupedMatmul"));
  if (const auto* fp8 = dynamic_cast<const Fp8Weight*>(&weight); fp8 != nullptr) {
    return fp8_->Grouped(p, list, *fp8, y, y_stride);
  }
  const auto& any = dynamic_cast<const FastWeight&>(weight);
  FastGemmArgs args;
  PHX_ASSIGN_OR_RETURN(static_cast<RowMajorGemmArgs&>(args),
                       GroupedArgs(*runtime_, p, list, any.columns(), any.n(), y, y_stride, &packed_x_));
  return runtime_->ToStatus(LaunchFastGemm(args, half_, runtime_->stream()), "GroupedMatmul");
}

absl::StatusOr<RmsNormArgs> NormArgs(const RmsNormParams& norm, FastProducts* fast) {
  RmsNormArgs args;
  args.residual = static_cast<uint16_t*>(norm.residual.data);
  args.rows = norm.residual.rows;
  args.cols = norm.residual.cols;
  args.residual_stride = norm.residual.stride;
  args.add = norm.add;
  args.add2 = norm.add2;
  args.weight = norm.weight;
  args.eps = norm.eps;
  args.chosen = norm.rows;
  args.y = static_cast<uint16_t*>(norm.y.data);
  args.y_rows = norm.y.rows;
  args.y_stride = norm.y.stride;
  if (fast != nullptr && fast->fp8() != nullptr) {
    PHX_ASSIGN_OR_RETURN(args.quantised, fast->fp8()->RowsOfNorm(norm));
  }
  return args;
}

}  // namespace phalanx::cuda
