#include "base/metrics.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace phalanx::metrics {
namespace {

bool IsName(std::string_view name, bool colons) {
  if (name.empty()) return false;
  for (size_t i = 0; i < name.size(); ++i) {
    const char c = name[i];
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (colons && c == ':');
    if (!letter && !(i > 0 && c >= '0' && c <= '9')) return false;
  }
  return true;
}

// Bytes of the UTF-8 character that `text` begins with; 0: it begins with none.
size_t CharacterBytes(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < size) return 0;
  for (size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, beyond U+10FFFF.
  if (first == 0xe0 && byte(1) < 0xa0) return 0;
  if (first == 0xed && byte(1) > 0x9f) return 0;
  if (first == 0xf0 && byte(1) < 0x90) return 0;
  if (first == 0xf4 && byte(1) > 0x8f) return 0;
  return size;
}

// As the format wants it: backslash and line feed, and in values of labels the quote, are escaped.
std::string Escape(std::string_view text, bool quotes) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t size = CharacterBytes(text);
    if (text[0] == '\\') {
      out += "\\\\";
    } else if (text[0] == '\n') {
      out += "\\n";
    } else if (text[0] == '"' && quotes) {
      out += "\\\"";
    } else if (size == 0) {
      out += "\xef\xbf\xbd";
    } else {
      out += text.substr(0, size);
    }
    text.remove_prefix(std::max<size_t>(size, 1));
  }
  return out;
}

std::string WriteLabels(const Labels& labels) {
  std::string out;
  for (const auto& [name, value] : labels) {
    PHX_CHECK(IsName(name, /*colons=*/false), name);
    absl::StrAppend(&out, out.empty() ? "" : ",", name, "=\"", Escape(value, /*quotes=*/true), "\"");
  }
  return out;
}

// The shortest text that reads back as the same number.
std::string Number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  char buffer[40];
  for (int digits = 6; digits <= 17; ++digits) {
    std::snprintf(buffer, sizeof(buffer), "%.*g", digits, value);
    if (std::strtod(buffer, nullptr) == value) break;
  }
  return buffer;
}

void Line(const std::string& name, const std::string& labels, const std::string& value, std::string* out) {
  absl::StrAppend(out, name);
  if (!labels.empty()) absl::StrAppend(out, "{", labels, "}");
  absl::StrAppend(out, " ", value, "\n");
}

void WriteHistogram(const std::string& name, const std::string& labels, const Histogram& histogram,
                    std::string* out) {
  const std::string bucket = absl::StrCat(name, "_bucket");
  const std::string before = labels.empty() ? "le=\"" : absl::StrCat(labels, ",le=\"");
  // The sum first: what comes in between is in the buckets at least.
  const double sum = histogram.sum();
  const std::vector<uint64_t> counts = histogram.counts();
  uint64_t total = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    total += counts[i];
    const std::string bound = i < histogram.bounds().size() ? Number(histogram.bounds()[i]) : "+Inf";
    Line(bucket, absl::StrCat(before, bound, "\""), absl::StrCat(total), out);
  }
  Line(absl::StrCat(name, "_sum"), labels, Number(sum), out);
  Line(absl::StrCat(name, "_count"), labels, absl::StrCat(total), out);
}

}  // namespace

Histogram::Histogram(absl::Span<const double> bounds)
    : bounds_(bounds.begin(), bounds.end()), counts_(new std::atomic<uint64_t>[bounds.size() + 1]()) {
  PHX_CHECK(std::adjacent_find(bounds_.begin(), bounds_.end(), std::greater_equal<>()) == bounds_.end(),
            "bounds of a histogram rise");
}

void Histogram::Observe(double value, uint64_t count) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[static_cast<size_t>(bucket)].fetch_add(count, std::memory_order_relaxed);
  const double add = value * static_cast<double>(count);
  double sum = sum_.load(std::memory_order_relaxed);
  while (!sum_.compare_exchange_weak(sum, sum + add, std::memory_order_relaxed)) {
  }
}

std::vector<uint64_t> Histogram::counts() const {
  std::vector<uint64_t> counts(bounds_.size() + 1);
  for (size_t i = 0; i < counts.size(); ++i) counts[i] = counts_[i].load(std::memory_order_relaxed);
  return counts;
}

Registry::Family& Registry::Find(std::string_view name, std::string_view help, Type type) {
  PHX_CHECK(IsName(name, /*colons=*/true), std::string(name));
  auto found = families_.find(name);
  if (found == families_.end()) {
    found = families_.emplace(std::string(name), Family{type, Escape(help, /*quotes=*/false), {}}).first;
  }
  PHX_CHECK(found->second.type == type, std::string(name));
  return found->second;
}

Registry::Metric& Registry::Find(Family& family, const Labels& labels) {
  return family.metrics[WriteLabels(labels)];
}

Counter* Registry::AddCounter(std::string_view name, std::string_view help, Labels labels) {
  MutexLock lock(mu_);
  Metric& metric = Find(Find(name, help, Type::kCounter), labels);
  if (metric.counter == nullptr) metric.counter = std::make_unique<Counter>();
  return metric.counter.get();
}

Gauge* Registry::AddRealCounter(std::string_view name, std::string_view help, Labels labels) {
  MutexLock lock(mu_);
  Metric& metric = Find(Find(name, help, Type::kCounter), labels);
  if (metric.gauge == nullptr) metric.gauge = std::make_unique<Gauge>();
  return metric.gauge.get();
}

