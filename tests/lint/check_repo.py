"""Checks of the repository itself: what a compiler does not see.

Sizes of files, registration of tests, files that README names, includes that go against the arrows.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAX_LINES = {"kernels": 700}  # by top folder; others:
MAX_LINES_DEFAULT = 500
# A folder may include from itself and from these (README, "Folders").
ARROWS = {
    "base": set(),
    "kernels": {"base"},
    "worker": {"kernels", "base"},
    "coordinator": {"base"},
    "client": {"base"},
}


def tracked(*patterns):
    out = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, check=True, capture_output=True, text=True)
    return [pathlib.PurePosixPath(p) for p in out.stdout.split()]


def check_sizes():
    for path in tracked("*.h", "*.cc", "*.py", "*.proto"):
        lines = (ROOT / path).read_text().count("\n")
        limit = MAX_LINES.get(path.parts[0], MAX_LINES_DEFAULT)
        if lines > limit:
            yield f"{path}: {lines} lines, the limit is {limit}: one file does one thing"


def check_arrows():
    for path in tracked("*.h", "*.cc"):
        top = path.parts[0]
        if top not in ARROWS:
            continue
        for included in re.findall(r'^#include "([^"]+)"', (ROOT / path).read_text(), re.M):
            first = included.split("/")[0]
            if first in ARROWS and first != top and first not in ARROWS[top]:
                yield f"{path}: includes {included}, against the arrows of the folders"


def check_tests_registered():
    cmake = "\n".join((ROOT / p).read_text() for p in tracked("tests/CMakeLists.txt", "tests/**/CMakeLists.txt"))
    for path in tracked("tests/*_test.cc", "tests/**/*_test.cc"):
        if path.name not in cmake:
            yield f"{path}: not registered in a CMakeLists.txt"
        if not re.search(r"\b(EXPECT_|ASSERT_|RunTranscripts\b|ExpectAllWell\b)", (ROOT / path).read_text()):
            yield f"{path}: asserts nothing"


def check_readme_files():
    for name in re.findall(r"`([\w./-]+\.(?:h|cc|proto|py|json))`", (ROOT / "README.md").read_text()):
        if not (ROOT / name).exists():
            yield f"README.md: names {name}, which does not exist"


def check_marks():
    for path in tracked("*.h", "*.cc", "*.proto"):
        for number, line in enumerate((ROOT / path).read_text().split("\n"), 1):
            if re.search(r"\b(TODO|FIXME|XXX)\b", line):
                yield f"{path}:{number}: an unfinished mark"


# Ways to wait without a deadline. base/mutex.h has none: its condition variable waits until a time. Streams between
# processes have no end of their own; their channels ping the peer (base/grpc_util.h), which ends them in 3 s.
ENDLESS = re.compile(
    r"std::condition_variable|std::(?:shared_)?future\b|std::promise|std::(?:counting|binary)_semaphore|std::latch|"
    r"std::barrier|absl::(?:Notification|CondVar|Mutex|BlockingCounter)\b|sem_wait|pthread_cond_wait|"
    r"\b(?:poll|epoll_wait)\([^;]*, -1\)|cudaStreamSynchronize|cudaDeviceSynchronize|cudaEventSynchronize|"
    r"[.>]CompletionQueue::Next\(")
MAY_WAIT = {"base/mutex.h"}
CALL = re.compile(r"^\s*grpc::ClientContext (\w+);", re.M)


def check_waits():
    for path in tracked("base", "coordinator", "worker", "client", "kernels"):
        if path.suffix not in (".h", ".cc", ".cu", ".cuh") or str(path) in MAY_WAIT:
            continue
        text = (ROOT / path).read_text()
        for number, line in enumerate(text.split("\n"), 1):
            if found := ENDLESS.search(line.split("//")[0]):
                yield f"{path}:{number}: {found.group()} waits without a deadline; use CondVar of base/mutex.h"
        for call in CALL.finditer(text):
            name = call.group(1)
            if not name.endswith("_") and f"{name}.set_deadline(" not in text:
                yield f"{path}: the call of {name} has no deadline"


def main():
    checks = [check_sizes, check_arrows, check_tests_registered, check_readme_files, check_marks, check_waits]
    problems = [problem for check in checks for problem in check()]
    for problem in problems:
        print(problem)
    print(f"{len(checks)} checks, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
