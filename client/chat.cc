#include "client/chat.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/connection.h"
#include "phalanx/v1/inference.grpc.pb.h"

namespace phalanx {
namespace {

namespace v1 = phalanx::v1;

volatile std::sig_atomic_t g_interrupts = 0;
void OnInterrupt(int) { g_interrupts = g_interrupts + 1; }

v1::GenerateRequest MakeRequest(const ClientConfig& c, const v1::Chat& history) {
  v1::GenerateRequest request;
  request.set_model(c.model);
  *request.mutable_chat() = history;
  v1::SamplingParams* s = request.mutable_sampling();
  if (c.temperature) s->set_temperature(*c.temperature);
  if (c.top_k) s->set_top_k(*c.top_k);
  if (c.top_p) s->set_top_p(*c.top_p);
  if (c.seed) s->set_seed(*c.seed);
  if (c.max_tokens) s->set_max_tokens(*c.max_tokens);
  for (const std::string& stop : c.stop) s->add_stop(stop);
  if (c.ignore_eos) s->set_ignore_eos(true);
  return request;
}

void PrintUsage(const v1::Finished& finished) {
  const v1::Usage& u = finished.usage();
  const double decode = u.total_seconds() - u.time_to_first_token_seconds();
  std::string speed;
  if (u.completion_tokens() > 1 && decode > 0) {
    speed = absl::StrCat(", ", static_cast<int64_t>((u.completion_tokens() - 1) / decode * 10) / 10.0,
                         " tokens/s");
  }
  std::fprintf(stderr, "[%d prompt + %d generated tokens, first after %.0f ms%s, %s]\n", u.prompt_tokens(),
               u.completion_tokens(), u.time_to_first_token_seconds() * 1e3, speed.c_str(),
               finished.reason() == v1::FINISH_REASON_LENGTH ? "cut at the length limit" : "complete");
}

// Streams one answer to stdout. Cancelled when Ctrl-C came; `answer` holds what was said in any case.
absl::Status StreamAnswer(const ClientConfig& c, v1::Inference::Stub* stub, const v1::Chat& history,
                          std::string* answer) {
  grpc::ClientContext context;
  context.set_deadline(DeadlineIn(c.timeout_seconds));
  const int interrupts_before = g_interrupts;
  std::atomic<bool> done{false};
  // A signal handler may not call gRPC: this thread looks at the flag. It ends with the stream, which has a
  // deadline.
  std::thread watcher([&] {
    while (!done) {
      if (g_interrupts != interrupts_before) {
        context.TryCancel();
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });
  auto reader = stub->Generate(&context, MakeRequest(c, history));
  v1::GenerateResponse response;
  bool finished = false;
  while (reader->Read(&response)) {
    if (response.has_chunk()) {
      *answer += response.chunk().text();
      std::fwrite(response.chunk().text().data(), 1, response.chunk().text().size(), stdout);
      std::fflush(stdout);
    } else if (response.has_finished()) {
      finished = true;
      std::fputs("\n", stdout);
      std::fflush(stdout);
      if (!c.quiet) PrintUsage(response.finished());
    }
  }
  const grpc::Status status = reader->Finish();
  done = true;
  watcher.join();
  if (!finished && !answer->empty()) std::fputs("\n", stdout);
  if (status.ok() && !finished) return absl::InternalError("the stream ended without `finished`");
  return FromGrpc(status);
}

}  // namespace

absl::Status RunChat(const ClientConfig& config, const std::shared_ptr<grpc::Channel>& channel) {
  struct sigaction action = {};
  action.sa_handler = OnInterrupt;  // no SA_RESTART: a read of stdin ends with EINTR
  sigaction(SIGINT, &action, nullptr);

  auto stub = v1::Inference::NewStub(channel);
  v1::Chat history;
  const auto add = [&history](const char* role, const std::string& content) {
    v1::ChatMessage* m = history.add_messages();
    m->set_role(role);
    m->set_content(content);
  };
  if (!config.system.empty()) add("system", config.system);

  if (!config.prompt.empty()) {
    add("user", absl::StrJoin(config.prompt, " "));
    std::string answer;
    return StreamAnswer(config, stub.get(), history, &answer);
  }

  const bool interactive = isatty(STDIN_FILENO);
  if (interactive) std::fprintf(stderr, "Ask something; Ctrl-C cancels an answer, Ctrl-D ends.\n");
  std::string line;
  while (true) {
    if (interactive) std::fprintf(stderr, "> ");
    if (!std::getline(std::cin, line)) break;
    if (line.empty()) continue;
    add("user", line);
    std::string answer;
    const absl::Status status = StreamAnswer(config, stub.get(), history, &answer);
    if (absl::IsCancelled(status)) {
      if (!interactive) return status;
      std::fprintf(stderr, "[cancelled]\n");
    } else if (!status.ok()) {
      if (!interactive) return status;
      std::fprintf(stderr, "phalanx: %s\n", std::string(status.message()).c_str());
    }
    if (answer.empty()) {
      history.mutable_messages()->RemoveLast();  // the question was not answered: ask it again or another
    } else {
      add("assistant", answer);
    }
  }
  if (interactive) std::fputs("\n", stderr);
  return absl::OkStatus();
}

}  // namespace phalanx
