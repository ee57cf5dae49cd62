#include "tests/bench/kernel_peaks.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "kernels/reference/host_objects.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace phalanx {
namespace {

// Work of all threads per second, best of a few runs: a limit is what the machine can do undisturbed.
double BestRate(int num_threads, double (*seconds)(), const std::function<double(int)>& work) {
  double best = 0;
  for (int run = 0; run < 5; ++run) {
    std::atomic<int> ready{0};
    std::vector<double> done(static_cast<size_t>(num_threads)), begin(done), end(done);
    const auto body = [&](int t) {
      ready.fetch_add(1);
      while (ready.load() < num_threads) std::this_thread::yield();
      begin[t] = seconds();
      done[t] = work(t);
      end[t] = seconds();
    };
    std::vector<std::thread> threads;
    for (int t = 1; t < num_threads; ++t) threads.emplace_back(body, t);
    body(0);
    for (std::thread& t : threads) t.join();
    double total = 0;
    for (const double d : done) total += d;
    best = std::max(best, total / (*std::max_element(end.begin(), end.end()) -
                                   *std::min_element(begin.begin(), begin.end())));
  }
  return best;
}

std::atomic<uint64_t> sink;

double ReadRate(int num_threads, double (*seconds)(), double mb) {
  const auto bytes = static_cast<int64_t>(mb * 1e6) / num_threads / 4096 * 4096;
  std::vector<std::unique_ptr<HostBuffer>> buffers;
  for (int t = 0; t < num_threads; ++t) {
    auto buffer = HostBuffer::Create(bytes);
    if (!buffer.ok()) return 0;
    std::memset((*buffer)->data(), 1, static_cast<size_t>(bytes));
    buffers.push_back(*std::move(buffer));
  }
  const int passes = std::max(1, static_cast<int>(4e8 / static_cast<double>(bytes)));
  return BestRate(num_threads, seconds, [&](int t) {
    const auto* data = static_cast<const uint64_t*>(buffers[t]->data());
    uint64_t sum[16] = {};
    for (int pass = 0; pass < passes; ++pass) {
      for (int64_t i = 0; i < bytes / 8; i += 16) {
        for (int j = 0; j < 16; ++j) sum[j] += data[i + j];
      }
      std::atomic_signal_fence(std::memory_order_seq_cst);
    }
    for (const uint64_t s : sum) sink += s;
    return static_cast<double>(bytes) * passes / 1e9;
  });
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) double FmaWork(int) {
  constexpr int kRounds = 4000000;
  __m256 c[12];
  for (int i = 0; i < 12; ++i) c[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) c[i] = _mm256_fmadd_ps(c[i], a, b);
  }
  for (int i = 1; i < 12; ++i) c[0] = _mm256_add_ps(c[0], c[i]);
  sink += static_cast<uint64_t>(_mm256_cvtss_f32(c[0]));
  return kRounds * 12.0 * 16 / 1e9;
}

__attribute__((target("amx-tile,amx-bf16,avx512f"))) double AmxWork(int) {
  constexpr int kRounds = 1000000;
  struct alignas(64) {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config;
  std::memset(&config, 0, sizeof(config));
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = 16;
  }
  asm volatile("" : : "r"(&config) : "memory");  // GCC 12's _tile_loadconfig names 8 bytes only
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int round = 0; round < kRounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return kRounds * 4.0 * 16 * 16 * 32 * 2 / 1e9;
}
#endif

}  // namespace

MachinePeaks MeasurePeaks(int num_threads, double (*seconds)(), double dram_mb, double cache_mb, bool avx2,
                          bool amx) {
  MachinePeaks peaks;
  peaks.dram_gb_s = ReadRate(num_threads, seconds, dram_mb);
  peaks.cache_gb_s = ReadRate(num_threads, seconds, cache_mb);
#if defined(__x86_64__)
  if (avx2) peaks.fma_gflop_s = BestRate(num_threads, seconds, FmaWork);
  if (amx) peaks.amx_gflop_s = BestRate(num_threads, seconds, AmxWork);
#else
  (void)avx2;
  (void)amx;
#endif
  return peaks;
}

}  // namespace phalanx
