#include "worker/step_plan.h"

#include <algorithm>

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

template <typename... Parts>
absl::Status Diverged(const StepPlan& plan, const Parts&... parts) {
  return absl::InternalError(
      absl::StrCat("step ", plan.step, " does not fit this rank's block tables: ", parts...));
}

}  // namespace

int64_t StepPlan::num_tokens() const {
  int64_t n = 0;
  for (const PlanRow& row : rows) n += static_cast<int64_t>(row.tokens.size());
  return n;
}

int64_t StepPlan::num_logits() const {
  int64_t n = 0;
  for (const PlanRow& row : rows) n += static_cast<int64_t>(row.logit_offsets.size());
  return n;
}

uint64_t BlockChecksum(uint32_t sequence, uint32_t index, int32_t block) {
  return Mix(Mix((uint64_t{sequence} << 32) | index) ^ static_cast<uint32_t>(block));
}

BlockTables::BlockTables(int64_t num_blocks) {
  PHX_CHECK(num_blocks >= 0 && num_blocks <= INT32_MAX, absl::StrCat("num_blocks ", num_blocks));
  held_.resize(num_blocks);
}

std::vector<BlockTables::Entry>::iterator BlockTables::LowerBound(uint32_t sequence) {
  return std::lower_bound(entries_.begin(), entries_.end(), sequence,
                          [](const Entry& e, uint32_t s) { return e.sequence < s; });
}

absl::Status BlockTables::Apply(const StepPlan& plan) {
  for (uint32_t sequence : plan.released) {
    auto it = LowerBound(sequence);
    if (it == entries_.end() || it->sequence != sequence) {
      return Diverged(plan, "released names sequence ", sequence, ", which is unknown");
    }
    for (size_t i = 0; i < it->blocks.size(); ++i) {
      checksum_ -= BlockChecksum(sequence, static_cast<uint32_t>(i), it->blocks[i]);
      --held_[it->blocks[i]].tables;
    }
    entries_.erase(it);
  }
  for (const PlanBlocks& delta : plan.blocks) {
    auto it = LowerBound(delta.sequence);
    const bool known = it != entries_.end() && it->sequence == delta.sequence;
    const size_t have = known ? it->blocks.size() : 0;
    if (delta.first_index != have) {
      return Diverged(plan, "blocks of sequence ", delta.sequence, " have first_index ", delta.first_index,
                      " and its table holds ", have);
    }
    if (delta.blocks.empty()) return Diverged(plan, "blocks of sequence ", delta.sequence, " are empty");
    if (!known) it = entries_.insert(it, Entry{delta.sequence, {}});
    for (int32_t block : delta.blocks) {
      if (block < 0 || block >= static_cast<int64_t>(held_.size())) {
        return Diverged(plan, "sequence ", delta.sequence, " gets block ", block, " of ", held_.size());
      }
      const auto index = static_cast<uint32_t>(it->blocks.size());
      Held& held = held_[block];
      if (held.tables > 0 && held.index != index) {
        return Diverged(plan, "sequence ", delta.sequence, " gets block ", block, " at index ", index,
                        ", which is held already at index ", held.index);
      }
      ++held.tables;
      held.index = index;
      checksum_ += BlockChecksum(delta.sequence, index, block);
      it->blocks.push_back(block);
    }
  }
  for (const PlanRow& row : plan.rows) {
    if (Find(row.sequence) == nullptr) {
      return Diverged(plan, "a row names sequence ", row.sequence, ", which is unknown");
    }
  }
  if (checksum_ != plan.checksum) {
    return Diverged(plan, "checksum is ", absl::Hex(plan.checksum), " and the tables give ",
                    absl::Hex(checksum_));
  }
  return absl::OkStatus();
}

const std::vector<int32_t>* BlockTables::Find(uint32_t sequence) const {
  auto it = std::lower_bound(entries_.begin(), entries_.end(), sequence,
                             [](const Entry& e, uint32_t s) { return e.sequence < s; });
  return it == entries_.end() || it->sequence != sequence ? nullptr : &it->blocks;
}

}  // namespace phalanx
