// Planning steps and committing their results.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "worker/scheduler_impl.h"

namespace phalanx {
namespace {

uint64_t ChecksumOf(const PlanBlocks& table) {
  uint64_t sum = 0;
  for (size_t i = 0; i < table.blocks.size(); ++i) {
    sum += BlockChecksum(table.sequence, table.first_index + static_cast<uint32_t>(i), table.blocks[i]);
  }
  return sum;
}

absl::Status ErrorOf(const Sequence& s, const PendingRow& row, size_t logit, const StepResult& result) {
  // Behind a first guess the row may not be what the sequence says.
  const int count = row.num_prompt_logits + std::min(row.num_samples, 1);
  for (int i = 0; i < count; ++i) {
    if (result.ids[logit + i] >= 0) continue;
    const bool sampled = i == row.num_prompt_logits;
    const int64_t position = sampled ? row.first_position + row.num_tokens - row.num_samples + 1
                                     : row.first_prompt_logit + 1 + static_cast<int64_t>(i);
    return absl::InternalError(absl::StrCat(
        "request ", s.request.request, ": the logits for position ", position,
        " hold a NaN or +inf, or nothing above -inf",
        sampled && row.bans ? ", or min_tokens and the thinking budget leave no token of them" : ""));
  }
  return absl::OkStatus();
}

}  // namespace

// ---- The prefix cache ----

void Scheduler::Impl::LookUp(const Sequence& s, bool* unready) {
  hits.clear();
  *unready = false;
  // The last known position must run, to sample; and those whose log-probabilities are to be said.
  int64_t most = s.prefill - 1;
  if (s.wants_prompt_logits(s.prompt_logits_from)) most = std::min(most, s.prompt_logits_from);
  CachePlace place;
  for (int64_t end = options.block_size; end <= most; end += options.block_size) {
    block_tokens.clear();
    for (int64_t p = end - options.block_size; p < end; ++p) block_tokens.push_back(s.known_token(p));
    const int32_t block = kv.Find(s.domain, place, block_tokens.data());
    if (block < 0) return;
    if (kv.StepOf(block) > step) {
      *unready = true;
      return;
    }
    hits.push_back(block);
    place = kv.PlaceOf(block);
  }
}

bool Scheduler::Impl::Begin(Sequence* s) {
  if (s->looked_up) return true;
  bool unready;
  LookUp(*s, &unready);
  if (unready) return false;
  s->looked_up = true;
  for (const int32_t block : hits) kv.Share(block);
  s->blocks = hits;
  s->planned = static_cast<int64_t>(hits.size()) * options.block_size;
  s->num_published = static_cast<int64_t>(hits.size());
  if (!hits.empty()) s->published = kv.PlaceOf(hits.back());
  if (!s->began) {
    s->began = true;
    s->cached_prompt_tokens = static_cast<int32_t>(std::min(s->planned, s->num_prompt()));
    counters.prefix_query_tokens += static_cast<uint64_t>(s->prefill);
    counters.prefix_hit_tokens += static_cast<uint64_t>(s->planned);
  }
  return true;
}

void Scheduler::Impl::Publish(Sequence* s, int64_t end, uint64_t written_by) {
  const int64_t full = end / options.block_size;
  if (full <= s->num_published) return;
  // An equal block of another sequence was taken for one of its own, and is evicted.
  if (!kv.IsAlive(s->published)) {
    s->num_published = 0;
    s->published = {};
  }
  for (; s->num_published < full; ++s->num_published) {
    const int64_t first = s->num_published * options.block_size;
    block_tokens.clear();
    for (int64_t i = 0; i < options.block_size; ++i) block_tokens.push_back(s->known_token(first + i));
    s->published =
        kv.Publish(s->domain, s->published, block_tokens.data(), s->blocks[s->num_published], written_by);
  }
}

// ---- Planning ----

int64_t Scheduler::Impl::TakeBlocks(Sequence* s, int64_t end) {
  const int64_t needed = BlocksFor(end);
  while (static_cast<int64_t>(s->blocks.size()) < needed) {
    if (const int32_t block = kv.Take(); block >= 0) {
      s->blocks.push_back(block);
      continue;
    }
    // Those after `s` have no row in the plan being made.
    const auto frees = [this](const Sequence* other) {
      return std::any_of(other->blocks.begin(), other->blocks.end(),
                         [this](int32_t block) { return kv.holders(block) == 1; });
    };
    auto victim = running.rbegin();
    while (*victim != s && !frees(*victim)) ++victim;
    if (*victim == s) break;  // it waits, and keeps what it has
    Preempt(*victim);
  }
  return std::min(end, static_cast<int64_t>(s->blocks.size()) * options.block_size);
}

// How many of the next prompt positions fit into what is left of a step, and their logits rows.
int64_t Scheduler::Impl::ChunkOf(const Sequence& s, int64_t tokens_left, int64_t logits_left,
                                 int64_t* logits) const {
  int64_t n = 0;
  *logits = 0;
  for (int64_t p = s.planned; p < s.prefill && n < tokens_left; ++p, ++n) {
    if (!s.wants_prompt_logits(p) && !s.samples(p)) continue;
    if (*logits == logits_left) break;
    ++*logits;
  }
  return n;
}

int32_t Scheduler::Impl::TokenAt(const Sequence& s, int64_t position, uint64_t this_step) const {
  if (position < s.num_known()) return s.known_token(position);
  if (s.guesses_run) return s.guesses[position - s.num_known()];
  PHX_CHECK(position == s.num_known() && s.sampled_step + 1 == this_step,
            absl::StrCat("sequence ", s.id, " has no token at position ", position));
  return -1 - s.sampled_logit;
}

void Scheduler::Impl::AddRow(Sequence* s, int64_t count, PlannedStep* out, PendingStep* record) {
  PlanRow row;
  row.sequence = s->id;
  row.first_position = static_cast<int32_t>(s->planned);
  row.rope_mode = s->request.rope_mode;
  row.tokens.reserve(count);
  PendingRow pending_row{s->id, s->planned, count};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = s->planned + i;
    row.tokens.push_back(TokenAt(*s, position, out->plan.step));
    const bool prompt_logits = s->wants_prompt_logits(position);
    if (!prompt_logits && !s->samples(position)) continue;
    SampleRow sample = s->request.sampling;
    sample.position = static_cast<uint64_t>(position + 1);
    sample.target = prompt_logits ? s->request.prompt[position + 1] : -1;
    sample.num_top = prompt_logits ? s->request.prompt_logprobs : s->request.logprobs;
    if (prompt_logits) {
      if (pending_row.num_prompt_logits++ == 0) pending_row.first_prompt_logit = position;
    } else {
      ++pending_row.num_samples;
      s->sampling->Fill(position + 1 - s->num_prompt(), s->request.generated, &sample);
      pending_row.bans = sample.banned[0] != nullptr || sample.banned[1] != nullptr;
      ++s->in_flight;
      s->sampled_step = out->plan.step;
      s->sampled_logit = static_cast<int32_t>(out->samples.size());
    }
    row.logit_offsets.push_back(static_cast<int32_t>(i));
    out->samples.push_back(sample);
  }
  s->planned += count;
  out->plan.rows.push_back(std::move(row));
  record->rows.push_back(pending_row);
}

