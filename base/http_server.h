// A small HTTP/1.1 server for operators: metrics and health. GET and HEAD only, without bodies; one thread of
// its own, with limits on connections, on the size of a request and on the time it may take.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace phalanx {

struct HttpReply {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

class HttpServer {
 public:
  // By path ("/metrics"); a query in the request is ignored. Called on the server's thread, one at a time:
  // they must not block.
  using Handlers = std::map<std::string, std::function<HttpReply()>>;

  // `listen` is HOST:PORT, an IPv6 address in brackets; port 0 takes a free one. Other paths than those of
  // `handlers` get 404, other methods 405. InvalidArgument or Unavailable naming the address.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& listen, Handlers handlers);
  // Stops at once; no handler runs afterwards.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx
