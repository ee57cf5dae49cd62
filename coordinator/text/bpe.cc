#include "coordinator/text/bpe.h"

#include <algorithm>

namespace phalanx {
namespace {

// Heap order: the earliest merge first, of equal ones the leftmost.
bool After(const BytePairEncoder::Scratch::Candidate& a, const BytePairEncoder::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
}

}  // namespace

bool BytePairEncoder::AddMerge(int32_t left, int32_t right, int32_t merged) {
  return merges_.try_emplace(Key(left, right), Merge{static_cast<int32_t>(merges_.size()), merged}).second;
}

// Puts the pair that begins at symbol `at` on the heap if it can merge.
void BytePairEncoder::Consider(int32_t at, Scratch& scratch) const {
  if (at < 0 || scratch.symbols[at].next < 0) return;
  const int32_t left = scratch.symbols[at].id;
  const int32_t right = scratch.symbols[scratch.symbols[at].next].id;
  const auto it = merges_.find(Key(left, right));
  if (it != merges_.end()) scratch.heap.push_back({it->second.rank, at, left, right});
}

void BytePairEncoder::Encode(std::string_view word, Scratch& scratch, std::vector<int32_t>* ids) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  std::vector<Scratch::Candidate>& heap = scratch.heap;
  symbols.clear();
  heap.clear();
  for (const char c : word) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    if (id == kNoToken) continue;
    const auto at = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, at - 1, at + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  for (size_t i = 0; i < symbols.size(); ++i) Consider(static_cast<int32_t>(i), scratch);
  std::make_heap(heap.begin(), heap.end(), After);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), After);
    const Scratch::Candidate candidate = heap.back();
    heap.pop_back();
    Scratch::Symbol& left = symbols[candidate.at];
    if (left.id != candidate.left || left.next < 0 || symbols[left.next].id != candidate.right) continue;
    Scratch::Symbol& right = symbols[left.next];
    left.id = merges_.find(Key(candidate.left, candidate.right))->second.merged;
    right.id = kNoToken;  // gone: candidates that begin here are stale
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = candidate.at;
    for (const int32_t at : {left.previous, candidate.at}) {
      const size_t before = heap.size();
      Consider(at, scratch);
      if (heap.size() > before) std::push_heap(heap.begin(), heap.end(), After);
    }
  }
  for (int32_t at = 0; at >= 0; at = symbols[at].next) ids->push_back(symbols[at].id);
}

}  // namespace phalanx
