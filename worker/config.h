// The worker's configuration: every default once, read from the command line in config.cc.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace phalanx {

struct WorkerConfig {
  // --coordinator HOST:PORT, repeatable: coordinators to register with.
  std::vector<std::string> coordinators;
  // --listen HOST:PORT: where this worker, as a leader, takes its followers. Port 0 takes a free one.
  std::string listen = "127.0.0.1:0";
  // --advertise HOST:PORT: the address followers dial; empty: the listening one. Needed when listening on
  // 0.0.0.0.
  std::string advertise;
  std::string id;              // --id; empty: "<host-id>-<pid>"
  std::string host_id;         // --host-id: equal for workers that share memory; empty: the host's name
  std::string metrics_listen;  // --metrics-listen: metrics and health over HTTP; empty: none
  int threads = 0;             // --threads; 0: the host's cores shared between its workers, at least 1
  std::string device = "cpu";  // --device: cpu, cuda, auto (cuda where there is one), cuda-emulated (tests)
  // --pin-threads: auto (where the process was given CPUs of its own), on or off.
  std::string pin_threads = "auto";
  std::string rung = "auto";            // --rung: auto, reference, avx2 or amx
  std::string kv_cache_dtype = "auto";  // --kv-cache-dtype: auto (fp32 in fp32 arithmetic, else bf16), bf16,
                                        // fp32 or int8, for models whose load request names none
  double kv_fraction =
      0.5;               // --kv-fraction: part of this worker's share of free memory that KV blocks may take
  int64_t kv_bytes = 0;  // --kv-bytes: upper limit of it; 0: none
  int max_tokens_per_step = 512;  // --max-tokens-per-step: the scheduler's token budget
  int max_sequences = 64;         // --max-sequences: running at once
  std::string speculate =
      "auto";           // --speculate: auto (guesses from a text's own repetitions where they pay) or off
  int max_guesses = 8;  // --max-guesses: of a row
  // --shared-weights: folder of packed weights that the host's workers share; "off": each has its own.
  std::string shared_weights = "/dev/shm";
  std::string log_level = "info";

  // What has no flag.
  int kv_block_size = 32;
  int max_queued_requests = 1024;
  int connect_timeout_ms = 30000;       // for all ranks of a group to meet
  int load_timeout_ms = 300000;         // a group's threads to end, when stopped while they load weights
  int shared_weights_wait_ms = 300000;  // for another worker to pack weights
  int64_t min_shared_weight_bytes = int64_t{16} << 20;  // less is not worth a file
  int collective_timeout_ms = 120000;  // one exchange between live ranks; covers the skew of loading
  int teardown_timeout_ms = 30000;     // the same when they do not load; beyond, the process exits
  int exit_timeout_ms = 5000;          // the same after SIGTERM
  int stuck_step_seconds = 60;         // a step running longer makes the health service say NOT_SERVING
  int load_report_ms = 500;

  // InvalidArgument naming the flag, its value and what would be right.
  absl::Status Validate() const;
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
