// What only connections can suffer: strangers, names, ports.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/collective/failures.h"
#include "tests/worker/collective/group.h"
#include "tests/worker/collective/shared_meeting.h"
#include "worker/collective/collective.h"
#include "worker/collective/socket.h"
#include "worker/collective/tcp_mesh.h"

namespace phalanx {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// What does not speak the protocol is closed, and the ranks meet all the same.
TEST(TcpConnect, StrangersDoNoHarm) {
  CollectiveOptions options = GroupOptions(2, 8);
  const SharedMeeting meeting;
  std::thread scanner([&] {
    std::string address;
    for (int i = 0; i < 1000 && address.empty(); ++i) {
      SleepMs(5);
      address = meeting.blob(0);  // ends with it
    }
    int port = 0;
    ASSERT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port)) << address;
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(port));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const std::string garbage(100000, 'G');
    std::vector<int> fds;
    for (int i = 0; i < 80; ++i) {
      const int fd = socket(AF_INET, SOCK_STREAM, 0);
      ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
      // A third says nothing, a third ends in the middle of a hello, a third says too much.
      if (i % 3 == 1) {
        EXPECT_EQ(send(fd, "PHXRANK\n", 8, MSG_NOSIGNAL), 8);
        close(fd);
        continue;
      }
      if (i % 3 == 2) send(fd, garbage.data(), garbage.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      fds.push_back(fd);
    }
    // Rank 1 comes when they are all there.
    CollectiveOptions mine = options;
    mine.rank = 1;
    mine.meet = meeting.Of(mine);
    const auto group = CreateCollective("tcp", mine);
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_TRUE((*group)->Barrier().ok());
    for (const int fd : fds) close(fd);
  });
  options.meet = meeting.Of(options);
  const auto group = CreateCollective("tcp", options);
  EXPECT_TRUE(group.ok()) << group.status();
  if (group.ok()) {
    EXPECT_TRUE((*group)->Barrier().ok());
  }
  scanner.join();
}

// A rank of another epoch (another id) or with another token does not get in.
TEST(TcpConnect, AnotherEpochAndAWrongTokenAreRefused) {
  struct Case {
    std::string id;
    bool other_token;
  };
  CollectiveOptions options = GroupOptions(2, 8);
  options.connect_timeout_ms = 1500;
  for (const Case& c : {Case{options.id + "x", false}, Case{options.id, true}}) {
    const SharedMeeting meeting;
    absl::Status other;
    std::thread stranger([&] {
      CollectiveOptions mine = options;
      mine.rank = 1;
      mine.id = c.id;
      mine.meet = [&](const std::string& topic,
                      const std::string& blob) -> absl::StatusOr<std::vector<std::string>> {
        auto blobs = meeting.Of(mine)(topic, blob);
        if (blobs.ok() && c.other_token) (*blobs)[0][5] ^= 1;
        return blobs;
      };
      other = CreateCollective("tcp", mine).status();
    });
    CollectiveOptions own = options;
    own.meet = meeting.Of(own);
    const absl::Status status = CreateCollective("tcp", own).status();
    stranger.join();
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 of 2 did not connect to rank 0"));
    EXPECT_EQ(other.code(), absl::StatusCode::kUnavailable) << other;
    EXPECT_THAT(std::string(other.message()),
                AllOf(HasSubstr("rank 0 ("), HasSubstr("closed the connection")));
  }
}

TEST(TcpConnect, OptionsThatDifferAreNamedByBoth) {
  const SharedMeeting meeting;
  CollectiveOptions options = GroupOptions(2, 8);
  CollectiveOptions differing = options;
  options.meet = meeting.Of(options);
  differing.rank = 1;
  differing.max_elements = 999;
  differing.meet = meeting.Of(differing);
  absl::Status other;
  std::thread peer([&] { other = CreateCollective("tcp", differing).status(); });
  const absl::Status status = CreateCollective("tcp", options).status();
  peer.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("max_elements is 1000 on rank 0 and 999 on rank 1"));
  EXPECT_EQ(other.code(), absl::StatusCode::kInvalidArgument) << other;
  EXPECT_THAT(std::string(other.message()), HasSubstr("max_elements is 999 on rank 1 and 1000 on rank 0"));
}

TEST(TcpConnect, CancelledAndWithoutAMeeting) {
  CollectiveOptions options = GroupOptions(2, 8);
  EXPECT_THAT(std::string(CreateCollective("tcp", options).status().message()),
              HasSubstr("option meet is missing"));
  const Clock::time_point start = Clock::now();
  options.cancelled = [start] { return MsSince(start) > 200; };
  options.meet = [](const std::string&, const std::string& blob) -> absl::StatusOr<std::vector<std::string>> {
    return std::vector<std::string>{blob, blob};
  };
  EXPECT_EQ(CreateCollective("tcp", options).status().code(), absl::StatusCode::kCancelled);
  EXPECT_LT(MsSince(start), 2000);
}

