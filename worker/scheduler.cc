#include "worker/scheduler.h"

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "worker/scheduler_checks.h"
#include "worker/sequence_sampling.h"

namespace phalanx {
namespace {

using Key = std::pair<uint64_t, uint64_t>;  // source, request

struct Sequence {
  SequenceRequest request;  // `generated` grows as steps are committed
  int64_t prefill = 0;      // positions known at Submit: prompt and generated
  int64_t limit = 0;        // generated tokens at the end: max_tokens cut to the context
  bool resumed = false;     // `generated` was given

  uint32_t id = 0;                           // in plans; 0 while queued
  std::optional<SequenceSampling> sampling;  // unless queued
  std::vector<int32_t> blocks;
  bool announced = false;     // `blocks` are in a plan
  int64_t planned = 0;        // positions [0, planned) are in plans
  int in_flight = 0;          // sampled tokens planned and not committed
  uint64_t sampled_step = 0;  // the last step that samples for it,
  int32_t sampled_logit = 0;  // and which logits row there

  Key key() const { return {request.source, request.request}; }
  int64_t num_prompt() const { return static_cast<int64_t>(request.prompt.size()); }
  int64_t num_generated() const { return static_cast<int64_t>(request.generated.size()); }
  int64_t num_known() const { return num_prompt() + num_generated(); }
  // The last generated token is never an input.
  int64_t num_positions() const { return num_prompt() + std::max<int64_t>(limit - 1, 0); }
};

// What a row of an uncommitted step says about its sequence.
struct PendingRow {
  uint32_t sequence = 0;
  int64_t first_position = 0;
  int64_t num_tokens = 0;
  int num_prompt_logits = 0;  // the first logits rows: prompt tokens from first_position + 1
  bool samples = false;       // then one that samples
  bool bans = false;          // and may not sample every token
};

struct PendingStep {
  int64_t num_logits = 0;
  std::vector<PendingRow> rows;
};

}  // namespace

struct Scheduler::Impl {
  explicit Impl(const SchedulerOptions& o) : options(o), kv(o.num_blocks) {
    if (o.token_bytes != nullptr) thinking_tokens.emplace(o.token_bytes);
  }

  const SchedulerOptions options;
  std::optional<ThinkingTokens> thinking_tokens;  // as options.token_bytes
  KvBlocks kv;
  std::map<Key, std::unique_ptr<Sequence>> sequences;  // all that live
  std::map<uint64_t, std::deque<Sequence*>> queues;    // by source; none is empty
  int num_queued = 0;
  uint64_t last_served = 0;        // source whose request was admitted last
  std::vector<Sequence*> running;  // in order of admission
  std::unordered_map<uint32_t, Sequence*> running_by_id;
  std::deque<PendingStep> pending;  // planned, not committed
  std::vector<Admitted> admitted;
  std::vector<PlanBlocks> released;  // for the next plan, with what they held
  uint64_t checksum = 0;             // of the tables after the last plan
  uint64_t step = 0;
  uint32_t last_id = 0;

  bool Fits(const Sequence& s) const {
    return static_cast<int>(running.size()) < options.max_sequences && BlocksOf(s) <= kv.num_free();
  }
  int64_t BlocksOf(const Sequence& s) const {
    return (s.num_positions() + options.block_size - 1) / options.block_size;
  }

  void Admit(Sequence* s) {
    do ++last_id;  // an id comes back after 2^32 sequences; 0 means none
    while (last_id == 0 || running_by_id.count(last_id) > 0);
    s->id = last_id;
    absl::StatusOr<std::vector<int32_t>> blocks = kv.Allocate(BlocksOf(*s));
    PHX_CHECK(blocks.ok(), std::string(blocks.status().message()));
    s->blocks = *std::move(blocks);
    s->sampling.emplace(s->request, options.vocab_size, thinking_tokens ? &*thinking_tokens : nullptr);
    running.push_back(s);
    running_by_id[s->id] = s;
    last_served = s->request.source;
  }

