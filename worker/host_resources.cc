#include "worker/host_resources.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace phalanx {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

std::optional<std::string> ReadText(const std::string& path) {
  std::ifstream in(path);
  if (!in) return std::nullopt;
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// A file with one number; "max", absurdly large values and absent files are no limit.
std::optional<int64_t> ReadNumber(const std::string& path) {
  const std::optional<std::string> text = ReadText(path);
  int64_t value = 0;
  if (!text || !absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &value)) return std::nullopt;
  return value;
}

// The number behind `key` in a file of "key value" or "key: value kB" lines.
std::optional<int64_t> ReadField(const std::string& path, absl::string_view key) {
  const std::optional<std::string> text = ReadText(path);
  if (!text) return std::nullopt;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" :\t"), absl::SkipEmpty());
    int64_t value = 0;
    if (words.size() >= 2 && words[0] == key && absl::SimpleAtoi(words[1], &value)) {
      return words.size() >= 3 && words[2] == "kB" ? value * 1024 : value;
    }
  }
  return std::nullopt;
}

// Directories of this process's cgroup and all above it, for `controller` ("" is version 2), mounted at
// `mount`. In a container the path of /proc/self/cgroup may lie outside the mount: the mount's root is always
// among them.
std::vector<std::string> CgroupDirs(const std::string& root, absl::string_view controller,
                                    const std::string& mount) {
  std::vector<std::string> dirs = {mount};
  const std::optional<std::string> text = ReadText(root + "proc/self/cgroup");
  if (!text) return dirs;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    const std::vector<absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    const std::vector<absl::string_view> controllers = absl::StrSplit(parts[1], ',');
    if (std::find(controllers.begin(), controllers.end(), controller) == controllers.end()) continue;
    std::string dir = mount;
    for (absl::string_view step : absl::StrSplit(parts[2], '/', absl::SkipEmpty())) {
      if (step == "..") break;
      dir += '/';
      dir += std::string(step);
      dirs.push_back(dir);
    }
  }
  return dirs;
}

struct MemoryLimit {
  int64_t limit = kNoLimit;
  int64_t left = kNoLimit;
};

void Tighten(std::optional<int64_t> limit, std::optional<int64_t> usage, std::optional<int64_t> reclaimable,
             MemoryLimit* out) {
  if (!limit || *limit <= 0) return;
  out->limit = std::min(out->limit, *limit);
  const int64_t used = std::max<int64_t>(usage.value_or(0) - reclaimable.value_or(0), 0);
  out->left = std::min(out->left, std::max<int64_t>(*limit - used, 0));
}

MemoryLimit CgroupMemory(const std::string& root) {
  MemoryLimit result;
  for (const std::string& dir : CgroupDirs(root, "", root + "sys/fs/cgroup")) {
    Tighten(ReadNumber(dir + "/memory.max"), ReadNumber(dir + "/memory.current"),
            ReadField(dir + "/memory.stat", "inactive_file"), &result);
  }
  for (const std::string& dir : CgroupDirs(root, "memory", root + "sys/fs/cgroup/memory")) {
    Tighten(ReadNumber(dir + "/memory.limit_in_bytes"), ReadNumber(dir + "/memory.usage_in_bytes"),
            ReadField(dir + "/memory.stat", "total_inactive_file"), &result);
  }
  return result;
}

int CgroupCpus(const std::string& root) {
  double cpus = std::numeric_limits<int>::max();
  const auto tighten = [&cpus](double quota, double period) {
    if (quota > 0 && period > 0) cpus = std::min(cpus, std::ceil(quota / period));
  };
  for (const std::string& dir : CgroupDirs(root, "", root + "sys/fs/cgroup")) {
    const std::optional<std::string> text = ReadText(dir + "/cpu.max");
    if (!text) continue;
    const std::vector<absl::string_view> words =
        absl::StrSplit(*text, absl::ByAnyChar(" \n"), absl::SkipEmpty());
    double quota = 0, period = 0;
    if (words.size() == 2 && absl::SimpleAtod(words[0], &quota) && absl::SimpleAtod(words[1], &period)) {
      tighten(quota, period);
    }
  }
  for (const char* mount : {"sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"}) {
    for (const std::string& dir : CgroupDirs(root, "cpu", root + mount)) {
      tighten(static_cast<double>(ReadNumber(dir + "/cpu.cfs_quota_us").value_or(-1)),
              static_cast<double>(ReadNumber(dir + "/cpu.cfs_period_us").value_or(0)));
    }
  }
  return static_cast<int>(std::max(cpus, 1.0));
}

