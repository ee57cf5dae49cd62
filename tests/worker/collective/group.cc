#include "tests/worker/collective/group.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/worker/collective/shared_meeting.h"

namespace phalanx {
namespace {

std::string ReadAll(int fd) {
  std::string text;
  char buffer[4096];
  ssize_t n;
  while ((n = read(fd, buffer, sizeof(buffer))) > 0) text.append(buffer, n);
  return text;
}

std::string RunRank(Transport transport, const CollectiveOptions& options, const Body& body) {
  absl::StatusOr<std::unique_ptr<Collective>> collective = CreateCollective(ToString(transport), options);
  if (!collective.ok()) return absl::StrCat("connect: ", collective.status().ToString());
  return body(**collective);
}

}  // namespace

std::string ToString(Transport transport) {
  constexpr const char* kNames[] = {"thread", "shm", "tcp", "virtual", "peer", "nccl"};
  return kNames[static_cast<int>(transport)];
}

CollectiveOptions GroupOptions(int size, int num_shards) {
  static std::atomic<int> counter{0};
  CollectiveOptions options;
  options.size = size;
  options.num_shards = num_shards;
  options.id = absl::StrCat("test-", getpid(), "-", counter.fetch_add(1));
  options.max_elements = 1000;
  options.max_gather_bytes = 1000;
  options.connect_timeout_ms = 20000;
  options.timeout_ms = 20000;
  return options;
}

Results RunGroup(Transport transport, const CollectiveOptions& options, const Body& body) {
  if (transport == Transport::kShm || transport == Transport::kTcp) {
    std::vector<int> ranks;
    for (int r = 0; r < options.size; ++r) ranks.push_back(r);
    return RunProcesses(transport, options, ranks, body);
  }
  auto group = CreateTestedGroup(transport, options);
  if (!group.ok()) return {{0, absl::StrCat("connect: ", group.status().ToString())}};
  std::vector<std::string> texts(options.size);
  std::vector<std::thread> threads;
  for (int r = 0; r < options.size; ++r) {
    threads.emplace_back([&, r] {
      std::unique_ptr<Collective> mine = std::move((*group)[r]);
      texts[r] = body(*mine);
    });
  }
  Results results;
  for (int r = 0; r < options.size; ++r) {
    threads[r].join();
    results[r] = texts[r];
  }
  return results;
}

Results RunProcesses(Transport transport, const CollectiveOptions& options, const std::vector<int>& ranks,
                     const Body& body, int stopped_rank) {
  const SharedMeeting meeting;
  struct Child {
    int rank;
    pid_t pid;
    int fd;
  };
  std::vector<Child> children;
  for (int rank : ranks) {
    int fds[2];
    EXPECT_EQ(pipe(fds), 0);
    const pid_t pid = fork();
    EXPECT_GE(pid, 0);
    if (pid == 0) {
      close(fds[0]);
      alarm(60);
      CollectiveOptions mine = options;
      mine.rank = rank;
      if (!mine.meet) mine.meet = meeting.Of(mine);
      const std::string text = RunRank(transport, mine, body);
      const bool written = write(fds[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
      _exit(written ? 0 : 1);
    }
    close(fds[1]);
    // The stopped one is waited for last.
    children.insert(rank == stopped_rank ? children.end()
                    : stopped_rank >= 0 && !children.empty() && children.back().rank == stopped_rank
                        ? children.end() - 1
                        : children.end(),
                    Child{rank, pid, fds[0]});
  }
  Results results;
  for (const Child& child : children) {
    if (child.rank == stopped_rank) kill(child.pid, SIGKILL);
    std::string text = ReadAll(child.fd);
    close(child.fd);
    int status = 0;
    waitpid(child.pid, &status, 0);
    if (WIFSIGNALED(status)) text = absl::StrCat("killed by signal ", WTERMSIG(status));
    if (WIFEXITED(status) && WEXITSTATUS(status) != 0) {
      text = absl::StrCat("exit ", WEXITSTATUS(status), " ", text);
    }
    results[child.rank] += text;
  }
  EXPECT_TRUE(LeftInDevShm(options).empty()) << LeftInDevShm(options)[0] << " is left in /dev/shm";
  return results;
}

void ExpectAllWell(const Results& results) {
  for (const auto& [rank, text] : results) EXPECT_EQ(text, "") << "rank " << rank;
}

std::vector<std::string> LeftInDevShm(const CollectiveOptions& options) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    const std::string name = entry.path().filename();
    if (name.find(options.id) != std::string::npos) names.push_back(name);
  }
  return names;
}

}  // namespace phalanx
