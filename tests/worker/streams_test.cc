// The streams of a group over real connections: plans from leader to followers, and the leader's stream to a
// coordinator.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/grpc_util.h"
#include "worker/peer_client.h"
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

  const auto send = [&link](uint64_t source) {
    internal::v1::ServeRequest message;
    message.mutable_submit_result()->set_detail(std::string(1000, 'x'));
    return link.Send(source, &message);
  };
  EXPECT_FALSE(send(2));  // no such stream
  EXPECT_TRUE(send(1));
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
