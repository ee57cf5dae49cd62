// Hugging Face's tokenizer.json and tokenizer_config.json, read and checked as far as both sides need them.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/token_bytes.h"

namespace phalanx {

struct TokenizerJson {
  // A token that is looked for in text before anything else happens to it.
  struct AddedToken {
    int32_t id = 0;
    std::string content;
    bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
  };

  std::string path;    // of tokenizer.json
  int32_t vocab_size;  // above every id
  // model.vocab and model.merges. Pieces and ids are unique; ids are from 0 to vocab_size - 1 and may have
  // gaps.
  std::vector<std::pair<std::string, int32_t>> vocab;
  std::vector<std::pair<std::string, std::string>> merges;
  // Ids and contents are unique; one that is in `vocab` has its id there.
  std::vector<AddedToken> added;
  // The file without the vocabulary, the merges and the added tokens: an object.
  nlohmann::json rest;
  // tokenizer_config.json; null if there is none.
  nlohmann::json config;
  std::string config_path;
};

// Reads `directory`/tokenizer.json, whose model must be BPE and whose decoder must be ByteLevel, and
// tokenizer_config.json beside it. NotFound naming the file if there is no tokenizer.json; InvalidArgument
// naming file and key for what is wrong, Unimplemented for what is not supported.
absl::StatusOr<TokenizerJson> ReadTokenizerJson(const std::string& directory);

TokenBytes TokenBytesOf(const TokenizerJson& json);

}  // namespace phalanx
