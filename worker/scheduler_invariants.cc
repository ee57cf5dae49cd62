#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/scheduler_impl.h"

namespace phalanx {
namespace {

template <typename... Parts>
absl::Status Broken(const Parts&... parts) {
  return absl::InternalError(absl::StrCat(parts...));
}

}  // namespace

absl::Status Scheduler::Impl::CheckRunning(const Sequence& s) const {
  if (static_cast<int64_t>(s.blocks.size()) * options.block_size < s.planned ||
      s.announced > s.blocks.size()) {
    return Broken("sequence ", s.id, " has ", s.blocks.size(), " blocks, ", s.announced, " announced, and ",
                  s.planned, " positions");
  }
  if (s.num_published * options.block_size > std::min(s.planned, s.num_known())) {
    return Broken("sequence ", s.id, " has ", s.num_published, " blocks published and ", s.planned,
                  " positions");
  }
  if (s.num_generated() + s.in_flight > std::max<int64_t>(s.limit, 0) || s.in_flight < 0) {
    return Broken("sequence ", s.id, " has ", s.num_generated(), " + ", s.in_flight, " of ", s.limit,
                  " tokens");
  }
  for (size_t i = 0; i < s.blocks.size(); ++i) {
    if (kv.holders(s.blocks[i]) > 1 && static_cast<int64_t>(i + 1) * options.block_size > s.planned) {
      return Broken("sequence ", s.id, " shares block ", s.blocks[i], ", which it is still to write");
    }
  }
  int64_t position = -1;
  int in_flight = 0;
  for (const PendingStep& p : pending) {
    for (const PendingRow& row : p.rows) {
      if (row.sequence != s.id) continue;
      if (position >= 0 && row.first_position != position) {
        return Broken("sequence ", s.id, " has a row at ", row.first_position, " after one up to ", position);
      }
      position = row.first_position + row.num_tokens;
      in_flight += row.num_samples;
    }
  }
  if (position >= 0 && position != s.planned) {
    return Broken("sequence ", s.id, " is planned to ", s.planned, " and its rows end at ", position);
  }
  if (in_flight != s.in_flight) {
    return Broken("sequence ", s.id, " counts ", s.in_flight, " sampled tokens on their way of ", in_flight);
  }
  auto it = running_by_id.find(s.id);
  if (it == running_by_id.end() || it->second != &s) return Broken("sequence ", s.id, " is not in the index");
  return absl::OkStatus();
}

absl::Status Scheduler::Impl::CheckInvariants() const {
  PHX_RETURN_IF_ERROR(kv.CheckInvariants());
  PHX_RETURN_IF_ERROR(queue.CheckInvariants());
  std::vector<int32_t> holders(kv.num_blocks());
  std::vector<int64_t> index(kv.num_blocks());
  int64_t held = 0;
  for (const Sequence* s : running) {
    for (size_t i = 0; i < s->blocks.size(); ++i) {
      const int32_t block = s->blocks[i];
      if (holders[block]++ == 0) {
        ++held;
        index[block] = static_cast<int64_t>(i);
      } else if (index[block] != static_cast<int64_t>(i)) {
        return Broken("block ", block, " is held at index ", index[block], " and, by sequence ", s->id,
                      ", at ", i);
      }
    }
    PHX_RETURN_IF_ERROR(CheckRunning(*s));
  }
  for (int32_t b = 0; b < kv.num_blocks(); ++b) {
    if (holders[b] != kv.holders(b)) {
      return Broken("block ", b, " is held by ", holders[b], " sequences and counts ", kv.holders(b));
    }
  }
  if (held != kv.num_used()) {
    return Broken(held, " blocks are held by sequences and ", kv.num_used(), " are taken");
  }
  if (!std::is_sorted(running.begin(), running.end(),
                      [](const Sequence* a, const Sequence* b) { return Precedes(*a, *b); })) {
    return Broken("running sequences are out of order");
  }
  if (static_cast<int>(running.size()) > options.max_sequences)
    return Broken(running.size(), " sequences run");
  if (running.size() != running_by_id.size())
    return Broken("the index has ", running_by_id.size(), " sequences");
  const int queued = queue.num_new() + queue.num_preempted();
  if (queue.num_new() > options.max_queued) return Broken(queue.num_new(), " requests are queued");
  if (queued + running.size() != sequences.size()) return Broken(sequences.size(), " requests are known");
  if (pending.size() > 2) return Broken(pending.size(), " steps are uncommitted");
  for (const PendingStep& p : pending) {
    int64_t tokens = 0;
    for (const PendingRow& row : p.rows) tokens += row.num_tokens;
    if (tokens > options.max_tokens_per_step || p.num_logits > options.max_logits_per_step) {
      return Broken("a step has ", tokens, " tokens and ", p.num_logits, " logits rows");
    }
  }
  return absl::OkStatus();
}

}  // namespace phalanx
