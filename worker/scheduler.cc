#include "worker/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "worker/scheduler_checks.h"
#include "worker/scheduler_impl.h"

namespace phalanx {

// ---- Admission ----

int64_t Scheduler::Impl::Outlook(const Sequence& s) const {
  const auto held = static_cast<int64_t>(s.blocks.size());
  return std::max<int64_t>(std::min(BlocksOf(s), std::max(held, BlocksFor(s.prefill)) + 1) - held, 0);
}

bool Scheduler::Impl::Fits(const Sequence& s) {
  if (static_cast<int>(running.size()) >= options.max_sequences) return false;
  int64_t left = kv.num_free() - Outlook(s);
  for (const Sequence* other : running) left -= Outlook(*other);
  if (left >= 0) return true;
  // Cached blocks that others hold are not taken from the free ones.
  bool unready;
  LookUp(s, &unready);
  left += std::count_if(hits.begin(), hits.end(), [this](int32_t block) { return kv.holders(block) > 0; });
  return left >= 0;
}

bool Scheduler::Impl::MakeRoom(const Sequence& s) {
  const auto first = std::find_if(running.begin(), running.end(), [&](const Sequence* other) {
    return other->request.priority > s.request.priority;
  });
  if (first == running.end()) return false;
  std::vector<bool> kept(kv.num_blocks());
  int64_t left = kv.num_blocks() - Outlook(s);
  for (auto it = running.begin(); it != first; ++it) {
    left -= Outlook(**it);
    for (const int32_t block : (*it)->blocks) {
      if (!kept[block]) --left;
      kept[block] = true;
    }
  }
  if (left < 0) return false;
  while (!Fits(s)) Preempt(running.back());
  return true;
}

void Scheduler::Impl::Admit(Sequence* s) {
  do ++last_id;  // an id comes back after 2^32 sequences; 0 means none
  while (last_id == 0 || running_by_id.count(last_id) > 0);
  s->id = last_id;
  s->admitted = true;
  s->sampling.emplace(s->request, options.vocab_size, thinking_tokens ? &*thinking_tokens : nullptr);
  running.insert(std::find_if(running.begin(), running.end(),
                              [s](const Sequence* other) { return Precedes(*s, *other); }),
                 s);
  running_by_id[s->id] = s;
}

void Scheduler::Impl::AdmitQueued() {
  while (Sequence* s = queue.Next()) {
    if (!Fits(*s) && !MakeRoom(*s)) return;
    queue.Served(*s);
    queue.Remove(s);
    if (!s->admitted) admitted.push_back({s->request.source, s->request.request, s->request.attempt});
    Admit(s);
  }
}

void Scheduler::Impl::StopRunning(Sequence* s) {
  kv.Release(s->blocks);
  running_by_id.erase(s->id);
  running.erase(std::find(running.begin(), running.end(), s));
  if (s->announced == 0) return;
  s->blocks.resize(s->announced);
  released.push_back({s->id, 0, std::move(s->blocks)});
}

void Scheduler::Impl::Preempt(Sequence* s) {
  ++counters.preemptions;
  StopRunning(s);
  s->Restart();
  queue.PutBack(s);
}

void Scheduler::Impl::Forget(Sequences::iterator it) {
  Sequence* s = it->second.get();
  if (s->id == 0) {
    queue.Remove(s);
  } else {
    StopRunning(s);
  }
  const auto mine = [&](const Admitted& a) { return SequenceKey{a.source, a.request} == s->key(); };
  admitted.erase(std::remove_if(admitted.begin(), admitted.end(), mine), admitted.end());
  sequences.erase(it);
}

// ---- The interface ----

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
  s->arrival = ++im.last_arrival;
  s->domain = {s->request.rope_mode, s->request.cache_salt};
  s->prefill = s->num_known();
  s->limit = std::min<int64_t>(s->request.max_tokens, im.options.context_length - s->num_prompt());
  if (s->num_generated() > 0) s->prompt_logits_from = s->num_prompt();
  if (im.BlocksOf(*s) > im.options.num_blocks) {
    // Not ResourceExhausted: clients try again after that.
    return absl::FailedPreconditionError(
        absl::StrCat("request ", s->request.request, " needs ", im.BlocksOf(*s), " KV blocks for ",
                     s->num_prompt(), " prompt tokens and ", s->limit, " generated ones, and the group has ",
                     im.options.num_blocks, " in all; ask for fewer tokens"));
  }
  if (im.queue.empty() && im.Fits(*s)) {
    im.queue.Served(*s);
    im.Admit(s);
    im.sequences[s->key()] = std::move(sequence);
    return Admission::kAccepted;
  }
  if (im.queue.num_new() >= im.options.max_queued) {
    return absl::ResourceExhaustedError(absl::StrCat("request ", s->request.request,
                                                     ": the queue is full with ", im.queue.num_new(),
                                                     " requests; try again later"));
  }
  im.queue.Push(s);
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
  SchedulerLoad load = impl_->counters;
  load.blocks_used = impl_->kv.num_used();
  load.blocks_cached = impl_->kv.num_cached();
  load.running = static_cast<int>(impl_->running.size());
  load.queued = impl_->queue.num_new() + impl_->queue.num_preempted();
  return load;
}

bool Scheduler::idle() const {
  return impl_->running.empty() && impl_->queue.empty() && impl_->pending.empty();
}

absl::Status Scheduler::CheckInvariants() const { return impl_->CheckInvariants(); }

}  // namespace phalanx
