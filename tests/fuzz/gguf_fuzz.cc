// A GGUF file: its header, the model's configuration, its tensors, its tokenizer, its chat template.
#include "coordinator/open_model.h"
#include "tests/fuzz/checkpoints.h"
#include "tests/fuzz/files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace phalanx;
  const MemoryFile file({reinterpret_cast<const char*>(data), size});
  if (const auto checkpoint = Checkpoint::Open(file.path()); checkpoint.ok()) ReadAll(**checkpoint);
  (void)GgufFile::Open(file.path(), GgufFile::TensorTypes::kAny);
  coordinator::ModelSpec spec;
  spec.name = "fuzz";
  spec.path = file.path();
  const auto model = coordinator::OpenModel(spec);
  if (!model.ok()) return 0;
  coordinator::RequestFields fields;
  fields.prompt = coordinator::PromptKind::kChat;
  fields.chat = {{.role = "user", .content = "Hello, world <|im_end|> 123\n\xC3\xA4"}};
  if ((*model)->tokenizer != nullptr && (*model)->chat_template.has_value()) (void)(*model)->Tokenize(fields);
  return 0;
}
