#include "worker/collective/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/mutex.h"

namespace phalanx {
namespace {

constexpr int kBacklog = 128;
constexpr int kPollMs = 50;

Socket NewSocket(const addrinfo& address) {
  return Socket(socket(address.ai_family, address.ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

void SetPort(sockaddr* address, int port) {
  (address->sa_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(address)->sin6_port
                                  : reinterpret_cast<sockaddr_in*>(address)->sin_port) =
      htons(static_cast<uint16_t>(port));
}

// Frames are small and waited for.
void SetNoDelay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

// What a query on another thread shares with who waits for it.
struct Query {
  Mutex mu;
  CondVar changed;
  bool done ABSL_GUARDED_BY(mu) = false;
  int error ABSL_GUARDED_BY(mu) = 0;
  Addresses found ABSL_GUARDED_BY(mu){nullptr, &freeaddrinfo};
};

absl::Status CannotResolve(const std::string& host, int error) {
  return absl::UnavailableError(absl::StrCat("cannot resolve '", host, "': ", gai_strerror(error)));
}

}  // namespace

absl::StatusOr<Addresses> Resolve(const std::string& host, int port, int flags,
                                  absl::FunctionRef<absl::Status()> give_up, const Resolver& resolver) {
  const bool brackets = host.size() > 2 && host.front() == '[' && host.back() == ']';
  const std::string name = brackets ? host.substr(1, host.size() - 2) : host;
  const std::string service = absl::StrCat(port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV | AI_NUMERICHOST;
  addrinfo* numeric = nullptr;
  const int error = getaddrinfo(name.c_str(), service.c_str(), &hints, &numeric);
  if (error == 0) return Addresses(numeric, &freeaddrinfo);
  if (error != EAI_NONAME) return CannotResolve(host, error);
  hints.ai_flags &= ~AI_NUMERICHOST;
  const auto query = std::make_shared<Query>();
  std::thread([query, name, service, hints, resolver] {
    addrinfo* found = nullptr;
    const int why = resolver(name.c_str(), service.c_str(), &hints, &found);
    MutexLock lock(query->mu);
    query->done = true;
    query->error = why;
    if (why == 0) query->found.reset(found);
    query->changed.NotifyAll();
  }).detach();
  while (true) {
    {
      MutexLock lock(query->mu);
      if (!query->done) query->changed.WaitFor(query->mu, std::chrono::milliseconds(kPollMs));
      if (query->done && query->error != 0) return CannotResolve(host, query->error);
      if (query->done) return std::move(query->found);
    }
    if (const absl::Status status = give_up(); !status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("resolving the name '", host, "' takes long: ", status.message()));
    }
  }
}

Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<Socket> ListenTcp(const std::string& host, int first_port, int last_port,
                                 absl::FunctionRef<absl::Status()> give_up) {
  int error = 0;
  absl::StatusOr<Addresses> addresses = Resolve(host, first_port, AI_PASSIVE, give_up);
  if (!addresses.ok()) return addresses.status();
  for (int port = first_port; port <= last_port; ++port) {
    for (const addrinfo* a = addresses->get(); a != nullptr; a = a->ai_next) {
      Socket socket = NewSocket(*a);
      const int on = 1;
      SetPort(a->ai_addr, port);
      if (socket.fd() >= 0 && setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
          bind(socket.fd(), a->ai_addr, a->ai_addrlen) == 0 && listen(socket.fd(), kBacklog) == 0) {
        return socket;
      }
      error = errno;
    }
  }
  return absl::UnavailableError(absl::StrCat(
      "cannot listen for the other ranks on ", host, ", port ",
      first_port == 0 ? "any" : absl::StrCat(first_port, " to ", last_port), ": ", std::strerror(error)));
}

int PortOf(const Socket& socket) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                             : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
}

Socket AcceptTcp(const Socket& listener) {
  Socket socket(accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (socket.fd() >= 0) SetNoDelay(socket.fd());
  return socket;
}

std::string PeerAddress(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  char host[NI_MAXHOST] = "?", port[NI_MAXSERV] = "?";
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0) {
    getnameinfo(reinterpret_cast<sockaddr*>(&address), length, host, sizeof(host), port, sizeof(port),
                NI_NUMERICHOST | NI_NUMERICSERV);
  }
  const bool v6 = std::strchr(host, ':') != nullptr;
  return absl::StrCat(v6 ? "[" : "", host, v6 ? "]:" : ":", port);
}

absl::Status WaitFor(int fd, short events, absl::FunctionRef<absl::Status()> give_up) {
  while (true) {
    pollfd entry{fd, events, 0};
    if (poll(&entry, 1, kPollMs) > 0) return absl::OkStatus();
    if (absl::Status status = give_up(); !status.ok()) return status;
  }
}

absl::StatusOr<Socket> DialTcp(const std::string& address, absl::FunctionRef<absl::Status()> give_up) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port < 1 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", absl::CHexEscape(address), "' is no HOST:PORT of a rank"));
  }
  absl::StatusOr<Addresses> addresses = Resolve(address.substr(0, colon), port, 0, give_up);
  if (!addresses.ok()) return addresses.status();
  int error = EADDRNOTAVAIL;
  for (const addrinfo* a = addresses->get(); a != nullptr; a = a->ai_next) {
    Socket socket = NewSocket(*a);
    if (socket.fd() < 0) {
      error = errno;
      continue;
    }
    SetNoDelay(socket.fd());
    if (connect(socket.fd(), a->ai_addr, a->ai_addrlen) == 0) return socket;
    error = errno;
    if (error != EINPROGRESS) continue;
    if (absl::Status status = WaitFor(socket.fd(), POLLOUT, give_up); !status.ok()) return status;
    socklen_t length = sizeof(error);
    if (getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0) return socket;
  }
  return absl::UnavailableError(absl::StrCat("cannot connect to ", address, ": ", std::strerror(error)));
}

}  // namespace phalanx