void Scheduler::Impl::Announce(StepPlan* plan) {
  for (const PlanBlocks& gone : released) {
    checksum -= ChecksumOf(gone);
    plan->released.push_back(gone.sequence);
  }
  released.clear();
  for (Sequence* s : running) {
    if (s->announced == s->blocks.size()) continue;
    const auto first = static_cast<std::ptrdiff_t>(s->announced);
    plan->blocks.push_back(
        {s->id, static_cast<uint32_t>(s->announced), {s->blocks.begin() + first, s->blocks.end()}});
    checksum += ChecksumOf(plan->blocks.back());
    s->announced = s->blocks.size();
  }
  plan->checksum = checksum;
}

bool Scheduler::Impl::Guess(int64_t tokens_left, int64_t logits_left) {
  if (options.max_guesses == 0 || !prefilling.empty() ||
      static_cast<int>(decoding.size()) > options.max_guessing) {
    return true;
  }
  bool wait = false;
  for (Decision& d : decoding) {
    Sequence* s = d.sequence;
    if (!s->may_guess()) continue;
    const int64_t most = std::min<int64_t>({options.max_guesses, s->guess_record.length(), tokens_left,
                                            logits_left, s->limit - s->num_generated() - s->in_flight - 1});
    // Without a guess at work, the next token is guessed only to see whether it would have been right.
    const bool ahead = s->in_flight > 0;
    GuessNext(s->request.prompt, s->request.generated, ahead || !s->guess_record.pays() ? 1 : most,
              &s->guesses);
    if (s->guesses.empty() || !s->guess_record.pays() || most <= 0) continue;
    if (ahead) {
      wait = true;
      continue;
    }
    // Guesses preempt nobody.
    const int64_t end = s->planned + 1 + static_cast<int64_t>(s->guesses.size());
    while (BlocksFor(end) > static_cast<int64_t>(s->blocks.size()) && kv.num_free() > 0) {
      s->blocks.push_back(kv.Take());
    }
    const int64_t room = static_cast<int64_t>(s->blocks.size()) * options.block_size - s->planned - 1;
    if (room <= 0) continue;
    if (room < static_cast<int64_t>(s->guesses.size())) s->guesses.resize(room);
    s->guesses_run = true;
    const auto count = static_cast<int64_t>(s->guesses.size());
    d.count += count;
    tokens_left -= count;
    logits_left -= count;
    counters.drafted_tokens += static_cast<uint64_t>(count);
  }
  return !wait;
}

