#include "worker/collective/tcp_mesh.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/logging.h"
#include "base/status_macros.h"

namespace phalanx {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kHelloTime = std::chrono::seconds(2);
constexpr auto kRetry = std::chrono::milliseconds(100);
constexpr size_t kMaxStrangers = 32;  // connections that have not said their hello; then the oldest goes
constexpr int kMaxLogged = 10;
constexpr int kMaxRefusals = 5;
constexpr uint32_t kProtocol = 1;
constexpr size_t kMaxIdLength = 200;

// Numbers in this host's byte order: a host of the other one fails at `protocol`.
struct Hello {
  char magic[8] = {'P', 'H', 'X', 'R', 'A', 'N', 'K', '\n'};
  uint32_t protocol = kProtocol;
  int32_t rank = 0;
  int64_t size = 0;
  int64_t num_shards = 0;
  int64_t max_elements = 0;
  int64_t max_gather_bytes = 0;
  char token[kMeetingTokenBytes] = {};
  char id[kMaxIdLength + 8] = {};
};
static_assert(sizeof(Hello) == 288);

Hello MakeHello(const CollectiveOptions& options, const std::string& token) {
  Hello hello;
  hello.rank = options.rank;
  hello.size = options.size;
  hello.num_shards = options.num_shards;
  hello.max_elements = options.max_elements;
  hello.max_gather_bytes = options.max_gather_bytes;
  std::memcpy(hello.token, token.data(), kMeetingTokenBytes);
  std::memcpy(hello.id, options.id.data(), options.id.size());
  return hello;
}

// Why `theirs` is no hello of this group; "": it is. In an order that tells a stranger nothing.
std::string WhyStranger(const Hello& own, const Hello& theirs) {
  if (std::memcmp(own.magic, theirs.magic, sizeof(own.magic)) != 0) return "it speaks another protocol";
  if (own.protocol != theirs.protocol) return absl::StrCat("its protocol's version is ", theirs.protocol);
  if (std::memcmp(own.id, theirs.id, sizeof(own.id)) != 0) return "it is of another group or epoch";
  if (std::memcmp(own.token, theirs.token, sizeof(own.token)) != 0) return "its token is wrong";
  return "";
}

absl::Status CheckShape(const Hello& own, const Hello& theirs) {
  const auto check = [&](const char* name, int64_t mine, int64_t other) {
    if (mine == other) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("collective option ", name, " is ", mine, " on rank ",
                                                   own.rank, " and ", other, " on rank ", theirs.rank,
                                                   "; they must be equal"));
  };
  PHX_RETURN_IF_ERROR(check("size", own.size, theirs.size));
  PHX_RETURN_IF_ERROR(check("num_shards", own.num_shards, theirs.num_shards));
  PHX_RETURN_IF_ERROR(check("max_elements", own.max_elements, theirs.max_elements));
  return check("max_gather_bytes", own.max_gather_bytes, theirs.max_gather_bytes);
}

// A connection on its way to be a peer.
struct Stranger {
  Socket socket;
  std::string address;
  Clock::time_point until;
  Hello hello;
  size_t have = 0;
};

// Reads more of the hello. False when the connection ended.
bool ReadHello(Stranger* stranger) {
  while (stranger->have < sizeof(Hello)) {
    const ssize_t n = recv(stranger->socket.fd(), reinterpret_cast<char*>(&stranger->hello) + stranger->have,
                           sizeof(Hello) - stranger->have, MSG_DONTWAIT);
    if (n > 0) {
      stranger->have += n;
    } else if (n < 0 && errno == EINTR) {
      continue;
    } else {
      return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    }
  }
  return true;
}

