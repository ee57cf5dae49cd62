// What this machine can do at best, measured: the limits that kernel_bench divides by.
#pragma once

#include <string>

namespace phalanx {

struct MachinePeaks {
  double dram_gb_s = 0;    // reads of a buffer far larger than the caches
  double cache_gb_s = 0;   // reads of a buffer of cache_mb
  double fma_gflop_s = 0;  // fp32 multiply-adds from registers, AVX2; 0 where the host lacks it
  double amx_gflop_s = 0;  // bf16 tile products from registers; 0 where the host lacks them
};

// seconds: the clock.
MachinePeaks MeasurePeaks(int num_threads, double (*seconds)(), double dram_mb, double cache_mb, bool avx2,
                          bool amx);

}  // namespace phalanx
