// The tokens of one sequence that penalties read.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace phalanx {

// Grows only at its end: a backend may keep counts of its own on the device and read on in log() from where
// it stopped. Thread safety: none; nobody may add while Ops::Sample reads.
class TokenCounts {
 public:
  struct Entry {
    int32_t id;
    int32_t num_output;  // times in the output; 0: in the prompt only
  };

  // Ids are in [0, vocab_size).
  explicit TokenCounts(int64_t vocab_size) : vocab_size_(vocab_size) {}

  void AddPrompt(int32_t id) {
    PHX_CHECK(log_.size() == static_cast<size_t>(num_prompt_), "the prompt comes before the output");
    EntryOf(id);
    log_.push_back(id);
    ++num_prompt_;
  }
  void AddOutput(int32_t id) {
    ++EntryOf(id).num_output;
    log_.push_back(id);
  }

  int64_t vocab_size() const { return vocab_size_; }
  // The distinct tokens, in order of their first appearance.
  const std::vector<Entry>& entries() const { return entries_; }
  // All tokens as they were added; the first num_prompt are the prompt's.
  const std::vector<int32_t>& log() const { return log_; }
  int64_t num_prompt() const { return num_prompt_; }

 private:
  Entry& EntryOf(int32_t id) {
    PHX_CHECK(id >= 0 && id < vocab_size_, absl::StrCat("token ", id, " of a vocabulary of ", vocab_size_));
    const auto [at, added] = index_.try_emplace(id, static_cast<int32_t>(entries_.size()));
    if (added) entries_.push_back({id, 0});
    return entries_[at->second];
  }

  int64_t vocab_size_;
  int64_t num_prompt_ = 0;
  std::vector<Entry> entries_;
  std::vector<int32_t> log_;
  absl::flat_hash_map<int32_t, int32_t> index_;  // id -> its place in entries_
};

}  // namespace phalanx
