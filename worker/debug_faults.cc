#include "worker/debug_faults.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace phalanx {
namespace {

constexpr double kMaxDelaySeconds = 3600;

}  // namespace

absl::StatusOr<DebugFault> DebugFault::Parse(const std::string& text) {
  const absl::Status wrong = absl::InvalidArgumentError(
      absl::StrCat("--debug-fault is '", text,
                   "'; it must be delay@STEP=SECONDS, error@STEP, nan@STEP or corrupt, STEP counting from 1 "
                   "and SECONDS at most ",
                   kMaxDelaySeconds));
  DebugFault fault;
  if (text == "corrupt") {
    fault.kind = Kind::kCorrupt;
    return fault;
  }
  const size_t at = text.find('@'), equals = text.find('=');
  if (at == std::string::npos) return wrong;
  const std::string kind = text.substr(0, at);
  const bool delay = kind == "delay";
  if (!delay && kind != "error" && kind != "nan") return wrong;
  if (delay == (equals == std::string::npos)) return wrong;
  fault.kind = delay ? Kind::kDelay : kind == "error" ? Kind::kError : Kind::kNan;
  if (!absl::SimpleAtoi(text.substr(at + 1, delay ? equals - at - 1 : std::string::npos), &fault.step) ||
      fault.step < 1) {
    return wrong;
  }
  if (delay && (!absl::SimpleAtod(text.substr(equals + 1), &fault.seconds) ||
                !(fault.seconds >= 0 && fault.seconds <= kMaxDelaySeconds))) {
    return wrong;
  }
  return fault;
}

DebugFaults::DebugFaults(const std::vector<std::string>& texts) {
  for (const std::string& text : texts) {
    if (absl::StatusOr<DebugFault> fault = DebugFault::Parse(text); fault.ok()) faults_.push_back(*fault);
  }
}

std::vector<DebugFault> DebugFaults::NextStep() {
  if (faults_.empty()) return {};
  const int64_t step = ++steps_;
  std::vector<DebugFault> now;
  for (const DebugFault& fault : faults_) {
    if (fault.step == step) now.push_back(fault);
  }
  return now;
}

absl::Status FaultyRunner::Launch(const StepPlan& plan) {
  nan_ = false;
  if (faults_ == nullptr) return runner_->Launch(plan);
  for (const DebugFault& fault : faults_->NextStep()) {
    switch (fault.kind) {
      case DebugFault::Kind::kDelay:
        spdlog::warn("--debug-fault: step {} waits {} s", fault.step, fault.seconds);
        std::this_thread::sleep_for(std::chrono::duration<double>(fault.seconds));
        break;
      case DebugFault::Kind::kError:
        return absl::InternalError(absl::StrCat("--debug-fault error@", fault.step));
      case DebugFault::Kind::kNan:
        spdlog::warn("--debug-fault: a NaN in step {}", fault.step);
        nan_ = true;
        break;
      case DebugFault::Kind::kCorrupt:
        break;
    }
  }
  return runner_->Launch(plan);
}

absl::StatusOr<StepResult> FaultyRunner::Sample(const std::vector<SampleRow>& samples) {
  PHX_RETURN_IF_ERROR(StartSample(samples));
  return FinishSample();
}

absl::Status FaultyRunner::StartSample(const std::vector<SampleRow>& samples) {
  sampled_nan_ = nan_;
  return runner_->StartSample(samples);
}

absl::StatusOr<StepResult> FaultyRunner::FinishSample() {
  absl::StatusOr<StepResult> result = runner_->FinishSample();
  // What the sampler makes of a row with a NaN (kernels/sampling.h).
  if (sampled_nan_ && result.ok() && !result->ids.empty()) result->ids.front() = -1;
  return result;
}

}  // namespace phalanx
