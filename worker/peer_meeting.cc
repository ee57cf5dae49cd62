#include "worker/peer_meeting.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"

namespace phalanx {
namespace {

constexpr std::chrono::milliseconds kLook{100};  // between two looks at `cancelled`

}  // namespace

std::string RankNames(const std::vector<int>& ranks) {
  return absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(ranks, ", "));
}

PeerMeeting::PeerMeeting(std::string group_id, int num_ranks)
    : group_id_(std::move(group_id)), num_ranks_(num_ranks) {}

absl::StatusOr<MeetResult> PeerMeeting::Meet(const std::string& topic, int rank, const std::string& blob,
                                             CondVar::Clock::time_point until) {
  if (rank < 0 || rank >= num_ranks_) {
    return absl::OutOfRangeError(
        absl::StrCat("rank ", rank, " is not in group ", group_id_, ", which has ", num_ranks_, " ranks"));
  }
  if (topic.empty() || topic.size() > kMaxMeetTopicBytes) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", rank, " came to a meeting whose topic has ",
                                                   topic.size(), " bytes; it must have 1 to ",
                                                   kMaxMeetTopicBytes));
  }
  if (blob.size() > kMaxMeetBlobBytes) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", rank, " brings ", blob.size(),
                                                   " bytes to the meeting \"", topic,
                                                   "\"; it may bring at most ", kMaxMeetBlobBytes));
  }
  MutexLock lock(mu_);
  if (closed_) return absl::AbortedError(close_reason_);
  if (!topics_.contains(topic) && topics_.size() >= kMaxMeetTopics) {
    return absl::ResourceExhaustedError(absl::StrCat("group ", group_id_, " has ", kMaxMeetTopics,
                                                     " meetings; \"", topic, "\" would be one too many"));
  }
  std::vector<std::optional<std::string>>& blobs = topics_[topic].blobs;
  blobs.resize(num_ranks_);
  if (blobs[rank].has_value() && *blobs[rank] != blob) {
    return absl::AlreadyExistsError(absl::StrCat(
        "rank ", rank, " of group ", group_id_, " has come to the meeting \"", topic, "\" with other bytes"));
  }
  blobs[rank] = blob;
  changed_.NotifyAll();
  while (true) {
    if (closed_) return absl::AbortedError(close_reason_);
    MeetResult result;
    for (int r = 0; r < num_ranks_; ++r) {
      if (!blobs[r].has_value()) result.missing.push_back(r);
    }
    if (result.missing.empty()) {
      for (const auto& brought : blobs) result.blobs.push_back(*brought);
      return result;
    }
    if (!changed_.WaitUntil(mu_, until)) return result;
  }
}

absl::StatusOr<std::vector<std::string>> PeerMeeting::MeetAll(const std::string& topic, int rank,
                                                              const std::string& blob, int timeout_ms,
                                                              const std::function<bool()>& cancelled) {
  const auto deadline = CondVar::Clock::now() + std::chrono::milliseconds(timeout_ms);
  while (true) {
    if (cancelled && cancelled()) return absl::CancelledError("the group was cancelled");
    PHX_ASSIGN_OR_RETURN(MeetResult result, Meet(topic, rank, blob, CondVar::Clock::now() + kLook));
    if (result.missing.empty()) return std::move(result.blobs);
    if (CondVar::Clock::now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(RankNames(result.missing), " of group ", group_id_,
                                                      " did not come to the meeting \"", topic, "\" within ",
                                                      timeout_ms, " ms"));
    }
  }
}

void PeerMeeting::Close(const std::string& reason) {
  MutexLock lock(mu_);
  if (closed_) return;
  closed_ = true;
  close_reason_ = reason;
  changed_.NotifyAll();
}

}  // namespace phalanx
