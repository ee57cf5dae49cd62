// The little of the sockets' API that the ranks of a group need: non-blocking TCP, closed by its owner.
#pragma once

#include <netdb.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace phalanx {

// A file descriptor and its owner.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket();
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;
// As getaddrinfo; another one is for tests.
using Resolver = std::function<int(const char* host, const char* port, const addrinfo* hints, addrinfo**)>;

// The addresses of `host` (name or address, [v6] with or without brackets) with `flags` (AI_*). A name may
// take the system's resolver long: `give_up` is asked meanwhile, and its error, with the name, ends the wait;
// the query then ends by itself on a thread that is left behind. Unavailable naming a host that has none.
absl::StatusOr<Addresses> Resolve(const std::string& host, int port, int flags,
                                  absl::FunctionRef<absl::Status()> give_up,
                                  const Resolver& resolver = &getaddrinfo);

// Listens on `host` (as for Resolve) at the first free port of first_port to last_port; 0: any. Unavailable
// naming both, or give_up's error.
absl::StatusOr<Socket> ListenTcp(const std::string& host, int first_port, int last_port,
                                 absl::FunctionRef<absl::Status()> give_up);
int PortOf(const Socket& socket);
// A connection that came, non-blocking; one without a descriptor where there is none (any more).
Socket AcceptTcp(const Socket& listener);
// HOST:PORT of the other side.
std::string PeerAddress(int fd);

// Waits for `events` (poll's) on one descriptor in pieces, between which `give_up` is asked; its error ends
// the wait.
absl::Status WaitFor(int fd, short events, absl::FunctionRef<absl::Status()> give_up);
// Connects to HOST:PORT once. Unavailable naming the address and the cause, or give_up's error.
absl::StatusOr<Socket> DialTcp(const std::string& address, absl::FunctionRef<absl::Status()> give_up);

}  // namespace phalanx
