// The messages of clients, up to what a group is asked for. The first byte chooses the message.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "coordinator/convert.h"
#include "coordinator/model_service.h"
#include "coordinator/open_model.h"
#include "tests/fuzz/inputs.h"
#include "tests/fuzz/messages.h"
#include "worker/plan_codec.h"
#include "worker/scheduler_checks.h"

namespace {

using namespace phalanx;
using namespace phalanx::coordinator;

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "ERROR: %s\n", status.ToString().c_str());
  std::abort();
}

const char kModelPath[] = PHALANX_SOURCE_DIR "/tests/models/phalanx-reasoner";

std::shared_ptr<const LoadedModel> OpenReasoner() {
  ModelSpec spec;
  spec.path = kModelPath;
  auto model = OpenModel(spec);
  Must(model.status());
  return *std::move(model);
}

const LoadedModel& Reasoner() {
  static const std::shared_ptr<const LoadedModel> model = OpenReasoner();
  return *model;
}

// Uses all that a request can bring, as the templates of reasoning models with tools do.
const ChatTemplate& ToolTemplate() {
  static const auto chat_template = ChatTemplate::Parse(
      "{%- if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}\n{{ tool.function.name }}"
      "{% endfor %}<|end|>{% endif %}"
      "{%- for message in messages %}<|{{ message.role }}|>{{ message.name }}"
      "{%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
      "{{- message.content }}"
      "{%- for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}{{ call.id }}"
      "{%- for key, value in call.function.arguments.items() %}{{ key }}={{ value }}{% endfor %}</tool_call>"
      "{%- endfor %}{{ message.tool_call_id }}<|end|>{% endfor %}"
      "{%- if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
      "{%- if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
      "{%- if add_generation_prompt %}<|assistant|>{% endif %}");
  Must(chat_template.status());
  return *chat_template;
}

// What admission lets pass, the group takes.
void Submit(const LoadedModel& model, const RequestFields& fields, const std::vector<int32_t>& prompt) {
  const auto sampling =
      ResolveSampling(fields, static_cast<int64_t>(prompt.size()), model.limits, 1 << 20, 7);
  if (!sampling.ok()) return;
  TokenLog log(*sampling, 0);
  log.BeginAttempt("f");
  const ReasoningFamily* opened = model.OpenedReasoning(fields, prompt);
  (void)MakeStarted(fields.request_id, model.spec.name, 1, log).SerializeAsString();
  internal::v1::Submit wire;
  if (!wire.ParseFromString(
          MakeSubmit(1, fields.request_id, prompt, log, opened, model.close_marks).SerializeAsString())) {
    std::abort();
  }
  const auto request = FromProto(wire, 1);
  Must(request.status());
  SchedulerOptions options;
  options.num_blocks = 1;
  options.context_length = model.limits.context_length;
  options.vocab_size = model.limits.vocab_size;
  options.token_bytes =
      std::shared_ptr<const TokenBytes>(std::shared_ptr<void>(), &model.tokenizer->token_bytes());
  Must(CheckRequest(options, *request));
}

void Generate(const v1::GenerateRequest& message) {
  const LoadedModel& model = Reasoner();
  if (!CheckSizes(SizesOf(message), model.limits).ok()) return;
  const auto fields = ToFields(message);
  if (!fields.ok() || !CheckRequest(*fields, model.limits).ok()) return;
  if (fields->prompt == PromptKind::kChat) {
    (void)EncodeChat(fields->chat, ToolTemplate(), *model.tokenizer, model.control_names,
                     fields->chat_options);
  }
  const auto prompt = model.Tokenize(*fields);
  if (prompt.ok()) Submit(model, *fields, *prompt);
}

void LoadModel(const v1::LoadModelRequest& message) {
  const v1::ModelSpec& wire = message.spec();
  if (!v1::Compute_IsValid(wire.compute()) || !v1::Rope_IsValid(wire.rope()) ||
      !v1::KvCacheDtype_IsValid(wire.kv_cache_dtype())) {
    return;
  }
  ModelSpec spec = ToSpec(wire);
  spec.path = kModelPath;
  if (!spec.tokenizer.empty()) spec.tokenizer = kModelPath;
  const auto opening = ModelOpening::Begin(spec);
  if (!opening.ok()) return;
  ClusterState cluster({});
  Actions actions;
  Must(cluster.LoadModel(0, opening->spec(), &actions));
  Must(cluster.CheckInvariants());
  (void)FromSpec(opening->spec());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  switch (input.Byte() % 4) {
    case 0:
      With<v1::GenerateRequest>(input.Rest(), [](const auto& m) { Generate(m); });
      break;
    case 1:
      With<v1::TokenizeRequest>(input.Rest(), [](const auto& m) {
        v1::TokenizeResponse response;
        (void)TokenizePrompt(Reasoner(), m, &response);
      });
      break;
    case 2:
      With<v1::DetokenizeRequest>(input.Rest(), [](const auto& m) {
        v1::DetokenizeResponse response;
        // Its text is UTF-8, or it would not go over the wire.
        v1::DetokenizeResponse again;
        if (DetokenizeIds(Reasoner(), m, &response).ok() &&
            !again.ParseFromString(response.SerializeAsString())) {
          std::abort();
        }
      });
      break;
    case 3:
      With<v1::LoadModelRequest>(input.Rest(), [](const auto& m) { LoadModel(m); });
      break;
  }
  return 0;
}
