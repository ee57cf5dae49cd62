#include "base/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

namespace phalanx {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class HttpServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    HttpServer::Handlers handlers;
    handlers["/a"] = [] { return HttpReply{200, "text/x", "hello"}; };
    handlers["/bad"] = [] { return HttpReply{503, "text/plain", "no\n"}; };
    auto server = HttpServer::Start("127.0.0.1:0", handlers);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  int Connect() const {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const timeval patience = {20, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(server_->port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  }
  static void Say(int fd, const std::string& text) { send(fd, text.data(), text.size(), MSG_NOSIGNAL); }
  // What comes until the server closes.
  static std::string ReadAll(int fd) {
    std::string out;
    char buffer[4096];
    for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;)
      out.append(buffer, static_cast<size_t>(n));
    close(fd);
    return out;
  }
  std::string Ask(const std::string& text) const {
    const int fd = Connect();
    Say(fd, text);
    return ReadAll(fd);
  }

  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersGet) {
  const std::string reply = Ask("GET /a?x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(reply, HasSubstr("Content-Type: text/x\r\n"));
  EXPECT_THAT(reply, HasSubstr("Content-Length: 5\r\n"));
  EXPECT_THAT(reply, EndsWith("\r\n\r\nhello"));
}

TEST_F(HttpServerTest, AnswersHeadWithoutBody) {
  const std::string reply = Ask("HEAD /a HTTP/1.0\r\n\r\n");
  EXPECT_THAT(reply, HasSubstr("Content-Length: 5\r\n"));
  EXPECT_THAT(reply, EndsWith("\r\n\r\n"));
}

TEST_F(HttpServerTest, KeepsAConnectionOpen) {
  const int fd = Connect();
  Say(fd, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
  char first[256];
  ASSERT_GT(recv(fd, first, sizeof(first), 0), 0);
  usleep(20000);
  // Two at once, the second the last.
  Say(fd, "HEAD /a HTTP/1.1\r\nHost: x\r\n\r\nGET /bad HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string reply = ReadAll(fd);
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(reply, HasSubstr("HTTP/1.1 503 Service Unavailable\r\n"));
  EXPECT_THAT(reply, EndsWith("\r\n\r\nno\n"));
}

TEST_F(HttpServerTest, RefusesTheRest) {
  EXPECT_THAT(Ask("GET /b HTTP/1.0\r\n\r\n"), StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(Ask("GET /b HTTP/1.0\r\n\r\n"), HasSubstr("/a, /bad"));
  EXPECT_THAT(Ask("DELETE /a HTTP/1.0\r\n\r\n"), StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(Ask("DELETE /a HTTP/1.0\r\n\r\n"), HasSubstr("Allow: GET, HEAD\r\n"));
  EXPECT_THAT(Ask("POST /a HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc"), StartsWith("HTTP/1.1 413 "));
  EXPECT_THAT(Ask("GET /a HTTP/1.0\r\nX: " + std::string(9000, 'x') + "\r\n\r\n"),
              StartsWith("HTTP/1.1 431 "));
  EXPECT_THAT(Ask("what is this\r\n\r\n"), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Ask("GET /a HTTP/1.0\r\n\r\n"), EndsWith("hello"));
}

TEST_F(HttpServerTest, ClosesConnectionsBeyondItsLimit) {
  std::vector<int> open;
  for (int i = 0; i < 64; ++i) open.push_back(Connect());
  EXPECT_THAT(Ask("GET /a HTTP/1.0\r\n\r\n"), Not(EndsWith("hello")));
  for (const int fd : open) close(fd);
  std::string reply;
  for (int i = 0; i < 100 && reply.empty(); ++i) {
    usleep(20000);
    reply = Ask("GET /a HTTP/1.0\r\n\r\n");
  }
  EXPECT_THAT(reply, EndsWith("hello"));
}

TEST_F(HttpServerTest, CutsOffASlowRequest) {
  const int fd = Connect();
  Say(fd, "GET /a HT");
  EXPECT_EQ(ReadAll(fd), "");  // at the latest after SO_RCVTIMEO, which fails the next line
  EXPECT_THAT(Ask("GET /a HTTP/1.0\r\n\r\n"), EndsWith("hello"));
}

TEST_F(HttpServerTest, EndsWithConnectionsOpen) {
  const int idle = Connect();
  const int begun = Connect();
  Say(begun, "GET /a");
  usleep(20000);
  server_.reset();
  EXPECT_EQ(ReadAll(idle), "");
  EXPECT_EQ(ReadAll(begun), "");
}

TEST(HttpServerStartTest, NamesTheAddress) {
  EXPECT_THAT(std::string(HttpServer::Start("nonsense", {}).status().message()), HasSubstr("nonsense"));
  EXPECT_THAT(std::string(HttpServer::Start("127.0.0.1:70000", {}).status().message()), HasSubstr("70000"));
  auto first = HttpServer::Start("127.0.0.1:0", {});
  ASSERT_TRUE(first.ok());
  const std::string taken = "127.0.0.1:" + std::to_string((*first)->port());
  const auto second = HttpServer::Start(taken, {});
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(taken));
}

}  // namespace
}  // namespace phalanx
