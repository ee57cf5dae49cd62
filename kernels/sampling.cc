#include "kernels/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/numeric.h"

namespace phalanx {
namespace {

void FindMax(const float* logits, int64_t n, float* max, int64_t* index, bool* valid) {
  float best = -std::numeric_limits<float>::infinity();
  int64_t at = 0;
  bool ok = true;
  for (int64_t i = 0; i < n; ++i) {
    ok &= logits[i] <= std::numeric_limits<float>::max();  // false for NaN and +inf
    if (logits[i] > best) {
      best = logits[i];
      at = i;
    }
  }
  *max = best;
  *index = at;
  *valid = ok && best > -std::numeric_limits<float>::infinity();
}

void ExpWeights(const float* logits, int64_t n, float max, float temperature, float* weights) {
  for (int64_t i = 0; i < n; ++i) weights[i] = Exp((logits[i] - max) / temperature);
}

double SumBlock(const float* weights, int64_t n) {
  double lanes[4] = {0, 0, 0, 0};
  for (int64_t i = 0; i < n; ++i) lanes[i % 4] += weights[i];
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

// Of a finite x's sum or product; -inf stays -inf.
float Clamp(float x) { return std::isinf(x) ? std::copysign(std::numeric_limits<float>::max(), x) : x; }

// Best first: a total order, so that selections do not depend on the algorithm.
struct Better {
  const float* logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

}  // namespace

// source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011)
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return c;
}

double SampleUniform(uint64_t seed, uint32_t choice, uint64_t position) {
  const auto out =
      Philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), choice, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return static_cast<double>(uint64_t{out[0]} << 21 | out[1] >> 11) * 0x1p-53;
}

const SamplingLoops& PortableSamplingLoops() {
  static const SamplingLoops loops = {FindMax, ExpWeights, SumBlock};
  return loops;
}

double Sampler::SumWeights(int64_t n) {
  block_sums_.clear();
  double total = 0;
  for (int64_t i = 0; i < n; i += kSampleBlock) {
    block_sums_.push_back(loops_.sum_block(weights_.data() + i, std::min(kSampleBlock, n - i)));
    total += block_sums_.back();
  }
  return total;
}

int32_t Sampler::DrawFromWeights(int64_t n, double u) {
  const double target = u * SumWeights(n);
  double running = 0;
  int32_t last = 0;  // the last token with a weight: where rounding leaves the target just above the end
  for (size_t b = 0; b < block_sums_.size(); ++b) {
    const int64_t begin = static_cast<int64_t>(b) * kSampleBlock;
    const int64_t end = std::min(begin + kSampleBlock, n);
    if (running + block_sums_[b] <= target && b + 1 < block_sums_.size()) {
      running += block_sums_[b];
      continue;
    }
    double inside = running;
    for (int64_t i = begin; i < end; ++i) {
      if (weights_[i] == 0) continue;
      inside += weights_[i];
      last = static_cast<int32_t>(i);
      if (inside > target) return last;
    }
    // The block's sum, added in another order, was above the target by a rounding: its last token is the one.
    if (running + block_sums_[b] > target) return last;
    running += block_sums_[b];
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    if (weights_[i] > 0) return static_cast<int32_t>(i);
  }
  return last;
}

void Sampler::TakeBest(const float* logits, int64_t n, int64_t k) {
  const Better better{logits};
  candidates_.clear();
  if (k >= n / 8) {
    for (int64_t i = 0; i < n; ++i) candidates_.push_back(static_cast<int32_t>(i));
    std::sort(candidates_.begin(), candidates_.end(), better);
    candidates_.resize(static_cast<size_t>(std::min(k, n)));
    return;
  }
  // A heap with the worst kept token on top; ids rise, so that an equal logit never replaces an earlier one.
  for (int64_t i = 0; i < n; ++i) {
    const auto id = static_cast<int32_t>(i);
    if (static_cast<int64_t>(candidates_.size()) < k) {
      candidates_.push_back(id);
      std::push_heap(candidates_.begin(), candidates_.end(), better);
    } else if (k > 0 && logits[id] > logits[candidates_.front()]) {
      std::pop_heap(candidates_.begin(), candidates_.end(), better);
      candidates_.back() = id;
      std::push_heap(candidates_.begin(), candidates_.end(), better);
    }
  }
  std::sort_heap(candidates_.begin(), candidates_.end(), better);
}

// Only the tokens near the boundary are sorted: tokens fall into buckets by their distance from the best,
// which whole buckets are kept is known from their sums, and the one that is cut is sorted.
int32_t Sampler::WorstOfTopP(const float* logits, int64_t n, float max, const SampleRow& row) {
  constexpr float kBucketsPerNat = 32;
  constexpr int kBuckets = 1024;  // the last one holds all that is further away
  bucket_sums_.assign(kBuckets, 0.0);
  bucket_of_.resize(static_cast<size_t>(n));
  double total = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float distance = std::min((max - logits[i]) / row.temperature * kBucketsPerNat, kBuckets - 1.0f);
    bucket_of_[i] = static_cast<int32_t>(distance);
    bucket_sums_[bucket_of_[i]] += weights_[i];
  }
  for (const double sum : bucket_sums_) total += sum;
  const double wanted = row.top_p * total;
  double kept = 0;
  int bucket = 0;
  while (bucket + 1 < kBuckets && kept + bucket_sums_[bucket] < wanted) kept += bucket_sums_[bucket++];
  candidates_.clear();
  for (int64_t i = 0; i < n; ++i) {
    if (bucket_of_[i] == bucket) candidates_.push_back(static_cast<int32_t>(i));
  }
  std::sort(candidates_.begin(), candidates_.end(), Better{logits});
  for (const int32_t id : candidates_) {
    kept += weights_[id];
    if (kept >= wanted) return id;
  }
  return candidates_.back();  // the sum in this order fell short of the bucket's by a rounding
}

