#include "kernels/cuda/emulator/simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#endif

#if !defined(__x86_64__)
#error "the emulator switches fibers with x86-64 instructions"
#endif

// Saves the callee-saved registers on the present stack, whose pointer goes to *save, and goes on at `to`.
extern "C" void phalanx_simt_switch(void** save, void* to);
asm(R"(
.text
.globl phalanx_simt_switch
.hidden phalanx_simt_switch
.type phalanx_simt_switch, @function
phalanx_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size phalanx_simt_switch, .-phalanx_simt_switch
.section .note.GNU-stack,"",@progbits
.text
)");

namespace phalanx::simt {
namespace {

constexpr size_t kStackBytes = size_t{128} << 10;
constexpr size_t kPage = 4096;
constexpr size_t kMaxShared = size_t{227} << 10;  // of a block on sm_90
constexpr int kMaxThreads = 1024;
constexpr int kPoison = 0xff;  // NaN in every floating type

std::atomic<Fault> g_fault{Fault::kNone};
void (*g_before_launch)() = nullptr;
void (*g_after_launch)() = nullptr;
std::atomic<uint32_t> g_seed{1};
std::mutex g_launches_mutex;
std::map<std::string, int64_t> g_launches;  // by kernel

enum class State { kReady, kWaitsWarp, kWaitsBlock, kDone };

struct PendingCopy {
  char* to;
  const char* from;
  int bytes;
};

struct Fiber {
  void* stack_pointer = nullptr;
  State state = State::kDone;
  bool waited = false;                          // has called WaitForPrevious
  std::vector<PendingCopy> open;                // not yet committed
  std::deque<std::vector<PendingCopy>> groups;  // committed
};

struct Warp {
  void* operands[kWarp] = {};
  WarpFunction run = nullptr;
  int arrived = 0;
  int64_t barriers = 0;  // of the warp that it has met
};

// When a thread waited for the latest copy to 16 bytes of shared memory.
struct Fill {
  int warp = -1;
  int64_t block_barriers = -1, warp_barriers = -1;
};

char* MapPages(size_t bytes) {
  void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) {
    std::perror("simt: mmap");
    std::abort();
  }
  return static_cast<char*>(pages);
}

// Pages keep the marks that the fibers' frames left for the sanitizer, and may come back from mmap elsewhere.
void UnmapPages(char* pages, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(pages, bytes);
#endif
  munmap(pages, bytes);
}

// What a host thread needs to run blocks; kept between launches.
struct Machine {
  std::vector<Fiber> fibers{kMaxThreads};
  Warp warps[kMaxThreads / kWarp];
  char* stacks = MapPages(kStackBytes * kMaxThreads);
  // The block's shared memory ends where a page begins that cannot be touched.
  char* shared_pages = MapPages(kMaxShared + 2 * kPage);
  char* shared = nullptr;
  size_t shared_bytes = 0;
  const char* name = "";
  const std::function<void()>* body = nullptr;
  Dim3 grid, block, block_index;
  int num_threads = 0;
  int current = 0;
  int live = 0;
  int at_barrier = 0;
  int64_t block_barriers = 0;  // of all blocks so far, so that what another block did is long ago
  std::vector<Fill> fills{kMaxShared / 16};
  void* scheduler = nullptr;
  std::minstd_rand random;
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
#endif

  Machine() {
    char* end = shared_pages + (kMaxShared + kPage) / kPage * kPage;
    if (mprotect(end, kPage, PROT_NONE) != 0) std::abort();
    shared_end = end;
  }
  ~Machine() {
    UnmapPages(stacks, kStackBytes * kMaxThreads);
    UnmapPages(shared_pages, kMaxShared + 2 * kPage);
  }
  char* shared_end = nullptr;

