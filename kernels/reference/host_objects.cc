#include "kernels/reference/host_objects.h"

#include <sys/mman.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <tuple>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "base/mutex.h"

namespace phalanx {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 64;
// Buffers from kShared to a chunk lie side by side in chunks of huge pages: weights are mostly smaller than
// a huge page, and one of small pages costs a page walk for each 4 KiB read.
constexpr size_t kShared = size_t{64} << 10;
constexpr size_t kChunk = size_t{32} << 20;

size_t RoundUp(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

// Zeroed memory that asks for huge pages, at an address of one.
class HostMapping {
 public:
  // Null where the host has no such memory.
  static std::shared_ptr<HostMapping> Create(size_t bytes) {
    const size_t size = RoundUp(bytes, kHugePage) + kHugePage;
    void* address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) return nullptr;
    auto mapping = std::make_shared<HostMapping>();
    mapping->address_ = address;
    mapping->size_ = size;
    // An advice: nothing depends on its success.
    madvise(mapping->data(), RoundUp(bytes, kHugePage), MADV_HUGEPAGE);
    return mapping;
  }
  HostMapping() = default;
  ~HostMapping() {
    if (address_ != nullptr) munmap(address_, size_);
  }
  HostMapping(const HostMapping&) = delete;
  HostMapping& operator=(const HostMapping&) = delete;

  char* data() const {
    return reinterpret_cast<char*>(RoundUp(reinterpret_cast<uintptr_t>(address_), kHugePage));
  }

 private:
  void* address_ = nullptr;
  size_t size_ = 0;
};

namespace {

// The chunk that is being filled, of the whole process. What was given back is not given out again: a chunk
// goes when all its buffers have gone.
class SharedChunks {
 public:
  // The mapping is null where the host has no memory.
  std::pair<std::shared_ptr<HostMapping>, char*> Take(size_t bytes) {
    MutexLock lock(mutex_);
    if (chunk_ == nullptr || kChunk - used_ < bytes) {
      chunk_ = HostMapping::Create(kChunk);
      used_ = 0;
      if (chunk_ == nullptr) return {nullptr, nullptr};
    }
    char* data = chunk_->data() + used_;
    used_ += RoundUp(bytes, kPage);
    return {chunk_, data};
  }

 private:
  Mutex mutex_;
  std::shared_ptr<HostMapping> chunk_ ABSL_GUARDED_BY(mutex_);
  size_t used_ ABSL_GUARDED_BY(mutex_) = 0;
};

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
#if defined(__SANITIZE_ADDRESS__)
  constexpr size_t kSmall = kHugePage;  // of smaller ones the sanitizer watches the ends
#else
  constexpr size_t kSmall = kShared;
#endif
  if (size < kSmall) {
    const size_t rounded = (size / kAlignment + 1) * kAlignment;
    buffer->data_ = std::aligned_alloc(kAlignment, rounded);
    if (buffer->data_ == nullptr) return full();
    std::memset(buffer->data_, 0, rounded);
    return buffer;
  }
  if (size < kChunk / 4) {
    static auto& chunks = *new SharedChunks;
    std::tie(buffer->mapping_, buffer->data_) = chunks.Take(size);
  } else {
    buffer->mapping_ = HostMapping::Create(size);
    if (buffer->mapping_ != nullptr) buffer->data_ = buffer->mapping_->data();
  }
  if (buffer->mapping_ == nullptr) return full();
  return buffer;
}

absl::StatusOr<std::unique_ptr<HostBuffer>> HostBuffer::Create(int64_t bytes, WeightMemory* memory,
                                                               bool* packed) {
  *packed = false;
  if (memory == nullptr || bytes <= 0) return Create(bytes);
  const WeightMemory::Piece piece = memory->Take(bytes);
  if (piece.data == nullptr) return Create(bytes);
  *packed = piece.packed;
  std::unique_ptr<HostBuffer> buffer(new HostBuffer);
  buffer->data_ = piece.data;
  buffer->bytes_ = bytes;
  buffer->borrowed_ = true;
  return buffer;
}

HostBuffer::~HostBuffer() {
  if (borrowed_) return;
  if (mapping_ == nullptr) {
    std::free(data_);
    return;
  }
  // Its neighbours may keep the mapping; its pages go back at once.
  madvise(data_, RoundUp(static_cast<size_t>(bytes_), kPage), MADV_DONTNEED);
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
