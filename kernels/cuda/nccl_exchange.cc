#include "kernels/cuda/nccl_exchange.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kernels/leave_grace.h"
#include "kernels/ops.h"

namespace phalanx::cuda {
namespace {

std::function<void(const std::string&)>& ExitFunction() {
  static auto& exit = *new std::function<void(const std::string&)>([](const std::string& why) {
    std::fprintf(stderr, "phalanx: %s; ending the process\n", why.c_str());
    std::fflush(stderr);
    _exit(1);
  });
  return exit;
}

constexpr std::chrono::microseconds kPoll(20);
constexpr int kSpins = 200;

}  // namespace

void SetNcclExitForTesting(std::function<void(const std::string&)> exit) { ExitFunction() = std::move(exit); }

NcclExchange::NcclExchange(std::shared_ptr<Runtime> runtime, bool half, bool fast,
                           const ExchangeOptions& options, ExchangeLayout layout)
    : runtime_(std::move(runtime)), half_(half), fast_(fast), options_(options), layout_(std::move(layout)) {}

// There is no orderly end: ncclCommDestroy waits for the peers, which may be gone.
NcclExchange::~NcclExchange() {
  Stop();
  runtime_->Synchronize(kNcclAbortMs).IgnoreError();
  for (void* data : {sums_, rows_, narrow_, bytes_}) {
    if (data != nullptr) runtime_->Free(data);
  }
  if (event_ != nullptr) runtime_->peers().DestroyEvent(event_);
}

absl::Status NcclExchange::Open(bool shares_device, const std::string& why) {
  struct Card {
    NcclUniqueId id;
    int32_t failed = 0;
    char message[240] = {};
  };
  Card own;
  const auto prepare = [&]() -> absl::Status {
    PHX_ASSIGN_OR_RETURN(api_, LoadNccl());
    PHX_ASSIGN_OR_RETURN(event_, runtime_->peers().CreateEvent());
    PHX_ASSIGN_OR_RETURN(sums_,
                         runtime_->Allocate(layout_.num_subtrees(options_.rank) * options_.max_elements * 4));
    // What one shot may bring, and else a slice.
    int64_t row =
        std::min(options_.max_elements, (options_.max_elements + options_.size - 1) / options_.size + 64);
    int64_t one_shot = options_.max_elements;
    while (one_shot > 0 && !layout_.OneShot(one_shot)) one_shot /= 2;
    row = std::max(row, std::min(options_.max_elements, 2 * one_shot + 1));
    if (fast_) {
      PHX_ASSIGN_OR_RETURN(narrow_, runtime_->Allocate(options_.max_elements * 2));
    } else {
      PHX_ASSIGN_OR_RETURN(rows_, runtime_->Allocate(layout_.total() * row * 4));
    }
    PHX_ASSIGN_OR_RETURN(bytes_, runtime_->Allocate(options_.size + 1));
    if (options_.rank == 0) {
      if (const int result = api_->GetUniqueId(&own.id); result != kNcclSuccess) {
        return Error("ncclGetUniqueId", result);
      }
    }
    return absl::OkStatus();
  };
  if (shares_device) {
    // NCCL refuses two ranks on one device of a host; each says that it is on a host of its own.
    setenv("NCCL_HOSTID", absl::StrCat("phalanx-", getpid()).c_str(), 0);
    setenv("NCCL_IB_DISABLE", "1", 0);
    setenv("NCCL_MNNVL_ENABLE", "0", 0);
  }
  const absl::Status prepared = prepare();
  own.failed = prepared.ok() ? 0 : 1;
  std::strncpy(own.message, std::string(prepared.message()).c_str(), sizeof(own.message) - 1);
  std::vector<Card> cards(static_cast<size_t>(options_.size));
  if (options_.max_host_gather_bytes < static_cast<int64_t>(sizeof(Card))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_host_gather_bytes is ", options_.max_host_gather_bytes, ", must be at least ", sizeof(Card)));
  }
  PHX_RETURN_IF_ERROR(options_.gather(&own, sizeof(own), cards.data()));
  for (int r = 0; r < options_.size; ++r) {
    const Card& card = cards[static_cast<size_t>(r)];
    if (card.failed == 0) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(why.empty() ? "" : absl::StrCat("peers' memory cannot be mapped (", why, "); "), "rank ",
                     r, ": ", card.message));
  }
  NcclConfig config;
  {
    MutexLock lock(calls_mu_);
    const int result = api_->CommInitRankConfig(&comm_, options_.size, cards[0].id, options_.rank, &config);
    if (result != kNcclSuccess && result != kNcclInProgress) return Error("ncclCommInitRankConfig", result);
  }
  PHX_RETURN_IF_ERROR(WaitFor(0, "to meet the other ranks",
                              Clock::now() + std::chrono::milliseconds(options_.connect_timeout_ms),
                              options_.connect_timeout_ms));
  int version = 0;
  api_->GetVersion(&version);
  description_ = absl::StrCat("NCCL ", NcclVersionText(version),
                              fast_ ? ", which adds sums of 16 bits" : " and kernels that add",
                              why.empty() ? "" : absl::StrCat(", as peers' memory cannot be mapped: ", why),
                              shares_device ? "; ranks share a device, which is slow" : "");
  return absl::OkStatus();
}

