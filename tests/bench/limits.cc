#include "tests/bench/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/cpu/cpu_features.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace phalanx {
namespace {

std::atomic<float> sink;  // what is stored here is not optimised away

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds until all threads have done work(thread), which start together; the best of `passes`.
double BestSeconds(int num_threads, int passes, const std::function<void(int)>& work) {
  double best = 1e30;
  for (int pass = 0; pass < passes; ++pass) {
    std::atomic<int> here{0};
    std::vector<double> begin(num_threads), end(num_threads);
    std::vector<std::thread> threads;
    for (int t = 0; t < num_threads; ++t) {
      threads.emplace_back([&, t] {
        here.fetch_add(1);
        while (here.load() < num_threads) std::this_thread::yield();
        begin[t] = Now();
        work(t);
        end[t] = Now();
      });
    }
    for (std::thread& thread : threads) thread.join();
    best = std::min(
        best, *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end()));
  }
  return best;
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) float Read(const float* p, int64_t n) {
  __m256 sum[8];
  for (__m256& s : sum) s = _mm256_setzero_ps();
  for (int64_t i = 0; i + 64 <= n; i += 64) {
    for (int j = 0; j < 8; ++j) sum[j] = _mm256_add_ps(sum[j], _mm256_loadu_ps(p + i + 8 * j));
  }
  for (int j = 1; j < 8; ++j) sum[0] = _mm256_add_ps(sum[0], sum[j]);
  return _mm256_cvtss_f32(sum[0]);
}

// 12 chains: enough to hide the latency on two ports.
__attribute__((target("avx2,fma"))) double Avx2Fma() {
  constexpr int64_t kLoops = 4000000;
  __m256 sum[12];
  const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1e-3f);
  for (__m256& s : sum) s = _mm256_setzero_ps();
  for (int64_t i = 0; i < kLoops; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) {
      sum[j] = _mm256_fmadd_ps(sum[j], a, b);
      asm volatile("" : "+x"(sum[j]));  // keeps the chain
    }
  }
  for (int j = 1; j < 12; ++j) sum[0] = _mm256_add_ps(sum[0], sum[j]);
  sink = _mm256_cvtss_f32(sum[0]);
  return static_cast<double>(kLoops) * 12 * 8 * 2;
}

__attribute__((target("amx-tile,amx-bf16"))) double AmxBf16() {
  constexpr int64_t kLoops = 1000000;
  struct alignas(64) {
    uint8_t palette = 1, start = 0, zero[14] = {};
    uint16_t col_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  alignas(64) char tile[1024] = {};
  // GCC 12's _tile_loadconfig names 8 bytes of its operand: without this, stores to the others may be
  // dropped.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
  _tile_loadd(4, tile, 64);
  _tile_loadd(5, tile, 64);
  _tile_loadd(6, tile, 64);
  _tile_loadd(7, tile, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < kLoops; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, tile, 64);
  _tile_release();
  sink = static_cast<float>(tile[0]);
  return static_cast<double>(kLoops) * 4 * 16 * 16 * 32 * 2;
}

#else

float Read(const float* p, int64_t n) {
  float sum[32] = {};
  for (int64_t i = 0; i + 32 <= n; i += 32) {
    for (int j = 0; j < 32; ++j) sum[j] += p[i + j];
  }
  for (int j = 1; j < 32; ++j) sum[0] += sum[j];
  return sum[0];
}

#endif

}  // namespace

double ReadBandwidth(int64_t bytes, int num_threads) {
  const int64_t part = std::max<int64_t>(bytes / num_threads / static_cast<int64_t>(sizeof(float)), 1024);
  const int64_t loops = std::max<int64_t>(1, (int64_t{1} << 28) / std::max<int64_t>(bytes, 1));
  // Each thread writes its part first, so that its pages are near where it runs.
  std::vector<std::unique_ptr<float[]>> parts(num_threads);
  BestSeconds(num_threads, 1, [&](int t) { parts[t] = std::make_unique<float[]>(part); });
  const double seconds = BestSeconds(num_threads, 7, [&](int t) {
    for (int64_t loop = 0; loop < loops; ++loop)
      sink.store(Read(parts[t].get(), part), std::memory_order_relaxed);
  });
  return static_cast<double>(part * num_threads * loops) * sizeof(float) / seconds;
}

double PeakFlops(const std::string& rung, Compute compute, int num_threads) {
#if defined(__x86_64__)
  double (*work)() = nullptr;
  if (rung == "amx" && compute == Compute::kFast && MissingForAmx().empty()) {
    work = AmxBf16;
  } else if (rung != "reference" && MissingForAvx2().empty()) {
    work = Avx2Fma;
  }
  if (work == nullptr) return 0;
  std::vector<double> operations(num_threads);
  const double seconds = BestSeconds(num_threads, 5, [&](int t) { operations[t] = work(); });
  double total = 0;
  for (const double n : operations) total += n;
  return total / seconds;
#else
  (void)rung, (void)compute, (void)num_threads;
  return 0;
#endif
}

}  // namespace phalanx
