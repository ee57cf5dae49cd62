// Sampling of one row of logits: shared by the host backends, and the specification of the device's.
//
// A row with a NaN, a +inf or no logit above -inf gets id -1: it has no distribution, and its neighbours are
// not to suffer for it. Else, with x the raw logit of a token, step by step in fp32, each operation rounded:
//   x + bias                         of tokens with a bias
//   x > 0 ? x / repetition : x * repetition          of tokens in prompt or output
//   (x - frequency * count) - presence               of tokens count > 0 times in the output
// where a finite x that leaves fp32's range becomes the largest float of its sign after each line; then -inf
// for banned tokens. These are the logits of what follows. When none is above -inf any more the row gets id
// -1. Temperature 0 takes the largest (ties: lowest id). Else:
//
// Candidates are ordered by (logit descending, id ascending). With m = the largest logit,
//   weight(i) = Exp((logit(i) - m) / temperature) in fp32;  sums of weights are in double.
// Top-k keeps the k best candidates; then top-p the fewest best of them whose weight reaches top_p times
// theirs, at least one; then min-p those whose weight is at least min_p times the largest, which is 1. The
// draw u in [0, 1) is 53 bits of Philox4x32-10, key = (seed low, seed high),
// counter = (position low, position high, choice, 0): u = (out[0] << 21 | out[1] >> 11) * 2^-53. The token is
// the first one, in order of ids, whose running sum of kept weights exceeds u * (sum of all kept weights).
//
// Log-probabilities are of the raw logits. A row with a target draws nothing and is not adjusted.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace phalanx {

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);
// u of the draw for (seed, choice, position).
double SampleUniform(uint64_t seed, uint32_t choice, uint64_t position);

// Elements whose weights are summed as one block: the sum of a block is ((l0 + l1) + (l2 + l3)) of four
// double lanes, lane j holding the elements i % 4 == j in rising order.
inline constexpr int64_t kSampleBlock = 1024;

// The loops over the vocabulary. All implementations give the same bits.
struct SamplingLoops {
  // The largest logit and its lowest index; valid: see above.
  void (*find_max)(const float* logits, int64_t n, float* max, int64_t* index, bool* valid);
  // weights[i] = Exp((logits[i] - max) / temperature).
  void (*exp_weights)(const float* logits, int64_t n, float max, float temperature, float* weights);
  double (*sum_block)(const float* weights, int64_t n);  // n <= kSampleBlock
};
const SamplingLoops& PortableSamplingLoops();

struct SampledToken {
  int32_t id = -1;
  float logprob = 0;                               // of id; set where num_top >= 0
  std::array<int32_t, kMaxTopLogprobs> top_ids{};  // the first num_top are set; -1 beyond the vocabulary
  std::array<float, kMaxTopLogprobs> top_logprobs{};
};

// Keeps its scratch between calls. One thread at a time.
class Sampler {
 public:
  explicit Sampler(const SamplingLoops& loops) : loops_(loops) {}
  SampledToken Sample(const float* logits, int64_t vocab_size, const SampleRow& row);

 private:
  // The row's logits as the choice is to see them, in scratch.
  const float* Adjust(const float* logits, int64_t n, const SampleRow& row);
  int32_t Draw(const float* logits, int64_t n, float max, const SampleRow& row);
  int32_t DrawFromWeights(int64_t n, double u);
  double SumWeights(int64_t n);
  // candidates_ = the k best ids, best first.
  void TakeBest(const float* logits, int64_t n, int64_t k);
  // The worst token that top-p keeps of all n.
  int32_t WorstOfTopP(const float* logits, int64_t n, float max, const SampleRow& row);

  const SamplingLoops& loops_;
  std::vector<float> adjusted_;
  std::vector<float> weights_;
  std::vector<double> block_sums_;
  std::vector<int32_t> candidates_;
  std::vector<int32_t> bucket_of_;
  std::vector<double> bucket_sums_;
};

}  // namespace phalanx
