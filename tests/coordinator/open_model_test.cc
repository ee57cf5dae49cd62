// Models opened from Hugging Face directories and GGUF files.
#include "coordinator/open_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/coordinator/test_model.h"

namespace phalanx::coordinator {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class OpenModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(dir_);
    Write("config.json", Config().dump());
    Write("model.safetensors", "");  // the workers read it
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  static json Config() {
    return {{"architectures", {"LlamaForCausalLM"}},
            {"num_hidden_layers", 2},
            {"hidden_size", 32},
            {"intermediate_size", 64},
            {"vocab_size", 264},
            {"max_position_embeddings", 256},
            {"num_attention_heads", 4},
            {"num_key_value_heads", 2},
            {"rope_theta", 10000.0},
            {"torch_dtype", "float32"},
            {"bos_token_id", 1},
            {"eos_token_id", 2}};
  }
  // Tokens: the 256 bytes, then "<|im_end|>" and "<|end|>".
  static json Tokenizer() {
    json vocab = json::object();
    for (int byte = 0; byte < 256; ++byte) vocab[ByteCharacter(byte)] = byte;
    json added = json::array();
    int id = 256;
    for (const char* name : {"<|im_end|>", "<|end|>"}) {
      added.push_back({{"id", id++},
                       {"content", name},
                       {"special", true},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false}});
    }
    const json level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
    return {{"version", "1.0"},
            {"added_tokens", added},
            {"pre_tokenizer", level},
            {"decoder", level},
            {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
  }

  void Write(const std::string& name, const std::string& text, const std::string& dir = "") {
    const std::string path = (dir.empty() ? dir_ : dir) + "/" + name;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    ASSERT_TRUE(GgufWriter::WriteBytes(path, text));
  }
  absl::StatusOr<std::shared_ptr<const LoadedModel>> Open(ModelSpec spec = {}) {
    if (spec.path.empty()) spec.path = dir_;
    return OpenModel(std::move(spec));
  }
  std::string Error(absl::StatusCode code, ModelSpec spec = {}) {
    const auto model = Open(std::move(spec));
    EXPECT_EQ(model.status().code(), code) << model.status();
    return std::string(model.status().message());
  }

  const std::string root_ = ::testing::TempDir() + "open_model_" + std::to_string(::getpid());
  const std::string dir_ = root_ + "/tiny-1.5";
};

TEST_F(OpenModelTest, ADirectoryWithoutText) {
  ModelSpec spec;
  spec.path = dir_ + "/";
  spec.tensor_parallel = 3;
  const auto opened = Open(spec);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const LoadedModel& model = **opened;
  EXPECT_EQ(model.spec.name, "tiny-1.5");
  EXPECT_EQ(model.spec.path, dir_);
  EXPECT_EQ(model.spec.shards, 8);
  EXPECT_EQ(model.spec.context_length, 256);
  EXPECT_EQ(model.config.architecture, "llama");
  // Embedding, head, two layers, the last norm.
  EXPECT_EQ(model.num_parameters, 2 * 264 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64 + 2 * 32) + 32);
  EXPECT_EQ(model.tokenizer, nullptr);
  EXPECT_THAT(model.limits.end_ids, ElementsAre(2));
  EXPECT_EQ(model.limits.defaults.temperature, 1);

  const auto message = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return std::string(status.message());
  };
  EXPECT_THAT(message(CheckText(model.limits)), HasSubstr(dir_ + "/tokenizer.json is missing"));
  EXPECT_THAT(message(CheckChat({{"user", "Hi"}}, model.limits)),
              HasSubstr(dir_ + "/tokenizer.json is missing"));
  RequestFields budget;
  budget.prompt = PromptKind::kTokens;
  budget.tokens = {1};
  EXPECT_TRUE(CheckRequest(budget, model.limits).ok());
  budget.sampling.max_reasoning_tokens = 5;
  EXPECT_THAT(message(CheckRequest(budget, model.limits)),
              AllOf(HasSubstr("max_reasoning_tokens"), HasSubstr(dir_ + "/tokenizer.json is missing")));
}

TEST_F(OpenModelTest, ADirectoryWithoutATemplate) {
  Write("tokenizer.json", Tokenizer().dump());
  const auto model = Open();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE(CheckText((*model)->limits).ok());
  const absl::Status chat = CheckChat({{"user", "Hi"}}, (*model)->limits);
  EXPECT_EQ(chat.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(chat.message()),
              AllOf(HasSubstr(dir_ + "/chat_template.jinja"), HasSubstr(dir_ + "/tokenizer_config.json")));
}

TEST_F(OpenModelTest, TextAndDefaultsOfADirectory) {
  Write("tokenizer.json", Tokenizer().dump());
  Write("tokenizer_config.json", R"({"eos_token": "<|end|>", "chat_template": "{{ messages[0].content }}"})");
  Write("generation_config.json", R"({"eos_token_id": [7, 256], "temperature": 0.6, "do_sample": true})");
  const auto opened = Open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  const LoadedModel& model = **opened;
  EXPECT_TRUE(CheckChat({{"user", "Hi"}}, model.limits).ok());
  // generation_config.json goes before config.json's 2; 257 ends the tokenizer's sequences.
  EXPECT_THAT(model.limits.end_ids, ElementsAre(7, 256, 257));
  EXPECT_FLOAT_EQ(model.limits.defaults.temperature, 0.6f);

  Write("chat_template.jinja", "jinja {{ messages[0].content }}");
  Write("generation_config.json", R"({"temperature": 0.7})");
  const auto again = Open();
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->limits.chat_template, "jinja {{ messages[0].content }}");
  EXPECT_THAT((*again)->limits.end_ids, ElementsAre(2, 257));
  EXPECT_FLOAT_EQ((*again)->limits.defaults.temperature, 0.7f);

  // Nothing names an end: names that are known do.
  json config = Config();
  config.erase("eos_token_id");
  Write("config.json", config.dump());
  Write("tokenizer_config.json", "{}");
  const auto named = Open();
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_THAT((*named)->limits.end_ids, ElementsAre(256, 257));

  Write("generation_config.json", R"({"temperature": -1})");
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument), HasSubstr("generation_config.json: temperature"));
}

