#include "base/rope_scaling.h"

#include <algorithm>
#include <cmath>

namespace phalanx {

std::vector<float> YarnDivisors(const YarnSettings& s) {
  constexpr double kPi = 3.14159265358979323846;
  // The dimension whose frequency turns `rotations` times in the original context.
  const auto dimension = [&](double rotations) {
    return s.rotary_dim * std::log(s.original / (rotations * 2 * kPi)) / (2 * std::log(s.theta));
  };
  double low = dimension(s.beta_fast), high = dimension(s.beta_slow);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, s.rotary_dim - 1.0);
  if (low == high) high += 0.001;
  std::vector<float> divisors;
  for (int i = 0; i < s.rotary_dim / 2; ++i) {
    const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
    divisors.push_back(static_cast<float>(1 / (ramp / s.factor + 1 - ramp)));
  }
  return divisors;
}

double YarnScale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

double LongRopeAttention(double factor, double original) {
  return factor > 1 ? std::sqrt(1 + std::log(factor) / std::log(original)) : 1;
}

}  // namespace phalanx
