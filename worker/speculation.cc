#include "worker/speculation.h"

#include <algorithm>

namespace phalanx {
namespace {

constexpr int64_t kShortest = 2, kLongest = 4;  // matches
constexpr int64_t kWindow = 16384;              // tokens looked through, from the end
constexpr int64_t kMostGuesses = 64;

}  // namespace

void GuessNext(const std::vector<int32_t>& prompt, const std::vector<int32_t>& generated, int64_t most,
               std::vector<int32_t>* out) {
  out->clear();
  const auto num_prompt = static_cast<int64_t>(prompt.size());
  const int64_t size = num_prompt + static_cast<int64_t>(generated.size());
  const auto at = [&](int64_t i) { return i < num_prompt ? prompt[i] : generated[i - num_prompt]; };
  if (size <= kShortest || most <= 0) return;
  const int32_t last = at(size - 1);
  int64_t best = 0, best_end = 0;
  for (int64_t end = size - 2; end >= std::max<int64_t>(kShortest - 1, size - kWindow); --end) {
    if (at(end) != last) continue;
    int64_t length = 1;
    while (length < kLongest && length <= end && at(end - length) == at(size - 1 - length)) ++length;
    if (length <= best) continue;
    best = length;
    best_end = end;
    if (best == kLongest) break;
  }
  if (best < kShortest) return;
  // Past the end of what is known a repetition repeats itself.
  const int64_t period = size - 1 - best_end;
  for (int64_t i = 0; i < most; ++i) out->push_back(at(best_end + 1 + i % period));
}

void GuessRecord::Verified(int64_t drafted, int64_t accepted) {
  score_ = 0.7 * score_ + 0.3 * static_cast<double>(accepted) / static_cast<double>(drafted);
  length_ = accepted == drafted ? std::min(2 * drafted, kMostGuesses) : accepted + 1;
}

}  // namespace phalanx