std::optional<PlannedStep> Scheduler::Impl::Plan() {
  PHX_CHECK(pending.size() <= 1, absl::StrCat(pending.size(), " steps are uncommitted"));
  const bool guesses_run =
      std::any_of(running.begin(), running.end(), [](const Sequence* s) { return s->guesses_run; });
  if (guesses_run) return std::nullopt;
  AdmitQueued();
  const auto decodes = [](const Sequence& s) { return s.planned >= s.prefill; };
  const auto wants_token = [](const Sequence& s) { return s.num_generated() + s.in_flight < s.limit; };

  // Who runs is decided in the order of Precedes, so that no block is taken from one who has a row already.
  decoding.clear();
  prefilling.clear();
  int64_t tokens_left = options.max_tokens_per_step;
  int64_t logits_left = options.max_logits_per_step;
  for (const Sequence* s : running) {
    if (!decodes(*s) || !wants_token(*s)) continue;
    --tokens_left;
    --logits_left;
  }
  for (size_t i = 0; i < running.size(); ++i) {
    Sequence* s = running[i];
    if (decodes(*s)) {
      if (wants_token(*s) && TakeBlocks(s, s->planned + 1) > s->planned) decoding.push_back({s, 1});
      continue;
    }
    if (tokens_left == 0 || !Begin(s)) continue;
    int64_t logits;
    int64_t count = ChunkOf(*s, tokens_left, logits_left, &logits);
    if (count == 0) continue;
    const int64_t room = TakeBlocks(s, s->planned + count) - s->planned;
    if (room < count) count = ChunkOf(*s, room, logits_left, &logits);
    if (count == 0) continue;
    tokens_left -= count;
    logits_left -= logits;
    Publish(s, s->planned + count, step + 1);
    prefilling.push_back({s, count});
  }
  if (decoding.empty() && prefilling.empty()) return std::nullopt;
  if (!Guess(tokens_left, logits_left)) return std::nullopt;

  PlannedStep out;
  out.plan.step = ++step;
  PendingStep record;
  for (const Decision& d : decoding) AddRow(d.sequence, d.count, &out, &record);
  for (const Decision& d : prefilling) AddRow(d.sequence, d.count, &out, &record);
  Announce(&out.plan);
  record.num_logits = static_cast<int64_t>(out.samples.size());
  pending.push_back(std::move(record));
  return out;
}

// ---- Results ----

