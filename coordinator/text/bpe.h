// Byte-pair encoding of one word.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace phalanx {

// Thread safety: once filled, Encode may run on many threads, each with its own Scratch.
class BytePairEncoder {
 public:
  static constexpr int32_t kNoToken = -1;

  // A token of the vocabulary that may come out of merging, and its bytes.
  void AddWord(std::string bytes, int32_t id);
  // Adjacent tokens left and right become `merged`; merges added earlier go first. If there is one of this
  // pair already, false and nothing has changed.
  bool AddMerge(int32_t left, int32_t right, int32_t merged);
  // As above; but the last one of a pair counts, in its own place.
  void AddOrReplaceMerge(int32_t left, int32_t right, int32_t merged);
  // What stands for a byte that has no token of its own, as it comes; by default nothing.
  void SetFallback(unsigned char byte, std::vector<int32_t> ids) { fallback_[byte] = std::move(ids); }
  // What stands for other bytes without a token; with `fuse`, once for any number in a row.
  void SetUnknown(int32_t id, bool fuse) {
    unknown_ = id;
    fuse_unknown_ = fuse;
  }
  // A word that is a token is that token, whatever the merges would make of it.
  void SetIgnoreMerges(bool ignore) { ignore_merges_ = ignore; }
  // Call once after all of the above.
  void Finish();

  // Scratch space, and the words seen last. To be reused between words of one encoder.
  class Scratch {
   public:
    // For about this many bytes of text in all.
    explicit Scratch(size_t text_bytes);

   private:
    friend class BytePairEncoder;
    struct Symbol {
      int32_t id;
      int32_t previous, next;  // -1 at the ends
    };
    // Where pairs of one merge are, from the left; some are stale.
    struct Queue {
      std::vector<int32_t> at;  // symbols on the left: ascending from `head` on, or a heap
      size_t head = 0;
      bool is_heap = false;
      bool listed = false;  // its rank is in `ranks`
    };
    struct Cached {
      uint64_t hash = 0;
      uint32_t word = 0, word_bytes = 0;  // in text; 0 bytes: nothing
      uint32_t first = 0, count = 0;      // in ids
    };
    std::vector<int32_t> start;  // the word's bytes as tokens
    std::vector<Symbol> symbols;
    void Push(int32_t rank, int32_t at);
    bool Pop(int32_t* rank, int32_t* at);
    absl::flat_hash_map<int32_t, size_t> queue_of;  // by rank
    std::vector<Queue> queues;
    size_t used_queues = 0;
    std::vector<int32_t> ranks;  // a heap, the earliest first
    std::vector<Cached> cache;   // by hash; a power of two, or empty
    std::string text;
    std::vector<int32_t> ids;
  };
  // Appends the tokens of `word`, of less than 2^31 bytes and not empty, to `*ids`. O(n log n).
  void Encode(std::string_view word, Scratch& scratch, std::vector<int32_t>* ids) const;

 private:
  struct Merge {
    int32_t rank = kNoMerge;
    int32_t merged = kNoToken;
  };
  static constexpr int32_t kNoMerge = std::numeric_limits<int32_t>::max();
  // Whether a word that is a token comes out of merging as that token.
  enum Known : uint8_t { kUnasked, kYes, kNo };

  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  Merge Find(int32_t left, int32_t right) const;
  void Start(std::string_view word, std::vector<int32_t>* symbols) const;
  void MergeAll(std::string_view word, Scratch& scratch, std::vector<int32_t>* ids) const;
  // pairs: [symbols.size() - 1], what each symbol and the next become. Overwrites both.
  void MergeShort(std::vector<int32_t>& symbols, Merge* pairs, std::vector<int32_t>* ids) const;
  void MergeLong(Scratch& scratch, std::vector<int32_t>* ids) const;
  void Consider(int32_t at, Scratch& scratch) const;

  std::array<int32_t, 256> byte_ids_ = [] {
    std::array<int32_t, 256> none;
    none.fill(kNoToken);
    return none;
  }();
  std::array<std::vector<int32_t>, 256> fallback_;
  int32_t unknown_ = kNoToken;
  bool fuse_unknown_ = false, ignore_merges_ = false;
  bool complete_ = false;  // each byte has a token
  absl::flat_hash_map<std::string, int32_t> words_;
  size_t longest_word_ = 0;
  int32_t id_end_ = 0;
  absl::flat_hash_map<uint64_t, Merge> merges_;
  int32_t num_merges_ = 0;
  std::vector<Merge> byte_merges_;                 // [256 * 256], of tokens of single bytes
  std::unique_ptr<std::atomic<uint8_t>[]> known_;  // [id_end_]
};

}  // namespace phalanx
