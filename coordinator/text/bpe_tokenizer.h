// The one Tokenizer, whatever file it comes from.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/tokenizer.h"

namespace phalanx {

class BpeTokenizer : public Tokenizer {
 public:
  // Everything but the vocabulary of the base class.
  struct Parts {
    bool nfc = false;
    std::unique_ptr<Pretokenizer> pretokenizer;
    BytePairEncoder encoder;       // finished
    AddedTokens added;             // looked for in the text as it is
    AddedTokens normalized_added;  // and those looked for in what is left of it, normalised
  };
  struct Ends {
    std::optional<int32_t> bos_id, eos_id;
    std::vector<int32_t> stop_ids;  // in any order
    bool add_bos = false;
  };

  BpeTokenizer(TokenBytes token_bytes, Parts parts, Ends ends);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool parse_special) const override;

 private:
  const Parts parts_;
};

}  // namespace phalanx
