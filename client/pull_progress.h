// What a pull shows while it runs: one moving line on a terminal; elsewhere a line for each file, and now
// and then one of a large file. To stderr.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace phalanx {

// "512 B", "1.2 MB", "15.3 GB": powers of 1000.
std::string ShowBytes(int64_t bytes);
// "0:07", "12:30", "3:05:00".
std::string ShowSeconds(double seconds);

struct ProgressState {
  int64_t done = 0, total = 0;  // bytes of all files
  double bytes_per_second = 0;  // 0: not known yet
  std::string_view file;
};

// At most `width` columns; what does not fit is left out, the bar first. Pure.
std::string FormatProgress(const ProgressState& state, int width);

// Bytes per second, mostly of the last few seconds. Pure: the caller brings the time, in seconds.
class RateMeter {
 public:
  void Add(int64_t bytes, double now);
  double bytes_per_second() const { return rate_; }

 private:
  static constexpr double kSampleSeconds = 0.5, kMemorySeconds = 5;
  double rate_ = 0, since_ = -1;
  int64_t bytes_ = 0;
};

class PullProgress {
 public:
  // `quiet` leaves warnings only.
  PullProgress(bool quiet, int64_t total_bytes);
  ~PullProgress();

  void Begin(const std::string& file, int64_t have);
  void Add(int64_t bytes);            // came over the wire
  void Lose(int64_t bytes);           // must come again
  void End(const std::string& line);  // of the file
  void Note(const std::string& line);
  void Warn(const std::string& line);

 private:
  void Draw(bool now);
  void Erase();
  void Line(const std::string& line);

  const bool quiet_, terminal_;
  int64_t total_, done_ = 0;
  std::string file_;
  RateMeter rate_;
  double last_drawn_;
  bool drawn_ = false;
};

}  // namespace phalanx
