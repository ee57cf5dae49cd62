// How fast a tokenizer is, on text like that of users and on what is worst for it.
//   tokenizer_bench                          a small vocabulary of its own: shows that the bench runs
//   tokenizer_bench TOKENIZER                a folder with tokenizer.json, or a GGUF file
//   tokenizer_bench TOKENIZER TEXTS IDS      encodes the texts of a file and writes what comes of them, for
//                                            tests/golden/compare_tokenizers.py
// TEXTS: for each text its length in bytes (little-endian uint32) and the bytes. IDS: for each text, encoded
// with names of control tokens and then without: the number of ids, the ids, the length of the decoded text
// with control tokens and the text, and the same without them.
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/byte_alphabet.h"
#include "base/status_macros.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "nlohmann/json.hpp"

namespace phalanx {
namespace {

// Of the processor: the machine may have other things to do.
double Seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path) {
  if (std::filesystem::is_directory(path)) return TokenizerFromDirectory(path);
  PHX_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  return TokenizerFromGguf(*file);
}

// A tokenizer.json with the bytes, pairs of letters and nothing else.
void WriteSmall(const std::string& folder) {
  nlohmann::json vocab = nlohmann::json::object(), merges = nlohmann::json::array();
  for (const std::string& character : ByteAlphabet()) vocab.emplace(character, vocab.size());
  for (char a = 'a'; a <= 'z'; ++a) {
    for (const char b : {'a', 'e', 'n', 't'}) {
      vocab.emplace(std::string{a, b}, vocab.size());
      merges.push_back(std::string{a, ' ', b});
    }
  }
  const nlohmann::json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  const nlohmann::json file = {{"pre_tokenizer", byte_level},
                               {"decoder", byte_level},
                               {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
  std::ofstream(folder + "/tokenizer.json") << file.dump();
}

std::string Repeat(const std::string& unit, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += unit;
  return text;
}

bool Measure(const Tokenizer& tokenizer, const char* what, const std::string& text) {
  const double start = Seconds();
  const auto ids = tokenizer.Encode(text, true);
  const double took = Seconds() - start;
  if (!ids.ok()) {
    std::fprintf(stderr, "%s\n", ids.status().ToString().c_str());
    return false;
  }
  std::printf("%-24s %8.1f MB/s  %8.4f s  %zu tokens\n", what, static_cast<double>(text.size()) / took / 1e6,
              took, ids->size());
  return true;
}

bool MeasureAll(const Tokenizer& tokenizer, size_t bytes) {
  const std::string prose =
      "The quick brown fox jumps over the lazy dog; it didn't stop, and nobody's surprised. In 2024, 1,234 "
      "foxes "
      "did so again (see section 4.2).\n\nfor (size_t i = 0; i < items.size(); ++i) {\n    total += "
      "items[i].price * "
      "quantity;  // unit: EUR\n}\nLet f(x) = \\frac{x^2 + 1}{2}; then f'(x) = x, so the answer is "
      "\\boxed{7}.\n";
  bool good = Measure(tokenizer, "prose and code", Repeat(prose, 8 * bytes));
  const std::pair<const char*, std::string> worst[] = {{"one letter", "a"},
                                                       {"two letters", "ab"},
                                                       {"capital letters", "A"},
                                                       {"spaces", " "},
                                                       {"newlines", "\n"},
                                                       {"spaces, newlines", " \n"},
                                                       {"digits", "1"},
                                                       {"'<'", "<"},
                                                       {"'<|'", "<|"},
                                                       {"combining marks", "\u0301"},
                                                       {"marks of two classes", "\u0301\u0323"},
                                                       {"Hangul jamo", "\u1112\u1161\u11ab"},
                                                       {"CJK", "日本"},
                                                       {"emoji", "👩‍👩‍👧"},
                                                       {"apostrophes", "'"},
                                                       {"no-break spaces", "\u00a0"},
                                                       {"control characters", "\x01"}};
  for (const auto& [what, unit] : worst) good &= Measure(tokenizer, what, Repeat(unit, bytes));
  return good;
}

void Append(std::string* out, const std::string& bytes) {
  const auto size = static_cast<uint32_t>(bytes.size());
  out->append(reinterpret_cast<const char*>(&size), sizeof(size)).append(bytes);
}

std::string Decode(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool keep_control) {
  Detokenizer detokenizer(&tokenizer.token_bytes(), keep_control);
  std::string text;
  for (const int32_t id : ids) {
    if (!detokenizer.Feed(id, &text).ok()) return "bad id";
  }
  detokenizer.Finish(&text);
  return text;
}

bool EncodeAll(const Tokenizer& tokenizer, const std::string& texts_path, const std::string& ids_path) {
  std::ifstream stream(texts_path, std::ios::binary);
  const std::string all((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  std::vector<std::string> texts;
  for (size_t at = 0; at + 4 <= all.size();) {
    uint32_t size = 0;
    std::memcpy(&size, all.data() + at, 4);
    texts.push_back(all.substr(at + 4, size));
    at += 4 + size;
  }
  std::vector<std::vector<int32_t>> ids;
  double took = 0;
  for (const std::string& text : texts) {
    for (const bool special : {true, false}) {
      const double start = Seconds();
      auto encoded = tokenizer.Encode(text, special);
      if (special) took += Seconds() - start;
      if (!encoded.ok()) {
        std::fprintf(stderr, "%s\n", encoded.status().ToString().c_str());
        return false;
      }
      ids.push_back(*std::move(encoded));
    }
  }
  std::printf("%.6f\n", took);
  std::string out;
  for (const std::vector<int32_t>& list : ids) {
    Append(&out, std::string(reinterpret_cast<const char*>(list.data()), list.size() * sizeof(int32_t)));
    Append(&out, Decode(tokenizer, list, true));
    Append(&out, Decode(tokenizer, list, false));
  }
  return static_cast<bool>(std::ofstream(ids_path, std::ios::binary) << out);
}

int Main(int argc, char** argv) {
  if (argc != 1 && argc != 2 && argc != 4) {
    std::fprintf(stderr, "usage: tokenizer_bench [TOKENIZER [TEXTS IDS]]\n");
    return 1;
  }
  std::string small;
  if (argc == 1) {
    small =
        (std::filesystem::temp_directory_path() / ("tokenizer_bench_" + std::to_string(::getpid()))).string();
    std::filesystem::create_directories(small);
    WriteSmall(small);
  }
  const double start = Seconds();
  const auto tokenizer = Load(argc == 1 ? small : argv[1]);
  if (!small.empty()) std::filesystem::remove_all(small);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
    return 1;
  }
  std::printf("loaded in %.3f s\n", Seconds() - start);
  const bool good = argc == 4 ? EncodeAll(**tokenizer, argv[2], argv[3])
                              : MeasureAll(**tokenizer, argc == 1 ? 1 << 16 : 1 << 20);
  return good ? 0 : 1;
}

}  // namespace
}  // namespace phalanx

int main(int argc, char** argv) { return phalanx::Main(argc, argv); }
