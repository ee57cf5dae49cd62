// The streams of a group over real connections: plans from leader to followers, and the leader's stream to a
// coordinator.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/grpc_util.h"
#include "worker/peer_client.h"
#include "worker/peer_meeting.h"
#include "worker/peer_service.h"
#include "worker/plan_codec.h"
#include "worker/serve_link.h"

namespace phalanx {
namespace {

using ::testing::HasSubstr;

CondVar::Clock::time_point In(int ms) { return CondVar::Clock::now() + std::chrono::milliseconds(ms); }

std::unique_ptr<grpc::Server> Listen(grpc::Service* service, std::string* address) {
  grpc::ServerBuilder builder;
  ConfigureInternalServer(&builder);
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  *address = absl::StrCat("127.0.0.1:", port);
  return server;
}

// What streams report from their own threads.
class Causes {
 public:
  void Add(std::string cause) {
    MutexLock lock(mu_);
    causes_.push_back(std::move(cause));
    changed_.NotifyAll();
  }
  // The first one; "" when none comes within 10 seconds.
  std::string Wait() {
    const auto deadline = In(10000);
    MutexLock lock(mu_);
    while (causes_.empty()) {
      if (!changed_.WaitUntil(mu_, deadline)) return "";
    }
    return causes_.front();
  }
  size_t size() {
    MutexLock lock(mu_);
    return causes_.size();
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<std::string> causes_;
};

class PlanStreamTest : public ::testing::Test {
 protected:
  PlanStreamTest() : server_(Listen(&service_, &address_)) {}
  ~PlanStreamTest() override { server_->Shutdown(std::chrono::system_clock::now()); }

  std::shared_ptr<FollowerSet> MakeSet(uint64_t epoch, int num_ranks) {
    return std::make_shared<FollowerSet>("g", epoch, num_ranks, [this](int rank, const absl::Status& cause) {
      lost_.Add(absl::StrCat(rank, ": ", std::string(cause.message())));
    });
  }
  std::unique_ptr<PlanStream> Follow(uint64_t epoch, int rank, int connect_timeout_ms = 10000) {
    PlanStreamOptions options;
    options.leader_address = address_;
    options.group_id = "g";
    options.epoch = epoch;
    options.rank = rank;
    options.connect_timeout_ms = connect_timeout_ms;
    return std::make_unique<PlanStream>(options,
                                        [this](const absl::Status& cause) { ended_.Add(cause.ToString()); });
  }
  static internal::v1::StepPlan Plan(uint64_t step) {
    StepPlan plan;
    plan.step = step;
    plan.rows = {{1, static_cast<int32_t>(step), {-1, 5}, {1}, 0}};
    internal::v1::StepPlan message;
    ToProto(plan, &message);
    return message;
  }

