// A second opinion on the llama model: in doubles, the whole sequence at once, no cache, no shards.
#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/dequantize.h"
#include "tests/worker/tiny_model.h"

namespace phalanx {

using Rows = std::vector<std::vector<double>>;

class PlainLlama {
 public:
  explicit PlainLlama(const Checkpoint& file, const TinyModelOptions& options) : file_(file), o_(options) {}

  Rows Logits(const std::vector<int32_t>& tokens) const {
    Rows x;
    const Rows table = Tensor("token_embd.weight");
    for (const int32_t token : tokens) x.push_back(table[token]);
    for (int i = 0; i < o_.layers; ++i) {
      const std::string blk = absl::StrCat("blk.", i, ".");
      const Rows h = Norm(x, blk + "attn_norm.weight");
      Rows q = Times(h, blk + "attn_q"), k = Times(h, blk + "attn_k"), v = Times(h, blk + "attn_v");
      Rotate(&q, o_.heads);
      Rotate(&k, o_.kv_heads);
      Add(&x, Times(Attend(q, k, v), blk + "attn_output"));
      const Rows g = Norm(x, blk + "ffn_norm.weight");
      Rows gate = Times(g, blk + "ffn_gate");
      const Rows up = Times(g, blk + "ffn_up");
      for (size_t t = 0; t < gate.size(); ++t) {
        for (size_t c = 0; c < gate[t].size(); ++c) gate[t][c] *= up[t][c] / (1 + std::exp(-gate[t][c]));
      }
      Add(&x, Times(gate, blk + "ffn_down"));
    }
    return Times(Norm(x, "output_norm.weight"), o_.tied ? "token_embd" : "output");
  }

 private:
  Rows Tensor(const std::string& name) const {
    const StoredTensor* tensor = file_.FindTensor(name);
    if (tensor == nullptr) return {};
    const int64_t cols = tensor->shape.back();
    const int64_t rows = tensor->shape.size() > 1 ? tensor->shape[0] : 1;
    Rows out;
    std::vector<float> row(cols);
    for (int64_t r = 0; r < rows; ++r) {
      DequantizeRow(*tensor->dtype, tensor->data + r * RowBytes(*tensor->dtype, cols), 0, cols, row.data());
      out.emplace_back(row.begin(), row.end());
    }
    return out;
  }
  static void Add(Rows* x, const Rows& y) {
    for (size_t t = 0; t < x->size(); ++t) {
      for (size_t c = 0; c < (*x)[t].size(); ++c) (*x)[t][c] += y[t][c];
    }
  }
  Rows Times(const Rows& x, const std::string& name) const {
    const Rows weight = Tensor(name + ".weight");
    const Rows bias = Tensor(name + ".bias");
    Rows y;
    for (const auto& row : x) {
      y.emplace_back();
      for (size_t n = 0; n < weight.size(); ++n) {
        y.back().push_back(
            std::inner_product(row.begin(), row.end(), weight[n].begin(), bias.empty() ? 0 : bias[0][n]));
      }
    }
    return y;
  }
  Rows Norm(Rows x, const std::string& name) const {
    const Rows weight = Tensor(name);
    for (auto& row : x) {
      const double mean =
          std::inner_product(row.begin(), row.end(), row.begin(), 0.0) / static_cast<double>(row.size());
      for (size_t c = 0; c < row.size(); ++c) row[c] *= weight[0][c] / std::sqrt(mean + 1e-5);
    }
    return x;
  }
  void Rotate(Rows* x, int heads) const {
    for (size_t t = 0; t < x->size(); ++t) {
      for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < o_.key_dim / 2; ++i) {
          const double angle = static_cast<double>(t) * std::pow(10000.0, -2.0 * i / o_.key_dim);
          double& a = (*x)[t][h * o_.key_dim + 2 * i];
          double& b = (*x)[t][h * o_.key_dim + 2 * i + 1];
          const double turned = a * std::cos(angle) - b * std::sin(angle);
          b = a * std::sin(angle) + b * std::cos(angle);
          a = turned;
        }
      }
    }
  }
  Rows Attend(const Rows& q, const Rows& k, const Rows& v) const {
    Rows out(q.size(), std::vector<double>(o_.heads * o_.value_dim));
    for (size_t t = 0; t < q.size(); ++t) {
      for (int h = 0; h < o_.heads; ++h) {
        const int g = h / (o_.heads / o_.kv_heads);
        std::vector<double> p;
        for (size_t s = 0; s <= t; ++s) {
          double dot = 0;
          for (int i = 0; i < o_.key_dim; ++i) dot += q[t][h * o_.key_dim + i] * k[s][g * o_.key_dim + i];
          p.push_back(std::exp(dot / std::sqrt(o_.key_dim)));
        }
        const double sum = std::accumulate(p.begin(), p.end(), 0.0);
        for (size_t s = 0; s <= t; ++s) {
          for (int i = 0; i < o_.value_dim; ++i) {
            out[t][h * o_.value_dim + i] += p[s] / sum * v[s][g * o_.value_dim + i];
          }
        }
      }
    }
    return out;
  }

  const Checkpoint& file_;
  const TinyModelOptions o_;
};

}  // namespace phalanx
