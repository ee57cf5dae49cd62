// Counters, gauges and histograms, and the Prometheus text exposition format (0.0.4) of them. Pure.
//
// Thread safety: safe. What is written often (Counter, Gauge, Histogram) costs a relaxed atomic or two and
// takes no lock; pointers to them stay valid as long as their registry.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "base/mutex.h"

namespace phalanx::metrics {

// Names and values, in the order in which they are written. Values may hold any bytes: they are escaped, and
// what is no UTF-8 is replaced. Names are [a-zA-Z_][a-zA-Z0-9_]*.
using Labels = std::vector<std::pair<std::string, std::string>>;

class Counter {
 public:
  void Add(uint64_t count = 1) { value_.fetch_add(count, std::memory_order_relaxed); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

class Gauge {
 public:
  void Set(double value) { value_.store(value, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

class Histogram {
 public:
  // `bounds` rise strictly; the bucket beyond the last (+Inf) is added.
  explicit Histogram(absl::Span<const double> bounds);
  // `count` observations of one value.
  void Observe(double value, uint64_t count = 1);

  const std::vector<double>& bounds() const { return bounds_; }
  // Of the buckets, not summed up; the last is +Inf's.
  std::vector<uint64_t> counts() const;
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  const std::vector<double> bounds_;
  const std::unique_ptr<std::atomic<uint64_t>[]> counts_;  // [bounds_.size() + 1]
  std::atomic<double> sum_{0};
};

class Registry {
 public:
  // The metric of that name and those labels, made when there is none. A name has one type: CHECK-fails
  // otherwise, and for a name that is none. `help` and `bounds` of the first call count.
  Counter* AddCounter(std::string_view name, std::string_view help, Labels labels = {});
  // A counter of what is no whole number; its setter only ever raises it.
  Gauge* AddRealCounter(std::string_view name, std::string_view help, Labels labels = {});
  Gauge* AddGauge(std::string_view name, std::string_view help, Labels labels = {});
  Histogram* AddHistogram(std::string_view name, std::string_view help, absl::Span<const double> bounds,
                          Labels labels = {});
  // Takes the place of all gauges of that name: for things that come and go.
  void SetGauges(std::string_view name, std::string_view help, std::vector<std::pair<Labels, double>> values);
  // Writes all of `name`, now and later, once more under the name `alias`, which is no other metric's.
  void Alias(std::string_view alias, std::string_view name);

  // All metrics, as text; a family without metrics is left out.
  std::string Write() const;

 private:
  enum class Type { kCounter, kGauge, kHistogram };
  struct Metric {
    std::unique_ptr<Counter> counter;
    std::unique_ptr<Gauge> gauge;
    std::unique_ptr<Histogram> histogram;
  };
  struct Family {
    Type type;
    std::string help;
    std::map<std::string, Metric> metrics;  // by labels as written, without braces
  };
  Family& Find(std::string_view name, std::string_view help, Type type) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static Metric& Find(Family& family, const Labels& labels);
  static void Write(const std::string& name, const Family& family, std::string* out);

  mutable Mutex mu_;
  std::map<std::string, Family, std::less<>> families_ ABSL_GUARDED_BY(mu_);
  std::multimap<std::string, std::string> aliases_ ABSL_GUARDED_BY(mu_);  // by name
};

// One histogram that is no registry's, as text.
std::string WriteOne(const std::string& name, std::string_view help, const Histogram& histogram);

// Adds what Prometheus' own clients say of every process: process_start_time_seconds, and, set anew by each
// call, memory, CPU seconds and open files.
void UpdateProcessMetrics(Registry* registry);

}  // namespace phalanx::metrics