TEST_F(OpenModelTest, AnotherFolderForTheText) {
  const std::string other = root_ + "/other";
  Write("tokenizer.json", Tokenizer().dump(), other);
  Write("generation_config.json", R"({"top_p": 0.5})");
  ModelSpec spec;
  spec.tokenizer = other + "/";
  auto model = Open(spec);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE((*model)->limits.has_tokenizer);
  EXPECT_EQ((*model)->spec.tokenizer, other);
  EXPECT_FLOAT_EQ((*model)->limits.defaults.top_p, 0.5f);  // the model's own: the folder says nothing
  EXPECT_THAT((*model)->limits.end_ids, ElementsAre(2));
  Write("generation_config.json", R"({"top_p": 0.25, "eos_token_id": 9})", other);
  model = Open(spec);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_FLOAT_EQ((*model)->limits.defaults.top_p, 0.25f);
  EXPECT_THAT((*model)->limits.end_ids, ElementsAre(9));
  spec.tokenizer = root_;
  EXPECT_THAT(Error(absl::StatusCode::kNotFound, spec), HasSubstr("tokenizer.json"));
}

TEST_F(OpenModelTest, WhatIsNoModel) {
  std::filesystem::remove(dir_ + "/model.safetensors");
  EXPECT_THAT(Error(absl::StatusCode::kNotFound), HasSubstr(dir_ + " holds no weights"));
  Write(
      "model.safetensors.index.json",
      R"({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})");
  Write("model-00001-of-00002.safetensors", "");
  EXPECT_THAT(Error(absl::StatusCode::kNotFound),
              HasSubstr("model-00002-of-00002.safetensors is missing: 1 of the 2 files"));
  Write("model.safetensors.index.json", R"({"weight_map": {"a": "../x.safetensors"}})");
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument), HasSubstr("'../x.safetensors'"));
  Write("model.safetensors.index.json", "{}");
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument), HasSubstr("weight_map"));

  json config = Config();
  config["architectures"] = {"MambaForCausalLM"};
  Write("config.json", config.dump());
  EXPECT_THAT(Error(absl::StatusCode::kUnimplemented), HasSubstr("'MambaForCausalLM'"));
  std::filesystem::remove(dir_ + "/config.json");
  EXPECT_THAT(Error(absl::StatusCode::kNotFound), HasSubstr(dir_ + "/config.json is missing"));
  ModelSpec none;
  none.path = root_ + "/none";
  EXPECT_THAT(Error(absl::StatusCode::kNotFound, none), HasSubstr("none"));
  ModelSpec far;
  far.context_length = 257;
  Write("config.json", Config().dump());
  std::filesystem::remove(dir_ + "/model.safetensors.index.json");
  Write("model.safetensors", "");
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument, far), HasSubstr("1 to 256 positions"));
  ModelSpec many;
  many.tensor_parallel = 65;
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument, many), HasSubstr("1 to 64"));
}

TEST_F(OpenModelTest, ATokenizerOfAnotherModel) {
  json tokenizer = Tokenizer();
  tokenizer["added_tokens"][1]["id"] = 264;
  Write("tokenizer.json", tokenizer.dump());
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument), HasSubstr("265 tokens, but the model has 264"));
}

TEST_F(OpenModelTest, NamesOfFiles) {
  const std::string written = TestModel().Write();
  for (const auto& [file, name] :
       {std::pair("phi-4.5.Q4_K.gguf", "phi-4.5.Q4_K"), std::pair("phi-4-00001-of-00001.gguf", "phi-4"),
        std::pair("phi-4-0001-of-00003.gguf", "phi-4-0001-of-00003")}) {
    ModelSpec spec;
    spec.path = root_ + "/" + file;
    std::filesystem::copy_file(written, spec.path);
    const auto model = OpenModel(spec);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ((*model)->spec.name, name);
  }
  std::filesystem::remove(written);
}

TEST_F(OpenModelTest, TheSpecIsCompleteBeforeTheTextIsRead) {
  ModelSpec spec;
  spec.path = TestModel().Write();
  absl::StatusOr<ModelOpening> opening = ModelOpening::Begin(spec);
  ASSERT_TRUE(opening.ok()) << opening.status();
  const ModelSpec begun = opening->spec();
  EXPECT_EQ(begun.tensor_parallel, 1);
  EXPECT_EQ(begun.groups, 1);
  EXPECT_GT(begun.shards, 0);
  EXPECT_GT(begun.context_length, 0);
  const auto model = std::move(*opening).Finish();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_NE((*model)->tokenizer, nullptr);
  EXPECT_EQ((*model)->spec.name, begun.name);
  EXPECT_EQ((*model)->spec.context_length, begun.context_length);
  std::filesystem::remove(spec.path);
}

}  // namespace
}  // namespace phalanx::coordinator
