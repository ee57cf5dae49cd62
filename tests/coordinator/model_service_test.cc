// Tokenize, Detokenize, ListModels, GetModel.
#include "tests/coordinator/server_fixture.h"

namespace phalanx::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

class ModelServiceTest : public ServerTest {
 protected:
  grpc::Status Tokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse* response) {
    response->Clear();
    grpc::ClientContext context;
    SetDeadline(&context);
    return inference_->Tokenize(&context, request, response);
  }
  grpc::Status Detokenize(const v1::DetokenizeRequest& request, v1::DetokenizeResponse* response) {
    response->Clear();
    grpc::ClientContext context;
    SetDeadline(&context);
    return inference_->Detokenize(&context, request, response);
  }
};

TEST_F(ModelServiceTest, TokenizesAsGenerateDoes) {
  StartServer();
  ASSERT_TRUE(Load(TestModel()).ok());
  v1::TokenizeRequest request;
  v1::TokenizeResponse response;
  EXPECT_EQ(Tokenize(request, &response).error_code(), grpc::INVALID_ARGUMENT);
  request.set_text("a<|start|>");
  request.set_pieces(true);
  grpc::Status status = Tokenize(request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(response.ids(), ElementsAre('a', kStart));
  EXPECT_THAT(response.pieces(), ElementsAre("a", "<|start|>"));
  EXPECT_EQ(response.context_length(), kContext);
  request.set_parse_special(false);
  request.set_pieces(false);
  ASSERT_TRUE(Tokenize(request, &response).ok());
  EXPECT_THAT(response.ids(), ElementsAreArray(Bytes("a<|start|>")));
  EXPECT_EQ(response.pieces_size(), 0);
  request.set_add_bos(true);
  status = Tokenize(request, &response);
  EXPECT_EQ(status.error_code(), grpc::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("add_bos"));

  request.Clear();
  request.set_raw("ab\xc3\x28");
  status = Tokenize(request, &response);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("raw is not UTF-8 at byte offset 2"));
  request.set_raw("");
  ASSERT_TRUE(Tokenize(request, &response).ok());
  EXPECT_EQ(response.ids_size(), 0);

  request.Clear();
  request.mutable_chat()->add_messages()->set_role("user");
  ASSERT_TRUE(Tokenize(request, &response).ok());
  EXPECT_EQ(response.ids(0), kStart);
  request.mutable_chat()->mutable_messages(0)->set_role("");
  status = Tokenize(request, &response);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("chat.messages[0].role"));
  request.set_model("other");
  EXPECT_EQ(Tokenize(request, &response).error_code(), grpc::NOT_FOUND);
}

TEST_F(ModelServiceTest, RefusesWhatWouldTakeMuchMemory) {
  StartServer();
  ASSERT_TRUE(Load(TestModel()).ok());
  v1::TokenizeRequest request;
  v1::TokenizeResponse response;
  request.set_text(std::string((1 << 20) + 1, 'a'));
  request.set_pieces(true);
  const grpc::Status status = Tokenize(request, &response);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("1048577 tokens; pieces are told of at most 1048576"));
}

TEST_F(ModelServiceTest, APathHasNoZeroByte) {
  StartServer();
  v1::LoadModelRequest request;
  request.mutable_spec()->set_path(std::string("/tmp\0/model.gguf", 16));
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::LoadModelResponse response;
  const grpc::Status status = cluster_->LoadModel(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("spec.path has a zero byte"));
}

TEST_F(ModelServiceTest, DetokenizesWhatItIsGiven) {
  StartServer();
  ASSERT_TRUE(Load(TestModel()).ok());
  v1::DetokenizeRequest request;
  v1::DetokenizeResponse response;
  ASSERT_TRUE(Detokenize(request, &response).ok());
  EXPECT_EQ(response.text(), "");
  for (const int32_t id : {kStart, kHello, 0xe2, 0x82}) request.add_ids(id);
  ASSERT_TRUE(Detokenize(request, &response).ok());
  EXPECT_EQ(response.text(), "hello\xef\xbf\xbd");
  EXPECT_EQ(response.raw(), "hello\xe2\x82");
  request.set_skip_special(false);
  ASSERT_TRUE(Detokenize(request, &response).ok());
  EXPECT_EQ(response.raw(), "<|start|>hello\xe2\x82");
  request.add_ids(kVocab);
  const grpc::Status status = Detokenize(request, &response);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("ids[4] is 264"));
}

