#include "coordinator/text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <utility>

#include "absl/hash/hash.h"
#include "base/strings.h"

namespace phalanx {
namespace {

// Up to here, looking at all pairs for each merge is faster than a heap.
constexpr size_t kShortWord = 64;
constexpr size_t kCachedWordBytes = 64;
constexpr size_t kMaxCached = 1 << 13;
constexpr size_t kMaxCachedText = 1 << 18;

}  // namespace

BytePairEncoder::Scratch::Scratch(size_t text_bytes) {
  // About a word in thirty bytes of text is no token.
  const size_t words = std::min(kMaxCached, std::bit_floor(text_bytes / 32 + 1));
  if (words >= 16) cache.resize(words);
}

void BytePairEncoder::AddWord(std::string bytes, int32_t id) {
  if (bytes.empty()) return;
  if (bytes.size() == 1) byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
  longest_word_ = std::max(longest_word_, bytes.size());
  id_end_ = std::max(id_end_, id + 1);
  words_.emplace(std::move(bytes), id);
}

bool BytePairEncoder::AddMerge(int32_t left, int32_t right, int32_t merged) {
  const bool fresh = merges_.try_emplace(Key(left, right), Merge{num_merges_, merged}).second;
  if (fresh) ++num_merges_;
  return fresh;
}

void BytePairEncoder::AddOrReplaceMerge(int32_t left, int32_t right, int32_t merged) {
  merges_.insert_or_assign(Key(left, right), Merge{num_merges_++, merged});
}

void BytePairEncoder::Finish() {
  complete_ = true;
  byte_merges_.assign(256 * 256, Merge{});
  for (size_t l = 0; l < 256; ++l) {
    if (byte_ids_[l] == kNoToken) complete_ = false;
    for (size_t r = 0; r < 256; ++r) byte_merges_[l << 8 | r] = Find(byte_ids_[l], byte_ids_[r]);
  }
  known_ = std::make_unique<std::atomic<uint8_t>[]>(static_cast<size_t>(id_end_));
}

BytePairEncoder::Merge BytePairEncoder::Find(int32_t left, int32_t right) const {
  const auto it = merges_.find(Key(left, right));
  return it == merges_.end() ? Merge{} : it->second;
}

void BytePairEncoder::Encode(std::string_view word, Scratch& scratch, std::vector<int32_t>* ids) const {
  if (word.size() <= longest_word_) {
    if (const auto it = words_.find(ToAbsl(word)); it != words_.end()) {
      const int32_t id = it->second;
      std::atomic<uint8_t>& known = known_[static_cast<size_t>(id)];
      if (ignore_merges_ || known.load(std::memory_order_relaxed) == kYes) {
        ids->push_back(id);
        return;
      }
      if (known.load(std::memory_order_relaxed) == kUnasked) {
        const size_t before = ids->size();
        MergeAll(word, scratch, ids);
        // Every thread finds the same.
        known.store(ids->size() == before + 1 && ids->back() == id ? kYes : kNo, std::memory_order_relaxed);
        return;
      }
    }
  }
  if (scratch.cache.empty() || word.size() > kCachedWordBytes) {
    MergeAll(word, scratch, ids);
    return;
  }
  const uint64_t hash = absl::Hash<std::string_view>{}(word);
  Scratch::Cached& cached = scratch.cache[hash & (scratch.cache.size() - 1)];
  if (cached.hash == hash && cached.word_bytes == word.size() &&
      std::memcmp(scratch.text.data() + cached.word, word.data(), word.size()) == 0) {
    const auto first = scratch.ids.begin() + cached.first;
    ids->insert(ids->end(), first, first + cached.count);
    return;
  }
  const size_t before = ids->size();
  MergeAll(word, scratch, ids);
  if (scratch.text.size() + word.size() > kMaxCachedText) {
    scratch.text.clear();
    scratch.ids.clear();
    std::fill(scratch.cache.begin(), scratch.cache.end(), Scratch::Cached{});
  }
  cached = {hash, static_cast<uint32_t>(scratch.text.size()), static_cast<uint32_t>(word.size()),
            static_cast<uint32_t>(scratch.ids.size()), static_cast<uint32_t>(ids->size() - before)};
  scratch.text += word;
  scratch.ids.insert(scratch.ids.end(), ids->begin() + static_cast<ptrdiff_t>(before), ids->end());
}

// The word's bytes as tokens, before any merge. In the order of Hugging Face's BPE: what stands for an
// unknown byte waits for the next byte that has a token of its own, so fallback tokens go before it.
void BytePairEncoder::Start(std::string_view word, std::vector<int32_t>* symbols) const {
  bool waiting = false;
  for (const char c : word) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte_ids_[byte] != kNoToken) {
      if (waiting) symbols->push_back(unknown_);
      waiting = false;
      symbols->push_back(byte_ids_[byte]);
    } else if (!fallback_[byte].empty()) {
      symbols->insert(symbols->end(), fallback_[byte].begin(), fallback_[byte].end());
    } else if (unknown_ != kNoToken) {
      if (waiting && !fuse_unknown_) symbols->push_back(unknown_);
      waiting = true;
    }
  }
  if (waiting) symbols->push_back(unknown_);
}

