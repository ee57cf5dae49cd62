// A cuBLASLt for tests, on the emulator's memory (the host's): plain loops, algorithms that differ in what
// they cost on a clock of its own, and a record of what was asked. Of products of e4m3 it takes what the
// library's documentation says: alignments, forms of scales and how they lie.
#pragma once

#include <vector>

#include "kernels/cuda/cublaslt_api.h"

namespace phalanx::cuda {

struct FakeCublasLt {
  size_t version = 130100;
  int create_status = 0;
  // Seconds that a run of each algorithm takes; they are named by their place here. Negative: it is offered,
  // and refuses to run.
  std::vector<double> costs = {1};
  double clock = 0;
  // Of products of e4m3: whether there are any algorithms; whether there are with fast sums; and rows from
  // which there are.
  bool has_fp8 = true, has_fast_sums = true;
  uint64_t fp8_rows = 0;
  std::vector<bool> fast_sums;  // of each run of such a product
  int heuristics = 0, live_objects = 0;
  int64_t asked_rows = 0;           // of the last heuristic
  std::vector<int> runs;            // algorithms, in order
  std::vector<uint32_t> alignment;  // as preferences were given
};
FakeCublasLt& TheFakeCublasLt();  // this thread's
const lt::Table& FakeTable();

}  // namespace phalanx::cuda
