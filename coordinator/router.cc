#include "coordinator/router.h"

#include <algorithm>
#include <utility>

namespace phalanx::coordinator {
namespace {

constexpr uint64_t kFnvOffset = 0xcbf29ce484222325u;
constexpr uint64_t kFnvPrime = 0x100000001b3u;

// The hash is part of what coordinators agree on: it does not depend on the build or the process.
uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t HashTokens(const std::vector<int32_t>& ids, size_t count) {
  uint64_t h = kFnvOffset;
  for (size_t i = 0; i < count; ++i) h = Mix((h ^ static_cast<uint32_t>(ids[i])) * kFnvPrime);
  return h;
}

uint64_t HashName(std::string_view s) {
  uint64_t h = kFnvOffset;
  for (const char c : s) h = (h ^ static_cast<uint8_t>(c)) * kFnvPrime;
  return h;
}

}  // namespace

void Router::AddGroup(std::string_view model, std::string_view group) {
  groups_[std::string(group)] = Group{.model = std::string(model)};
}

bool Router::RemoveGroup(std::string_view group) {
  const auto it = groups_.find(group);
  if (it == groups_.end()) return false;
  groups_.erase(it);
  return true;
}

void Router::SetReportedLoad(std::string_view group, int64_t requests) {
  if (const auto it = groups_.find(group); it != groups_.end()) it->second.reported = requests;
}

std::optional<std::string> Router::Pick(std::string_view model, const std::vector<int32_t>& prompt) {
  std::vector<std::pair<const std::string, Group>*> candidates;
  int64_t total = 0;
  for (auto& entry : groups_) {
    if (entry.second.model != model) continue;
    candidates.push_back(&entry);
    total += entry.second.load();
  }
  if (candidates.empty()) return std::nullopt;
  const auto less_busy = [](const auto* a, const auto* b) { return a->second.load() < b->second.load(); };
  auto* chosen = *std::min_element(candidates.begin(), candidates.end(), less_busy);
  if (candidates.size() > 1 && prompt.size() >= options_.min_prefix_tokens) {
    // The hash covers a power of two of tokens, so that prompts which share a beginning but differ in length
    // agree more often than not.
    size_t count = options_.min_prefix_tokens;
    while (count * 2 <= std::min(prompt.size(), options_.max_prefix_tokens)) count *= 2;
    const uint64_t key = HashTokens(prompt, count);
    const auto n = static_cast<int64_t>(candidates.size());
    const int64_t bound = ((total + 1) * options_.load_bound_percent + 100 * n - 1) / (100 * n);
    uint64_t best = 0;
    bool found = false;
    for (auto* candidate : candidates) {
      if (candidate->second.load() + 1 > bound) continue;
      const uint64_t score = Mix(key ^ Mix(HashName(candidate->first)));
      if (found && score <= best) continue;
      found = true;
      best = score;
      chosen = candidate;
    }
  }
  ++chosen->second.in_flight;
  return chosen->first;
}

void Router::Add(std::string_view group) {
  if (const auto it = groups_.find(group); it != groups_.end()) ++it->second.in_flight;
}

void Router::Done(std::string_view group) {
  if (const auto it = groups_.find(group); it != groups_.end() && it->second.in_flight > 0) {
    --it->second.in_flight;
  }
}

bool Router::Serves(std::string_view model) const {
  return std::any_of(groups_.begin(), groups_.end(),
                     [model](const auto& entry) { return entry.second.model == model; });
}

int64_t Router::in_flight(std::string_view group) const {
  const auto it = groups_.find(group);
  return it == groups_.end() ? 0 : it->second.in_flight;
}

}  // namespace phalanx::coordinator
