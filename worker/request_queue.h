// Who waits, and whose turn it is. Pure.
//
// The lowest `priority` value first, strictly: while such requests keep coming, others wait. Within one
// priority: who was preempted, the oldest first; then sources in turn, one request each; within a source
// tenants (values of cache_salt) in turn; within a tenant in order of arrival. So a flood from one source or
// tenant delays another's next request by one of its own.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "worker/sequence.h"

namespace phalanx {

class RequestQueue {
 public:
  void Push(Sequence* s);     // never admitted
  void PutBack(Sequence* s);  // preempted
  void Remove(Sequence* s);   // wherever it waits
  // Whose turn it is; null when nobody waits. It stays so until that one is removed.
  Sequence* Next() const;
  // `s`, which may wait here, was admitted: the next turn is another's.
  void Served(const Sequence& s);

  bool empty() const { return levels_.empty(); }
  int num_new() const { return num_new_; }              // never admitted
  int num_preempted() const { return num_preempted_; }  // others
  absl::Status CheckInvariants() const;

 private:
  using Line = std::deque<Sequence*>;
  struct Source {
    std::map<std::string, Line> tenants;  // none is empty
    std::string last_tenant;              // served last
  };
  struct Level {
    Line preempted;                      // by arrival
    std::map<uint64_t, Source> sources;  // none is empty
    bool empty() const { return preempted.empty() && sources.empty(); }
  };
  std::map<int32_t, Level> levels_;  // by priority; none is empty
  uint64_t last_source_ = 0;         // served last
  int num_new_ = 0, num_preempted_ = 0;
};

}  // namespace phalanx