Gauge* Registry::AddGauge(std::string_view name, std::string_view help, Labels labels) {
  MutexLock lock(mu_);
  Metric& metric = Find(Find(name, help, Type::kGauge), labels);
  if (metric.gauge == nullptr) metric.gauge = std::make_unique<Gauge>();
  return metric.gauge.get();
}

Histogram* Registry::AddHistogram(std::string_view name, std::string_view help,
                                  absl::Span<const double> bounds, Labels labels) {
  MutexLock lock(mu_);
  Metric& metric = Find(Find(name, help, Type::kHistogram), labels);
  if (metric.histogram == nullptr) metric.histogram = std::make_unique<Histogram>(bounds);
  return metric.histogram.get();
}

void Registry::SetGauges(std::string_view name, std::string_view help,
                         std::vector<std::pair<Labels, double>> values) {
  MutexLock lock(mu_);
  Family& family = Find(name, help, Type::kGauge);
  family.metrics.clear();
  for (const auto& [labels, value] : values) {
    Metric& metric = Find(family, labels);
    if (metric.gauge == nullptr) metric.gauge = std::make_unique<Gauge>();
    metric.gauge->Set(value);
  }
}

void Registry::Alias(std::string_view alias, std::string_view name) {
  MutexLock lock(mu_);
  PHX_CHECK(IsName(alias, /*colons=*/true), std::string(alias));
  aliases_.emplace(name, alias);
}

void Registry::Write(const std::string& name, const Family& family, std::string* out) {
  static constexpr const char* kTypes[] = {"counter", "gauge", "histogram"};
  absl::StrAppend(out, "# HELP ", name, " ", family.help, "\n", "# TYPE ", name, " ",
                  kTypes[static_cast<int>(family.type)], "\n");
  for (const auto& [labels, metric] : family.metrics) {
    switch (family.type) {
      case Type::kCounter:
        Line(
            name, labels,
            metric.counter != nullptr ? absl::StrCat(metric.counter->value()) : Number(metric.gauge->value()),
            out);
        break;
      case Type::kGauge:
        Line(name, labels, Number(metric.gauge->value()), out);
        break;
      case Type::kHistogram:
        WriteHistogram(name, labels, *metric.histogram, out);
        break;
    }
  }
}

std::string Registry::Write() const {
  std::string out;
  MutexLock lock(mu_);
  for (const auto& [name, family] : families_) {
    if (family.metrics.empty()) continue;
    Write(name, family, &out);
    const auto [first, last] = aliases_.equal_range(name);
    for (auto alias = first; alias != last; ++alias) Write(alias->second, family, &out);
  }
  return out;
}

std::string WriteOne(const std::string& name, std::string_view help, const Histogram& histogram) {
  std::string out =
      absl::StrCat("# HELP ", name, " ", Escape(help, /*quotes=*/false), "\n# TYPE ", name, " histogram\n");
  WriteHistogram(name, "", histogram, &out);
  return out;
}

void UpdateProcessMetrics(Registry* registry) {
  static const double began = [] {
    // Since boot, in ticks: field 22 of /proc/self/stat, after the name in parentheses.
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const double seconds = std::chrono::duration<double>(now).count();
    double up = 0;
    unsigned long long ticks = 0;
    if (std::FILE* file = std::fopen("/proc/uptime", "re")) {
      if (std::fscanf(file, "%lf", &up) != 1) up = 0;
      std::fclose(file);
    }
    if (std::FILE* file = std::fopen("/proc/self/stat", "re")) {
      char line[1024] = {};
      const size_t size = std::fread(line, 1, sizeof(line) - 1, file);
      std::fclose(file);
      const std::string_view text(line, size);
      size_t at = text.rfind(')');
      for (int i = 0; i < 20 && at != std::string_view::npos; ++i) at = text.find(' ', at + 1);
      if (at != std::string_view::npos) ticks = std::strtoull(line + at, nullptr, 10);
    }
    if (up == 0 || ticks == 0) return seconds;
    return seconds - up + static_cast<double>(ticks) / static_cast<double>(sysconf(_SC_CLK_TCK));
  }();
  registry->AddGauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.")
      ->Set(began);
  if (std::FILE* file = std::fopen("/proc/self/statm", "re")) {
    unsigned long long size = 0, resident = 0;
    const int got = std::fscanf(file, "%llu %llu", &size, &resident);
    std::fclose(file);
    const double page = static_cast<double>(sysconf(_SC_PAGESIZE));
    if (got == 2) {
      registry->AddGauge("process_virtual_memory_bytes", "Virtual memory size in bytes.")
          ->Set(static_cast<double>(size) * page);
      registry->AddGauge("process_resident_memory_bytes", "Resident memory size in bytes.")
          ->Set(static_cast<double>(resident) * page);
    }
  }
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) == 0) {
    const auto micros = [](const timeval& t) {
      return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
    };
    registry->AddRealCounter("process_cpu_seconds_total", "User and system CPU time spent, in seconds.")
        ->Set(micros(usage.ru_utime) + micros(usage.ru_stime));
  }
  if (DIR* folder = opendir("/proc/self/fd")) {
    int count = -3;  // ".", ".." and the folder itself
    while (readdir(folder) != nullptr) ++count;
    closedir(folder);
    registry->AddGauge("process_open_fds", "Number of open file descriptors.")->Set(count);
  }
}

}  // namespace phalanx::metrics
