#include <algorithm>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/byte_alphabet.h"
#include "base/status_macros.h"
#include "base/strings.h"
#include "base/tokenizer_json.h"
#include "coordinator/text/bpe_tokenizer.h"
#include "coordinator/text/nfc.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"

namespace phalanx {
namespace {

using nlohmann::json;
using IdOf = absl::flat_hash_map<std::string_view, int32_t>;

// Null where there is none.
const json& At(const json& object, const char* key) {
  static const json* const kNull = new json();
  if (!object.is_object()) return *kNull;
  const auto it = object.find(key);
  return it == object.end() ? *kNull : *it;
}

// For messages.
std::string TypeOf(const json& stage) {
  const json& type = At(stage, "type");
  return type.is_string() ? Quote(type.get_ref<const std::string&>()) : "without a type";
}

absl::Status Unsupported(const std::string& where, const json& stage, const char* supported) {
  return absl::UnimplementedError(
      absl::StrCat(where, ": stage ", TypeOf(stage), " is not supported; supported: ", supported));
}

absl::Status ReadNormalizer(const json& stage, const std::string& where, bool* nfc) {
  if (stage.is_null()) return absl::OkStatus();
  if (At(stage, "type") == "NFC") {
    *nfc = true;
    return absl::OkStatus();
  }
  if (At(stage, "type") == "Sequence" && At(stage, "normalizers").is_array()) {
    const json& list = At(stage, "normalizers");
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string inner = absl::StrCat(where, ".normalizers[", i, "]");
      if (list[i].is_null()) return Unsupported(inner, list[i], "'NFC'");
      PHX_RETURN_IF_ERROR(ReadNormalizer(list[i], inner, nfc));
    }
    return absl::OkStatus();
  }
  return Unsupported(where, stage, "'NFC', 'Sequence' of such, and null");
}

// The tokens that TemplateProcessing puts before the text. Of a text alone: `pair` is not used.
absl::Status ReadTemplate(const json& stage, const std::string& where, std::vector<int32_t>* before) {
  const json& single = At(stage, "single");
  if (!single.is_array()) return absl::InvalidArgumentError(absl::StrCat(where, ".single must be an array"));
  bool text = false;
  for (size_t i = 0; i < single.size(); ++i) {
    const std::string piece = absl::StrCat(where, ".single[", i, "]");
    if (At(single[i], "Sequence").is_object()) {
      if (text)
        return absl::UnimplementedError(absl::StrCat(piece, ": the text a second time is not supported"));
      text = true;
      continue;
    }
    const json& name = At(At(single[i], "SpecialToken"), "id");
    if (!name.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(piece, " must be a SpecialToken with an id, or a Sequence"));
    }
    const auto& token = name.get_ref<const std::string&>();
    if (text) {
      return absl::UnimplementedError(
          absl::StrCat(piece, ": a token behind the text, ", Quote(token), ", is not supported"));
    }
    const json& ids = At(At(At(stage, "special_tokens"), token.c_str()), "ids");
    if (!ids.is_array() || ids.size() != 1 || !ids[0].is_number_unsigned() ||
        ids[0].get<uint64_t>() >> 31 != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ".special_tokens must give ", Quote(token), " one id in ids"));
    }
    before->push_back(ids[0].get<int32_t>());
  }
  if (!text) return absl::InvalidArgumentError(absl::StrCat(where, ".single has no Sequence"));
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const json& stage, const std::string& where, std::vector<int32_t>* before) {
  // ByteLevel only moves offsets.
  if (stage.is_null() || At(stage, "type") == "ByteLevel") return absl::OkStatus();
  if (At(stage, "type") == "TemplateProcessing") return ReadTemplate(stage, where, before);
  if (At(stage, "type") == "Sequence" && At(stage, "processors").is_array()) {
    const json& list = At(stage, "processors");
    for (size_t i = 0; i < list.size(); ++i) {
      PHX_RETURN_IF_ERROR(ReadPostProcessor(list[i], absl::StrCat(where, ".processors[", i, "]"), before));
    }
    return absl::OkStatus();
  }
  return Unsupported(where, stage, "'TemplateProcessing', 'ByteLevel', 'Sequence' of such, and null");
}

// Absent or null: `value` stays.
absl::Status ReadBool(const json& object, const char* key, const std::string& where, bool* value) {
  const json& found = At(object, key);
  if (found.is_null()) return absl::OkStatus();
  if (!found.is_boolean()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ".", key, " must be true or false"));
  }
  *value = found.get<bool>();
  return absl::OkStatus();
}

