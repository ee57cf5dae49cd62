#include "coordinator/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
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
  for (const json& m : list) {
    ChatMessage message;
    message.role = m["role"].get<std::string>();
    if (m["content"].is_string()) message.content = m["content"].get<std::string>();
    message.reasoning = m.value("reasoning_content", "");
    message.tool_call_id = m.value("tool_call_id", "");
    message.name = m.value("name", "");
    for (const json& call : m.value("tool_calls", json::array())) {
      const json& function = call["function"];
      message.tool_calls.push_back({call["id"].get<std::string>(), function["name"].get<std::string>(),
                                    function["arguments"].get<std::string>()});
    }
    messages.push_back(std::move(message));
  }
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

std::string Fnv1a(const std::string& text) {
  uint64_t value = 0xcbf29ce484222325;
  for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return absl::StrFormat("%016x", value);
}

// Of a case of chat_template_cases.json; absent where it needs a file that is not there.
std::optional<std::string> SourceOf(const json& golden, const json& c) {
  if (c.contains("template")) return c["template"].get<std::string>();
  const auto model = c["model"].get<std::string>();
  if (golden["templates"].contains(model)) return golden["templates"][model].get<std::string>();
  const auto path = FindTestData("templates/" + model + ".jinja");
  if (!path) return std::nullopt;
  std::ifstream file(*path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Snippets for each construct and the templates of published models, against transformers.
TEST(ChatTemplateTest, RendersAsTransformers) {
  const char* other = std::getenv("PHALANX_CHAT_TEMPLATE_CASES");  // e.g. a long random comparison
  const json golden =
      ReadGolden(other != nullptr ? other : PHALANX_SOURCE_DIR "/tests/golden/chat_template_cases.json");
  ASSERT_GT(golden["cases"].size(), 100u);
  size_t compared = 0, missing = 0;
  for (const json& c : golden["cases"]) {
    const std::optional<std::string> source = SourceOf(golden, c);
    if (!source) {
      ++missing;
      continue;
    }
    RenderOptions options;
    options.add_generation_prompt = c["add_generation_prompt"].get<bool>();
    options.continue_final_message = c["continue_final_message"].get<bool>();
    options.bos_token = "<s>";
    options.eos_token = "</s>";
    options.tools = c["tools"].get<std::vector<std::string>>();
    options.variables = c["variables"].get<std::string>();
    options.date = c["date"].get<std::string>();
    const auto text = Render(*source, Messages(c["messages"]), options);
    const std::string what = absl::StrCat(c.value("model", ""), " ", c["name"].get<std::string>(), " ",
                                          c.value("template", ""), " ", options.add_generation_prompt);
    ++compared;
    if (c.contains("rendered")) {
      ASSERT_TRUE(text.ok()) << what << ": " << text.status();
      EXPECT_EQ(*text, c["rendered"].get<std::string>()) << what;
    } else if (c.contains("fnv1a")) {
      ASSERT_TRUE(text.ok()) << what << ": " << text.status();
      EXPECT_EQ(Fnv1a(*text), c["fnv1a"].get<std::string>()) << what << ":\n" << *text;
    } else {
      ASSERT_FALSE(text.ok()) << what << ": " << *text << "; transformers: " << c["error"];
      EXPECT_TRUE(text.status().code() == absl::StatusCode::kInvalidArgument ||
                  text.status().code() == absl::StatusCode::kUnimplemented)
          << what << ": " << text.status();
    }
  }
  std::cout << compared << " cases, " << missing << " without their template\n";
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
  ExpectRenderError("{{ range(100001) }}", invalid, "range() of more than 100000");
  ExpectRenderError("{{ messages | tojson(indent=9999) }}", invalid, "indent 9999");
}

TEST(ChatTemplateTest, MessagesMustBeUtf8) {
  const absl::Status status = Render("x", {{"user", "ok"}, {"user", "a\xc3"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("chat.messages[1].content is not valid UTF-8 at byte offset 1"));
}

TEST(ChatTemplateTest, MalformedInputIsNamedAsInTheRequest) {
  const auto check = [](const std::vector<ChatMessage>& messages, const RenderOptions& options,
                        const std::string& message) {
    const absl::Status status = Render("x", messages, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  };
  const auto tool = [](const std::string& json) {
    RenderOptions options;
    options.tools = {"{}", json};
    return options;
  };
  check({}, tool("{\"a\": }"), "chat.tools[1] is not JSON: no JSON value at byte 6");
  check({}, tool("[1]"), "chat.tools[1] is a list in JSON, must be an object");
  check({}, tool("{\"a\": 1} x"), "more text behind the value");
  check({}, tool("{\"a\": 01}"), "leading zero");
  check({}, tool("{\"a\": \"\\ud800\"}"), "half a surrogate pair");
  check({}, tool("{\"a\": \"\n\"}"), "a control character");
  check({}, tool("{\"a\": \"\xff\"}"), "not valid UTF-8");
  check({}, tool("{\"a\": NaN}"), "no JSON value");
  check({}, tool("{\"a\": " + std::string(100, '[')), "nested more than 64 deep");
  ChatMessage call{"assistant", ""};
  call.tool_calls = {{"1", "f", "{}"}, {"2", "g", "{"}};
  check({{"user", "x"}, call}, {}, "chat.messages[1].tool_calls[1].arguments is not JSON: a key is missing");
  RenderOptions options;
  options.variables = "{\"messages\": []}";
  check({}, options, "chat.template_kwargs: 'messages' is not for a caller to set");
  options.variables = "[]";
  check({}, options, "chat.template_kwargs is a list in JSON");
  options.variables = "";
  options.date = "2023-02-29";
  check({}, options, "chat.date is '2023-02-29', must be a day as YYYY-MM-DD");
  options.date = "";
  options.continue_final_message = true;
  check({}, options, "no last message");
  check({{"user", "y"}}, options, "does not appear in the prompt");
}

TEST(ChatTemplateTest, TellsWhoWroteWhat) {
  const auto users = [](const std::string& source, const ChatMessage& message) {
    const auto chat_template = ChatTemplate::Parse(source);
    EXPECT_TRUE(chat_template.ok()) << chat_template.status();
    RenderOptions options;
    options.tools = {"{\"k\": \"v\"}"};
    options.variables = "{\"x\": \"var\"}";
    const auto chat = chat_template->RenderChat({message}, options);
    EXPECT_TRUE(chat.ok()) << chat.status();
    std::string shown;
    size_t begin = 0;
    bool user = false;
    for (size_t i = 0; i <= chat->borders.size(); ++i, user = !user) {
      const size_t end = i < chat->borders.size() ? chat->borders[i] : chat->text.size();
      const std::string part = chat->text.substr(begin, end - begin);
      shown += user ? "(" + part + ")" : part;
      begin = end;
    }
    return shown;
  };
  const ChatMessage m{"user", "a<b>c"};
  EXPECT_EQ(users("{% for m in messages %}<{{ m.role }}>{{ m.content }}<{% endfor %}", m), "<user>(a<b>c)<");
  EXPECT_EQ(users("{{ 'x' + messages[0].content[1:4] ~ 'y' }}", m), "x(<b>)y");
  EXPECT_EQ(users("{{ messages[0].content.split('<b>') | join('-') }}", m), "(a)-(c)");
  EXPECT_EQ(users("{{ messages[0].content | replace('b', '|') }}", m), "(a<)|(>c)");
  EXPECT_EQ(users("{{ messages[0].content | upper }}.{{ tools | tojson }}", m), "(A<B>C).([{\"k\": \"v\"}])");
  EXPECT_EQ(users("{{ x }}-{{ tools[0].k }}{% for k in tools[0] %}{{ k }}{% endfor %}", m), "(var)-(vk)");
  EXPECT_EQ(
      users("{% set ns = namespace(s='') %}{% for c in messages[0].content %}{% set ns.s = ns.s + c + '.' %}"
            "{% endfor %}{{ ns.s }}",
            m),
      "(a).(<).(b).(>).(c).");
  EXPECT_EQ(
      users(
          "{% macro f(a) %}[{{ a }}]{% endmacro %}{% set y %}{{ f(messages[0].content) }}{% endset %}{{ y }}",
          m),
      "[(a<b>c)]");
  EXPECT_EQ(users("<|{{ messages[0].role }}|>", {"end", ""}), "<|(end)|>");
}

class SystemPromptTest : public ::testing::Test {
 protected:
  static absl::StatusOr<std::string> RenderWith(const std::string& source, SystemPrompt policy,
                                                const std::vector<ChatMessage>& messages) {
    RenderOptions options;
    options.system_prompt = policy;
    return Render(source, messages, options);
  }
};

constexpr const char* kReplaces =
    "{% if messages[0].role != 'system' %}<s>Own.</s>{% endif %}{% for m in messages %}"
    "<{{ m.role[0] }}>{{ m.content }}</{{ m.role[0] }}>{% endfor %}";
constexpr const char* kJoins =
    "<s>Own.{% for m in messages if m.role == 'system' %} {{ m.content }}{% endfor %}</s>{% for m in "
    "messages if "
    "m.role != 'system' %}<u>{{ m.content }}</u>{% endfor %}";
constexpr const char* kHasNone = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}";

TEST_F(SystemPromptTest, Policies) {
  const std::vector<ChatMessage> with = {{"system", "Mine."}, {"user", "Hi"}}, without = {{"user", "Hi"}};
  const auto honour = SystemPrompt::kHonour, model = SystemPrompt::kModel, append = SystemPrompt::kAppend;
  EXPECT_EQ(RenderWith(kReplaces, honour, with).value(), "<s>Mine.</s><u>Hi</u>");
  EXPECT_EQ(RenderWith(kReplaces, model, with).value(), "<s>Own.</s><u>Hi</u>");
  EXPECT_EQ(RenderWith(kReplaces, append, with).value(), "<s>Own.\n\nMine.</s><u>Hi</u>");
  EXPECT_EQ(RenderWith(kReplaces, append, without).value(), "<s>Own.</s><u>Hi</u>");
  EXPECT_EQ(RenderWith(kJoins, honour, with).value(), "<s>Own. Mine.</s><u>Hi</u>");
  EXPECT_EQ(RenderWith(kJoins, model, with).value(), "<s>Own.</s><u>Hi</u>");
  EXPECT_EQ(RenderWith(kJoins, append, with).value(), "<s>Own. Mine.</s><u>Hi</u>");
  for (const SystemPrompt policy : {model, append}) {
    const absl::Status status = RenderWith(kHasNone, policy, with).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("has no system prompt of its own"));
  }
}

TEST_F(SystemPromptTest, OfPublishedTemplates) {
  const json golden = ReadGolden(PHALANX_SOURCE_DIR "/tests/golden/chat_template_cases.json");
  const auto own = [&](const std::string& model) {
    return ChatTemplate::Parse(golden["templates"][model].get<std::string>())->OwnSystemPrompt({}).value();
  };
  EXPECT_EQ(own("Qwen-Qwen2.5-7B-Instruct"),
            "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.");
  EXPECT_EQ(own("smollm2-135m-instruct"),
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
  const std::string phi = own("phi-4-reasoning");
  EXPECT_EQ(phi.size(), 1232u);
  EXPECT_EQ(phi.substr(0, 11), "You are Phi");
  EXPECT_EQ(phi.substr(phi.size() - 17), "above guidelines:");
  for (const char* none : {"phi-4", "phi-4-mini-instruct", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.orig",
                           "llama-cpp-deepseek-r1", "phi-4-mini-reasoning"}) {
    EXPECT_EQ(own(none), "") << none;
  }
  const auto joined = RenderWith(golden["templates"]["phi-4-mini-reasoning"].get<std::string>(),
                                 SystemPrompt::kAppend, {{"system", "Mine."}, {"user", "Hi"}});
  EXPECT_THAT(joined.value(), HasSubstr("developed by Microsoft. Mine.<|end|>"));
  EXPECT_EQ(
      RenderWith(golden["templates"]["phi-4"].get<std::string>(), SystemPrompt::kModel, {{"user", "Hi"}})
          .status()
          .code(),
      absl::StatusCode::kFailedPrecondition);
}

TEST(ChatTemplateTest, AccumulatedTextIsLinear) {
  std::vector<ChatMessage> messages(2000, {"user", std::string(10000, 'x')});
  const auto start = std::chrono::steady_clock::now();
  const auto text = Render(
      "{% set ns = namespace(s='') %}{% for m in messages %}{% set ns.s = ns.s + '<' + m.content.strip() ~ "
      "'>' %}"
      "{% endfor %}{{ ns.s }}",
      messages);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->size(), 2000u * 10002);
  EXPECT_LT(took.count(), 5);
  const auto large = Render(kSmolLM2, {{"user", std::string(32 << 20, 'y')}});
  ASSERT_TRUE(large.ok()) << large.status();
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
