#include "client/pull_progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "base/strings.h"

namespace phalanx {
namespace {

constexpr double kDrawSeconds = 0.2;  // on a terminal
constexpr double kLineSeconds = 15;   // elsewhere
constexpr int kLineWidth = 160;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int TerminalWidth() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string ShowBytes(int64_t bytes) {
  if (bytes < 1000) return absl::StrFormat("%d B", bytes);
  double value = static_cast<double>(bytes);
  const char* unit = "";
  for (const char* next : {"kB", "MB", "GB", "TB", "PB"}) {
    if (value < 999.95) break;
    value /= 1000;
    unit = next;
  }
  return absl::StrFormat("%.1f %s", value, unit);
}

std::string ShowSeconds(double seconds) {
  const auto whole = static_cast<int64_t>(std::ceil(std::clamp(seconds, 0.0, 359999.0)));
  if (whole < 3600) return absl::StrFormat("%d:%02d", whole / 60, whole % 60);
  return absl::StrFormat("%d:%02d:%02d", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string FormatProgress(const ProgressState& state, int width) {
  const double share =
      state.total > 0
          ? std::clamp(static_cast<double>(state.done) / static_cast<double>(state.total), 0.0, 1.0)
          : 0;
  std::string text = absl::StrFormat("%3d%% %s/%s", static_cast<int>(share * 100), ShowBytes(state.done),
                                     ShowBytes(state.total));
  if (state.bytes_per_second > 0) {
    absl::StrAppendFormat(&text, "  %.1f MB/s", state.bytes_per_second / 1e6);
    if (state.total > state.done) {
      const double left = static_cast<double>(state.total - state.done) / state.bytes_per_second;
      absl::StrAppend(&text, "  ETA ", ShowSeconds(left));
    }
  }
  const std::string name = absl::CEscape(ToAbsl(state.file));
  constexpr int kBar = 20;
  const auto room = [&] { return width - static_cast<int>(text.size()); };
  if (room() >= kBar + 3 + 2 + std::min<int>(static_cast<int>(name.size()), 24)) {
    const int full = static_cast<int>(share * kBar);
    text = absl::StrCat("[", std::string(full, '#'), std::string(kBar - full, '-'), "] ", text);
  }
  if (room() >= 2 + 8) {
    const size_t fits = static_cast<size_t>(room() - 2);
    absl::StrAppend(&text, "  ",
                    name.size() <= fits ? name : absl::StrCat("...", name.substr(name.size() - (fits - 3))));
  }
  if (room() < 0) text.resize(static_cast<size_t>(std::max(width, 0)));
  return text;
}

void RateMeter::Add(int64_t bytes, double now) {
  bytes_ += bytes;
  if (since_ < 0) {
    since_ = now;
    return;
  }
  const double passed = now - since_;
  if (passed < kSampleSeconds) return;
  const double sample = static_cast<double>(bytes_) / passed;
  const double weight = rate_ == 0 ? 1 : 1 - std::exp(-passed / kMemorySeconds);
  rate_ += weight * (sample - rate_);
  bytes_ = 0;
  since_ = now;
}

PullProgress::PullProgress(bool quiet, int64_t total_bytes)
    : quiet_(quiet), terminal_(::isatty(STDERR_FILENO) == 1), total_(total_bytes), last_drawn_(Now()) {}

PullProgress::~PullProgress() { Erase(); }

void PullProgress::Begin(const std::string& file, int64_t have) {
  file_ = file;
  done_ += have;
  Draw(true);
}

void PullProgress::Add(int64_t bytes) {
  done_ += bytes;
  rate_.Add(bytes, Now());
  Draw(false);
}

void PullProgress::Lose(int64_t bytes) { done_ -= bytes; }

void PullProgress::End(const std::string& line) {
  Note(line);
  Draw(true);
}

void PullProgress::Note(const std::string& line) {
  if (!quiet_) Line(line);
}

void PullProgress::Warn(const std::string& line) { Line(line); }

void PullProgress::Draw(bool now) {
  if (quiet_) return;
  const double time = Now();
  if (time - last_drawn_ < (terminal_ ? kDrawSeconds : kLineSeconds) && !(now && terminal_)) return;
  last_drawn_ = time;
  const ProgressState state{done_, std::max(total_, done_), rate_.bytes_per_second(), file_};
  if (!terminal_) return Line(FormatProgress(state, kLineWidth));
  drawn_ = true;
  // One column is left free: some terminals wrap behind the last.
  std::fprintf(stderr, "\r\033[K%s", FormatProgress(state, TerminalWidth() - 1).c_str());
  std::fflush(stderr);
}

void PullProgress::Erase() {
  if (!drawn_) return;
  drawn_ = false;
  std::fprintf(stderr, "\r\033[K");
  std::fflush(stderr);
}

void PullProgress::Line(const std::string& line) {
  Erase();
  std::fprintf(stderr, "%s\n", line.c_str());
}

}  // namespace phalanx
