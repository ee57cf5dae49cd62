#include "base/tokenizer_json.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string_view>
#include <system_error>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/byte_alphabet.h"
#include "base/json_file.h"
#include "base/status_macros.h"
#include "base/strings.h"

namespace phalanx {
namespace {

using nlohmann::json;

constexpr uintmax_t kMaxFileBytes = 64u << 20;
constexpr size_t kMaxDepth = 64;
// Twenty times the largest published vocabulary: an id sizes tables.
constexpr uint64_t kMaxIds = 1u << 22;

// Builds the document, except model.vocab and model.merges, which would be half a million nodes: they go
// straight to their vectors.
class Reader : public nlohmann::json_sax<json> {
 public:
  // A vocabulary takes more for its text than other documents do: twice what those may.
  Reader(TokenizerJson* out, bool take_model, size_t text_bytes)
      : out_(out), take_model_(take_model), memory_(2 * JsonMemory::LimitFor(text_bytes)) {}

  json Take() { return std::move(root_); }
  const std::string& error() const { return error_; }
  bool seen_merges() const { return seen_merges_; }

  bool null() override { return Value(nullptr); }
  bool boolean(bool value) override { return Value(value); }
  bool number_integer(number_integer_t value) override { return Value(value); }
  bool number_float(number_float_t value, const string_t&) override { return Value(value); }
  bool binary(binary_t&) override { return Fail("binary values are not JSON"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (where_ != Where::kVocab) return Value(value);
    if (value >= kMaxIds) {
      return Fail(absl::StrCat("model.vocab: ", Quote(key_), " has id ", value, ", must be below ", kMaxIds));
    }
    if (!Fits(memory_.Take(WithGrowth(sizeof(out_->vocab[0])) + key_.size()))) return false;
    out_->vocab.emplace_back(std::move(key_), static_cast<int32_t>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (!Fits(InMerges()
                  ? memory_.Take(WithGrowth(sizeof(pair_)) / (where_ == Where::kPair ? 2 : 1) + value.size())
                  : memory_.String(value.size()))) {
      return false;
    }
    if (where_ == Where::kMerges) {
      const size_t space = value.find(' ');
      if (space == 0 || space == std::string::npos || space + 1 == value.size() ||
          value.find(' ', space + 1) != std::string::npos) {
        return FailMerge(absl::StrCat(Quote(value), " must be two tokens with a space between"));
      }
      out_->merges.emplace_back(value.substr(0, space), value.substr(space + 1));
      return true;
    }
    if (where_ == Where::kPair) {
      if (parts_ == 2) return FailMerge("must have two tokens");
      (parts_++ == 0 ? pair_.first : pair_.second) = std::move(value);
      return true;
    }
    return Value(std::move(value));
  }

  bool start_object(std::size_t) override {
    if (where_ == Where::kDocument && InModel() && key_ == "vocab") {
      if (seen_vocab_) return Fail("model.vocab appears twice");
      seen_vocab_ = true;
      where_ = Where::kVocab;
      return true;
    }
    return Open(json::object());
  }
  bool key(string_t& value) override {
    key_ = std::move(value);
    if (where_ == Where::kDocument && !Fits(memory_.Key(key_.size()))) return false;
    if (where_ == Where::kDocument && stack_.back()->contains(key_)) {
      return Fail(absl::StrCat("key ", Quote(key_), " appears twice"));
    }
    return true;
  }
  bool end_object() override {
    if (where_ == Where::kVocab) {
      where_ = Where::kDocument;
    } else {
      stack_.pop_back();
    }
    return true;
  }

  bool start_array(std::size_t) override {
    if (where_ == Where::kMerges) {
      where_ = Where::kPair;
      parts_ = 0;
      return true;
    }
    if (where_ == Where::kDocument && InModel() && key_ == "merges") {
      if (seen_merges_) return Fail("model.merges appears twice");
      seen_merges_ = true;
      where_ = Where::kMerges;
      return true;
    }
    return Open(json::array());
  }
  bool end_array() override {
    if (where_ == Where::kPair) {
      if (parts_ != 2) return FailMerge("must have two tokens");
      out_->merges.push_back(std::move(pair_));
      where_ = Where::kMerges;
    } else if (where_ == Where::kMerges) {
      where_ = Where::kDocument;
    } else {
      stack_.pop_back();
    }
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    if (error_.empty()) {
      // what() quotes the file: bounded and escaped.
      error_ = absl::StrCat("not valid JSON at byte ", position, ": ", Quote(error.what()));
    }
    return false;
  }

 private:
  enum class Where { kDocument, kVocab, kMerges, kPair };

  bool Fail(std::string what) {
    if (error_.empty()) error_ = std::move(what);
    return false;
  }
  bool FailMerge(const std::string& what) {
    return Fail(absl::StrCat("model.merges: number ", out_->merges.size(), ": ", what));
  }
  // An element's share of a vector that moves as it grows.
  static size_t WithGrowth(size_t bytes) { return bytes * 3 / 2; }
  bool Fits(bool fits) { return fits || Fail(memory_.Problem()); }
  bool InMerges() const { return where_ == Where::kMerges || where_ == Where::kPair; }
  bool InModel() const {
    return take_model_ && stack_.size() == 2 && stack_.back()->is_object() && stack_.back() == model_;
  }
  // Puts a value in its place; nothing if it may not be there.
  json* Place(json value) {
    if (where_ == Where::kVocab) {
      Fail(absl::StrCat("model.vocab: ", Quote(key_), " must have a whole number of 0 or more"));
      return nullptr;
    }
    if (where_ != Where::kDocument) {
      FailMerge("must be two tokens: \"a b\" or [\"a\", \"b\"]");
      return nullptr;
    }
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[key_] = std::move(value));
  }
  bool Value(json value) { return Fits(memory_.Scalar()) && Place(std::move(value)) != nullptr; }
  bool Open(json value) {
    if (stack_.size() == kMaxDepth) return Fail(absl::StrCat("nested more than ", kMaxDepth, " deep"));
    if (!Fits(memory_.Container())) return false;
    const bool is_model = stack_.size() == 1 && key_ == "model" && stack_[0]->is_object();
    json* const placed = Place(std::move(value));
    if (placed == nullptr) return false;
    // Pointers on the stack stay valid: only the innermost container grows.
    stack_.push_back(placed);
    if (is_model) model_ = placed;
    return true;
  }

  TokenizerJson* out_;
  const bool take_model_;
  JsonMemory memory_;
  json root_;
  std::vector<json*> stack_;
  json* model_ = nullptr;
  std::string key_;
  Where where_ = Where::kDocument;
  bool seen_vocab_ = false, seen_merges_ = false;
  std::pair<std::string, std::string> pair_;
  int parts_ = 0;
  std::string error_;
};

absl::StatusOr<json> ReadDocument(const std::string& path, TokenizerJson* out, bool take_model) {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return absl::InvalidArgumentError(absl::StrCat(path, ": ", error.message()));
  if (size > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", size, " bytes, must be at most ", kMaxFileBytes));
  }
  std::ifstream stream(path, std::ios::binary);
  std::string text(size, '\0');
  if (!stream.read(text.data(), static_cast<std::streamsize>(size))) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  }
  Reader reader(out, take_model, text.size());
  if (!json::sax_parse(text, &reader)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", reader.error()));
  }
  json document = reader.Take();
  if (!document.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": must be a JSON object"));
  if (take_model && !reader.seen_merges() && document.value("model", json()).is_object()) {
    document["model"]["merges"];  // null where it is missing: CheckModel tells
  }
  return document;
}

absl::Status CheckModel(const TokenizerJson& file) {
  const auto model = file.rest.find("model");
  if (model == file.rest.end() || !model->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(file.path, ": model is missing or no object"));
  }
  if (const auto type = model->find("type"); type != model->end() && *type != "BPE") {
    return absl::UnimplementedError(absl::StrCat(file.path, ": model.type ",
                                                 Quote(type->is_string() ? type->get<std::string>() : "?"),
                                                 " is not supported; supported is 'BPE'"));
  }
  if (file.vocab.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path, ": model.vocab must be an object that gives each token its id"));
  }
  if (const auto version = file.rest.find("version");
      version != file.rest.end() && !version->is_null() && *version != "1.0") {
    return absl::UnimplementedError(absl::StrCat(
        file.path, ": version ", Quote(version->is_string() ? version->get<std::string>() : version->dump()),
        " is not supported; supported is '1.0'"));
  }
  if (model->contains("merges")) {
    return absl::InvalidArgumentError(absl::StrCat(file.path, ": model.merges must be an array"));
  }
  const json* decoder = nullptr;
  if (const auto it = file.rest.find("decoder"); it != file.rest.end()) decoder = &*it;
  if (decoder != nullptr && decoder->is_object() && decoder->value("type", json()) == "Sequence") {
    const auto list = decoder->find("decoders");
    decoder = list != decoder->end() && list->is_array() && list->size() == 1 ? &(*list)[0] : nullptr;
  }
  const json type = decoder != nullptr && decoder->is_object() ? decoder->value("type", json()) : json();
  if (type != "ByteLevel") {
    return absl::UnimplementedError(absl::StrCat(
        file.path, ": decoder ", type.is_string() ? Quote(type.get<std::string>()) : "of this kind",
        " is not supported; supported is 'ByteLevel'"));
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenizerJson::AddedToken> ReadAdded(const json& entry, const std::string& where) {
  TokenizerJson::AddedToken token;
  if (!entry.is_object()) return absl::InvalidArgumentError(absl::StrCat(where, " must be an object"));
  const auto id = entry.find("id");
  if (id == entry.end() || !id->is_number_unsigned() || id->get<uint64_t>() >= kMaxIds) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ".id must be a whole number from 0 to ", kMaxIds - 1));
  }
  token.id = id->get<int32_t>();
  const auto content = entry.find("content");
  if (content == entry.end() || !content->is_string() || content->get_ref<const std::string&>().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ".content must be a string that is not empty"));
  }
  token.content = content->get<std::string>();
  const std::pair<const char*, bool*> flags[] = {{"single_word", &token.single_word},
                                                 {"lstrip", &token.lstrip},
                                                 {"rstrip", &token.rstrip},
                                                 {"normalized", &token.normalized},
                                                 {"special", &token.special}};
  for (const auto& [key, flag] : flags) {
    const auto it = entry.find(key);
    if (it == entry.end()) continue;
    if (!it->is_boolean()) {
      return absl::InvalidArgumentError(absl::StrCat(where, ".", key, " must be true or false"));
    }
    *flag = it->get<bool>();
  }
  return token;
}

