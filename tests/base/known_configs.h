// The config.json files of the models that the figures in memory_estimate_test.cc are about, and what they
// are known to have.
#pragma once

#include <cstdint>
#include <string>

namespace phalanx {

struct KnownConfig {
  const char* name;
  int64_t parameters;
  const char* text;
};

// LongRoPE's divisors of Phi-4-mini.
inline const char kShortFactors[] =
    "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1";
inline const char kLongFactors[] =
    "1,1.118320672,1.250641126,1.398617824,1.564103225,1.74916897,1.956131817,2.187582649,"
    "2.446418898,2.735880826,3.059592084,3.421605075,3.826451687,4.279200023,4.785517845,"
    "5.351743533,5.984965424,6.693110555,7.485043894,8.370679318,9.36110372,10.4687158,"
    "11.70738129,13.09260651,14.64173252,16.37415215,18.31155283,20.47818807,22.90118105,"
    "25.61086418,28.64115884,32.03,32.1,32.13,32.23,32.6,32.61,32.64,32.66,32.7,32.71,32.93,"
    "32.97,33.28,33.49,33.5,44.16,47.77";

inline const KnownConfig kKnownConfigs[] = {
    {"phi-4", 14'659'507'200,
     R"({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu",
      "num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads":
      10, "intermediate_size": 17920, "vocab_size": 100352, "rope_theta": 250000,
      "max_position_embeddings": 16384, "tie_word_embeddings": false, "rms_norm_eps": 1e-05,
      "bos_token_id": 100257, "eos_token_id": 100265, "torch_dtype": "bfloat16", "pad_token_id":
      100349, "original_max_position_embeddings": 16384, "rope_scaling": null, "sliding_window": null,
      "attention_bias": false})"},
    {"phi-4-reasoning", 14'659'507'200,
     R"({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu",
      "num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads":
      10, "intermediate_size": 17920, "vocab_size": 100352, "rope_theta": 500000,
      "max_position_embeddings": 32768, "tie_word_embeddings": false, "rms_norm_eps": 1e-05,
      "bos_token_id": 100257, "eos_token_id": 100265, "torch_dtype": "bfloat16", "pad_token_id":
      100349, "original_max_position_embeddings": 32768, "rope_scaling": null, "sliding_window": null,
      "attention_bias": false})"},
    {"phi-4-reasoning-plus", 14'659'507'200,
     R"({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu",
      "num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads":
      10, "intermediate_size": 17920, "vocab_size": 100352, "rope_theta": 500000,
      "max_position_embeddings": 32768, "tie_word_embeddings": false, "rms_norm_eps": 1e-05,
      "bos_token_id": 100257, "eos_token_id": 100265, "torch_dtype": "bfloat16", "pad_token_id":
      100349, "original_max_position_embeddings": 32768, "rope_scaling": null, "sliding_window": null,
      "attention_bias": false})"},
    {"phi-4-mini-instruct", 3'836'021'760,
     R"({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu",
      "num_hidden_layers": 32, "hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads":
      8, "intermediate_size": 8192, "vocab_size": 200064, "rope_theta": 10000.0,
      "max_position_embeddings": 131072, "tie_word_embeddings": true, "rms_norm_eps": 1e-05,
      "bos_token_id": 199999, "eos_token_id": 199999, "torch_dtype": "bfloat16", "pad_token_id":
      199999, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
      "sliding_window": 262144, "attention_bias": false, "rope_scaling": {"type": "longrope",
      "short_factor": "SHORT", "long_factor": "LONG"}})"},
    {"phi-4-mini-reasoning", 3'836'021'760,
     R"({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu",
      "num_hidden_layers": 32, "hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads":
      8, "intermediate_size": 8192, "vocab_size": 200064, "rope_theta": 10000.0,
      "max_position_embeddings": 131072, "tie_word_embeddings": true, "rms_norm_eps": 1e-05,
      "bos_token_id": 199999, "eos_token_id": 199999, "torch_dtype": "bfloat16", "pad_token_id":
      199999, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
      "sliding_window": 262144, "attention_bias": false, "rope_scaling": {"type": "longrope",
      "short_factor": "SHORT", "long_factor": "LONG"}})"},
    {"deepseek-r1", 671'026'419'200,
     R"({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "attention_bias":
      false, "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 3, "hidden_act": "silu",
      "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings":
      163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts":
      256, "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
      "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
      "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim":
      64, "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method":
      "fp8", "weight_block_size": [128, 128]}, "rms_norm_eps": 1e-06, "rope_scaling": {"type": "yarn",
      "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
      "original_max_position_embeddings": 4096}, "rope_theta": 10000, "routed_scaling_factor": 2.5,
      "scoring_func": "sigmoid", "tie_word_embeddings": false, "topk_group": 4, "topk_method":
      "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 129280})"},
    {"deepseek-r1-distill-llama-70b", 70'553'706'496,
     R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
      "num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads":
      8, "intermediate_size": 28672, "vocab_size": 128256, "rope_theta": 500000.0,
      "max_position_embeddings": 131072, "tie_word_embeddings": false, "rms_norm_eps": 1e-05,
      "bos_token_id": 128000, "eos_token_id": 128001, "torch_dtype": "bfloat16", "rope_scaling":
      {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}})"},
    {"deepseek-r1-distill-llama-8b", 8'030'261'248,
     R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
      "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads":
      8, "intermediate_size": 14336, "vocab_size": 128256, "rope_theta": 500000.0,
      "max_position_embeddings": 131072, "tie_word_embeddings": false, "rms_norm_eps": 1e-05,
      "bos_token_id": 128000, "eos_token_id": 128001, "torch_dtype": "bfloat16", "rope_scaling":
      {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}})"},
    {"deepseek-r1-distill-qwen-7b", 7'615'616'512,
     R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
      "num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads":
      4, "intermediate_size": 18944, "vocab_size": 152064, "rope_theta": 10000,
      "max_position_embeddings": 131072, "tie_word_embeddings": false, "rms_norm_eps": 1e-06,
      "bos_token_id": 151643, "eos_token_id": 151643, "torch_dtype": "bfloat16", "use_sliding_window":
      false, "sliding_window": 4096, "max_window_layers": 28})"},
    {"bespoke-stratos-7b", 7'615'616'512,
     R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
      "num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads":
      4, "intermediate_size": 18944, "vocab_size": 152064, "rope_theta": 1000000.0,
      "max_position_embeddings": 32768, "tie_word_embeddings": false, "rms_norm_eps": 1e-06,
      "bos_token_id": 151643, "eos_token_id": 151645, "torch_dtype": "bfloat16", "use_sliding_window":
      false, "sliding_window": 131072, "max_window_layers": 28})"},
    {"openthinker-7b", 7'615'616'512,
     R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
      "num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads":
      4, "intermediate_size": 18944, "vocab_size": 152064, "rope_theta": 1000000.0,
      "max_position_embeddings": 32768, "tie_word_embeddings": false, "rms_norm_eps": 1e-06,
      "bos_token_id": 151643, "eos_token_id": 151645, "torch_dtype": "bfloat16", "use_sliding_window":
      false, "sliding_window": 131072, "max_window_layers": 28})"},
    {"llama-3.2-3b-instruct", 3'212'749'824,
     R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
      "num_hidden_layers": 28, "hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads":
      8, "intermediate_size": 8192, "vocab_size": 128256, "rope_theta": 500000.0,
      "max_position_embeddings": 131072, "tie_word_embeddings": true, "rms_norm_eps": 1e-05,
      "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "torch_dtype": "bfloat16",
      "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
      "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, "head_dim": 128})"},
};

// The text of one, factors filled in. Empty for a name that is not known.
inline std::string KnownConfigText(const std::string& name) {
  for (const KnownConfig& known : kKnownConfigs) {
    if (known.name != name) continue;
    std::string text = known.text;
    for (const auto& [mark, factors] : {std::pair{"\"SHORT\"", kShortFactors}, {"\"LONG\"", kLongFactors}}) {
      const size_t at = text.find(mark);
      if (at != std::string::npos) {
        text.replace(at, std::string(mark).size(), std::string("[").append(factors).append("]"));
      }
    }
    return text;
  }
  return "";
}

}  // namespace phalanx
