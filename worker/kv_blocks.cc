#include "worker/kv_blocks.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace phalanx {
namespace {

// source: splitmix64, https://prng.di.unimi.it/splitmix64.c
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

KvBlocks::KvBlocks(int64_t num_blocks, int block_size) : block_size_(block_size) {
  PHX_CHECK(num_blocks >= 0 && num_blocks <= INT32_MAX, absl::StrCat("num_blocks ", num_blocks));
  PHX_CHECK(block_size > 0, absl::StrCat("block_size ", block_size));
  nodes_.resize(num_blocks);
  free_.reserve(num_blocks);
  for (int64_t b = 0; b < num_blocks; ++b)
    free_.push_back(static_cast<int32_t>(b));  // rising: already a heap
}

// ---- Holding ----

int32_t KvBlocks::Take() {
  int32_t block = -1;
  if (!free_.empty()) {
    std::pop_heap(free_.begin(), free_.end(), std::greater<>());
    block = free_.back();
    free_.pop_back();
  } else if (oldest_ >= 0) {
    block = oldest_;
    Unlink(block);
    index_.erase(nodes_[block].key);
    nodes_[block].serial = kNoSerial;
  } else {
    return -1;
  }
  nodes_[block].holders = 1;
  return block;
}

absl::StatusOr<std::vector<int32_t>> KvBlocks::Allocate(int64_t count) {
  if (count < 0) return absl::InvalidArgumentError(absl::StrCat("cannot allocate ", count, " KV blocks"));
  if (count > num_free()) {
    return absl::ResourceExhaustedError(
        absl::StrCat(count, " KV blocks are asked for and ", num_free(), " of ", num_blocks(), " are free"));
  }
  std::vector<int32_t> blocks(count);
  for (int32_t& block : blocks) block = Take();
  return blocks;
}

void KvBlocks::Share(int32_t block) {
  Node& node = nodes_[block];
  PHX_CHECK(node.serial != kNoSerial, absl::StrCat("KV block ", block, " is shared and was not published"));
  if (node.holders++ == 0) Unlink(block);
}

void KvBlocks::Release(const std::vector<int32_t>& blocks) {
  for (auto it = blocks.rbegin(); it != blocks.rend(); ++it) {
    const int32_t block = *it;
    PHX_CHECK(block >= 0 && block < num_blocks() && nodes_[block].holders > 0,
              absl::StrCat("KV block ", block, " of ", num_blocks(), " is released and was not taken"));
    if (--nodes_[block].holders > 0) continue;
    if (nodes_[block].serial != kNoSerial) {
      Append(block);
    } else {
      free_.push_back(block);
      std::push_heap(free_.begin(), free_.end(), std::greater<>());
    }
  }
}

void KvBlocks::Append(int32_t block) {
  nodes_[block].older = newest_;
  nodes_[block].newer = -1;
  (newest_ >= 0 ? nodes_[newest_].newer : oldest_) = block;
  newest_ = block;
  ++num_cached_;
}

void KvBlocks::Unlink(int32_t block) {
  const Node& node = nodes_[block];
  (node.older >= 0 ? nodes_[node.older].newer : oldest_) = node.newer;
  (node.newer >= 0 ? nodes_[node.newer].older : newest_) = node.older;
  --num_cached_;
}

// ---- The cache ----

uint64_t KvBlocks::KeyOf(const CacheDomain& domain, CachePlace after, const int32_t* tokens) const {
  uint64_t key = after.serial;
  if (after.block < 0) key = Mix(domain.rope_mode) ^ std::hash<std::string>()(domain.salt);
  for (int64_t i = 0; i < block_size_; ++i) key = Mix(key ^ static_cast<uint32_t>(tokens[i]));
  return key;
}

int32_t KvBlocks::FindKey(uint64_t key, const CacheDomain& domain, CachePlace after,
                          const int32_t* tokens) const {
  const auto it = index_.find(key);
  if (it == index_.end()) return -1;
  const int32_t block = it->second;
  const Node& node = nodes_[block];
  if (node.parent != after.serial) return -1;
  if (after.block < 0 && (node.domain.rope_mode != domain.rope_mode || node.domain.salt != domain.salt)) {
    return -1;
  }
  return std::equal(tokens, tokens + block_size_, &tokens_[block * block_size_]) ? block : -1;
}

int32_t KvBlocks::Find(const CacheDomain& domain, CachePlace after, const int32_t* tokens) const {
  return FindKey(KeyOf(domain, after, tokens), domain, after, tokens);
}

CachePlace KvBlocks::Publish(const CacheDomain& domain, CachePlace after, const int32_t* tokens,
                             int32_t block, uint64_t step) {
  PHX_CHECK(IsAlive(after), absl::StrCat("KV block ", block, " is published behind an evicted one"));
  PHX_CHECK(nodes_[block].holders > 0, absl::StrCat("KV block ", block, " is published and not held"));
  const uint64_t key = KeyOf(domain, after, tokens);
  const int32_t equal = FindKey(key, domain, after, tokens);
  if (equal >= 0) return PlaceOf(equal);
  if (nodes_[block].serial != kNoSerial) Unpublish(block);
  // Two edges of one key: the newer one is found.
  if (const auto it = index_.find(key); it != index_.end()) Unpublish(it->second);
  if (tokens_.empty()) tokens_.resize(num_blocks() * block_size_);
  std::copy_n(tokens, block_size_, &tokens_[block * block_size_]);
  Node& node = nodes_[block];
  node.serial = ++last_serial_;
  node.parent = after.serial;
  node.key = key;
  node.step = step;
  if (after.block < 0) {
    node.domain = domain;
  } else {
    node.domain.salt.clear();
  }
  index_[key] = block;
  return PlaceOf(block);
}

void KvBlocks::Unpublish(int32_t block) {
  Node& node = nodes_[block];
  if (node.serial == kNoSerial) return;
  index_.erase(node.key);
  node.serial = kNoSerial;
  if (node.holders > 0) return;
  Unlink(block);
  free_.push_back(block);
  std::push_heap(free_.begin(), free_.end(), std::greater<>());
}

absl::Status KvBlocks::CheckInvariants() const {
  const auto broken = [](const auto&... parts) { return absl::InternalError(absl::StrCat(parts...)); };
  int64_t published = 0, cached = 0;
  for (int32_t b = 0; b < num_blocks(); ++b) {
    const Node& node = nodes_[b];
    if (node.serial == kNoSerial) continue;
    ++published;
    const auto it = index_.find(node.key);
    if (it == index_.end() || it->second != b) return broken("published block ", b, " is not in the index");
    cached += node.holders == 0 ? 1 : 0;
  }
  if (published != static_cast<int64_t>(index_.size())) return broken("the index has ", index_.size());
  int64_t listed = 0;
  for (int32_t b = oldest_, before = -1; b >= 0; before = b, b = nodes_[b].newer, ++listed) {
    const Node& node = nodes_[b];
    if (node.older != before || node.holders != 0 || node.serial == kNoSerial || listed > num_cached_) {
      return broken("block ", b, " is wrongly in the list of cached blocks");
    }
  }
  if (listed != num_cached_ || cached != num_cached_) {
    return broken(cached, " blocks are cached, ", listed, " listed, ", num_cached_, " counted");
  }
  for (const int32_t b : free_) {
    if (nodes_[b].holders != 0 || nodes_[b].serial != kNoSerial) return broken("block ", b, " is not free");
  }
  return absl::OkStatus();
}

}  // namespace phalanx