absl::Status ReadTokens(TokenizerJson* file) {
  const auto fail = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(file->path, ": ", what...));
  };
  absl::flat_hash_map<std::string_view, int32_t> id_of;
  absl::flat_hash_map<int32_t, std::string_view> piece_of;
  id_of.reserve(file->vocab.size());
  piece_of.reserve(file->vocab.size());
  int32_t last = 0;
  for (const auto& [piece, id] : file->vocab) {
    if (const auto [it, fresh] = id_of.emplace(piece, id); !fresh) {
      return fail("model.vocab: ", Quote(piece), " is both token ", it->second, " and token ", id);
    }
    if (const auto [it, fresh] = piece_of.emplace(id, piece); !fresh) {
      return fail("model.vocab: ", Quote(piece), " and ", Quote(it->second), " are both token ", id);
    }
    last = std::max(last, id);
  }
  const auto added = file->rest.find("added_tokens");
  if (added != file->rest.end() && !added->is_null()) {
    if (!added->is_array()) return fail("added_tokens must be an array");
    absl::flat_hash_set<std::string> seen;
    for (size_t i = 0; i < added->size(); ++i) {
      const std::string where = absl::StrCat("added_tokens[", i, "]");
      PHX_ASSIGN_OR_RETURN(TokenizerJson::AddedToken token,
                           ReadAdded((*added)[i], absl::StrCat(file->path, ": ", where)));
      if (!seen.insert(token.content).second) {
        return fail(where, ".content ", Quote(token.content), " appears twice");
      }
      const auto in_vocab = id_of.find(std::string_view(token.content));
      if (in_vocab != id_of.end() && in_vocab->second != token.id) {
        return fail(where, ".id of ", Quote(token.content), " is ", token.id, ", but model.vocab gives it ",
                    in_vocab->second);
      }
      const auto [it, fresh] = piece_of.emplace(token.id, std::string_view());
      if (!fresh && (in_vocab == id_of.end() || it->second.empty())) {
        return fail(where, ".id of ", Quote(token.content), " is ", token.id, ", which is another token's");
      }
      it->second = std::string_view();  // taken: no further added token may have it
      last = std::max(last, token.id);
      file->added.push_back(std::move(token));
    }
    file->rest.erase(added);
  }
  // Tables have a place for every id up to the last: what they take is to follow from what the file has.
  std::error_code error;
  const uintmax_t bytes = std::filesystem::file_size(file->path, error);
  if (error || static_cast<uintmax_t>(last) >= bytes) {
    return fail("the last id is ", last, ", which a file of ", bytes, " bytes has no tokens for");
  }
  file->vocab_size = last + 1;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerJson> ReadTokenizerJson(const std::string& directory) {
  TokenizerJson file;
  file.path = (std::filesystem::path(directory) / "tokenizer.json").string();
  file.config_path = (std::filesystem::path(directory) / "tokenizer_config.json").string();
  std::error_code error;
  if (!std::filesystem::exists(file.path, error)) {
    return absl::NotFoundError(absl::StrCat(file.path, " does not exist"));
  }
  PHX_ASSIGN_OR_RETURN(file.rest, ReadDocument(file.path, &file, true));
  PHX_RETURN_IF_ERROR(CheckModel(file));
  PHX_RETURN_IF_ERROR(ReadTokens(&file));
  if (std::filesystem::exists(file.config_path, error)) {
    PHX_ASSIGN_OR_RETURN(file.config, ReadDocument(file.config_path, nullptr, false));
  }
  return file;
}

TokenBytes TokenBytesOf(const TokenizerJson& json) {
  TokenBytes table;
  table.bytes.resize(static_cast<size_t>(json.vocab_size));
  table.is_control.assign(static_cast<size_t>(json.vocab_size), true);
  for (const auto& [piece, id] : json.vocab) {
    table.bytes[static_cast<size_t>(id)] = BytesOrPiece(piece);
    table.is_control[static_cast<size_t>(id)] = false;
  }
  for (const TokenizerJson::AddedToken& token : json.added) {
    table.bytes[static_cast<size_t>(token.id)] = token.content;
    table.is_control[static_cast<size_t>(token.id)] = token.special;
  }
  return table;
}

}  // namespace phalanx
