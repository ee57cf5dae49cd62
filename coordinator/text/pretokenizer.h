// Cuts text into the words inside which byte-pair encoding merges.
#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace phalanx {

// Thread safety: immutable; Split may run on many threads.
class Pretokenizer {
 public:
  // `name` as in tokenizer.ggml.pre. Unimplemented naming it and those supported.
  static absl::StatusOr<std::unique_ptr<Pretokenizer>> Create(std::string_view name);
  virtual ~Pretokenizer() = default;

  // Calls `word` with each word of `text`, in order; together they are the text. `text` must be valid UTF-8.
  // Linear in the text. Letters and digits are those of the Unicode version PCRE2 was built with
  // (10.42: 14.0).
  virtual absl::Status Split(std::string_view text,
                             const std::function<void(std::string_view)>& word) const = 0;
};

}  // namespace phalanx
