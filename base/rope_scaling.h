// The arithmetic by which RoPE is stretched to longer contexts, whatever file its settings come from.
#pragma once

#include <vector>

namespace phalanx {

struct YarnSettings {
  int rotary_dim = 0;
  double theta = 0;       // above 1
  double factor = 1;      // context / original context
  double original = 0;    // positions the model was made for before
  double beta_fast = 32;  // rotations in the original context from which a frequency is kept
  double beta_slow = 1;   // and up to which it is divided by the factor; at most beta_fast
  bool truncate = true;   // the border dimensions are whole numbers
};
// A divisor for each of the rotary_dim / 2 frequencies. source: https://arxiv.org/abs/2309.00071
std::vector<float> YarnDivisors(const YarnSettings& settings);
// 1 up to a factor of 1, else 0.1 * mscale * ln(factor) + 1.
double YarnScale(double factor, double mscale);

// What LongRoPE multiplies cos and sin by. `original` is at least 2 where factor is above 1.
// source: https://arxiv.org/abs/2402.13753
double LongRopeAttention(double factor, double original);

}  // namespace phalanx