  char* StackOf(int thread) { return stacks + static_cast<size_t>(thread) * kStackBytes; }
};

thread_local Machine* t_machine = nullptr;

[[noreturn]] void Die(const char* what) {
  const Machine& m = *t_machine;
  std::fprintf(stderr, "simt: kernel %s, block (%u, %u, %u), thread %d: %s\n", m.name, m.block_index.x,
               m.block_index.y, m.block_index.z, m.current, what);
  std::abort();
}

// To another fiber (thread >= 0) or the scheduler (-1).
void SwitchTo(void** save, int thread, bool dying) {
  Machine& m = *t_machine;
  void* const to = thread >= 0 ? m.fibers[thread].stack_pointer : m.scheduler;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  const void* bottom = thread >= 0 ? m.StackOf(thread) : m.scheduler_bottom;
  const size_t size = thread >= 0 ? kStackBytes : m.scheduler_size;
  __sanitizer_start_switch_fiber(dying ? nullptr : &fake, bottom, size);
  phalanx_simt_switch(save, to);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  (void)dying;
  phalanx_simt_switch(save, to);
#endif
}

// The next ready lane of the current warp, -1 if none is.
int NextInWarp() {
  Machine& m = *t_machine;
  const int first = m.current / kWarp * kWarp, end = std::min(first + kWarp, m.num_threads);
  const int count = end - first;
  for (int i = 1; i <= count; ++i) {
    const int thread = first + (m.current - first + i) % count;
    if (m.fibers[thread].state == State::kReady) return thread;
  }
  return -1;
}

// Leaves the current fiber, whose state says why, until it is ready again.
void Leave() {
  Machine& m = *t_machine;
  const int self = m.current;
  const int next = NextInWarp();
  if (next == self) return;
  if (next >= 0) m.current = next;
  SwitchTo(&m.fibers[self].stack_pointer, next, m.fibers[self].state == State::kDone);
}

void ReleaseBarrier() {
  Machine& m = *t_machine;
  m.at_barrier = 0;
  ++m.block_barriers;
  for (int i = 0; i < m.num_threads; ++i) {
    if (m.fibers[i].state == State::kWaitsBlock) m.fibers[i].state = State::kReady;
  }
}

void FiberMain() {
  Machine& m = *t_machine;
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (m.scheduler_bottom == nullptr) {
    m.scheduler_bottom = bottom;
    m.scheduler_size = size;
  }
#endif
  (*m.body)();
  Fiber& self = m.fibers[m.current];
  self.state = State::kDone;
  if (!self.waited) Die("ends without WaitForPrevious");
  if (m.warps[m.current / kWarp].arrived != 0) Die("ends while lanes of its warp wait for it");
  --m.live;
  if (m.live > 0 && m.at_barrier == m.live) ReleaseBarrier();
  Leave();
  Die("was resumed after its end");
}

void RunBlock() {
  Machine& m = *t_machine;
  std::memset(m.shared, kPoison, m.shared_bytes);
  const int num_warps = (m.num_threads + kWarp - 1) / kWarp;
  m.live = m.num_threads;
  m.at_barrier = 0;
  ++m.block_barriers;
  for (int i = 0; i < m.num_threads; ++i) {
    Fiber& fiber = m.fibers[i];
    fiber.state = State::kReady;
    fiber.waited = false;
    fiber.open.clear();
    fiber.groups.clear();
    auto* top = reinterpret_cast<void**>(m.StackOf(i) + kStackBytes);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(m.StackOf(i), kStackBytes);
#endif
    *--top = nullptr;  // FiberMain's return address
    *--top = reinterpret_cast<void*>(&FiberMain);
    for (int r = 0; r < 6; ++r) *--top = nullptr;
    fiber.stack_pointer = top;
  }
  for (int w = 0; w < num_warps; ++w) m.warps[w] = Warp();
  while (m.live > 0) {
    int chosen = -1;
    const int start = static_cast<int>(m.random() % static_cast<unsigned>(num_warps));
    for (int i = 0; i < num_warps && chosen < 0; ++i) {
      const int first = (start + i) % num_warps * kWarp;
      const int count = std::min(kWarp, m.num_threads - first);
      const int lane = static_cast<int>(m.random() % static_cast<unsigned>(count));
      for (int l = 0; l < count && chosen < 0; ++l) {
        const int thread = first + (lane + l) % count;
        if (m.fibers[thread].state == State::kReady) chosen = thread;
      }
    }
    if (chosen < 0) Die("no thread can go on: a barrier or a warp's collective is not reached by all");
    m.current = chosen;
    SwitchTo(&m.scheduler, chosen, false);
  }
}

Fiber& Self() { return t_machine->fibers[t_machine->current]; }

}  // namespace

Fault fault() { return g_fault.load(std::memory_order_relaxed); }
void SetFault(Fault fault) { g_fault = fault; }
void SetSeed(uint32_t seed) { g_seed = seed; }
void SetAroundLaunches(void (*before)(), void (*after)()) {
  g_before_launch = before;
  g_after_launch = after;
}

int64_t LaunchesOf(const std::string& kernel) {
  const std::lock_guard<std::mutex> lock(g_launches_mutex);
  return g_launches[kernel];
}

void Stream::Enqueue(Work work) {
  if (recording_) {
    recorded_.push_back(std::move(work));
  } else if (lazy_) {
    waiting_.push_back(std::move(work));
  } else {
    ++done_;
    work();
  }
}

std::vector<Stream::Work> Stream::FinishRecording() {
  recording_ = false;
  return std::exchange(recorded_, {});
}

void Stream::Run(int64_t end) {
  while (done_ < end) {
    const Work work = std::move(waiting_.front());
    waiting_.pop_front();
    ++done_;
    work();
  }
}