absl::Status NcclExchange::Error(const std::string& what, int result) {
  const char* text = api_->GetErrorString(result);
  const char* last = api_->GetLastError(nullptr);
  return absl::UnavailableError(absl::StrCat(what, ": NCCL error ", result, ", ", text == nullptr ? "" : text,
                                             last == nullptr || *last == '\0' ? "" : ": ",
                                             last == nullptr ? "" : last));
}

absl::Status NcclExchange::Fail(uint64_t call, const absl::Status& status) {
  MutexLock lock(mu_);
  if (!fault_.any()) {
    fault_.call = call;
    fault_.transport = status;
  }
  return status;
}

absl::Status NcclExchange::WaitFor(uint64_t call, const std::string& what, Clock::time_point deadline,
                                   int64_t timeout_ms) {
  Clock::time_point left{};  // when `check` first said that a peer is gone
  for (int i = 0;; ++i) {
    if (stopped_) return Fail(call, absl::CancelledError("the exchange was stopped"));
    int state = kNcclInProgress;
    {
      MutexLock lock(calls_mu_);
      if (comm_ == nullptr) return Fail(call, absl::CancelledError("the exchange was stopped"));
      if (const int result = api_->CommGetAsyncError(comm_, &state); result != kNcclSuccess) state = result;
    }
    if (state == kNcclSuccess) return absl::OkStatus();
    if (state != kNcclInProgress) return Fail(call, Error(absl::StrCat("NCCL, asked ", what), state));
    if (i < kSpins) {
      std::this_thread::yield();
      continue;
    }
    const Clock::time_point now = Clock::now();
    if (options_.check) {
      if (absl::Status status = options_.check(); status.ok()) {
        left = {};
      } else if (left == Clock::time_point{}) {
        left = now;
      } else if (now - left > kLeaveGrace) {
        return Fail(call, status);
      }
    }
    if (now > deadline) {
      return Fail(
          call, absl::DeadlineExceededError(absl::StrCat(
                    "NCCL did not come to an end, asked ", what, ", within ", timeout_ms, " ms: one of the ",
                    options_.size, " ranks did not come; it does not say which")));
    }
    std::this_thread::sleep_for(kPoll);
  }
}

absl::Status NcclExchange::Exchange(uint64_t call, const std::vector<Part>& parts) {
  return Enqueue(call, [&](NcclComm comm) {
    int result = api_->GroupStart();
    for (const Part& part : parts) {
      if (result != kNcclSuccess && result != kNcclInProgress) break;
      if (part.bytes == 0) continue;
      const auto bytes = static_cast<size_t>(part.bytes);
      result = part.send != nullptr
                   ? api_->Send(part.send, bytes, kNcclUint8, part.peer, comm, runtime_->stream())
                   : api_->Recv(part.receive, bytes, kNcclUint8, part.peer, comm, runtime_->stream());
    }
    const int ended = api_->GroupEnd();
    return result == kNcclSuccess || result == kNcclInProgress ? ended : result;
  });
}

absl::Status NcclExchange::Enqueue(uint64_t call, const std::function<int(NcclComm)>& enqueue) {
  if (stopped_) return Fail(call, absl::CancelledError("the exchange was stopped"));
  {
    MutexLock lock(calls_mu_);
    if (comm_ == nullptr) return Fail(call, absl::CancelledError("the exchange was stopped"));
    const int result = enqueue(comm_);
    if (result != kNcclSuccess && result != kNcclInProgress) return Fail(call, Error("NCCL", result));
  }
  PHX_RETURN_IF_ERROR(WaitFor(call, "to exchange",
                              Clock::now() + std::chrono::milliseconds(options_.timeout_ms),
                              options_.timeout_ms));
  MutexLock lock(mu_);
  if (pending_) return absl::OkStatus();
  PHX_RETURN_IF_ERROR(runtime_->peers().Record(event_, runtime_->stream()));
  pending_ = true;
  pending_call_ = call;
  pending_since_ = Clock::now();
  return absl::OkStatus();
}

