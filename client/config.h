// The flags of `phalanx`, their defaults and their meaning, in this one place.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace phalanx {

enum class Command { kChat, kStatus, kLoad, kUnload, kInspect, kPull, kBench };

// Lengths are drawn from [least, most].
struct LengthRange {
  int least = 0;
  int most = 0;
};

struct BenchConfig {
  int concurrency = 8;
  double rate = 0;  // requests a second; 0: closed loop
  double burstiness = 1;
  double duration = 0;   // seconds; 0: until `requests` are done
  int64_t requests = 0;  // 0: until `duration` is over; 100 where neither is given
  int64_t warmup = 0;
  LengthRange input_len = {128, 128};
  LengthRange output_len = {128, 128};
  int shared_prefix = 0;  // tokens at the front of all random prompts
  std::string dataset;    // JSON Lines; empty: random token ids
  uint64_t seed = 0;
  std::string json_file, html_file;
};

struct ClientConfig {
  Command command = Command::kStatus;
  std::string server = "127.0.0.1:50051";
  double connect_timeout_seconds = 10;

  // chat
  std::string model;                // empty: the only one loaded
  std::vector<std::string> prompt;  // words of a one-shot prompt; empty: stdin
  std::string system;
  std::optional<float> temperature, top_p, min_p;
  std::optional<float> repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<int> top_k, max_tokens, min_tokens, max_reasoning_tokens;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  int32_t priority = 0;
  std::string cache_salt;
  bool hide_reasoning = false;
  bool no_color = false;         // also when NO_COLOR is set in the environment
  bool quiet = false;            // no usage line
  double timeout_seconds = 600;  // of one answer

  // status, inspect
  bool json = false;

  // load, unload, inspect (path, shards, context_length)
  std::string path;
  std::string name;
  int tensor_parallel = 1, shards = 0, groups = 1, context_length = 0;
  std::string compute = "fast";
  std::string rope = "long";
  std::string kv_cache_dtype = "auto";
  std::string tokenizer;      // a folder; empty: the file's own
  double wait_seconds = 120;  // for READY after load; 0 returns at once

  // inspect
  std::string device_memory;  // of a rank, with its unit; empty: do not say what fits
  std::string kv_dtype = "bf16";
  std::string weight_dtype = "as-is";
  int degree = 0;  // ranks; 0: 1 to 8
  int hosts = 1;   // that those of `degree` are spread over

  // bench; with model, temperature, ignore_eos and timeout_seconds of chat
  BenchConfig bench;

  // pull
  std::string repository;  // ORG/NAME
  std::string revision = "main";
  std::string hub_endpoint = "https://huggingface.co";
  std::string hub_token;                      // from the environment only; empty: none
  std::vector<std::string> include, exclude;  // patterns; no include: what a server needs
  std::string output;                         // empty: DefaultPullDirectory
  int retries = 5;                            // in a row, of one file
  double stall_seconds = 60;                  // without a byte from the hub
};

// InvalidArgument naming the field, its value and what is right.
absl::Status Validate(const ClientConfig& config);

// Parses and validates the command line. `exit_code` is set when the program should end at once (--help,
// --version or a bad flag, after a message was printed).
absl::StatusOr<ClientConfig> ParseClientFlags(int argc, char** argv, std::optional<int>* exit_code);

}  // namespace phalanx
