// Golden transcripts: a file of blocks, each a few command lines, "----" and the output they gave, and an
// empty line. Lines that begin with # are comments. PHALANX_REWRITE=1 in the environment rewrites the
// outputs; review the diff.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace phalanx::coordinator {

// A command line: words, and key=value arguments. '_' in a value stands for a space.
struct Command {
  std::vector<std::string> words;
  std::map<std::string, std::string> args;

  std::string Arg(const std::string& key, const std::string& otherwise = "") const {
    const auto it = args.find(key);
    return it == args.end() ? otherwise : it->second;
  }
  int64_t Number(const std::string& key, int64_t otherwise = 0) const {
    const auto it = args.find(key);
    return it == args.end() ? otherwise : std::stoll(it->second);
  }
};

inline Command ParseCommand(const std::string& line) {
  Command command;
  std::istringstream in(line);
  for (std::string word; in >> word;) {
    const size_t equals = word.find('=');
    if (equals == std::string::npos) {
      command.words.push_back(word);
    } else {
      std::string value = word.substr(equals + 1);
      std::replace(value.begin(), value.end(), '_', ' ');
      command.args[word.substr(0, equals)] = value;
    }
  }
  return command;
}

inline std::vector<int32_t> ParseIds(const std::string& list) {
  std::vector<int32_t> ids;
  std::istringstream in(list);
  for (std::string id; std::getline(in, id, ',');) ids.push_back(std::stoi(id));
  return ids;
}

// Runs one file; `execute` returns the output of a command, lines ended by '\n'.
inline void RunTranscript(const std::filesystem::path& path,
                          const std::function<std::string(const Command&)>& execute) {
  SCOPED_TRACE(path.filename().string());
  std::ifstream in(path);
  ASSERT_TRUE(in) << path;
  std::string rewritten;
  std::string output;
  std::string expected;
  bool in_output = false;
  int blocks = 0;
  int number = 0;
  int block_line = 0;
  const auto end_block = [&] {
    if (!in_output) return;
    EXPECT_EQ(output, expected) << path.filename().string() << ":" << block_line;
    rewritten += output;
    output.clear();
    expected.clear();
    in_output = false;
    ++blocks;
  };
  const bool rewrite = std::getenv("PHALANX_REWRITE") != nullptr;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (in_output && !line.empty()) {
      expected += line + "\n";
      continue;
    }
    if (in_output && rewrite) expected = output;
    end_block();
    rewritten += line + "\n";
    if (line.empty() || line[0] == '#') continue;
    if (line == "----") {
      in_output = true;
      continue;
    }
    block_line = number;
    output += execute(ParseCommand(line));
  }
  if (in_output && rewrite) expected = output;
  end_block();
  EXPECT_GT(blocks, 0) << "a transcript without a block tests nothing";
  if (rewrite) std::ofstream(path) << rewritten;
}

// Runs every *.txt of a folder of testdata, each with a fresh subject.
template <typename Subject>
void RunTranscripts(const std::string& folder) {
  const std::filesystem::path root =
      std::filesystem::path(PHALANX_SOURCE_DIR) / "tests/coordinator/testdata" / folder;
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(root)) {
    if (entry.path().extension() != ".txt") continue;
    ++files;
    Subject subject;
    RunTranscript(entry.path(), [&subject](const Command& command) { return subject.Execute(command); });
  }
  EXPECT_GT(files, 0) << root;
}

}  // namespace phalanx::coordinator
