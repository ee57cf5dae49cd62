#include "worker/collective/shm.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/collective/process.h"
#include "worker/collective/region_collective.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kRetry = std::chrono::milliseconds(2);
constexpr size_t kMaxIdLength = 200;  // NAME_MAX without the prefix

absl::StatusOr<std::string> NameOf(const std::string& id) {
  bool valid = !id.empty() && id.size() <= kMaxIdLength;
  for (char c : id) valid = valid && (absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-');
  if (!valid) {
    return absl::InvalidArgumentError(absl::StrCat("collective option id is \"", id, "\"; it must be 1 to ",
                                                   kMaxIdLength, " of the characters A-Z a-z 0-9 . _ -"));
  }
  return absl::StrCat("/phalanx-", id);
}

absl::Status ErrnoError(const std::string& what, int error) {
  const std::string message = absl::StrCat(what, ": ", std::strerror(error));
  if (error == ENOSPC || error == ENOMEM || error == EMFILE || error == ENFILE || error == EFBIG) {
    return absl::ResourceExhaustedError(message);
  }
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(message);
  return absl::InternalError(message);
}

absl::StatusOr<Region> Map(int fd, const std::string& name, int64_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (memory == MAP_FAILED) {
    return ErrnoError(absl::StrCat("cannot map ", bytes, " bytes of shared memory ", name), errno);
  }
  return Region{std::shared_ptr<void>(memory, [bytes](void* p) { munmap(p, bytes); })};
}

absl::StatusOr<Region> CreateRegion(const std::string& name, const RegionLayout& layout) {
  const int fd = shm_open(name.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);
  if (fd < 0 && errno == EEXIST) {
    return absl::AlreadyExistsError(
        absl::StrCat("shared memory ", name, " exists already; the id of a group must be new each time"));
  }
  if (fd < 0) return ErrnoError(absl::StrCat("cannot create shared memory ", name), errno);
  const auto close_fd = absl::MakeCleanup([fd] { close(fd); });
  auto unlink_name = absl::MakeCleanup([&name] { shm_unlink(name.c_str()); });

  // Allocates now: a write into shared memory that is only promised would be a SIGBUS. The size changes from
  // 0 to all at once, which is what the others wait for.
  int error = 0;
  do {
    error = posix_fallocate(fd, 0, layout.total_bytes());
  } while (error == EINTR);
  if (error != 0) {
    return ErrnoError(absl::StrCat("cannot reserve ", layout.total_bytes(), " bytes of shared memory ", name,
                                   " (make /dev/shm larger, or max_elements or max_gather_bytes smaller)"),
                      error);
  }
  PHX_ASSIGN_OR_RETURN(Region region, Map(fd, name, layout.total_bytes()));
  InitRegion(region, layout);
  std::move(unlink_name).Cancel();
  return region;
}

absl::Status CheckShape(const RegionShape& mine, const RegionShape& creators, int rank) {
  const auto check = [rank](const char* name, int64_t mine, int64_t creators) {
    if (mine == creators) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("collective option ", name, " is ", mine, " on rank ",
                                                   rank, " and ", creators,
                                                   " on rank 0; they must be equal"));
  };
  PHX_RETURN_IF_ERROR(check("size", mine.size, creators.size));
  PHX_RETURN_IF_ERROR(check("num_shards", mine.num_shards, creators.num_shards));
  PHX_RETURN_IF_ERROR(check("max_elements", mine.max_elements, creators.max_elements));
  return check("max_gather_bytes", mine.max_gather_bytes, creators.max_gather_bytes);
}

