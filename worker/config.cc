#include "worker/config.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/flag_error.h"
#include "base/kv_type.h"
#include "base/status_macros.h"
#include "base/version.h"
#include "worker/debug_faults.h"

namespace phalanx {
namespace {

constexpr const char* kRungs[] = {"auto", "reference", "avx2", "avx512", "avx512_bf16", "amx"};
constexpr const char* kDevices[] = {"cpu", "cuda", "auto", "cuda-emulated"};
constexpr const char* kCudaModes[] = {"invariant", "fast"};
constexpr const char* kGpuExchanges[] = {"auto", "peer", "nccl"};
constexpr const char* kCudaTypes[] = {"bf16", "fp16"};
constexpr const char* kCudaGraphs[] = {"auto", "on", "off"};
constexpr const char* kOnOff[] = {"on", "off"};
constexpr const char* kSpeculate[] = {"auto", "off"};
constexpr const char* kPinThreads[] = {"auto", "on", "off"};
// What an exchange of ranks carries at once, 2^32 bytes or elements, holds the logits of so many sequences
// with vocabularies of 262144, and the activations of so many tokens of width 65536.
constexpr int kMostSequences = 4096;
constexpr int kMostTokensPerStep = 65536;
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

bool IsWildcard(const std::string& host) { return host == "0.0.0.0" || host == "[::]"; }

// HOST[:PORT[-PORT]], the host in brackets if it has colons.
bool ParseHostPorts(const std::string& value, std::string* host, int* first, int* last) {
  *first = *last = 0;
  const size_t bracket = value.find(']');
  const size_t colon = value.find(':', bracket == std::string::npos ? 0 : bracket);
  *host = value.substr(0, colon);
  const bool v6 = value.front() == '[';
  if (host->empty() || host->find_first_of(" /,") != std::string::npos ||
      v6 != (bracket != std::string::npos) || (v6 && (bracket + 1 != host->size() || bracket == 1))) {
    return false;
  }
  if (colon == std::string::npos) return true;
  const std::string ports = value.substr(colon + 1);
  if (ports.find_first_not_of("0123456789-") != std::string::npos) return false;
  const size_t dash = ports.find('-');
  if (!absl::SimpleAtoi(ports.substr(0, dash), first)) return false;
  *last = *first;
  if (dash == std::string::npos) return *first >= 0 && *first <= 65535;
  return absl::SimpleAtoi(ports.substr(dash + 1), last) && *first >= 1 && *first <= *last && *last <= 65535;
}

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
  } else if (IsWildcard(HostOf(listen))) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listen is '", listen, "', which followers cannot dial; give --advertise HOST:PORT"));
  }
  std::string host;
  int first = 0, last = 0;
  if (!collective_listen.empty() && !ParseHostPorts(collective_listen, &host, &first, &last)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--collective-listen is '", collective_listen,
                     "'; it must be HOST, HOST:PORT or HOST:PORT-PORT with ports of 1 to 65535"));
  }
  if (!metrics_listen.empty()) PHX_RETURN_IF_ERROR(CheckHostPort("--metrics-listen", metrics_listen, 0));
  PHX_RETURN_IF_ERROR(CheckName("--id", id));
  PHX_RETURN_IF_ERROR(CheckName("--host-id", host_id));
  PHX_RETURN_IF_ERROR(CheckRange("--threads", threads, 0, 1024));
  PHX_RETURN_IF_ERROR(CheckOneOf("--device", device, kDevices));
  PHX_RETURN_IF_ERROR(CheckOneOf("--cuda-mode", cuda_mode, kCudaModes));
  if (cuda_mode != "invariant" && device == "cpu") {
    return absl::InvalidArgumentError(
        absl::StrCat("--cuda-mode is '", cuda_mode,
                     "', which is of --device cuda; with --device cpu it must be "
                     "invariant"));
  }
  PHX_RETURN_IF_ERROR(CheckOneOf("--cuda-dtype", cuda_dtype, kCudaTypes));
  if (cuda_dtype != "bf16" && device == "cpu") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--cuda-dtype is '", cuda_dtype, "', which is of --device cuda; with --device cpu it must be bf16"));
  }
  PHX_RETURN_IF_ERROR(CheckOneOf("--cuda-graphs", cuda_graphs, kCudaGraphs));
  PHX_RETURN_IF_ERROR(CheckOneOf("--cuda-dependent-launch", cuda_dependent_launch, kOnOff));
  for (const auto& [flag, value] : {std::pair("--cuda-graphs", &cuda_graphs),
                                    std::pair("--cuda-dependent-launch", &cuda_dependent_launch)}) {
    if (*value != "on" || device != "cpu") continue;
    return absl::InvalidArgumentError(absl::StrCat(
        flag, " is on, which is of --device cuda; with --device cpu it must be off or left out"));
  }
  if (!cache_folder.empty() && cache_folder.front() != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("--cache-folder is '", cache_folder, "'; it must be a folder's path from the root"));
  }
  PHX_RETURN_IF_ERROR(CheckRange("--gpu", gpu, -1, 255));
  PHX_RETURN_IF_ERROR(CheckOneOf("--gpu-exchange", gpu_exchange, kGpuExchanges));
  if (device == "cpu" && (gpu >= 0 || gpu_exchange != "auto")) {
    return absl::InvalidArgumentError(absl::StrCat(gpu >= 0 ? "--gpu is " : "--gpu-exchange is ",
                                                   gpu >= 0 ? absl::StrCat(gpu) : gpu_exchange,
                                                   ", which is of --device cuda; this is cpu"));
  }
  PHX_RETURN_IF_ERROR(CheckOneOf("--pin-threads", pin_threads, kPinThreads));
  PHX_RETURN_IF_ERROR(CheckOneOf("--rung", rung, kRungs));
  if (rung != "auto" && device != "cpu") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--rung is '", rung, "', which is of --device cpu; with --device ", device, " it must be auto"));
  }
  if (!KvTypeFromName(kv_cache_dtype).has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-cache-dtype is '", kv_cache_dtype, "'; it must be ", kKvTypeChoices));
  }
  if (!(kv_fraction > 0 && kv_fraction <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-fraction is ", kv_fraction, "; it must be above 0 and at most 1"));
  }
  PHX_RETURN_IF_ERROR(CheckRange("--kv-bytes", kv_bytes, 0, int64_t{1} << 50));
  PHX_RETURN_IF_ERROR(CheckRange("--max-tokens-per-step", max_tokens_per_step, 1, kMostTokensPerStep));
  PHX_RETURN_IF_ERROR(CheckRange("--max-sequences", max_sequences, 1, kMostSequences));
  if (max_sequences > max_tokens_per_step) {
    return absl::InvalidArgumentError(absl::StrCat("--max-sequences is ", max_sequences,
                                                   "; it must be at most --max-tokens-per-step (",
                                                   max_tokens_per_step, "): each takes a token of a step"));
  }
  PHX_RETURN_IF_ERROR(CheckRange("--max-queued", max_queued, 0, 1 << 20));
  PHX_RETURN_IF_ERROR(CheckOneOf("--speculate", speculate, kSpeculate));
  PHX_RETURN_IF_ERROR(CheckRange("--max-guesses", max_guesses, 1, 64));
  if (shared_weights != "off" && (shared_weights.empty() || shared_weights.front() != '/')) {
    return absl::InvalidArgumentError(absl::StrCat("--shared-weights is '", shared_weights,
                                                   "'; it must be a folder's path from the root, or off"));
  }
  PHX_RETURN_IF_ERROR(CheckRange("--stuck-step", stuck_step_seconds, 1, 86400));
  PHX_RETURN_IF_ERROR(CheckRange("--exchange-timeout", exchange_timeout_seconds, 1, 86400));
  for (const std::string& fault : debug_faults) PHX_RETURN_IF_ERROR(DebugFault::Parse(fault).status());
  return CheckOneOf("--log-level", log_level, kLogLevels);
}

