// What a port scanner sends to the operators' port: bytes of one connection, and the server answers or
// closes, and answers the next one.
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/http_server.h"

namespace {

constexpr std::string_view kGood = "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

// Connects; a fuzzer's timer may interrupt it, and then the connection is made behind it.
bool Connect(int fd, const sockaddr_in& address) {
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return true;
  if (errno != EINTR) return false;
  pollfd made = {fd, POLLOUT, 0};
  int ready = 0;
  while ((ready = poll(&made, 1, 30000)) < 0 && errno == EINTR) {
  }
  int error = 0;
  socklen_t size = sizeof(error);
  return ready == 1 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
}

// What comes back until the server closes the connection.
std::string Talk(int port, std::string_view bytes) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  // No TIME_WAIT: there are many connections a second.
  const linger now = {1, 0};
  if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)) != 0 || !Connect(fd, address)) {
    std::perror("http_fuzz: connecting to the server under test");
    std::abort();
  }
  // A fuzzer's timer interrupts calls.
  while (!bytes.empty()) {
    const ssize_t sent = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) break;  // the server closed
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  shutdown(fd, SHUT_WR);
  std::string reply;
  char buffer[4096];
  for (ssize_t got = 1; got > 0 || (got < 0 && errno == EINTR);) {
    got = recv(fd, buffer, sizeof(buffer), 0);
    if (got > 0) reply.append(buffer, static_cast<size_t>(got));
  }
  close(fd);
  return reply;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using phalanx::HttpServer;
  static const auto server =
      HttpServer::Start("127.0.0.1:0", {{"/healthz", [] {
                                           return phalanx::HttpReply{200, "text/plain", "ok\n"};
                                         }}});
  if (!server.ok()) std::abort();
  const int port = (*server)->port();
  const std::string reply = Talk(port, {reinterpret_cast<const char*>(data), size});
  if (!reply.empty() && !reply.starts_with("HTTP/1.1 ")) std::abort();
  if (!Talk(port, kGood).ends_with("\r\n\r\nok\n")) std::abort();
  return 0;
}
