#include "kernels/reference/host_objects.h"

#include <sys/mman.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"

namespace phalanx {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kAlignment = 64;

}  // namespace

absl::StatusOr<std::unique_ptr<HostBuffer>> HostBuffer::Create(int64_t bytes) {
  if (bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat("Allocate: bytes is ", bytes, ", must be at least 0"));
  }
  const auto full = [bytes] {
    return absl::ResourceExhaustedError(absl::StrCat("Allocate: this host cannot give ", bytes, " bytes"));
  };
  if (bytes > std::numeric_limits<int64_t>::max() / 2) return full();
  std::unique_ptr<HostBuffer> buffer(new HostBuffer);
  buffer->bytes_ = bytes;
  const auto size = static_cast<size_t>(bytes);
  if (size < kHugePage) {
    const size_t rounded = (size / kAlignment + 1) * kAlignment;
    buffer->data_ = std::aligned_alloc(kAlignment, rounded);
    if (buffer->data_ == nullptr) return full();
    std::memset(buffer->data_, 0, rounded);
    return buffer;
  }
  buffer->mapping_bytes_ = size + kHugePage;
  void* mapping =
      mmap(nullptr, buffer->mapping_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return full();
  buffer->mapping_ = mapping;
  const auto address = reinterpret_cast<uintptr_t>(mapping);
  buffer->data_ = reinterpret_cast<void*>((address + kHugePage - 1) / kHugePage * kHugePage);
  madvise(buffer->data_, size, MADV_HUGEPAGE);  // an advice: nothing depends on its success
  return buffer;
}

HostBuffer::~HostBuffer() {
  if (mapping_ != nullptr) {
    munmap(mapping_, mapping_bytes_);
  } else {
    std::free(data_);
  }
}

// Angles in double, so that far positions keep their phase.
// source: https://arxiv.org/abs/2104.09864 (equation 34)
HostRopeTable::HostRopeTable(const RopeConfig& config, int64_t num_positions)
    : half_(config.rotary_dim / 2), num_positions_(num_positions), interleaved_(config.interleaved) {
  cos_.resize(static_cast<size_t>(num_positions * half_));
  sin_.resize(cos_.size());
  std::vector<double> frequency(static_cast<size_t>(half_));
  for (int i = 0; i < half_; ++i) {
    frequency[i] = std::pow(config.theta, -2.0 * i / config.rotary_dim);
    if (!config.freq_factors.empty()) frequency[i] /= config.freq_factors[i];
  }
  for (int64_t p = 0; p < num_positions; ++p) {
    for (int i = 0; i < half_; ++i) {
      const double angle = static_cast<double>(p) * frequency[i];
      cos_[p * half_ + i] = static_cast<float>(std::cos(angle) * config.attention_factor);
      sin_[p * half_ + i] = static_cast<float>(std::sin(angle) * config.attention_factor);
    }
  }
}

void RotateHead(const HostRopeTable& table, int64_t position, float* x) {
  const int half = table.rotary_dim() / 2;
  const float* cos = table.cos(position);
  const float* sin = table.sin(position);
  if (table.interleaved()) {
    for (int i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cos[i] - b * sin[i];
      x[2 * i + 1] = b * cos[i] + a * sin[i];
    }
    return;
  }
  float* __restrict low = x;
  float* __restrict high = x + half;
  for (int i = 0; i < half; ++i) {
    const float a = low[i], b = high[i];
    low[i] = a * cos[i] - b * sin[i];
    high[i] = b * cos[i] + a * sin[i];
  }
}

std::string HostCpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "CPU";
}

}  // namespace phalanx
