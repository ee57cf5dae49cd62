#include "coordinator/text/bpe_tokenizer.h"

#include <algorithm>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "coordinator/text/nfc.h"
#include "coordinator/text/utf8.h"

namespace phalanx {

BpeTokenizer::BpeTokenizer(TokenBytes token_bytes, Parts parts, Ends ends) : parts_(std::move(parts)) {
  token_bytes_ = std::move(token_bytes);
  bos_id_ = ends.bos_id;
  eos_id_ = ends.eos_id;
  add_bos_ = ends.add_bos;
  stop_ids_ = std::move(ends.stop_ids);
  std::sort(stop_ids_.begin(), stop_ids_.end());
  stop_ids_.erase(std::unique(stop_ids_.begin(), stop_ids_.end()), stop_ids_.end());
}

absl::StatusOr<std::vector<int32_t>> BpeTokenizer::Encode(std::string_view text, bool parse_special) const {
  // NFC may make text longer, at most threefold in UTF-8.
  constexpr size_t kMaxBytes = std::numeric_limits<int32_t>::max() / 4;
  if (text.size() > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("text of ", text.size(), " bytes, must be at most ", kMaxBytes));
  }
  if (const size_t valid = ValidUtf8Prefix(text); valid < text.size()) {
    return absl::InvalidArgumentError(absl::StrCat("text is not valid UTF-8 at byte offset ", valid));
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 1);
  absl::Status status;
  BytePairEncoder::Scratch scratch(text.size());
  std::string normalized;
  const auto add = [&](int32_t id) { ids.push_back(id); };
  const auto encode_word = [&](std::string_view word) { parts_.encoder.Encode(word, scratch, &ids); };
  const auto cut = [&](std::string_view part) {
    if (status.ok()) status = parts_.pretokenizer->Split(part, encode_word);
  };
  const auto normalize = [&](std::string_view part) {
    if (parts_.nfc) part = NormalizeNfc(part, &normalized);
    parts_.normalized_added.Split(part, parse_special, cut, add);
  };
  parts_.added.Split(text, parse_special, normalize, add);
  if (!status.ok()) return status;
  return ids;
}

}  // namespace phalanx
