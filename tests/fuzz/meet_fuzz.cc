// What followers bring to a meeting (GroupPeer.Meet), in any order: an input is a series of messages, each
// behind its length. Who has brought something gets everybody's once all have come.
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>

#include "phalanx/internal/v1/group_control.pb.h"
#include "tests/fuzz/inputs.h"
#include "tests/fuzz/messages.h"
#include "worker/peer_meeting.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace phalanx;
  constexpr int kRanks = 3;
  Input input(data, size);
  PeerMeeting meeting("g", kRanks);
  std::map<std::pair<std::string, int>, std::string> brought;
  while (!input.empty()) {
    With<internal::v1::MeetRequest>(input.Piece(), [&](const auto& m) {
      const auto met = meeting.Meet(m.topic(), m.rank(), m.blob(), CondVar::Clock::now());
      if (!met.ok()) return;
      if (m.rank() < 0 || m.rank() >= kRanks || m.topic().size() > kMaxMeetTopicBytes) std::abort();
      const auto [known, fresh] = brought.emplace(std::pair(m.topic(), m.rank()), m.blob());
      if (!fresh && known->second != m.blob()) std::abort();
      if (!met->missing.empty()) return;
      for (int rank = 0; rank < kRanks; ++rank) {
        if (met->blobs.at(static_cast<size_t>(rank)) != brought.at({m.topic(), rank})) std::abort();
      }
    });
  }
  if (brought.size() > kMaxMeetTopics * kRanks) std::abort();
  return 0;
}
