#include "worker/config.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/kv_type.h"
#include "base/status_macros.h"
#include "base/version.h"

namespace phalanx {
namespace {

constexpr const char* kRungs[] = {"auto", "reference", "avx2", "avx512", "amx"};
constexpr const char* kDevices[] = {"cpu", "cuda", "auto", "cuda-emulated"};
constexpr const char* kSpeculate[] = {"auto", "off"};
constexpr const char* kPinThreads[] = {"auto", "on", "off"};
constexpr const char* kLogLevels[] = {"debug", "info", "warning", "error"};

template <class Names>
absl::Status CheckOneOf(const char* flag, const std::string& value, const Names& names) {
  if (std::find(std::begin(names), std::end(names), value) != std::end(names)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is '", value, "'; it must be one of ", absl::StrJoin(names, ", ")));
}

absl::Status CheckRange(const char* flag, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, " is ", value, "; it must be ", min, " to ", max));
}

// Names travel in logs and errors.
absl::Status CheckName(const char* flag, const std::string& value) {
  const bool printable =
      std::all_of(value.begin(), value.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
  if (!value.empty() && value.size() <= 200 && printable) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is '", value, "'; it must be 1 to 200 printable characters without spaces"));
}

absl::Status CheckHostPort(const char* flag, const std::string& value, int min_port) {
  const size_t colon = value.rfind(':');
  int port = -1;
  const bool v6 = value.find(':') != colon;  // an IPv6 address needs its brackets
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(value.substr(colon + 1), &port) ||
      port < min_port || port > 65535 || value.find_first_of(" /,") != std::string::npos ||
      (v6 && (value.front() != '[' || value[colon - 1] != ']'))) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " is '", value, "'; it must be HOST:PORT with a port of ", min_port, " to 65535"));
  }
  return absl::OkStatus();
}

std::string HostOf(const std::string& address) { return address.substr(0, address.rfind(':')); }

std::string HostName() {
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0') return "localhost";
  return name;
}

}  // namespace

absl::Status WorkerConfig::Validate() const {
  if (coordinators.empty()) {
    return absl::InvalidArgumentError(
        "--coordinator is missing: a worker needs at least one to register with");
  }
  for (size_t i = 0; i < coordinators.size(); ++i) {
    PHX_RETURN_IF_ERROR(CheckHostPort("--coordinator", coordinators[i], 1));
    if (std::count(coordinators.begin(), coordinators.end(), coordinators[i]) > 1) {
      return absl::InvalidArgumentError(absl::StrCat("--coordinator '", coordinators[i], "' is given twice"));
    }
  }
  PHX_RETURN_IF_ERROR(CheckHostPort("--listen", listen, 0));
  if (!advertise.empty()) {
    PHX_RETURN_IF_ERROR(CheckHostPort("--advertise", advertise, 1));
  } else if (HostOf(listen) == "0.0.0.0" || HostOf(listen) == "[::]") {
    return absl::InvalidArgumentError(
        absl::StrCat("--listen is '", listen, "', which followers cannot dial; give --advertise HOST:PORT"));
  }
  if (!metrics_listen.empty()) PHX_RETURN_IF_ERROR(CheckHostPort("--metrics-listen", metrics_listen, 0));
  PHX_RETURN_IF_ERROR(CheckName("--id", id));
  PHX_RETURN_IF_ERROR(CheckName("--host-id", host_id));
  PHX_RETURN_IF_ERROR(CheckRange("--threads", threads, 0, 1024));
  PHX_RETURN_IF_ERROR(CheckOneOf("--device", device, kDevices));
  PHX_RETURN_IF_ERROR(CheckOneOf("--pin-threads", pin_threads, kPinThreads));
  PHX_RETURN_IF_ERROR(CheckOneOf("--rung", rung, kRungs));
  if (rung != "auto" && device != "cpu") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--rung is '", rung, "', which is of --device cpu; with --device ", device, " it must be auto"));
  }
  PHX_RETURN_IF_ERROR(CheckOneOf("--kv-cache-dtype", kv_cache_dtype, kKvTypeNames));
  if (!(kv_fraction > 0 && kv_fraction <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-fraction is ", kv_fraction, "; it must be above 0 and at most 1"));
  }
  PHX_RETURN_IF_ERROR(CheckRange("--kv-bytes", kv_bytes, 0, int64_t{1} << 50));
  PHX_RETURN_IF_ERROR(CheckRange("--max-tokens-per-step", max_tokens_per_step, 1, 1 << 20));
  PHX_RETURN_IF_ERROR(CheckRange("--max-sequences", max_sequences, 1, 1 << 16));
  if (max_sequences > max_tokens_per_step) {
    return absl::InvalidArgumentError(absl::StrCat("--max-sequences is ", max_sequences,
                                                   "; it must be at most --max-tokens-per-step (",
                                                   max_tokens_per_step, "): each takes a token of a step"));
  }
  PHX_RETURN_IF_ERROR(CheckOneOf("--speculate", speculate, kSpeculate));
  PHX_RETURN_IF_ERROR(CheckRange("--max-guesses", max_guesses, 1, 64));
  if (shared_weights != "off" && (shared_weights.empty() || shared_weights.front() != '/')) {
    return absl::InvalidArgumentError(absl::StrCat("--shared-weights is '", shared_weights,
                                                   "'; it must be a folder's path from the root, or off"));
  }
  return CheckOneOf("--log-level", log_level, kLogLevels);
}