// A name is looked up by the system, which may take half a minute over servers that do not answer.
TEST(TcpConnect, ASlowLookUpEndsWithTheWait) {
  std::atomic<bool> asked{false}, go_on{false}, ended{false};
  const Resolver slow = [&](const char* host, const char* port, const addrinfo* hints, addrinfo** found) {
    asked = true;
    while (!go_on) SleepMs(5);
    const int error = getaddrinfo("127.0.0.1", port, hints, found);
    EXPECT_STREQ(host, "rank3.example");
    ended = true;
    return error;
  };
  const Clock::time_point start = Clock::now();
  const auto give_up = [&] {
    return MsSince(start) < 150 ? absl::OkStatus() : absl::DeadlineExceededError("time is over");
  };
  const absl::Status status = Resolve("rank3.example", 7000, 0, give_up, slow).status();
  EXPECT_LT(MsSince(start), 10000);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("'rank3.example'"), HasSubstr("time is over")));
  EXPECT_TRUE(asked);
  // What comes later is freed by the thread that asked.
  go_on = true;
  for (int i = 0; i < 2000 && !ended; ++i) SleepMs(5);
  EXPECT_TRUE(ended);
}

TEST(TcpConnect, NamesAndAddresses) {
  const auto never = [] { return absl::OkStatus(); };
  const Resolver none = [](const char*, const char*, const addrinfo*, addrinfo**) { return EAI_NONAME; };
  for (const char* address : {"127.0.0.1", "::1", "[::1]"}) {
    EXPECT_TRUE(Resolve(address, 7000, 0, never, none).ok()) << address;  // asks nobody
  }
  const absl::StatusOr<Addresses> found = Resolve("localhost", 7000, 0, never);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ((*found)->ai_socktype, SOCK_STREAM);
  const absl::Status status = Resolve("rank3.example", 7000, 0, never, none).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot resolve 'rank3.example'"));
  for (const char* bad : {"", "h", ":7", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:x", "127.0.0.1:65536"}) {
    const absl::Status no = DialTcp(bad, never).status();
    EXPECT_EQ(no.code(), absl::StatusCode::kInvalidArgument) << no;
    EXPECT_THAT(std::string(no.message()), HasSubstr(std::string("'") + bad + "' is no HOST:PORT"));
  }
}

TEST(TcpConnect, APortOfTheRange) {
  const auto never = [] { return absl::OkStatus(); };
  const absl::StatusOr<Socket> any = ListenTcp("127.0.0.1", 0, 0, never);
  ASSERT_TRUE(any.ok()) << any.status();
  const int taken = PortOf(*any);
  const absl::StatusOr<Socket> next = ListenTcp("127.0.0.1", taken, std::min(taken + 20, 65535), never);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_GT(PortOf(*next), taken);
  EXPECT_LE(PortOf(*next), taken + 20);
  const absl::Status status = ListenTcp("127.0.0.1", taken, taken, never).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("port ", taken, " to ", taken)));
}

// What the ranks bring to their meeting is checked before anybody is dialled.
TEST(TcpConnect, AMeetingThatGivesTooLittle) {
  CollectiveOptions options = GroupOptions(2, 8);
  options.meet = [](const std::string&, const std::string& blob) -> absl::StatusOr<std::vector<std::string>> {
    return std::vector<std::string>{blob};
  };
  absl::Status status = CreateCollective("tcp", options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  options.meet = [](const std::string&, const std::string& blob) -> absl::StatusOr<std::vector<std::string>> {
    return std::vector<std::string>{blob, blob.substr(0, kMeetingTokenBytes)};
  };
  status = CreateCollective("tcp", options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 brought 32 bytes"));
  options.meet = [](const std::string&, const std::string&) -> absl::StatusOr<std::vector<std::string>> {
    return absl::DeadlineExceededError("rank 1 did not come");
  };
  EXPECT_EQ(CreateCollective("tcp", options).status().message(), "rank 1 did not come");
}

TEST(TcpConnect, WhyAPeerCannotBeDialledIsSaid) {
  CollectiveOptions options = GroupOptions(2, 8);
  options.rank = 1;
  options.connect_timeout_ms = 300;
  std::string nobody;
  {
    const auto listener = ListenTcp("127.0.0.1", 0, 0, [] { return absl::OkStatus(); });
    ASSERT_TRUE(listener.ok()) << listener.status();
    nobody = absl::StrCat("127.0.0.1:", PortOf(*listener));
  }
  options.meet = [&](const std::string&,
                     const std::string& blob) -> absl::StatusOr<std::vector<std::string>> {
    return std::vector<std::string>{blob.substr(0, kMeetingTokenBytes) + nobody, blob};
  };
  const absl::Status status = CreateCollective("tcp", options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("rank 0 of 2 did not connect to rank 1 within 300 ms"),
                    HasSubstr("cannot connect to " + nobody + ": Connection refused")));
}

TEST(TcpConnect, AnAddressThatIsNotOurs) {
  CollectiveOptions options = GroupOptions(2, 8);
  options.tcp.listen_host = "203.0.113.7";
  options.meet = [](const std::string&, const std::string&) { return absl::InternalError("not reached"); };
  const absl::Status status = CreateCollective("tcp", options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("203.0.113.7"));
}

}  // namespace
}  // namespace phalanx
