#include "client/chat.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
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
  if (c.min_p) s->set_min_p(*c.min_p);
  if (c.repetition_penalty) s->set_repetition_penalty(*c.repetition_penalty);
  if (c.presence_penalty) s->set_presence_penalty(*c.presence_penalty);
  if (c.frequency_penalty) s->set_frequency_penalty(*c.frequency_penalty);
  if (c.seed) s->set_seed(*c.seed);
  if (c.max_tokens) s->set_max_tokens(*c.max_tokens);
  if (c.min_tokens) s->set_min_tokens(*c.min_tokens);
  if (c.max_reasoning_tokens) s->set_max_reasoning_tokens(*c.max_reasoning_tokens);
  for (const std::string& stop : c.stop) s->add_stop(stop);
  if (c.ignore_eos) s->set_ignore_eos(true);
  request.set_priority(c.priority);
  request.set_cache_salt(c.cache_salt);
  return request;
}

// What one answer was, as far as it came.
struct Reply {
  std::string reasoning, text;
};

// Writes a reply to stdout as it comes: the reasoning dimmed, or between marks where there are no colours.
class Printer {
 public:
  explicit Printer(const ClientConfig& c)
      : hide_(c.hide_reasoning), colour_(isatty(STDOUT_FILENO) && !c.no_color && EmptyVariable("NO_COLOR")) {}

  void Reasoning(const std::string& text) {
    if (text.empty() || hide_) return;
    if (!open_) Write(colour_ ? "\x1b[2m" : "<think>\n");
    open_ = true;
    Write(text);
  }
  void Text(const std::string& text) {
    if (text.empty()) return;
    CloseReasoning();
    Write(text);
  }
  // Ends the last line; a whole reply has one even when it is empty.
  void Finish(bool whole) {
    CloseReasoning();
    if (wrote_ || whole) Write("\n");
  }

 private:
  static bool EmptyVariable(const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr || value[0] == '\0';
  }
  void CloseReasoning() {
    if (!open_) return;
    open_ = false;
    Write(colour_ ? "\x1b[0m\n" : "\n</think>\n");
  }
  void Write(const std::string& text) {
    wrote_ = true;
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  const bool hide_, colour_;
  bool open_ = false;  // inside the reasoning
  bool wrote_ = false;
};

void PrintUsage(const v1::Finished& finished) {
  const v1::Usage& u = finished.usage();
  const double decode = u.total_seconds() - u.time_to_first_token_seconds();
  std::string speed;
  if (u.completion_tokens() > 1 && decode > 0) {
    speed = absl::StrCat(", ", static_cast<int64_t>((u.completion_tokens() - 1) / decode * 10) / 10.0,
                         " tokens/s");
  }
  std::string reasoning;
  if (u.reasoning_tokens() > 0) reasoning = absl::StrCat(" (", u.reasoning_tokens(), " of reasoning)");
  std::fprintf(stderr, "[%d prompt + %d generated tokens%s, first after %.0f ms%s, %s]\n", u.prompt_tokens(),
               u.completion_tokens(), reasoning.c_str(), u.time_to_first_token_seconds() * 1e3, speed.c_str(),
               finished.reason() == v1::FINISH_REASON_LENGTH ? "cut at the length limit" : "complete");
}

// Streams one answer to stdout. Cancelled when Ctrl-C came; `reply` holds what was said in any case.
absl::Status StreamAnswer(const ClientConfig& c, v1::Inference::Stub* stub, const v1::Chat& history,
                          Reply* reply) {
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
  v1::Finished finished;
  Printer printer(c);
  while (reader->Read(&response)) {
    if (response.has_chunk()) {
      reply->reasoning += response.chunk().reasoning();
      reply->text += response.chunk().text();
      printer.Reasoning(response.chunk().reasoning());
      printer.Text(response.chunk().text());
    } else if (response.has_finished()) {
      finished = response.finished();
    }
  }
  const grpc::Status status = reader->Finish();
  done = true;
  watcher.join();
  printer.Finish(status.ok());
  if (status.ok() && !finished.has_usage()) return absl::InternalError("the stream ended without `finished`");
  if (status.ok() && !c.quiet) PrintUsage(finished);
  return FromGrpc(status);
}

// gRPC would only say that it cannot send a text that is not UTF-8.
absl::Status CheckUtf8(const std::string& what, const std::string& text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  const auto bad = [&](size_t at) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is not UTF-8 at byte ", at, "; convert it first (iconv -t utf-8)"));
  };
  for (size_t i = 0; i < text.size();) {
    const unsigned char first = bytes[i];
    const size_t more = first < 0x80   ? 0
                        : first < 0xc2 ? 4
                        : first < 0xe0 ? 1
                        : first < 0xf0 ? 2
                        : first < 0xf5 ? 3
                                       : 4;
    if (more == 4 || i + more >= text.size()) return bad(i);
    for (size_t k = 1; k <= more; ++k) {
      if ((bytes[i + k] & 0xc0) != 0x80) return bad(i);
    }
    // No overlong forms, no surrogates, nothing above U+10FFFF.
    const unsigned char second = more > 0 ? bytes[i + 1] : 0;
    if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) ||
        (first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f)) {
      return bad(i);
    }
    i += more + 1;
  }
  return absl::OkStatus();
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
  PHX_RETURN_IF_ERROR(CheckUtf8("--system", config.system));
  PHX_RETURN_IF_ERROR(CheckUtf8("--cache-salt", config.cache_salt));
  for (const std::string& stop : config.stop) PHX_RETURN_IF_ERROR(CheckUtf8("--stop", stop));
  if (!config.system.empty()) add("system", config.system);

  if (!config.prompt.empty()) {
    const std::string prompt = absl::StrJoin(config.prompt, " ");
    PHX_RETURN_IF_ERROR(CheckUtf8("the prompt", prompt));
    add("user", prompt);
    Reply reply;
    return StreamAnswer(config, stub.get(), history, &reply);
  }

  const bool interactive = isatty(STDIN_FILENO);
  if (interactive) std::fprintf(stderr, "Ask something; Ctrl-C cancels an answer, Ctrl-D ends.\n");
  std::string line;
  for (int64_t number = 1;; ++number) {
    if (interactive) std::fprintf(stderr, "> ");
    if (!std::getline(std::cin, line)) break;
    if (line.empty()) continue;
    if (const absl::Status valid = CheckUtf8(absl::StrCat("line ", number, " of the input"), line);
        !valid.ok()) {
      if (!interactive) return valid;
      std::fprintf(stderr, "phalanx: %s\n", std::string(valid.message()).c_str());
      continue;
    }
    add("user", line);
    Reply reply;
    const absl::Status status = StreamAnswer(config, stub.get(), history, &reply);
    if (absl::IsCancelled(status)) {
      if (!interactive) return status;
      std::fprintf(stderr, "[cancelled]\n");
    } else if (!status.ok()) {
      if (!interactive) return status;
      std::fprintf(stderr, "phalanx: %s\n", std::string(status.message()).c_str());
    }
    if (reply.text.empty()) {
      history.mutable_messages()->RemoveLast();  // the question was not answered: ask it again or another
    } else {
      add("assistant", reply.text);
      // Apart: most templates leave the reasoning of earlier turns out.
      history.mutable_messages(history.messages_size() - 1)->set_reasoning(reply.reasoning);
    }
  }
  if (interactive) std::fputs("\n", stderr);
  return absl::OkStatus();
}

}  // namespace phalanx
