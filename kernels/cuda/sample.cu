// Sampling as kernels/sampling.h defines it, the same ids. A block a row; the vocabulary is read from L2 a
// few times, 4 bytes a thread and neighbours together: 3 to 6 passes over 0.8 MB for 200 thousand tokens.
//
// Nothing is sorted but what lies on a boundary: the k best are found by a radix selection over 8 bits at a
// time, top-p by buckets of 1/32 nat, of which only the one that is cut is sorted. Sums of weights are in
// double and have the specification's order, with one exception that changes nothing: weights of a bucket
// differ by less than a factor of 2, so that their sum in double is exact and its order free (the last
// bucket's is not, and is added in an order of its own; it lies 10^-13 below the first).
#include "kernels/cuda/device.h"
#include "kernels/cuda/exp.cuh"
#include "kernels/cuda/kernels.h"

namespace phalanx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kBlock = 1024;  // kSampleBlock
constexpr int kBuckets = 1024;
constexpr float kLargest = 3.402823466e38f;

struct Best {
  float value;
  int index;
  int valid;
};

struct Shared {
  double bucket_sums[kBuckets];
  double lane_sums[kThreads];
  int histogram[256];
  int counts[kThreads];
  Best best[kWarps];
  double total;
  int chosen, count;
  uint32_t prefix;
  float limit;
};

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
int64_t PowerOfTwo(int64_t n) {
  int64_t p = 1;
  while (p < n) p *= 2;
  return p;
}