  void AdmitQueued() {
    while (!queues.empty()) {
      auto turn = queues.upper_bound(last_served);
      if (turn == queues.end()) turn = queues.begin();
      Sequence* s = turn->second.front();
      if (!Fits(*s)) return;
      turn->second.pop_front();
      if (turn->second.empty()) queues.erase(turn);
      --num_queued;
      Admit(s);
      admitted.push_back({s->request.source, s->request.request, s->request.attempt});
    }
  }

  // Rows of it in plans not committed are discarded at Commit: its id is known no more.
  void Forget(std::map<Key, std::unique_ptr<Sequence>>::iterator it) {
    Sequence* s = it->second.get();
    if (s->id == 0) {
      auto queue = queues.find(s->request.source);
      queue->second.erase(std::find(queue->second.begin(), queue->second.end(), s));
      if (queue->second.empty()) queues.erase(queue);
      --num_queued;
    } else {
      kv.Release(s->blocks);
      running_by_id.erase(s->id);
      running.erase(std::find(running.begin(), running.end(), s));
      if (s->announced) released.push_back({s->id, 0, std::move(s->blocks)});
      const auto mine = [&](const Admitted& a) { return Key{a.source, a.request} == s->key(); };
      admitted.erase(std::remove_if(admitted.begin(), admitted.end(), mine), admitted.end());
    }
    sequences.erase(it);
  }

  // ---- Planning ----

  bool WantsPromptLogits(const Sequence& s, int64_t position) const {
    return s.request.prompt_logprobs >= 0 && !s.resumed && position + 1 < s.num_prompt();
  }
  bool Samples(const Sequence& s, int64_t position) const { return position + 1 >= s.prefill && s.limit > 0; }

  // How many of the next prompt positions fit into what is left of a step.
  int64_t ChunkOf(const Sequence& s, int64_t tokens_left, int64_t logits_left) const {
    int64_t n = 0;
    for (int64_t p = s.planned; p < s.prefill && n < tokens_left; ++p, ++n) {
      if (!WantsPromptLogits(s, p) && !Samples(s, p)) continue;
      if (logits_left == 0) break;
      --logits_left;
    }
    return n;
  }

  int32_t TokenAt(const Sequence& s, int64_t position, uint64_t this_step) const {
    if (position < s.num_prompt()) return s.request.prompt[position];
    if (position < s.num_known()) return s.request.generated[position - s.num_prompt()];
    PHX_CHECK(position == s.num_known() && s.sampled_step + 1 == this_step,
              absl::StrCat("sequence ", s.id, " has no token at position ", position));
    return -1 - s.sampled_logit;
  }

