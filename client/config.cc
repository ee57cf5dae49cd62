#include "client/config.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdlib>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/flag_error.h"
#include "base/kv_type.h"
#include "base/version.h"
#include "client/http_url.h"
#include "client/hub.h"
#include "client/inspect.h"

namespace phalanx {

namespace {

// "A" or "A:B".
std::string ReadRange(const std::string& text, LengthRange* range) {
  const size_t colon = text.find(':');
  const std::string most = colon == std::string::npos ? text : text.substr(colon + 1);
  if (absl::SimpleAtoi(text.substr(0, colon), &range->least) && absl::SimpleAtoi(most, &range->most) &&
      range->least >= 1 && range->least <= range->most) {
    return "";
  }
  return absl::StrCat("'", text, "' is not N or LEAST:MOST with 1 <= LEAST <= MOST");
}

absl::Status Validate(const BenchConfig& b) {
  const auto bad = [](const auto&... parts) { return absl::InvalidArgumentError(absl::StrCat(parts...)); };
  if (b.concurrency < 1 || b.concurrency > 100000)
    return bad("--concurrency ", b.concurrency, " is not 1 to 100000");
  if (!(b.rate >= 0 && b.rate <= 1e6))
    return bad("--rate ", b.rate, " is not in (0, 1000000] requests a second");
  if (!(b.burstiness > 0 && b.burstiness <= 1e6)) return bad("--burstiness ", b.burstiness, " is not > 0");
  if (!(b.duration >= 0 && b.duration <= 86400))
    return bad("--duration ", b.duration, " is not in (0, 86400] seconds");
  if (b.requests < 0) return bad("--requests ", b.requests, " is not >= 1");
  if (b.warmup < 0) return bad("--warmup ", b.warmup, " is not >= 0");
  if (b.shared_prefix < 0) return bad("--shared-prefix ", b.shared_prefix, " is not >= 0");
  if (b.dataset.empty() && b.shared_prefix > b.input_len.most) {
    return bad("--shared-prefix ", b.shared_prefix, " is more than the ", b.input_len.most,
               " tokens of --input-len");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const ClientConfig& c) {
  const auto bad = [](const auto&... parts) { return absl::InvalidArgumentError(absl::StrCat(parts...)); };
  if (c.server.rfind(':') == std::string::npos) {
    return bad("--server '", c.server, "' is not HOST:PORT");
  }
  if (c.temperature && !(*c.temperature >= 0 && std::isfinite(*c.temperature))) {
    return bad("--temperature ", *c.temperature, " is not a finite number >= 0");
  }
  if (c.top_p && !(*c.top_p > 0 && *c.top_p <= 1)) return bad("--top-p ", *c.top_p, " is not in (0, 1]");
  if (c.top_k && *c.top_k < 0) return bad("--top-k ", *c.top_k, " is not >= 0");
  if (c.min_p && !(*c.min_p >= 0 && *c.min_p <= 1)) return bad("--min-p ", *c.min_p, " is not in [0, 1]");
  if (c.repetition_penalty && !(*c.repetition_penalty > 0 && *c.repetition_penalty <= 1000)) {
    return bad("--repetition-penalty ", *c.repetition_penalty, " is not in (0, 1000]");
  }
  if (c.presence_penalty && !(*c.presence_penalty >= -2 && *c.presence_penalty <= 2)) {
    return bad("--presence-penalty ", *c.presence_penalty, " is not in [-2, 2]");
  }
  if (c.frequency_penalty && !(*c.frequency_penalty >= -2 && *c.frequency_penalty <= 2)) {
    return bad("--frequency-penalty ", *c.frequency_penalty, " is not in [-2, 2]");
  }
  if (c.min_tokens && *c.min_tokens < 0) return bad("--min-tokens ", *c.min_tokens, " is not >= 0");
  if (c.max_reasoning_tokens && *c.max_reasoning_tokens < 0) {
    return bad("--max-reasoning-tokens ", *c.max_reasoning_tokens, " is not >= 0");
  }
  if (c.max_tokens && *c.max_tokens < 0) return bad("--max-tokens ", *c.max_tokens, " is not >= 0");
  if (!(c.timeout_seconds > 0)) return bad("--timeout ", c.timeout_seconds, " is not > 0 seconds");
  if (!(c.connect_timeout_seconds > 0))
    return bad("--connect-timeout ", c.connect_timeout_seconds, " is not > 0");
  if (!(c.wait_seconds >= 0)) return bad("--wait ", c.wait_seconds, " is not >= 0 seconds");
  if (c.compute != "fast" && c.compute != "fp32")
    return bad("--compute '", c.compute, "' is not fast or fp32");
  if (c.rope != "long" && c.rope != "auto") return bad("--rope '", c.rope, "' is not long or auto");
  if (!KvTypeFromName(c.kv_cache_dtype).has_value()) {
    return bad("--kv-cache-dtype '", c.kv_cache_dtype, "' is not ", kKvTypeChoices);
  }
  if (c.tensor_parallel < 1) return bad("--tp ", c.tensor_parallel, " is not >= 1");
  if (c.degree < 0) return bad("--tp ", c.degree, " is not >= 1 (or 0 for 1 to 8)");
  if (c.hosts < 1) return bad("--hosts ", c.hosts, " is not >= 1");
  if (c.hosts > 1 && (c.degree == 0 || c.degree % c.hosts != 0)) {
    return bad("--hosts ", c.hosts, " does not divide --tp ", c.degree,
               ", the ranks that are spread over them");
  }
  if (c.shards < 0) return bad("--shards ", c.shards, " is not >= 1 (or 0 for the default)");
  if (c.groups < 1) return bad("--groups ", c.groups, " is not >= 1");
  if (c.context_length < 0)
    return bad("--context ", c.context_length, " is not >= 1 (or 0 for the model's own)");
  if (!c.device_memory.empty()) {
    if (const auto size = ParseByteSize(c.device_memory); !size.ok()) {
      return bad("--device-memory ", size.status().message());
    }
  }
  if (c.kv_dtype != "bf16" && c.kv_dtype != "f32" && c.kv_dtype != "fp8" && c.kv_dtype != "int8") {
    return bad("--kv-dtype '", c.kv_dtype, "' is not bf16, f32, fp8 or int8");
  }
  if (c.weight_dtype != "as-is" && c.weight_dtype != "f32" && c.weight_dtype != "bf16" &&
      c.weight_dtype != "fp8" && c.weight_dtype != "int4") {
    return bad("--weight-dtype '", c.weight_dtype, "' is not as-is, f32, bf16, fp8 or int4");
  }
  if (c.command == Command::kBench) {
    if (absl::Status s = Validate(c.bench); !s.ok()) return s;
  }
  if (c.command == Command::kPull) {
    if (absl::Status s = CheckRepository(c.repository); !s.ok()) return s;
    if (auto url = ParseUrl(c.hub_endpoint); !url.ok()) return bad("HF_ENDPOINT ", url.status().message());
    if (c.revision.empty() || c.revision.size() > 200) return bad("--revision is empty or over 200 bytes");
    for (const unsigned char byte : c.hub_token) {  // it goes into a header; never shown
      if (byte <= 0x20 || byte >= 0x7f)
        return bad("HF_TOKEN holds what no token does: spaces or control characters");
    }
    if (c.retries < 0) return bad("--retries ", c.retries, " is not >= 0");
    if (!(c.stall_seconds > 0 && c.stall_seconds <= 86400)) {
      return bad("--stall-timeout ", c.stall_seconds, " is not in (0, 86400] seconds");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ClientConfig> ParseClientFlags(int argc, char** argv, std::optional<int>* exit_code) {
  ClientConfig c;
  CLI::App app("phalanx: talk to a Phalanx cluster", "phalanx");
  app.set_version_flag("--version", std::string("phalanx ") + kVersion);
  app.require_subcommand(1);
  app.fallthrough();
  // One line an error.
  app.failure_message([](const CLI::App* failed, const CLI::Error& e) {
    const std::vector<std::string> unknown = failed->remaining();
    const std::string what = unknown.empty()
                                 ? ExplainFlagError(*failed, e)
                                 : absl::StrCat("unknown command or option '", unknown.front(), "'");
    return absl::StrCat("phalanx: ", what, " (see phalanx --help)\n");
  });
  app.add_option("--server", c.server, "coordinator, HOST:PORT")
      ->capture_default_str()
      ->envname("PHALANX_SERVER");
  app.add_option("--connect-timeout", c.connect_timeout_seconds, "seconds")->capture_default_str();

  CLI::App* chat = app.add_subcommand("chat", "Ask a model; keeps the history. Ctrl-C cancels an answer");
  chat->add_option("prompt", c.prompt, "one question; without it, lines are read from stdin");
  chat->add_option("--model", c.model, "name; may be left out when one model is loaded");
  chat->add_option("--system", c.system, "system message");
  chat->add_option("--temperature", c.temperature, "0 takes the best token");
  chat->add_option("--top-k", c.top_k, "0: all");
  chat->add_option("--top-p", c.top_p, "in (0, 1]");
  chat->add_option("--min-p", c.min_p, "in [0, 1]: drops tokens less likely than that times the likeliest");
  chat->add_option("--repetition-penalty", c.repetition_penalty,
                   "> 0, 1: none; of tokens in prompt and answer");
  chat->add_option("--presence-penalty", c.presence_penalty, "in [-2, 2]; of tokens in the answer");
  chat->add_option("--frequency-penalty", c.frequency_penalty,
                   "in [-2, 2]; of tokens in the answer, times their number");
  chat->add_option("--seed", c.seed, "makes the answer repeatable")
      ->check([](const std::string& value) {  // CLI11 would wrap a number out of range
        uint64_t seed;
        return absl::SimpleAtoi(value, &seed) ? "" : absl::StrCat("'", value, "' is not in [0, 2^64)");
      });
  chat->add_option("--max-tokens", c.max_tokens, "tokens to generate at most");
  chat->add_option("--min-tokens", c.min_tokens, "no end before so many tokens");
  chat->add_option("--max-reasoning-tokens", c.max_reasoning_tokens,
                   "end the model's reasoning after so many tokens");
  chat->add_flag("--hide-reasoning", c.hide_reasoning, "show the answer only");
  chat->add_flag("--no-color", c.no_color, "reasoning between <think> marks instead of dimmed");
  chat->add_option("--stop", c.stop, "end the answer before this text (repeatable)")->allow_extra_args(false);
  chat->add_flag("--ignore-eos", c.ignore_eos, "go on after the model's end token");
  chat->add_option("--priority", c.priority, "a lower one goes before a higher one")->capture_default_str();
  chat->add_option("--cache-salt", c.cache_salt,
                   "prompts share their KV with requests of the same salt alone");
  chat->add_option("--timeout", c.timeout_seconds, "seconds for one answer")->capture_default_str();
  chat->add_flag("--quiet", c.quiet, "no usage line");
  chat->callback([&c] { c.command = Command::kChat; });

  CLI::App* status =
      app.add_subcommand("status", "Models, groups, ranks, devices, KV use, tokens per second");
  status->add_flag("--json", c.json, "as JSON");
  status->callback([&c] { c.command = Command::kStatus; });

  CLI::App* load = app.add_subcommand("load", "Serve a model from a GGUF file or a Hugging Face directory");
  load->add_option(
          "path", c.path,
          "GGUF file (of a split one, the first part) or directory; coordinator and workers must see it")
      ->required();
  load->add_option("--name", c.name,
                   "for requests; default: the name of the file without its ending, or of the directory");
  load->add_option("--tp", c.tensor_parallel, "ranks of a group")->capture_default_str();
  load->add_option("--shards", c.shards, "0: the default of 8");
  load->add_option("--groups", c.groups, "replicas")->capture_default_str();
  load->add_option("--compute", c.compute, "fast or fp32")->capture_default_str();
  load->add_option("--context", c.context_length, "longest prompt + answer; 0: the model's own");
  load->add_option(
          "--rope", c.rope,
          "of LongRoPE's two tables: long, or auto (short where prompt and max-tokens fit the original "
          "context)")
      ->capture_default_str();
  load->add_option("--kv-cache-dtype", c.kv_cache_dtype,
                   "KV cache: bf16, fp32, int8, fp8, or auto (what the workers' flag says)")
      ->capture_default_str();
  load->add_option("--tokenizer", c.tokenizer,
                   "folder with tokenizer.json, in place of what the model's own files say of text");
  load->add_option("--wait", c.wait_seconds, "seconds to wait until it is ready; 0: do not")
      ->capture_default_str();
  load->callback([&c] { c.command = Command::kLoad; });

  CLI::App* unload = app.add_subcommand("unload", "Stop serving a model");
  unload->add_option("name", c.name, "as `phalanx status` shows it")->required();
  unload->callback([&c] { c.command = Command::kUnload; });

  CLI::App* inspect = app.add_subcommand("inspect", "What a model is and what memory it needs; no server");
  inspect->add_option("path", c.path, "GGUF file, or Hugging Face folder with config.json")->required();
  inspect->add_flag("--json", c.json, "as JSON");
  inspect->add_option("--device-memory", c.device_memory, "of a rank, as 80GB or 79.1GiB: say what fits");
  inspect->add_option("--context", c.context_length, "tokens of a sequence; 0: 32768, or the model's own");
  inspect->add_option("--kv-dtype", c.kv_dtype, "of the KV cache: bf16, f32, fp8 or int8")
      ->capture_default_str();
  inspect->add_option("--weight-dtype", c.weight_dtype, "as-is (as stored), f32, bf16, fp8 or int4")
      ->capture_default_str();
  inspect->add_option("--shards", c.shards, "0: the default of 8, at least --tp");
  inspect->add_option("--tp", c.degree, "the ranks of this degree in detail, instead of degrees 1 to 8");
  inspect->add_option("--hosts", c.hosts, "that they are spread over")->capture_default_str();
  inspect->callback([&c] { c.command = Command::kInspect; });

  CLI::App* bench = app.add_subcommand(
      "bench", "Load test: latencies and throughput as a client sees them. Ctrl-C ends it early");
  const auto range = [bench](const char* flag, LengthRange* to, const char* help) {
    bench->add_option_function<std::string>(
        flag,
        [flag, to](const std::string& text) {
          if (const std::string wrong = ReadRange(text, to); !wrong.empty()) {
            throw CLI::ValidationError(flag, wrong);
          }
        },
        absl::StrCat(help, " [", to->least, "]"));
  };
  bench->add_option("--model", c.model, "name; may be left out when one model is loaded");
  // What is 0 in the configuration was not given.
  const auto not_zero = [](const std::string& value) {
    double number;
    return absl::SimpleAtod(value, &number) && number == 0 ? absl::StrCat(value, " is not > 0") : "";
  };
  auto* concurrency =
      bench->add_option("--concurrency", c.bench.concurrency, "closed loop: so many requests at a time")
          ->capture_default_str();
  bench
      ->add_option("--rate", c.bench.rate,
                   "open loop: so many requests begin a second, at random, whatever the answers do")
      ->check(not_zero)
      ->excludes(concurrency);
  bench
      ->add_option("--burstiness", c.bench.burstiness,
                   "of --rate: 1 is Poisson, less is burstier, more is steadier")
      ->capture_default_str();
  bench->add_option("--duration", c.bench.duration, "seconds in which requests begin")->check(not_zero);
  bench->add_option("--requests", c.bench.requests, "that begin at most; 100 without --duration")
      ->check(not_zero);
  bench->add_option("--warmup", c.bench.warmup, "requests before, which do not count")->capture_default_str();
  range("--input-len", &c.bench.input_len, "tokens of random prompts: N, or LEAST:MOST to draw from");
  range("--output-len", &c.bench.output_len, "max_tokens: N, or LEAST:MOST to draw from");
  bench->add_option("--shared-prefix", c.bench.shared_prefix, "first tokens that all random prompts share");
  bench->add_option(
      "--dataset", c.bench.dataset,
      "JSON Lines of prompts in place of random ones: {\"prompt\": TEXT}, {\"messages\": [...]} or "
      "{\"tokens\": [...]}, \"max_tokens\" if wanted; from its front again at its end");
  bench->add_flag("--ignore-eos", c.ignore_eos, "generate all of --output-len");
  bench->add_option("--temperature", c.temperature, "0 takes the best token");
  bench->add_option("--seed", c.bench.seed, "of prompts, lengths and arrivals")->capture_default_str();
  bench->add_option("--timeout", c.timeout_seconds, "seconds for a request")->capture_default_str();
  bench->add_option("--json", c.bench.json_file, "write the results there");
  bench->add_option("--html", c.bench.html_file, "write a page with plots there");
  bench->callback([&c] {
    c.command = Command::kBench;
    if (c.bench.duration == 0 && c.bench.requests == 0) c.bench.requests = 100;
  });

  CLI::App* pull = app.add_subcommand("pull", "Fetch a model from a hub; prints its folder. No server");
  pull->add_option("repository", c.repository, "ORG/NAME")->required();
  pull->add_option("--revision", c.revision, "branch, tag or commit")->capture_default_str();
  pull->add_option("--include", c.include,
                   "only files that match the pattern (repeatable); default: what a server needs")
      ->allow_extra_args(false);
  pull->add_option("--exclude", c.exclude, "no files that match the pattern (repeatable)")
      ->allow_extra_args(false);
  pull->add_option("--output", c.output, "folder; default: models/ORG/NAME in ~/.cache/phalanx");
  pull->add_option("--retries", c.retries, "in a row, of one file")->capture_default_str();
  pull->add_option("--stall-timeout", c.stall_seconds, "seconds without a byte before a retry")
      ->capture_default_str();
  pull->add_flag("--quiet", c.quiet, "no progress");
  pull->footer("HF_ENDPOINT is the hub's URL (default https://huggingface.co), HF_TOKEN the token for it.");
  pull->callback([&c] {
    c.command = Command::kPull;
    const char* endpoint = std::getenv("HF_ENDPOINT");
    if (endpoint != nullptr && *endpoint != '\0') c.hub_endpoint = endpoint;
    const char* token = std::getenv("HF_TOKEN");
    if (token != nullptr) c.hub_token = std::string(absl::StripAsciiWhitespace(token));
  });

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    // CLI11 returns 0 for --help and --version, its own codes else; ours is 1.
    *exit_code = app.exit(e) == 0 ? 0 : 1;
    return c;
  }
  if (absl::Status s = Validate(c); !s.ok()) return s;
  return c;
}

}  // namespace phalanx
