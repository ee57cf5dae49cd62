#include "tests/cuda/fake_cublaslt.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cuda/half.h"
#include "kernels/fp8.h"
#include "kernels/numeric.h"

namespace phalanx::cuda {
namespace {

constexpr int kInvalid = 7, kUnsupported = 15;  // cublasStatus_t

struct FakeLayout {
  int type;
  uint64_t rows, cols;
  int64_t leading;
};
struct FakeDesc {
  bool transposed = false;
  int8_t fast_sums = 0;
  int32_t scale_modes[2] = {};  // of A and B
  const float* scales[2] = {};
};

FakeCublasLt& State() { return TheFakeCublasLt(); }

template <typename T>
int Give(lt::Handle* to, T* object) {
  ++State().live_objects;
  *to = object;
  return 0;
}
template <typename T>
int Delete(lt::Handle object) {
  --State().live_objects;
  delete static_cast<T*>(object);
  return 0;
}

float Load(const void* data, int type, int64_t at) {
  if (type == lt::kF8E4M3) {
    return std::bit_cast<float>(FloatBitsFromE4m3(static_cast<const uint8_t*>(data)[at]));
  }
  if (type == lt::kF32) return static_cast<const float*>(data)[at];
  const uint16_t v = static_cast<const uint16_t*>(data)[at];
  return type == lt::kF16 ? FloatFromF16(v) : FloatFromBf16(v);
}

void Store(void* data, int type, int64_t at, float v) {
  if (type == lt::kF32) {
    static_cast<float*>(data)[at] = v;
  } else {
    static_cast<uint16_t*>(data)[at] = type == lt::kF16 ? HalfFromFloat(v) : Bf16FromFloat(v);
  }
}

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// source: https://docs.nvidia.com/cuda/cublas/, cublasLtMatmul and narrow precision data types usage
bool DescribesFp8(const FakeDesc& desc, const FakeLayout& a, const FakeLayout& b, const FakeLayout& d) {
  const auto sixteen = [](auto v) { return v % 16 == 0; };
  if (!sixteen(a.rows) || !sixteen(a.cols) || !sixteen(a.leading) || !sixteen(b.leading)) return false;
  if (!sixteen(d.leading * (d.type == lt::kF32 ? 4 : 2))) return false;
  for (const float* scales : desc.scales) {
    if (scales == nullptr || !Aligned(scales)) return false;
  }
  if (desc.scale_modes[0] == lt::kScaleOuterVector) return desc.scale_modes[1] == lt::kScaleOuterVector;
  // Sums of blocks are always promoted.
  return desc.scale_modes[0] == lt::kScaleBlock128 && desc.scale_modes[1] == lt::kScaleVector128 &&
         a.cols % 4 == 0 && b.cols % 4 == 0 && desc.fast_sums == 0;
}

int Describes(lt::MatmulDesc desc, lt::Layout a, lt::Layout b, lt::Layout d) {
  const auto& la = *static_cast<FakeLayout*>(a);
  const auto& lb = *static_cast<FakeLayout*>(b);
  const auto& ld = *static_cast<FakeLayout*>(d);
  const auto& of = *static_cast<FakeDesc*>(desc);
  const bool good = of.transposed && la.type == lb.type && la.rows == lb.rows && la.cols == ld.rows &&
                    lb.cols == ld.cols && la.leading >= static_cast<int64_t>(la.rows) &&
                    lb.leading >= static_cast<int64_t>(lb.rows) &&
                    ld.leading >= static_cast<int64_t>(ld.rows);
  if (!good || (la.type == lt::kF8E4M3 && !DescribesFp8(of, la, lb, ld))) return kInvalid;
  if (la.type != lt::kF8E4M3) return 0;
  const bool has =
      State().has_fp8 && lb.cols >= State().fp8_rows && (of.fast_sums == 0 || State().has_fast_sums);
  return has ? 0 : kUnsupported;
}

// What block `block` of 128 of the k's of element (n, t) is multiplied by.
float ScaleOf(const FakeDesc& desc, const FakeLayout& b, uint64_t k, uint64_t n, uint64_t t, uint64_t block) {
  if (desc.scale_modes[0] == lt::kScaleOuterVector) return desc.scales[0][n] * desc.scales[1][t];
  const uint64_t pitch = ((k + 127) / 128 + 3) / 4 * 4;
  return desc.scales[0][n / 128 * pitch + block] * desc.scales[1][block * b.cols + t];
}

int Check(lt::Handle, lt::MatmulDesc desc, lt::Layout a, lt::Layout b, lt::Layout, lt::Layout d,
          const lt::Algorithm* algorithm, lt::HeuristicResult* result) {
  if (algorithm->data[0] >= State().costs.size()) return kUnsupported;
  result->algorithm = *algorithm;
  result->workspace = 1024;
  return Describes(desc, a, b, d);
}

int Heuristic(lt::Handle, lt::MatmulDesc desc, lt::Layout a, lt::Layout b, lt::Layout, lt::Layout d,
              lt::Preference, int requested, lt::HeuristicResult* results, int* count) {
  ++State().heuristics;
  *count = 0;
  if (const int status = Describes(desc, a, b, d); status != 0) return status;
  State().asked_rows = static_cast<int64_t>(static_cast<FakeLayout*>(b)->cols);
  *count = std::min(requested, static_cast<int>(State().costs.size()));
  for (int i = 0; i < *count; ++i) {
    results[i] = {};
    results[i].algorithm.data[0] = static_cast<uint64_t>(i);
    results[i].algorithm.data[7] = 0xabcdef;
  }
  return 0;
}

int Matmul(lt::Handle, lt::MatmulDesc desc, const void* alpha, const void* a, lt::Layout a_layout,
           const void* b, lt::Layout b_layout, const void* beta, const void* c, lt::Layout, void* d,
           lt::Layout d_layout, const lt::Algorithm* algorithm, void* workspace, size_t workspace_bytes,
           void*) {
  FakeCublasLt& state = State();
  if (const int status = Describes(desc, a_layout, b_layout, d_layout); status != 0) return status;
  if (c != d || workspace == nullptr || workspace_bytes < 1024) return kInvalid;
  if (*static_cast<const float*>(alpha) != 1 || *static_cast<const float*>(beta) != 0) return kInvalid;
  const auto id = static_cast<size_t>(algorithm->data[0]);
  if (id >= state.costs.size() || algorithm->data[7] != 0xabcdef || state.costs[id] < 0) return kUnsupported;
  state.runs.push_back(static_cast<int>(id));
  state.clock += state.costs[id];
  const auto& la = *static_cast<FakeLayout*>(a_layout);
  const auto& lb = *static_cast<FakeLayout*>(b_layout);
  const auto& ld = *static_cast<FakeLayout*>(d_layout);
  const auto& of = *static_cast<FakeDesc*>(desc);
  const bool fp8 = la.type == lt::kF8E4M3;
  if (fp8) {
    if (!Aligned(a) || !Aligned(b) || !Aligned(d)) return kInvalid;
    state.fast_sums.push_back(of.fast_sums != 0);
  }
  std::vector<float> column(la.rows);
  for (uint64_t t = 0; t < lb.cols; ++t) {
    for (uint64_t i = 0; i < la.rows; ++i) {
      column[i] = Load(b, lb.type, static_cast<int64_t>(t) * lb.leading + static_cast<int64_t>(i));
    }
    for (uint64_t n = 0; n < la.cols; ++n) {
      float sum = 0;
      const uint64_t run = fp8 ? 128 : la.rows;  // of one scale
      for (uint64_t first = 0; first < la.rows; first += run) {
        float part = 0;
        for (uint64_t i = first; i < std::min(first + run, la.rows); ++i) {
          part +=
              Load(a, la.type, static_cast<int64_t>(n) * la.leading + static_cast<int64_t>(i)) * column[i];
        }
        sum += fp8 ? part * ScaleOf(of, lb, la.rows, n, t, first / run) : part;
      }
      Store(d, ld.type, static_cast<int64_t>(t) * ld.leading + static_cast<int64_t>(n), sum);
    }
  }
  return 0;
}

}  // namespace

FakeCublasLt& TheFakeCublasLt() {
  thread_local FakeCublasLt fake;
  return fake;
}

const lt::Table& FakeTable() {
  static const auto& table = *new lt::Table{
      .GetVersion = [] { return State().version; },
      .GetStatusString = [](int) -> const char* { return "a fake's error"; },
      .Create =
          [](lt::Handle* handle) {
            *handle = &State();
            return State().create_status;
          },
      .Destroy = [](lt::Handle) { return 0; },
      .MatmulDescCreate =
          [](lt::MatmulDesc* desc, int compute, int scale) {
            if (compute != lt::kComputeF32 || scale != lt::kF32) return kInvalid;
            return Give(desc, new FakeDesc);
          },
      .MatmulDescDestroy = Delete<FakeDesc>,
      .MatmulDescSetAttribute =
          [](lt::MatmulDesc desc, int attribute, const void* value, size_t bytes) {
            auto& of = *static_cast<FakeDesc*>(desc);
            const auto set = [&](auto* to) {
              if (bytes != sizeof(*to)) return kInvalid;
              std::memcpy(to, value, bytes);
              return 0;
            };
            switch (attribute) {
              case lt::kDescTransA: {
                int32_t v = 0;
                const int status = set(&v);
                of.transposed = v == lt::kTranspose;
                return status;
              }
              case lt::kDescFastAccumulation:
                return set(&of.fast_sums);
              case lt::kDescScalePointerA:
              case lt::kDescScalePointerA + 1:
                return set(&of.scales[attribute - lt::kDescScalePointerA]);
              case lt::kDescScaleModeA:
              case lt::kDescScaleModeA + 1:
                return set(&of.scale_modes[attribute - lt::kDescScaleModeA]);
              default:
                return kInvalid;
            }
          },
      .MatrixLayoutCreate =
          [](lt::Layout* layout, int type, uint64_t rows, uint64_t cols, int64_t leading) {
            return Give(layout, new FakeLayout{type, rows, cols, leading});
          },
      .MatrixLayoutDestroy = Delete<FakeLayout>,
      .MatmulPreferenceCreate = [](lt::Preference* p) { return Give(p, new int(0)); },
      .MatmulPreferenceDestroy = Delete<int>,
      .MatmulPreferenceSetAttribute =
          [](lt::Preference, int attribute, const void* value, size_t bytes) {
            if (attribute == lt::kMaxWorkspaceBytes) return bytes == sizeof(size_t) ? 0 : kInvalid;
            uint32_t v = 0;
            if (bytes != sizeof(v)) return kInvalid;
            std::memcpy(&v, value, sizeof(v));
            State().alignment.push_back(v);
            return 0;
          },
      .MatmulAlgoGetHeuristic = Heuristic,
      .MatmulAlgoCheck = Check,
      .Matmul = Matmul,
  };
  return table;
}

}  // namespace phalanx::cuda
