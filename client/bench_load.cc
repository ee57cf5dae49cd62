#include "client/bench_load.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <limits>
#include <queue>
#include <random>
#include <string>
#include <unordered_set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/mutex.h"

namespace phalanx::bench {
namespace {

using Clock = std::chrono::steady_clock;
namespace v1 = phalanx::v1;

Clock::duration ToDuration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// Of a place of a closed loop after an error that names no delay.
constexpr double kErrorPause = 0.1;

class Call;

// What calls and the thread that begins them share.
class Desk {
 public:
  explicit Desk(Timeline* timeline) : began_(Clock::now()), timeline_(timeline) {}

  double Now() const { return std::chrono::duration<double>(Clock::now() - began_).count(); }
  // Now is 0. While no call is under way.
  void Rebase() { began_ = Clock::now(); }
  Clock::time_point At(double when) const { return began_ + ToDuration(when); }
  void Tokens(double when, uint32_t count) {
    timeline_->Add(Timeline::kTokens, when, count);
    tokens_.fetch_add(count, std::memory_order_relaxed);
  }
  uint64_t tokens() const { return tokens_.load(std::memory_order_relaxed); }
  Timeline* timeline() { return timeline_; }

  // The call is over; its memory is the desk's from now on.
  void Return(Call* call) {
    MutexLock lock(mu_);
    returned_.push_back(call);
    changed_.NotifyAll();
  }
  // Those that are over, after waiting for one until `until`.
  std::deque<Call*> Take(Clock::time_point until) {
    MutexLock lock(mu_);
    while (returned_.empty() && changed_.WaitUntil(mu_, until)) {
    }
    return std::exchange(returned_, {});
  }

 private:
  Clock::time_point began_;
  Timeline* const timeline_;
  std::atomic<uint64_t> tokens_{0};
  Mutex mu_;
  CondVar changed_;
  std::deque<Call*> returned_ ABSL_GUARDED_BY(mu_);
};

// One stream. gRPC calls its methods one after the other, the last of them is OnDone.
class Call final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Call(Desk* desk, v1::GenerateRequest request, double intended, bool counts)
      : counts(counts), desk_(desk), request_(std::move(request)) {
    record.intended = intended;
  }

  void Start(v1::Inference::Stub* stub, double timeout) {
    context_.set_deadline(std::chrono::system_clock::now() +
                          std::chrono::duration_cast<std::chrono::system_clock::duration>(
                              std::chrono::duration<double>(timeout)));
    record.sent = desk_->Now();
    if (counts) desk_->timeline()->Add(Timeline::kStarted, record.sent);
    stub->async()->Generate(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }
  void Cancel() { context_.TryCancel(); }

  Record record;
  const bool counts;  // not of the warm-up

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (response_.has_started()) {
      record.prompt_tokens = response_.started().prompt_tokens();
    } else if (response_.has_chunk() && response_.chunk().token_ids_size() > 0) {
      const double now = desk_->Now();
      const int tokens = response_.chunk().token_ids_size();
      if (record.first < 0) {
        record.first = now;
      } else {
        record.gaps.push_back(static_cast<float>(now - record.last));
      }
      record.last = now;
      record.output_tokens += tokens;
      if (counts) desk_->Tokens(now, static_cast<uint32_t>(tokens));
    } else if (response_.has_finished()) {
      record.finished = true;
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    record.end = desk_->Now();
    record.code = status.error_code();
    if (!status.ok()) {
      record.error = absl::StrCat("code ", status.error_code(), ": ", status.error_message());
      const auto& trailers = context_.GetServerTrailingMetadata();
      const auto retry = trailers.find("retry-after-ms");
      double milliseconds = 0;
      if (retry != trailers.end() &&
          absl::SimpleAtod(std::string(retry->second.data(), retry->second.size()), &milliseconds)) {
        record.retry_after = milliseconds / 1e3;
      }
    }
    if (counts) {
      desk_->timeline()->Add(Timeline::kEnded, record.end);
      if (record.code == grpc::RESOURCE_EXHAUSTED) desk_->timeline()->Add(Timeline::kRefused, record.end);
    }
    desk_->Return(this);
  }

  Desk* const desk_;
  v1::GenerateRequest request_;
  v1::GenerateResponse response_;
  grpc::ClientContext context_;
};

// Begins calls and takes them back; of one thread.
class Runner {
 public:
  Runner(const LoadOptions& options, const std::vector<std::shared_ptr<grpc::Channel>>& channels,
         const MakeRequest& make, Timeline* timeline)
      : options_(options), make_(make), desk_(timeline), random_(options.seed) {
    for (const auto& channel : channels) stubs_.push_back(v1::Inference::NewStub(channel));
  }

