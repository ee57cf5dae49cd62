// Where the ranks of a group's epoch tell each other small things, such as where they listen, before they
// have connections: each brings a blob of bytes to a topic, and gets everybody's once all have come. Kept by
// the leader; the others call it by GroupPeer.Meet.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"

namespace phalanx {

inline constexpr size_t kMaxMeetTopics = 16;
inline constexpr size_t kMaxMeetTopicBytes = 64;
inline constexpr size_t kMaxMeetBlobBytes = 16384;  // 64 ranks' fit into one message of gRPC's 4 MiB

struct MeetResult {
  std::vector<std::string> blobs;  // by rank; empty while `missing` is not
  std::vector<int> missing;        // ranks that have not come
};

// Thread safety: any thread.
class PeerMeeting {
 public:
  PeerMeeting(std::string group_id, int num_ranks);

  // Rank `rank` brings `blob`, which may be empty, to `topic`. Waits for the others until `until`. A rank may
  // come again, with the same blob: another one is AlreadyExists. OutOfRange for an impossible rank,
  // InvalidArgument for a topic or blob that is too long, ResourceExhausted for one topic too many,
  // Aborted(reason) after Close.
  absl::StatusOr<MeetResult> Meet(const std::string& topic, int rank, const std::string& blob,
                                  CondVar::Clock::time_point until);
  // The leader's own way: waits for all until `timeout_ms` (DeadlineExceeded naming the ranks that are
  // missing) or until `cancelled`, which may be null. Otherwise as above.
  absl::StatusOr<std::vector<std::string>> MeetAll(const std::string& topic, int rank,
                                                   const std::string& blob, int timeout_ms,
                                                   const std::function<bool()>& cancelled);
  // Ends all waits, now and later, with Aborted(reason). Idempotent.
  void Close(const std::string& reason);

 private:
  struct Topic {
    std::vector<std::optional<std::string>> blobs;  // by rank
  };

  const std::string group_id_;
  const int num_ranks_;
  Mutex mu_;
  CondVar changed_;
  std::map<std::string, Topic> topics_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  std::string close_reason_ ABSL_GUARDED_BY(mu_);
};

// "rank 2" or "ranks 1, 3", for messages.
std::string RankNames(const std::vector<int>& ranks);

}  // namespace phalanx
