#include "client/bench.h"

#include <csignal>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "base/version.h"
#include "client/bench_load.h"
#include "client/bench_report.h"
#include "client/connection.h"

namespace phalanx {
namespace {

namespace v1 = phalanx::v1;
using Json = nlohmann::json;

constexpr size_t kMaxDatasetLines = 1'000'000;
constexpr int kStreamsPerChannel = 256;
constexpr int kMaxChannels = 16;

std::atomic<bool> g_stop{false};
static_assert(std::atomic<bool>::is_always_lock_free);
void OnInterrupt(int) { g_stop.store(true); }

absl::StatusOr<v1::Model> FetchModel(const ClientConfig& config,
                                     const std::shared_ptr<grpc::Channel>& channel) {
  const auto stub = v1::Inference::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(DeadlineIn(config.connect_timeout_seconds));
  v1::GetModelRequest request;
  request.set_model(config.model);
  v1::GetModelResponse response;
  if (const grpc::Status status = stub->GetModel(&context, request, &response); !status.ok()) {
    return FromGrpc(status);
  }
  if (!response.model().ready()) {
    return absl::UnavailableError(
        absl::StrCat("model '", response.model().name(), "' is not ready: ", response.model().detail()));
  }
  return response.model();
}

absl::Status BadLine(const std::string& file, size_t line, const std::string& why) {
  return absl::InvalidArgumentError(
      absl::StrCat("--dataset ", file, ", line ", line, ": ", why,
                   "; a line is {\"prompt\": TEXT} or {\"messages\": [...]} or {\"tokens\": [...]}, with "
                   "\"max_tokens\" if wanted"));
}

// One request as the line has it.
absl::Status ReadLine(const Json& line, v1::GenerateRequest* out, std::string* why) {
  const auto bad = [why](const char* text) {
    *why = text;
    return absl::InvalidArgumentError(text);
  };
  if (!line.is_object()) return bad("it is no JSON object");
  if (const auto max = line.find("max_tokens"); max != line.end()) {
    if (!max->is_number_integer() || max->get<int64_t>() < 1 || max->get<int64_t>() > INT32_MAX) {
      return bad("max_tokens is no number of at least 1");
    }
    out->mutable_sampling()->set_max_tokens(max->get<int32_t>());
  }
  if (const auto prompt = line.find("prompt"); prompt != line.end() && prompt->is_string()) {
    out->set_text(prompt->get<std::string>());
    return absl::OkStatus();
  }
  if (const auto tokens = line.find("tokens");
      tokens != line.end() && tokens->is_array() && !tokens->empty()) {
    for (const Json& id : *tokens) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) {
        return bad("tokens holds what is no token id");
      }
      out->mutable_tokens()->add_ids(id.get<int32_t>());
    }
    return absl::OkStatus();
  }
  const auto messages = line.find("messages");
  if (messages == line.end() || !messages->is_array() || messages->empty()) return bad("it has no prompt");
  for (const Json& message : *messages) {
    const auto text = [&message](const char* name) {
      const auto found = message.find(name);
      return found != message.end() && found->is_string() ? found->get<std::string>() : std::string();
    };
    if (!message.is_object() || text("role").empty()) return bad("a message has no role");
    v1::ChatMessage* to = out->mutable_chat()->add_messages();
    to->set_role(text("role"));
    to->set_content(text("content"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<v1::GenerateRequest>> ReadDataset(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("--dataset ", path, " cannot be read"));
  std::vector<v1::GenerateRequest> requests;
  std::string text;
  for (size_t number = 1; std::getline(file, text); ++number) {
    if (absl::StripAsciiWhitespace(text).empty()) continue;
    const Json line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (line.is_discarded()) return BadLine(path, number, "it is no JSON");
    std::string why;
    if (!ReadLine(line, &requests.emplace_back(), &why).ok()) return BadLine(path, number, why);
    if (requests.size() > kMaxDatasetLines) {
      return absl::InvalidArgumentError(
          absl::StrCat("--dataset ", path, " has more than ", kMaxDatasetLines, " lines"));
    }
  }
  if (requests.empty()) return absl::InvalidArgumentError(absl::StrCat("--dataset ", path, " has no line"));
  return requests;
}

// Makes request after request, the same ones for the same seed.
class Prompts {
 public:
  Prompts(const ClientConfig& config, const v1::Model& model, std::vector<v1::GenerateRequest> dataset)
      : config_(config), model_(model.name()), dataset_(std::move(dataset)), random_(config.bench.seed) {
    std::vector<bool> ends(static_cast<size_t>(model.vocab_size()));
    for (const int32_t id : model.end_token_ids()) {
      if (id >= 0 && id < model.vocab_size()) ends[static_cast<size_t>(id)] = true;
    }
    for (int32_t id = 0; id < model.vocab_size(); ++id) {
      if (!ends[static_cast<size_t>(id)]) ids_.push_back(id);
    }
    for (int i = 0; i < config.bench.shared_prefix; ++i) prefix_.push_back(DrawId());
  }

  v1::GenerateRequest Make(int64_t number) {
    v1::GenerateRequest request;
    if (!dataset_.empty()) {
      request = dataset_[static_cast<size_t>(number) % dataset_.size()];
    } else {
      const int length = Draw(config_.bench.input_len);
      auto* ids = request.mutable_tokens()->mutable_ids();
      ids->Reserve(length);
      for (int i = 0; i < length; ++i) {
        ids->Add(static_cast<size_t>(i) < prefix_.size() ? prefix_[static_cast<size_t>(i)] : DrawId());
      }
    }
    request.set_model(model_);
    request.set_request_id(absl::StrCat("bench-", config_.bench.seed, "-", number));
    v1::SamplingParams* sampling = request.mutable_sampling();
    if (!sampling->has_max_tokens()) sampling->set_max_tokens(Draw(config_.bench.output_len));
    if (config_.ignore_eos) sampling->set_ignore_eos(true);
    if (config_.temperature) sampling->set_temperature(*config_.temperature);
    sampling->set_seed(config_.bench.seed + static_cast<uint64_t>(number));
    return request;
  }

 private:
  int Draw(const LengthRange& range) {
    return std::uniform_int_distribution<int>(range.least, range.most)(random_);
  }
  int32_t DrawId() { return ids_[std::uniform_int_distribution<size_t>(0, ids_.size() - 1)(random_)]; }

  const ClientConfig& config_;
  const std::string model_;
  const std::vector<v1::GenerateRequest> dataset_;
  std::mt19937_64 random_;
  std::vector<int32_t> ids_, prefix_;
};

std::string ToText(const LengthRange& range) {
  return range.least == range.most ? absl::StrCat(range.least) : absl::StrCat(range.least, ":", range.most);
}

bench::Setting Describe(const ClientConfig& c, const v1::Model& model) {
  bench::Setting setting = {{"model", model.name()}, {"server", c.server}, {"client", kVersion}};
  if (c.bench.rate > 0) {
    setting.emplace_back("open loop",
                         absl::StrFormat("%g requests/s, burstiness %g", c.bench.rate, c.bench.burstiness));
  } else {
    setting.emplace_back("closed loop", absl::StrCat(c.bench.concurrency, " at a time"));
  }
  if (c.bench.duration > 0) setting.emplace_back("duration", absl::StrFormat("%g s", c.bench.duration));
  if (c.bench.requests > 0) setting.emplace_back("requests", absl::StrCat(c.bench.requests));
  if (c.bench.dataset.empty()) {
    setting.emplace_back("input tokens", ToText(c.bench.input_len));
    if (c.bench.shared_prefix > 0) setting.emplace_back("shared prefix", absl::StrCat(c.bench.shared_prefix));
  } else {
    setting.emplace_back("dataset", c.bench.dataset);
  }
  setting.emplace_back("output tokens", ToText(c.bench.output_len));
  setting.emplace_back("ignore eos", c.ignore_eos ? "yes" : "no");
  setting.emplace_back("seed", absl::StrCat(c.bench.seed));
  return setting;
}

// Before the load, not after it. Leaves an empty file where there was none.
absl::Status CheckWritable(const char* flag, const std::string& path) {
  if (path.empty() || std::ofstream(path, std::ios::binary | std::ios::app)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, " ", path, " cannot be written"));
}

absl::Status WriteFile(const char* flag, const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat(flag, " ", path, " cannot be written"));
  return absl::OkStatus();
}

}  // namespace

