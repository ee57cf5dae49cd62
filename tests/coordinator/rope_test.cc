// LongRoPE's modes over the wire: from the model's spec to the group and to the client.
#include "tests/coordinator/server_fixture.h"

namespace phalanx::coordinator {
namespace {

using ::testing::HasSubstr;

// Two tables of RoPE: 16 positions, then 64.
constexpr char kConfig[] = R"({
  "architectures": ["Phi3ForCausalLM"], "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32,
  "vocab_size": 32, "max_position_embeddings": 64, "original_max_position_embeddings": 16,
  "num_attention_heads": 2, "num_key_value_heads": 1, "torch_dtype": "float32", "rope_theta": 10000.0,
  "rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [1, 2, 3, 4]}})";

class RopeTest : public ServerTest {
 protected:
  ~RopeTest() override { std::filesystem::remove_all(dir_); }

  grpc::Status LoadDirectory(v1::Rope rope, int context_length, v1::ModelSpec* spec) {
    std::filesystem::create_directories(dir_);
    EXPECT_TRUE(GgufWriter::WriteBytes(dir_ + "/config.json", kConfig));
    EXPECT_TRUE(GgufWriter::WriteBytes(dir_ + "/model.safetensors", ""));
    v1::LoadModelRequest request;
    request.mutable_spec()->set_path(dir_);
    request.mutable_spec()->set_name("tiny");
    request.mutable_spec()->set_rope(rope);
    request.mutable_spec()->set_context_length(context_length);
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::LoadModelResponse response;
    const grpc::Status status = cluster_->LoadModel(&context, request, &response);
    *spec = response.spec();
    return status;
  }
  void StartDirectory(v1::Rope rope, int context_length = 0) {
    ASSERT_NO_FATAL_FAILURE(StartServer());
    v1::ModelSpec spec;
    const grpc::Status loaded = LoadDirectory(rope, context_length, &spec);
    ASSERT_TRUE(loaded.ok()) << loaded.error_message();
    EXPECT_EQ(spec.rope(), rope == v1::ROPE_AUTO ? v1::ROPE_AUTO : v1::ROPE_LONG);
    FakeWorker::Options options;
    options.on_submit = [](FakeLeader* leader, const internal::v1::Submit& submit) {
      leader->Answer(submit, internal::v1::SUBMIT_STATE_ACCEPTED);
      leader->SayAll(submit, {7});
    };
    AddWorker(std::move(options));
    ASSERT_TRUE(WaitReady("tiny/0"));
    ASSERT_TRUE(Eventually([this] { return workers_[0]->leader() != nullptr; }));
  }
  // The mode of a request, the same in all that tells it.
  uint32_t Mode(int prompt, std::optional<int> max_tokens, int n = 1) {
    v1::GenerateRequest request = Tokens(std::vector<int32_t>(static_cast<size_t>(prompt), 1));
    if (max_tokens) request.mutable_sampling()->set_max_tokens(*max_tokens);
    request.mutable_sampling()->set_n(n);
    const size_t before = workers_[0]->leader()->submits().size();
    const Answer answer = Generate(request);
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    const auto submits = workers_[0]->leader()->submits();
    EXPECT_EQ(submits.size(), before + static_cast<size_t>(n));
    for (size_t i = before; i < submits.size(); ++i) {
      EXPECT_EQ(submits[i].rope_mode(), answer.started().resume().rope_mode());
    }
    return answer.started().resume().rope_mode();
  }

  const std::string dir_ = ::testing::TempDir() + "rope_test_" + std::to_string(::getpid());
};

TEST_F(RopeTest, LongIsForAllWhereTheContextIsLong) {
  StartDirectory(v1::ROPE_UNSPECIFIED);
  EXPECT_EQ(Mode(1, 1), 1u);
  EXPECT_EQ(Mode(40, 4), 1u);
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::GetModelResponse response;
  ASSERT_TRUE(inference_->GetModel(&context, {}, &response).ok());
  EXPECT_EQ(response.model().rope(), v1::ROPE_LONG);
  EXPECT_THAT(response.model().detail(), HasSubstr(dir_ + "/tokenizer.json is missing"));
}

TEST_F(RopeTest, ShortIsForAllWhereTheContextIsShort) {
  StartDirectory(v1::ROPE_LONG, 16);
  EXPECT_EQ(Mode(1, 1), 0u);
  EXPECT_EQ(Mode(12, 4), 0u);
}

TEST_F(RopeTest, AutoGoesByEachRequest) {
  StartDirectory(v1::ROPE_AUTO);
  EXPECT_EQ(Status().models(0).spec().rope(), v1::ROPE_AUTO);
  EXPECT_EQ(Mode(12, 4), 0u);
  EXPECT_EQ(Mode(13, 4), 1u);
  EXPECT_EQ(Mode(12, 4, /*n=*/3), 0u);
  EXPECT_EQ(Mode(12, 5, /*n=*/3), 1u);
  EXPECT_EQ(Mode(1, std::nullopt), 1u);  // the default: the rest of the context
  EXPECT_EQ(Mode(4, 1), 0u);
}

TEST_F(RopeTest, AValueThatIsNone) {
  StartServer();
  v1::ModelSpec spec;
  const grpc::Status status = LoadDirectory(static_cast<v1::Rope>(7), 0, &spec);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("spec.rope is 7"));
}

}  // namespace
}  // namespace phalanx::coordinator
