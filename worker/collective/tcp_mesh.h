// The connections of a tcp group, one for each pair of ranks: the higher rank dials the lower. Each side
// says a hello of fixed size first, which names protocol, group, rank and shape and shows the epoch's token;
// a connection that says anything else, or nothing for two seconds, is closed and logged, and harms nobody.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/collective/collective.h"
#include "worker/collective/socket.h"

namespace phalanx {

// At the meeting "tcp" a rank brings this many random bytes and its HOST:PORT. Rank 0's are the epoch's
// token: who shows others is no rank of it.
inline constexpr size_t kMeetingTokenBytes = 32;

struct TcpPeer {
  Socket socket;
  std::string address;  // for messages
};

// By rank; the own entry is empty. InvalidArgument for options that are wrong or differ between ranks, the
// errors of options.meet, DeadlineExceeded naming the ranks that did not connect.
absl::StatusOr<std::vector<TcpPeer>> ConnectMesh(const CollectiveOptions& options,
                                                 std::chrono::steady_clock::time_point deadline);

}  // namespace phalanx