TEST_F(ModelServiceTest, BoundsTheTextOfIds) {
  StartServer();
  ASSERT_TRUE(Load(TestModel()).ok());
  v1::DetokenizeRequest request;
  v1::DetokenizeResponse response;
  request.mutable_ids()->Resize((32 << 20) / 9 + 1, kStart);  // 9 bytes each
  request.set_skip_special(false);
  const grpc::Status status = Detokenize(request, &response);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("send them in parts"));
}

TEST_F(ModelServiceTest, DescribesModels) {
  Config config;
  config.max_tokens_default = 100;
  StartReady({}, config);
  TestModel other;
  other.name = "another";
  other.tokenizer = false;
  ASSERT_TRUE(Load(other).ok());
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::ListModelsResponse list;
  ASSERT_TRUE(inference_->ListModels(&context, {}, &list).ok());
  ASSERT_EQ(list.models_size(), 2);
  EXPECT_EQ(list.models(0).name(), "another");
  EXPECT_FALSE(list.models(0).ready());
  EXPECT_FALSE(list.models(0).has_tokenizer());
  EXPECT_THAT(list.models(0).detail(), HasSubstr("worker"));
  EXPECT_THAT(list.models(0).detail(), HasSubstr("no usable tokenizer"));
  const v1::Model& tiny = list.models(1);
  EXPECT_EQ(tiny.name(), "tiny");
  EXPECT_EQ(tiny.architecture(), "llama");
  EXPECT_EQ(tiny.vocab_size(), kVocab);
  EXPECT_EQ(tiny.context_length(), kContext);
  EXPECT_EQ(tiny.parameters(), 32 * kVocab);
  EXPECT_TRUE(tiny.ready());
  EXPECT_TRUE(tiny.has_tokenizer());
  EXPECT_TRUE(tiny.has_chat_template());
  EXPECT_EQ(tiny.detail(), "");
  EXPECT_EQ(tiny.defaults().temperature(), 1);
  EXPECT_EQ(tiny.defaults().max_tokens(), 100);
  EXPECT_THAT(tiny.end_token_ids(), ElementsAre(kEnd));
  EXPECT_EQ(tiny.chat_template(), "");

  grpc::ClientContext get;
  SetDeadline(&get);
  v1::GetModelRequest request;
  request.set_model("tiny");
  v1::GetModelResponse response;
  ASSERT_TRUE(inference_->GetModel(&get, request, &response).ok());
  EXPECT_EQ(response.model().chat_template(), TestModel().template_text);
  grpc::ClientContext missing;
  SetDeadline(&missing);
  request.set_model("gone");
  const grpc::Status status = inference_->GetModel(&missing, request, &response);
  EXPECT_EQ(status.error_code(), grpc::NOT_FOUND);
  EXPECT_THAT(status.error_message(), HasSubstr("another, tiny"));
}

TEST_F(ModelServiceTest, DescribesAModelWhoseTemplateIsNotUtf8) {
  StartServer();
  TestModel model;
  model.template_text = "a\xff{{ messages }}";
  ASSERT_TRUE(Load(model).ok());
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::GetModelResponse response;
  const grpc::Status status = inference_->GetModel(&context, {}, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();  // a client parses what it gets
  EXPECT_EQ(response.model().chat_template(), "");
  EXPECT_FALSE(response.model().has_chat_template());
  EXPECT_THAT(response.model().detail(), HasSubstr("not valid UTF-8 at byte offset 1"));
}

}  // namespace
}  // namespace phalanx::coordinator
