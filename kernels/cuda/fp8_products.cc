#include "kernels/cuda/fp8_products.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/gemm_fast.h"
#include "kernels/numeric.h"

namespace phalanx::cuda {
namespace {

static_assert(kFp8Block % kFastBlock == 0);

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

float ScaleOf(const WeightScales& scales, int64_t row, int64_t column) {
  if (scales.data == nullptr) return 1.0f;
  const int64_t at = row / scales.block_rows * scales.stride + column / scales.block_cols;
  if (scales.dtype == DType::kF32) {
    float v = 0;
    std::memcpy(&v, static_cast<const char*>(scales.data) + at * 4, 4);
    return v;
  }
  uint16_t half = 0;
  std::memcpy(&half, static_cast<const char*>(scales.data) + at * 2, 2);
  return scales.dtype == DType::kF16 ? FloatFromF16(half) : FloatFromBf16(half);
}

bool SameMatrix(const Matrix& a, const Matrix& b) {
  return a.data == b.data && a.rows == b.rows && a.cols == b.cols && a.stride == b.stride;
}

// Nullopt where factors are of neither form.
std::optional<Fp8Scaling> ScalingOf(const PackWeightParams& p, const FastColumns& columns) {
  const auto of_rows = [&](const WeightScales& s) {
    return s.data == nullptr || p.cols.size() == 0 ||
           p.cols.begin / s.block_cols == (p.cols.end - 1) / s.block_cols;
  };
  if (std::all_of(p.pieces.begin(), p.pieces.end(),
                  [&](const WeightPiece& piece) { return of_rows(piece.source.scales); })) {
    return Fp8Scaling::kRows;
  }
  for (const FastColumns::Part& part : columns.parts) {
    if (part.cols > 0 && (p.cols.begin + part.x_begin) % kFp8Block != 0) return std::nullopt;
  }
  for (const WeightPiece& piece : p.pieces) {
    const WeightSource& s = piece.source;
    if (s.scales.block_rows != kFp8Block || s.scales.block_cols != kFp8Block ||
        (s.first_row + piece.rows.begin) % kFp8Block != 0 ||
        (piece.rows.size() % kFp8Block != 0 && &piece != &p.pieces.back())) {
      return std::nullopt;
    }
  }
  return Fp8Scaling::kBlocks;
}

}  // namespace

Fp8Products::Fp8Products(std::shared_ptr<Runtime> runtime, bool half, LtProducts* library)
    : runtime_(std::move(runtime)),
      half_(half),
      library_(library),
      packed_x_(runtime_),
      codes_(runtime_),
      scales_(runtime_),
      sums_(runtime_) {}

void Fp8Products::KeepScratch() {
  for (Scratch* scratch : {&packed_x_, &codes_, &scales_, &sums_}) scratch->Keep();
}

void Fp8Products::Refuse(const std::string& why, const std::string& more) {
  if (!refused_.insert(why).second) return;
  spdlog::warn("{}{}: our own kernels multiply such FP8 weights by 16-bit activations", why, more);
}

std::string Fp8Products::NoAlgorithm(const Fp8Weight& weight) const {
  return absl::StrCat("cuBLASLt ", library_->version(), " has no algorithm for FP8 products of N ", weight.n_,
                      ", K ", weight.columns_.k);
}

absl::StatusOr<bool> Fp8Products::LibraryTakes(const Fp8Weight& weight) {
  for (size_t i = 0; i < weight.columns_.parts.size(); ++i) {
    LtProblem p;
    p.weight = weight.rows();
    p.k = RoundUp(weight.columns_.parts[i].cols, kFp8Block);
    if (p.k == 0) continue;
    const auto [at, inserted] = taken_.try_emplace({weight.n_, p.k, weight.scaling_}, true);
    for (const int64_t rows : {kMinBucket, int64_t{2048}}) {
      if (!inserted) break;
      p.weight_stride = p.x_stride = weight.columns_.stride;
      p.x = weight.rows();
      p.y = weight.memory_->data();
      p.rows = rows;
      p.n = p.y_stride = weight.n_;
      p.half = half_;
      p.y_fp32 = !weight.columns_.subtrees.empty();
      p.weight_scales = p.x_scales = reinterpret_cast<const float*>(weight.rows() + weight.scales_at_[i]);
      p.scaling = weight.scaling_;
      PHX_ASSIGN_OR_RETURN(const bool offers, library_->Offers(p));
      at->second = at->second && offers;
    }
    if (!at->second) return false;
  }
  return true;
}

absl::StatusOr<std::unique_ptr<Fp8Weight>> Fp8Products::Pack(const PackWeightParams& p) {
  std::unique_ptr<Fp8Weight> none;
  for (const WeightPiece& piece : p.pieces) {
    if (piece.source.dtype != DType::kF8E4M3) return none;
  }
  std::unique_ptr<Fp8Weight> w(new Fp8Weight);
  w->owner_ = runtime_.get();
  for (const WeightPiece& piece : p.pieces) w->n_ += piece.rows.size();
  const DeviceInfo& device = runtime_->device();
  if (!device.emulated && device.architecture != "sm_90") {
    Refuse(absl::StrCat("FP8 products by cuBLASLt need a device of sm_90, and this one is of ",
                        device.architecture));
    return none;
  }
  PHX_ASSIGN_OR_RETURN(w->columns_, FastColumns::Of(runtime_, p, kFp8Block));
  const FastColumns& columns = w->columns_;
  if (w->n_ == 0 || w->n_ % 16 != 0) {
    Refuse("FP8 products by cuBLASLt need an N that is a multiple of 16", absl::StrCat(", not ", w->n_));
    return none;
  }
  const std::optional<Fp8Scaling> scaling = ScalingOf(p, columns);
  if (!scaling.has_value()) {
    Refuse(
        "FP8 products by cuBLASLt need scales of whole rows, or of blocks of 128 x 128 that no cut divides");
    return none;
  }
  w->scaling_ = *scaling;

  int64_t bytes = w->n_ * columns.stride;
  for (const FastColumns::Part& part : columns.parts) {
    w->scales_at_.push_back(bytes);
    const int64_t floats = *scaling == Fp8Scaling::kRows
                               ? w->n_
                               : RoundUp(w->n_, kFp8Block) / kFp8Block * Fp8ScaleStride(part.cols);
    bytes += RoundUp(floats * 4, 16);
  }
  PHX_ASSIGN_OR_RETURN(w->memory_, CudaBuffer::Create(runtime_, bytes));
  PHX_ASSIGN_OR_RETURN(const bool taken, LibraryTakes(*w));
  if (!taken) {
    Refuse(NoAlgorithm(*w));
    return none;
  }

  const int64_t k = columns.k, rows_at_once = std::max<int64_t>(1, (int64_t{4} << 20) / columns.stride);
  std::vector<uint8_t> codes;
  int64_t row = 0;
  for (const WeightPiece& piece : p.pieces) {
    const WeightSource& s = piece.source;
    for (int64_t r = piece.rows.begin; r < piece.rows.end; r += rows_at_once) {
      const int64_t count = std::min(rows_at_once, piece.rows.end - r);
      codes.assign(static_cast<size_t>(count * columns.stride), 0);
      for (int64_t i = 0; i < count; ++i) {
        const uint8_t* from =
            static_cast<const uint8_t*>(s.data) + (s.first_row + r + i) * s.cols + p.cols.begin;
        // Our own kernel has no code for it.
        if (std::any_of(from, from + k, [](uint8_t code) { return (code & 0x7f) == 0x7f; })) return none;
        for (const FastColumns::Part& part : columns.parts) {
          std::copy_n(from + part.x_begin, part.cols, codes.begin() + i * columns.stride + part.begin);
        }
      }
      PHX_RETURN_IF_ERROR(runtime_->Copy(w->memory_->as<uint8_t>() + row * columns.stride, codes.data(),
                                         static_cast<int64_t>(codes.size()), CopyKind::kToDevice));
      row += count;
    }
  }
  for (size_t i = 0; i < columns.parts.size(); ++i) {
    const FastColumns::Part& part = columns.parts[i];
    const int64_t end = i + 1 < columns.parts.size() ? w->scales_at_[i + 1] : bytes;
    std::vector<float> scales(static_cast<size_t>(end - w->scales_at_[i]) / 4);
    const int64_t unit = *scaling == Fp8Scaling::kRows ? 1 : kFp8Block, stride = Fp8ScaleStride(part.cols);
    int64_t n = 0;
    for (const WeightPiece& piece : p.pieces) {
      const WeightSource& s = piece.source;
      for (int64_t r = piece.rows.begin; r < piece.rows.end; r += unit, n += unit) {
        const int64_t stored = s.first_row + r, column = p.cols.begin + part.x_begin;
        if (*scaling == Fp8Scaling::kRows) {
          scales[static_cast<size_t>(n)] = ScaleOf(s.scales, stored, p.cols.begin);
          continue;
        }
        for (int64_t c = 0; c < part.cols; c += kFp8Block) {
          scales[static_cast<size_t>(n / kFp8Block * stride + c / kFp8Block)] =
              ScaleOf(s.scales, stored, column + c);
        }
      }
    }
    PHX_RETURN_IF_ERROR(runtime_->Copy(w->memory_->as<char>() + w->scales_at_[i], scales.data(),
                                       static_cast<int64_t>(scales.size()) * 4, CopyKind::kToDevice));
  }
  return w;
}

absl::Status Fp8Products::RunOwn(const char* call, const FastInput& x, const Fp8Weight& weight, size_t part,
                                 int64_t first, int64_t count, const float* bias, void* y, int64_t y_stride,
                                 bool y_fp32) {
  const FastColumns::Part& of = weight.columns_.parts[part];
  Fp8GemmArgs args;
  args.weight = weight.rows() + of.begin;
  args.weight_stride = weight.columns_.stride;
  args.scaling = weight.scaling_;
  args.scales = reinterpret_cast<const float*>(weight.rows() + weight.scales_at_[part]);
  args.scale_stride = Fp8ScaleStride(of.cols);
  args.n = static_cast<int>(weight.n_);
  args.k = static_cast<int>(of.cols);
  args.x = x.Columns(of) + first * x.stride;
  args.x_stride = x.stride;
  args.rows = static_cast<int>(count);
  args.bias = bias;
  args.y = static_cast<char*>(y) + first * y_stride * (y_fp32 ? 4 : 2);
  args.y_stride = y_stride;
  args.y_fp32 = y_fp32;
  return runtime_->ToStatus(LaunchFp8Gemm(args, half_, runtime_->stream()), call);
}

int64_t Fp8Products::LibraryRows(const Fp8Weight& weight, int64_t rows) {
  if (rows <= kSkinnyRows) return 0;
  return weight.scaling_ == Fp8Scaling::kBlocks ? rows - rows % 4 : rows;
}

absl::StatusOr<Fp8RowsOut> Fp8Products::RowsFor(const Fp8Weight& weight, int64_t rows) {
  from_norm_.reset();
  const FastColumns& columns = weight.columns_;
  const int64_t lists =
      weight.scaling_ == Fp8Scaling::kRows ? columns.num_segments : columns.stride / kFp8Block;
  Fp8RowsOut out;
  out.scaling = weight.scaling_;
  out.rows = rows;
  out.rows_pitch = RoundUp(rows, 4);
  PHX_ASSIGN_OR_RETURN(out.codes, codes_.Get<uint8_t>(rows * columns.stride));
  out.codes_stride = columns.stride;
  PHX_ASSIGN_OR_RETURN(out.scales, scales_.Get<float>(lists * out.rows_pitch));
  return out;
}

absl::StatusOr<Fp8RowsOut> Fp8Products::Quantise(const char* call, const Matrix& x, bool gated,
                                                 const Fp8Weight& weight, int64_t rows) {
  Fp8RowsArgs args;
  args.x = static_cast<const uint16_t*>(x.data);
  args.x_stride = x.stride;
  args.gated = gated;
  args.up = weight.columns_.k;
  args.parts = weight.columns_.segments->as<const GemmSegment>();
  args.num_parts = weight.columns_.num_segments;
  PHX_ASSIGN_OR_RETURN(args.out, RowsFor(weight, rows));
  PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchFp8Rows(args, half_, runtime_->stream()), call));
  return args.out;
}

