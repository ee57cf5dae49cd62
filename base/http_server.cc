// The only file of the servers with Boost.Beast: its headers are slow to compile.
#include "base/http_server.h"

#include <pthread.h>
#include <signal.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace phalanx {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;
using tcp = asio::ip::tcp;

constexpr int kMaxConnections = 64;
constexpr uint32_t kMaxHeadBytes = 8 << 10;
constexpr std::chrono::seconds kRequestTimeout{5};  // to send a request, or to take the reply
constexpr std::chrono::seconds kIdleTimeout{20};    // until the next request of a connection begins
constexpr std::chrono::milliseconds kAcceptPause{100};

// One connection. Lives as long as one of its operations is under way.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(tcp::socket socket, const HttpServer::Handlers* handlers, int* connections)
      : stream_(std::move(socket)), handlers_(handlers), connections_(connections) {
    ++*connections_;
  }
  ~Session() { --*connections_; }

  void Start() { Read(kRequestTimeout); }

 private:
  using Request = http::request_parser<http::empty_body>;
  using Reply = http::response<http::string_body>;

  // Waits for the first byte of a request, so that an idle connection gets more time than a slow one.
  void Wait() {
    stream_.expires_after(kIdleTimeout);
    stream_.socket().async_wait(tcp::socket::wait_read, [self = shared_from_this()](error_code error) {
      if (!error) self->Read(kRequestTimeout);
    });
    // tcp_stream's deadline does not reach async_wait.
    idle_.emplace(stream_.get_executor(), kIdleTimeout);
    idle_->async_wait([weak = weak_from_this()](error_code error) {
      const auto self = weak.lock();
      if (!error && self != nullptr) self->stream_.close();
    });
  }

  void Read(std::chrono::seconds timeout) {
    idle_.reset();
    parser_.emplace();
    parser_->header_limit(kMaxHeadBytes);
    parser_->body_limit(0);
    stream_.expires_after(timeout);
    http::async_read(stream_, buffer_, *parser_,
                     [self = shared_from_this()](error_code error, size_t) { self->OnRead(error); });
  }

  void OnRead(error_code error) {
    if (error == http::error::header_limit)
      return Write({431, kText, "the request's head is too large\n"}, true);
    if (error == http::error::body_limit) return Write({413, kText, "a body is not taken\n"}, true);
    if (error && error.category() == http::make_error_code(http::error::bad_target).category() &&
        error != http::error::end_of_stream && error != http::error::partial_message) {
      return Write({400, kText, "no HTTP request\n"}, true);
    }
    if (error) return;  // the peer left, or took too long
    const Request::value_type& request = parser_->get();
    const bool last = !request.keep_alive();
    const beast::string_view target = request.target();
    std::string_view path(target.data(), target.size());
    path = path.substr(0, path.find('?'));
    const auto handler = handlers_->find(std::string(path));
    if (handler == handlers_->end()) {
      return Write({404, kText, absl::StrCat("there is ", Paths(), " here\n")}, last);
    }
    if (request.method() != http::verb::get && request.method() != http::verb::head) {
      return Write({405, kText, "only GET and HEAD are taken\n"}, last);
    }
    Write(handler->second(), last);
  }

  std::string Paths() const {
    std::string paths;
    for (const auto& [path, handler] : *handlers_) absl::StrAppend(&paths, paths.empty() ? "" : ", ", path);
    return paths;
  }

  void Write(HttpReply reply, bool last) {
    const bool head = parser_->is_header_done() && parser_->get().method() == http::verb::head;
    reply_ = Reply(static_cast<http::status>(reply.status), 11);
    reply_.set(http::field::content_type, reply.content_type);
    reply_.set(http::field::cache_control, "no-store");
    if (reply.status == 405) reply_.set(http::field::allow, "GET, HEAD");
    reply_.keep_alive(!last);
    reply_.content_length(reply.body.size());
    if (!head) reply_.body() = std::move(reply.body);
    stream_.expires_after(kRequestTimeout);
    const auto done = [self = shared_from_this(), last](error_code error, size_t) {
      if (error) return;
      if (!last && self->buffer_.size() == 0) return self->Wait();
      if (!last) return self->Read(kRequestTimeout);  // the next request came along
      error_code ignored;
      self->stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    };
    if (head) {
      serializer_.emplace(reply_);
      http::async_write_header(stream_, *serializer_, done);
    } else {
      http::async_write(stream_, reply_, done);
    }
  }

  static constexpr char kText[] = "text/plain; charset=utf-8";

  beast::tcp_stream stream_;
  const HttpServer::Handlers* const handlers_;
  int* const connections_;
  std::optional<asio::steady_timer> idle_;
  beast::flat_buffer buffer_{kMaxHeadBytes * 2};
  std::optional<Request> parser_;
  Reply reply_;
  std::optional<http::response_serializer<http::string_body>> serializer_;
};

absl::StatusOr<tcp::endpoint> Resolve(asio::io_context* io, const std::string& listen) {
  const size_t colon = listen.rfind(':');
  int port = -1;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(listen.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", listen, "' is not HOST:PORT with a port of 0 to 65535"));
  }
  std::string host = listen.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  error_code error;
  tcp::resolver resolver(*io);
  const auto found = resolver.resolve(host, std::to_string(port), tcp::resolver::passive, error);
  if (error || found.empty()) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", listen, ": ", error.message()));
  }
  return found.begin()->endpoint();
}

}  // namespace

class HttpServer::Impl {
 public:
  explicit Impl(Handlers handlers) : handlers_(std::move(handlers)) {}
  ~Impl() {
    io_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Start(const std::string& listen) {
    const auto endpoint = Resolve(&io_, listen);
    if (!endpoint.ok()) return endpoint.status();
    error_code error;
    acceptor_.open(endpoint->protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(*endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (!error) port_ = acceptor_.local_endpoint(error).port();
    if (error)
      return absl::UnavailableError(absl::StrCat("cannot listen on ", listen, ": ", error.message()));
    Accept();
    // Signals are other threads' to take.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { io_.run(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return absl::OkStatus();
  }

  int port() const { return port_; }

 private:
  void Accept() {
    acceptor_.async_accept([this](error_code error, tcp::socket socket) {
      if (error == asio::error::operation_aborted) return;
      if (error) {  // no descriptors left, say
        pause_.expires_after(kAcceptPause);
        pause_.async_wait([this](error_code) { Accept(); });
        return;
      }
      // Beyond the limit the socket closes here.
      if (connections_ < kMaxConnections) {
        std::make_shared<Session>(std::move(socket), &handlers_, &connections_)->Start();
      }
      Accept();
    });
  }

  const Handlers handlers_;
  int connections_ = 0;  // before io_: sessions that are left end with it
  int port_ = 0;
  asio::io_context io_{1};
  tcp::acceptor acceptor_{io_};
  asio::steady_timer pause_{io_};
  std::thread thread_;
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& listen, Handlers handlers) {
  auto impl = std::make_unique<Impl>(std::move(handlers));
  if (const absl::Status status = impl->Start(listen); !status.ok()) return status;
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

int HttpServer::port() const { return impl_->port(); }

}  // namespace phalanx
