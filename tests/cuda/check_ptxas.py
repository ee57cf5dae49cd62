"""Reads what `ptxas -v` says of every kernel: no spills and no stack frames, on any architecture, and of those that use
wgmma none that it made serial or whose registers it could not share out.

Usage: check_ptxas.py LOG [--table]: LOG is the output of a whole build of the CUDA module.
"""

import re
import subprocess
import sys

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
# setmaxnreg ignored, wgmma serialised: https://docs.nvidia.com/cuda/parallel-thread-execution
LOSS = re.compile(r"C75\d\d|Potential Performance Loss")
WGMMA_KERNELS = {"GemmWgmma", "AttentionWgmma"}  # each in 2 shapes and 2 types
MIN_KERNELS = 150  # of both architectures: fewer mean that the log is not whole
ARCHITECTURES = {"sm_80", "sm_90a"}


def read(lines):
    """Yields [name, architecture, stack, spill stores, spill loads, registers]."""
    kernel = None
    for line in lines:
        if match := ENTRY.search(line):
            kernel = [match.group(1), match.group(2), None, None, None, None]
        elif kernel and (match := STACK.search(line)):
            kernel[2:5] = map(int, match.groups())
        elif kernel and (match := REGISTERS.search(line)):
            kernel[5] = int(match.group(1))
            yield kernel
            kernel = None


def names(mangled):
    out = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    short = re.sub(r"phalanx::cuda::|\(anonymous namespace\)::", "", out)
    return [re.sub(r"\((?!\().*", "", line.removeprefix("void ")) for line in short.splitlines()]


def main():
    with open(sys.argv[1], encoding="utf-8") as log:
        lines = log.readlines()
    kernels = list(read(lines))
    if losses := [line.strip() for line in lines if LOSS.search(line)]:
        print("\n".join(losses))
        return 1
    for kernel, name in zip(kernels, names([k[0] for k in kernels]), strict=True):
        kernel[0] = name
    bad = [k for k in kernels if None in k or any(k[2:5])]
    for name, arch, stack, stores, loads, registers in kernels if "--table" in sys.argv else bad:
        print(f"{name} {arch}: {registers} registers, {stack} bytes of stack, {stores} and {loads} spilled")
    seen = {k[1] for k in kernels}
    if len(kernels) < MIN_KERNELS or seen != ARCHITECTURES:
        print(f"{len(kernels)} kernels for {sorted(seen)}; at least {MIN_KERNELS} for {sorted(ARCHITECTURES)} expected")
        return 1
    for wanted in WGMMA_KERNELS:
        if sum(name.startswith(wanted) and arch == "sm_90a" for name, arch, *_ in kernels) != 4:
            print(f"4 kernels {wanted} for sm_90a expected")
            return 1
    most = max(k[5] for k in kernels)
    print(f"{len(kernels)} kernels, {len(bad)} with a stack or spills, at most {most} registers")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
