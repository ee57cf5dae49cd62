#include "tests/cuda/fake_nccl.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/half.h"
#include "kernels/numeric.h"

namespace phalanx::cuda {
namespace {

constexpr int kInvalidUsage = 5;

struct Message {
  const void* data;
  size_t bytes;
  bool taken = false;
};

// Of one all-reduce, which each rank comes to once.
struct Reduction {
  int type = 0, come = 0;
  std::vector<std::vector<uint16_t>> parts;  // of each rank
};

struct Hub {
  std::mutex mu;
  std::map<int, std::shared_ptr<Reduction>> reductions;  // by how many each rank came to before
  int joined = 0;
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> sent;  // by (from, to)
};

struct Operation {
  int peer;
  std::shared_ptr<Message> send;         // or
  std::shared_ptr<Reduction> reduction;  // or neither; both are received
  void* receive = nullptr;
  size_t bytes = 0;
  bool done = false;
};

struct Comm {
  std::shared_ptr<Hub> hub;
  int rank = 0, size = 0;
  std::vector<Operation> pending;
  int error = 0, reductions = 0;
};

std::mutex g_mu;
std::map<std::string, std::shared_ptr<Hub>> g_hubs;
std::atomic<bool> g_abort_hangs{false};
std::atomic<int> g_async_error{0}, g_all_reduces{0};
thread_local std::vector<std::pair<Comm*, Operation>> t_group;

int GetVersion(int* version) {
  *version = 22809;
  return 0;
}
int GetUniqueId(NcclUniqueId* id) {
  static std::atomic<int> next{0};
  std::memset(id, 0, sizeof(*id));
  std::snprintf(id->bytes, sizeof(id->bytes), "fake %d", next.fetch_add(1));
  return 0;
}
int CommInitRankConfig(NcclComm* comm, int size, NcclUniqueId id, int rank, NcclConfig* config) {
  if (config->blocking != 0 || config->magic != 0xcafebeef || rank < 0 || rank >= size) return 4;
  std::lock_guard<std::mutex> lock(g_mu);
  std::shared_ptr<Hub>& hub = g_hubs[id.bytes];
  if (hub == nullptr) hub = std::make_shared<Hub>();
  auto made = std::make_unique<Comm>();
  made->hub = hub;
  made->rank = rank;
  made->size = size;
  ++hub->joined;
  *comm = made.release();
  return kNcclInProgress;
}

// Adds the ranks' parts from the last on, rounding each time: an order that is not the tree's.
int Reduce(const Reduction& reduction, void* out) {
  std::vector<uint16_t> sum = reduction.parts.back();
  const bool half = reduction.type == kNcclFloat16;
  const auto wide = [half](uint16_t v) { return half ? FloatFromF16(v) : FloatFromBf16(v); };
  for (size_t r = reduction.parts.size() - 1; r-- > 0;) {
    if (reduction.parts[r].size() != sum.size()) return kInvalidUsage;
    for (size_t i = 0; i < sum.size(); ++i) {
      const float v = wide(sum[i]) + wide(reduction.parts[r][i]);
      sum[i] = half ? HalfFromFloat(v) : Bf16FromFloat(v);
    }
  }
  std::memcpy(out, sum.data(), sum.size() * 2);
  return 0;
}

int CommGetAsyncError(NcclComm of, int* state) {
  Comm& comm = *static_cast<Comm*>(of);
  if (const int error = g_async_error; error != 0) comm.error = error;
  std::lock_guard<std::mutex> lock(comm.hub->mu);
  bool all = comm.hub->joined >= comm.size;
  std::map<int, bool> blocked;  // receives of a peer are in order
  for (Operation& op : comm.pending) {
    if (op.done) continue;
    if (op.send != nullptr) {
      op.done = op.send->taken;
    } else if (op.reduction != nullptr) {
      op.done = op.reduction->come == comm.size;
      if (op.done) comm.error = Reduce(*op.reduction, op.receive);
    } else if (!blocked[op.peer]) {
      auto& queue = comm.hub->sent[{op.peer, comm.rank}];
      if (queue.empty()) {
        blocked[op.peer] = true;
      } else {
        Message& message = *queue.front();
        if (message.bytes != op.bytes) comm.error = kInvalidUsage;
        std::memcpy(op.receive, message.data, std::min(message.bytes, op.bytes));
        message.taken = true;
        queue.pop_front();
        op.done = true;
      }
    }
    all = all && op.done;
  }
  if (all) comm.pending.clear();
  *state = comm.error != 0 ? comm.error : all ? kNcclSuccess : kNcclInProgress;
  return 0;
}

int CommAbort(NcclComm of) {
  if (g_abort_hangs) std::this_thread::sleep_for(std::chrono::milliseconds(3000));
  auto* comm = static_cast<Comm*>(of);
  {
    std::lock_guard<std::mutex> lock(comm->hub->mu);
    for (int r = 0; r < comm->size; ++r) comm->hub->sent[{comm->rank, r}].clear();
  }
  delete comm;
  return 0;
}

int GroupStart() {
  t_group.clear();
  return 0;
}
int GroupEnd() {
  for (auto& [comm, op] : t_group) {
    std::lock_guard<std::mutex> lock(comm->hub->mu);
    if (op.send != nullptr) comm->hub->sent[{comm->rank, op.peer}].push_back(op.send);
    comm->pending.push_back(op);
  }
  const bool empty = t_group.empty();
  t_group.clear();
  return empty ? kNcclSuccess : kNcclInProgress;
}
int Send(const void* data, size_t count, int type, int peer, NcclComm comm, void*) {
  if (type != kNcclUint8) return 4;
  Operation op;
  op.peer = peer;
  op.send = std::make_shared<Message>(Message{data, count});
  t_group.emplace_back(static_cast<Comm*>(comm), op);
  return 0;
}
int Recv(void* data, size_t count, int type, int peer, NcclComm comm, void*) {
  if (type != kNcclUint8) return 4;
  Operation op;
  op.peer = peer;
  op.receive = data;
  op.bytes = count;
  t_group.emplace_back(static_cast<Comm*>(comm), op);
  return 0;
}
int AllReduce(const void* data, void* out, size_t count, int type, int op, NcclComm of, void*) {
  if ((type != kNcclFloat16 && type != kNcclBfloat16) || op != kNcclSum) return 4;
  Comm& comm = *static_cast<Comm*>(of);
  std::lock_guard<std::mutex> lock(comm.hub->mu);
  std::shared_ptr<Reduction>& reduction = comm.hub->reductions[comm.reductions++];
  if (reduction == nullptr) {
    reduction = std::make_shared<Reduction>();
    reduction->type = type;
    reduction->parts.resize(static_cast<size_t>(comm.size));
  }
  if (reduction->type != type) return 4;
  const auto* values = static_cast<const uint16_t*>(data);
  reduction->parts[static_cast<size_t>(comm.rank)].assign(values, values + count);
  Operation operation;
  operation.peer = -1;
  operation.reduction = reduction;
  operation.receive = out;
  comm.pending.push_back(operation);
  if (++reduction->come == comm.size) comm.hub->reductions.erase(comm.reductions - 1);
  ++g_all_reduces;
  return kNcclInProgress;
}
const char* GetErrorString(int result) { return result == 0 ? "no error" : "a fake's error"; }
const char* GetLastError(NcclComm) { return ""; }

}  // namespace

const NcclApi* FakeNccl() {
  static const NcclApi api = {GetVersion, GetUniqueId,    CommInitRankConfig, CommGetAsyncError,
                              CommAbort,  GroupStart,     GroupEnd,           Send,
                              Recv,       GetErrorString, GetLastError,       AllReduce};
  return &api;
}

int FakeAllReduces() { return g_all_reduces; }

void SetFakeNcclFaults(const FakeNcclFaults& faults) {
  g_abort_hangs = faults.abort_hangs;
  g_async_error = faults.async_error;
}

}  // namespace phalanx::cuda