absl::StatusOr<float*> NcclExchange::SumsBuffer(int64_t) { return own_sums(); }

absl::Status NcclExchange::GatherRows(uint64_t call, int64_t count, TreeArgs* tree) {
  const bool one_shot = layout_.OneShot(count);
  const Range own = one_shot ? Range{0, count} : layout_.Slice(options_.rank, count);
  parts_.clear();
  auto* at = static_cast<float*>(rows_);
  for (int r = 0; r < options_.size; ++r) {
    for (int i = 0; i < layout_.num_subtrees(r); ++i) {
      const float*& row = tree->rows[layout_.first_subtree[static_cast<size_t>(r)] + i];
      if (r == options_.rank) {
        row = own_sums() + i * count;
        continue;
      }
      parts_.push_back({.peer = r, .receive = at, .bytes = own.size() * 4});
      row = at - own.begin;
      at += own.size();
    }
    if (r == options_.rank) continue;
    const Range theirs = one_shot ? own : layout_.Slice(r, count);
    for (int i = 0; i < layout_.num_subtrees(options_.rank); ++i) {
      parts_.push_back(
          {.peer = r, .send = own_sums() + i * count + theirs.begin, .bytes = theirs.size() * 4});
    }
  }
  return Exchange(call, parts_);
}

absl::Status NcclExchange::TreeAllReduce(uint64_t call, int64_t count, float* out) {
  if (fast_) {
    NarrowSumsArgs args;
    args.sums = own_sums();
    args.num_rows = layout_.num_subtrees(options_.rank);
    args.count = count;
    args.narrow = static_cast<uint16_t*>(narrow_);
    args.out = out;
    void* const stream = runtime_->stream();
    PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchNarrowSums(args, half_, stream), "TreeAllReduce"));
    PHX_RETURN_IF_ERROR(Enqueue(call, [&](NcclComm comm) {
      return api_->AllReduce(narrow_, narrow_, static_cast<size_t>(count),
                             half_ ? kNcclFloat16 : kNcclBfloat16, kNcclSum, comm, stream);
    }));
    return runtime_->ToStatus(LaunchWidenSums(args, half_, stream), "TreeAllReduce");
  }
  TreeSumArgs args;
  args.tree = layout_.tree;
  PHX_RETURN_IF_ERROR(GatherRows(call, count, &args.tree));
  const bool one_shot = layout_.OneShot(count);
  const Range own = one_shot ? Range{0, count} : layout_.Slice(options_.rank, count);
  args.begin = own.begin;
  args.end = own.end;
  args.dst = out;
  PHX_RETURN_IF_ERROR(runtime_->ToStatus(LaunchTreeSum(args, runtime_->stream()), "TreeAllReduce"));
  if (one_shot) return absl::OkStatus();
  parts_.clear();
  for (int r = 0; r < options_.size; ++r) {
    if (r == options_.rank) continue;
    const Range theirs = layout_.Slice(r, count);
    parts_.push_back({.peer = r, .send = out + own.begin, .bytes = own.size() * 4});
    parts_.push_back({.peer = r, .receive = out + theirs.begin, .bytes = theirs.size() * 4});
  }
  return Exchange(call, parts_);
}

bool NcclExchange::Fuses(int64_t count, const RmsNormParams& norm) const {
  return !fast_ && layout_.OneShot(count) && norm.rows == nullptr && norm.residual.rows > 0;
}

absl::Status NcclExchange::TreeAllReduceRmsNorm(uint64_t call, int64_t count, const RmsNormParams& norm) {
  TreeSumNormArgs args;
  args.tree = layout_.tree;
  PHX_RETURN_IF_ERROR(GatherRows(call, count, &args.tree));
  return LaunchNorm(runtime_.get(), half_, /*fast=*/nullptr, norm, &args);
}

absl::Status NcclExchange::AllGather(uint64_t call, const void* in, int64_t bytes, void* out) {
  char* const own = static_cast<char*>(out) + options_.rank * bytes;
  if (bytes > 0 && own != in) PHX_RETURN_IF_ERROR(runtime_->Copy(own, in, bytes, CopyKind::kOnDevice));
  if (bytes == 0) return Barrier(call);
  parts_.clear();
  for (int r = 0; r < options_.size; ++r) {
    if (r == options_.rank) continue;
    parts_.push_back({.peer = r, .send = own, .bytes = bytes});
    parts_.push_back({.peer = r, .receive = static_cast<char*>(out) + r * bytes, .bytes = bytes});
  }
  return Exchange(call, parts_);
}

