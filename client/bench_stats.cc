#include "client/bench_stats.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace phalanx::bench {
namespace {

constexpr double kLeast = 1e-6;
constexpr double kRatio = 1.01;
constexpr int kResourceExhausted = 8;  // of gRPC

}  // namespace

double Times::Middle(size_t bucket) { return kLeast * std::pow(kRatio, static_cast<double>(bucket) - 0.5); }

void Times::Add(double seconds) {
  const double at = seconds <= kLeast ? 0 : std::ceil(std::log(seconds / kLeast) / std::log(kRatio));
  ++counts_[static_cast<size_t>(std::min<double>(at, kBuckets - 1))];
  least_ = count_ == 0 ? seconds : std::min(least_, seconds);
  most_ = count_ == 0 ? seconds : std::max(most_, seconds);
  ++count_;
  sum_ += seconds;
}

void Times::Add(const Times& other) {
  if (other.count_ == 0) return;
  for (size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
  least_ = count_ == 0 ? other.least_ : std::min(least_, other.least_);
  most_ = count_ == 0 ? other.most_ : std::max(most_, other.most_);
  count_ += other.count_;
  sum_ += other.sum_;
}

double Times::Percentile(double percent) const {
  if (count_ == 0) return 0;
  const auto wanted = std::max<uint64_t>(
      1, static_cast<uint64_t>(std::ceil(percent / 100 * static_cast<double>(count_) - 1e-9)));
  if (wanted >= count_) return most_;
  uint64_t seen = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    seen += counts_[i];
    if (seen >= wanted) return std::clamp(Middle(i), least_, most_);
  }
  return most_;
}

uint64_t Times::CountBetween(double from, double to) const {
  uint64_t count = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    const double middle = Middle(i);
    if (middle >= from && middle < to) count += counts_[i];
  }
  return count;
}

void Results::Add(const Record& record, double window_end) {
  ++sent;
  lag.Add(std::max(0.0, record.sent - record.intended));
  if (record.finished && record.code == 0) {
    ++finished;
    if (record.end <= window_end) ++window_finished;
    prompt_tokens += static_cast<uint64_t>(record.prompt_tokens);
    output_tokens += static_cast<uint64_t>(record.output_tokens);
    if (record.first >= 0) first_token.Add(record.first - record.intended);
    for (const float gap : record.gaps) inter_token.Add(static_cast<double>(gap));
    if (record.output_tokens > 1 && record.last > record.first) {
      per_token.Add((record.last - record.first) / static_cast<double>(record.output_tokens - 1));
    }
    end_to_end.Add(record.end - record.intended);
    return;
  }
  // A stream that was cut off after its first message was not refused.
  if (record.code == kResourceExhausted && record.prompt_tokens == 0) {
    ++refused;
    refusal.Add(record.end - record.sent);
    if (record.retry_after >= 0) retry_after.Add(record.retry_after);
    return;
  }
  ++failed;
  const std::string error = record.code == 0 ? "the stream ended without its end" : record.error;
  const auto known =
      std::find_if(errors.begin(), errors.end(), [&](const auto& e) { return e.first == error; });
  if (known != errors.end()) {
    ++known->second;
  } else if (errors.size() < kMaxErrors) {
    errors.emplace_back(error, 1);
  }
  std::stable_sort(errors.begin(), errors.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
}

}  // namespace phalanx::bench
