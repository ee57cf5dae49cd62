#include "coordinator/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/utf8.h"

namespace phalanx {
namespace {

// tokenizer.ggml.token_type
constexpr int64_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4;

// For messages: a file may hold anything.
std::string Quote(std::string_view s) {
  constexpr size_t kShown = 80;
  return absl::StrCat("'", absl::CEscape(ToAbsl(s.substr(0, kShown))), s.size() > kShown ? "..." : "", "'");
}

// The tokens that are looked for in text before it is cut into words.
class NamedTokens {
 public:
  void Add(std::string name, int32_t id, bool is_control) {
    if (name.empty()) return;
    by_first_byte_[static_cast<unsigned char>(name[0])].push_back({std::move(name), id, is_control});
  }
  // Call once after the last Add.
  void Sort() {
    for (std::vector<Named>& list : by_first_byte_) {
      std::stable_sort(list.begin(), list.end(),
                       [](const Named& a, const Named& b) { return a.name.size() > b.name.size(); });
    }
  }

  struct Found {
    size_t begin = std::string_view::npos;
    size_t end = std::string_view::npos;
    int32_t id = -1;
  };
  // The leftmost name at or after `from`, of those at one place the longest; begin is npos if there is none.
  Found Find(std::string_view text, size_t from, bool with_control) const {
    for (size_t at = from; at < text.size(); ++at) {
      for (const Named& named : by_first_byte_[static_cast<unsigned char>(text[at])]) {
        if ((with_control || !named.is_control) && text.substr(at, named.name.size()) == named.name) {
          return {at, at + named.name.size(), named.id};
        }
      }
    }
    return {};
  }

 private:
  struct Named {
    std::string name;
    int32_t id;
    bool is_control;
  };
  std::array<std::vector<Named>, 256> by_first_byte_;
};

class BpeTokenizer : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const GgufFile& file);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool parse_special) const override {
    if (text.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
      return absl::InvalidArgumentError(absl::StrCat("text of ", text.size(), " bytes, must be below 2^31"));
    }
    if (const size_t valid = ValidUtf8Prefix(text); valid < text.size()) {
      return absl::InvalidArgumentError(absl::StrCat("text is not valid UTF-8 at byte offset ", valid));
    }
    std::vector<int32_t> ids;
    BytePairEncoder::Scratch scratch;
    const auto encode_word = [&](std::string_view word) { encoder_.Encode(word, scratch, &ids); };
    for (size_t at = 0; at < text.size();) {
      const NamedTokens::Found found = named_.Find(text, at, parse_special);
      PHX_RETURN_IF_ERROR(pretokenizer_->Split(text.substr(at, found.begin - at), encode_word));
      if (found.id < 0) break;
      ids.push_back(found.id);
      at = found.end;
    }
    return ids;
  }

 private:
  absl::Status ReadVocabulary(const GgufFile& file);
  absl::Status ReadEnds(const GgufFile& file);

  std::unique_ptr<Pretokenizer> pretokenizer_;
  BytePairEncoder encoder_;
  NamedTokens named_;
};

