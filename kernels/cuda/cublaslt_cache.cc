#include "kernels/cuda/cublaslt_cache.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace phalanx::cuda {
namespace {

constexpr const char* kFormat = "1";
constexpr const char* kKinds[] = {"cublaslt", "own", "cublaslt-fast-sums"};

// FNV-1a. source: https://datatracker.ietf.org/doc/html/draft-eastlake-fnv
uint64_t Checksum(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

bool ParseHex(const std::string& word, uint64_t* value) {
  return word.size() == 16 && absl::SimpleHexAtoi(word, value);
}

}  // namespace

int64_t BucketOf(int64_t rows) {
  int64_t bucket = kMinBucket;
  while (bucket < rows && bucket < kMaxBucket) bucket *= 2;
  return bucket;
}

std::string DeviceWord(std::string_view name) {
  std::string word(name);
  std::replace_if(
      word.begin(), word.end(), [](unsigned char c) { return c <= 0x20 || c >= 0x7f; }, '_');
  return word.empty() ? "_" : word;
}

std::string FormatEntry(const ProductKey& key, const ProductChoice& choice) {
  std::vector<std::string> words;
  for (const uint64_t word : choice.algorithm.data)
    words.push_back(absl::StrCat(absl::Hex(word, absl::kZeroPad16)));
  const std::string rest =
      absl::StrCat(absl::StrJoin({key.device, absl::StrCat(key.library), absl::StrCat(key.kernels),
                                  absl::StrCat(key.n), absl::StrCat(key.k), absl::StrCat(key.bucket),
                                  absl::StrCat(key.input), absl::StrCat(key.output),
                                  std::string(kKinds[choice.own         ? 1
                                                     : choice.fast_sums ? 2
                                                                        : 0]),
                                  absl::StrCat(choice.workspace)},
                                 " "),
                   " ", absl::StrJoin(words, " "));
  return absl::StrCat(kFormat, " ", absl::Hex(Checksum(rest), absl::kZeroPad16), " ", rest);
}

std::optional<std::pair<ProductKey, ProductChoice>> ParseEntry(std::string_view line) {
  const std::vector<std::string> words = absl::StrSplit(std::string(line), ' ');
  if (words.size() != 20 || words[0] != kFormat) return std::nullopt;
  uint64_t sum = 0;
  if (!ParseHex(words[1], &sum) || sum != Checksum(line.substr(words[0].size() + words[1].size() + 2))) {
    return std::nullopt;
  }
  ProductKey key;
  ProductChoice choice;
  key.device = words[2];
  choice.own = words[10] == kKinds[1];
  choice.fast_sums = words[10] == kKinds[2];
  bool good = absl::SimpleAtoi(words[3], &key.library) && absl::SimpleAtoi(words[4], &key.kernels) &&
              absl::SimpleAtoi(words[5], &key.n) && absl::SimpleAtoi(words[6], &key.k) &&
              absl::SimpleAtoi(words[7], &key.bucket) && absl::SimpleAtoi(words[8], &key.input) &&
              absl::SimpleAtoi(words[9], &key.output) &&
              (choice.own || choice.fast_sums || words[10] == kKinds[0]) &&
              absl::SimpleAtoi(words[11], &choice.workspace);
  for (size_t i = 0; i < 8; ++i) good = good && ParseHex(words[12 + i], &choice.algorithm.data[i]);
  if (!good) return std::nullopt;
  return std::make_pair(key, choice);
}

ProductCache::Entries ProductCache::Read(const std::string& file) {
  Entries entries;
  std::ifstream in(file);
  std::string line;
  int bad = 0;
  while (std::getline(in, line)) {
    if (auto entry = ParseEntry(line)) {
      entries[entry->first] = entry->second;
    } else {
      ++bad;
    }
  }
  if (bad > 0) {
    spdlog::warn("{}: {} lines are no entries of this version, or damaged, and are ignored", file, bad);
  }
  return entries;
}

ProductCache::ProductCache(std::string file) : file_(std::move(file)) {
  if (!file_.empty()) entries_ = Read(file_);
}

const ProductChoice* ProductCache::Find(const ProductKey& key) const {
  const auto found = entries_.find(key);
  return found == entries_.end() ? nullptr : &found->second;
}

absl::Status ProductCache::Insert(const ProductKey& key, const ProductChoice& choice) {
  entries_[key] = choice;
  if (file_.empty()) return absl::OkStatus();
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(file_).parent_path(), error);
  Entries all = std::filesystem::exists(file_, error) ? Read(file_) : Entries();
  all[key] = choice;
  const std::string written = absl::StrCat(file_, ".", getpid());
  {
    std::ofstream out(written, std::ios::trunc);
    for (const auto& [k, c] : all) out << FormatEntry(k, c) << "\n";
    out.flush();
    if (!out) {
      std::filesystem::remove(written, error);
      return absl::UnavailableError(absl::StrCat(written, " cannot be written"));
    }
  }
  std::filesystem::rename(written, file_, error);
  if (!error) return absl::OkStatus();
  const std::string why = error.message();
  std::filesystem::remove(written, error);
  return absl::UnavailableError(absl::StrCat(file_, " cannot be replaced: ", why));
}

std::string ProductCacheFile(const std::string& folder) {
  std::string in = folder;
  const char* const xdg = std::getenv("XDG_CACHE_HOME");
  const char* const home = std::getenv("HOME");
  if (in.empty() && xdg != nullptr && xdg[0] == '/') in = absl::StrCat(xdg, "/phalanx");
  if (in.empty() && home != nullptr && home[0] == '/') in = absl::StrCat(home, "/.cache/phalanx");
  return in.empty() ? "" : absl::StrCat(in, "/products.txt");
}

}  // namespace phalanx::cuda
