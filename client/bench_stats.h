// What a load test counts, and how it is summed up. Pure; times are seconds.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace phalanx::bench {

// A distribution of times in buckets of 1 %, from a microsecond to a day: of constant size however much is
// added, and percentiles are right to half a percent.
class Times {
 public:
  Times() : counts_(kBuckets) {}
  void Add(double seconds);
  void Add(const Times& other);

  uint64_t count() const { return count_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }
  double least() const { return count_ == 0 ? 0 : least_; }
  double most() const { return most_; }
  // The smallest time that at least `percent` of all are not above; 0 when there are none.
  double Percentile(double percent) const;
  // How many lie in [from, to), by buckets' middles.
  uint64_t CountBetween(double from, double to) const;

 private:
  static constexpr int kBuckets = 2600;
  static double Middle(size_t bucket);

  std::vector<uint64_t> counts_;
  uint64_t count_ = 0;
  double sum_ = 0, least_ = 0, most_ = 0;
};

// What happened in each second of a run. Thread safety: safe.
class Timeline {
 public:
  static constexpr size_t kSeconds = size_t{1} << 16;  // what comes later is left out
  enum What { kTokens, kStarted, kEnded, kRefused, kNumWhats };

  Timeline() : counts_(new std::atomic<uint32_t>[kSeconds * kNumWhats]()) {}
  void Add(What what, double when, uint32_t count = 1) {
    if (when < 0 || when >= static_cast<double>(kSeconds)) return;
    counts_[static_cast<size_t>(when) * kNumWhats + what].fetch_add(count, std::memory_order_relaxed);
  }
  uint32_t Get(What what, size_t second) const {
    return counts_[second * kNumWhats + what].load(std::memory_order_relaxed);
  }

 private:
  const std::unique_ptr<std::atomic<uint32_t>[]> counts_;
};

// One request as its client saw it. Times are since the run began; -1: it never came to that.
struct Record {
  double intended = 0;  // when it was to start
  double sent = 0;
  double first = -1;  // its first token
  double last = -1;   // its last
  double end = -1;
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  std::vector<float> gaps;  // between messages with tokens
  int code = 0;             // of gRPC
  bool finished = false;    // the server said so
  std::string error;
  double retry_after = -1;  // as the server said
};

struct Results {
  double window = 0;  // seconds over which rates are taken: from the first request until no more were started
  uint64_t sent = 0, finished = 0, refused = 0, failed = 0;
  uint64_t prompt_tokens = 0, output_tokens = 0;  // of what finished
  uint64_t window_tokens = 0;                     // that came in the window, of whatever request
  uint64_t window_finished = 0;
  uint64_t most_in_flight = 0;
  Times first_token, inter_token, per_token, end_to_end;  // of what finished, from the intended start
  Times refusal;                                          // from sending to the refusal
  Times retry_after;                                      // that refusals named
  Times lag;  // between intended start and sending: the client's own
  std::vector<std::pair<std::string, uint64_t>>
      errors;  // what failed, most frequent first, at most kMaxErrors

  static constexpr size_t kMaxErrors = 10;
  void Add(const Record& record, double window_end);
  double OutputPerSecond() const { return window > 0 ? static_cast<double>(window_tokens) / window : 0; }
  double RequestsPerSecond() const { return window > 0 ? static_cast<double>(window_finished) / window : 0; }
};

}  // namespace phalanx::bench