bool WorkerConfig::ListensOnLoopback() const {
  const std::string host = HostOf(listen);
  return host == "localhost" || host == "[::1]" || host.rfind("127.", 0) == 0;
}

ParsedFlags ParseFlags(int argc, const char* const* argv, WorkerConfig* config) {
  CLI::App app(
      "phalanx-worker: one rank of a Phalanx cluster. It registers with coordinators and serves what they "
      "assign.");
  app.option_defaults()->always_capture_default();
  app.add_option("--coordinator", config->coordinators, "HOST:PORT to register with (repeatable)")
      ->allow_extra_args(false);
  app.add_option("--listen", config->listen,
                 "HOST:PORT where this worker, as a leader, takes its followers (port 0: any free)");
  app.add_option("--advertise", config->advertise,
                 "HOST:PORT that followers dial (default: the listening one)");
  app.add_option(
      "--metrics-listen", config->metrics_listen,
      "HOST:PORT for GET /metrics (Prometheus) and /healthz over HTTP (port 0: any free; default: none)");
  app.add_option("--id", config->id, "unique name (default: HOST-ID and the process id)");
  app.add_option("--host-id", config->host_id,
                 "equal for workers that share memory (default: the host's name)");
  app.add_option("--threads", config->threads,
                 "threads of its kernels (0: the host's cores shared between its workers)");
  app.add_option(
      "--device", config->device,
      "cpu; cuda: a GPU, by the CUDA module beside the program; auto: cuda where there is one, else cpu; "
      "cuda-emulated: a test device");
  app.add_option("--pin-threads", config->pin_threads,
                 "keeps the kernels' threads, all but the one that hands them work, on a CPU each: auto "
                 "(where the process "
                 "was given as many CPUs as it has threads, fewer than the machine's, that no other worker "
                 "has), on, or off");
  app.add_option("--rung", config->rung, "kernels on the CPU: auto, reference, avx2, avx512 or amx");
  app.add_option("--kv-cache-dtype", config->kv_cache_dtype,
                 "what the KV cache is held in where a load request does not say: auto (fp32 in fp32 "
                 "arithmetic, else bf16), bf16, fp32 or int8 (half of bf16's memory)");
  app.add_option("--kv-fraction", config->kv_fraction, "part of its share of free memory for the KV cache");
  app.add_option("--kv-bytes", config->kv_bytes, "upper limit of the KV cache (0: none)");
  app.add_option("--max-tokens-per-step", config->max_tokens_per_step,
                 "tokens of a step, prompt chunks included");
  app.add_option("--max-sequences", config->max_sequences, "sequences running at once");
  app.add_option(
      "--speculate", config->speculate,
      "auto: where a text repeats itself, its next tokens are guessed and verified in one step, as long "
      "as that pays; output stays the same; or off");
  app.add_option("--max-guesses", config->max_guesses, "tokens guessed at once");
  app.add_option(
      "--shared-weights", config->shared_weights,
      "folder, in memory, where packed weights of 16 MiB and more lie once for all workers of this "
      "host that need the same; or off. Without room there each worker has its own");
  app.add_option("--log-level", config->log_level, "debug, info, warning or error");
  app.set_version_flag("--version", std::string("phalanx-worker ") + kVersion);

  ParsedFlags result;
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    result.exit = true;
    result.exit_code = error.get_exit_code() == 0 ? 0 : 1;
    if (result.exit_code == 0) {
      std::ostringstream out, err;
      app.exit(error, out, err);
      result.output = out.str();
    } else {
      result.output = absl::StrCat("phalanx-worker: ", error.what(), " (--help lists the flags)\n");
    }
    return result;
  }
  if (config->host_id.empty()) config->host_id = HostName();
  if (config->id.empty()) config->id = absl::StrCat(config->host_id, "-", getpid());
  if (const absl::Status valid = config->Validate(); !valid.ok()) {
    result.exit = true;
    result.exit_code = 1;
    result.output = absl::StrCat("phalanx-worker: ", std::string(valid.message()), "\n");
  }
  return result;
}

std::string Describe(const WorkerConfig& c) {
  return absl::StrCat("coordinators ", absl::StrJoin(c.coordinators, " "), ", host-id ", c.host_id,
                      ", device ", c.device, ", rung ", c.rung, ", threads ", c.threads, ", pin-threads ",
                      c.pin_threads, ", kv-cache-dtype ", c.kv_cache_dtype, ", kv-fraction ", c.kv_fraction,
                      ", kv-bytes ", c.kv_bytes, ", max-tokens-per-step ", c.max_tokens_per_step,
                      ", max-sequences ", c.max_sequences, ", speculate ", c.speculate, ", max-guesses ",
                      c.max_guesses, ", shared-weights ", c.shared_weights);
}

}  // namespace phalanx
