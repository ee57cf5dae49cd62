#include "client/bench_report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace phalanx::bench {
namespace {

struct Row {
  const char* key;
  const char* name;
  const Times Results::*times;
};
constexpr Row kRows[] = {
    {"time_to_first_token", "time to first token", &Results::first_token},
    {"inter_token_latency", "inter-token latency", &Results::inter_token},
    {"time_per_output_token", "time per output token", &Results::per_token},
    {"end_to_end", "end to end", &Results::end_to_end},
    {"refusal", "refusal", &Results::refusal},
    {"retry_delay", "retry delay told", &Results::retry_after},
    {"client_lag", "client's own lag", &Results::lag},
};
constexpr double kPercents[] = {50, 90, 95, 99};

// Three digits, in the unit that fits.
std::string Time(double seconds) {
  if (seconds < 1e-3) return absl::StrFormat("%.0f us", seconds * 1e6);
  if (seconds < 1) return absl::StrFormat("%.*f ms", seconds < 0.1 ? 2 : 1, seconds * 1e3);
  return absl::StrFormat("%.*f s", seconds < 100 ? 2 : 0, seconds);
}

double Per(uint64_t count, double seconds) { return seconds > 0 ? static_cast<double>(count) / seconds : 0; }

// Prompt tokens count where their request finished in the window, in proportion.
double TotalPerSecond(const Results& r) {
  const double share =
      r.finished == 0 ? 0 : static_cast<double>(r.window_finished) / static_cast<double>(r.finished);
  return r.OutputPerSecond() + Per(r.prompt_tokens, r.window) * share;
}

std::vector<std::pair<std::string, std::string>> Totals(const Results& r) {
  std::vector<std::pair<std::string, std::string>> rows = {
      {"requests", absl::StrFormat("%d sent, %d finished, %d refused, %d failed", r.sent, r.finished,
                                   r.refused, r.failed)},
      {"window", absl::StrFormat("%.1f s, at most %d in flight", r.window, r.most_in_flight)},
      {"requests/s", absl::StrFormat("%.2f", r.RequestsPerSecond())},
      {"output tokens/s", absl::StrFormat("%.1f", r.OutputPerSecond())},
      {"total tokens/s", absl::StrFormat("%.1f", TotalPerSecond(r))},
  };
  return rows;
}

std::string Html(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

// ---- Plots: 720 x 220, the drawing inside margins. ----

constexpr double kWidth = 720, kHeight = 220, kLeft = 64, kRight = 12, kTop = 12, kBottom = 34;
constexpr double kPlotWidth = kWidth - kLeft - kRight, kPlotHeight = kHeight - kTop - kBottom;

class Plot {
 public:
  explicit Plot(const std::string& label) {
    svg_ = absl::StrFormat("<svg viewBox=\"0 0 %g %g\" role=\"img\" aria-label=\"%s\">", kWidth, kHeight,
                           Html(label));
  }
  // `x` and `y` are shares of the drawing, from its lower left.
  static double X(double x) { return kLeft + x * kPlotWidth; }
  static double Y(double y) { return kTop + (1 - y) * kPlotHeight; }

  void Line(double x0, double y0, double x1, double y1, const char* kind) {
    absl::StrAppendFormat(&svg_, "<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>", kind,
                          X(x0), Y(y0), X(x1), Y(y1));
  }
  void Bar(double x0, double x1, double y) {
    absl::StrAppendFormat(&svg_, "<rect class=\"bar\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>",
                          X(x0), Y(y), std::max(0.5, (x1 - x0) * kPlotWidth - 0.5), y * kPlotHeight);
  }
  void Path(const std::vector<std::pair<double, double>>& points, const char* kind) {
    absl::StrAppend(&svg_, "<polyline class=\"", kind, "\" points=\"");
    for (const auto& [x, y] : points) absl::StrAppendFormat(&svg_, "%.1f,%.1f ", X(x), Y(y));
    absl::StrAppend(&svg_, "\"/>");
  }
  // `anchor`: start, middle or end.
  void Text(double x, double y, const char* anchor, const std::string& text) {
    absl::StrAppendFormat(&svg_, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>", x, y, anchor,
                          Html(text));
  }
  void TickX(double x, const std::string& text) {
    Line(x, 0, x, 1, "grid");
    Text(X(x), kHeight - 16, "middle", text);
  }
  void TickY(double y, const std::string& text) {
    Line(0, y, 1, y, "grid");
    Text(kLeft - 6, Y(y) + 4, "end", text);
  }
  std::string Done() && { return std::move(svg_) + "</svg>\n"; }

 private:
  std::string svg_;
};

// The times on a logarithmic axis.
std::string Distribution(const char* name, const Times& times) {
  if (times.count() == 0) return "";
  constexpr int kBars = 80;
  const double from = std::log10(std::max(1e-6, times.least() * 0.98));
  const double to = std::max(from + 0.05, std::log10(std::max(1e-6, times.most() * 1.02)));
  const auto at = [&](int bar) { return std::pow(10, from + (to - from) * bar / kBars); };
  const auto share = [&](double seconds) {
    return std::clamp((std::log10(std::max(1e-6, seconds)) - from) / (to - from), 0.0, 1.0);
  };
  std::vector<uint64_t> counts(kBars);
  uint64_t most = 1;
  for (int i = 0; i < kBars; ++i) {
    counts[static_cast<size_t>(i)] = times.CountBetween(i == 0 ? 0 : at(i), i == kBars - 1 ? 1e9 : at(i + 1));
    most = std::max(most, counts[static_cast<size_t>(i)]);
  }
  Plot plot(name);
  for (int decade = static_cast<int>(std::floor(from)); decade <= static_cast<int>(std::ceil(to)); ++decade) {
    for (const double step : {1.0, 2.0, 5.0}) {
      const double tick = step * std::pow(10, decade);
      const double x = (std::log10(tick) - from) / (to - from);
      if (x >= 0 && x <= 1 && (step == 1 || to - from < 2)) plot.TickX(x, Time(tick));
    }
  }
  plot.TickY(1, absl::StrCat(most));
  plot.TickY(0, "0");
  for (int i = 0; i < kBars; ++i) {
    const double y = static_cast<double>(counts[static_cast<size_t>(i)]) / static_cast<double>(most);
    if (y > 0) plot.Bar(static_cast<double>(i) / kBars, static_cast<double>(i + 1) / kBars, y);
  }
  for (const double percent : {50.0, 99.0}) {
    const double x = share(times.Percentile(percent));
    plot.Line(x, 0, x, 1, "mark");
    plot.Text(Plot::X(x) + 3, kTop + 10 + (percent > 50 ? 14 : 0), x > 0.9 ? "end" : "start",
              absl::StrFormat("p%g %s", percent, Time(times.Percentile(percent))));
  }
  return absl::StrCat("<h2>", Html(name), "</h2>\n", std::move(plot).Done());
}

std::string OverTime(const char* name, const std::vector<double>& values) {
  if (values.empty()) return "";
  // At most a point for each pixel; a point is the mean of its seconds.
  const size_t group = std::max<size_t>(1, (values.size() + 639) / 640);
  std::vector<double> means;
  for (size_t i = 0; i < values.size(); i += group) {
    const size_t end = std::min(values.size(), i + group);
    double sum = 0;
    for (size_t k = i; k < end; ++k) sum += values[k];
    means.push_back(sum / static_cast<double>(end - i));
  }
  const double most = std::max(1e-9, *std::max_element(means.begin(), means.end()));
  Plot plot(name);
  for (const double share : {0.0, 0.5, 1.0}) {
    plot.TickY(share, absl::StrFormat("%.4g", share * most));
    plot.TickX(share, absl::StrFormat("%.4g s", share * static_cast<double>(values.size())));
  }
  std::vector<std::pair<double, double>> points;
  for (size_t i = 0; i < means.size(); ++i) {
    points.emplace_back((static_cast<double>(i) + 0.5) / static_cast<double>(means.size()), means[i] / most);
  }
  plot.Path(points, "line");
  return absl::StrCat("<h2>", Html(name), "</h2>\n", std::move(plot).Done());
}

struct Seconds {
  std::vector<double> tokens, in_flight, refused;
};
Seconds BySecond(const Timeline& timeline) {
  size_t end = 0;
  for (size_t s = 0; s < Timeline::kSeconds; ++s) {
    if (timeline.Get(Timeline::kTokens, s) + timeline.Get(Timeline::kStarted, s) +
            timeline.Get(Timeline::kEnded, s) >
        0) {
      end = s + 1;
    }
  }
  Seconds out;
  double open = 0;
  for (size_t s = 0; s < end; ++s) {
    const double started = timeline.Get(Timeline::kStarted, s);
    out.tokens.push_back(timeline.Get(Timeline::kTokens, s));
    out.refused.push_back(timeline.Get(Timeline::kRefused, s));
    open += started - timeline.Get(Timeline::kEnded, s);
    out.in_flight.push_back(std::max(0.0, open));  // at the second's end
  }
  return out;
}

constexpr char kStyle[] =
    "body{font:14px/1.45 system-ui,sans-serif;margin:24px auto;max-width:780px;padding:0 16px;color:#1c2430;"
    "background:#fff}h1{font-size:20px}h2{font-size:15px;margin:22px 0 4px}table{border-collapse:collapse}"
    "td,th{padding:3px 12px 3px 0;text-align:right;font-variant-numeric:tabular-nums}td:first-child,"
    "th:first-child{text-align:left}th{border-bottom:1px solid "
    "#c4ccd8;font-weight:600}svg{width:100%;height:auto}"
    "svg text{font:11px system-ui,sans-serif;fill:#4d5a6b}.grid{stroke:#e3e8ef}.bar{fill:#3b73b9}"
    ".mark{stroke:#b4402f;stroke-dasharray:4 3}.line{fill:none;stroke:#3b73b9;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){body{background:#14181f;color:#dde3ec}svg text{fill:#9aa7b8}"
    ".grid{stroke:#2a323d}th{border-color:#39434f}.bar{fill:#6ea3e0}.line{stroke:#6ea3e0}.mark{stroke:#"
    "e08a7b}}";

}  // namespace

std::string ToTable(const Results& results) {
  std::string out;
  for (const auto& [name, value] : Totals(results)) absl::StrAppendFormat(&out, "%-22s %s\n", name, value);
  absl::StrAppendFormat(&out, "\n%-22s %9s %9s %9s %9s %9s %9s\n", "", "mean", "p50", "p90", "p95", "p99",
                        "max");
  for (const Row& row : kRows) {
    const Times& times = results.*row.times;
    if (times.count() == 0) continue;
    absl::StrAppendFormat(&out, "%-22s %9s", row.name, Time(times.mean()));
    for (const double percent : kPercents)
      absl::StrAppendFormat(&out, " %9s", Time(times.Percentile(percent)));
    absl::StrAppendFormat(&out, " %9s\n", Time(times.most()));
  }
  for (const auto& [error, count] : results.errors) absl::StrAppend(&out, count, " failed: ", error, "\n");
  return out;
}

std::string ToJson(const Setting& setting, const Results& r, const Timeline& timeline) {
  nlohmann::ordered_json out;
  for (const auto& [name, value] : setting) out["setting"][name] = value;
  out["window_seconds"] = r.window;
  out["requests"] = {{"sent", r.sent},
                     {"finished", r.finished},
                     {"refused", r.refused},
                     {"failed", r.failed},
                     {"most_in_flight", r.most_in_flight}};
  out["tokens"] = {
      {"prompt", r.prompt_tokens}, {"output", r.output_tokens}, {"output_in_window", r.window_tokens}};
  out["requests_per_second"] = r.RequestsPerSecond();
  out["output_tokens_per_second"] = r.OutputPerSecond();
  out["total_tokens_per_second"] = TotalPerSecond(r);
  for (const Row& row : kRows) {
    const Times& times = r.*row.times;
    nlohmann::ordered_json& to = out["seconds"][row.key];
    to["count"] = times.count();
    to["mean"] = times.mean();
    to["min"] = times.least();
    for (const double percent : kPercents) to[absl::StrFormat("p%g", percent)] = times.Percentile(percent);
    to["max"] = times.most();
  }
  out["errors"] = nlohmann::ordered_json::array();
  for (const auto& [error, count] : r.errors) out["errors"].push_back({{"error", error}, {"count", count}});
  const Seconds by_second = BySecond(timeline);
  out["timeline"] = {{"output_tokens", by_second.tokens},
                     {"in_flight", by_second.in_flight},
                     {"refused", by_second.refused}};
  return out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string ToHtml(const Setting& setting, const Results& r, const Timeline& timeline) {
  std::string out = absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>phalanx bench</title>\n"
      "<meta name=\"viewport\" content=\"width=device-width\"><style>",
      kStyle, "</style></head>\n<body><h1>phalanx bench</h1>\n<table>\n");
  for (const auto& rows : {Totals(r), setting}) {
    for (const auto& [name, value] : rows) {
      absl::StrAppend(&out, "<tr><td>", Html(name), "</td><td>", Html(value), "</td></tr>\n");
    }
  }
  absl::StrAppend(&out,
                  "</table>\n<h2>Times</h2>\n<table>\n<tr><th></th><th>mean</th><th>p50</th><th>p90</th>",
                  "<th>p95</th><th>p99</th><th>max</th></tr>\n");
  for (const Row& row : kRows) {
    const Times& times = r.*row.times;
    if (times.count() == 0) continue;
    absl::StrAppend(&out, "<tr><td>", row.name, "</td><td>", Time(times.mean()), "</td>");
    for (const double percent : kPercents)
      absl::StrAppend(&out, "<td>", Time(times.Percentile(percent)), "</td>");
    absl::StrAppend(&out, "<td>", Time(times.most()), "</td></tr>\n");
  }
  absl::StrAppend(&out, "</table>\n", Distribution("Time to first token", r.first_token),
                  Distribution("Inter-token latency", r.inter_token),
                  Distribution("End to end", r.end_to_end));
  const Seconds by_second = BySecond(timeline);
  absl::StrAppend(&out, OverTime("Output tokens per second", by_second.tokens),
                  OverTime("Requests in flight", by_second.in_flight));
  if (r.refused > 0) absl::StrAppend(&out, OverTime("Refused per second", by_second.refused));
  for (const auto& [error, count] : r.errors) {
    absl::StrAppend(&out, "<p>", count, " failed: ", Html(error), "</p>\n");
  }
  return out + "</body></html>\n";
}

}  // namespace phalanx::bench