absl::StatusOr<Fp8RowsOut> Fp8Products::RowsOfNorm(const RmsNormParams& norm) {
  from_norm_.reset();  // it may be of what this y held before
  const auto* weight = dynamic_cast<const Fp8Weight*>(norm.read_by);
  if (weight == nullptr || weight->owner_ != runtime_.get() || weight->columns_.parts.size() != 1) {
    return Fp8RowsOut();
  }
  const int64_t rows = LibraryRows(*weight, norm.y.rows);
  if (rows == 0) return Fp8RowsOut();
  PHX_ASSIGN_OR_RETURN(const Fp8RowsOut out, RowsFor(*weight, rows));
  from_norm_ = {weight, norm.y, out};
  return out;
}

absl::Status Fp8Products::Product(const char* call, const Matrix& x, const Fp8Weight& weight,
                                  const float* bias, void* y, int64_t y_stride, int64_t tree_stride,
                                  bool y_fp32, bool may_search, const Matrix* gate_up) {
  if (x.rows == 0) return absl::OkStatus();
  if (x.rows > 1 << 30) {
    return absl::InvalidArgumentError(absl::StrCat(call, ": x.rows is ", x.rows, ", must be at most 2^30"));
  }
  const FastColumns& columns = weight.columns_;
  const int64_t many = LibraryRows(weight, x.rows);
  Fp8RowsOut quantised;
  if (gate_up == nullptr && from_norm_.has_value() && from_norm_->weight == &weight &&
      SameMatrix(from_norm_->x, x)) {
    quantised = std::exchange(from_norm_, std::nullopt)->rows;
  } else if (many > 0) {
    PHX_ASSIGN_OR_RETURN(quantised,
                         Quantise(call, gate_up != nullptr ? *gate_up : x, gate_up != nullptr, weight, many));
  }
  std::optional<FastInput> own;
  size_t segment = 0;  // parts that are not empty
  for (size_t i = 0; i < columns.parts.size(); ++i) {
    const FastColumns::Part& part = columns.parts[i];
    char* const to = static_cast<char*>(y) + static_cast<int64_t>(i) * tree_stride * (y_fp32 ? 4 : 2);
    LtProblem p;
    p.weight = weight.rows() + part.begin;
    p.weight_stride = p.x_stride = columns.stride;
    p.y = to;
    p.y_stride = y_stride;
    p.rows = many;
    p.n = weight.n_;
    p.k = RoundUp(part.cols, kFp8Block);  // filled up with zeros
    p.half = half_;
    p.y_fp32 = y_fp32;
    p.weight_scales = reinterpret_cast<const float*>(weight.rows() + weight.scales_at_[i]);
    p.scaling = weight.scaling_;
    if (many > 0) {
      const int64_t list =
          weight.scaling_ == Fp8Scaling::kRows ? static_cast<int64_t>(segment) : part.begin / kFp8Block;
      p.x = quantised.codes + part.begin;
      p.x_scales = quantised.scales + list * quantised.rows_pitch;
    }
    if (part.cols > 0) ++segment;
    const bool widens = bias != nullptr && !y_fp32;  // a bias is added before the one rounding
    if (widens && many > 0) {
      p.y_fp32 = true;
      p.y_stride = RoundUp(p.n, 4);
      PHX_ASSIGN_OR_RETURN(p.y, sums_.Get<float>(many * p.y_stride));
    }
    int64_t done = 0;
    if (many > 0 && LtProducts::Takes(p)) {
      const absl::Status ran = library_->Run(p, may_search);
      if (ran.ok()) {
        done = many;
      } else if (!absl::IsUnimplemented(ran)) {
        return ran;
      } else {
        Refuse(NoAlgorithm(weight), absl::StrCat(", ", many, " rows (", std::string(ran.message()), ")"));
      }
    }
    if (done > 0 && bias != nullptr) {
      BiasRowsArgs add;
      add.x = static_cast<const float*>(p.y);
      add.x_stride = p.y_stride;
      add.bias = bias;
      add.y = to;
      add.y_stride = y_stride;
      add.y_fp32 = y_fp32;
      add.rows = static_cast<int>(done);
      add.n = static_cast<int>(p.n);
      PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchBiasRows(add, half_, runtime_->stream()), call));
    }
    if (done == x.rows) continue;
    if (!own.has_value()) {
      if (gate_up != nullptr) {
        SwiGluArgs glu;
        glu.gate_up = static_cast<const uint16_t*>(gate_up->data);
        glu.stride = gate_up->stride;
        glu.rows = x.rows;
        glu.cols = x.cols;
        glu.y = static_cast<uint16_t*>(x.data);
        glu.y_stride = x.stride;
        PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchSwiGlu(glu, half_, runtime_->stream()), call));
      }
      PHX_ASSIGN_OR_RETURN(own, ReadFastInput(*runtime_, call, x, columns, &packed_x_));
    }
    PHX_RETURN_IF_ERROR(RunOwn(call, *own, weight, i, done, x.rows - done, bias, to, y_stride, y_fp32));
  }
  return absl::OkStatus();
}

absl::Status Fp8Products::Grouped(const GroupedMatmulParams& p, const ExpertListArgs& list,
                                  const Fp8Weight& any, void* y, int64_t y_stride) {
  Fp8GemmArgs args;
  PHX_ASSIGN_OR_RETURN(static_cast<RowMajorGemmArgs&>(args),
                       GroupedArgs(*runtime_, p, list, any.columns_, any.n_, y, y_stride, &packed_x_));
  args.scaling = any.scaling_;
  args.scale_stride = Fp8ScaleStride(any.columns_.k);
  args.expert_scales = any.scales_at_[0];
  return runtime_->ToStatus(LaunchFp8Gemm(args, half_, runtime_->stream()), "GroupedMatmul");
}

}  // namespace phalanx::cuda