// Options of the model: everything but vocab and merges.
absl::Status ReadOptions(const json& model, const IdOf& id_of, BytePairEncoder* encoder) {
  static constexpr const char* kKeys[] = {
      "type",     "dropout",       "unk_token",    "continuing_subword_prefix", "end_of_word_suffix",
      "fuse_unk", "byte_fallback", "ignore_merges"};
  for (const auto& [key, value] : model.items()) {
    if (std::find(std::begin(kKeys), std::end(kKeys), key) == std::end(kKeys)) {
      return absl::UnimplementedError(absl::StrCat("model.", key, " is not supported"));
    }
  }
  const json& dropout = At(model, "dropout");
  if (!dropout.is_null() && !(dropout.is_number() && dropout.get<double>() == 0)) {
    return absl::UnimplementedError("model.dropout is not supported: must be null or 0");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!At(model, key).is_null() && At(model, key) != "") {
      return absl::UnimplementedError(
          absl::StrCat("model.", key, " is not supported: must be null or empty"));
    }
  }
  bool fuse_unk = false, byte_fallback = false, ignore_merges = false;
  PHX_RETURN_IF_ERROR(ReadBool(model, "fuse_unk", "model", &fuse_unk));
  PHX_RETURN_IF_ERROR(ReadBool(model, "byte_fallback", "model", &byte_fallback));
  PHX_RETURN_IF_ERROR(ReadBool(model, "ignore_merges", "model", &ignore_merges));
  encoder->SetIgnoreMerges(ignore_merges);

  bool all_stand = true;  // each byte's character is a token or has byte tokens
  for (size_t byte = 0; byte < 256; ++byte) {
    const std::string& character = ByteAlphabet()[byte];
    if (id_of.contains(std::string_view(character))) continue;
    std::vector<int32_t> tokens;
    for (const char c : character) {
      const auto it =
          id_of.find(std::string_view(absl::StrFormat("<0x%02X>", static_cast<unsigned char>(c))));
      if (byte_fallback && it != id_of.end()) tokens.push_back(it->second);
    }
    if (tokens.size() == character.size()) {
      encoder->SetFallback(static_cast<unsigned char>(byte), std::move(tokens));
    } else {
      all_stand = false;
    }
  }
  const json& unknown = At(model, "unk_token");
  if (unknown.is_null()) return absl::OkStatus();
  if (!unknown.is_string()) return absl::InvalidArgumentError("model.unk_token must be a string or null");
  if (const auto it = id_of.find(std::string_view(unknown.get_ref<const std::string&>()));
      it != id_of.end()) {
    encoder->SetUnknown(it->second, fuse_unk);
  } else if (!all_stand) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model.unk_token ", Quote(unknown.get_ref<const std::string&>()), " is not in model.vocab"));
  }
  return absl::OkStatus();
}

absl::Status ReadModel(const TokenizerJson& file, BytePairEncoder* encoder) {
  IdOf id_of;
  id_of.reserve(file.vocab.size());
  for (const auto& [piece, id] : file.vocab) {
    id_of.emplace(piece, id);
    if (auto bytes = BytesOfPiece(piece)) encoder->AddWord(*std::move(bytes), id);
  }
  std::string both;
  for (size_t i = 0; i < file.merges.size(); ++i) {
    const auto& [left, right] = file.merges[i];
    both.assign(left).append(right);
    int32_t ids[3];
    const std::string_view parts[3] = {left, right, both};
    for (int p = 0; p < 3; ++p) {
      const auto it = id_of.find(parts[p]);
      if (it == id_of.end()) {
        return absl::InvalidArgumentError(absl::StrCat("model.merges: number ", i, ", ", Quote(left), " and ",
                                                       Quote(right), ": ", Quote(parts[p]),
                                                       " is not in model.vocab"));
      }
      ids[p] = it->second;
    }
    encoder->AddOrReplaceMerge(ids[0], ids[1], ids[2]);
  }
  PHX_RETURN_IF_ERROR(ReadOptions(file.rest["model"], id_of, encoder));
  encoder->Finish();
  return absl::OkStatus();
}

