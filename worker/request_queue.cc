#include "worker/request_queue.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace phalanx {
namespace {

// The one after `last`, in a circle; `map` is not empty.
template <typename Map>
auto NextInTurn(const Map& map, const typename Map::key_type& last) {
  const auto it = map.upper_bound(last);
  return it == map.end() ? map.begin() : it;
}

}  // namespace

void RequestQueue::Push(Sequence* s) {
  levels_[s->request.priority].sources[s->request.source].tenants[s->request.cache_salt].push_back(s);
  ++num_new_;
}

void RequestQueue::PutBack(Sequence* s) {
  Line& line = levels_[s->request.priority].preempted;
  line.insert(std::find_if(line.begin(), line.end(), [&](Sequence* other) { return Precedes(*s, *other); }),
              s);
  ++num_preempted_;
}

void RequestQueue::Remove(Sequence* s) {
  const auto erase = [s](Line* line) {
    const auto it = std::find(line->begin(), line->end(), s);
    PHX_CHECK(it != line->end(), absl::StrCat("request ", s->request.request, " does not wait"));
    line->erase(it);
  };
  const auto level = levels_.find(s->request.priority);
  PHX_CHECK(level != levels_.end(), absl::StrCat("request ", s->request.request, " does not wait"));
  if (s->admitted) {
    erase(&level->second.preempted);
    --num_preempted_;
  } else {
    Source& source = level->second.sources[s->request.source];
    Line& line = source.tenants[s->request.cache_salt];
    erase(&line);
    if (line.empty()) source.tenants.erase(s->request.cache_salt);
    if (source.tenants.empty()) level->second.sources.erase(s->request.source);
    --num_new_;
  }
  if (level->second.empty()) levels_.erase(level);
}

Sequence* RequestQueue::Next() const {
  if (levels_.empty()) return nullptr;
  const Level& level = levels_.begin()->second;
  if (!level.preempted.empty()) return level.preempted.front();
  const Source& source = NextInTurn(level.sources, last_source_)->second;
  return NextInTurn(source.tenants, source.last_tenant)->second.front();
}

void RequestQueue::Served(const Sequence& s) {
  last_source_ = s.request.source;
  const auto level = levels_.find(s.request.priority);
  if (level == levels_.end()) return;
  const auto source = level->second.sources.find(s.request.source);
  if (source != level->second.sources.end()) source->second.last_tenant = s.request.cache_salt;
}

absl::Status RequestQueue::CheckInvariants() const {
  int num_new = 0, num_preempted = 0;
  for (const auto& [priority, level] : levels_) {
    if (level.empty()) return absl::InternalError(absl::StrCat("priority ", priority, " is kept empty"));
    const auto check = [&, p = priority](const Line& line, bool admitted) {
      if (line.empty() && !admitted) return absl::InternalError("a queue is kept empty");
      for (const Sequence* s : line) {
        if (s->request.priority != p || s->admitted != admitted || s->id != 0) {
          return absl::InternalError(absl::StrCat("request ", s->request.request, " is queued wrongly"));
        }
      }
      (admitted ? num_preempted : num_new) += static_cast<int>(line.size());
      return absl::OkStatus();
    };
    absl::Status status = check(level.preempted, true);
    if (!std::is_sorted(level.preempted.begin(), level.preempted.end(),
                        [](const Sequence* a, const Sequence* b) { return Precedes(*a, *b); })) {
      return absl::InternalError("preempted requests are not by arrival");
    }
    for (const auto& [id, source] : level.sources) {
      for (const auto& [salt, line] : source.tenants) status.Update(check(line, false));
    }
    if (!status.ok()) return status;
  }
  if (num_new != num_new_ || num_preempted != num_preempted_) {
    return absl::InternalError(absl::StrCat(num_new, " new and ", num_preempted,
                                            " preempted requests wait, counted as ", num_new_, " and ",
                                            num_preempted_));
  }
  return absl::OkStatus();
}

}  // namespace phalanx