absl::Status NcclExchange::Broadcast(uint64_t call, void* data, int64_t bytes, int root) {
  if (bytes == 0) return Barrier(call);
  parts_.clear();
  if (options_.rank != root) {
    parts_.push_back({.peer = root, .receive = data, .bytes = bytes});
  } else {
    for (int r = 0; r < options_.size; ++r) {
      if (r != root) parts_.push_back({.peer = r, .send = data, .bytes = bytes});
    }
  }
  return Exchange(call, parts_);
}

absl::Status NcclExchange::Barrier(uint64_t call) {
  parts_.clear();
  auto* const bytes = static_cast<char*>(bytes_);
  for (int r = 0; r < options_.size; ++r) {
    if (r == options_.rank) continue;
    parts_.push_back({.peer = r, .send = bytes + options_.size, .bytes = 1});
    parts_.push_back({.peer = r, .receive = bytes + r, .bytes = 1});
  }
  return Exchange(call, parts_);
}

void NcclExchange::Stop() {
  if (stopped_.exchange(true)) return;
  // Whoever is inside NCCL comes out, as its communicator does not block; else there is nothing to be saved.
  const Clock::time_point deadline = Clock::now() + std::chrono::milliseconds(kNcclAbortMs);
  while (!calls_mu_.TryLock()) {
    if (Clock::now() > deadline) {
      ExitFunction()(absl::StrCat("a call of NCCL did not return within ", kNcclAbortMs, " ms"));
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const NcclComm comm = comm_;
  comm_ = nullptr;
  calls_mu_.Unlock();
  if (comm == nullptr) return;
  // It lives on where the abort never returns.
  struct Ended {
    Mutex mu;
    CondVar changed;
    bool done ABSL_GUARDED_BY(mu) = false;
  };
  const auto ended = std::make_shared<Ended>();
  std::thread([api = api_, comm, ended] {
    api->CommAbort(comm);
    MutexLock lock(ended->mu);
    ended->done = true;
    ended->changed.NotifyAll();
  }).detach();
  MutexLock lock(ended->mu);
  while (!ended->done && Clock::now() < deadline) {
    ended->changed.WaitFor(ended->mu, std::chrono::milliseconds(10));
  }
  if (!ended->done) {
    ExitFunction()(absl::StrCat("ncclCommAbort did not return within ", kNcclAbortMs, " ms"));
  }
}

ExchangeFault NcclExchange::fault() {
  if (calls_mu_.TryLock()) {
    int state = kNcclSuccess;
    if (comm_ != nullptr) {
      if (const int result = api_->CommGetAsyncError(comm_, &state); result != kNcclSuccess) state = result;
    }
    calls_mu_.Unlock();
    if (state != kNcclSuccess && state != kNcclInProgress) Fail(0, Error("NCCL", state)).IgnoreError();
  }
  MutexLock lock(mu_);
  if (pending_ && !fault_.any()) {
    const absl::StatusOr<bool> done = runtime_->peers().IsDone(event_);
    if (!done.ok()) {
      fault_.call = pending_call_;
      fault_.transport = done.status();
    } else if (*done) {
      pending_ = false;
    } else if (Clock::now() - pending_since_ > std::chrono::milliseconds(options_.timeout_ms)) {
      fault_.call = pending_call_;
      fault_.transport = absl::DeadlineExceededError(
          absl::StrCat("an exchange over NCCL did not end within ", options_.timeout_ms, " ms: one of the ",
                       options_.size, " ranks did not come; it does not say which"));
    }
  }
  ExchangeFault fault = fault_;
  if (stopped_) fault.stopped = true;
  return fault;
}

absl::StatusOr<std::unique_ptr<Exchange>> CreateNcclExchange(std::shared_ptr<Runtime> runtime, bool half,
                                                             bool fast, const ExchangeOptions& options,
                                                             const ExchangeLayout& layout, bool shares_device,
                                                             const std::string& why) {
  auto exchange = std::make_unique<NcclExchange>(std::move(runtime), half, fast, options, layout);
  PHX_RETURN_IF_ERROR(exchange->Open(shares_device, why));
  return exchange;
}

}  // namespace phalanx::cuda