absl::Status BpeTokenizer::ReadVocabulary(const GgufFile& file) {
  PHX_ASSIGN_OR_RETURN(token_bytes_, TokenBytesFromGguf(file));
  PHX_ASSIGN_OR_RETURN(const std::vector<std::string_view> tokens, file.GetStrings("tokenizer.ggml.tokens"));
  PHX_ASSIGN_OR_RETURN(const std::vector<int64_t> types, file.GetInts("tokenizer.ggml.token_type"));
  PHX_ASSIGN_OR_RETURN(const std::vector<std::string_view> merges, file.GetStrings("tokenizer.ggml.merges"));
  if (merges.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": too many merges: ", merges.size()));
  }

  std::unordered_map<std::string_view, int32_t> id_of;
  id_of.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    if (types[i] == kNormal) {
      if (!id_of.emplace(tokens[i], id).second) {
        return absl::InvalidArgumentError(
            absl::StrCat(file.path(), ": tokenizer.ggml.tokens: ", Quote(tokens[i]), " is both token ",
                         id_of[tokens[i]], " and token ", i));
      }
      if (token_bytes_.bytes[i].size() == 1) {
        encoder_.SetByte(static_cast<unsigned char>(token_bytes_.bytes[i][0]), id);
      }
    } else if (types[i] == kControl || types[i] == kUnknown || types[i] == kUserDefined) {
      named_.Add(std::string(tokens[i]), id, types[i] != kUserDefined);
    }
  }
  named_.Sort();

  for (size_t i = 0; i < merges.size(); ++i) {
    const auto fail = [&](const std::string& what) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tokenizer.ggml.merges: number ", i, ", ",
                                                     Quote(merges[i]), ": ", what));
    };
    const size_t space = merges[i].find(' ');
    if (space == 0 || space == std::string_view::npos || space + 1 == merges[i].size()) {
      return fail("must be two tokens with a space between");
    }
    const std::string_view left = merges[i].substr(0, space), right = merges[i].substr(space + 1);
    int32_t ids[3];
    const std::string both = std::string(left) + std::string(right);
    const std::string_view parts[3] = {left, right, both};
    for (int p = 0; p < 3; ++p) {
      const auto it = id_of.find(parts[p]);
      if (it == id_of.end())
        return fail(absl::StrCat(Quote(parts[p]), " is no normal token of the vocabulary"));
      ids[p] = it->second;
    }
    if (!encoder_.AddMerge(ids[0], ids[1], ids[2])) return fail("appears twice");
  }
  return absl::OkStatus();
}

absl::Status BpeTokenizer::ReadEnds(const GgufFile& file) {
  const auto read = [&](const char* key, std::optional<int32_t>* id) -> absl::Status {
    if (file.FindValue(key) == nullptr) return absl::OkStatus();
    PHX_ASSIGN_OR_RETURN(const int64_t value, file.GetInt(key));
    if (value < 0 || value >= vocab_size()) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", key, " is ", value,
                                                     ", must be a token of the vocabulary: 0 to ",
                                                     vocab_size() - 1));
    }
    *id = static_cast<int32_t>(value);
    return absl::OkStatus();
  };
  std::optional<int32_t> eot, eom;
  PHX_RETURN_IF_ERROR(read("tokenizer.ggml.bos_token_id", &bos_id_));
  PHX_RETURN_IF_ERROR(read("tokenizer.ggml.eos_token_id", &eos_id_));
  PHX_RETURN_IF_ERROR(read("tokenizer.ggml.eot_token_id", &eot));
  PHX_RETURN_IF_ERROR(read("tokenizer.ggml.eom_token_id", &eom));
  for (const std::optional<int32_t>& id : {eos_id_, eot, eom}) {
    if (id) stop_ids_.push_back(*id);
  }
  std::sort(stop_ids_.begin(), stop_ids_.end());
  stop_ids_.erase(std::unique(stop_ids_.begin(), stop_ids_.end()), stop_ids_.end());

  if (file.FindValue("tokenizer.ggml.add_bos_token") != nullptr) {
    PHX_ASSIGN_OR_RETURN(add_bos_, file.GetBool("tokenizer.ggml.add_bos_token"));
    if (add_bos_ && !bos_id_) {
      return absl::InvalidArgumentError(absl::StrCat(
          file.path(), ": tokenizer.ggml.add_bos_token is true but tokenizer.ggml.bos_token_id is missing"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> BpeTokenizer::FromGguf(const GgufFile& file) {
  auto tokenizer = std::make_unique<BpeTokenizer>();
  PHX_RETURN_IF_ERROR(tokenizer->ReadVocabulary(file));
  PHX_RETURN_IF_ERROR(tokenizer->ReadEnds(file));
  PHX_ASSIGN_OR_RETURN(const std::string_view pre, file.GetString("tokenizer.ggml.pre"));
  absl::StatusOr<std::unique_ptr<Pretokenizer>> pretokenizer = Pretokenizer::Create(pre);
  if (!pretokenizer.ok()) {
    return absl::Status(pretokenizer.status().code(),
                        absl::StrCat(file.path(), ": tokenizer.ggml.pre: ", pretokenizer.status().message()));
  }
  tokenizer->pretokenizer_ = *std::move(pretokenizer);
  return tokenizer;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerFromGguf(const GgufFile& file) {
  return BpeTokenizer::FromGguf(file);
}

}  // namespace phalanx
