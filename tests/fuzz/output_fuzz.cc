// What a group says about a request, up to what its client is told: the text does not depend on how the
// tokens are cut into steps. The first bytes choose stop strings and reasoning; then come messages, each
// behind its length.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "coordinator/convert.h"
#include "coordinator/text/utf8.h"
#include "tests/fuzz/inputs.h"
#include "tests/fuzz/messages.h"

namespace {

using namespace phalanx;
using namespace phalanx::coordinator;

// Tokens 0..255 are the bytes.
std::shared_ptr<const TokenBytes> Tokens() {
  static const auto tokens = [] {
    auto made = std::make_shared<TokenBytes>();
    for (int i = 0; i < 256; ++i) made->bytes.push_back(std::string(1, static_cast<char>(i)));
    for (const char* text : {"hello", "STOP", "ST", "OP now", "\xe2\x82", " </thi", "nk>",
                             "<|begin_of_thought|>", "<|end_of_thought|>", "<think>", "</think>", "<end>"}) {
      made->bytes.push_back(text);
    }
    made->is_control.assign(made->bytes.size(), false);
    made->is_control.back() = true;
    return std::shared_ptr<const TokenBytes>(std::move(made));
  }();
  return tokens;
}

struct Said {
  std::string reasoning, text, stop;
  bool finished = false;
};

// False after an error.
bool Take(Generation* generation, SequenceOutput output, Said* said) {
  Told told;
  if (!generation->OnOutput(std::move(output), 1, &told).ok()) return false;
  if (said->finished && told.has_chunk()) std::abort();
  said->reasoning += told.reasoning;
  said->text += told.text;
  if (told.finish != FinishReason::kNone) {
    said->finished = true;
    said->stop = told.matched_stop;
    (void)MakeFinished(0, told, generation->usage(2)).SerializeAsString();
  }
  (void)MakePromptLogprobs(told).SerializeAsString();
  v1::GenerateResponse again;
  if (!again.ParseFromString(MakeChunk(0, &told).SerializeAsString())) std::abort();  // UTF-8 throughout
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const uint8_t options = input.Byte();
  Sampling sampling;
  sampling.max_tokens = 1024;
  sampling.min_tokens = options & 1 ? 2 : 0;
  sampling.logprobs = options & 2 ? 1 : -1;
  sampling.prompt_logprobs = options & 4 ? 1 : -1;
  for (int i = 0; i < 2 && (options & 8); ++i) {
    const std::string_view stop = input.Piece();
    // As all strings that come over the wire.
    if (ValidUtf8Prefix(stop) == stop.size()) sampling.stop.emplace_back(stop);
  }
  TokenLog log(sampling, 0);
  log.BeginAttempt("f");
  Generation::Text text;
  text.tokens = Tokens();
  text.split_reasoning = (options & 16) != 0;
  if (options & 32) text.opened = &ReasoningFamilies()[options & 64 ? 0 : 1];
  // `whole` takes outputs as they come, `parts` their tokens one by one.
  Generation whole(log, 3, text, 0), parts(log, 3, text, 0);
  Said by_whole, by_parts;
  while (!input.empty()) {
    SequenceOutput output;
    if (!With<internal::v1::SequenceOutput>(input.Piece(), [&](const auto& m) { output = ToOutput(m); }))
      return 0;
    const size_t logged = whole.log().ids().size();
    if (!Take(&whole, output, &by_whole)) return 0;
    if (output.attempt < 1 || by_parts.finished) continue;
    for (size_t i = 0; i < output.token_ids.size(); ++i) {
      SequenceOutput one = output;
      const bool last = i + 1 == output.token_ids.size();
      one.offset += static_cast<int32_t>(i);
      one.token_ids = {output.token_ids[i]};
      if (sampling.logprobs >= 0) one.logprobs = {output.logprobs[i]};
      if (!last) one.finish = FinishReason::kNone;
      if (!Take(&parts, one, &by_parts)) std::abort();
    }
    if (output.token_ids.empty() && !Take(&parts, output, &by_parts)) std::abort();
    if (whole.log().ids().size() < logged && !whole.finished()) std::abort();
  }
  if (by_whole.finished != by_parts.finished || by_whole.text != by_parts.text ||
      by_whole.reasoning != by_parts.reasoning || by_whole.stop != by_parts.stop) {
    std::abort();
  }
  return 0;
}