  Results Run() {
    Warm();
    desk_.Rebase();
    if (options_.duration > 0) window_end_ = options_.duration;
    options_.rate > 0 ? Open() : Closed();
    const auto close_window = [this](double end) {
      results_.window = end;
      results_.window_tokens = desk_.tokens();
    };
    // A fixed number of requests counts to its end.
    const bool whole = options_.duration <= 0 && !stopping();
    if (!whole) {
      window_end_ = desk_.Now();
      close_window(window_end_);
    }
    while (!open_.empty()) Wait(Clock::now() + std::chrono::seconds(1), nullptr);
    if (whole) close_window(last_end_);
    return std::move(results_);
  }

 private:
  // When each free place of a closed loop may be taken, the first first.
  using Places = std::priority_queue<double, std::vector<double>, std::greater<>>;

  bool stopping() const { return options_.stop != nullptr && options_.stop->load(); }

  void Begin(double intended, bool counts) {
    auto* call = new Call(&desk_, make_(number_++), intended, counts);
    open_.insert(call);
    results_.most_in_flight = std::max<uint64_t>(results_.most_in_flight, open_.size());
    call->Start(stubs_[static_cast<size_t>(number_) % stubs_.size()].get(), options_.timeout);
  }

  // Takes back what is over by `until`, at the latest a little later. `freed` gets when each may be followed.
  void Wait(Clock::time_point until, Places* freed) {
    if (stopping() && !cancelled_) {
      cancelled_ = true;
      for (Call* call : open_) call->Cancel();
    }
    until = std::min(until, Clock::now() + std::chrono::milliseconds(100));
    for (Call* call : desk_.Take(until)) {
      const Record& record = call->record;
      // Who is told to wait, waits.
      const double pause = record.code != 0 ? std::max(record.retry_after, kErrorPause) : 0;
      if (freed != nullptr) freed->push(desk_.Now() + pause);
      last_end_ = std::max(last_end_, record.end);
      if (call->counts) results_.Add(record, window_end_);
      open_.erase(call);
      delete call;
    }
  }

  static Places AllFree(int count) {
    return Places(std::greater<>(), std::vector<double>(static_cast<size_t>(std::max(1, count)), 0.0));
  }

  void Warm() {
    Places free = AllFree(options_.concurrency);
    for (int64_t left = options_.warmup; (left > 0 && !stopping()) || !open_.empty();) {
      for (; left > 0 && !stopping() && !free.empty() && free.top() <= desk_.Now(); --left) {
        free.pop();
        Begin(desk_.Now(), /*counts=*/false);
      }
      Wait(desk_.At(left > 0 && !free.empty() ? free.top() : desk_.Now() + 1), &free);
    }
    results_.most_in_flight = 0;
  }

  bool More(double when, int64_t begun) const {
    return !stopping() && (options_.duration <= 0 || when < options_.duration) &&
           (options_.requests <= 0 || begun < options_.requests);
  }

  void Closed() {
    Places free = AllFree(options_.concurrency);
    for (int64_t begun = 0; More(desk_.Now(), begun);) {
      for (; !free.empty() && free.top() <= desk_.Now() && More(desk_.Now(), begun); ++begun) {
        free.pop();
        Begin(desk_.Now(), /*counts=*/true);
      }
      if (!More(desk_.Now(), begun)) break;
      double next = desk_.Now() + 1;
      if (!free.empty()) next = std::min(next, free.top());
      if (options_.duration > 0) next = std::min(next, options_.duration);
      Wait(desk_.At(next), &free);
    }
  }

  void Open() {
    // Gaps of mean 1 / rate; of shape 1 they are exponential.
    std::gamma_distribution<double> gap(options_.burstiness, 1 / (options_.rate * options_.burstiness));
    int64_t begun = 0;
    for (double intended = gap(random_); More(intended, begun);) {
      // What is late is sent at once: its clock runs since it was meant to be sent.
      if (desk_.Now() < intended) {
        Wait(desk_.At(intended), nullptr);
        continue;
      }
      Begin(intended, /*counts=*/true);
      intended += gap(random_);
      if (++begun % 64 == 0) Wait(Clock::now(), nullptr);
    }
    const bool all = options_.requests > 0 && begun >= options_.requests;
    while (!all && options_.duration > 0 && !stopping() && desk_.Now() < options_.duration) {
      Wait(desk_.At(options_.duration), nullptr);
    }
  }

  const LoadOptions options_;
  const MakeRequest& make_;
  Desk desk_;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<v1::Inference::Stub>> stubs_;
  std::unordered_set<Call*> open_;
  Results results_;
  int64_t number_ = 0;
  double window_end_ = std::numeric_limits<double>::infinity();
  double last_end_ = 0;
  bool cancelled_ = false;
};

}  // namespace

Results RunLoad(const LoadOptions& options, const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                const MakeRequest& make, Timeline* timeline) {
  return Runner(options, channels, make, timeline).Run();
}

}  // namespace phalanx::bench
