#include "kernels/cuda/cublaslt.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace phalanx::cuda {
namespace {

// What NVIDIA advises for Hopper. Behind it as much again: copying one half onto the other empties the L2
// cache between the runs of a search.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
constexpr int kCandidates = 8;
constexpr int kRounds = 5;
constexpr size_t kMaxPlans = 1024;
constexpr int64_t kSearchTimeoutMs = 30000;

double HostSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int32_t WeightScaleMode(const LtProblem& p) {
  return p.scaling == Fp8Scaling::kRows ? lt::kScaleOuterVector : lt::kScaleBlock128;
}

bool Aligned(const void* data, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row_bytes % 16 == 0;
}

}  // namespace

// What cuBLASLt is told of a product: column-major, so that its A is the weight, transposed, its B is x and
// its C and D are y.
struct LtProducts::Plan {
  explicit Plan(const lt::Table& t) : table(t) {}
  ~Plan() {
    if (d != nullptr) table.MatrixLayoutDestroy(d);
    if (b != nullptr) table.MatrixLayoutDestroy(b);
    if (a != nullptr) table.MatrixLayoutDestroy(a);
    if (desc != nullptr) table.MatmulDescDestroy(desc);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  const lt::Table& table;
  lt::MatmulDesc desc = nullptr;
  lt::Layout a = nullptr, b = nullptr, d = nullptr;
  ProductChoice choice;
  absl::Status refused;  // why nothing takes it
};

LtProducts::LtProducts(std::shared_ptr<Runtime> runtime, const lt::Table& table, LtOptions options)
    : runtime_(std::move(runtime)),
      table_(table),
      options_(std::move(options)),
      version_(lt::VersionName(table.GetVersion())),
      cache_(ProductCacheFile(options_.cache_folder)) {
  if (options_.clock == nullptr) options_.clock = HostSeconds;
}

LtProducts::~LtProducts() {
  plans_.clear();
  if (handle_ != nullptr) table_.Destroy(handle_);
}

absl::StatusOr<std::unique_ptr<LtProducts>> LtProducts::Create(const std::shared_ptr<Runtime>& runtime,
                                                               const lt::Table& table, LtOptions options) {
  std::unique_ptr<LtProducts> products(new LtProducts(runtime, table, std::move(options)));
  if (const int status = table.Create(&products->handle_); status != 0) {
    products->handle_ = nullptr;
    return absl::FailedPreconditionError(
        absl::StrCat("mode fast needs cuBLASLt, and its version ", products->version_,
                     " does not start: ", table.GetStatusString(status), "; mode invariant runs without"));
  }
  PHX_ASSIGN_OR_RETURN(products->workspace_, CudaBuffer::Create(runtime, 2 * kWorkspaceBytes));
  return products;
}

bool LtProducts::Takes(const LtProblem& p) {
  const int64_t size = p.fp8() ? 1 : 2;
  const bool aligned = p.rows > 0 && p.n > 0 && p.k > 0 && Aligned(p.weight, p.weight_stride * size) &&
                       Aligned(p.x, p.x_stride * size) && Aligned(p.y, p.y_stride * (p.y_fp32 ? 4 : 2));
  if (!p.fp8() || !aligned) return aligned;
  return p.n % 16 == 0 && p.k % 16 == 0 && (p.scaling == Fp8Scaling::kRows || p.rows % 4 == 0) &&
         Aligned(p.weight_scales, 0) && Aligned(p.x_scales, 0);
}

absl::Status LtProducts::Check(int status, const char* what) const {
  if (status == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(what, ": cuBLASLt error ", status, ", ", table_.GetStatusString(status)));
}

ProductKey LtProducts::KeyOf(const LtProblem& p) const {
  ProductKey key;
  key.device = DeviceWord(runtime_->device().name);
  key.library = table_.GetVersion();
  key.kernels = options_.own_version;
  key.n = p.n;
  key.k = p.k;
  key.bucket = BucketOf(p.rows);
  const int narrow = p.half ? lt::kF16 : lt::kBF16;
  key.input = p.fp8() ? lt::kF8E4M3 + 256 * WeightScaleMode(p) : narrow;
  key.output = p.y_fp32 ? lt::kF32 : narrow;
  return key;
}

absl::StatusOr<std::unique_ptr<LtProducts::Plan>> LtProducts::MakePlan(const LtProblem& p) const {
  auto plan = std::make_unique<Plan>(table_);
  const int narrow = p.half ? lt::kF16 : lt::kBF16, input = p.fp8() ? lt::kF8E4M3 : narrow;
  const auto n = static_cast<uint64_t>(p.n), k = static_cast<uint64_t>(p.k),
             rows = static_cast<uint64_t>(p.rows);
  PHX_RETURN_IF_ERROR(
      Check(table_.MatmulDescCreate(&plan->desc, lt::kComputeF32, lt::kF32), "cublasLtMatmulDescCreate"));
  PHX_RETURN_IF_ERROR(SetDesc(*plan, lt::kDescTransA, lt::kTranspose));
  if (p.fp8()) {
    PHX_RETURN_IF_ERROR(SetDesc(*plan, lt::kDescScaleModeA, WeightScaleMode(p)));
    PHX_RETURN_IF_ERROR(
        SetDesc(*plan, lt::kDescScaleModeA + 1,
                p.scaling == Fp8Scaling::kRows ? lt::kScaleOuterVector : lt::kScaleVector128));
    PHX_RETURN_IF_ERROR(SetScales(p, *plan));
  }
  PHX_RETURN_IF_ERROR(
      Check(table_.MatrixLayoutCreate(&plan->a, input, k, n, p.weight_stride), "cublasLtMatrixLayoutCreate"));
  PHX_RETURN_IF_ERROR(
      Check(table_.MatrixLayoutCreate(&plan->b, input, k, rows, p.x_stride), "cublasLtMatrixLayoutCreate"));
  PHX_RETURN_IF_ERROR(
      Check(table_.MatrixLayoutCreate(&plan->d, p.y_fp32 ? lt::kF32 : narrow, n, rows, p.y_stride),
            "cublasLtMatrixLayoutCreate"));
  return plan;
}

template <typename T>
absl::Status LtProducts::SetDesc(const Plan& plan, int attribute, T value) const {
  return Check(table_.MatmulDescSetAttribute(plan.desc, attribute, &value, sizeof(value)),
               "cublasLtMatmulDescSetAttribute");
}

absl::Status LtProducts::SetScales(const LtProblem& p, const Plan& plan) const {
  PHX_RETURN_IF_ERROR(SetDesc(plan, lt::kDescScalePointerA, p.weight_scales));
  return SetDesc(plan, lt::kDescScalePointerA + 1, p.x_scales);
}

absl::Status LtProducts::SetFastSums(const Plan& plan, bool fast) const {
  return SetDesc(plan, lt::kDescFastAccumulation, static_cast<int8_t>(fast ? 1 : 0));
}

absl::Status LtProducts::RunChoice(const LtProblem& p, const Plan& plan, const ProductChoice& choice) {
  if (choice.own) return options_.own(p);
  if (p.fp8()) {
    PHX_RETURN_IF_ERROR(SetScales(p, plan));
    PHX_RETURN_IF_ERROR(SetFastSums(plan, choice.fast_sums));
  }
  const float one = 1, zero = 0;
  return Check(table_.Matmul(handle_, plan.desc, &one, p.weight, plan.a, p.x, plan.b, &zero, p.y, plan.d, p.y,
                             plan.d, &choice.algorithm, workspace_->data(),
                             static_cast<size_t>(kWorkspaceBytes), runtime_->stream()),
               "cublasLtMatmul");
}

absl::StatusOr<std::vector<lt::HeuristicResult>> LtProducts::Candidates(const Plan& plan, int most) const {
  lt::Preference preference = nullptr;
  PHX_RETURN_IF_ERROR(Check(table_.MatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate"));
  const size_t workspace = static_cast<size_t>(kWorkspaceBytes);
  int status =
      table_.MatmulPreferenceSetAttribute(preference, lt::kMaxWorkspaceBytes, &workspace, sizeof(workspace));
  const uint32_t alignment = 16;
  for (int i = 0; i < 4 && status == 0; ++i) {
    status = table_.MatmulPreferenceSetAttribute(preference, lt::kMinAlignmentA + i, &alignment,
                                                 sizeof(alignment));
  }
  std::vector<lt::HeuristicResult> found(static_cast<size_t>(most));
  int count = 0;
  if (status == 0) {
    status = table_.MatmulAlgoGetHeuristic(handle_, plan.desc, plan.a, plan.b, plan.d, plan.d, preference,
                                           most, found.data(), &count);
  }
  table_.MatmulPreferenceDestroy(preference);
  PHX_RETURN_IF_ERROR(Check(status, "cublasLtMatmulAlgoGetHeuristic"));
  found.resize(static_cast<size_t>(count));
  std::erase_if(found, [](const lt::HeuristicResult& r) { return r.state != 0; });
  return found;
}

absl::StatusOr<bool> LtProducts::Offers(const LtProblem& p) const {
  PHX_ASSIGN_OR_RETURN(const std::unique_ptr<Plan> plan, MakePlan(p));
  const auto found = Candidates(*plan, 1);
  return found.ok() && !found->empty();
}

absl::StatusOr<std::vector<ProductChoice>> LtProducts::Choices(const LtProblem& p, const Plan& plan,
                                                               int most) const {
  // Candidates are those for a full bucket, whose algorithms take fewer rows, too.
  LtProblem full = p;
  full.rows = BucketOf(p.rows);
  PHX_ASSIGN_OR_RETURN(const std::unique_ptr<Plan> shape, MakePlan(full.rows > p.rows ? full : p));
  std::vector<ProductChoice> choices;
  absl::Status failed;
  // Sums that are not promoted to fp32 on their way are faster; not every form has them.
  for (const bool fast_sums : {true, false}) {
    if (fast_sums && !(p.fp8() && p.scaling == Fp8Scaling::kRows)) continue;
    if (p.fp8()) {
      PHX_RETURN_IF_ERROR(SetFastSums(*shape, fast_sums));
      PHX_RETURN_IF_ERROR(SetFastSums(plan, fast_sums));
    }
    const auto found = Candidates(*shape, most);
    failed = found.status();
    if (!found.ok()) continue;
    for (const lt::HeuristicResult& result : *found) {
      lt::HeuristicResult checked;
      if (table_.MatmulAlgoCheck(handle_, plan.desc, plan.a, plan.b, plan.d, plan.d, &result.algorithm,
                                 &checked) == 0) {
        choices.push_back({false, fast_sums, checked.workspace, result.algorithm});
      }
    }
    if (!choices.empty()) return choices;
  }
  // Where the library knows nothing, our own kernel may.
  if (!failed.ok() && !OwnTakes(p) && !p.fp8()) return failed;
  return choices;
}

absl::StatusOr<ProductChoice> LtProducts::Search(const LtProblem& p, const Plan& plan, bool may_search) {
  PHX_ASSIGN_OR_RETURN(std::vector<ProductChoice> choices, Choices(p, plan, may_search ? kCandidates : 1));
  if (OwnTakes(p) && (may_search || choices.empty())) choices.push_back({true, false, 0, {}});
  if (choices.size() == 1 && !choices[0].own && !p.fp8()) return choices[0];

  std::vector<double> best(choices.size(), std::numeric_limits<double>::infinity());
  absl::Status refused = absl::NotFoundError("cuBLASLt has no algorithm");
  auto* const spare = workspace_->as<char>();
  for (int round = -1; round < kRounds; ++round) {  // the first warms up
    for (size_t i = 0; i < choices.size(); ++i) {
      if (round >= 0 && best[i] < 0) continue;
      if (may_search && round >= 0) {
        PHX_RETURN_IF_ERROR(
            runtime_->Copy(spare + kWorkspaceBytes, spare, kWorkspaceBytes, CopyKind::kOnDevice));
        PHX_RETURN_IF_ERROR(runtime_->Synchronize(kSearchTimeoutMs));
      }
      const double start = options_.clock();
      const absl::Status ran = RunChoice(p, plan, choices[i]);
      if (!ran.ok()) {
        best[i] = -1;  // it does not take this product
        refused = ran;
        continue;
      }
      if (!may_search) return choices[i];
      PHX_RETURN_IF_ERROR(runtime_->Synchronize(kSearchTimeoutMs));
      if (round >= 0) best[i] = std::min(best[i], options_.clock() - start);
    }
    if (!may_search) break;
  }
  int chosen = -1;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (best[i] >= 0 && (chosen < 0 || best[i] < best[static_cast<size_t>(chosen)]))
      chosen = static_cast<int>(i);
  }
  if (chosen < 0) {
    const std::string what = absl::StrCat("a product of ", p.rows, " rows, N ", p.n, ", K ", p.k, ": ",
                                          std::string(refused.message()));
    if (p.fp8()) return absl::UnimplementedError(what);
    return absl::InternalError(what);
  }
  return choices[static_cast<size_t>(chosen)];
}

absl::Status LtProducts::Run(const LtProblem& p, bool may_search) {
  const PlanKey at(p.n, p.k, p.rows, p.weight_stride, p.x_stride, p.y_stride, p.half, p.y_fp32,
                   p.fp8() ? WeightScaleMode(p) : 0);
  if (const auto found = plans_.find(at); found != plans_.end()) {
    if (!found->second->refused.ok()) return found->second->refused;
    return RunChoice(p, *found->second, found->second->choice);
  }
  PHX_ASSIGN_OR_RETURN(std::unique_ptr<Plan> plan, MakePlan(p));
  const auto keep = [&] {
    if (plans_.size() >= kMaxPlans) plans_.clear();
    plans_[at] = std::move(plan);
  };
  const ProductKey key = KeyOf(p);
  const ProductChoice* known = cache_.Find(key);
  if (known != nullptr) {
    // It may have been found for other strides and rows of its bucket.
    lt::HeuristicResult checked;
    if (p.fp8()) PHX_RETURN_IF_ERROR(SetFastSums(*plan, known->fast_sums));
    const bool usable = known->own ? OwnTakes(p)
                                   : table_.MatmulAlgoCheck(handle_, plan->desc, plan->a, plan->b, plan->d,
                                                            plan->d, &known->algorithm, &checked) == 0 &&
                                         checked.workspace <= static_cast<size_t>(kWorkspaceBytes);
    if (usable) {
      plan->choice = *known;
      const absl::Status ran = RunChoice(p, *plan, plan->choice);
      if (ran.ok() || !absl::IsUnimplemented(ran)) {
        keep();
        return ran;
      }
    }
  }
  const auto choice = Search(p, *plan, may_search);
  if (p.fp8() && absl::IsUnimplemented(choice.status())) {
    plan->refused = choice.status();
    keep();
    return choice.status();
  }
  PHX_RETURN_IF_ERROR(choice.status());
  plan->choice = *choice;
  PHX_RETURN_IF_ERROR(RunChoice(p, *plan, plan->choice));
  if (!may_search) return absl::OkStatus();
  if (known == nullptr) {
    if (const absl::Status saved = cache_.Insert(key, plan->choice); !saved.ok()) {
      spdlog::warn("the algorithm of a product is not kept: {}", std::string(saved.message()));
    }
  }
  keep();
  return absl::OkStatus();
}

}  // namespace phalanx::cuda
