// Workers in this process, with everything but main(): agents, streams, shared memory and a real model,
// driven by a coordinator of the test's.
#include "worker/group_member.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/worker/fake_coordinator.h"
#include "tests/worker/tiny_model.h"
#include "worker/agent.h"
#include "worker/peer_service.h"

namespace phalanx {
namespace {

using internal::v1::ASSIGNMENT_STATE_FAILED;
using internal::v1::ASSIGNMENT_STATE_LOADING;
using internal::v1::ASSIGNMENT_STATE_READY;
using internal::v1::ASSIGNMENT_STATE_RELEASED;
using ::testing::HasSubstr;

// A worker without its process.
class TestWorker {
 public:
  TestWorker(const std::string& id, const std::vector<std::string>& coordinators) {
    config_.coordinators = coordinators;
    config_.id = id;
    config_.host_id = "test";
    config_.threads = 1;
    config_.rung = "reference";
    config_.kv_bytes = 16 << 20;
    config_.max_tokens_per_step = 64;
    config_.max_sequences = 8;
    config_.connect_timeout_ms = 5000;
    config_.load_report_ms = 50;
    EXPECT_TRUE(config_.Validate().ok()) << config_.Validate();
    grpc::ServerBuilder builder;
    ConfigureInternalServer(&builder);
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&peers_);
    server_ = builder.BuildAndStart();
    address_ = absl::StrCat("127.0.0.1:", port);
    internal::v1::Hello hello;
    hello.set_worker_id(id);
    hello.set_host("test");
    hello.set_group_address(address_);
    agent_ = std::make_unique<Agent>(&config_, &peers_, hello);
  }
  ~TestWorker() {
    EXPECT_TRUE(agent_->Stop());
    agent_.reset();
    server_->Shutdown(std::chrono::system_clock::now());
  }
  const std::string& address() const { return address_; }

 private:
  WorkerConfig config_;
  PeerService peers_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  std::unique_ptr<Agent> agent_;
};

class GroupMemberTest : public ::testing::Test {
 protected:
  GroupMemberTest() : path_(absl::StrCat(::testing::TempDir(), "/group_member_test.", getpid(), ".gguf")) {
    TinyModelOptions options;
    WriteTinyModel(options, TinyTensors(options), "tiny", path_);
  }
  ~GroupMemberTest() override { unlink(path_.c_str()); }

  void StartWorkers(int count) {
    for (int i = 0; i < count; ++i) {
      const std::string id = absl::StrCat("w", i);
      workers_.push_back(std::make_unique<TestWorker>(id, std::vector<std::string>{coordinator_.address()}));
    }
    for (int i = 0; i < count; ++i) coordinator_.WaitJoined(absl::StrCat("w", i));
  }
  internal::v1::Assign MakeAssign(uint64_t epoch, int rank, int num_ranks) {
    internal::v1::Assign assign;
    assign.set_group_id("g");
    assign.set_epoch(epoch);
    assign.set_rank(rank);
    assign.set_num_ranks(num_ranks);
    assign.mutable_model()->set_name("tiny");
    assign.mutable_model()->set_path(path_);
    assign.mutable_model()->set_tensor_parallel(num_ranks);
    assign.mutable_model()->set_shards(8);
    assign.mutable_model()->set_context_length(256);
    assign.set_collective(collective_);
    assign.set_collective_id(absl::StrCat("test-", getpid(), "-", epoch));
    assign.set_leader_address(workers_[0]->address());
    assign.set_workers_on_host(num_ranks);
    return assign;
  }
  // Workers 0 to num_ranks - 1 become the ranks of group g.
  void Form(uint64_t epoch, int num_ranks) {
    for (int r = 0; r < num_ranks; ++r)
      coordinator_.Assign(absl::StrCat("w", r), MakeAssign(epoch, r, num_ranks));
    for (int r = 0; r < num_ranks; ++r)
      coordinator_.WaitState(absl::StrCat("w", r), epoch, ASSIGNMENT_STATE_READY);
    coordinator_.WaitServing("g", epoch);
  }
  void ReleaseAll(uint64_t epoch, int num_ranks) {
    for (int r = 0; r < num_ranks; ++r)
      coordinator_.Release(absl::StrCat("w", r), "g", epoch, "the test is done");
    for (int r = 0; r < num_ranks; ++r) {
      coordinator_.WaitState(absl::StrCat("w", r), epoch, ASSIGNMENT_STATE_RELEASED);
    }
  }
  static internal::v1::Submit MakeSubmit(uint64_t request, int max_tokens) {
    internal::v1::Submit submit;
    submit.set_request(request);
    submit.set_attempt(1);
    for (int i = 0; i < 70; ++i) submit.add_prompt_ids((i * 37 + 5) % 131);
    submit.set_temperature(0.8f);
    submit.set_top_p(0.95f);
    submit.set_repetition_penalty(1);
    submit.set_seed(42);
    submit.set_max_tokens(max_tokens);
    submit.set_logprobs(-1);
    submit.set_prompt_logprobs(-1);
    return submit;
  }

