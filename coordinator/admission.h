// Admission: is a request well formed and within the model's limits, and what are its effective parameters.
// Pure. Every error names the field, its value and what would be right.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/request.h"

namespace phalanx::coordinator {

inline constexpr int kMaxStopStrings = 16;
inline constexpr int kMaxStopBytes = 1024;
inline constexpr int kMaxStopTokenIds = 256;
inline constexpr int kMaxLogprobs = 20;
inline constexpr int kMaxRequestIdBytes = 128;
inline constexpr int kMaxCacheSaltBytes = 256;
inline constexpr int kMaxLogitBias = 1024;
inline constexpr int kMaxChoices = 128;
inline constexpr float kMaxRepetitionPenalty = 1000;
inline constexpr int kMaxTools = 1024;
inline constexpr int kMaxToolCalls = 16384;  // of all messages

// What admission needs to know of a model.
struct ModelLimits {
  std::string name;
  int32_t vocab_size = 0;
  int32_t context_length = 0;  // longest prompt + generation
  bool has_tokenizer = false;
  bool has_chat_template = false;
  std::string missing_text;         // why there is no tokenizer
  std::string missing_template;     // why there is no chat template
  int64_t longest_token_bytes = 0;  // of the tokenizer's tokens; 0: unknown
  std::vector<int32_t> end_ids;     // end of sequence, end of turn
  std::string chat_template;        // its source
  SamplingDefaults defaults;        // the model's own
};

// How large the parts of a request are.
struct RequestSizes {
  PromptKind prompt = PromptKind::kNone;
  size_t request_id_bytes = 0;
  size_t cache_salt_bytes = 0;
  size_t stop_strings = 0;
  size_t stop_token_ids = 0;
  size_t logit_bias = 0;
  size_t messages = 0;
  size_t tool_calls = 0;  // of all messages
  size_t tools = 0;
  size_t prompt_bytes = 0;  // of a text or a chat
  size_t prompt_tokens = 0;
};

// Before a request is even copied: what is too large is refused however large it is. InvalidArgument.
absl::Status CheckSizes(const RequestSizes& sizes, const ModelLimits& model);

// Before the prompt is tokenised; `fields` passed CheckSizes. InvalidArgument; FailedPrecondition where the
// model lacks what the request needs.
absl::Status CheckRequest(const RequestFields& fields, const ModelLimits& model);

// Once the prompt's length is known. `max_tokens_default` caps an absent max_tokens; `drawn_seed` takes the
// place of an absent seed. `fields` passed CheckRequest.
absl::StatusOr<Sampling> ResolveSampling(const RequestFields& fields, int64_t num_prompt_tokens,
                                         const ModelLimits& model, int32_t max_tokens_default,
                                         uint64_t drawn_seed);

// Whether a prompt of that kind can be made for the model: FailedPrecondition, or InvalidArgument for a chat
// that is none.
absl::Status CheckText(const ModelLimits& model);
absl::Status CheckChat(const std::vector<Message>& chat, const ModelLimits& model);

// Bounds the requests in flight: choices count one each. Thread safety: safe.
class InFlightLimit {
 public:
  explicit InFlightLimit(int64_t limit) : limit_(limit) {}
  // ResourceExhausted when not so many more may come in. Every success is paired with Leaves of as many.
  absl::Status Enter(int64_t count = 1);
  void Leave(int64_t count = 1) { count_.fetch_sub(count, std::memory_order_relaxed); }
  int64_t count() const { return count_.load(std::memory_order_relaxed); }

 private:
  const int64_t limit_;
  std::atomic<int64_t> count_{0};
};

}  // namespace phalanx::coordinator
