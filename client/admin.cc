#include "client/admin.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/kv_type.h"
#include "client/connection.h"
#include "phalanx/v1/cluster.grpc.pb.h"

namespace phalanx {
namespace {

namespace v1 = phalanx::v1;
constexpr double kCallSeconds = 10;
constexpr double kLoadSeconds = 60;  // a large tokenizer takes seconds to read

absl::StatusOr<v1::GetStatusResponse> FetchStatus(v1::Cluster::Stub* stub) {
  grpc::ClientContext context;
  context.set_deadline(DeadlineIn(kCallSeconds));
  v1::GetStatusResponse response;
  const grpc::Status status = stub->GetStatus(&context, v1::GetStatusRequest(), &response);
  if (!status.ok()) return FromGrpc(status);
  return response;
}

// "GROUP_STATE_READY" -> "ready".
std::string ShortName(const std::string& name, const std::string& prefix) {
  return absl::AsciiStrToLower(name.rfind(prefix, 0) == 0 ? name.substr(prefix.size()) : name);
}
std::string Name(v1::GroupState s) { return ShortName(v1::GroupState_Name(s), "GROUP_STATE_"); }
std::string Name(v1::WorkerState s) { return ShortName(v1::WorkerState_Name(s), "WORKER_STATE_"); }
std::string Name(v1::Compute c) { return ShortName(v1::Compute_Name(c), "COMPUTE_"); }
std::string Name(v1::Rope r) { return ShortName(v1::Rope_Name(r), "ROPE_"); }

std::string Age(double seconds) { return seconds < 0 ? "-" : absl::StrFormat("%.1f s", seconds); }
std::string Dash(const std::string& s) { return s.empty() ? "-" : s; }

// Prints rows as a table with columns as wide as their widest cell; row 0 is the heading.
void PrintTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line = " ";
    for (size_t i = 0; i < row.size(); ++i) absl::StrAppendFormat(&line, " %-*s", widths[i], row[i]);
    absl::StripTrailingAsciiWhitespace(&line);
    std::printf("%s\n", line.c_str());
  }
}

void PrintStatus(const v1::GetStatusResponse& s) {
  std::printf("coordinator %s, up %.0f s\n", s.version().c_str(), s.uptime_seconds());
  std::printf("models\n");
  std::vector<std::vector<std::string>> rows = {
      {"NAME", "ARCHITECTURE", "PARAMETERS", "TP", "SHARDS", "GROUPS", "COMPUTE", "CONTEXT", "ROPE", "PATH"}};
  for (const auto& m : s.models()) {
    const v1::ModelSpec& p = m.spec();
    rows.push_back({p.name(), m.architecture(), absl::StrFormat("%.1f M", m.parameters() / 1e6),
                    absl::StrCat(p.tensor_parallel()), absl::StrCat(p.shards()), absl::StrCat(p.groups()),
                    Name(p.compute()), absl::StrCat(p.context_length()), Name(p.rope()), p.path()});
  }
  if (rows.size() == 1) rows = {{"(none: phalanx load FILE or DIRECTORY)"}};
  PrintTable(rows);

  std::printf("groups\n");
  rows = {{"GROUP", "STATE", "EPOCH", "KV BLOCKS", "KV TYPE", "CACHE HITS", "RUNNING", "QUEUED", "PREEMPTED",
           "TOKENS/S", "GENERATED", "FINGERPRINT", "DETAIL"}};
  for (const auto& g : s.groups()) {
    rows.push_back({g.id(), Name(g.state()), absl::StrCat(g.epoch()),
                    absl::StrFormat("%d/%d", g.kv_blocks_used(), g.kv_blocks_total()),
                    Dash(g.kv_cache_dtype()),
                    g.prefix_query_tokens() == 0
                        ? "-"
                        : absl::StrFormat("%.0f%%", 100.0 * static_cast<double>(g.prefix_hit_tokens()) /
                                                        static_cast<double>(g.prefix_query_tokens())),
                    absl::StrCat(g.running()), absl::StrCat(g.queued()), absl::StrCat(g.preemptions()),
                    absl::StrFormat("%.1f", g.tokens_per_second()), absl::StrCat(g.generated_tokens()),
                    Dash(g.fingerprint()), Dash(g.detail())});
  }
  if (rows.size() == 1) rows = {{"(none)"}};
  PrintTable(rows);

  std::printf("workers\n");
  rows = {{"WORKER", "STATE", "GROUP", "RANK", "HOST", "PID", "MEMORY", "HEARTBEAT", "LAST STEP", "DEVICE",
           "DETAIL"}};
  for (const auto& w : s.workers()) {
    rows.push_back({w.id(), Name(w.state()), Dash(w.group()),
                    w.group().empty() ? "-" : absl::StrCat(w.rank()), w.host(), absl::StrCat(w.pid()),
                    absl::StrFormat("%.1f MiB", w.memory_bytes() / 1048576.0), Age(w.heartbeat_age_seconds()),
                    Age(w.last_step_age_seconds()), Dash(w.device()), Dash(w.detail())});
  }
  if (rows.size() == 1) rows = {{"(none: start phalanx-worker --coordinator HOST:PORT)"}};
  PrintTable(rows);
}