absl::StatusOr<Region> AttachRegion(const std::string& name, const RegionLayout& layout,
                                    const CollectiveOptions& options, Clock::time_point deadline) {
  const auto late = [&] {
    return absl::DeadlineExceededError(absl::StrCat("rank 0 of ", options.size, " did not create the group ",
                                                    options.id, " within ", options.connect_timeout_ms,
                                                    " ms"));
  };
  // Of a wait that goes on: whether it should not.
  const auto give_up = [&]() -> absl::Status {
    if (options.cancelled && options.cancelled()) return absl::CancelledError("the group was cancelled");
    return Clock::now() >= deadline ? late() : absl::OkStatus();
  };
  int fd = -1;
  struct stat file {};
  while (true) {
    fd = shm_open(name.c_str(), O_RDWR, 0);
    if (fd < 0 && errno != ENOENT) return ErrnoError(absl::StrCat("cannot open shared memory ", name), errno);
    if (fd >= 0) {
      if (fstat(fd, &file) == 0 && file.st_size > 0) break;
      close(fd);
    }
    PHX_RETURN_IF_ERROR(give_up());
    std::this_thread::sleep_for(kRetry);
  }
  const auto close_fd = absl::MakeCleanup([fd] { close(fd); });
  if (file.st_size < static_cast<int64_t>(sizeof(RegionHeader))) {
    return absl::InvalidArgumentError(
        absl::StrCat("shared memory ", name, " has ", file.st_size, " bytes and is no collective's"));
  }
  PHX_ASSIGN_OR_RETURN(Region region, Map(fd, name, file.st_size));
  while (region.header()->ready.load(std::memory_order_acquire) == 0) {
    PHX_RETURN_IF_ERROR(give_up());
    std::this_thread::sleep_for(kRetry);
  }
  PHX_RETURN_IF_ERROR(CheckShape(layout.shape(), region.header()->shape, options.rank));
  if (file.st_size != layout.total_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("shared memory ", name, " has ", file.st_size,
                                                   " bytes on rank 0 and ", layout.total_bytes(), " on rank ",
                                                   options.rank, "; all ranks must run the same version"));
  }
  return region;
}

// Puts this process down as `rank`.
absl::Status Claim(const Region& region, int rank, const ProcessId& self) {
  PeerState& me = region.peer(rank);
  uint32_t unclaimed = 0;
  if (!me.claimed.compare_exchange_strong(unclaimed, 1)) {
    return absl::AlreadyExistsError(
        absl::StrCat("rank ", rank, " of the group is process ", me.pid.load(), " already"));
  }
  me.start_time.store(self.start_time, std::memory_order_relaxed);
  me.pid_namespace.store(self.pid_namespace, std::memory_order_relaxed);
  me.pid.store(self.pid, std::memory_order_release);
  return absl::OkStatus();
}

// Ranks watch each other by pid, which means something only inside one PID namespace.
absl::Status CheckNamespaces(const Region& region, int size, const ProcessId& self) {
  for (int r = 0; r < size; ++r) {
    if (region.peer(r).pid_namespace.load(std::memory_order_relaxed) != self.pid_namespace) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", r,
                       " runs in another PID namespace, where its death would not be seen; run the "
                       "ranks of a shm collective in one container or with a shared PID namespace"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Collective>> CreateShmCollective(const CollectiveOptions& options) {
  const Clock::time_point deadline = Clock::now() + std::chrono::milliseconds(options.connect_timeout_ms);
  PHX_ASSIGN_OR_RETURN(const std::string name, NameOf(options.id));
  PHX_ASSIGN_OR_RETURN(const ProcessId self, ThisProcess());
  RegionLayout layout(options);
  PHX_ASSIGN_OR_RETURN(Region region, options.rank == 0 ? CreateRegion(name, layout)
                                                        : AttachRegion(name, layout, options, deadline));
  PHX_RETURN_IF_ERROR(Claim(region, options.rank, self));
  // From here the name is of no more use, whether all came or one did not. Each rank removes it: another may
  // have died before it could.
  const auto unlink_name = absl::MakeCleanup([&name] { shm_unlink(name.c_str()); });
  auto collective = std::make_unique<RegionCollective>(options, std::move(layout), region);
  collective->StartBeating();
  PHX_RETURN_IF_ERROR(collective->Connect(deadline));
  PHX_RETURN_IF_ERROR(CheckNamespaces(region, options.size, self));
  return collective;
}

}  // namespace phalanx