int32_t Sampler::Draw(const float* logits, int64_t n, float max, const SampleRow& row) {
  weights_.resize(static_cast<size_t>(n));
  loops_.exp_weights(logits, n, max, row.temperature, weights_.data());
  const bool top_k = row.top_k > 0 && row.top_k < n;
  if (top_k || row.top_p < 1.0f) {
    int32_t worst;  // of the kept
    if (top_k) {
      TakeBest(logits, n, row.top_k);
      double total = 0, kept = 0;
      for (const int32_t id : candidates_) total += weights_[id];
      size_t count = row.top_p < 1.0f ? 0 : candidates_.size();
      while (count < candidates_.size() && (count == 0 || kept < row.top_p * total)) {
        kept += weights_[candidates_[count++]];
      }
      worst = candidates_[count - 1];
    } else {
      worst = WorstOfTopP(logits, n, max, row);
    }
    const float lowest = logits[worst];
    for (int64_t i = 0; i < n; ++i) weights_[i] = logits[i] >= lowest ? weights_[i] : 0.0f;
    for (int64_t i = worst + 1; i < n; ++i) {
      if (logits[i] == lowest) weights_[i] = 0;
    }
  }
  if (row.min_p > 0) {
    const float least = row.min_p;  // as locals: the loop is vectorised
    float* weights = weights_.data();
    for (int64_t i = 0; i < n; ++i) weights[i] = weights[i] >= least ? weights[i] : 0.0f;
  }
  return DrawFromWeights(n, SampleUniform(row.seed, row.choice, row.position));
}

const float* Sampler::Adjust(const float* logits, int64_t n, const SampleRow& row) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  adjusted_.assign(logits, logits + n);
  if (row.bias != nullptr) {
    for (const TokenBias& b : *row.bias) {
      float& x = adjusted_[b.id];
      if (x != kNone) x = Clamp(x + b.bias);
    }
  }
  if (row.has_penalties()) {
    for (const TokenCounts::Entry& e : row.counts->entries()) {
      float& x = adjusted_[e.id];
      if (x == kNone) continue;
      x = Clamp(x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty);
      if (e.num_output == 0) continue;
      x = Clamp((x - row.frequency_penalty * static_cast<float>(e.num_output)) - row.presence_penalty);
    }
  }
  for (const auto& ids : row.banned) {
    if (ids == nullptr) continue;
    for (const int32_t id : *ids) adjusted_[id] = kNone;
  }
  return adjusted_.data();
}

SampledToken Sampler::Sample(const float* logits, int64_t n, const SampleRow& row) {
  SampledToken out;
  float max = 0;
  int64_t index = 0;
  bool valid = false;
  loops_.find_max(logits, n, &max, &index, &valid);
  const int num_top = std::min(row.num_top, kMaxTopLogprobs);
  if (valid && row.target >= 0) {
    out.id = row.target;
  } else if (valid && row.adjusts_logits()) {
    const float* adjusted = Adjust(logits, n, row);
    float best = 0;
    loops_.find_max(adjusted, n, &best, &index, &valid);
    if (valid) out.id = row.temperature == 0 ? static_cast<int32_t>(index) : Draw(adjusted, n, best, row);
  } else if (valid) {
    out.id = row.temperature == 0 ? static_cast<int32_t>(index) : Draw(logits, n, max, row);
  }
  if (!valid) {
    out.logprob = std::numeric_limits<float>::quiet_NaN();
    out.top_ids.fill(-1);
    out.top_logprobs.fill(out.logprob);
    return out;
  }
  if (row.num_top < 0) return out;

  weights_.resize(static_cast<size_t>(n));
  loops_.exp_weights(logits, n, max, 1.0f, weights_.data());
  const auto log_sum = static_cast<float>(std::log(SumWeights(n)));
  out.logprob = (logits[out.id] - max) - log_sum;
  if (num_top == 0) return out;
  TakeBest(logits, n, num_top);
  for (int j = 0; j < num_top; ++j) {
    const bool exists = j < static_cast<int>(candidates_.size());
    out.top_ids[j] = exists ? candidates_[j] : -1;
    out.top_logprobs[j] =
        exists ? (logits[candidates_[j]] - max) - log_sum : -std::numeric_limits<float>::infinity();
  }
  return out;
}

}  // namespace phalanx
