// A chat template, rendered over two chats.
#include "coordinator/text/chat_template.h"

#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace phalanx;
  const auto chat = ChatTemplate::Parse(std::string(reinterpret_cast<const char*>(data), size));
  if (!chat.ok()) return 0;
  RenderOptions options;
  options.add_generation_prompt = true;
  options.bos_token = "<s>";
  (void)chat->RenderChat({{"system", "Be brief."}, {"user", "1 + 1?"}}, options);
  options.tools = {R"({"type": "function", "function": {"name": "add", "parameters": {}}})"};
  options.variables = R"({"enable_thinking": false})";
  options.date = "2026-01-31";
  options.system_prompt = SystemPrompt::kAppend;
  ChatMessage call = {"assistant", "", "hm"};
  call.tool_calls.push_back({"1", "add", R"({"a": 1})"});
  ChatMessage result = {"tool", "2"};
  result.tool_call_id = "1";
  (void)chat->RenderChat({{"user", "1 + 1?"}, call, result, {"user", "\xE4\xB8\x96 thanks"}}, options);
  (void)chat->OwnSystemPrompt(options);
  return 0;
}
