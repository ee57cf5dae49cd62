// The coordinator's flags and their defaults: each exists here once.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "coordinator/cluster_state.h"

namespace phalanx::coordinator {

struct Config {
  std::string listen = "127.0.0.1:50051";
  // Where metrics and health are served over HTTP; empty: nowhere.
  std::string metrics_listen;
  std::string log_level = "info";
  // Loaded at start unless model.path is empty.
  ModelSpec model;
  std::string compute = "fast";
  std::string rope = "long";
  std::string kv_cache_dtype = "auto";
  std::string collective = "auto";
  CollectiveChoice collective_choice = CollectiveChoice::kAuto;  // what Validate makes of it
  int32_t max_tokens_default = 4096;
  int64_t max_in_flight = 4096;
  // Messages a client may lag behind before its request is cancelled.
  int64_t max_unsent = 1024;
  double heartbeat_interval_s = 1;
  double heartbeat_timeout_s = 3.5;
  double load_timeout_s = 600;
  // A group whose leader has requests and ends no step for so long is formed anew.
  double stall_timeout_s = 600;
  double drain_grace_s = 30;

  // InvalidArgument naming the flag, its value and what would be right. Fills in
  // collective_choice, model.compute, model.rope and model.kv_type.
  absl::Status Validate();
  // Whether `listen` can be reached from this machine only.
  bool ListensOnLoopback() const;
};

struct ParsedFlags {
  bool exit = false;  // the program is to end with `exit_code`, `output` is what it says
  int exit_code = 0;
  std::string output;  // on stdout when exit_code is 0, else one line on stderr
};

// Reads the command line into `config` and validates it.
ParsedFlags ParseFlags(int argc, const char* const* argv, Config* config);

}  // namespace phalanx::coordinator
