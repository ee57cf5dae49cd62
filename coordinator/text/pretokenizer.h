// Cuts text into the words inside which byte-pair encoding merges.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

namespace phalanx {

// Thread safety: immutable; Split may run on many threads.
class Pretokenizer {
 public:
  using Word = absl::FunctionRef<void(std::string_view)>;

  // `name` as in tokenizer.ggml.pre. Unimplemented naming it and those supported.
  static absl::StatusOr<std::unique_ptr<Pretokenizer>> Create(std::string_view name);
  // From pre_tokenizer of a tokenizer.json: Split, Digits and ByteLevel, the last of which must be there and
  // be the last. Unimplemented naming any other stage or option; InvalidArgument naming a key that is wrong.
  static absl::StatusOr<std::unique_ptr<Pretokenizer>> FromJson(const nlohmann::json& spec);
  ~Pretokenizer();

  // Calls `word` with each word of `text`, in order; none is empty. Together they are the text, except what a
  // stage removes or puts before it. `text` must be valid UTF-8. The known patterns (splitters.h) are linear
  // in the text; of others, InvalidArgument naming one that takes too many steps.
  absl::Status Split(std::string_view text, Word word) const;

 private:
  struct Stage;
  Pretokenizer();
  absl::Status SplitFrom(size_t stage, std::string_view text, Word word) const;
  absl::Status AddStage(const nlohmann::json& spec, const std::string& where, bool last);

  std::vector<Stage> stages_;
};

}  // namespace phalanx
