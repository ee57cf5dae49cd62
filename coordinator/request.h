// What the pure cores know of a request and of its results: the wire's messages as plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace phalanx::coordinator {

// As asked; an absent field takes a default at admission.
struct SamplingFields {
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<uint64_t> seed;
  std::optional<int32_t> max_tokens;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
};

enum class PromptKind { kNone, kChat, kText, kTokens };

struct Message {
  std::string role;
  std::string content;
};

struct RequestFields {
  std::string model;
  std::string request_id;
  PromptKind prompt = PromptKind::kNone;
  std::vector<Message> chat;
  std::string text;
  std::vector<int32_t> tokens;
  SamplingFields sampling;
  std::optional<int32_t> logprobs;
  std::optional<int32_t> prompt_logprobs;
};

// Everything a token depends on besides the prompt; all defaults are resolved.
struct Sampling {
  float temperature = 1;
  int32_t top_k = 0;
  float top_p = 1;
  uint64_t seed = 0;
  int32_t max_tokens = 0;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;  // as asked
  std::vector<int32_t> end_ids;  // what stops: the model's own (unless ignored) and the asked ones, each once
  bool ignore_eos = false;
  int32_t logprobs = -1;         // -1: none
  int32_t prompt_logprobs = -1;  // -1: none
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

struct PositionLogprobs {
  TokenLogprob token;
  std::vector<TokenLogprob> top;  // best first
};

enum class FinishReason { kNone, kStop, kLength };

// What a step of the group said about one request.
struct SequenceOutput {
  uint64_t request = 0;
  uint32_t attempt = 0;
  int32_t offset = 0;  // generated tokens before these
  std::vector<int32_t> token_ids;
  std::vector<PositionLogprobs> logprobs;  // one for each token id, when asked for
  int32_t prompt_first_position = 0;       // of prompt_logprobs[0]
  std::vector<PositionLogprobs> prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
  std::optional<int32_t> stop_token_id;
};

}  // namespace phalanx::coordinator
