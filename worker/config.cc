#include "worker/config.h"

#include <unistd.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace phalanx {
namespace {

constexpr const char* kRungs[] = {"auto", "reference", "avx2", "amx"};
constexpr const char* kLogLevels[] = {"debug", "info", "warning", "error"};

template <class Integer>
absl::Status ReadInteger(const std::string& flag, const std::string& value, Integer* out) {
  if (!absl::SimpleAtoi(value, out)) {
    return absl::InvalidArgumentError(absl::StrCat(flag, " '", value, "' is not a whole number"));
  }
  return absl::OkStatus();
}

struct Flag {
  const char* name;
  const char* value;
  const char* help;
  std::function<absl::Status(WorkerConfig*, const std::string& flag, const std::string& value)> read;
};

auto Text(std::string WorkerConfig::*field) {
  return [field](WorkerConfig* c, const std::string&, const std::string& value) {
    c->*field = value;
    return absl::OkStatus();
  };
}

template <class Integer>
auto Number(Integer WorkerConfig::*field) {
  return [field](WorkerConfig* c, const std::string& flag, const std::string& value) {
    return ReadInteger(flag, value, &(c->*field));
  };
}

const std::vector<Flag>& Flags() {
  static const auto& flags = *new std::vector<Flag>{
      {"--coordinator", "HOST:PORT", "a coordinator to register with; repeatable",
       [](WorkerConfig* c, const std::string&, const std::string& value) {
         c->coordinators.push_back(value);
         return absl::OkStatus();
       }},
      {"--listen", "HOST:PORT", "where followers reach this worker when it leads a group; port 0: a free one",
       Text(&WorkerConfig::listen)},
      {"--advertise", "HOST:PORT", "the address told to followers, when not the listening one",
       Text(&WorkerConfig::advertise)},
      {"--id", "NAME", "unique name of this worker; default: HOST-ID and the process id",
       Text(&WorkerConfig::id)},
      {"--host-id", "NAME", "equal for workers that share memory; default: the host's name",
       Text(&WorkerConfig::host_id)},
      {"--threads", "N", "threads for kernels; 0: the host's cores shared between its workers",
       Number(&WorkerConfig::threads)},
      {"--rung", "NAME", "kernels: auto, reference, avx2 or amx", Text(&WorkerConfig::rung)},
      {"--kv-fraction", "F", "part of this worker's share of free memory for the KV cache",
       [](WorkerConfig* c, const std::string& flag, const std::string& value) {
         if (!absl::SimpleAtod(value, &c->kv_fraction)) {
           return absl::InvalidArgumentError(absl::StrCat(flag, " '", value, "' is not a number"));
         }
         return absl::OkStatus();
       }},
      {"--kv-bytes", "N", "upper limit of the KV cache in bytes; 0: none", Number(&WorkerConfig::kv_bytes)},
      {"--max-tokens-per-step", "N", "tokens of a step, prompt chunks included",
       Number(&WorkerConfig::max_tokens_per_step)},
      {"--max-sequences", "N", "sequences running at once", Number(&WorkerConfig::max_sequences)},
      {"--log-level", "NAME", "debug, info, warning or error", Text(&WorkerConfig::log_level)},
  };
  return flags;
}

template <class Names>
absl::Status CheckOneOf(const char* flag, const std::string& value, const Names& names) {
  if (std::find(std::begin(names), std::end(names), value) != std::end(names)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " '", value, "' is not one of ", absl::StrJoin(names, ", ")));
}

absl::Status CheckRange(const char* flag, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, " ", value, " is not between ", min, " and ", max));
}

// Names travel in logs, errors and file names of shared memory.
absl::Status CheckName(const char* flag, const std::string& value) {
  const bool printable =
      std::all_of(value.begin(), value.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
  if (!value.empty() && value.size() <= 200 && printable) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " '", value, "' is not a name of 1 to 200 printable characters without spaces"));
}

std::string HostName() {
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0') return "localhost";
  return name;
}

}  // namespace

absl::Status CheckHostPort(const std::string& flag, const std::string& value, int min_port) {
  const size_t colon = value.rfind(':');
  int port = -1;
  const bool bracketed = value.find(':') != colon;  // more than one colon: an IPv6 address needs its brackets
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(value.substr(colon + 1), &port) ||
      port < min_port || port > 65535 || value.find_first_of(" /,") != std::string::npos ||
      (bracketed && (value.front() != '[' || value[colon - 1] != ']'))) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " '", value, "' is not HOST:PORT with a port from ", min_port, " to 65535"));
  }
  return absl::OkStatus();
}

