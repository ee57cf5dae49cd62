#include "worker/collective/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace phalanx {
namespace {

struct ProcStat {
  char state = '?';
  uint64_t start_time = 0;
};

// Fields 3 and 22 of /proc/<pid>/stat (proc(5)); the second field, in brackets, may hold anything.
std::optional<ProcStat> ReadStat(int64_t pid) {
  const int fd = open(absl::StrCat("/proc/", pid, "/stat").c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  char buffer[1024];
  const ssize_t n = read(fd, buffer, sizeof(buffer));
  close(fd);
  if (n <= 0) return std::nullopt;
  const std::string text(buffer, n);
  const size_t bracket = text.rfind(')');
  if (bracket == std::string::npos || bracket + 2 >= text.size()) return std::nullopt;
  const std::vector<std::string> fields = absl::StrSplit(text.substr(bracket + 2), ' ');
  ProcStat stat;
  if (fields.size() < 20 || fields[0].size() != 1) return std::nullopt;
  stat.state = fields[0][0];
  if (!absl::SimpleAtoi(fields[19], &stat.start_time)) return std::nullopt;
  return stat;
}

}  // namespace

absl::StatusOr<ProcessId> ThisProcess() {
  ProcessId id;
  id.pid = getpid();
  struct stat ns {};
  const std::optional<ProcStat> proc = ReadStat(id.pid);
  if (!proc.has_value() || stat("/proc/self/ns/pid", &ns) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot read /proc/", id.pid,
                     "/stat and /proc/self/ns/pid, by which ranks watch each other; mount /proc"));
  }
  id.start_time = proc->start_time;
  id.pid_namespace = ns.st_ino;
  return id;
}

bool IsProcessAlive(int64_t pid, uint64_t start_time) {
  if (kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH) return false;
  const std::optional<ProcStat> proc = ReadStat(pid);
  if (!proc.has_value()) return true;  // e.g. out of file descriptors; the wait's deadline still holds
  return proc->state != 'Z' && proc->state != 'X' && proc->start_time == start_time;
}

}  // namespace phalanx