  PeerService service_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
  Causes lost_;   // of the leader's set
  Causes ended_;  // of the followers
};

TEST_F(PlanStreamTest, PlansComeInOrderToEveryFollower) {
  auto set = MakeSet(3, 3);
  service_.SetGroup(set);
  auto one = Follow(3, 1), two = Follow(3, 2);
  ASSERT_TRUE(set->WaitForAll(In(10000)).ok());
  for (uint64_t step = 1; step <= 40; ++step) ASSERT_TRUE(set->Send(Plan(step)).ok());
  for (PlanStream* follower : {one.get(), two.get()}) {
    for (uint64_t step = 1; step <= 40; ++step) {
      const auto plan = follower->Next(In(10000));
      ASSERT_TRUE(plan.ok()) << plan.status();
      ASSERT_TRUE(plan->has_value());
      EXPECT_EQ(**plan, FromProto(Plan(step)));
    }
    const auto none = follower->Next(In(10));
    ASSERT_TRUE(none.ok());
    EXPECT_FALSE(none->has_value());
  }
  set->Close("the test is done");
  EXPECT_THAT(ended_.Wait(), HasSubstr("the test is done"));
  EXPECT_FALSE(one->Next(In(10000)).ok());
  EXPECT_EQ(lost_.size(), 0u);  // leaving after Close is no loss
  EXPECT_THAT(set->Send(Plan(41)).message(), HasSubstr("the test is done"));
}

TEST_F(PlanStreamTest, AFollowerMayComeBeforeItsLeader) {
  auto follower = Follow(1, 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  auto set = MakeSet(1, 2);
  service_.SetGroup(set);
  EXPECT_TRUE(set->WaitForAll(In(10000)).ok());
  EXPECT_EQ(ended_.size(), 0u);
  set->Close("");
}

TEST_F(PlanStreamTest, ALeaderThatNeverComesIsNamed) {
  auto follower = Follow(1, 1, /*connect_timeout_ms=*/100);
  EXPECT_THAT(ended_.Wait(), HasSubstr(address_));
  EXPECT_FALSE(follower->Next(In(10)).ok());
}

TEST_F(PlanStreamTest, AFollowerThatNeverComesIsNamed) {
  auto set = MakeSet(1, 4);
  service_.SetGroup(set);
  auto follower = Follow(1, 2);
  const absl::Status status = set->WaitForAll(In(1000));
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1, 3"));
  set->Close("");
}

TEST_F(PlanStreamTest, AnOldEpochAnImpossibleRankAndASecondStreamAreRefused) {
  auto set = MakeSet(5, 2);
  service_.SetGroup(set);
  {
    auto old = Follow(4, 1);
    EXPECT_THAT(ended_.Wait(), HasSubstr("epoch 4 is over"));
  }
  {
    auto stranger = Follow(5, 7);
    EXPECT_FALSE(stranger->Next(In(10000)).ok());
    EXPECT_THAT(std::string(stranger->Next(In(10)).status().message()), HasSubstr("rank 7"));
  }
  auto follower = Follow(5, 1);
  ASSERT_TRUE(set->WaitForAll(In(10000)).ok());
  auto second = Follow(5, 1);
  EXPECT_THAT(std::string(second->Next(In(10000)).status().message()), HasSubstr("rank 1"));
  // The first one is not disturbed.
  ASSERT_TRUE(set->Send(Plan(1)).ok());
  EXPECT_TRUE(follower->Next(In(10000))->has_value());
  EXPECT_EQ(lost_.size(), 0u);
  set->Close("");
}

TEST_F(PlanStreamTest, ALostFollowerIsNamed) {
  auto set = MakeSet(1, 3);
  service_.SetGroup(set);
  auto one = Follow(1, 1), two = Follow(1, 2);
  ASSERT_TRUE(set->WaitForAll(In(10000)).ok());
  two.reset();
  EXPECT_THAT(lost_.Wait(), HasSubstr("2: rank 2"));
  set->Close("");
}

// ---- The ranks' meetings ----

using Blobs = std::vector<std::string>;

class MeetTest : public PlanStreamTest {
 protected:
  absl::StatusOr<Blobs> Meet(int rank, const std::string& topic, const std::string& blob,
                             int timeout_ms = 10000, uint64_t epoch = 5, const std::string& group = "g",
                             const std::function<bool()>& cancelled = nullptr) {
    PlanStreamOptions options;
    options.leader_address = address_;
    options.group_id = group;
    options.epoch = epoch;
    options.rank = rank;
    options.connect_timeout_ms = timeout_ms;
    return MeetAtLeader(options, topic, blob, cancelled);
  }
  static void ExpectError(const absl::StatusOr<Blobs>& met, absl::StatusCode code,
                          const std::vector<std::string>& parts) {
    EXPECT_EQ(met.status().code(), code) << met.status();
    for (const std::string& part : parts) {
      EXPECT_THAT(std::string(met.status().message()), HasSubstr(part));
    }
  }
};

// Any bytes, none of them, and as many as may be; several topics at once, before the plan streams exist.
TEST_F(MeetTest, EveryRankGetsEveryBlob) {
  auto set = MakeSet(5, 3);
  const std::string bytes("\0\xff id\n", 6);
  const std::string large(kMaxMeetBlobBytes, 'l');
  std::vector<absl::StatusOr<Blobs>> met(6, Blobs());
  std::vector<std::thread> ranks;
  for (int rank = 1; rank < 3; ++rank) {
    ranks.emplace_back([&, rank] {
      met[rank] = Meet(rank, "id", rank == 2 ? large : "");
      met[3 + rank] = Meet(rank, "addresses", absl::StrCat("a", rank));
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  service_.SetGroup(set);  // followers may be assigned before their leader
  met[3] = set->meeting().MeetAll("addresses", 0, "a0", 1, nullptr);
  met[0] = set->meeting().MeetAll("id", 0, bytes, 10000, nullptr);
  EXPECT_EQ(met[3].status().code(), absl::StatusCode::kDeadlineExceeded);  // not before the others' "id"
  met[3] = set->meeting().MeetAll("addresses", 0, "a0", 10000, nullptr);
  for (std::thread& rank : ranks) rank.join();
  for (int rank = 0; rank < 3; ++rank) {
    ASSERT_TRUE(met[rank].ok()) << met[rank].status();
    EXPECT_EQ(*met[rank], (Blobs{bytes, "", large})) << "rank " << rank;
    ASSERT_TRUE(met[3 + rank].ok()) << met[3 + rank].status();
    EXPECT_EQ(*met[3 + rank], (Blobs{"a0", "a1", "a2"})) << "rank " << rank;
  }
  set->Close("");
}

TEST_F(MeetTest, WhatIsWrongIsRefusedByName) {
  auto set = MakeSet(5, 2);
  service_.SetGroup(set);
  for (const int rank : {-1, 0}) {
    ExpectError(Meet(rank, "t", "b"), absl::StatusCode::kOutOfRange,
                {absl::StrCat("rank ", rank, " is no follower"), address_});
  }
  ExpectError(Meet(2, "t", "b"), absl::StatusCode::kOutOfRange,
              {"rank 2 is not in group g, which has 2 ranks"});
  ExpectError(Meet(1, "t", "b", 10000, 4), absl::StatusCode::kFailedPrecondition, {"epoch 4 is over"});
  // Its leader may come to lead these; it does not in time.
  ExpectError(Meet(1, "t", "b", 200, 6), absl::StatusCode::kDeadlineExceeded,
              {"200 ms", "does not lead group g epoch 6", address_});
  ExpectError(Meet(1, "t", "b", 200, 5, "h"), absl::StatusCode::kDeadlineExceeded,
              {"200 ms", "does not lead group h"});
  ExpectError(Meet(1, "", "b"), absl::StatusCode::kInvalidArgument, {"topic has 0 bytes"});
  ExpectError(Meet(1, std::string(65, 't'), "b"), absl::StatusCode::kInvalidArgument,
              {"topic has 65 bytes", "1 to 64"});
  ExpectError(Meet(1, "t", std::string(kMaxMeetBlobBytes + 1, 'b')), absl::StatusCode::kInvalidArgument,
              {"rank 1 brings 16385 bytes to the meeting \"t\"", "at most 16384"});
  // Nothing of that has left a trace.
  EXPECT_TRUE(set->meeting().MeetAll("t", 1, "1", 1, nullptr).status().code() ==
              absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(set->meeting().MeetAll("t", 0, "0", 10000, nullptr).ok());
  set->Close("");
}

TEST_F(MeetTest, ARankComesOnceOrWithTheSameBytes) {
  auto set = MakeSet(5, 3);
  service_.SetGroup(set);
  ExpectError(Meet(1, "t", "one", 50), absl::StatusCode::kDeadlineExceeded, {"ranks 0, 2 did not come"});
  ExpectError(Meet(1, "t", "other"), absl::StatusCode::kAlreadyExists,
              {"rank 1 of group g has come to the meeting \"t\" with other bytes"});
  ASSERT_FALSE(set->meeting().MeetAll("t", 0, "zero", 1, nullptr).ok());
  const absl::StatusOr<Blobs> two = Meet(2, "t", "two");
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ(*two, (Blobs{"zero", "one", "two"}));
  const absl::StatusOr<Blobs> again = Meet(1, "t", "one");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, *two);
  ExpectError(Meet(1, "t", "other"), absl::StatusCode::kAlreadyExists, {"other bytes"});
  set->Close("");
}

TEST_F(MeetTest, MissingRanksAreNamedWhenTimeIsOver) {
  auto set = MakeSet(5, 4);
  service_.SetGroup(set);
  ExpectError(Meet(2, "t", "b", 700), absl::StatusCode::kDeadlineExceeded,
              {"ranks 0, 1, 3 did not come", "700 ms", "\"t\"", address_});
  ExpectError(set->meeting().MeetAll("t", 0, "a", 150, nullptr), absl::StatusCode::kDeadlineExceeded,
              {"ranks 1, 3 of group g did not come to the meeting \"t\" within 150 ms"});
  // Nobody answers at all.
  server_->Shutdown(std::chrono::system_clock::now());
  ExpectError(Meet(1, "t", "b", 200), absl::StatusCode::kDeadlineExceeded, {"200 ms", address_});
}

TEST_F(MeetTest, TheEpochsEndAndACancellationEndTheWait) {
  auto set = MakeSet(5, 2);
  service_.SetGroup(set);
  const auto began = CondVar::Clock::now();
  std::atomic<bool> over{false};
  std::thread ends([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    over = true;
  });
  ExpectError(Meet(1, "t", "b", 60000, 5, "g", [&] { return over.load(); }), absl::StatusCode::kCancelled,
              {"cancelled"});
  ends.join();
  std::thread closes([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    set->Close("rank 7 caught fire");
  });
  ExpectError(Meet(1, "t", "b", 60000), absl::StatusCode::kAborted, {"rank 7 caught fire"});
  closes.join();
  ExpectError(set->meeting().MeetAll("t", 0, "", 60000, nullptr), absl::StatusCode::kAborted,
              {"rank 7 caught fire"});
  EXPECT_LT(CondVar::Clock::now() - began, std::chrono::seconds(30));
}

TEST_F(MeetTest, TopicsAreBounded) {
  auto set = MakeSet(5, 1);
  for (size_t i = 0; i < kMaxMeetTopics; ++i) {
    EXPECT_TRUE(set->meeting().MeetAll(absl::StrCat("t", i), 0, "b", 10000, nullptr).ok());
  }
  ExpectError(set->meeting().MeetAll("more", 0, "b", 10000, nullptr), absl::StatusCode::kResourceExhausted,
              {"group g has 16 meetings; \"more\""});
  EXPECT_TRUE(set->meeting().MeetAll("t3", 0, "b", 10000, nullptr).ok());
}

// ---- The leader's stream to a coordinator ----

// Takes streams; reads only while told to.
class SlowCoordinator final : public internal::v1::GroupControl::Service {
 public:
  grpc::Status Serve(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<internal::v1::ServeResponse, internal::v1::ServeRequest>* stream) override {
    internal::v1::ServeRequest message;
    while (!context->IsCancelled()) {
      if (!reads) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        continue;
      }
      if (!stream->Read(&message)) break;
      ++read;
      if (message.has_hello()) {
        internal::v1::ServeResponse abort;
        abort.mutable_abort()->set_request(++streams);
        stream->Write(abort);
      }
    }
    return grpc::Status::OK;
  }
  std::atomic<bool> reads{true};
  std::atomic<int> read{0};
  std::atomic<int> streams{0};
};

TEST(ServeLinkTest, ASlowCoordinatorLosesItsStreamAndComesBackAsANewSource) {
  SlowCoordinator coordinator;
  std::string address;
  std::unique_ptr<grpc::Server> server = Listen(&coordinator, &address);
  std::atomic<uint64_t> next_source{1};
  Causes ended, opened;
  ServeLink::Events events;
  events.submit = [](uint64_t, const internal::v1::Submit&) {};
  events.abort = [&](uint64_t source, uint64_t) { opened.Add(absl::StrCat(source)); };
  events.ended = [&](uint64_t source) { ended.Add(absl::StrCat(source)); };
  events.load = [] { return internal::v1::LoadReport(); };
  ServeLink link(address, internal::v1::GroupHello(), std::chrono::milliseconds(20), &next_source, events);
  link.Start();
  ASSERT_EQ(opened.Wait(), "1");
  EXPECT_EQ(ended.size(), 0u);

  const auto answer = [&link](uint64_t source) {
    internal::v1::ServeRequest message;
    message.mutable_submit_result()->set_detail(std::string(1000, 'x'));
    return link.Send(source, &message);
  };
  const auto send = [&link](uint64_t source) {
    internal::v1::ServeRequest message;
    message.mutable_output()->add_sequences()->set_error_detail(std::string(1000, 'x'));
    return link.Send(source, &message);
  };
  EXPECT_FALSE(answer(2));  // no such stream
  EXPECT_TRUE(answer(1));
  coordinator.reads = false;
  // What it asked for is not held against it, however much at once.
  for (int i = 0; i < 5000; ++i) EXPECT_TRUE(answer(1));
  coordinator.reads = true;
  for (const auto limit = In(10000); coordinator.read < 5000 && CondVar::Clock::now() < limit;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_GE(coordinator.read, 5000);
  EXPECT_EQ(ended.size(), 0u);
  coordinator.reads = false;
  // Never waits: a hundred thousand messages are queued or dropped at once, and the stream ends.
  const auto began = CondVar::Clock::now();
  for (int i = 0; i < 100000; ++i) send(1);
  EXPECT_LT(CondVar::Clock::now() - began, std::chrono::seconds(10));
  EXPECT_EQ(ended.Wait(), "1");
  coordinator.reads = true;
  const auto deadline = In(10000);
  while (coordinator.streams < 2 && CondVar::Clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_GE(coordinator.streams, 2);
  EXPECT_FALSE(send(1));  // of the stream that is over
  link.Stop();
  server->Shutdown(std::chrono::system_clock::now());
}

}  // namespace
}  // namespace phalanx