absl::Status WorkerConfig::Validate() const {
  if (coordinators.empty()) {
    return absl::InvalidArgumentError(
        "--coordinator HOST:PORT is missing: a worker needs one to register with");
  }
  for (size_t i = 0; i < coordinators.size(); ++i) {
    if (absl::Status s = CheckHostPort("--coordinator", coordinators[i], 1); !s.ok()) return s;
    if (std::find(coordinators.begin(), coordinators.begin() + i, coordinators[i]) !=
        coordinators.begin() + i) {
      return absl::InvalidArgumentError(absl::StrCat("--coordinator '", coordinators[i], "' is given twice"));
    }
  }
  if (absl::Status s = CheckHostPort("--listen", listen, 0); !s.ok()) return s;
  const std::string listen_host = listen.substr(0, listen.rfind(':'));
  if (!advertise.empty()) {
    if (absl::Status s = CheckHostPort("--advertise", advertise, 1); !s.ok()) return s;
  } else if (listen_host == "0.0.0.0" || listen_host == "[::]") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--listen '", listen, "' names no address that followers could dial: give --advertise HOST:PORT"));
  }
  if (absl::Status s = CheckName("--id", id); !s.ok()) return s;
  if (absl::Status s = CheckName("--host-id", host_id); !s.ok()) return s;
  if (absl::Status s = CheckRange("--threads", threads, 0, 1024); !s.ok()) return s;
  if (absl::Status s = CheckOneOf("--rung", rung, kRungs); !s.ok()) return s;
  if (!(kv_fraction > 0 && kv_fraction <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("--kv-fraction ", kv_fraction, " is not in (0, 1]"));
  }
  if (absl::Status s = CheckRange("--kv-bytes", kv_bytes, 0, int64_t{1} << 50); !s.ok()) return s;
  if (absl::Status s = CheckRange("--max-tokens-per-step", max_tokens_per_step, 1, 1 << 20); !s.ok())
    return s;
  if (absl::Status s = CheckRange("--max-sequences", max_sequences, 1, 1 << 16); !s.ok()) return s;
  if (max_sequences > max_tokens_per_step) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-sequences ", max_sequences, " is more than --max-tokens-per-step ",
                     max_tokens_per_step, ": each running sequence takes a token of a step"));
  }
  return CheckOneOf("--log-level", log_level, kLogLevels);
}

absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& args) {
  CommandLine result;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (arg == "--help") {
      result.help = true;
      continue;
    }
    if (arg == "--version") {
      result.version = true;
      continue;
    }
    const size_t equals = arg.find('=');
    const std::string name = arg.substr(0, equals);
    const auto flag =
        std::find_if(Flags().begin(), Flags().end(), [&](const Flag& f) { return f.name == name; });
    if (flag == Flags().end()) {
      return absl::InvalidArgumentError(absl::StrCat("unknown option '", arg, "'; --help lists all"));
    }
    std::string value;
    if (equals != std::string::npos) {
      value = arg.substr(equals + 1);
    } else if (++i < args.size()) {
      value = args[i];
    } else {
      return absl::InvalidArgumentError(absl::StrCat(name, " needs a value: ", name, " ", flag->value));
    }
    if (absl::Status s = flag->read(&result.config, name, value); !s.ok()) return s;
  }
  WorkerConfig& config = result.config;
  if (config.host_id.empty()) config.host_id = HostName();
  if (config.id.empty()) config.id = absl::StrCat(config.host_id, "-", getpid());
  return result;
}

std::string HelpText() {
  std::string text =
      "phalanx-worker: one rank of a Phalanx cluster. It registers with a coordinator and serves what that "
      "assigns.\n\n";
  for (const Flag& flag : Flags()) {
    std::string head = absl::StrCat("  ", flag.name, " ", flag.value);
    head.resize(std::max<size_t>(head.size() + 1, 30), ' ');
    absl::StrAppend(&text, head, flag.help, "\n");
  }
  absl::StrAppend(&text, "  --help, --version\n");
  return text;
}

std::string Describe(const WorkerConfig& c) {
  return absl::StrCat("coordinators=", absl::StrJoin(c.coordinators, ","), " listen=", c.listen,
                      " advertise=", c.advertise, " id=", c.id, " host-id=", c.host_id,
                      " threads=", c.threads, " rung=", c.rung, " kv-fraction=", c.kv_fraction,
                      " kv-bytes=", c.kv_bytes, " max-tokens-per-step=", c.max_tokens_per_step,
                      " max-sequences=", c.max_sequences, " log-level=", c.log_level);
}

}  // namespace phalanx