  const std::string path_;
  std::string collective_ = "shm";
  FakeCoordinator coordinator_;
  std::vector<std::unique_ptr<TestWorker>> workers_;
};

// The ranks meet at their leader, in this process as between hosts.
TEST_F(GroupMemberTest, TokensAreTheSameOverTcp) {
  StartWorkers(3);
  std::vector<int32_t> tokens;
  uint64_t epoch = 0;
  for (const int num_ranks : {1, 2, 3}) {
    collective_ = num_ranks == 1 ? "shm" : "tcp";
    Form(++epoch, num_ranks);
    coordinator_.Submit("g", MakeSubmit(epoch, 20));
    const std::vector<int32_t> got = coordinator_.WaitTokens(epoch);
    if (num_ranks == 1) tokens = got;
    EXPECT_EQ(got, tokens) << num_ranks << " ranks";
    ReleaseAll(epoch, num_ranks);
    coordinator_.WaitNotServing("g");
  }
  EXPECT_EQ(tokens.size(), 20u);
}

TEST_F(GroupMemberTest, TokensAreTheSameWithOneAndTwoRanks) {
  StartWorkers(2);
  Form(1, 1);
  const internal::v1::GroupHello one = coordinator_.WaitServing("g", 1);
  EXPECT_EQ(one.context_length(), 256);
  EXPECT_GT(one.kv_blocks(), 0);
  EXPECT_THAT(one.fingerprint(), HasSubstr("shards=8"));
  coordinator_.Submit("g", MakeSubmit(1, 20));
  EXPECT_EQ(coordinator_.WaitSubmitResult(1).state(), internal::v1::SUBMIT_STATE_ACCEPTED);
  const std::vector<int32_t> tokens = coordinator_.WaitTokens(1);
  EXPECT_EQ(tokens.size(), 20u);
  ReleaseAll(1, 1);
  coordinator_.WaitNotServing("g");

  Form(2, 2);
  EXPECT_EQ(coordinator_.WaitServing("g", 2).fingerprint(), one.fingerprint());
  coordinator_.Submit("g", MakeSubmit(2, 20));
  coordinator_.Submit("g", MakeSubmit(3, 20));
  EXPECT_EQ(coordinator_.WaitTokens(2), tokens);
  EXPECT_EQ(coordinator_.WaitTokens(3), tokens);
  coordinator_.WaitLoad(
      [](const auto& load) { return load.generated_tokens() == 40 && load.running() == 0; });
  ReleaseAll(2, 2);
  for (const char* worker : {"w0", "w1"}) {
    EXPECT_EQ(coordinator_.CountState(worker, 2, ASSIGNMENT_STATE_LOADING), 1);
    EXPECT_EQ(coordinator_.CountState(worker, 2, ASSIGNMENT_STATE_READY), 1);
  }
  EXPECT_GT(coordinator_.heartbeats(), 0);
}

TEST_F(GroupMemberTest, LossOfAFollowerFailsTheGroupOnceAndNamesTheRank) {
  StartWorkers(2);
  Form(1, 2);
  coordinator_.Submit("g", MakeSubmit(1, 180));
  coordinator_.WaitSomeTokens(1, 3);
  workers_.pop_back();
  EXPECT_THAT(coordinator_.WaitState("w0", 1, ASSIGNMENT_STATE_FAILED), HasSubstr("rank 1"));
  coordinator_.WaitNotServing("g");
  coordinator_.WaitGone("w1");
  // The worker that is left takes the model alone.
  Form(2, 1);
  coordinator_.Submit("g", MakeSubmit(2, 8));
  EXPECT_EQ(coordinator_.WaitTokens(2).size(), 8u);
  EXPECT_EQ(coordinator_.CountState("w0", 1, ASSIGNMENT_STATE_FAILED), 1);
}

TEST_F(GroupMemberTest, LossOfAFollowerOfAnIdleGroupIsNoticed) {
  StartWorkers(2);
  Form(1, 2);
  workers_.pop_back();
  EXPECT_THAT(coordinator_.WaitState("w0", 1, ASSIGNMENT_STATE_FAILED), HasSubstr("rank 1"));
}

TEST_F(GroupMemberTest, LossOfTheLeaderFailsItsFollowers) {
  StartWorkers(2);
  Form(1, 2);
  const std::string leader = workers_[0]->address();
  workers_[0].reset();
  EXPECT_THAT(coordinator_.WaitState("w1", 1, ASSIGNMENT_STATE_FAILED), HasSubstr(leader));
}

TEST_F(GroupMemberTest, AFileThatIsNotThereIsNamedAndTheWorkersAreFreeAgain) {
  StartWorkers(2);
  for (int rank = 0; rank < 2; ++rank) {
    internal::v1::Assign assign = MakeAssign(1, rank, 2);
    if (rank == 1) assign.mutable_model()->set_path("/nowhere/model.gguf");
    coordinator_.Assign(absl::StrCat("w", rank), assign);
  }
  EXPECT_THAT(coordinator_.WaitState("w1", 1, ASSIGNMENT_STATE_FAILED), HasSubstr("/nowhere/model.gguf"));
  // The other rank may still wait for it; a release ends that at once.
  const auto began = CondVar::Clock::now();
  ReleaseAll(1, 2);
  EXPECT_LT(CondVar::Clock::now() - began, std::chrono::seconds(4));
  Form(2, 2);
}

TEST_F(GroupMemberTest, AFollowerThatNeverComesIsNamed) {
  StartWorkers(1);
  coordinator_.Assign("w0", MakeAssign(1, 0, 2));
  EXPECT_THAT(coordinator_.WaitState("w0", 1, ASSIGNMENT_STATE_FAILED), HasSubstr("rank 1"));
}

TEST_F(GroupMemberTest, ImpossibleAssignmentsAreRefusedNamingTheField) {
  StartWorkers(1);
  internal::v1::Assign assign = MakeAssign(1, 2, 2);
  coordinator_.Assign("w0", assign);
  EXPECT_THAT(coordinator_.WaitState("w0", 1, ASSIGNMENT_STATE_FAILED), HasSubstr("rank is '2'"));
  assign = MakeAssign(2, 0, 1);
  assign.set_collective("carrier pigeon");
  coordinator_.Assign("w0", assign);
  EXPECT_THAT(coordinator_.WaitState("w0", 2, ASSIGNMENT_STATE_FAILED), HasSubstr("carrier pigeon"));
  assign = MakeAssign(3, 0, 1);
  assign.mutable_model()->set_context_length(100000);
  coordinator_.Assign("w0", assign);
  EXPECT_THAT(coordinator_.WaitState("w0", 3, ASSIGNMENT_STATE_FAILED), HasSubstr("100000"));
  Form(4, 1);
}

TEST_F(GroupMemberTest, ANewerAssignmentReplacesAndAReleaseOfAnOldOneDoesNotHurt) {
  StartWorkers(1);
  Form(1, 1);
  Form(2, 1);
  coordinator_.Release("w0", "g", 1, "late");
  coordinator_.WaitState("w0", 1, ASSIGNMENT_STATE_RELEASED);
  coordinator_.Submit("g", MakeSubmit(7, 4));
  EXPECT_EQ(coordinator_.WaitTokens(7).size(), 4u);
  EXPECT_EQ(coordinator_.CountState("w0", 1, ASSIGNMENT_STATE_FAILED), 0);
}

TEST_F(GroupMemberTest, AbortFreesAndBadRequestsAreRefused) {
  StartWorkers(1);
  Form(1, 1);
  coordinator_.Submit("g", MakeSubmit(1, 180));
  coordinator_.WaitSomeTokens(1, 2);
  coordinator_.Abort("g", 1);
  coordinator_.WaitLoad(
      [](const auto& load) { return load.generated_tokens() > 0 && load.kv_blocks_used() == 0; });
  EXPECT_FALSE(coordinator_.IsFinished(1));

  internal::v1::Submit submit = MakeSubmit(2, 4);
  submit.set_top_p(0);
  coordinator_.Submit("g", submit);
  EXPECT_EQ(coordinator_.WaitSubmitResult(2).state(), internal::v1::SUBMIT_STATE_REJECTED);
  EXPECT_EQ(coordinator_.WaitSubmitResult(2).code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(coordinator_.WaitSubmitResult(2).detail(), HasSubstr("top_p"));
  submit = MakeSubmit(3, 4);
  for (int i = 0; i < 256; ++i) submit.add_prompt_ids(1);  // beyond the context
  coordinator_.Submit("g", submit);
  EXPECT_EQ(coordinator_.WaitSubmitResult(3).state(), internal::v1::SUBMIT_STATE_REJECTED);
  submit = MakeSubmit(4, 4);
  submit.add_prompt_ids(131);  // beyond the vocabulary
  coordinator_.Submit("g", submit);
  EXPECT_EQ(coordinator_.WaitSubmitResult(4).state(), internal::v1::SUBMIT_STATE_REJECTED);
}

// The folder with the tokenizer, the controls and the budget come over the wire.
TEST_F(GroupMemberTest, AThinkingBudgetNeedsATokenizer) {
  StartWorkers(2);
  Form(1, 1);
  internal::v1::Submit submit = MakeSubmit(1, 40);
  submit.mutable_thinking()->set_max_tokens(7);
  submit.mutable_thinking()->set_opened("think");
  internal::v1::MarkIds* close = submit.mutable_thinking()->add_close();
  close->set_family("think");
  for (int id : {3, 4}) close->add_ids(id);
  submit.set_repetition_penalty(1.25f);
  coordinator_.Submit("g", submit);
  EXPECT_EQ(coordinator_.WaitSubmitResult(1).state(), internal::v1::SUBMIT_STATE_REJECTED);
  EXPECT_EQ(coordinator_.WaitSubmitResult(1).code(), static_cast<int>(absl::StatusCode::kFailedPrecondition));
  ReleaseAll(1, 1);
  coordinator_.WaitNotServing("g");

  const std::string folder = absl::StrCat(::testing::TempDir(), "/group_member_test.", getpid());
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/tokenizer.json")
      << R"({"added_tokens": [], "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "merges": [], )"
      << R"("vocab": {"a": 0, "b": 1, "c": 2, "</th": 3, "ink>": 4}}})";
  for (int r = 0; r < 2; ++r) {
    internal::v1::Assign assign = MakeAssign(2, r, 2);
    assign.mutable_model()->set_tokenizer(folder);
    coordinator_.Assign(absl::StrCat("w", r), assign);
  }
  coordinator_.WaitServing("g", 2);
  submit.set_request(2);
  coordinator_.Submit("g", submit);
  const std::vector<int32_t> tokens = coordinator_.WaitTokens(2);
  ASSERT_EQ(tokens.size(), 40u);
  EXPECT_EQ(tokens[7], 3);
  EXPECT_EQ(tokens[8], 4);
  ReleaseAll(2, 2);
  std::filesystem::remove_all(folder);
}

TEST_F(GroupMemberTest, SecondCoordinatorGetsTheGroupAndMayNotTakeTheWorker) {
  FakeCoordinator second;
  workers_.push_back(
      std::make_unique<TestWorker>("w0", std::vector<std::string>{coordinator_.address(), second.address()}));
  coordinator_.WaitJoined("w0");
  second.WaitJoined("w0");
  Form(1, 1);
  second.WaitServing("g", 1);
  second.Submit("g", MakeSubmit(1, 5));
  coordinator_.Submit("g", MakeSubmit(1, 5));
  EXPECT_EQ(second.WaitTokens(1), coordinator_.WaitTokens(1));
  internal::v1::Assign assign = MakeAssign(9, 0, 1);
  assign.set_group_id("other");
  second.Assign("w0", assign);
  EXPECT_THAT(second.WaitState("w0", 9, ASSIGNMENT_STATE_FAILED), HasSubstr(coordinator_.address()));
  EXPECT_EQ(coordinator_.CountState("w0", 1, ASSIGNMENT_STATE_FAILED), 0);
}

TEST(GroupMemberRestartTest, ARestartedCoordinatorFindsTheWorkerIdle) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/group_member_restart.", getpid(), ".gguf");
  TinyModelOptions options;
  WriteTinyModel(options, TinyTensors(options), "tiny", path);
  auto coordinator = std::make_unique<FakeCoordinator>();
  const int port = coordinator->port();
  TestWorker worker("w0", {coordinator->address()});
  internal::v1::Assign assign;
  assign.set_group_id("g");
  assign.set_epoch(1);
  assign.set_num_ranks(1);
  assign.mutable_model()->set_path(path);
  assign.mutable_model()->set_shards(8);
  assign.set_collective("shm");
  assign.set_collective_id("r1");
  assign.set_workers_on_host(1);
  coordinator->WaitJoined("w0");
  coordinator->Assign("w0", assign);
  coordinator->WaitServing("g", 1);
  coordinator.reset();
  coordinator = std::make_unique<FakeCoordinator>(port);
  ASSERT_EQ(coordinator->port(), port);
  coordinator->WaitJoined("w0");
  assign.set_epoch(2);
  coordinator->Assign("w0", assign);
  coordinator->WaitServing("g", 2);
  unlink(path.c_str());
}

}  // namespace
}  // namespace phalanx
