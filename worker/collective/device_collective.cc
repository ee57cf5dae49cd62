#include "worker/collective/device_collective.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/logging.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "kernels/leave_grace.h"
#include "kernels/ops.h"
#include "worker/collective/call.h"

namespace phalanx {
namespace {

constexpr int64_t kHostGatherBytes = 4096;
constexpr std::chrono::milliseconds kLook(10);
constexpr int kLooksPerHostLook = kLeaveLook / kLook;

class DeviceCollective : public Collective {
 public:
  DeviceCollective(const CollectiveOptions& options, std::unique_ptr<Collective> host)
      : options_(options), host_(std::move(host)) {}

  ~DeviceCollective() override {
    FailHere(absl::CancelledError("its collective was closed")).IgnoreError();
    if (watcher_.joinable()) watcher_.join();
    exchange_.reset();
  }

  absl::Status Open(Ops* ops, ExchangePath path, int64_t one_shot_bytes) {
    ops_ = ops;
    ExchangeOptions exchange;
    exchange.rank = options_.rank;
    exchange.size = options_.size;
    exchange.num_shards = options_.num_shards;
    exchange.max_elements = options_.max_elements;
    exchange.max_gather_bytes = options_.max_gather_bytes;
    exchange.connect_timeout_ms = options_.connect_timeout_ms;
    exchange.timeout_ms = options_.timeout_ms;
    exchange.path = path;
    exchange.one_shot_bytes = one_shot_bytes;
    exchange.max_host_gather_bytes = kHostGatherBytes;
    exchange.gather = [host = host_.get()](const void* in, int64_t bytes, void* out) {
      return host->AllGather(in, bytes, out);
    };
    exchange.meet = [this](uint64_t call) { return Meet(call); };
    exchange.check = [this]() -> absl::Status {
      if (options_.cancelled && options_.cancelled()) return absl::CancelledError("the group was cancelled");
      return host_->Check();
    };
    PHX_ASSIGN_OR_RETURN(exchange_, ops->CreateExchange(exchange));
    spdlog::info("rank {} of {}: exchanges by {}", options_.rank, options_.size, exchange_->description());
    watcher_ = std::thread([this] { Watch(); });
    return absl::OkStatus();
  }

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  bool enqueues() const override { return exchange_->records(); }

  absl::StatusOr<float*> SumsBuffer(int64_t count) override {
    PHX_RETURN_IF_ERROR(CheckUsable());
    if (absl::Status wrong = CheckSumsBuffer(options_, count); !wrong.ok()) return FailHere(wrong);
    sums_count_ = count;
    return exchange_->SumsBuffer(count);
  }
  absl::Status TreeAllReduce(int64_t count, float* out) override {
    PHX_RETURN_IF_ERROR(TakeSums(count));
    return Did(exchange_->TreeAllReduce(CollectiveCall{CollectiveCall::kTreeAllReduce, 0, count}.packed(),
                                        count, out));
  }
  absl::Status TreeAllReduceRmsNorm(int64_t count, float* out, Ops* ops, const RmsNormParams& norm) override {
    const int64_t product = norm.residual.rows * norm.residual.cols;
    const bool is_these_sums = norm.add == out && (norm.add2 == nullptr || norm.add2 == out + product) &&
                               count == (norm.add2 == nullptr ? product : 2 * product);
    if (ops != ops_ || !is_these_sums || !exchange_->Fuses(count, norm)) {
      PHX_RETURN_IF_ERROR(TreeAllReduce(count, out));
      return ops->RmsNorm(norm);
    }
    if (absl::Status wrong = Validate(norm); !wrong.ok()) return FailHere(wrong);
    PHX_RETURN_IF_ERROR(TakeSums(count));
    return Did(exchange_->TreeAllReduceRmsNorm(
        CollectiveCall{CollectiveCall::kTreeAllReduce, 0, count}.packed(), count, norm));
  }
  absl::Status AllGather(const void* in, int64_t bytes, void* out) override {
    PHX_RETURN_IF_ERROR(CheckUsable());
    if (absl::Status wrong = CheckAllGather(options_, bytes); !wrong.ok()) return FailHere(wrong);
    return Did(
        exchange_->AllGather(CollectiveCall{CollectiveCall::kAllGather, 0, bytes}.packed(), in, bytes, out));
  }
  absl::Status Broadcast(void* data, int64_t bytes, int root) override {
    PHX_RETURN_IF_ERROR(CheckUsable());
    if (absl::Status wrong = CheckBroadcast(options_, bytes, root); !wrong.ok()) return FailHere(wrong);
    return Did(exchange_->Broadcast(
        CollectiveCall{CollectiveCall::kBroadcast, static_cast<uint8_t>(root), bytes}.packed(), data, bytes,
        root));
  }
  absl::Status Barrier() override {
    PHX_RETURN_IF_ERROR(CheckUsable());
    return Did(exchange_->Barrier(CollectiveCall{CollectiveCall::kBarrier}.packed()));
  }
  absl::Status AllGatherOnHost(const void* in, int64_t bytes, void* out) override {
    PHX_RETURN_IF_ERROR(CheckUsable());
    return Did(host_->AllGather(in, bytes, out));
  }