TcpOptions WorkerConfig::CollectiveListen() const {
  TcpOptions tcp;
  tcp.listen_host = HostOf(listen);
  if (!collective_listen.empty()) {
    ParseHostPorts(collective_listen, &tcp.listen_host, &tcp.first_port, &tcp.last_port);
  }
  tcp.advertise_host = !IsWildcard(tcp.listen_host) ? tcp.listen_host
                       : !advertise.empty()         ? HostOf(advertise)
                                                    : HostOf(listen);
  return tcp;
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
  app.add_option("--collective-listen", config->collective_listen,
                 "HOST[:PORT[-PORT]] where this worker takes the other ranks of a group that spans hosts "
                 "(default: the host of --listen, any port)");
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
  app.add_option("--cuda-mode", config->cuda_mode,
                 "products and attention on a GPU: invariant (a request's tokens do not depend on what runs "
                 "beside it) or fast (they may; cuBLASLt, found at run time, is needed)");
  app.add_option("--cuda-dtype", config->cuda_dtype,
                 "what a GPU computes with: bf16, or fp16 (finer, but nothing beyond 65504), of weights but "
                 "those that stay quantised too");
  app.add_option("--cuda-graphs", config->cuda_graphs,
                 "steps of few tokens for each sequence on a GPU: auto (recorded once for each of some "
                 "numbers of rows, and replayed, where the device can), on (else it is an error) or off");
  app.add_option("--cuda-dependent-launch", config->cuda_dependent_launch,
                 "on: a kernel's launch overlaps the end of the one before (sm_90); or off");
  app.add_option("--cache-folder", config->cache_folder,
                 "where --cuda-mode fast keeps the algorithms it has found fastest on this device (default: "
                 "phalanx in $XDG_CACHE_HOME, or in ~/.cache)");
  app.add_option("--gpu", config->gpu,
                 "which of the GPUs that CUDA_VISIBLE_DEVICES leaves, from 0 (-1: the number of its rank in "
                 "the group, counted round; give it where several groups share a host)");
  app.add_option("--gpu-exchange", config->gpu_exchange,
                 "how the ranks of a group exchange between GPUs: peer (kernels that read each other's "
                 "memory), nccl, or auto (peer where all GPUs of the group can, else nccl)");
  app.add_option("--pin-threads", config->pin_threads,
                 "keeps the kernels' threads, all but the one that hands them work, on a CPU each: auto "
                 "(where the process "
                 "was given as many CPUs as it has threads, fewer than the machine's, that no other worker "
                 "has), on, or off");
  app.add_option("--rung", config->rung,
                 "kernels on the CPU: auto, reference, avx2, avx512, avx512_bf16 or amx");
  app.add_option("--kv-cache-dtype", config->kv_cache_dtype,
                 "what the KV cache is held in where a load request does not say: auto (fp32 in fp32 "
                 "arithmetic, else bf16), bf16, fp32, int8 or fp8 (both half of bf16's memory)");
  app.add_option("--kv-fraction", config->kv_fraction, "part of its share of free memory for the KV cache");
  app.add_option("--kv-bytes", config->kv_bytes, "upper limit of the KV cache (0: none)");
  app.add_option("--max-tokens-per-step", config->max_tokens_per_step,
                 "tokens of a step, prompt chunks included");
  app.add_option("--max-sequences", config->max_sequences, "sequences running at once");
  app.add_option("--max-queued", config->max_queued, "requests that wait for those; more are refused");
  app.add_option(
      "--speculate", config->speculate,
      "auto: where a text repeats itself, its next tokens are guessed and verified in one step, as long "
      "as that pays; output stays the same; or off");
  app.add_option("--max-guesses", config->max_guesses, "tokens guessed at once");
  app.add_option(
      "--shared-weights", config->shared_weights,
      "folder, in memory, where packed weights of 16 MiB and more lie once for all workers of this "
      "host that need the same; or off. Without room there each worker has its own");
  app.add_flag("--verify-weights", config->verify_weights,
               "read weights whole and compare them with their checksums before serving them: those that "
               "phalanx pull noted, or SHA256SUMS beside them");
  app.add_option("--stuck-step", config->stuck_step_seconds,
                 "seconds that a step may run before the health service says NOT_SERVING");
  app.add_option("--exchange-timeout", config->exchange_timeout_seconds,
                 "seconds that ranks wait in a step for one that lives and does not come; for one that is "
                 "gone or stopped they wait 3.5 s");
  app.add_option("--debug-fault", config->debug_faults,
                 "for tests, repeatable: delay@STEP=SECONDS, error@STEP, nan@STEP, or corrupt (with "
                 "--verify-weights)")
      ->allow_extra_args(false);
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
      result.output =
          absl::StrCat("phalanx-worker: ", ExplainFlagError(app, error), " (--help lists the flags)\n");
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
  return absl::StrCat(
      "coordinators ", absl::StrJoin(c.coordinators, " "), ", host-id ", c.host_id, ", device ", c.device,
      ", gpu ", c.gpu, ", gpu-exchange ", c.gpu_exchange, ", cuda-mode ", c.cuda_mode, ", cuda-dtype ",
      c.cuda_dtype, ", cuda-graphs ", c.cuda_graphs, ", cuda-dependent-launch ", c.cuda_dependent_launch,
      ", rung ", c.rung, ", threads ", c.threads, ", pin-threads ", c.pin_threads, ", kv-cache-dtype ",
      c.kv_cache_dtype, ", kv-fraction ", c.kv_fraction, ", kv-bytes ", c.kv_bytes, ", max-tokens-per-step ",
      c.max_tokens_per_step, ", max-sequences ", c.max_sequences, ", max-queued ", c.max_queued,
      ", speculate ", c.speculate, ", max-guesses ", c.max_guesses, ", shared-weights ", c.shared_weights,
      ", verify-weights ", c.verify_weights ? "on" : "off", ", stuck-step ", c.stuck_step_seconds,
      " s, exchange-timeout ", c.exchange_timeout_seconds, " s",
      c.debug_faults.empty() ? "" : ", debug faults ", absl::StrJoin(c.debug_faults, " "));
}

}  // namespace phalanx
