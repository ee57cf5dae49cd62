// The report of `phalanx inspect` for people.
#include <algorithm>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/inspect.h"

namespace phalanx {
namespace {

using nlohmann::ordered_json;

constexpr size_t kLabelWidth = 17;

// 1,234,567.
std::string Grouped(int64_t value) {
  std::string digits = absl::StrCat(value);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3)
    digits.insert(static_cast<size_t>(at), 1, ',');
  return digits;
}

std::string Bytes(int64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrCat(bytes, " B") : absl::StrFormat("%.2f %s", value, kUnits[unit]);
}

// Files may hold anything; control characters are no terminal's business.
std::string Safe(const ordered_json& value) {
  constexpr size_t kShown = 400;
  const std::string text = value.is_string() ? value.get<std::string>() : "";
  std::string out;
  for (size_t i = 0; i < text.size() && i < kShown; ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    const bool c1 = c == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (c < 0x20 || c == 0x7F || c1) {
      absl::StrAppendFormat(&out, "\\x%02x", c);
    } else {
      out.push_back(text[i]);
    }
  }
  return text.size() > kShown ? absl::StrCat(out, "...") : out;
}

// "1 tensor", "2 tensors".
std::string Count(const ordered_json& value, std::string_view what) {
  return absl::StrCat(Grouped(value.get<int64_t>()), " ", std::string(what), value == 1 ? "" : "s");
}

std::string Number(const ordered_json& value) {
  if (value.is_number_integer()) return Grouped(value.get<int64_t>());
  return value.is_number() ? absl::StrFormat("%.7g", value.get<double>()) : "?";
}

std::string Plain(const ordered_json& value) {
  return value.is_number_float() ? absl::StrFormat("%.7g", value.get<double>()) : value.dump();
}

class Lines {
 public:
  void Add(std::string_view label, const std::string& text) {
    absl::StrAppendFormat(&out_, "  %-*s %s\n", kLabelWidth, label, text);
  }
  // Columns as wide as their widest cell, numbers to the right.
  void Table(const std::vector<std::vector<std::string>>& rows) {
    std::vector<size_t> widths(rows[0].size());
    for (const auto& row : rows) {
      for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    }
    for (const auto& row : rows) {
      for (size_t i = 0; i < row.size(); ++i) absl::StrAppendFormat(&out_, "  %*s", widths[i], row[i]);
      out_ += "\n";
    }
  }
  void Raw(const std::string& line) { absl::StrAppend(&out_, line, "\n"); }
  const std::string& text() const { return out_; }

