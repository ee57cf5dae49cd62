#include "worker/collective/tcp_connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/collective/region.h"

namespace phalanx {
namespace {

constexpr uint32_t kMagic = 0x31584850;  // "PHX1"
constexpr size_t kBufferBytes = 16 * 1024;
constexpr size_t kMaxMessage = 1000;  // of a rank that leaves
constexpr int kMaxReads = 64;         // in one Move: the other connections have their turn

bool WouldBlock() { return errno == EAGAIN || errno == EWOULDBLOCK; }

}  // namespace

TcpConnection::TcpConnection(TcpPeer peer, int rank)
    : peer_(std::move(peer)),
      rank_(rank),
      buffer_(std::make_unique<char[]>(kBufferBytes)),
      heard_(Clock::now()),
      phase_(kStartPhase) {
  out_.reserve(2 * kMaxShards);
}

TcpConnection::Header TcpConnection::Make(Kind kind) { return {kMagic, kind, 0, 0, 0, 0}; }

void TcpConnection::Fault(absl::Status status) {
  if (fault_.ok()) fault_ = std::move(status);
}

void TcpConnection::Begin(Clock::time_point now, uint32_t phase, uint64_t call,
                          const std::vector<iovec>& parts, char* into, int64_t bytes) {
  if (ahead_) heard_ = now;
  phase_ = phase;
  own_call_ = call;
  posted_ = false;
  matches_ = true;
  ahead_ = false;
  into_ = into;
  in_left_ = bytes;
  out_header_ = Make(kPart);
  out_header_.phase = phase;
  out_header_.call = call;
  for (const iovec& part : parts) out_header_.bytes += part.iov_len;
  if (!fault_.ok()) return;
  // Behind what may be left of a heartbeat.
  out_.push_back({&out_header_, sizeof(out_header_)});
  for (const iovec& part : parts) {
    if (part.iov_len > 0) out_.push_back(part);
  }
}

void TcpConnection::Flush() {
  while (!out_.empty()) {
    msghdr message{};
    message.msg_iov = out_.data();
    message.msg_iovlen = out_.size();
    const ssize_t sent = sendmsg(fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) {
      // A connection that is over: what can still be read of it says why.
      if (!WouldBlock()) out_.clear();
      return;
    }
    moved_ = true;
    auto left = static_cast<size_t>(sent);
    auto part = out_.begin();
    while (part != out_.end() && left >= part->iov_len) left -= (part++)->iov_len;
    if (part != out_.end()) {
      part->iov_base = static_cast<char*>(part->iov_base) + left;
      part->iov_len -= left;
    }
    out_.erase(out_.begin(), part);
  }
}

void TcpConnection::Beat() {
  if (!out_.empty() || !fault_.ok()) return;
  beat_ = Make(kHeartbeat);
  out_.push_back({&beat_, sizeof(beat_)});
  Flush();
}

void TcpConnection::Leave(const absl::Status& told, uint32_t phase) {
  Flush();
  if (out_.empty()) {
    const std::string message(told.message().substr(0, kMaxMessage));
    Header header = Make(kLeft);
    header.phase = phase;
    header.code = static_cast<int32_t>(told.code());
    header.bytes = message.size();
    std::string frame(reinterpret_cast<const char*>(&header), sizeof(header));
    frame += message;
    // Where there is no room for it, the connection's end says it.
    send(fd(), frame.data(), frame.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  out_.clear();
  shutdown(fd(), SHUT_WR);
}

short TcpConnection::events() const {
  if (!fault_.ok()) return 0;
  return static_cast<short>((is_ahead() ? 0 : POLLIN) | (out_.empty() ? 0 : POLLOUT));
}

bool TcpConnection::Move(Clock::time_point now) {
  moved_ = false;
  if (!fault_.ok()) return false;
  Flush();
  Read(now);
  return moved_;
}

void TcpConnection::Read(Clock::time_point now) {
  Parse();
  for (int i = 0; i < kMaxReads && fault_.ok() && !is_ahead(); ++i) {
    // Large parts go where they belong; all else through the buffer, of which Parse leaves less than a frame.
    const bool direct = posted_ && begin_ == end_ && in_left_ >= static_cast<int64_t>(kBufferBytes);
    if (begin_ > 0) {
      std::memmove(buffer_.get(), buffer_.get() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
    }
    const size_t room = direct ? static_cast<size_t>(in_left_) : kBufferBytes - end_;
    const ssize_t n = recv(fd(), direct ? into_ : buffer_.get() + end_, room, MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && WouldBlock()) return;
    if (n <= 0) {
      Fault(absl::UnavailableError(absl::StrCat("rank ", rank_, " is gone: its connection (", address(),
                                                ") ended", n == 0 ? "" : ": ",
                                                n == 0 ? "" : std::strerror(errno))));
      return;
    }
    heard_ = now;
    if (direct) {
      into_ += n;
      in_left_ -= n;
      moved_ = true;
    } else {
      end_ += n;
      Parse();
      if (static_cast<size_t>(n) < room) return;  // that was all
    }
  }
}

void TcpConnection::Parse() {
  while (fault_.ok() && begin_ < end_) {
    const size_t size = end_ - begin_;
    const char* at = buffer_.get() + begin_;
    if (posted_ && matches_ && in_left_ > 0) {
      const int64_t n = std::min<int64_t>(in_left_, static_cast<int64_t>(size));
      std::memcpy(into_, at, n);
      into_ += n;
      in_left_ -= n;
      begin_ += n;
      moved_ = true;
      continue;
    }
    if (posted_ && !matches_) return;  // its part is not what was expected, and the group ends
    Header header;
    if (size < sizeof(header)) return;
    std::memcpy(&header, at, sizeof(header));
    const auto wrong = [&](const char* what, uint64_t value) {
      Fault(absl::InternalError(
          absl::StrCat("rank ", rank_, " (", address(), ") sent a frame whose ", what, " is ", value)));
    };
    if (header.magic != kMagic) return wrong("first word", header.magic);
    switch (header.kind) {
      case kHeartbeat:
        if (header.bytes != 0) return wrong("length, of a heartbeat,", header.bytes);
        begin_ += sizeof(header);
        break;
      case kLeft: {
        if (header.bytes > kMaxMessage) return wrong("length, of a reason to leave,", header.bytes);
        if (header.code <= 0 || header.code > 16) return wrong("code", static_cast<uint32_t>(header.code));
        if (size < sizeof(header) + header.bytes) return;
        has_left_ = true;
        left_phase_ = header.phase;
        Fault(absl::Status(static_cast<absl::StatusCode>(header.code),
                           std::string(at + sizeof(header), header.bytes)));
        return;
      }
      case kPart:
        if (posted_) {
          if (header.phase != phase_ + 1) return wrong("phase", header.phase);
          ahead_ = true;
          return;
        }
        if (header.phase != phase_) return wrong("phase", header.phase);
        posted_ = true;
        moved_ = true;
        call_ = header.call;
        matches_ = call_ == own_call_;
        if (matches_ && header.bytes != static_cast<uint64_t>(in_left_)) {
          return wrong("length", header.bytes);
        }
        begin_ += sizeof(header);
        break;
      default:
        return wrong("kind", header.kind);
    }
  }
}

}  // namespace phalanx