// The first bytes of a connection: its send buffer takes them whole.
bool SendHello(const Socket& socket, const Hello& hello) {
  return send(socket.fd(), &hello, sizeof(hello), MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof(hello);
}

// What all ranks know once they have met.
struct Meeting {
  std::vector<std::string> addresses;  // by rank
  std::string token;
};

absl::StatusOr<Meeting> Meet(const CollectiveOptions& options, const std::string& address) {
  std::string blob;
  std::random_device random;
  while (blob.size() < kMeetingTokenBytes) blob.push_back(static_cast<char>(random()));
  PHX_ASSIGN_OR_RETURN(const std::vector<std::string> blobs, options.meet("tcp", blob + address));
  if (blobs.size() != static_cast<size_t>(options.size)) {
    return absl::InternalError(absl::StrCat("the meeting of a group of ", options.size, " ranks gave what ",
                                            blobs.size(), " of them brought"));
  }
  Meeting meeting;
  for (size_t r = 0; r < blobs.size(); ++r) {
    if (blobs[r].size() <= kMeetingTokenBytes) {
      return absl::FailedPreconditionError(absl::StrCat("rank ", r, " brought ", blobs[r].size(),
                                                        " bytes to the meeting \"tcp\"; a token and an "
                                                        "address are more than ",
                                                        kMeetingTokenBytes));
    }
    meeting.addresses.push_back(blobs[r].substr(kMeetingTokenBytes));
  }
  meeting.token = blobs[0].substr(0, kMeetingTokenBytes);
  return meeting;
}

class Mesh {
 public:
  Mesh(const CollectiveOptions& options, Clock::time_point deadline, const Meeting& meeting)
      : options_(options),
        deadline_(deadline),
        meeting_(meeting),
        own_(MakeHello(options, meeting.token)),
        peers_(options.size) {}

  absl::Status Dial(int rank);
  absl::Status AcceptHigher(const Socket& listener);
  std::vector<TcpPeer> Take() { return std::move(peers_); }

 private:
  // Once time is over or the group is cancelled. `last`: what went wrong last, if anything.
  absl::Status GiveUp(const std::string& last = "") const;
  // Takes a stranger whose hello is whole as a peer, or not.
  absl::Status Admit(Stranger* stranger);
  void Refuse(const Stranger& stranger, const std::string& why);

  const CollectiveOptions& options_;
  const Clock::time_point deadline_;
  const Meeting& meeting_;
  const Hello own_;
  std::vector<TcpPeer> peers_;
  int refused_ = 0;
};

absl::Status Mesh::GiveUp(const std::string& last) const {
  if (options_.cancelled && options_.cancelled()) return absl::CancelledError("the group was cancelled");
  if (Clock::now() < deadline_) return absl::OkStatus();
  std::vector<int> missing;
  for (int r = 0; r < options_.size; ++r) {
    if (r != options_.rank && peers_[r].socket.fd() < 0) missing.push_back(r);
  }
  return absl::DeadlineExceededError(
      absl::StrCat(missing.size() == 1 ? "rank " : "ranks ", absl::StrJoin(missing, ", "), " of ",
                   options_.size, " did not connect to rank ", options_.rank, " within ",
                   options_.connect_timeout_ms, " ms", last.empty() ? "" : ": ", last));
}

absl::Status Mesh::Dial(int rank) {
  const std::string& address = meeting_.addresses[rank];
  std::string last;
  const auto give_up = [&] { return GiveUp(last); };
  for (int refusals = 0; refusals < kMaxRefusals;) {
    absl::StatusOr<Socket> socket = DialTcp(address, give_up);
    if (!socket.ok()) {
      if (socket.status().code() != absl::StatusCode::kUnavailable) return socket.status();
      last = std::string(socket.status().message());
    }
    if (socket.ok()) {
      Stranger other{*std::move(socket), address, deadline_, {}, 0};
      bool alive = SendHello(other.socket, own_);
      while (alive && other.have < sizeof(Hello)) {
        PHX_RETURN_IF_ERROR(WaitFor(other.socket.fd(), POLLIN, give_up));
        alive = ReadHello(&other);
      }
      if (alive) {
        std::string why = WhyStranger(own_, other.hello);
        if (why.empty() && other.hello.rank != rank) why = absl::StrCat("it is rank ", other.hello.rank);
        if (!why.empty()) {
          return absl::FailedPreconditionError(
              absl::StrCat("what answers for rank ", rank, " at ", address, " is not it: ", why));
        }
        PHX_RETURN_IF_ERROR(CheckShape(own_, other.hello));
        peers_[rank] = {std::move(other.socket), address};
        return absl::OkStatus();
      }
      last = absl::StrCat("rank ", rank, " (", address, ") closed the connection at the hello");
      ++refusals;
    }
    PHX_RETURN_IF_ERROR(give_up());
    std::this_thread::sleep_for(kRetry);
  }
  return absl::UnavailableError(last);
}

void Mesh::Refuse(const Stranger& stranger, const std::string& why) {
  if (++refused_ > kMaxLogged) return;
  spdlog::warn("rank {} of group {} refused a connection from {}: {}{}", options_.rank, options_.id,
               stranger.address, why, refused_ == kMaxLogged ? "; further ones are not logged" : "");
}

absl::Status Mesh::Admit(Stranger* stranger) {
  const Hello& hello = stranger->hello;
  if (const std::string why = WhyStranger(own_, hello); !why.empty()) {
    Refuse(*stranger, why);
    return absl::OkStatus();
  }
  // From here it is a rank of this epoch: what is wrong with it is an error of the group, which both say.
  const bool told = SendHello(stranger->socket, own_);
  PHX_RETURN_IF_ERROR(CheckShape(own_, hello));
  if (hello.rank <= options_.rank || hello.rank >= options_.size) {
    Refuse(*stranger, absl::StrCat("it says that it is rank ", hello.rank));
  } else if (peers_[hello.rank].socket.fd() >= 0) {
    Refuse(*stranger, absl::StrCat("rank ", hello.rank, " is connected already"));
  } else if (told) {
    peers_[hello.rank] = {std::move(stranger->socket), stranger->address};
  }
  return absl::OkStatus();
}

absl::Status Mesh::AcceptHigher(const Socket& listener) {
  std::vector<Stranger> strangers;
  std::vector<pollfd> polled;
  int missing = options_.size - 1 - options_.rank;
  while (missing > 0) {
    PHX_RETURN_IF_ERROR(GiveUp());
    polled.assign(1, {listener.fd(), POLLIN, 0});
    for (const Stranger& s : strangers) polled.push_back({s.socket.fd(), POLLIN, 0});
    poll(polled.data(), polled.size(), 50);
    const Clock::time_point now = Clock::now();
    for (Stranger& s : strangers) {
      const bool alive = ReadHello(&s);
      if (s.have == sizeof(Hello)) {
        PHX_RETURN_IF_ERROR(Admit(&s));
      } else if (!alive) {
        Refuse(s, "it ended before its hello");
      } else if (now >= s.until) {
        Refuse(s, "it said no hello");
      } else {
        continue;
      }
      s.socket = Socket();  // moved into peers_ or refused
    }
    std::erase_if(strangers, [](const Stranger& s) { return s.socket.fd() < 0; });
    for (Socket socket = AcceptTcp(listener); socket.fd() >= 0; socket = AcceptTcp(listener)) {
      if (strangers.size() == kMaxStrangers) {
        Refuse(strangers.front(), "too many connections said no hello");
        strangers.erase(strangers.begin());
      }
      const std::string address = PeerAddress(socket.fd());
      strangers.push_back({std::move(socket), address, now + kHelloTime, {}, 0});
    }
    missing = 0;
    for (int r = options_.rank + 1; r < options_.size; ++r) missing += peers_[r].socket.fd() < 0;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<TcpPeer>> ConnectMesh(const CollectiveOptions& options,
                                                 Clock::time_point deadline) {
  if (options.id.empty() || options.id.size() > kMaxIdLength) {
    return absl::InvalidArgumentError(absl::StrCat("collective option id is \"", options.id,
                                                   "\"; it must be 1 to ", kMaxIdLength, " characters"));
  }
  if (!options.meet) {
    return absl::InvalidArgumentError(
        "collective option meet is missing: the ranks of a tcp group need a meeting");
  }
  const auto give_up = [&] {
    if (options.cancelled && options.cancelled()) return absl::CancelledError("the group was cancelled");
    if (Clock::now() < deadline) return absl::OkStatus();
    return absl::DeadlineExceededError(
        absl::StrCat("the ranks had ", options.connect_timeout_ms, " ms to connect"));
  };
  PHX_ASSIGN_OR_RETURN(const Socket listener, ListenTcp(options.tcp.listen_host, options.tcp.first_port,
                                                        options.tcp.last_port, give_up));
  const std::string& host =
      options.tcp.advertise_host.empty() ? options.tcp.listen_host : options.tcp.advertise_host;
  PHX_ASSIGN_OR_RETURN(const Meeting meeting, Meet(options, absl::StrCat(host, ":", PortOf(listener))));
  Mesh mesh(options, deadline, meeting);
  for (int r = 0; r < options.rank; ++r) PHX_RETURN_IF_ERROR(mesh.Dial(r));
  PHX_RETURN_IF_ERROR(mesh.AcceptHigher(listener));
  return mesh.Take();
}

}  // namespace phalanx
