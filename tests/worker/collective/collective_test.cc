// The conformance suite: what every collective must do, for every number of ranks and of shards.
#include "worker/collective/collective.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <random>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/worker/collective/group.h"
#include "worker/collective/region_collective.h"
#include "worker/collective/tcp_collective.h"

namespace phalanx {
namespace {

uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// What shard `shard` adds to element i in round `round`: of magnitudes so different that every other order of
// additions gives other bits somewhere.
float Value(int shard, int64_t i, int round) {
  const uint64_t x = Mix(Mix(static_cast<uint64_t>(round) << 40 | static_cast<uint64_t>(i)) + shard);
  const uint32_t exponent = 119 + (x >> 32 & 15);  // 2^-8 to 2^7
  return std::bit_cast<float>(static_cast<uint32_t>(x >> 63 << 31 | exponent << 23 | (x & 0x7FFFFF)));
}

// The specification, written as a recursion: an aligned power of two of shards is the sum of its halves.
float SubtreeSum(int first, int count, int64_t i, int round) {
  if (count == 1) return Value(first, i, round);
  return SubtreeSum(first, count / 2, i, round) + SubtreeSum(first + count / 2, count / 2, i, round);
}

// All shards from `first` on: the largest tree that starts there plus all that is right of it.
float TreeSum(int first, int num_shards, int64_t i, int round) {
  int count = 1;
  while (2 * count <= num_shards - first) count *= 2;
  const float left = SubtreeSum(first, count, i, round);
  return first + count == num_shards ? left : left + TreeSum(first + count, num_shards, i, round);
}

std::vector<Subtree> SubtreesOfRank(int num_shards, int size, int rank) {
  const Range shards = ShardsOfRank(num_shards, size, rank);
  return SubtreesOf(static_cast<int>(shards.begin), static_cast<int>(shards.end));
}

bool SameBits(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

std::string CheckTreeAllReduce(Collective& group, int num_shards, int64_t count, int round) {
  absl::StatusOr<float*> sums = group.SumsBuffer(count);
  if (!sums.ok()) return sums.status().ToString();
  int row = 0;
  for (const Subtree& tree : SubtreesOfRank(num_shards, group.size(), group.rank())) {
    for (int64_t i = 0; i < count; ++i) {
      (*sums)[row * count + i] = SubtreeSum(tree.first, tree.count, i, round);
    }
    ++row;
  }
  constexpr int kGuard = 64;
  constexpr float kSentinel = 12345.0f;
  std::vector<float> out(count + kGuard, kSentinel);
  if (absl::Status status = group.TreeAllReduce(count, out.data()); !status.ok()) return status.ToString();
  for (int64_t i = 0; i < count; ++i) {
    const float want = TreeSum(0, num_shards, i, round);
    if (!SameBits(out[i], want)) {
      return absl::StrCat("TreeAllReduce of ", count, ", round ", round, ": element ", i, " is ", out[i],
                          " instead of ", want);
    }
  }
  for (int i = 0; i < kGuard; ++i) {
    if (out[count + i] != kSentinel) return absl::StrCat("TreeAllReduce of ", count, " wrote behind its end");
  }
  return "";
}

char ByteOf(int rank, int64_t i, int round) { return static_cast<char>(Mix(i * 64 + rank + round * 977)); }

std::string CheckAllGather(Collective& group, int64_t bytes, int round, bool in_place) {
  std::vector<char> out(group.size() * bytes + 1, 'x');
  std::vector<char> own(bytes);
  char* in = in_place ? out.data() + group.rank() * bytes : own.data();
  for (int64_t i = 0; i < bytes; ++i) in[i] = ByteOf(group.rank(), i, round);
  if (absl::Status s = group.AllGather(in, bytes, out.data()); !s.ok()) return s.ToString();
  for (int r = 0; r < group.size(); ++r) {
    for (int64_t i = 0; i < bytes; ++i) {
      if (out[r * bytes + i] != ByteOf(r, i, round)) {
        return absl::StrCat("AllGather of ", bytes, ", round ", round, ": byte ", i, " of rank ", r);
      }
    }
  }
  return out.back() == 'x' ? "" : "AllGather wrote behind its end";
}

std::string CheckBroadcast(Collective& group, int64_t bytes, int root, int round) {
  std::vector<char> data(bytes + 1, 'x');
  if (group.rank() == root) {
    for (int64_t i = 0; i < bytes; ++i) data[i] = ByteOf(root, i, round);
  }
  if (absl::Status s = group.Broadcast(data.data(), bytes, root); !s.ok()) return s.ToString();
  for (int64_t i = 0; i < bytes; ++i) {
    if (data[i] != ByteOf(root, i, round)) {
      return absl::StrCat("Broadcast of ", bytes, " from ", root, ", round ", round, ": byte ", i);
    }
  }
  return data.back() == 'x' ? "" : "Broadcast wrote behind its end";
}

class CollectiveTest : public testing::TestWithParam<std::tuple<Transport, int, int>> {
 protected:
  Transport transport() const { return std::get<0>(GetParam()); }
  int num_shards() const { return std::get<1>(GetParam()); }
  int size() const { return std::get<2>(GetParam()); }
};

TEST_P(CollectiveTest, TreeAllReduceHasTheBitsOfOneRank) {
  CollectiveOptions options = GroupOptions(size(), num_shards());
  options.max_elements = 70000;
  // Each number of elements at which one of the ways of adding begins, for this number of subtrees.
  int64_t subtrees = 0;
  for (int r = 0; r < size(); ++r) subtrees += SubtreesOfRank(num_shards(), size(), r).size();
  const int64_t border = kTwoShotBytes / 4 / subtrees;
  std::vector<int64_t> counts = {0, 1, 2, 15, 17, 31, 33, 511, 513, 1000};
  static_assert(kTcpTwoShotBytes == kTwoShotBytes, "else the border of tcp is another");
  for (int64_t count : {border - 1, border, border + 1, border + 47, int64_t{70000}}) {
    if (count <= options.max_elements) counts.push_back(count);
  }
  ExpectAllWell(RunGroup(transport(), options, [&](Collective& group) {
    if (group.size() != size()) return absl::StrCat("size() is ", group.size());
    int round = 0;
    for (int repeat = 0; repeat < 2; ++repeat) {
      for (int64_t count : counts) {
        const std::string wrong = CheckTreeAllReduce(group, num_shards(), count, ++round);
        if (!wrong.empty()) return wrong;
      }
    }
    return std::string();
  }));
}

// A long random sequence of calls between ranks that come early and late: a slot that is written before all
// have read it shows here.
TEST_P(CollectiveTest, AnySequenceOfCalls) {
  CollectiveOptions options = GroupOptions(size(), num_shards());
  options.max_elements = 40000;
  options.max_gather_bytes = 3000;
  ExpectAllWell(RunGroup(transport(), options, [&](Collective& group) {
    std::mt19937 same(42);                  // the same on all ranks
    std::mt19937 own(1000 + group.rank());  // when this rank comes
    std::string wrong;
    for (int round = 0; round < 150 && wrong.empty(); ++round) {
      if (own() % 16 == 0) usleep(own() % 300);
      switch (same() % 5) {
        case 0:
          wrong = CheckTreeAllReduce(group, num_shards(), same() % 300, round);
          break;
        case 1:
          wrong = CheckTreeAllReduce(group, num_shards(), same() % 32 == 0 ? 40000 : same() % 2000, round);
          break;
        case 2: {
          const int64_t bytes = same() % 3001;
          wrong = CheckAllGather(group, bytes, round, same() % 2 == 0);
          break;
        }
        case 3: {
          const int64_t bytes = same() % 3001;
          wrong = CheckBroadcast(group, bytes, same() % size(), round);
          break;
        }
        default:
          if (absl::Status s = group.Barrier(); !s.ok()) wrong = s.ToString();
      }
    }
    return wrong;
  }));
}

// Ranks wake each other: a wake-up that gets lost would cost a look at the peers, 50 ms, in each call.
TEST_P(CollectiveTest, ManyCallsAreFast) {
  ExpectAllWell(RunGroup(transport(), GroupOptions(size(), num_shards()), [](Collective& group) {
    std::vector<int64_t> micros;
    for (int i = 0; i < 200; ++i) {
      if (group.rank() == 0 && i % 8 == 0) usleep(200);  // long enough that the others sleep
      const auto start = std::chrono::steady_clock::now();
      if (absl::Status s = group.Barrier(); !s.ok()) return s.ToString();
      micros.push_back((std::chrono::steady_clock::now() - start) / std::chrono::microseconds(1));
    }
    std::nth_element(micros.begin(), micros.begin() + 190, micros.end());
    return micros[190] < 40000 ? "" : absl::StrCat("19 of 20 barriers take up to ", micros[190], " us");
  }));
}

// The sums a rank writes belong to the next TreeAllReduce, whatever is called between.
TEST_P(CollectiveTest, SumsStayWhileOtherCallsAreMade) {
  const CollectiveOptions options = GroupOptions(size(), num_shards());
  ExpectAllWell(RunGroup(transport(), options, [&](Collective& group) -> std::string {
    for (int round = 0; round < 4; ++round) {
      absl::StatusOr<float*> sums = group.SumsBuffer(1);
      if (!sums.ok()) return sums.status().ToString();
      int row = 0;
      for (const Subtree& tree : SubtreesOfRank(num_shards(), size(), group.rank())) {
        (*sums)[row++] = SubtreeSum(tree.first, tree.count, 0, round);
      }
      std::string wrong = CheckAllGather(group, 1000, round, false);
      if (wrong.empty()) wrong = CheckBroadcast(group, 1000, size() - 1, round);
      if (!wrong.empty()) return wrong;
      float out = 0;
      if (absl::Status s = group.TreeAllReduce(1, &out); !s.ok()) return s.ToString();
      if (!SameBits(out, TreeSum(0, num_shards(), 0, round))) return absl::StrCat("round ", round);
    }
    return "";
  }));
}

// Much more than the buffers of a connection take, both ways at once.
TEST(CollectiveLarge, MessagesOfManyMegabytes) {
  for (Transport transport : TestedTransports()) {
    if (transport == Transport::kThread || IsOfDevice(transport)) continue;
    for (int size : {2, 3}) {
      CollectiveOptions options = GroupOptions(size, 4);
      options.max_elements = 2 << 20;
      options.max_gather_bytes = 24 << 20;
      ExpectAllWell(RunGroup(transport, options, [&](Collective& group) {
        std::string wrong = CheckAllGather(group, options.max_gather_bytes - 5, 1, false);
        if (wrong.empty()) wrong = CheckTreeAllReduce(group, 4, options.max_elements - 7, 2);
        if (wrong.empty()) wrong = CheckBroadcast(group, options.max_gather_bytes, size - 1, 3);
        return wrong;
      }));
    }
  }
}

std::vector<std::tuple<Transport, int, int>> AllGroups() {
  std::vector<std::tuple<Transport, int, int>> groups;
  for (Transport transport : TestedTransports()) {
    if (IsOfDevice(transport)) {  // emulated, and slow
      for (const auto& [num_shards, size] : {std::pair(8, 1), {8, 2}, {8, 3}, {8, 8}, {5, 3}, {12, 5}}) {
        groups.emplace_back(transport, num_shards, size);
      }
      continue;
    }
    for (int num_shards : {8, 5, 12}) {
      for (int size = 1; size <= std::min(8, num_shards); ++size) {
        groups.emplace_back(transport, num_shards, size);
      }
    }
  }
  return groups;
}

INSTANTIATE_TEST_SUITE_P(Groups, CollectiveTest, testing::ValuesIn(AllGroups()), [](const auto& info) {
  return absl::StrCat(ToString(std::get<0>(info.param)), "S", std::get<1>(info.param), "D",
                      std::get<2>(info.param));
});

// The suite can tell: sums that depend on the number of ranks (each rank adds its shards one by one, the
// ranks are added one by one) differ from the tree's in these data.
TEST(CollectiveTestData, TellsAnOrderThatDependsOnTheRanks) {
  for (int num_shards : {5, 8, 12}) {
    for (int size = 1; size <= num_shards; ++size) {
      int differ_straight = 0;
      int differ_ranks = 0;
      for (int64_t i = 0; i < 1000; ++i) {
        float straight = 0;       // shards one by one inside a rank
        float over_subtrees = 0;  // the right subtrees, but added one by one
        for (int r = 0; r < size; ++r) {
          const Range shards = ShardsOfRank(num_shards, size, r);
          float of_rank = Value(static_cast<int>(shards.begin), i, 1);
          for (int s = static_cast<int>(shards.begin) + 1; s < shards.end; ++s) of_rank += Value(s, i, 1);
          straight = r == 0 ? of_rank : straight + of_rank;
          for (const Subtree& tree : SubtreesOfRank(num_shards, size, r)) {
            const float sum = SubtreeSum(tree.first, tree.count, i, 1);
            over_subtrees = tree.first == 0 ? sum : over_subtrees + sum;
          }
        }
        const float want = TreeSum(0, num_shards, i, 1);
        differ_straight += !SameBits(straight, want);
        differ_ranks += !SameBits(over_subtrees, want);
      }
      EXPECT_GT(differ_straight, 100) << "S=" << num_shards << " D=" << size;
      // Two subtrees can be added in one order only.
      int64_t subtrees = 0;
      for (int r = 0; r < size; ++r) subtrees += SubtreesOfRank(num_shards, size, r).size();
      if (subtrees > 3) {
        EXPECT_GT(differ_ranks, 100) << "S=" << num_shards << " D=" << size;
      }
    }
  }
}

TEST(CollectiveOneRank, NeedsNoSharedMemoryAndNoId) {
  CollectiveOptions options = GroupOptions(1, 5);
  auto group = CreateCollective("shm", options);
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_TRUE(LeftInDevShm(options).empty());
  EXPECT_EQ(CheckTreeAllReduce(**group, 5, 1000, 1), "");
  EXPECT_EQ(CheckAllGather(**group, 1000, 1, true), "");
  EXPECT_EQ(CheckBroadcast(**group, 1000, 0, 1), "");
  EXPECT_TRUE((*group)->Barrier().ok());
  options.id = "";
  EXPECT_TRUE(CreateCollective("shm", options).ok());
  EXPECT_TRUE(CreateCollective("tcp", options).ok());
}

}  // namespace
}  // namespace phalanx