  void AddRow(Sequence* s, int64_t count, PlannedStep* out, PendingStep* record) {
    PlanRow row;
    row.sequence = s->id;
    row.first_position = static_cast<int32_t>(s->planned);
    row.rope_mode = s->request.rope_mode;
    PendingRow pending_row{s->id, s->planned, count};
    for (int64_t i = 0; i < count; ++i) {
      const int64_t position = s->planned + i;
      row.tokens.push_back(TokenAt(*s, position, out->plan.step));
      const bool prompt_logits = WantsPromptLogits(*s, position);
      if (!prompt_logits && !Samples(*s, position)) continue;
      SampleRow sample = s->request.sampling;
      sample.position = static_cast<uint64_t>(position + 1);
      sample.target = prompt_logits ? s->request.prompt[position + 1] : -1;
      sample.num_top = prompt_logits ? s->request.prompt_logprobs : s->request.logprobs;
      if (prompt_logits) {
        ++pending_row.num_prompt_logits;
      } else {
        pending_row.samples = true;
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

  std::optional<PlannedStep> Plan() {
    PHX_CHECK(pending.size() <= 1, absl::StrCat(pending.size(), " steps are uncommitted"));
    AdmitQueued();
    PlannedStep out;
    out.plan.step = step + 1;
    PendingStep record;
    int64_t tokens_left = options.max_tokens_per_step;
    for (Sequence* s : running) {
      if (s->planned < s->prefill || s->num_generated() + s->in_flight >= s->limit) continue;
      AddRow(s, 1, &out, &record);
      --tokens_left;
    }
    for (Sequence* s : running) {
      if (s->planned >= s->prefill) continue;
      const int64_t logits_left = options.max_logits_per_step - static_cast<int64_t>(out.samples.size());
      const int64_t count = ChunkOf(*s, tokens_left, logits_left);
      if (count == 0) continue;
      AddRow(s, count, &out, &record);
      tokens_left -= count;
    }
    if (out.plan.rows.empty()) return std::nullopt;
    ++step;
    for (PlanBlocks& gone : released) {
      checksum -= ChecksumOf(gone);
      out.plan.released.push_back(gone.sequence);
    }
    released.clear();
    for (Sequence* s : running) {
      if (s->announced) continue;
      s->announced = true;
      out.plan.blocks.push_back({s->id, 0, s->blocks});
      checksum += ChecksumOf(out.plan.blocks.back());
    }
    out.plan.checksum = checksum;
    record.num_logits = static_cast<int64_t>(out.samples.size());
    pending.push_back(std::move(record));
    return out;
  }

  static uint64_t ChecksumOf(const PlanBlocks& table) {
    uint64_t sum = 0;
    for (size_t i = 0; i < table.blocks.size(); ++i) {
      sum += BlockChecksum(table.sequence, static_cast<uint32_t>(i), table.blocks[i]);
    }
    return sum;
  }

  // ---- Results ----

  std::vector<SequenceOutput> Commit(const StepResult& result) {
    PHX_CHECK(!pending.empty(), "no step is uncommitted");
    const PendingStep record = std::move(pending.front());
    pending.pop_front();
    PHX_CHECK(static_cast<int64_t>(result.ids.size()) == record.num_logits,
              absl::StrCat(result.ids.size(), " results for ", record.num_logits, " logits rows"));
    std::vector<SequenceOutput> outputs;
    size_t next_logit = 0;
    for (const PendingRow& row : record.rows) {
      const size_t logit = next_logit;
      next_logit += row.num_prompt_logits + (row.samples ? 1 : 0);
      auto it = running_by_id.find(row.sequence);
      if (it == running_by_id.end()) continue;
      Sequence* s = it->second;
      SequenceOutput out = OutputOf(s, row, logit, result);
      const bool over = out.finish != Finish::kNone || !out.error.ok();
      if (over || !out.tokens.empty() || !out.prompt_logprobs.empty()) outputs.push_back(std::move(out));
      if (over) Forget(sequences.find(s->key()));
    }
    return outputs;
  }

  static absl::Status ErrorOf(const Sequence& s, const PendingRow& row, size_t logit,
                              const StepResult& result) {
    const int count = row.num_prompt_logits + (row.samples ? 1 : 0);
    for (int i = 0; i < count; ++i) {
      if (result.ids[logit + i] >= 0) continue;
      const bool sampled = i == row.num_prompt_logits;
      const int64_t position =
          row.first_position + 1 + (sampled ? row.num_tokens - 1 : static_cast<int64_t>(i));
      return absl::InternalError(absl::StrCat(
          "request ", s.request.request, ": the logits for position ", position,
          " hold a NaN or +inf, or nothing above -inf",
          sampled && row.bans ? ", or min_tokens and the thinking budget leave no token of them" : ""));
    }
    return absl::OkStatus();
  }

  SequenceOutput OutputOf(Sequence* s, const PendingRow& row, size_t logit, const StepResult& result) {
    SequenceOutput out;
    out.source = s->request.source;
    out.request = s->request.request;
    out.attempt = s->request.attempt;
    out.offset = static_cast<int32_t>(s->num_generated());
    out.error = ErrorOf(*s, row, logit, result);
    if (!out.error.ok()) return out;
    if (row.num_prompt_logits > 0) {
      out.prompt_first_position = static_cast<int32_t>(row.first_position + 1);
      const auto first = result.logprobs.begin() + static_cast<int64_t>(logit);
      out.prompt_logprobs.assign(first, first + row.num_prompt_logits);
      logit += row.num_prompt_logits;
    }
    if (row.samples) {
      const int32_t id = result.ids[logit];
      out.tokens.push_back(id);
      if (s->request.logprobs >= 0) out.logprobs.push_back(result.logprobs[logit]);
      s->request.generated.push_back(id);
      s->sampling->Commit(id);
      --s->in_flight;
      if (s->num_generated() > s->request.min_tokens &&
          std::binary_search(s->request.stop_ids.begin(), s->request.stop_ids.end(), id)) {
        out.finish = Finish::kStop;
        out.stop_id = id;
      }
    }
    const bool prefilled = row.first_position + row.num_tokens >= s->prefill;
    if (out.finish == Finish::kNone && prefilled && s->num_generated() >= s->limit)
      out.finish = Finish::kLength;
    return out;
  }

  absl::Status CheckInvariants() const;
};

absl::Status Scheduler::Impl::CheckInvariants() const {
  const auto broken = [](const auto&... parts) { return absl::InternalError(absl::StrCat(parts...)); };
  std::set<int32_t> held;
  for (const Sequence* s : running) {
    for (int32_t block : s->blocks) {
      if (!held.insert(block).second)
        return broken("block ", block, " is held twice, by sequence ", s->id, " also");
    }
    if (static_cast<int64_t>(s->blocks.size()) * options.block_size < s->planned) {
      return broken("sequence ", s->id, " has ", s->blocks.size(), " blocks and ", s->planned, " positions");
    }
    if (s->num_generated() + s->in_flight > std::max<int64_t>(s->limit, 0) || s->in_flight < 0) {
      return broken("sequence ", s->id, " has ", s->num_generated(), " + ", s->in_flight, " of ", s->limit,
                    " tokens");
    }
    int64_t position = -1;
    int in_flight = 0;
    for (const PendingStep& p : pending) {
      for (const PendingRow& row : p.rows) {
        if (row.sequence != s->id) continue;
        if (position >= 0 && row.first_position != position) {
          return broken("sequence ", s->id, " has a row at ", row.first_position, " after one up to ",
                        position);
        }
        position = row.first_position + row.num_tokens;
        in_flight += row.samples ? 1 : 0;
      }
    }
    if (position >= 0 && position != s->planned) {
      return broken("sequence ", s->id, " is planned to ", s->planned, " and its rows end at ", position);
    }
    if (in_flight != s->in_flight) {
      return broken("sequence ", s->id, " counts ", s->in_flight, " sampled tokens on their way of ",
                    in_flight);
    }
    auto it = running_by_id.find(s->id);
    if (it == running_by_id.end() || it->second != s)
      return broken("sequence ", s->id, " is not in the index");
  }
  if (static_cast<int64_t>(held.size()) != kv.num_used()) {
    return broken(held.size(), " blocks are held by sequences and ", kv.num_used(), " are taken");
  }
  if (static_cast<int>(running.size()) > options.max_sequences)
    return broken(running.size(), " sequences run");
  if (running.size() != running_by_id.size())
    return broken("the index has ", running_by_id.size(), " sequences");
  size_t queued = 0;
  for (const auto& [source, queue] : queues) {
    if (queue.empty()) return broken("the queue of source ", source, " is kept empty");
    for (const Sequence* s : queue) {
      if (s->request.source != source || s->id != 0)
        return broken("request ", s->request.request, " is queued wrongly");
    }
    queued += queue.size();
  }
  if (static_cast<int>(queued) != num_queued || num_queued > options.max_queued) {
    return broken(queued, " requests are queued, counted as ", num_queued, ", at most ", options.max_queued);
  }
  if (queued + running.size() != sequences.size()) return broken(sequences.size(), " requests are known");
  if (pending.size() > 2) return broken(pending.size(), " steps are uncommitted");
  for (const PendingStep& p : pending) {
    int64_t tokens = 0;
    for (const PendingRow& row : p.rows) tokens += row.num_tokens;
    if (tokens > options.max_tokens_per_step || p.num_logits > options.max_logits_per_step) {
      return broken("a step has ", tokens, " tokens and ", p.num_logits, " logits rows");
    }
  }
  return absl::OkStatus();
}

Scheduler::Scheduler(const SchedulerOptions& options) {
  const absl::Status valid = options.Validate();
  PHX_CHECK(valid.ok(), std::string(valid.message()));
  impl_ = std::make_unique<Impl>(options);
}

Scheduler::~Scheduler() = default;

absl::StatusOr<Admission> Scheduler::Submit(SequenceRequest request) {
  Impl& im = *impl_;
  auto known = im.sequences.find({request.source, request.request});
  if (known != im.sequences.end()) {
    const uint32_t attempt = known->second->request.attempt;
    if (attempt >= request.attempt) {
      return absl::AlreadyExistsError(absl::StrCat("request ", request.request, " is here with attempt ",
                                                   attempt, "; attempt ", request.attempt, " is not later"));
    }
    im.Forget(known);
  }
  std::sort(request.stop_ids.begin(), request.stop_ids.end());
  PHX_RETURN_IF_ERROR(CheckRequest(im.options, request));
  auto sequence = std::make_unique<Sequence>();
  Sequence* s = sequence.get();
  s->request = std::move(request);
  s->prefill = s->num_known();
  s->limit = std::min<int64_t>(s->request.max_tokens, im.options.context_length - s->num_prompt());
  s->resumed = s->num_generated() > 0;
  if (im.BlocksOf(*s) > im.options.num_blocks) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "request ", s->request.request, " needs ", im.BlocksOf(*s), " KV blocks for ", s->num_prompt(),
        " prompt tokens and ", s->limit, " generated ones, and the group has ", im.options.num_blocks));
  }
  if (im.queues.empty() && im.Fits(*s)) {
    im.Admit(s);
    im.sequences[s->key()] = std::move(sequence);
    return Admission::kAccepted;
  }
  if (im.num_queued >= im.options.max_queued) {
    return absl::ResourceExhaustedError(absl::StrCat("request ", s->request.request,
                                                     ": the queue is full with ", im.num_queued,
                                                     " requests; try again later"));
  }
  im.queues[s->request.source].push_back(s);
  ++im.num_queued;
  im.sequences[s->key()] = std::move(sequence);
  return Admission::kQueued;
}

void Scheduler::Abort(uint64_t source, uint64_t request) {
  auto it = impl_->sequences.find({source, request});
  if (it != impl_->sequences.end()) impl_->Forget(it);
}

void Scheduler::AbortSource(uint64_t source) {
  auto& all = impl_->sequences;
  for (auto it = all.lower_bound({source, 0}); it != all.end() && it->first.first == source;) {
    impl_->Forget(it++);
  }
}

std::optional<PlannedStep> Scheduler::Plan() { return impl_->Plan(); }

std::vector<SequenceOutput> Scheduler::Commit(const StepResult& result) { return impl_->Commit(result); }

std::vector<Scheduler::Admitted> Scheduler::TakeAdmitted() { return std::exchange(impl_->admitted, {}); }

const SchedulerOptions& Scheduler::options() const { return impl_->options; }

SchedulerLoad Scheduler::load() const {
  return {impl_->kv.num_used(), static_cast<int>(impl_->running.size()), impl_->num_queued};
}

bool Scheduler::idle() const {
  return impl_->running.empty() && impl_->queues.empty() && impl_->pending.empty();
}

absl::Status Scheduler::CheckInvariants() const { return impl_->CheckInvariants(); }

}  // namespace phalanx
