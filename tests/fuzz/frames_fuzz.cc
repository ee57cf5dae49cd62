// What a peer of a tcp collective sends once it is one: an input is a series of steps, each a byte that says
// how this rank's phase goes on and, behind their length, the bytes that come meanwhile.
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <vector>

#include "tests/fuzz/inputs.h"
#include "worker/collective/region.h"
#include "worker/collective/tcp_connection.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace phalanx;
  using Clock = TcpConnection::Clock;
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) != 0) std::abort();
  const Socket theirs(fds[1]);
  TcpConnection connection({Socket(fds[0]), "peer:1"}, 1);
  Input input(data, size);
  Clock::time_point now = Clock::now();
  uint32_t phase = kStartPhase;
  std::vector<char> into, own(100, 'x');  // of exactly the size: a write beyond it shows
  while (!input.empty() && connection.fault().ok()) {
    const uint8_t step = input.Byte();
    now += std::chrono::milliseconds(step);
    if (step % 4 == 1 && connection.done()) {
      const size_t expected = input.Byte() * size_t{step % 8 == 1 ? 1u : 257u};
      into.assign(expected, 0);
      connection.Begin(now, ++phase, input.Byte() % 4, {{own.data(), own.size()}}, into.data(),
                       static_cast<int64_t>(expected));
    }
    if (step % 4 == 2) connection.Beat();
    const std::string_view bytes = input.Piece();
    send(theirs.fd(), bytes.data(), bytes.size(),
         MSG_NOSIGNAL);  // what does not fit, or comes after the end, is lost
    while (connection.Move(now)) {
    }
    if (connection.heard(now) > now) std::abort();
    char sent[512];
    while (read(theirs.fd(), sent, sizeof(sent)) > 0) {
    }
    if (step % 64 == 3) shutdown(theirs.fd(), SHUT_WR);
  }
  connection.Leave(absl::CancelledError("over"), phase);
  return 0;
}