void Launch(const char* name, Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  static thread_local Machine machine;
  Machine& m = machine;
  t_machine = &m;
  m.name = name;
  m.grid = grid;
  m.block = block;
  m.num_threads = static_cast<int>(block.x);
  if (block.y != 1 || block.z != 1 || m.num_threads < 1 || m.num_threads > kMaxThreads) Die("block size");
  if (m.num_threads % kWarp != 0) Die("blocks must be whole warps");
  if (shared_bytes > kMaxShared) Die("more shared memory than a block has");
  m.shared_bytes = (shared_bytes + 127) / 128 * 128;
  m.shared = m.shared_end - m.shared_bytes;
  m.body = &body;
  m.random.seed(g_seed.fetch_add(1) % 0x7ffffffe + 1);
  const size_t blocks = size_t{grid.x} * grid.y * grid.z;
  std::vector<size_t> order(blocks);
  std::iota(order.begin(), order.end(), size_t{0});
  std::shuffle(order.begin(), order.end(), m.random);
  {
    const std::lock_guard<std::mutex> lock(g_launches_mutex);
    ++g_launches[name];
  }
  if (g_before_launch != nullptr) g_before_launch();
  for (const size_t b : order) {
    m.block_index = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                     static_cast<unsigned>(b / grid.x / grid.y)};
    RunBlock();
  }
  if (g_after_launch != nullptr) g_after_launch();
}

const Dim3& BlockIndex() { return t_machine->block_index; }
const Dim3& GridSize() { return t_machine->grid; }
const Dim3& BlockSize() { return t_machine->block; }
unsigned ThreadIndex() { return static_cast<unsigned>(t_machine->current); }
char* SharedMemory() { return t_machine->shared; }
void WaitForPrevious() { Self().waited = true; }

void SyncThreads() {
  Machine& m = *t_machine;
  if (m.warps[m.current / kWarp].arrived != 0) Die("at a barrier while lanes of its warp wait for it");
  if (++m.at_barrier == m.live) {
    ReleaseBarrier();
    return;
  }
  Self().state = State::kWaitsBlock;
  Leave();
}

void SyncWarp() {
  WarpCollective([](void* const*) { ++t_machine->warps[t_machine->current / kWarp].barriers; }, nullptr);
}

int64_t BlockBarriers() { return t_machine->block_barriers; }

void Yield() {
  Machine& m = *t_machine;
  if (m.warps[m.current / kWarp].arrived != 0) Die("waits in a loop while lanes of its warp wait for it");
  SwitchTo(&m.fibers[m.current].stack_pointer, -1, false);
}

void Delay() {
  Machine& m = *t_machine;
  constexpr int kTurns = 64;
  for (int i = 0; i < kTurns; ++i) SwitchTo(&m.fibers[m.current].stack_pointer, -1, false);
}

void Fail(const char* what) { Die(what); }

void WarpCollective(WarpFunction run, void* operand) {
  Machine& m = *t_machine;
  const int first = m.current / kWarp * kWarp;
  Warp& warp = m.warps[m.current / kWarp];
  if (warp.arrived > 0 && warp.run != run) Die("lanes of a warp are at different collectives");
  warp.run = run;
  warp.operands[m.current - first] = operand;
  if (++warp.arrived < kWarp) {
    Self().state = State::kWaitsWarp;
    Leave();
    return;
  }
  run(warp.operands);
  warp.arrived = 0;
  for (int i = first; i < first + kWarp; ++i) {
    if (m.fibers[i].state == State::kWaitsWarp) m.fibers[i].state = State::kReady;
  }
}

void CheckShared(const void* address, size_t bytes, const char* instruction) {
  const Machine& m = *t_machine;
  const char* at = static_cast<const char*>(address);
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) Die(instruction);
  if (at < m.shared || at + bytes > m.shared + m.shared_bytes) Die(instruction);
}

void CheckFilled(const void* address) {
  const Machine& m = *t_machine;
  if (fault() != Fault::kNone) return;  // it is to show in the results
  const Fill& fill = m.fills[static_cast<size_t>(static_cast<const char*>(address) - m.shared) / 16];
  const int warp = m.current / kWarp;
  if (fill.block_barriers < m.block_barriers) return;
  if (fill.warp == warp && fill.warp_barriers < m.warps[warp].barriers) return;
  Die("reads with its warp what cp.async brought, and no barrier lies between");
}

void CopyAsync(void* shared, const void* global, int source_bytes) {
  CheckShared(shared, 16, "cp.async to an address outside of shared memory or not aligned to 16");
  if (source_bytes > 0 && reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    Die("cp.async from an address that is not aligned to 16");
  }
  std::memset(shared, kPoison, 16);
  Self().open.push_back({static_cast<char*>(shared), static_cast<const char*>(global), source_bytes});
}

void CommitCopies() {
  Fiber& self = Self();
  self.groups.push_back(std::move(self.open));
  self.open.clear();
}

void WaitCopies(int pending) {
  Machine& m = *t_machine;
  Fiber& self = Self();
  while (static_cast<int>(self.groups.size()) > pending) {
    for (const PendingCopy& copy : self.groups.front()) {
      std::memset(copy.to, 0, 16);
      if (copy.bytes > 0) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
      const int warp = m.current / kWarp;
      m.fills[static_cast<size_t>(copy.to - m.shared) / 16] = {warp, m.block_barriers,
                                                               m.warps[warp].barriers};
    }
    self.groups.pop_front();
  }
}

}  // namespace phalanx::simt
