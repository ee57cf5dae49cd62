#include "coordinator/config.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/flag_error.h"
#include "base/status_macros.h"
#include "base/version.h"

namespace phalanx::coordinator {
namespace {

absl::Status CheckAddress(const char* flag, const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  const bool ok = colon != std::string::npos && colon > 0 &&
                  absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 0 && port <= 65535;
  if (ok) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      flag, " is '", address, "'; it must be HOST:PORT with a port of 0 to 65535 (0: any free)"));
}

constexpr double kMaxSeconds = 1e6;

absl::Status AtLeast(const char* flag, double value, double least) {
  if (std::isfinite(value) && value >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, " is ", value, "; it must be at least ", least));
}

absl::Status Seconds(const char* flag, double value, double least) {
  if (value >= least && value <= kMaxSeconds) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is ", value, "; it must be ", least, " to ", kMaxSeconds, " seconds"));
}

}  // namespace

absl::Status Config::Validate() {
  PHX_RETURN_IF_ERROR(CheckAddress("--listen", listen));
  if (!metrics_listen.empty()) PHX_RETURN_IF_ERROR(CheckAddress("--metrics-listen", metrics_listen));
  if (log_level != "debug" && log_level != "info" && log_level != "warning" && log_level != "error") {
    return absl::InvalidArgumentError(
        absl::StrCat("--log-level is '", log_level, "'; it must be debug, info, warning or error"));
  }
  if (compute == "fast") {
    model.compute = Compute::kFast;
  } else if (compute == "fp32") {
    model.compute = Compute::kFp32;
  } else {
    return absl::InvalidArgumentError(absl::StrCat("--compute is '", compute, "'; it must be fast or fp32"));
  }
  if (collective == "auto") {
    collective_choice = CollectiveChoice::kAuto;
  } else if (collective == "shm") {
    collective_choice = CollectiveChoice::kShm;
  } else if (collective == "tcp") {
    collective_choice = CollectiveChoice::kTcp;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("--collective is '", collective, "'; it must be auto, shm or tcp"));
  }
  if (rope == "long") {
    model.rope = Rope::kLong;
  } else if (rope == "auto") {
    model.rope = Rope::kAuto;
  } else {
    return absl::InvalidArgumentError(absl::StrCat("--rope is '", rope, "'; it must be long or auto"));
  }
  if (const std::optional<KvType> type = KvTypeFromName(kv_cache_dtype); type.has_value()) {
    model.kv_type = *type;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-cache-dtype is '", kv_cache_dtype, "'; it must be ", kKvTypeChoices));
  }
  PHX_RETURN_IF_ERROR(AtLeast("--tp", model.tensor_parallel, 1));
  PHX_RETURN_IF_ERROR(AtLeast("--groups", model.groups, 1));
  PHX_RETURN_IF_ERROR(AtLeast("--shards", model.shards, 0));
  PHX_RETURN_IF_ERROR(AtLeast("--context", model.context_length, 0));
  PHX_RETURN_IF_ERROR(AtLeast("--max-tokens-default", max_tokens_default, 1));
  PHX_RETURN_IF_ERROR(AtLeast("--max-in-flight", static_cast<double>(max_in_flight), 1));
  PHX_RETURN_IF_ERROR(AtLeast("--max-unsent", static_cast<double>(max_unsent), 1));
  PHX_RETURN_IF_ERROR(Seconds("--heartbeat-interval", heartbeat_interval_s, 0.01));
  PHX_RETURN_IF_ERROR(Seconds("--load-timeout", load_timeout_s, 1));
  PHX_RETURN_IF_ERROR(Seconds("--stall-timeout", stall_timeout_s, 1));
  PHX_RETURN_IF_ERROR(Seconds("--drain-grace", drain_grace_s, 0));
  PHX_RETURN_IF_ERROR(Seconds("--heartbeat-timeout", heartbeat_timeout_s, 0));
  if (heartbeat_timeout_s < 2 * heartbeat_interval_s) {
    return absl::InvalidArgumentError(absl::StrCat("--heartbeat-timeout is ", heartbeat_timeout_s,
                                                   "; it must be at least twice --heartbeat-interval (",
                                                   heartbeat_interval_s, ")"));
  }
  const ModelSpec none;
  if (model.path.empty() &&
      (model.name != none.name || model.tensor_parallel != none.tensor_parallel ||
       model.shards != none.shards || model.groups != none.groups ||
       model.context_length != none.context_length || model.tokenizer != none.tokenizer ||
       model.rope != none.rope || model.kv_type != none.kv_type)) {
    return absl::InvalidArgumentError(
        "--name, --tp, --shards, --groups, --context, --rope, --kv-cache-dtype and --tokenizer describe "
        "--model, which names "
        "no "
        "file");
  }
  return absl::OkStatus();
}

