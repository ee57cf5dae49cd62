// The pool of KV blocks of a group, as the leader counts them, and the prefix cache in it. Pure.
//
// A block is held by any number of sequences. A full block whose KV is written can be published: then it is
// found by what it holds (RoPE mode, salt and all tokens from position 0 on; weights and KV type are the
// group's), and may be held by further sequences. A published block that nobody holds stays as it is until a
// free one is needed: then the one whose last holder went first is evicted; Release frees a table from its
// end, so leaves go before what they follow.
//
// The cache is a tree: a published block is the child of the one before it. An edge is looked up by hash and
// compared token by token, so two prefixes are never taken for one another.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"

namespace phalanx {

// What sequences must have in common to share blocks.
struct CacheDomain {
  uint32_t rope_mode = 0;
  std::string salt;
};

// Behind a chain of published blocks; {}: at the beginning.
struct CachePlace {
  int32_t block = -1;   // the last of the chain
  uint64_t serial = 0;  // of its publication
};

class KvBlocks {
 public:
  explicit KvBlocks(int64_t num_blocks, int block_size = 1);

  int64_t num_blocks() const { return static_cast<int64_t>(nodes_.size()); }
  // Held by nobody, cached ones included.
  int64_t num_free() const { return static_cast<int64_t>(free_.size()) + num_cached_; }
  int64_t num_used() const { return num_blocks() - num_free(); }
  int64_t num_cached() const { return num_cached_; }  // held by nobody and published

  // Takes `count` blocks, lowest ids first, then evicted ones; ResourceExhausted naming both numbers when
  // fewer are free.
  absl::StatusOr<std::vector<int32_t>> Allocate(int64_t count);
  // The same of one block; -1 when none is free.
  int32_t Take();
  // One more holder of a published block.
  void Share(int32_t block);
  // Gives back one hold of each; CHECK-fails on a block that is not held (a bug, never input).
  void Release(const std::vector<int32_t>& blocks);
  int32_t holders(int32_t block) const { return nodes_[block].holders; }

  // The block published behind `after` with these block_size tokens; -1: none.
  int32_t Find(const CacheDomain& domain, CachePlace after, const int32_t* tokens) const;
  // Publishes `block`, which is held and written by step `step`, and returns the place behind it; where an
  // equal one is published already, the place behind that. `after` is alive.
  CachePlace Publish(const CacheDomain& domain, CachePlace after, const int32_t* tokens, int32_t block,
                     uint64_t step);
  // From now on the block is not found, nor what is published behind it.
  void Unpublish(int32_t block);
  CachePlace PlaceOf(int32_t block) const { return {block, nodes_[block].serial}; }
  bool IsAlive(CachePlace place) const {
    return place.block < 0 || nodes_[place.block].serial == place.serial;
  }
  // Of a published block: plans after this one may read it.
  uint64_t StepOf(int32_t block) const { return nodes_[block].step; }

  absl::Status CheckInvariants() const;

 private:
  struct Node {
    int32_t holders = 0;
    int32_t older = -1, newer = -1;  // neighbours in the list of cached blocks
    uint64_t serial = 0;             // 0: not published
    uint64_t parent = 0;             // the serial of the block before it
    uint64_t key = 0;                // in index_
    uint64_t step = 0;
    CacheDomain domain;  // of a first block; the others' is their parent's
  };
  static constexpr uint64_t kNoSerial = 0;

  uint64_t KeyOf(const CacheDomain& domain, CachePlace after, const int32_t* tokens) const;
  int32_t FindKey(uint64_t key, const CacheDomain& domain, CachePlace after, const int32_t* tokens) const;
  void Append(int32_t block);  // to the list of cached blocks
  void Unlink(int32_t block);

  const int64_t block_size_;
  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;  // [num_blocks, block_size] of published blocks
  std::vector<int32_t> free_;    // a heap, lowest id on top: held by nobody, not published
  int32_t oldest_ = -1, newest_ = -1;
  int64_t num_cached_ = 0;
  uint64_t last_serial_ = 0;
  std::unordered_map<uint64_t, int32_t> index_;  // published blocks
};

}  // namespace phalanx
