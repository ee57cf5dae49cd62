// The worker's configuration: every default once, read from the command line in config.cc.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/collective/collective.h"

namespace phalanx {

struct WorkerConfig {
  // --coordinator HOST:PORT, repeatable: coordinators to register with.
  std::vector<std::string> coordinators;
  // --listen HOST:PORT: where this worker, as a leader, takes its followers. Port 0 takes a free one.
  std::string listen = "127.0.0.1:0";
  // --advertise HOST:PORT: the address followers dial; empty: the listening one. Needed when listening on
  // 0.0.0.0.
  std::string advertise;
  // --collective-listen HOST[:PORT[-PORT]]: where this worker, as a rank of a group over several hosts, takes
  // the other ranks; empty: the host of --listen, any port. What they dial is the same host, or --advertise's
  // where that one is no host (0.0.0.0).
  std::string collective_listen;
  std::string id;              // --id; empty: "<host-id>-<pid>"
  std::string host_id;         // --host-id: equal for workers that share memory; empty: the host's name
  std::string metrics_listen;  // --metrics-listen: metrics and health over HTTP; empty: none
  int threads = 0;             // --threads; 0: the host's cores shared between its workers, at least 1
  std::string device = "cpu";  // --device: cpu, cuda, auto (cuda where there is one), cuda-emulated (tests)
  // --cuda-mode: invariant (the same tokens whatever the batch) or fast (whatever is fastest).
  std::string cuda_mode = "invariant";
  // --cuda-dtype: bf16 or fp16, of activations, of weights but those that stay quantised, and of the KV
  // cache.
  std::string cuda_dtype = "bf16";
  // --cache-folder: of what --cuda-mode fast has found out about a device; empty: $XDG_CACHE_HOME/phalanx or
  // ~/.cache/phalanx.
  std::string cache_folder;
  int gpu = -1;  // --gpu: which of those that the process sees; -1: the rank's number, counted round
  std::string gpu_exchange = "auto";  // --gpu-exchange: auto, peer (the peers' memory, mapped), nccl
  // --cuda-graphs: auto (decode steps are recorded and replayed where the device can), on (else an error),
  // off.
  std::string cuda_graphs = "auto";
  std::string cuda_dependent_launch = "off";  // --cuda-dependent-launch: on or off
  // --pin-threads: auto (where the process was given CPUs of its own), on or off.
  std::string pin_threads = "auto";
  std::string rung = "auto";            // --rung: auto, reference, avx2, avx512, avx512_bf16 or amx
  std::string kv_cache_dtype = "auto";  // --kv-cache-dtype: auto (fp32 in fp32 arithmetic, else bf16), bf16,
                                        // fp32, int8 or fp8, for models whose load request names none
  double kv_fraction =
      0.5;               // --kv-fraction: part of this worker's share of free memory that KV blocks may take
  int64_t kv_bytes = 0;  // --kv-bytes: upper limit of it; 0: none
  int max_tokens_per_step = 512;  // --max-tokens-per-step: the scheduler's token budget
  int max_sequences = 64;         // --max-sequences: running at once
  int max_queued = 4096;          // --max-queued: waiting for those; more are refused
  std::string speculate =
      "auto";           // --speculate: auto (guesses from a text's own repetitions where they pay) or off
  int max_guesses = 8;  // --max-guesses: of a row
  // --shared-weights: folder of packed weights that the host's workers share; "off": each has its own.
  std::string shared_weights = "/dev/shm";
  // --verify-weights: files of weights are read whole and compared with their checksums before they are used.
  bool verify_weights = false;
  int stuck_step_seconds =
      60;  // --stuck-step: a step running longer makes the health service say NOT_SERVING
  // --exchange-timeout: an exchange with a rank that gives signs of life and yet does not come for so long
  // ends the group. One that gives none ends it within 3.5 s.
  int exchange_timeout_seconds = 3600;
  std::string log_level = "info";
  std::vector<std::string> debug_faults;  // --debug-fault, repeatable: see debug_faults.h

  // What has no flag.
  int kv_block_size = 32;
  int connect_timeout_ms = 30000;       // for all ranks of a group to meet
  int load_timeout_ms = 300000;         // a group's threads to end, when stopped while they load weights
  int shared_weights_wait_ms = 300000;  // for another worker to pack weights
  int64_t min_shared_weight_bytes = int64_t{16} << 20;  // less is not worth a file
  int teardown_timeout_ms = 30000;  // the same when they do not load; beyond, the process exits
  int exit_timeout_ms = 5000;       // the same after SIGTERM
  int load_report_ms = 500;

  // InvalidArgument naming the flag, its value and what would be right.
  absl::Status Validate() const;
  // Of a valid configuration: hosts and ports.
  TcpOptions CollectiveListen() const;
  // Whether --listen is reachable from this host only.
  bool ListensOnLoopback() const;
};

// What main does with the command line: go on with the configuration, or print and exit.
struct ParsedFlags {
  bool exit = false;
  int exit_code = 0;
  std::string output;  // one line on stderr when exit_code is not 0, else help or version on stdout
};

// Fills in empty ids, and validates.
ParsedFlags ParseFlags(int argc, const char* const* argv, WorkerConfig* config);
// One line for the log.
std::string Describe(const WorkerConfig& config);

}  // namespace phalanx
