// Byte-pair encoding of one word.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace phalanx {

// Thread safety: immutable once filled.
class BytePairEncoder {
 public:
  static constexpr int32_t kNoToken = -1;

  // Token of a single byte; kNoToken: such bytes are left out.
  void SetByte(unsigned char byte, int32_t id) { byte_ids_[byte] = id; }
  // Adjacent tokens left and right become `merged`; merges added earlier go first. False if there is one of
  // this pair already.
  bool AddMerge(int32_t left, int32_t right, int32_t merged);

  // Scratch space, to be reused between words.
  struct Scratch {
    struct Symbol {
      int32_t id;
      int32_t previous, next;  // -1 at the ends
    };
    struct Candidate {
      int32_t rank;
      int32_t at;           // symbol on the left
      int32_t left, right;  // the ids when it was found: it is stale if they have changed
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };
  // Appends the tokens of `word`, of less than 2^31 bytes, to `*ids`. O(n log n).
  void Encode(std::string_view word, Scratch& scratch, std::vector<int32_t>* ids) const;

 private:
  struct Merge {
    int32_t rank;
    int32_t merged;
  };
  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  void Consider(int32_t at, Scratch& scratch) const;

  std::array<int32_t, 256> byte_ids_ = [] {
    std::array<int32_t, 256> none;
    none.fill(kNoToken);
    return none;
  }();
  absl::flat_hash_map<uint64_t, Merge> merges_;
};

}  // namespace phalanx
