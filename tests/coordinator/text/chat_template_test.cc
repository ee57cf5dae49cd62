#include "coordinator/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/gguf.h"
#include "tests/testing/test_data.h"

namespace phalanx {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

// As published in SmolLM2-135M-Instruct's files (Apache-2.0).
constexpr const char* kSmolLM2 =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
    "'<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n"
    "' + message['content'] + '<|im_end|>' + '\n"
    "'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
    "' }}{% endif %}";

json ReadGolden(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file) << path;
  return json::parse(file, nullptr, /*allow_exceptions=*/false);
}

std::vector<ChatMessage> Messages(const json& list) {
  std::vector<ChatMessage> messages;
  for (const json& m : list)
    messages.push_back({m["role"].get<std::string>(), m["content"].get<std::string>()});
  return messages;
}

absl::StatusOr<std::string> Render(const std::string& source, const std::vector<ChatMessage>& messages = {},
                                   const RenderOptions& options = {}) {
  const auto chat_template = ChatTemplate::Parse(source);
  if (!chat_template.ok()) return chat_template.status();
  return chat_template->Render(messages, options);
}

void ExpectParseError(const std::string& source, absl::StatusCode code, const std::string& message) {
  const absl::Status status = ChatTemplate::Parse(source).status();
  EXPECT_EQ(status.code(), code) << source << ": " << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(message)) << source;
}

void ExpectRenderError(const std::string& source, absl::StatusCode code, const std::string& message) {
  const auto chat_template = ChatTemplate::Parse(source);
  ASSERT_TRUE(chat_template.ok()) << source << ": " << chat_template.status();
  const absl::Status status = chat_template->Render({{"user", "Hi"}}, {}).status();
  EXPECT_EQ(status.code(), code) << source << ": " << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(message)) << source;
}

// Snippets for each construct and the templates of published models, against Jinja itself.
TEST(ChatTemplateTest, RendersAsJinja) {
  const char* other = std::getenv("PHALANX_CHAT_TEMPLATE_CASES");  // e.g. a long random comparison
  const json cases =
      ReadGolden(other != nullptr ? other : PHALANX_SOURCE_DIR "/tests/golden/chat_template_cases.json");
  ASSERT_GT(cases.size(), 100u);
  for (const json& c : cases) {
    const auto text = Render(c["template"].get<std::string>(), Messages(c["messages"]),
                             {c["add_generation_prompt"].get<bool>(), false, "<s>", "</s>"});
    if (c.contains("rendered")) {
      ASSERT_TRUE(text.ok()) << c["name"] << " " << c["template"] << ": " << text.status();
      EXPECT_EQ(*text, c["rendered"].get<std::string>()) << c["name"] << " " << c["template"];
    } else {
      EXPECT_FALSE(text.ok()) << c["template"] << ": " << *text << "; Jinja: " << c["error"];
    }
  }
}

TEST(ChatTemplateTest, SmolLM2RendersAsTransformers) {
  const json reference = ReadGolden(PHALANX_SOURCE_DIR "/tests/golden/smollm2_reference.json");
  ASSERT_GT(reference["chat_template"].size(), 10u);
  const auto chat_template = ChatTemplate::Parse(kSmolLM2);
  ASSERT_TRUE(chat_template.ok()) << chat_template.status();
  const auto check = [&](const json& messages, bool prompt, const json& expected) {
    const auto text =
        chat_template->Render(Messages(messages), {prompt, false, "<|im_start|>", "<|im_end|>"});
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*text, expected.get<std::string>());
  };
  for (const json& c : reference["chat_template"]) {
    check(c["messages"], false, c["rendered"]);
    check(c["messages"], true, c["rendered_for_generation"]);
  }
  for (const json& g : reference["greedy"]) check(g["messages"], true, g["prompt"]);
}

TEST(ChatTemplateTest, SmolLM2TemplateIsTheFilesOwn) {
  const auto path = FindTestData("SmolLM2-135M-Instruct.Q4_1.gguf");
  if (!path) GTEST_SKIP() << MissingTestData("SmolLM2-135M-Instruct.Q4_1.gguf");
  const auto file = GgufFile::Open(*path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->GetString("tokenizer.chat_template").value(), kSmolLM2);
}

