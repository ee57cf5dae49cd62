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
  // The model's own generation defaults.
  float temperature = 1;
  int32_t top_k = 0;
  float top_p = 1;
};

// Before the prompt is tokenised. InvalidArgument; FailedPrecondition where the model lacks what the request
// needs.
absl::Status CheckRequest(const RequestFields& fields, const ModelLimits& model);

// Once the prompt's length is known. `max_tokens_default` caps an absent max_tokens; `drawn_seed` takes the
// place of an absent seed. `fields` passed CheckRequest.
absl::StatusOr<Sampling> ResolveSampling(const RequestFields& fields, int64_t num_prompt_tokens,
                                         const ModelLimits& model, int32_t max_tokens_default,
                                         uint64_t drawn_seed);

// Bounds the requests in flight. Thread safety: safe.
class InFlightLimit {
 public:
  explicit InFlightLimit(int64_t limit) : limit_(limit) {}
  // ResourceExhausted when full. Every success is paired with one Leave.
  absl::Status Enter();
  void Leave() { count_.fetch_sub(1, std::memory_order_relaxed); }
  int64_t count() const { return count_.load(std::memory_order_relaxed); }

 private:
  const int64_t limit_;
  std::atomic<int64_t> count_{0};
};

}  // namespace phalanx::coordinator
