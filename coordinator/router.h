// Chooses the group that takes a request. Requests that begin alike go to the same group, whose prefix cache
// holds their blocks, as long as that group is not much busier than the others; else the least busy one takes
// it. The choice by prefix is a rendezvous hash: coordinators agree without talking, and a group that comes
// or goes moves only its own share. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx::coordinator {

class Router {
 public:
  struct Options {
    // Prompts shorter than this have nothing worth finding again.
    size_t min_prefix_tokens = 32;
    // The hash covers at most this many first tokens.
    size_t max_prefix_tokens = 256;
    // A group is taken by prefix while its load is at most this many percent of the mean, counting the new
    // request.
    int64_t load_bound_percent = 125;
  };
  explicit Router(Options options) : options_(options) {}
  Router() : Router(Options()) {}

  // A group that serves `model`. Its counts begin at 0.
  void AddGroup(std::string_view model, std::string_view group);
  // False if it is not there.
  bool RemoveGroup(std::string_view group);
  // The leader's own view of its load (running + queued), other coordinators' requests included.
  void SetReportedLoad(std::string_view group, int64_t requests);

  // The group for a request, whose in-flight count it raises; nothing when no group serves the model.
  std::optional<std::string> Pick(std::string_view model, const std::vector<int32_t>& prompt);
  // One more request to the group that was picked.
  void Add(std::string_view group);
  // A request is over. A group that is gone meanwhile is ignored.
  void Done(std::string_view group);

  // Whether a group serves `model`.
  bool Serves(std::string_view model) const;
  int64_t in_flight(std::string_view group) const;

 private:
  struct Group {
    std::string model;
    int64_t in_flight = 0;
    int64_t reported = 0;
    // A report is older than the requests sent since: the larger count is nearer to the truth.
    int64_t load() const { return in_flight > reported ? in_flight : reported; }
  };

  const Options options_;
  std::map<std::string, Group, std::less<>> groups_;
};

}  // namespace phalanx::coordinator