// Rises with the value; equal for +0 and -0.
PHX_DEVICE uint32_t OrderKey(float v) {
  const uint32_t bits = FloatBits(v == 0.0f ? 0.0f : v);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

struct Sampler {
  const SampleArgs& p;
  Shared& shared;
  char* scratch;

  PHX_DEVICE float* raw_copy() const { return reinterpret_cast<float*>(scratch); }
  PHX_DEVICE float* adjusted() const { return raw_copy() + p.vocab; }
  PHX_DEVICE float* weights() const { return adjusted() + p.vocab; }
  PHX_DEVICE double* block_sums() const {
    return reinterpret_cast<double*>(scratch + (int64_t{12} * p.vocab + 15) / 16 * 16);
  }
  PHX_DEVICE uint64_t* sorted() const {
    return reinterpret_cast<uint64_t*>(block_sums() + (p.vocab + kBlock - 1) / kBlock);
  }
  PHX_DEVICE int tid() const { return ThreadIndex(); }

  // The best of all threads' candidates: largest, then lowest index. All threads get it.
  PHX_DEVICE Best Reduce(Best own) {
    PHX_UNROLL_BY(1)
    for (int offset = 16; offset > 0; offset >>= 1) {
      const float value = ShuffleXor(own.value, offset);
      const int index = ShuffleXor(own.index, offset);
      own.valid &= ShuffleXor(own.valid, offset);
      if (value > own.value || (value == own.value && index < own.index))
        own.value = value, own.index = index;
    }
    SyncThreads();
    if (tid() % kWarpSize == 0) shared.best[tid() / kWarpSize] = own;
    if (!PHX_FAULT(kSampleNoBarrier)) SyncThreads();
    own = shared.best[0];
    for (int w = 1; w < kWarps; ++w) {
      const Best other = shared.best[w];
      own.valid &= other.valid;
      if (other.value > own.value || (other.value == own.value && other.index < own.index)) {
        own.value = other.value, own.index = other.index;
      }
    }
    return own;
  }

  PHX_DEVICE Best FindMax(const float* logits) {
    Best best = {-Infinity(), p.vocab, 1};
    for (int i = tid(); i < p.vocab; i += kThreads) {
      if (!(logits[i] <= kLargest)) best.valid = 0;
      if (logits[i] > best.value) best.value = logits[i], best.index = i;
    }
    best = Reduce(best);
    if (!(best.value > -Infinity())) best.valid = 0;
    return best;
  }

  // The best that comes after (value, index).
  PHX_DEVICE Best FindNext(const float* logits, float value, int index) {
    Best best = {-Infinity(), p.vocab, 1};
    for (int i = tid(); i < p.vocab; i += kThreads) {
      const float v = logits[i];
      const bool after = v < value || (v == value && i > index);
      if (after && (v > best.value || best.index == p.vocab)) best.value = v, best.index = i;
    }
    return Reduce(best);
  }

  PHX_DEVICE void ExpWeights(const float* logits, float max, float temperature) {
    for (int i = tid(); i < p.vocab; i += kThreads)
      weights()[i] = ExactExp(Div(Sub(logits[i], max), temperature));
    SyncThreads();
  }

  // Sums of blocks, by 4 threads each, and their total, in the specification's order.
  PHX_DEVICE double SumWeights() {
    const int blocks = (p.vocab + kBlock - 1) / kBlock;
    for (int first = 0; first < blocks; first += kThreads / 4) {
      const int block = first + tid() / 4;
      double sum = 0;
      const int end = (block + 1) * kBlock < p.vocab ? (block + 1) * kBlock : p.vocab;
      for (int i = block * kBlock + tid() % 4; i < end; i += 4) sum = AddDouble(sum, weights()[i]);
      shared.lane_sums[tid()] = sum;
      SyncThreads();
      if (tid() % 4 == 0 && block < blocks) {
        const double* l = shared.lane_sums + tid();
        block_sums()[block] = AddDouble(AddDouble(l[0], l[1]), AddDouble(l[2], l[3]));
      }
      SyncThreads();
    }
    if (tid() == 0) {
      double total = 0;
      for (int b = 0; b < blocks; ++b) total = AddDouble(total, block_sums()[b]);
      shared.total = total;
    }
    SyncThreads();
    return shared.total;
  }

  PHX_DEVICE int DrawFromWeights(double uniform) {
    const double target = MulDouble(uniform, SumWeights());
    if (tid() == 0) {
      const int blocks = (p.vocab + kBlock - 1) / kBlock;
      double running = 0;
      int last = 0, chosen = -1;
      for (int b = 0; b < blocks && chosen < 0; ++b) {
        const double next = AddDouble(running, block_sums()[b]);
        if (next <= target && b + 1 < blocks) {
          running = next;
          continue;
        }
        const int end = (b + 1) * kBlock < p.vocab ? (b + 1) * kBlock : p.vocab;
        double inside = running;
        for (int i = b * kBlock; i < end && chosen < 0; ++i) {
          if (weights()[i] == 0) continue;
          inside = AddDouble(inside, weights()[i]);
          last = i;
          if (inside > target) chosen = i;
        }
        if (chosen < 0 && next > target) chosen = last;
        running = next;
      }
      for (int i = p.vocab - 1; i >= 0 && chosen < 0; --i) {
        if (weights()[i] > 0) chosen = i;
      }
      shared.chosen = chosen < 0 ? last : chosen;
    }
    SyncThreads();
    return shared.chosen;
  }

  // Collects the ids that `keep` says into sorted(), best first; their number.
  template <typename Keep>
  PHX_DEVICE int Collect(const float* logits, Keep&& keep) {
    if (tid() == 0) shared.count = 0;
    SyncThreads();
    for (int i = tid(); i < p.vocab; i += kThreads) {
      if (!keep(i)) continue;
      const uint64_t key = static_cast<uint64_t>(~OrderKey(logits[i])) << 32 | static_cast<uint32_t>(i);
      sorted()[AtomicAdd(&shared.count, 1)] = key;
    }
    SyncThreads();
    const int count = shared.count;
    int size = 1;
    while (size < count) size *= 2;
    for (int i = count + tid(); i < size; i += kThreads) sorted()[i] = ~uint64_t{0};
    SyncThreads();
    // Bitonic: https://en.wikipedia.org/wiki/Bitonic_sorter
    for (int k = 2; k <= size; k *= 2) {
      for (int j = k / 2; j > 0; j /= 2) {
        for (int i = tid(); i < size; i += kThreads) {
          const int other = i ^ j;
          if (other <= i) continue;
          const uint64_t a = sorted()[i], b = sorted()[other];
          if ((a > b) == ((i & k) == 0)) sorted()[i] = b, sorted()[other] = a;
        }
        SyncThreads();
      }
    }
    return count;
  }

  // The k-th best id, k < vocab.
  PHX_DEVICE int KthBest(const float* logits, int k) {
    uint32_t prefix = 0, mask = 0;
    int left = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
      shared.histogram[tid()] = 0;
      SyncThreads();
      for (int i = tid(); i < p.vocab; i += kThreads) {
        const uint32_t key = OrderKey(logits[i]);
        if ((key & mask) == prefix) AtomicAdd(&shared.histogram[key >> shift & 255], 1);
      }
      SyncThreads();
      if (tid() == 0) {
        int bin = 255;
        while (shared.histogram[bin] < left) left -= shared.histogram[bin--];
        shared.prefix = prefix | static_cast<uint32_t>(bin) << shift;
        shared.count = left;
      }
      SyncThreads();
      prefix = shared.prefix;
      left = shared.count;
      mask |= 255u << shift;
      SyncThreads();
    }
    // Of those equal to it, the left-th in order of ids: each thread counts a run.
    const int run = (p.vocab + kThreads - 1) / kThreads;
    const int begin = tid() * run, end = begin + run < p.vocab ? begin + run : p.vocab;
    int own = 0;
    for (int i = begin; i < end; ++i) own += OrderKey(logits[i]) == prefix ? 1 : 0;
    shared.counts[tid()] = own;
    SyncThreads();
    int before = 0;
    for (int t = 0; t < tid(); ++t) before += shared.counts[t];
    if (before < left && left <= before + own) {
      int seen = before;
      for (int i = begin; i < end; ++i) {
        if (OrderKey(logits[i]) == prefix && ++seen == left) shared.chosen = i;
      }
    }
    SyncThreads();
    return shared.chosen;
  }

  PHX_DEVICE int WorstOfTopKAndP(const float* logits, const SampleRowArgs& row) {
    const int worst = KthBest(logits, row.top_k);
    if (!(row.top_p < 1.0f)) return worst;
    const float lowest = logits[worst];
    const int count =
        Collect(logits, [&](int i) { return logits[i] > lowest || (logits[i] == lowest && i <= worst); });
    if (tid() == 0) {
      double total = 0, kept = 0;
      for (int i = 0; i < count; ++i) total = AddDouble(total, weights()[static_cast<uint32_t>(sorted()[i])]);
      int n = 0;
      while (n < count && (n == 0 || kept < MulDouble(row.top_p, total))) {
        kept = AddDouble(kept, weights()[static_cast<uint32_t>(sorted()[n++])]);
      }
      shared.chosen = static_cast<int>(static_cast<uint32_t>(sorted()[n - 1]));
    }
    SyncThreads();
    return shared.chosen;
  }

  PHX_DEVICE int BucketOf(float logit, float max, float temperature) const {
    const float distance = Mul(Div(Sub(max, logit), temperature), 32.0f);
    return distance < kBuckets - 1.0f ? static_cast<int>(distance) : kBuckets - 1;
  }

  PHX_DEVICE int WorstOfTopP(const float* logits, float max, const SampleRowArgs& row) {
    for (int b = tid(); b < kBuckets; b += kThreads) shared.bucket_sums[b] = 0;
    SyncThreads();
    double last = 0;
    for (int i = tid(); i < p.vocab; i += kThreads) {
      const int bucket = BucketOf(logits[i], max, row.temperature);
      if (bucket == kBuckets - 1) {
        last = AddDouble(last, weights()[i]);
      } else {
        AtomicAdd(&shared.bucket_sums[bucket], static_cast<double>(weights()[i]));  // exact, in any order
      }
    }
    shared.lane_sums[tid()] = last;
    SyncThreads();
    if (tid() == 0) {
      for (int t = 0; t < kThreads; ++t) {
        shared.bucket_sums[kBuckets - 1] = AddDouble(shared.bucket_sums[kBuckets - 1], shared.lane_sums[t]);
      }
      double total = 0, kept = 0;
      for (int b = 0; b < kBuckets; ++b) total = AddDouble(total, shared.bucket_sums[b]);
      const double wanted = MulDouble(row.top_p, total);
      int bucket = 0;
      while (bucket + 1 < kBuckets && AddDouble(kept, shared.bucket_sums[bucket]) < wanted) {
        kept = AddDouble(kept, shared.bucket_sums[bucket++]);
      }
      shared.total = total;
      shared.lane_sums[0] = kept;
      shared.chosen = bucket;
    }
    SyncThreads();
    const int cut = shared.chosen;
    const double wanted = MulDouble(row.top_p, shared.total);
    const double before = shared.lane_sums[0];
    const int count =
        Collect(logits, [&](int i) { return BucketOf(logits[i], max, row.temperature) == cut; });
    if (tid() == 0) {
      double kept = before;
      int n = 0;
      do {
        kept = AddDouble(kept, weights()[static_cast<uint32_t>(sorted()[n++])]);
      } while (n < count && kept < wanted);
      shared.chosen = static_cast<int>(static_cast<uint32_t>(sorted()[n - 1]));
    }
    SyncThreads();
    return shared.chosen;
  }

  PHX_DEVICE int Draw(const float* logits, float max, const SampleRowArgs& row) {
    ExpWeights(logits, max, row.temperature);
    const bool top_k = row.top_k > 0 && row.top_k < p.vocab;
    int worst = -1;
    if (top_k) {
      worst = WorstOfTopKAndP(logits, row);
    } else if (row.top_p < 1.0f) {
      worst = WorstOfTopP(logits, max, row);
    }
    const float lowest = worst >= 0 ? logits[worst] : 0;
    if (worst >= 0 || row.min_p > 0) {
      SyncThreads();
      for (int i = tid(); i < p.vocab; i += kThreads) {
        const bool kept = worst < 0 || logits[i] > lowest || (logits[i] == lowest && i <= worst);
        if (!kept || !(weights()[i] >= row.min_p)) weights()[i] = 0;
      }
      SyncThreads();
    }
    return DrawFromWeights(row.uniform);
  }

  PHX_DEVICE float Clamp(float v) const {
    return v == Infinity() ? kLargest : v == -Infinity() ? -kLargest : v;
  }

  PHX_DEVICE const float* Adjust(const float* raw, const SampleRowArgs& row) {
    float* x = adjusted();
    for (int i = tid(); i < p.vocab; i += kThreads) x[i] = raw[i];
    SyncThreads();
    for (int i = row.bias_begin + tid(); i < row.bias_end; i += kThreads) {
      float& v = x[p.bias[i].id];
      if (v != -Infinity()) v = Clamp(Add(v, p.bias[i].bias));
    }
    SyncThreads();
    for (int i = row.counts_begin + tid(); i < row.counts_end; i += kThreads) {
      float& v = x[p.counts[i].id];
      if (v == -Infinity()) continue;
      v = Clamp(v > 0 ? Div(v, row.repetition_penalty) : Mul(v, row.repetition_penalty));
      if (p.counts[i].num_output == 0) continue;
      const float count = static_cast<float>(p.counts[i].num_output);
      v = Clamp(Sub(Sub(v, Mul(row.frequency_penalty, count)), row.presence_penalty));
    }
    SyncThreads();
    for (int i = row.banned_begin + tid(); i < row.banned_end; i += kThreads) x[p.banned[i]] = -Infinity();
    SyncThreads();
    return x;
  }

  PHX_DEVICE void Run(int64_t r) {
    const SampleRowArgs row = p.rows[r];
    const float* raw = p.logits + r * p.share_cols;
    if (p.num_shares > 1) {
      for (int s = 0; s < p.num_shares; ++s) {
        const float* share = p.logits + (s * p.num_rows + r) * p.share_cols;
        for (int i = p.share_begin[s] + tid(); i < p.share_begin[s + 1]; i += kThreads) {
          raw_copy()[i] = share[i - p.share_begin[s]];
        }
      }
      SyncThreads();
      raw = raw_copy();
    }
    const Best best = FindMax(raw);
    bool valid = best.valid != 0;
    int id = -1;
    if (valid && row.target >= 0) {
      id = row.target;
    } else if (valid) {
      const float* logits = raw;
      Best chosen = best;
      if (row.adjusts) {
        logits = Adjust(raw, row);
        chosen = FindMax(logits);
        valid = chosen.valid != 0;
      }
      if (valid) id = row.temperature == 0 ? chosen.index : Draw(logits, chosen.value, row);
    }
    if (tid() == 0) p.ids[r] = id;
    if (row.num_top < 0) return;
    float* top_logprobs = p.top_logprobs == nullptr ? nullptr : p.top_logprobs + r * p.max_top;
    int32_t* top_ids = p.top_ids == nullptr ? nullptr : p.top_ids + r * p.max_top;
    if (!valid) {
      if (tid() == 0 && p.logprobs != nullptr) p.logprobs[r] = QuietNan();
      if (tid() < row.num_top && top_ids != nullptr) top_ids[tid()] = -1;
      if (tid() < row.num_top && top_logprobs != nullptr) top_logprobs[tid()] = QuietNan();
      return;
    }
    SyncThreads();
    ExpWeights(raw, best.value, 1.0f);
    const float log_sum = static_cast<float>(LogDouble(SumWeights()));
    if (tid() == 0 && p.logprobs != nullptr) p.logprobs[r] = Sub(Sub(raw[id], best.value), log_sum);
    Best next = best;
    for (int j = 0; j < row.num_top; ++j) {
      const bool exists = j < p.vocab;
      if (j > 0 && exists) next = FindNext(raw, next.value, next.index);
      if (tid() == 0 && top_ids != nullptr) top_ids[j] = exists ? next.index : -1;
      if (tid() == 0 && top_logprobs != nullptr) {
        top_logprobs[j] = exists ? Sub(Sub(next.value, best.value), log_sum) : -Infinity();
      }
    }
  }
};

PHX_GLOBAL void PHX_BOUNDS(kThreads, 1) Sample(SampleArgs p) {
  WaitForPrevious();
  Sampler sampler = {p, *reinterpret_cast<Shared*>(SharedMemory()), p.scratch + BlockX() * p.scratch_stride};
  sampler.Run(p.first_row + BlockX());
}

}  // namespace

int64_t SampleScratchBytes(int vocab) {
  return RoundUp(RoundUp(int64_t{12} * vocab, 16) + (vocab + kBlock - 1) / kBlock * 8 + PowerOfTwo(vocab) * 8,
                 256);
}

int LaunchSample(const SampleArgs& p, int count, void* stream) {
  if (count == 0) return 0;
  return LaunchKernel("Sample", Sample, GridDim{static_cast<unsigned>(count), 1, 1}, kThreads,
                      static_cast<int>(sizeof(Shared)), stream, p);
}

}  // namespace phalanx::cuda