 private:
  std::string out_;
};

std::string Attention(const ordered_json& a) {
  std::string text = absl::StrCat(Number(a["query_heads"]), " query heads, ");
  if (a.contains("mla")) {
    const ordered_json& mla = a["mla"];
    absl::StrAppend(&text, "MLA: a latent of ", Number(mla["kv_latent"]), " + ", Number(mla["rope_channels"]),
                    " channels a token, queries ",
                    mla["query_latent"] == 0 ? std::string("without one")
                                             : absl::StrCat("from one of ", Number(mla["query_latent"])));
  } else {
    absl::StrAppend(&text, Number(a["kv_heads"]), " KV heads");
  }
  absl::StrAppend(&text, ", heads of ", Number(a["key_channels"]));
  if (a["value_channels"] != a["key_channels"]) {
    absl::StrAppend(&text, " (values ", Number(a["value_channels"]), ")");
  }
  return absl::StrCat(text, a["qkv_bias"].get<bool>() ? ", QKV bias" : "");
}

std::string Rope(const ordered_json& r, const ordered_json& attention) {
  if (r.is_null()) return "?";
  std::string text = absl::StrCat("theta ", Number(r["theta"]));
  if (r["rotary_channels"] != attention["key_channels"]) {
    absl::StrAppend(&text, ", ", Number(r["rotary_channels"]), " of ", Number(attention["key_channels"]),
                    " channels");
  }
  const std::string kind = r["kind"].get<std::string>();
  if (kind == "llama3") absl::StrAppend(&text, ", llama3 scaling");
  if (kind == "longrope") absl::StrAppend(&text, ", LongRoPE");
  if (kind == "yarn") absl::StrAppend(&text, ", YaRN");
  if (kind == "divisors") {
    absl::StrAppend(&text, ", divisors in the file up to ", Number(r["largest_divisor"]));
  }
  if (r.contains("factor")) absl::StrAppend(&text, " x", Number(r["factor"]));
  if (r.contains("original_context_length")) {
    absl::StrAppend(&text, " from ", Number(r["original_context_length"]));
  }
  for (const char* key : {"attention_factor", "softmax_factor"}) {
    if (r.contains(key)) {
      absl::StrAppend(&text, ", ", std::string(key).substr(0, std::string(key).find('_')), " factor ",
                      Number(r[key]));
    }
  }
  return text;
}

std::string Experts(const ordered_json& e) {
  std::string text = absl::StrCat(Number(e["number"]), ", ", Number(e["per_token"]), " a token, FFN ",
                                  Number(e["ffn_size"]));
  if (e["shared"] != 0) absl::StrAppend(&text, ", ", Number(e["shared"]), " shared");
  if (e["groups"] != 1) {
    absl::StrAppend(&text, ", best ", Number(e["groups_per_token"]), " of ", Number(e["groups"]), " groups");
  }
  if (e["first_dense_layers"] != 0) {
    absl::StrAppend(&text, ", from layer ", Number(e["first_dense_layers"]));
  }
  return text;
}

void AddModel(const ordered_json& r, Lines& out) {
  std::string architecture = Safe(r["architecture"]);
  if (r.contains("class")) absl::StrAppend(&architecture, " (", Safe(r["class"]), ")");
  out.Add("architecture", architecture);
  out.Add("servable", r["servable"].get<bool>()
                          ? "yes"
                          : absl::StrCat("not by this build: ", Safe(r["not_servable_because"])));
  if (r.contains("name")) out.Add("name", Safe(r["name"]));
  std::string parameters = Number(r["parameters"]);
  if (r.contains("mtp_parameters")) {
    absl::StrAppend(&parameters, ", and ", Number(r["mtp_parameters"]), " in layers for further tokens");
  }
  out.Add("parameters", parameters);
  std::string layers = Number(r["layers"]);
  if (r.contains("mtp_layers")) {
    absl::StrAppend(&layers, ", and ", Number(r["mtp_layers"]), " for further tokens, not run");
  }
  out.Add("layers", layers);
  out.Add("hidden size", Number(r["hidden_size"]));
  out.Add("attention", Attention(r["attention"]));
  out.Add("FFN", Number(r["ffn_size"]));
  if (r.contains("experts")) out.Add("experts", Experts(r["experts"]));
  out.Add("vocabulary",
          absl::StrCat(Number(r["vocabulary"]),
                       r["tied_embeddings"].get<bool>() ? ", embeddings tied to the head" : ""));
  out.Add("context", Number(r["context_length"]));
  out.Add("RoPE", Rope(r["rope"], r["attention"]));
}

void AddWeights(const ordered_json& w, Lines& out) {
  std::string text = Bytes(w["bytes"].get<int64_t>());
  if (w["source"] == "config") absl::StrAppend(&text, ", computed: no weights here");
  if (w.contains("dtype")) absl::StrAppend(&text, ", ", Safe(w["dtype"]));
  if (w.contains("fp8_blocks")) {
    absl::StrAppend(&text, ", matrices fp8 in blocks of ", Number(w["fp8_blocks"][0]), " x ",
                    Number(w["fp8_blocks"][1]));
  }
  out.Add("weights", text);
  for (const auto& [type, of_type] : w["types"].items()) {
    out.Add(absl::StrCat("  ", type), absl::StrCat(Bytes(of_type["bytes"].get<int64_t>()), " in ",
                                                   Count(of_type["tensors"], "tensor")));
  }
}

void AddText(const ordered_json& r, Lines& out) {
  const ordered_json& t = r["tokenizer"];
  out.Add("tokenizer", t.is_null() ? "none"
                                   : absl::StrCat(Safe(t["kind"]), t["pre"] == "" ? "" : ", pre-tokenizer ",
                                                  Safe(t["pre"]), ", ", Count(t["tokens"], "token"), ", ",
                                                  Count(t["merges"], "merge")));
  for (const ordered_json& token : r["special_tokens"]) {
    out.Add(absl::StrCat("  ", Safe(token["role"])),
            absl::StrCat(token["id"].get<int64_t>(), token["text"] == "" ? "" : "  ", Safe(token["text"])));
  }
  const ordered_json& chat = r["chat_template"];
  std::string text = "none";
  if (!chat.is_null()) {
    text = absl::StrCat(Safe(chat["source"]), ", ", Number(chat["bytes"]), " bytes");
    std::vector<std::string> mentions;
    for (const char* what : {"system", "tools", "thinking"}) {
      if (chat[what].get<bool>()) mentions.push_back(what);
    }
    if (!mentions.empty()) absl::StrAppend(&text, ", speaks of ", absl::StrJoin(mentions, ", "));
  }
  out.Add("chat template", text);
  const ordered_json& reasoning = r["reasoning"];
  out.Add("reasoning", reasoning.is_null()
                           ? "no marks in vocabulary or template; split where the text has them"
                           : absl::StrCat(Safe(reasoning["open"]), " ... ", Safe(reasoning["close"]), " in ",
                                          Safe(reasoning["found_in"])));
  std::vector<std::string> defaults;
  for (const auto& [key, value] : r["generation"].items()) {
    defaults.push_back(absl::StrCat(Safe(key), " ", Plain(value)));
  }
  if (!defaults.empty()) out.Add("generation", absl::StrJoin(defaults, ", "));
}

void AddMemory(const ordered_json& m, Lines& out) {
  const int64_t tokens = m["tokens"].get<int64_t>();
  const bool device = m.contains("device_bytes");
  const std::string weights =
      m["weights"] == "as-is" ? "weights as stored" : absl::StrCat("weights in ", Safe(m["weights"]));
  out.Raw(absl::StrCat("memory of the fullest rank: ", weights, ", KV cache in ", Safe(m["kv"]), ", ",
                       Number(m["shards"]), " shards",
                       device ? absl::StrCat(", devices of ", Bytes(m["device_bytes"].get<int64_t>())) : ""));
  std::vector<std::vector<std::string>> rows = {
      {"RANKS", "WEIGHTS", "KV A TOKEN", absl::StrCat("KV OF ", Grouped(tokens), " TOKENS")}};
  if (device) rows[0].insert(rows[0].end(), {"SEQUENCES OF THEM", "TOKENS IN ALL"});
  for (const ordered_json& rank : m["ranks"]) {
    const auto kv = rank["kv_bytes_per_token"].get<int64_t>();
    rows.push_back(
        {Number(rank["ranks"]), Bytes(rank["weight_bytes"].get<int64_t>()), Bytes(kv), Bytes(kv * tokens)});
    if (device) rows.back().insert(rows.back().end(), {Number(rank["sequences"]), Number(rank["tokens"])});
  }
  out.Table(rows);
  if (device) out.Raw("  (90 % of a device, less 2 GiB and the weights, is for the cache)");
}

// "0-9", "3", "-" for none.
std::string Held(const ordered_json& range) {
  const auto begin = range[0].get<int64_t>(), end = range[1].get<int64_t>();
  if (begin == end) return "-";
  return end - begin == 1 ? absl::StrCat(begin) : absl::StrCat(begin, "-", end - 1);
}

// Which parts each rank holds.
void AddShards(const ordered_json& m, Lines& out) {
  struct Column {
    const char* key;
    const char* title;
  };
  static constexpr Column kColumns[] = {{"query_heads", "QUERY HEADS"},
                                        {"kv_heads", "KV HEADS"},
                                        {"ffn_columns", "FFN COLUMNS"},
                                        {"experts", "EXPERTS"},
                                        {"shared_expert_columns", "SHARED EXPERTS"},
                                        {"vocabulary_rows", "VOCABULARY ROWS"}};
  const bool hosts = m.contains("hosts");
  std::vector<std::vector<std::string>> rows = {{"RANK"}};
  if (hosts) rows[0].push_back("HOST");
  rows[0].push_back("SHARDS");
  for (const ordered_json& degree : m["ranks"]) {
    std::map<int64_t, int64_t> host_bytes;
    for (const ordered_json& rank : degree["of_rank"]) {
      std::vector<std::string> row = {
          absl::StrCat(rank["rank"].get<int64_t>(), " of ", degree["ranks"].get<int64_t>())};
      const auto bytes = rank["weight_bytes"].get<int64_t>();
      if (hosts) {
        const auto host = rank["host"].get<int64_t>();
        row.push_back(absl::StrCat(host));
        host_bytes[host] += bytes;
      }
      row.push_back(Held(rank["shards"]));
      for (const Column& column : kColumns) {
        if (!rank.contains(column.key)) continue;
        if (rows.size() == 1) rows[0].push_back(column.title);
        row.push_back(Held(rank[column.key]));
      }
      row.push_back(Bytes(bytes));
      row.push_back(Bytes(rank["kv_bytes_per_token"].get<int64_t>()));
      if (rows.size() == 1) rows[0].insert(rows[0].end(), {"WEIGHTS", "KV A TOKEN"});
      rows.push_back(std::move(row));
    }
    for (const auto& [host, bytes] : host_bytes) {
      std::vector<std::string> row(rows[0].size());
      row[0] = "all of";
      row[1] = absl::StrCat(host);
      row[row.size() - 2] = Bytes(bytes);
      rows.push_back(std::move(row));
    }
  }
  out.Raw("what each rank holds:");
  out.Table(rows);
}

}  // namespace

std::string RenderReport(const ordered_json& report) {
  Lines out;
  out.Raw(absl::StrCat(Safe(report["path"]), " (", Safe(report["format"]), ")"));
  AddModel(report, out);
  AddWeights(report["weights"], out);
  AddText(report, out);
  if (!report["memory"].is_null()) {
    AddMemory(report["memory"], out);
    AddShards(report["memory"], out);
  }
  for (const ordered_json& note : report["notes"]) out.Raw(absl::StrCat("note: ", Safe(note)));
  return out.text();
}

}  // namespace phalanx