// What keeps the model from being ready; empty when it is. *failed: a group could not be formed.
std::string NotReady(const v1::GetStatusResponse& s, const std::string& model, int groups, bool* failed) {
  int ready = 0;
  std::vector<std::string> waiting;
  for (const auto& g : s.groups()) {
    if (g.model() != model) continue;
    if (g.state() == v1::GROUP_STATE_READY) {
      ++ready;
    } else {
      *failed |= g.state() == v1::GROUP_STATE_FAILED;
      waiting.push_back(
          absl::StrCat(g.id(), " is ", Name(g.state()), g.detail().empty() ? "" : ": ", g.detail()));
    }
  }
  if (ready >= groups) return "";
  return waiting.empty() ? absl::StrCat(ready, " of ", groups, " groups are ready")
                         : absl::StrJoin(waiting, "; ");
}

}  // namespace

absl::Status RunStatus(const ClientConfig& config, const std::shared_ptr<grpc::Channel>& channel) {
  auto stub = v1::Cluster::NewStub(channel);
  auto response = FetchStatus(stub.get());
  if (!response.ok()) return response.status();
  if (config.json) {
    google::protobuf::util::JsonPrintOptions options;
    options.add_whitespace = true;
    options.always_print_primitive_fields = true;
    options.preserve_proto_field_names = true;
    std::string json;
    (void)google::protobuf::util::MessageToJsonString(*response, &json, options);
    std::fputs(json.c_str(), stdout);
  } else {
    PrintStatus(*response);
  }
  return absl::OkStatus();
}

absl::Status RunLoad(const ClientConfig& config, const std::shared_ptr<grpc::Channel>& channel) {
  auto stub = v1::Cluster::NewStub(channel);
  v1::LoadModelRequest request;
  v1::ModelSpec* spec = request.mutable_spec();
  spec->set_name(config.name);
  // The coordinator may run elsewhere: a relative path means this directory.
  spec->set_path(std::filesystem::absolute(config.path).lexically_normal().string());
  if (!config.tokenizer.empty()) {
    spec->set_tokenizer(std::filesystem::absolute(config.tokenizer).lexically_normal().string());
  }
  spec->set_tensor_parallel(config.tensor_parallel);
  spec->set_shards(config.shards);
  spec->set_groups(config.groups);
  spec->set_context_length(config.context_length);
  spec->set_compute(config.compute == "fp32" ? v1::COMPUTE_FP32 : v1::COMPUTE_FAST);
  spec->set_kv_cache_dtype(static_cast<v1::KvCacheDtype>(*KvTypeFromName(config.kv_cache_dtype)));
  spec->set_rope(config.rope == "auto" ? v1::ROPE_AUTO : v1::ROPE_LONG);
  grpc::ClientContext context;
  context.set_deadline(DeadlineIn(kLoadSeconds));
  v1::LoadModelResponse response;
  if (grpc::Status s = stub->LoadModel(&context, request, &response); !s.ok()) return FromGrpc(s);
  const std::string& name = response.spec().name();
  std::string missing = "not asked yet";
  const auto deadline = DeadlineIn(config.wait_seconds);
  while (std::chrono::system_clock::now() < deadline) {
    auto status = FetchStatus(stub.get());
    if (!status.ok()) return status.status();
    bool failed = false;
    missing = NotReady(*status, name, response.spec().groups(), &failed);
    if (failed) {
      return absl::FailedPreconditionError(
          absl::StrCat(missing, " (the coordinator tries again; phalanx unload gives up)"));
    }
    if (missing.empty()) {
      std::printf("%s is ready (%d group%s of %d rank%s)\n", name.c_str(), response.spec().groups(),
                  response.spec().groups() == 1 ? "" : "s", response.spec().tensor_parallel(),
                  response.spec().tensor_parallel() == 1 ? "" : "s");
      return absl::OkStatus();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  if (config.wait_seconds == 0) {
    std::printf("%s is loading; see phalanx status\n", name.c_str());
    return absl::OkStatus();
  }
  return absl::DeadlineExceededError(
      absl::StrCat(name, " is loaded but not ready after ", config.wait_seconds, " s: ", missing));
}

absl::Status RunUnload(const ClientConfig& config, const std::shared_ptr<grpc::Channel>& channel) {
  auto stub = v1::Cluster::NewStub(channel);
  v1::UnloadModelRequest request;
  request.set_name(config.name);
  grpc::ClientContext context;
  context.set_deadline(DeadlineIn(kCallSeconds));
  v1::UnloadModelResponse response;
  if (grpc::Status s = stub->UnloadModel(&context, request, &response); !s.ok()) return FromGrpc(s);
  std::printf("%s is unloaded\n", config.name.c_str());
  return absl::OkStatus();
}

}  // namespace phalanx
