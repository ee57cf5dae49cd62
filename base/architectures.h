// The one table of architectures: the name in a model's file, and its model in worker/models (Create<Model>).
// The coordinator refuses others when a model is loaded; worker/models/model.cc makes its factory table of
// it.
#pragma once

#define PHX_ARCHITECTURES(X) X("llama", Llama) X("phi3", Phi3) X("qwen2", Qwen2) X("deepseek2", Deepseek2)