absl::Status RunBench(const ClientConfig& config, const std::shared_ptr<grpc::Channel>& channel) {
  PHX_ASSIGN_OR_RETURN(const v1::Model model, FetchModel(config, channel));
  std::vector<v1::GenerateRequest> dataset;
  if (!config.bench.dataset.empty()) {
    PHX_ASSIGN_OR_RETURN(dataset, ReadDataset(config.bench.dataset));
  }
  const int64_t longest =
      (dataset.empty() ? int64_t{config.bench.input_len.most} : 0) + config.bench.output_len.most;
  if (longest > model.context_length()) {
    return absl::InvalidArgumentError(absl::StrCat("--input-len and --output-len make up to ", longest,
                                                   " tokens; the context of model '", model.name(), "' has ",
                                                   model.context_length()));
  }
  PHX_RETURN_IF_ERROR(CheckWritable("--json", config.bench.json_file));
  PHX_RETURN_IF_ERROR(CheckWritable("--html", config.bench.html_file));
  const int channels_wanted = static_cast<int>(std::clamp<int64_t>(
      (config.bench.rate > 0 ? 1024 : config.bench.concurrency + kStreamsPerChannel - 1) / kStreamsPerChannel,
      1, kMaxChannels));
  std::vector<std::shared_ptr<grpc::Channel>> channels = {channel};
  while (static_cast<int>(channels.size()) < channels_wanted) {
    PHX_ASSIGN_OR_RETURN(channels.emplace_back(), Connect(config, /*own_connection=*/true));
  }

  bench::LoadOptions options;
  options.concurrency = config.bench.concurrency;
  options.rate = config.bench.rate;
  options.burstiness = config.bench.burstiness;
  options.duration = config.bench.duration;
  options.requests = config.bench.requests;
  options.warmup = config.bench.warmup;
  options.timeout = config.timeout_seconds;
  options.seed = config.bench.seed;
  options.stop = &g_stop;
  struct sigaction action = {}, before = {};
  action.sa_handler = OnInterrupt;
  action.sa_flags = SA_RESETHAND;  // a second Ctrl-C ends the program
  sigaction(SIGINT, &action, &before);
  Prompts prompts(config, model, std::move(dataset));
  bench::Timeline timeline;
  const bench::Results results = bench::RunLoad(
      options, channels, [&prompts](int64_t number) { return prompts.Make(number); }, &timeline);
  sigaction(SIGINT, &before, nullptr);

  const bench::Setting setting = Describe(config, model);
  std::fputs(bench::ToTable(results).c_str(), stdout);
  if (!config.bench.json_file.empty()) {
    PHX_RETURN_IF_ERROR(
        WriteFile("--json", config.bench.json_file, bench::ToJson(setting, results, timeline)));
  }
  if (!config.bench.html_file.empty()) {
    PHX_RETURN_IF_ERROR(
        WriteFile("--html", config.bench.html_file, bench::ToHtml(setting, results, timeline)));
  }
  if (g_stop.load()) return absl::CancelledError("interrupted; the report is of what was done by then");
  if (results.finished == 0) {
    return absl::UnavailableError(
        absl::StrCat("no request finished: ", results.refused, " refused, ", results.failed, " failed"));
  }
  return absl::OkStatus();
}

}  // namespace phalanx
