// Runs CUDA kernels on the host, one fiber per CUDA thread, so that the device code of kernels/cuda is tested
// where there is neither a GPU nor a toolkit.
//
// What it is strict about, because a device may be: shared memory is poisoned at the start of a block; what
// cp.async will write is poisoned from its issue until the issuing thread waits for it; warps run in an order
// drawn from a seed, each as far as it can ("warp-greedy"), and lanes start in an order drawn likewise, so
// that a missing barrier shows; blocks run in a drawn order; shared addresses are checked where instructions
// take them, and an unreadable page lies behind shared memory; a collective of a warp that not all lanes
// reach together, a barrier that is never met, or an instruction of a whole warp that reads what cp.async
// brought with no barrier between, ends the process with a message.
//
// What it cannot say: speed, bank conflicts, the memory model between blocks, races between lanes inside one
// instruction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

namespace phalanx::simt {

inline constexpr int kWarp = 32;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// Which kind of fault the running kernels are to have: for tests that show that faults are found. Each names
// one place in the kernels; see PHX_FAULT.
enum class Fault {
  kNone,
  kGemmNoBarrier,        // the pipeline's barrier between filling and reading a stage
  kGemmNoWait,           // the wait for the stage's copies
  kGemmSwappedFragment,  // the two halves of a B fragment
  kGemmNoEpilogueBarrier,
  kAttentionWrongPage,     // a key's page taken from the neighbour in the block table
  kAttentionMaskOffByOne,  // a row sees one key too many
  kAttentionNoBarrier,     // between the probabilities' writers and readers
  kAttentionNoWait,
  kNormNoBarrier,
  kFp8RowsNoBarrier,  // between a row's largest numbers, by warp, and their readers
  kSampleNoBarrier,
  kExchangeNoWait,       // peers are not waited for
  kExchangeOldEpoch,     // an exchange counted as the one before it
  kWgmmaEarlyRelease,    // a stage given back while wgmma may still read it
  kWgmmaTailNotCleared,  // values beyond the last key
  kAttentionStaleItems,  // the items of a step are not made: those of the step before stay
  kAttentionOneItem,     // a block takes its first item only
  kRopeStoresPadding,    // a row that is not to be stored is, in slot 0
};
Fault fault();
void SetFault(Fault fault);
// Of the order of warps, lanes and blocks of launches on all threads from now on.
void SetSeed(uint32_t seed);

// A device's queue. What is enqueued runs at once, or is kept: by a recording, or (`lazy`) until Run.
class Stream {
 public:
  using Work = std::function<void()>;
  explicit Stream(bool lazy) : lazy_(lazy) {}

  void Enqueue(Work work);
  void StartRecording() { recording_ = true; }
  bool recording() const { return recording_; }
  std::vector<Work> FinishRecording();
  // How much work has been enqueued.
  int64_t end() const { return done_ + static_cast<int64_t>(waiting_.size()); }
  // Runs what waits, up to the place `end`.
  void Run(int64_t end);

 private:
  const bool lazy_;
  bool recording_ = false;
  std::vector<Work> recorded_;
  std::deque<Work> waiting_;
  int64_t done_ = 0;
};

// Runs `body` once per thread of the grid. `shared_bytes` of dynamic shared memory.
void Launch(const char* name, Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body);

// How many launches there have been of a kernel, on all threads.
int64_t LaunchesOf(const std::string& kernel);

// Called before and after every launch, on its thread. Before threads start.
void SetAroundLaunches(void (*before)(), void (*after)());

// ---- For code inside a kernel ---------------------------------------------------------------------

const Dim3& BlockIndex();
const Dim3& GridSize();
const Dim3& BlockSize();
unsigned ThreadIndex();  // blocks have one dimension
char* SharedMemory();
void SyncThreads();
void SyncWarp();
// How many barriers this thread's block has met: what was done under another number lies behind a barrier.
int64_t BlockBarriers();
// Lets other threads run: for a loop that waits for what they do.
void Yield();
// Inside a collective's function: lets other warps run for a while, for an instruction that ends late.
void Delay();
[[noreturn]] void Fail(const char* what);  // ends the process, saying which thread of which kernel
// A thread that ends without having called it ends the process.
void WaitForPrevious();

// A collective of all 32 lanes of a warp: `run` gets the lanes' operands when the last of them has come.
using WarpFunction = void (*)(void* const operands[kWarp]);
void WarpCollective(WarpFunction run, void* operand);

// cp.async of 16 bytes, of which `source_bytes` are read and the rest are zero.
void CopyAsync(void* shared, const void* global, int source_bytes);
void CommitCopies();
// Completes all but the latest `pending` groups of this thread.
void WaitCopies(int pending);
// Ends the process unless [address, address + bytes) is aligned to `bytes` and in shared memory.
void CheckShared(const void* address, size_t bytes, const char* instruction);
// Ends it unless a barrier lies between the wait for the copy to these 16 bytes of shared memory and now: the
// warp's, where one of its threads waited. Collectives run in an order that hides what is missing here.
void CheckFilled(const void* address);

}  // namespace phalanx::simt
