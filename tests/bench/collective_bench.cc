// Latency of the collectives between two processes, next to what copying the same bytes costs one of them.
//   collective_bench [ranks=2] [calls=2000] [shm|tcp] [pin]     pin: rank r stays on core r modulo their
//   number
// One line for each size: median, 10th and 90th percentile of TreeAllReduce (8 shards, bytes of the result)
// and AllGather, as rank 0 sees them; memcpy of the bytes that a rank reads.
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/worker/collective/shared_meeting.h"
#include "worker/collective/collective.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;

struct Times {
  double p10, median, p90;  // us
};

// `prepare` is not measured.
Times Measure(
    int calls, const std::function<void()>& call, const std::function<void()>& prepare = [] {}) {
  for (int i = 0; i < calls / 10 + 10; ++i) {
    prepare();
    call();
  }
  std::vector<double> us(calls);
  for (double& t : us) {
    prepare();
    const Clock::time_point start = Clock::now();
    call();
    t = std::chrono::duration<double, std::micro>(Clock::now() - start).count();
  }
  std::sort(us.begin(), us.end());
  return {us[calls / 10], us[calls / 2], us[calls * 9 / 10]};
}

void CheckOk(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  _exit(1);
}

int64_t OwnSubtrees(const CollectiveOptions& options) {
  const Range shards = ShardsOfRank(options.num_shards, options.size, options.rank);
  return static_cast<int64_t>(
      SubtreesOf(static_cast<int>(shards.begin), static_cast<int>(shards.end)).size());
}

void Pin(int rank) {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(rank % static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)), &cpus);
  if (sched_setaffinity(0, sizeof(cpus), &cpus) != 0) std::perror("sched_setaffinity");
}

int RunRank(const std::string& kind, const SharedMeeting& meeting, CollectiveOptions options, int calls,
            bool pin) {
  if (pin) Pin(options.rank);
  options.meet = meeting.Of(options);
  auto created = CreateCollective(kind, options);
  CheckOk(created.status());
  Collective& group = **created;
  int64_t subtrees = 0;
  for (int r = 0; r < options.size; ++r) {
    CollectiveOptions other = options;
    other.rank = r;
    subtrees += OwnSubtrees(other);
  }
  const bool speaks = options.rank == 0;
  const Times barrier = Measure(calls, [&] { CheckOk(group.Barrier()); });
  if (speaks) {
    std::printf("%d ranks, Barrier: %.1f us (%.1f to %.1f)\n", options.size, barrier.median, barrier.p10,
                barrier.p90);
  }
  for (int64_t bytes : {4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20}) {
    const int64_t count = bytes / 4;
    std::vector<float> out(count * options.size);
    std::vector<float> in(count, 1.0f);
    const int n =
        static_cast<int>(std::max<int64_t>(50, std::min<int64_t>(calls, (int64_t{calls} << 16) / bytes)));
    CheckOk(group.Barrier());
    // The sums are fresh each time, as a product's are: what the peers read lies in this rank's cache.
    const int64_t own_rows = OwnSubtrees(options);
    float value = 0;
    const Times reduce = Measure(
        n, [&] { CheckOk(group.TreeAllReduce(count, out.data())); },
        [&] {
          auto sums = group.SumsBuffer(count);
          CheckOk(sums.status());
          std::fill_n(*sums, count * own_rows, value += 1.0f);
        });
    CheckOk(group.Barrier());
    const Times gather = Measure(n, [&] { CheckOk(group.AllGather(in.data(), bytes, out.data())); });
    CheckOk(group.Barrier());
    std::vector<char> from(bytes * subtrees, 1), to(bytes * subtrees);
    const Times copy = Measure(n, [&] {
      std::memcpy(to.data(), from.data(), from.size());
      asm volatile("" : : "r"(to.data()) : "memory");
    });
    CheckOk(group.Barrier());
    if (!speaks) continue;
    std::printf(
        "%7lld B  TreeAllReduce %8.1f us (%.1f to %.1f)  AllGather %8.1f us (%.1f to %.1f)  "
        "memcpy of %lld shares %8.1f us, %.1f GB/s  TreeAllReduce / memcpy %.2f\n",
        static_cast<long long>(bytes), reduce.median, reduce.p10, reduce.p90, gather.median, gather.p10,
        gather.p90, static_cast<long long>(subtrees), copy.median,
        static_cast<double>(from.size()) / copy.median / 1e3, reduce.median / copy.median);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) {
  phalanx::CollectiveOptions options;
  options.size = argc > 1 ? std::atoi(argv[1]) : 2;
  const int calls = argc > 2 ? std::atoi(argv[2]) : 2000;
  const bool pin = argc > 3 && std::string(argv[argc - 1]) == "pin";
  const std::string kind = argc - pin > 3 ? argv[3] : "shm";
  const bool known = kind == "shm" || kind == "tcp";
  if (argc - pin > 4 || !known || options.size < 2 || options.size > options.num_shards || calls < 10) {
    std::fprintf(stderr, "usage: %s [ranks 2 to %d] [calls from 10] [shm|tcp] [pin]\n", argv[0],
                 options.num_shards);
    return 2;
  }
  options.id = absl::StrCat("bench-", getpid());
  options.max_elements = 1 << 20;
  options.max_gather_bytes = 4 << 20;
  const phalanx::SharedMeeting meeting;
  for (int r = 1; r < options.size; ++r) {
    const pid_t pid = fork();
    if (pid < 0) return 1;
    if (pid == 0) {
      options.rank = r;
      _exit(phalanx::RunRank(kind, meeting, options, calls, pin));
    }
  }
  int result = phalanx::RunRank(kind, meeting, options, calls, pin);
  int status = 0;
  while (wait(&status) > 0) result |= status;
  return result == 0 ? 0 : 1;
}
