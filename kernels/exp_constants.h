// Constants of Exp, shared by its scalar version (numeric.h) and its vector versions: all do the same IEEE
// operations in the same order, so that sampling gives the same ids on every rung. No functions here: files
// that are compiled for an instruction set include this.
#pragma once

namespace phalanx {

inline constexpr float kExpLowest = -87.33654f;  // below: 0
inline constexpr float kExpHighest = 88.37626f;  // above: exp(kExpHighest)
inline constexpr float kExpRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
inline constexpr float kExpLog2e = 1.44269504f;
inline constexpr float kExpLn2High = 0.693359375f;
inline constexpr float kExpLn2Low = -2.12194440e-4f;
inline constexpr float kExpC[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                   4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};

}  // namespace phalanx
