// What can be known of a model from its files' headers, without running it.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/memory_estimate.h"
#include "base/model_config.h"

namespace phalanx {

struct TensorTypeFacts {
  int64_t tensors = 0;
  int64_t bytes = 0;
};

struct TokenFacts {
  std::string role;  // "bos", "eos", ...
  int64_t id = 0;
  std::string text;  // empty: not known
};

struct TokenizerFacts {
  std::string kind;  // "gpt2", "BPE"
  std::string pre;   // what cuts text into words; empty: not named
  int64_t vocab_size = 0;
  int64_t merges = 0;
};

struct TemplateFacts {
  std::string source;  // the key or file it is from
  int64_t bytes = 0;
  bool system = false, tools = false, thinking = false;  // mentioned
};

struct ReasoningFacts {
  std::string family, open, close;
  std::string where;  // "tokens 128798 and 128799", "the chat template"
};

struct ModelFacts {
  std::string path;
  std::string format;      // "GGUF", "Hugging Face"
  std::string class_name;  // of a Hugging Face model
  // Why this build cannot serve it; empty: it can.
  std::string not_servable;
  // Numbers that the files do not tell are 0. rope is empty only where nothing is known of it.
  ModelConfig config;
  std::string dtype;  // that the config names; empty for GGUF

  // As stored, by type; empty: there are no weights beside the config.
  std::map<std::string, TensorTypeFacts> tensor_types;
  WeightSizes weights;         // as stored, else as the config says
  int64_t mtp_parameters = 0;  // of layers for further tokens that the files hold; not in `weights`

  std::optional<TokenizerFacts> tokenizer;
  std::vector<TokenFacts> special_tokens;
  std::optional<TemplateFacts> chat_template;
  std::vector<std::pair<std::string, nlohmann::json>> generation;  // defaults, numbers and bools
  std::optional<ReasoningFacts> reasoning;
  std::vector<std::string> notes;  // what is odd or missing, a sentence each
};

// A GGUF file, or a folder with config.json and what else a Hugging Face model has. Errors name the file.
absl::StatusOr<ModelFacts> ReadModelFacts(const std::string& path);

// One each for the two formats.
absl::StatusOr<ModelFacts> ReadGgufFacts(const std::string& path);
absl::StatusOr<ModelFacts> ReadHfFacts(const std::string& directory);

// Counts tensors into a model's facts: each once, named as in the file.
class TensorCounter {
 public:
  explicit TensorCounter(ModelFacts* facts) : facts_(*facts) {}
  // InvalidArgument where the sums overflow.
  absl::Status Add(std::string_view name, std::string_view type, int64_t elements, int64_t bytes);

 private:
  ModelFacts& facts_;
};

TemplateFacts DescribeTemplate(std::string source, std::string_view text);

}  // namespace phalanx
