#include "tests/bench/limits.h"

#include <sched.h>

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

// Keeps the calling thread on the n-th processor it may use: two of these threads on one processor would
// halve what is measured.
void Pin(int n) {
  cpu_set_t allowed, own;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  n %= CPU_COUNT(&allowed);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || n-- > 0) continue;
    CPU_ZERO(&own);
    CPU_SET(cpu, &own);
    (void)sched_setaffinity(0, sizeof(own), &own);
    return;
  }
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
        Pin(t);
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

// Named sums: of an array GCC keeps some in memory.
#define PHX_8(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define PHX_12(DO) PHX_8(DO) DO(8) DO(9) DO(10) DO(11)

__attribute__((target("avx2"))) float Read(const float* p, int64_t n) {
#define PHX_DECLARE(j) __m256 sum##j = _mm256_setzero_ps();
#define PHX_ADD(j) sum##j = _mm256_add_ps(sum##j, _mm256_loadu_ps(p + i + 8 * j));
#define PHX_TOTAL(j) total = _mm256_add_ps(total, sum##j);
  PHX_8(PHX_DECLARE)
  for (int64_t i = 0; i + 64 <= n; i += 64) {
    PHX_8(PHX_ADD)
  }
  __m256 total = _mm256_setzero_ps();
  PHX_8(PHX_TOTAL)
  return _mm256_cvtss_f32(total);
#undef PHX_ADD
}

// 12 chains: enough to hide the latency on two ports.
__attribute__((target("avx2,fma"))) double Avx2Fma() {
  constexpr int64_t kLoops = 4000000;
  const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1e-3f);
#define PHX_FMA(j)                        \
  sum##j = _mm256_fmadd_ps(sum##j, a, b); \
  asm volatile("" : "+x"(sum##j)); /* keeps the chain */
  PHX_12(PHX_DECLARE)
  for (int64_t i = 0; i < kLoops; ++i) {
    PHX_12(PHX_FMA)
  }
  __m256 total = _mm256_setzero_ps();
  PHX_12(PHX_TOTAL)
  sink = _mm256_cvtss_f32(total);
  return static_cast<double>(kLoops) * 12 * 8 * 2;
#undef PHX_FMA
#undef PHX_TOTAL
#undef PHX_DECLARE
}

// Of both that follow.
#define PHX_DECLARE(j) __m512 sum##j = _mm512_setzero_ps();
#define PHX_TOTAL(j) total = _mm512_add_ps(total, sum##j);

__attribute__((target("avx512f"))) double Avx512Fma() {
  constexpr int64_t kLoops = 4000000;
  const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1e-3f);
#define PHX_FMA(j)                        \
  sum##j = _mm512_fmadd_ps(sum##j, a, b); \
  asm volatile("" : "+v"(sum##j));
  PHX_12(PHX_DECLARE)
  for (int64_t i = 0; i < kLoops; ++i) {
    PHX_12(PHX_FMA)
  }
  __m512 total = _mm512_setzero_ps();
  PHX_12(PHX_TOTAL)
  sink = _mm512_cvtss_f32(total);
  return static_cast<double>(kLoops) * 12 * 16 * 2;
#undef PHX_FMA
}

__attribute__((target("avx512f,avx512bf16"))) double Avx512Bf16() {
  constexpr int64_t kLoops = 4000000;
  const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f003f00));
#define PHX_DOT(j)                         \
  sum##j = _mm512_dpbf16_ps(sum##j, a, a); \
  asm volatile("" : "+v"(sum##j));
  PHX_12(PHX_DECLARE)
  for (int64_t i = 0; i < kLoops; ++i) {
    PHX_12(PHX_DOT)
  }
  __m512 total = _mm512_setzero_ps();
  PHX_12(PHX_TOTAL)
  sink = _mm512_cvtss_f32(total);
  return static_cast<double>(kLoops) * 12 * 32 * 2;
#undef PHX_DOT
#undef PHX_TOTAL
#undef PHX_DECLARE
}
#undef PHX_12
#undef PHX_8

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
  } else if (rung == "avx512_bf16" && compute == Compute::kFast && MissingForAvx512Bf16().empty()) {
    work = Avx512Bf16;
  } else if ((rung == "amx" || rung.starts_with("avx512")) && MissingForAvx512().empty()) {
    work = Avx512Fma;
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