  absl::Status Completed() override {
    const ExchangeFault fault = exchange_->fault();
    return fault.any() ? FailOf(fault) : absl::OkStatus();
  }
  absl::Status Check() const override {
    PHX_RETURN_IF_ERROR(CheckUsable());
    return host_->Check();
  }
  void Abort(const std::string& reason) override { FailHere(absl::CancelledError(reason)).IgnoreError(); }

 private:
  absl::Status CheckUsable() const {
    if (!failed_.load(std::memory_order_relaxed)) return absl::OkStatus();
    MutexLock lock(mu_);
    return status_;
  }

  // Dies of something that this rank alone knows, unless dead already. Returns what it died of.
  absl::Status FailHere(const absl::Status& status) { return Fail(status, /*groups=*/false); }
  // `groups`: the error is the whole group's.
  absl::Status Fail(const absl::Status& status, bool groups) {
    {
      MutexLock lock(mu_);
      if (!status_.ok()) return status_;
      status_ = status;
      failed_.store(true, std::memory_order_relaxed);
      changed_.NotifyAll();
    }
    if (groups) {
      host_->End(status);
    } else {
      host_->Abort(std::string(status.message()));
    }
    if (exchange_ != nullptr) exchange_->Stop();
    return status;
  }

  absl::Status FailOf(const ExchangeFault& fault) {
    const CollectiveCall call = CollectiveCall::Unpack(fault.call);
    absl::Status status = fault.transport;
    if (fault.differs >= 0) {
      status = CallsDiffer(fault.differs, CollectiveCall::Unpack(fault.other_call), options_.rank, call);
    } else if (!fault.missing.empty()) {
      status = DidNotCome(fault.missing, options_.size, call, options_.timeout_ms);
    } else if (status.ok()) {
      status = absl::CancelledError("a wait on the device was stopped");
    }
    return Fail(status, /*groups=*/true);
  }

  // Of a call's own status; where the device knows more, that.
  absl::Status Did(const absl::Status& status) {
    if (status.ok()) return status;
    if (absl::Status dead = CheckUsable(); !dead.ok()) return dead;
    const ExchangeFault fault = exchange_->fault();
    return fault.any() && !fault.stopped ? FailOf(fault) : FailHere(status);
  }

  absl::Status TakeSums(int64_t count) {
    PHX_RETURN_IF_ERROR(CheckUsable());
    if (absl::Status wrong = CheckTreeAllReduce(count, sums_count_); !wrong.ok()) return FailHere(wrong);
    sums_count_ = -1;
    return absl::OkStatus();
  }

  absl::Status Meet(uint64_t call) {
    std::vector<uint64_t> calls(static_cast<size_t>(options_.size));
    PHX_RETURN_IF_ERROR(host_->AllGather(&call, sizeof(call), calls.data()));
    for (int r = 0; r < options_.size; ++r) {
      if (calls[static_cast<size_t>(r)] == call) continue;
      return CallsDiffer(r, CollectiveCall::Unpack(calls[static_cast<size_t>(r)]), options_.rank,
                         CollectiveCall::Unpack(call));
    }
    return absl::OkStatus();
  }

  void Watch() {
    std::chrono::steady_clock::time_point gone{};
    for (int look = 0;; ++look) {
      {
        MutexLock lock(mu_);
        if (status_.ok()) changed_.WaitFor(mu_, kLook);
        if (!status_.ok()) return;
      }
      const ExchangeFault fault = exchange_->fault();
      if (fault.any()) {
        FailOf(fault).IgnoreError();
        return;
      }
      if (look % kLooksPerHostLook != 0) continue;
      const absl::Status host = host_->Check();
      if (host.ok()) continue;
      const auto now = std::chrono::steady_clock::now();
      if (gone == std::chrono::steady_clock::time_point{}) gone = now;
      if (now - gone < kLeaveGrace) continue;
      Fail(host, /*groups=*/true).IgnoreError();
      return;
    }
  }

  const CollectiveOptions options_;
  const std::unique_ptr<Collective> host_;
  Ops* ops_ = nullptr;
  std::unique_ptr<Exchange> exchange_;
  int64_t sums_count_ = -1;  // of SumsBuffer since the last TreeAllReduce; -1: none

  mutable Mutex mu_;
  CondVar changed_;
  std::atomic<bool> failed_{false};  // status_ is an error
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  std::thread watcher_;
};

}  // namespace

CollectiveOptions HostHalf(CollectiveOptions options) {
  options.max_elements = 0;
  options.max_gather_bytes = kHostGatherBytes;
  return options;
}

absl::StatusOr<std::unique_ptr<Collective>> CreateDeviceCollective(Ops* ops, std::unique_ptr<Collective> host,
                                                                   const CollectiveOptions& options,
                                                                   ExchangePath path,
                                                                   int64_t one_shot_bytes) {
  CollectiveOptions own = options;
  own.rank = host->rank();
  auto collective = std::make_unique<DeviceCollective>(own, std::move(host));
  PHX_RETURN_IF_ERROR(collective->Open(ops, path, one_shot_bytes));
  return collective;
}

}  // namespace phalanx