// Process ids of this program's processes.
std::vector<int> WorkersOnHost() {
  std::error_code ignored;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", ignored);
  std::vector<int> pids;
  for (std::filesystem::directory_iterator it("/proc", ignored), end; it != end; it.increment(ignored)) {
    int pid = 0;
    if (!absl::SimpleAtoi(it->path().filename().string(), &pid)) continue;
    // Gone meanwhile, or another user's: an error, and an empty path.
    if (!self.empty() && std::filesystem::read_symlink(it->path() / "exe", ignored) == self) {
      pids.push_back(pid);
    }
  }
  return pids;
}

}  // namespace

HostResources ReadHostResources(const std::string& root) {
  HostResources result;
  result.cpus = std::min(std::max(static_cast<int>(AffinityOf(0).size()), 1), CgroupCpus(root));
  const MemoryLimit limit = CgroupMemory(root);
  result.memory_total = std::min(ReadField(root + "proc/meminfo", "MemTotal").value_or(0), limit.limit);
  result.memory_available =
      std::min(ReadField(root + "proc/meminfo", "MemAvailable").value_or(0), limit.left);
  return result;
}

std::vector<int> AffinityOf(int pid) {
  // The mask of a host with more CPUs than cpu_set_t holds is refused with EINVAL: grow until it fits.
  for (int bits = CPU_SETSIZE; bits <= 1 << 20; bits *= 2) {
    cpu_set_t* set = CPU_ALLOC(bits);
    const size_t bytes = CPU_ALLOC_SIZE(bits);
    CPU_ZERO_S(bytes, set);
    const bool ok = sched_getaffinity(pid, bytes, set) == 0;
    std::vector<int> cpus;
    for (int cpu = 0; ok && cpu < bits; ++cpu) {
      if (CPU_ISSET_S(cpu, bytes, set)) cpus.push_back(cpu);
    }
    CPU_FREE(set);
    if (ok) return cpus;
    if (errno != EINVAL) break;
  }
  return {};
}

absl::StatusOr<std::vector<int>> CpusToPin(const std::string& mode, int num_threads,
                                           const std::vector<int>& own, int machine_cpus,
                                           const std::vector<std::vector<int>>& others, std::string* why) {
  const auto no = [why](const std::string& reason) {
    *why = reason;
    return std::vector<int>();
  };
  if (mode == "off") return no("--pin-threads is off");
  if (static_cast<int>(own.size()) < num_threads) {
    const std::string reason =
        absl::StrCat("this process has ", own.size(), " CPUs for ", num_threads, " threads");
    if (mode == "on") return absl::FailedPreconditionError(absl::StrCat("--pin-threads is on, but ", reason));
    return no(reason);
  }
  if (mode == "auto") {
    if (static_cast<int>(own.size()) >= machine_cpus) return no("this process has all CPUs of the machine");
    if (static_cast<int>(own.size()) > num_threads) {
      return no(absl::StrCat("this process has ", own.size(), " CPUs for ", num_threads,
                             " threads: others may have been given them too"));
    }
  }
  std::vector<int> taken, free;
  for (const std::vector<int>& other : others) taken.insert(taken.end(), other.begin(), other.end());
  for (const int cpu : own) {
    if (std::find(taken.begin(), taken.end(), cpu) == taken.end()) {
      free.push_back(cpu);
    } else if (mode == "auto") {
      return no(absl::StrCat("CPU ", cpu, " is another worker's too"));
    }
  }
  if (static_cast<int>(free.size()) < num_threads) {
    return absl::FailedPreconditionError(
        absl::StrCat("--pin-threads is on for ", num_threads, " threads, but of this process's ", own.size(),
                     " CPUs ", own.size() - free.size(),
                     " are other workers' too; give each worker CPUs of its own (taskset, a cpuset)"
                     " or let it be auto"));
  }
  return std::vector<int>(free.begin(), free.begin() + num_threads);
}

absl::StatusOr<std::vector<int>> CpusToPin(const std::string& mode, int num_threads, std::string* why) {
  std::vector<std::vector<int>> others;
  for (const int pid : WorkersOnHost()) {
    if (pid != getpid()) others.push_back(AffinityOf(pid));
  }
  return CpusToPin(mode, num_threads, AffinityOf(0), static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)), others,
                   why);
}

int CountWorkersOnHost() { return std::max(static_cast<int>(WorkersOnHost().size()), 1); }

int64_t KvCacheBytes(int64_t memory_available, int workers_on_host, double fraction, int64_t weight_bytes,
                     int64_t limit) {
  const int64_t share = memory_available / std::max(workers_on_host, 1);
  const int64_t bytes =
      static_cast<int64_t>(static_cast<double>(std::max<int64_t>(share - weight_bytes, 0)) * fraction);
  return limit > 0 ? std::min(bytes, limit) : bytes;
}

}  // namespace phalanx