void BytePairEncoder::MergeAll(std::string_view word, Scratch& scratch, std::vector<int32_t>* ids) const {
  if (word.size() == 1 && complete_) {
    ids->push_back(byte_ids_[static_cast<unsigned char>(word[0])]);
    return;
  }
  scratch.start.clear();
  if (!complete_) {
    Start(word, &scratch.start);
  } else {
    for (const char c : word) scratch.start.push_back(byte_ids_[static_cast<unsigned char>(c)]);
  }
  if (scratch.start.empty()) return;
  if (scratch.start.size() > kShortWord) {
    MergeLong(scratch, ids);
  } else if (complete_) {
    std::array<Merge, kShortWord> pairs;
    for (size_t i = 0; i + 1 < word.size(); ++i) {
      pairs[i] = byte_merges_[static_cast<size_t>(static_cast<unsigned char>(word[i])) << 8 |
                              static_cast<unsigned char>(word[i + 1])];
    }
    MergeShort(scratch.start, pairs.data(), ids);
  } else {
    std::array<Merge, kShortWord> pairs;
    for (size_t i = 0; i + 1 < scratch.start.size(); ++i)
      pairs[i] = Find(scratch.start[i], scratch.start[i + 1]);
    MergeShort(scratch.start, pairs.data(), ids);
  }
}

void BytePairEncoder::MergeShort(std::vector<int32_t>& symbols, Merge* pairs,
                                 std::vector<int32_t>* ids) const {
  size_t size = symbols.size();
  while (size > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < size; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == kNoMerge) break;
    symbols[best] = pairs[best].merged;
    std::copy(symbols.begin() + static_cast<ptrdiff_t>(best) + 2,
              symbols.begin() + static_cast<ptrdiff_t>(size),
              symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    std::copy(pairs + best + 1, pairs + size - 1, pairs + best);
    --size;
    if (best > 0) pairs[best - 1] = Find(symbols[best - 1], symbols[best]);
    if (best + 1 < size) pairs[best] = Find(symbols[best], symbols[best + 1]);
  }
  ids->insert(ids->end(), symbols.begin(), symbols.begin() + static_cast<ptrdiff_t>(size));
}

// Puts the pair that begins at symbol `at` on its queue if it can merge.
void BytePairEncoder::Consider(int32_t at, Scratch& scratch) const {
  if (at < 0) return;
  const Scratch::Symbol& symbol = scratch.symbols[static_cast<size_t>(at)];
  if (symbol.next < 0) return;
  const Merge merge = Find(symbol.id, scratch.symbols[static_cast<size_t>(symbol.next)].id);
  if (merge.rank != kNoMerge) scratch.Push(merge.rank, at);
}

void BytePairEncoder::Scratch::Push(int32_t rank, int32_t at) {
  const auto [it, fresh] = queue_of.try_emplace(rank, used_queues);
  if (fresh) {
    if (used_queues == queues.size()) queues.emplace_back();
    queues[used_queues++] = Queue();
  }
  Queue& queue = queues[it->second];
  if (!queue.listed) {
    queue.listed = true;
    ranks.push_back(rank);
    std::push_heap(ranks.begin(), ranks.end(), std::greater<>());
  }
  // Mostly they come in order; where not, the queue becomes a heap.
  if (!queue.is_heap && queue.head < queue.at.size() && at < queue.at.back()) {
    queue.at.erase(queue.at.begin(), queue.at.begin() + static_cast<ptrdiff_t>(queue.head));
    queue.head = 0;
    std::make_heap(queue.at.begin(), queue.at.end(), std::greater<>());
    queue.is_heap = true;
  }
  queue.at.push_back(at);
  if (queue.is_heap) std::push_heap(queue.at.begin(), queue.at.end(), std::greater<>());
}

// The leftmost pair of the earliest merge; false if there is none.
bool BytePairEncoder::Scratch::Pop(int32_t* rank, int32_t* at) {
  while (!ranks.empty()) {
    Queue& queue = queues[queue_of.find(ranks.front())->second];
    if (queue.head < queue.at.size()) {
      *rank = ranks.front();
      if (queue.is_heap) {
        *at = queue.at.front();
        std::pop_heap(queue.at.begin(), queue.at.end(), std::greater<>());
        queue.at.pop_back();
      } else {
        *at = queue.at[queue.head++];
      }
      return true;
    }
    queue = Queue();
    std::pop_heap(ranks.begin(), ranks.end(), std::greater<>());
    ranks.pop_back();
  }
  return false;
}

void BytePairEncoder::MergeLong(Scratch& scratch, std::vector<int32_t>* ids) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  symbols.clear();
  scratch.queue_of.clear();
  scratch.ranks.clear();
  scratch.used_queues = 0;
  for (const int32_t id : scratch.start) {
    const auto at = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, at - 1, at + 1});
  }
  symbols.back().next = -1;
  for (size_t i = 0; i < symbols.size(); ++i) Consider(static_cast<int32_t>(i), scratch);
  int32_t rank = 0, at = 0;
  while (scratch.Pop(&rank, &at)) {
    Scratch::Symbol& left = symbols[static_cast<size_t>(at)];
    if (left.next < 0) continue;
    Scratch::Symbol& right = symbols[static_cast<size_t>(left.next)];
    // The pair may have changed since; each rank is of one pair.
    const Merge merge = Find(left.id, right.id);
    if (merge.rank != rank) continue;
    left.id = merge.merged;
    right.id = kNoToken;  // gone: no pair begins here any more
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = at;
    Consider(left.previous, scratch);
    Consider(at, scratch);
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    ids->push_back(symbols[static_cast<size_t>(i)].id);
  }
}

}  // namespace phalanx