bool Config::ListensOnLoopback() const {
  const std::string host = listen.substr(0, listen.rfind(':'));
  return host == "localhost" || host == "[::1]" || host.rfind("127.", 0) == 0;
}

ParsedFlags ParseFlags(int argc, const char* const* argv, Config* config) {
  CLI::App app("phalanx-coordinator: takes requests and splits them over groups of workers.");
  app.option_defaults()->always_capture_default();
  app.add_option("--listen", config->listen, "HOST:PORT for clients and workers (port 0: any free)");
  app.add_option("--metrics-listen", config->metrics_listen,
                 "HOST:PORT for GET /metrics (Prometheus), /healthz and /readyz over HTTP (port 0: any free; "
                 "default: none)");
  app.add_option("--log-level", config->log_level, "debug, info, warning or error");
  app.add_option("--model", config->model.path, "GGUF file or Hugging Face directory to load at start");
  app.add_option(
      "--name", config->model.name,
      "name of that model (default: the name of the file without its ending, or of the directory)");
  app.add_option("--tp", config->model.tensor_parallel, "its ranks of a group");
  app.add_option("--shards", config->model.shards, "its shards (0: 8, at least --tp)");
  app.add_option("--groups", config->model.groups, "its groups");
  app.add_option("--compute", config->compute, "its arithmetic: fast or fp32");
  app.add_option("--context", config->model.context_length,
                 "its longest prompt + generation (0: the model's own)");
  app.add_option(
      "--rope", config->rope,
      "its RoPE table where it has two (LongRoPE): long, or auto (short where prompt and max_tokens "
      "fit its original context)");
  app.add_option("--kv-cache-dtype", config->kv_cache_dtype,
                 "its KV cache: bf16, fp32, int8, fp8, or auto (what the workers' --kv-cache-dtype says)");
  app.add_option("--tokenizer", config->model.tokenizer,
                 "folder with tokenizer.json, in place of what its own files say of text");
  app.add_option(
      "--collective", config->collective,
      "what a group's ranks exchange over: auto (shared memory; tcp for groups that span hosts, "
      "because no host has enough workers), shm (groups stay on one host) or tcp (always); between GPUs it "
      "carries what is not on them");
  app.add_option("--max-tokens-default", config->max_tokens_default,
                 "cap on tokens where a request names none");
  app.add_option("--max-in-flight", config->max_in_flight, "requests at once; more are refused");
  app.add_option("--max-unsent", config->max_unsent, "messages a client may lag behind before it is cut off");
  app.add_option("--heartbeat-interval", config->heartbeat_interval_s,
                 "seconds between a worker's heartbeats");
  app.add_option("--heartbeat-timeout", config->heartbeat_timeout_s, "seconds of silence that lose a worker");
  app.add_option("--load-timeout", config->load_timeout_s, "seconds that a group may take to load");
  app.add_option("--stall-timeout", config->stall_timeout_s,
                 "seconds that a group with requests may take to end a step before it is formed anew");
  app.add_option("--drain-grace", config->drain_grace_s, "seconds for running requests after SIGTERM");
  app.set_version_flag("--version", std::string("phalanx-coordinator ") + kVersion);

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
          absl::StrCat("phalanx-coordinator: ", ExplainFlagError(app, error), " (--help lists the flags)\n");
    }
    return result;
  }
  if (const absl::Status valid = config->Validate(); !valid.ok()) {
    result.exit = true;
    result.exit_code = 1;
    result.output = absl::StrCat("phalanx-coordinator: ", std::string(valid.message()), "\n");
  }
  return result;
}

}  // namespace phalanx::coordinator