void ReadAdded(const TokenizerJson& file, BpeTokenizer::Parts* parts) {
  // Control tokens first: of two with one name (when normalised), the first counts.
  for (const bool special : {true, false}) {
    for (const TokenizerJson::AddedToken& token : file.added) {
      if (token.special != special) continue;
      const AddedTokens::Token entry = {.id = token.id,
                                        .is_control = special || LooksLikeMark(token.content),
                                        .single_word = token.single_word,
                                        .lstrip = token.lstrip,
                                        .rstrip = token.rstrip};
      std::string storage;
      const std::string_view name =
          token.normalized && parts->nfc ? NormalizeNfc(token.content, &storage) : token.content;
      (token.normalized ? parts->normalized_added : parts->added).Add(name, entry);
    }
  }
}

// A token that tokenizer_config.json names: a string or {"content": a string}. Nothing if it is absent or
// null.
absl::StatusOr<std::optional<int32_t>> ReadNamed(const TokenizerJson& file, const char* key) {
  const json& value = At(file.config, key);
  if (value.is_null()) return std::optional<int32_t>();
  const json& content = value.is_object() ? At(value, "content") : value;
  if (!content.is_string()) {
    return absl::InvalidArgumentError(absl::StrCat(file.config_path, ": ", key, " must name a token"));
  }
  const auto& name = content.get_ref<const std::string&>();
  for (const TokenizerJson::AddedToken& token : file.added) {
    if (token.content == name) return std::optional<int32_t>(token.id);
  }
  for (const auto& [piece, id] : file.vocab) {
    if (piece == name) return std::optional<int32_t>(id);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(file.config_path, ": ", key, " ", Quote(name), " is no token of ", file.path));
}

absl::StatusOr<BpeTokenizer::Ends> ReadEnds(const TokenizerJson& file, const std::vector<int32_t>& before) {
  BpeTokenizer::Ends ends;
  PHX_ASSIGN_OR_RETURN(ends.bos_id, ReadNamed(file, "bos_token"));
  PHX_ASSIGN_OR_RETURN(ends.eos_id, ReadNamed(file, "eos_token"));
  if (ends.eos_id) ends.stop_ids.push_back(*ends.eos_id);
  bool add_eos = false;
  PHX_RETURN_IF_ERROR(ReadBool(file.config, "add_eos_token", file.config_path, &add_eos));
  if (add_eos) {
    return absl::UnimplementedError(
        absl::StrCat(file.config_path, ": add_eos_token is true, which is not supported"));
  }
  if (before.size() > 1) {
    return absl::UnimplementedError(absl::StrCat(file.path, ": post_processor puts ", before.size(),
                                                 " tokens before the text; supported is 1"));
  }
  if (!before.empty() && before[0] >= file.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(file.path, ": post_processor adds token ", before[0],
                                                   ", must be below ", file.vocab_size));
  }
  ends.add_bos = !before.empty();
  const bool by_template = At(file.config, "add_bos_token").is_null();
  PHX_RETURN_IF_ERROR(ReadBool(file.config, "add_bos_token", file.config_path, &ends.add_bos));
  if (!before.empty() && (by_template || !ends.bos_id)) ends.bos_id = before[0];
  if (ends.add_bos && !ends.bos_id) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.config_path, ": add_bos_token is true but there is no bos_token"));
  }
  return ends;
}

absl::Status In(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerFromDirectory(const std::string& directory) {
  PHX_ASSIGN_OR_RETURN(const TokenizerJson file, ReadTokenizerJson(directory));
  // Two keys are about batches of texts and have no meaning here: truncation, padding.
  BpeTokenizer::Parts parts;
  if (auto status = ReadNormalizer(At(file.rest, "normalizer"), "normalizer", &parts.nfc); !status.ok()) {
    return In(file.path, status);
  }
  auto pretokenizer = Pretokenizer::FromJson(At(file.rest, "pre_tokenizer"));
  if (!pretokenizer.ok()) return In(file.path, pretokenizer.status());
  parts.pretokenizer = *std::move(pretokenizer);
  std::vector<int32_t> before;
  if (auto status = ReadPostProcessor(At(file.rest, "post_processor"), "post_processor", &before);
      !status.ok()) {
    return In(file.path, status);
  }
  PHX_ASSIGN_OR_RETURN(BpeTokenizer::Ends ends, ReadEnds(file, before));
  if (auto status = ReadModel(file, &parts.encoder); !status.ok()) return In(file.path, status);
  ReadAdded(file, &parts);
  return std::make_unique<BpeTokenizer>(TokenBytesOf(file), std::move(parts), std::move(ends));
}

}  // namespace phalanx