std::vector<SequenceOutput> Scheduler::Impl::Commit(const StepResult& result) {
  PHX_CHECK(!pending.empty(), "no step is uncommitted");
  const PendingStep record = std::move(pending.front());
  pending.pop_front();
  PHX_CHECK(static_cast<int64_t>(result.ids.size()) == record.num_logits,
            absl::StrCat(result.ids.size(), " results for ", record.num_logits, " logits rows"));
  std::vector<SequenceOutput> outputs;
  size_t next_logit = 0;
  for (const PendingRow& row : record.rows) {
    const size_t logit = next_logit;
    next_logit += row.num_prompt_logits + row.num_samples;
    auto it = running_by_id.find(row.sequence);
    if (it == running_by_id.end()) continue;
    Sequence* s = it->second;
    SequenceOutput out = OutputOf(s, row, logit, result);
    if (out.error.ok()) {
      Publish(s, std::min(s->planned, s->num_known()), step);
    } else {
      // What led to a NaN is not handed on.
      for (const int32_t block : s->blocks) kv.Unpublish(block);
    }
    const bool over = out.finish != Finish::kNone || !out.error.ok();
    if (over) out.request_id = s->request.request_id;
    if (over || !out.tokens.empty() || !out.prompt_logprobs.empty()) outputs.push_back(std::move(out));
    if (over) Forget(sequences.find(s->key()));
  }
  return outputs;
}

void Scheduler::Impl::TakeTokens(Sequence* s, const PendingRow& row, size_t logit, const StepResult& result,
                                 SequenceOutput* out) {
  if (!s->guesses.empty() && !s->guesses_run) {
    s->guess_record.Observed(s->guesses[0] == result.ids[logit]);
    s->guesses.clear();
  }
  s->in_flight -= row.num_samples;
  const int num_guesses = row.num_samples - 1;
  int accepted = 0;
  for (int i = 0; i < row.num_samples; ++i) {
    const int32_t id = result.ids[logit + i];
    if (id < 0) break;  // its own row will say so
    out->tokens.push_back(id);
    if (s->request.logprobs >= 0) out->logprobs.push_back(result.logprobs[logit + i]);
    s->request.generated.push_back(id);
    s->sampling->Commit(id);
    if (s->num_generated() > s->request.min_tokens &&
        std::binary_search(s->request.stop_ids.begin(), s->request.stop_ids.end(), id)) {
      out->finish = Finish::kStop;
      out->stop_id = id;
    }
    const bool right = i < num_guesses && s->guesses[i] == id;
    accepted += right ? 1 : 0;
    if (!right || out->finish != Finish::kNone) break;
  }
  if (!s->guesses_run) return;
  s->guess_record.Verified(num_guesses, accepted);
  counters.accepted_tokens += static_cast<uint64_t>(accepted);
  s->guesses.clear();
  s->guesses_run = false;
  s->planned = s->num_known() - 1;  // from there on it is written anew
}

SequenceOutput Scheduler::Impl::OutputOf(Sequence* s, const PendingRow& row, size_t logit,
                                         const StepResult& result) {
  SequenceOutput out;
  out.source = s->request.source;
  out.request = s->request.request;
  out.attempt = s->request.attempt;
  out.offset = static_cast<int32_t>(s->num_generated());
  out.cached_prompt_tokens = s->cached_prompt_tokens;
  out.error = ErrorOf(*s, row, logit, result);
  if (!out.error.ok()) return out;
  if (row.num_prompt_logits > 0) {
    out.prompt_first_position = static_cast<int32_t>(row.first_prompt_logit + 1);
    const auto first = result.logprobs.begin() + static_cast<int64_t>(logit);
    out.prompt_logprobs.assign(first, first + row.num_prompt_logits);
    logit += row.num_prompt_logits;
    s->prompt_logits_from = row.first_prompt_logit + row.num_prompt_logits;
  }
  if (row.num_samples > 0) TakeTokens(s, row, logit, result, &out);
  const bool prefilled = row.first_position + row.num_tokens >= s->prefill;
  if (out.finish == Finish::kNone && prefilled && s->num_generated() >= s->limit)
    out.finish = Finish::kLength;
  return out;
}

}  // namespace phalanx
