#include <limits>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "base/byte_alphabet.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "coordinator/text/bpe_tokenizer.h"
#include "coordinator/text/tokenizer.h"

namespace phalanx {
namespace {

// tokenizer.ggml.token_type
constexpr int64_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4;

absl::Status ReadMerges(const GgufFile& file, const absl::flat_hash_map<std::string_view, int32_t>& id_of,
                        BytePairEncoder* encoder) {
  PHX_ASSIGN_OR_RETURN(const std::vector<std::string_view> merges, file.GetStrings("tokenizer.ggml.merges"));
  if (merges.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": too many merges: ", merges.size()));
  }
  std::string both;
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
    both.assign(left).append(right);
    int32_t ids[3];
    const std::string_view parts[3] = {left, right, both};
    for (int p = 0; p < 3; ++p) {
      const auto it = id_of.find(parts[p]);
      if (it == id_of.end())
        return fail(absl::StrCat(Quote(parts[p]), " is no normal token of the vocabulary"));
      ids[p] = it->second;
    }
    if (!encoder->AddMerge(ids[0], ids[1], ids[2])) return fail("appears twice");
  }
  return absl::OkStatus();
}

absl::Status ReadVocabulary(const GgufFile& file, const TokenBytes& table, BpeTokenizer::Parts* parts) {
  PHX_ASSIGN_OR_RETURN(const std::vector<std::string_view> tokens, file.GetStrings("tokenizer.ggml.tokens"));
  PHX_ASSIGN_OR_RETURN(const std::vector<int64_t> types, file.GetInts("tokenizer.ggml.token_type"));
  absl::flat_hash_map<std::string_view, int32_t> id_of;
  id_of.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    if (types[i] == kNormal) {
      if (const auto [it, fresh] = id_of.emplace(tokens[i], id); !fresh) {
        return absl::InvalidArgumentError(absl::StrCat(file.path(),
                                                       ": tokenizer.ggml.tokens: ", Quote(tokens[i]),
                                                       " is both token ", it->second, " and token ", i));
      }
      if (BytesOfPiece(tokens[i])) parts->encoder.AddWord(table.bytes[i], id);
    } else if (types[i] == kControl || types[i] == kUnknown || types[i] == kUserDefined) {
      parts->added.Add(tokens[i], {.id = id,
                                   .is_control = types[i] != kUserDefined || LooksLikeMark(tokens[i]),
                                   .single_word = false,
                                   .lstrip = false,
                                   .rstrip = false});
    }
  }
  return ReadMerges(file, id_of, &parts->encoder);
}

absl::StatusOr<BpeTokenizer::Ends> ReadEnds(const GgufFile& file, size_t vocab_size) {
  const auto read = [&](const char* key, std::optional<int32_t>* id) -> absl::Status {
    if (file.FindValue(key) == nullptr) return absl::OkStatus();
    PHX_ASSIGN_OR_RETURN(const int64_t value, file.GetInt(key));
    if (value < 0 || value >= static_cast<int64_t>(vocab_size)) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", key, " is ", value,
                                                     ", must be a token of the vocabulary: 0 to ",
                                                     vocab_size - 1));
    }
    *id = static_cast<int32_t>(value);
    return absl::OkStatus();
  };
  BpeTokenizer::Ends ends;
  std::optional<int32_t> eot, eom;
  PHX_RETURN_IF_ERROR(read("tokenizer.ggml.bos_token_id", &ends.bos_id));
  PHX_RETURN_IF_ERROR(read("tokenizer.ggml.eos_token_id", &ends.eos_id));
  PHX_RETURN_IF_ERROR(read("tokenizer.ggml.eot_token_id", &eot));
  PHX_RETURN_IF_ERROR(read("tokenizer.ggml.eom_token_id", &eom));
  for (const std::optional<int32_t>& id : {ends.eos_id, eot, eom}) {
    if (id) ends.stop_ids.push_back(*id);
  }
  if (file.FindValue("tokenizer.ggml.add_bos_token") != nullptr) {
    PHX_ASSIGN_OR_RETURN(ends.add_bos, file.GetBool("tokenizer.ggml.add_bos_token"));
    if (ends.add_bos && !ends.bos_id) {
      return absl::InvalidArgumentError(absl::StrCat(
          file.path(), ": tokenizer.ggml.add_bos_token is true but tokenizer.ggml.bos_token_id is missing"));
    }
  }
  return ends;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerFromGguf(const GgufFile& file) {
  PHX_ASSIGN_OR_RETURN(TokenBytes table, TokenBytesFromGguf(file));
  BpeTokenizer::Parts parts;
  PHX_RETURN_IF_ERROR(ReadVocabulary(file, table, &parts));
  PHX_ASSIGN_OR_RETURN(BpeTokenizer::Ends ends, ReadEnds(file, table.bytes.size()));
  PHX_ASSIGN_OR_RETURN(const std::string_view pre, file.GetString("tokenizer.ggml.pre"));
  absl::StatusOr<std::unique_ptr<Pretokenizer>> pretokenizer = Pretokenizer::Create(pre);
  if (!pretokenizer.ok()) {
    return absl::Status(pretokenizer.status().code(),
                        absl::StrCat(file.path(), ": tokenizer.ggml.pre: ", pretokenizer.status().message()));
  }
  parts.pretokenizer = *std::move(pretokenizer);
  // What the models' tokenizer.json says and GGUF has no key for.
  parts.nfc = pre == "qwen2" || pre == "deepseek-r1-qwen";
  parts.encoder.SetIgnoreMerges(pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3");
  parts.encoder.Finish();
  return std::make_unique<BpeTokenizer>(std::move(table), std::move(parts), std::move(ends));
}

}  // namespace phalanx
