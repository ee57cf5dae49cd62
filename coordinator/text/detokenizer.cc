#include "coordinator/text/detokenizer.h"

#include "absl/strings/str_cat.h"
#include "coordinator/text/utf8.h"

namespace phalanx {

void Utf8Stream::Feed(std::string_view bytes, std::string* out) {
  held_.append(bytes);
  std::string_view rest = held_;
  while (!rest.empty()) {
    const Utf8Step step = NextUtf8(rest);
    if (step.kind == Utf8Step::Kind::kIncomplete) break;
    out->append(step.kind == Utf8Step::Kind::kCharacter ? rest.substr(0, step.bytes) : kReplacementCharacter);
    rest.remove_prefix(step.bytes);
  }
  held_.erase(0, held_.size() - rest.size());
}

void Utf8Stream::Finish(std::string* out) {
  if (!held_.empty()) out->append(kReplacementCharacter);
  held_.clear();
}

absl::Status Detokenizer::Feed(int32_t id, std::string* out) {
  if (id < 0 || static_cast<size_t>(id) >= table_->bytes.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("token id ", id, " is outside the vocabulary of ", table_->bytes.size()));
  }
  if (!table_->is_control[id] || keep_control_) stream_.Feed(table_->bytes[id], out);
  return absl::OkStatus();
}

}  // namespace phalanx
