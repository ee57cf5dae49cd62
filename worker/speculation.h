// Guessing a sequence's next tokens from its own text (prompt look-up), and when that pays. Pure.
//
// A guess changes no output: it rides in its sequence's decode row, is sampled at every position as it would
// be without, and counts while it equals what is sampled. What it costs is rows of a step and that the next
// step cannot be planned ahead.
#pragma once

#include <cstdint>
#include <vector>

namespace phalanx {

// What followed the last time that the last tokens (4 at most, 2 at least) of `prompt` and `generated` were
// there: the longest match counts, of equal ones the latest. At most `most` tokens, which replace *out.
void GuessNext(const std::vector<int32_t>& prompt, const std::vector<int32_t>& generated, int64_t most,
               std::vector<int32_t>* out);

// How good guesses were in one sequence.
class GuessRecord {
 public:
  // A guess costs less than half of what a right one saves, as long as a step is bound by the weights' way
  // from memory; so it pays while half of them are right.
  bool pays() const { return score_ >= 0.5; }
  int64_t length() const { return length_; }  // how many to guess

  // `drafted` > 0 guesses were verified, the first `accepted` were right.
  void Verified(int64_t drafted, int64_t accepted);
  // A guess that was not run would have been right or not.
  void Observed(bool right) { score_ = 0.9 * score_ + (right ? 0.1 : 0); }

 private:
  double score_ = 0.6;  // moving average of the share that is right
  int64_t length_ = 3;
};

}  // namespace phalanx