TEST(ChatTemplateTest, NamesUnknownConstructsAtParseTime) {
  const auto unimplemented = absl::StatusCode::kUnimplemented;
  ExpectParseError("a\nb{% call f() %}{% endcall %}", unimplemented,
                   "line 2: statement {% call %} is not supported");
  ExpectParseError("{% for a in b recursive %}{% endfor %}", unimplemented, "line 1: a recursive for");
  ExpectParseError("{% include 'x' %}", unimplemented, "{% include %}");
  ExpectParseError("{% do x %}", unimplemented, "{% do %}");
  ExpectParseError("\n\n{{ x | urlize }}", unimplemented,
                   "line 3: filter 'urlize' is not supported; supported: abs, ");
  ExpectParseError("{{ x is escaped }}", unimplemented,
                   "test 'escaped' is not supported; supported: boolean, ");
  ExpectParseError("{{ x[1, 2] }}", unimplemented, "a tuple as an index");
  ExpectParseError("{{ f(*x) }}", unimplemented, "unpacking");
}

TEST(ChatTemplateTest, SyntaxErrorsNameTheLine) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  ExpectParseError("\n{% if a %}\n\n", invalid, "line 2: the block that begins here has no {% endif %}");
  ExpectParseError("{% if a %}{% endfor %}", invalid, "found endfor, {% endif %} was expected");
  ExpectParseError("\n\n{{ 'a", invalid, "line 3: string is not closed");
  ExpectParseError("\n{# ", invalid, "line 2: comment {# is not closed");
  ExpectParseError("{{ a \n ", invalid, "line 1: tag {{ is not closed");
  ExpectParseError("{{ a b }}", invalid, "found b, }} was expected");
  ExpectParseError("{{ $ }}", invalid, "unexpected character '$'");
  ExpectParseError("{% set true = 1 %}", invalid, "'true' cannot be a variable");
  ExpectParseError("{{ 99999999999999999999 }}", invalid, "does not fit 64 bits");
  ExpectParseError("{{ 1_ }}", invalid, "bad number '1_'");
  ExpectParseError("{{ (1] }}", invalid, "unexpected ']'");
  ExpectParseError("\n{% break %}", invalid, "line 2: {% break %} outside of a for");
  ExpectParseError("{% raw %}", invalid, "{% raw %} is not closed");
  ExpectParseError("{% macro f(a=1, b) %}{% endmacro %}", invalid,
                   "a default, as the parameter before has one");
  ExpectParseError("{{ '\\ud800' }}", invalid, "bad escape");
  ExpectParseError("a\xff", invalid, "not valid UTF-8 at byte offset 1");
}

TEST(ChatTemplateTest, FunctionsAskedForMayBeMissing) {
  const std::string source =
      "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}2024{% endif %}";
  EXPECT_EQ(Render(source).value(), "2024");
}

TEST(ChatTemplateTest, RaiseExceptionAndRuntimeErrors) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  ExpectRenderError("{{ raise_exception('Roles must ' + 'alternate') }}", invalid, "Roles must alternate");
  ExpectRenderError("a\n{{ missing.x }}", invalid, "line 2: 'missing' is undefined and has no 'x'");
  ExpectRenderError("{{ 'a' + missing }}", invalid, "operator + between str and undefined ('missing')");
  ExpectRenderError("{{ 'a' + none }}", invalid, "operator + between str and none");
  ExpectRenderError("{{ 9223372036854775807 + 1 }}", invalid, "does not fit 64 bits");
  ExpectRenderError("{{ (-9223372036854775807 - 1) // -1 }}", invalid, "does not fit 64 bits");
  ExpectRenderError("{% set messages.x = 1 %}", invalid, "'messages' is no namespace");
  ExpectRenderError("{{ strftime_now('%Y') }}", invalid, "'strftime_now' is undefined");
  ExpectRenderError("{{ 'a'.istitle() }}", absl::StatusCode::kUnimplemented, "method 'istitle' of a str");
  ExpectRenderError("{{ messages.append(1) }}", invalid, "method 'append' would change a list");
  ExpectRenderError("{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", invalid,
                    "macro f(): 2 arguments, at most 1");
  ExpectRenderError("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", absl::StatusCode::kResourceExhausted,
                    "calls itself too deep");
  ExpectRenderError("{{ ('a' | escape) ~ 'b' }}", absl::StatusCode::kUnimplemented, "filter 'escape'");
  ExpectRenderError("{{ range(100001) }}", invalid, "range() of more than 100000");
  ExpectRenderError("{{ messages | tojson(indent=9999) }}", invalid, "indent 9999");
}

