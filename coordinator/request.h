// What the pure cores know of a request and of its results: the wire's messages as plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace phalanx::coordinator {

// As asked; an absent field takes a default at admission.
struct SamplingFields {
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::vector<std::pair<int32_t, float>> logit_bias;  // ids rising
  std::optional<uint64_t> seed;
  std::optional<int32_t> n;
  std::optional<int32_t> min_tokens;
  std::optional<int32_t> max_tokens;
  std::optional<int32_t> max_reasoning_tokens;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
};

enum class PromptKind { kNone, kChat, kText, kTokens };

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // a JSON object
};

struct Message {
  std::string role = {};
  std::string content = {};
  std::string reasoning = {};
  std::vector<ToolCall> tool_calls = {};
  std::string tool_call_id = {};
  std::string name = {};
};

// What becomes of the caller's system message where the template has a system prompt of its own.
enum class SystemPrompt { kHonour, kModel, kAppend };

// How a chat is rendered, besides its messages.
struct ChatOptions {
  std::vector<std::string> tools;  // each a JSON object
  SystemPrompt system_prompt = SystemPrompt::kHonour;
  std::optional<bool> add_generation_prompt;  // absent: true, unless continue_final_message
  bool continue_final_message = false;
  std::string template_kwargs;  // a JSON object, or empty
  std::string date;             // "YYYY-MM-DD", or empty
};

struct RequestFields {
  std::string model;
  std::string request_id;
  PromptKind prompt = PromptKind::kNone;
  std::vector<Message> chat;
  ChatOptions chat_options;
  std::string text;
  std::vector<int32_t> tokens;
  SamplingFields sampling;
  std::optional<int32_t> logprobs;
  std::optional<int32_t> prompt_logprobs;
  std::optional<bool> split_reasoning;
  int32_t priority = 0;
  std::string cache_salt;

  // Reasoning is told apart from the answer.
  bool splits_reasoning() const { return split_reasoning.value_or(prompt == PromptKind::kChat); }
};

// What absent fields of a request become.
struct SamplingDefaults {
  float temperature = 1;
  int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
};

// Everything a token depends on besides the prompt; all defaults are resolved.
struct Sampling : SamplingDefaults {
  std::vector<std::pair<int32_t, float>> logit_bias;  // ids rising
  uint64_t seed = 0;
  int32_t n = 1;
  uint32_t choice = 0;  // of n
  int32_t min_tokens = 0;
  int32_t max_tokens = 0;
  std::optional<int32_t> max_reasoning_tokens;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;  // as asked
  std::vector<int32_t> end_ids;  // what stops: the model's own (unless ignored) and the asked ones, each once
  bool ignore_eos = false;
  int32_t logprobs = -1;         // -1: none
  int32_t prompt_logprobs = -1;  // -1: none
  // What changes no token, and stays with the request wherever it goes on.
  int32_t priority = 0;    // lower is earlier
  std::string cache_salt;  // KV is shared within one salt
};

// The tokens of the mark that closes the reasoning of a family (base/reasoning.h).
struct CloseMark {
  std::string family;
  std::vector<int32_t> ids;
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
  int32_t cached_prompt_tokens = 0;
};

}  // namespace phalanx::coordinator
