// One connection of a tcp group: frames out and in, without waiting. A frame is a header and, for a part of a
// call, its bytes; a heartbeat has none. What the peer sends of the next phase stays where it is until this
// rank comes to it. Thread safety: none.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/collective/socket.h"
#include "worker/collective/tcp_mesh.h"

namespace phalanx {

class TcpConnection {
 public:
  using Clock = std::chrono::steady_clock;

  TcpConnection(TcpPeer peer, int rank);

  int fd() const { return peer_.socket.fd(); }
  int rank() const { return rank_; }
  const std::string& address() const { return peer_.address; }

  // --- a phase
  // Begins phase `phase` with call `call`: `parts` are to be sent and stay valid until the phase is over;
  // `bytes` are expected, into `into`.
  void Begin(Clock::time_point now, uint32_t phase, uint64_t call, const std::vector<iovec>& parts,
             char* into, int64_t bytes);
  // The peer came to the phase: `call` is what it calls.
  bool posted() const { return posted_; }
  uint64_t call() const { return call_; }
  // All of it came, and all of this rank's part is sent (or can never be).
  bool done() const { return posted_ && matches_ && in_left_ == 0 && out_.empty(); }

  // --- bytes
  // Sends what can be sent and reads what there is. True when bytes of the phase moved.
  bool Move(Clock::time_point now);
  // poll()'s events that let Move go on; 0: none.
  short events() const;
  // Why nothing comes any more: that the peer left, in its own words, or that the connection ended. OK: it
  // lives.
  const absl::Status& fault() const { return fault_; }
  // The peer left after this phase: all ranks had come to it, so what is missing comes from the others.
  bool left_later() const {
    return posted_ && has_left_ && left_phase_ == phase_ && (!matches_ || in_left_ == 0);
  }

  // --- life
  // Adds a heartbeat if no frame is on its way.
  void Beat();
  // Says why this rank leaves, if it can still be said, and that nothing follows. `phase`: the last to which
  // all ranks came.
  void Leave(const absl::Status& told, uint32_t phase);
  // Since when nothing came, though it was read. It is not read while the peer is ahead: then `now`.
  Clock::time_point heard(Clock::time_point now) const { return is_ahead() ? now : heard_; }

 private:
  enum Kind : uint32_t { kPart = 1, kHeartbeat = 2, kLeft = 3 };
  struct Header {
    uint32_t magic;
    uint32_t kind;
    uint32_t phase;  // of kPart, and of kLeft the last one to which all came
    int32_t code;    // of kLeft
    uint64_t call;   // of kPart
    uint64_t bytes;  // that follow
  };

  static Header Make(Kind kind);
  void Flush();
  void Read(Clock::time_point now);
  // Takes the frames in the buffer as far as they are whole and of this phase.
  void Parse();
  bool is_ahead() const { return ahead_ || (posted_ && !matches_); }
  void Fault(absl::Status status);

  TcpPeer peer_;
  const int rank_;
  absl::Status fault_;

  // Out: what is left of the frames on their way.
  std::vector<iovec> out_;
  Header out_header_;
  Header beat_;

  // In.
  std::unique_ptr<char[]> buffer_;
  size_t begin_ = 0, end_ = 0;  // of the bytes in buffer_ that were not taken
  bool has_left_ = false;
  uint32_t left_phase_ = 0;
  bool ahead_ = false;  // the next frame is of the next phase
  Clock::time_point heard_;

  // The present phase.
  uint32_t phase_;
  uint64_t own_call_ = 0;
  bool posted_ = true, matches_ = true;
  uint64_t call_ = 0;
  char* into_ = nullptr;
  int64_t in_left_ = 0;
  bool moved_ = false;
};

}  // namespace phalanx