TEST(ChatTemplateTest, MessagesMustBeUtf8) {
  const absl::Status status = Render("x", {{"user", "ok"}, {"user", "a\xc3"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("chat.messages[1].content is not valid UTF-8 at byte offset 1"));
}

TEST(ChatTemplateTest, WorkIsBounded) {
  const auto repeat = [](const std::string& s, int n) {
    std::string out;
    for (int i = 0; i < n; ++i) out += s;
    return out;
  };
  const auto unimplemented = absl::StatusCode::kUnimplemented,
             exhausted = absl::StatusCode::kResourceExhausted;
  // Depth of the source.
  for (const char* open : {"(", "[", "not ", "-", "x[", "x|trim(", "1 if x else ", "raise_exception("}) {
    ExpectParseError("{{ " + repeat(open, 50000) + " }}", unimplemented, "this deep");
  }
  ExpectParseError("{{ 1" + repeat(" + 1", 100000) + " }}", unimplemented, "this deep");
  ExpectParseError("{{ x" + repeat(".y", 100000) + " }}", unimplemented, "this deep");
  ExpectParseError(repeat("{% if x %}", 10000), unimplemented, "nesting of blocks this deep");
  EXPECT_EQ(Render("{{ 1" + repeat(" + 1", 200) + " }}").value(), "201");
  EXPECT_EQ(Render("{{ " + repeat("(", 50) + "1" + repeat(")", 50) + " }}").value(), "1");
  ExpectParseError(std::string((1 << 20) + 1, 'x'), absl::StatusCode::kInvalidArgument, "at most 1048576");
  // Work, memory and output.
  const std::string loop = "{% for a in range(100000) %}", end = "{% endfor %}";
  ExpectRenderError(loop + loop + end + end, exhausted, "too much work");
  ExpectRenderError(loop + "{{ '" + std::string(10000, 'x') + "' }}" + end, exhausted, "line 1: ");
  ExpectRenderError("{% set ns = namespace(s='x') %}" + loop + "{% set ns.s = ns.s + ns.s %}" + end,
                    exhausted, "at most 67108864 are made");
  ExpectRenderError(
      "{% set ns = namespace(s='x') %}" + loop + "{% set ns.s = ns.s | replace('x', 'xxxxxxxx') %}" + end,
      exhausted, "");
  ExpectRenderError("{% set ns = namespace(s=[1]) %}" + loop + "{% set ns.s = [ns.s] %}" + end,
                    absl::StatusCode::kInvalidArgument, "nested more than 72");
  ExpectRenderError("{% set ns = namespace(s=[1]) %}" + loop + "{% set ns.s = [ns.s, ns.s] %}" + end,
                    exhausted, "a list or mapping of more than");
  ExpectRenderError("{% set ns = namespace(s=1) %}{% set ns.s = ns %}", unimplemented, "a namespace inside");
  ExpectRenderError("{% set ns = namespace(s=1) %}{% set ns.s = [ns] %}", unimplemented,
                    "a namespace inside");
}

TEST(ChatTemplateTest, LongConversationsAreLinear) {
  std::vector<ChatMessage> messages;
  for (int i = 0; i < 2000; ++i)
    messages.push_back({i % 2 == 0 ? "user" : "assistant", std::string(2000, 'x')});
  const auto start = std::chrono::steady_clock::now();
  const auto text =
      Render(kSmolLM2, messages, {.add_generation_prompt = true, .bos_token = "", .eos_token = ""});
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_GT(text->size(), 4000000u);
  EXPECT_LT(took.count(), 5);
  std::cout << "2000 messages of 2000 bytes in " << took.count() << " s\n";
}

}  // namespace
}  // namespace phalanx
