"""Reads what `ptxas -v` says of every kernel: no spills and no stack frames, on any architecture, and of those that use
wgmma none that it made serial or whose registers it could not share out. Every kernel of the sources must be there, for
each architecture that it is for.

Usage: check_ptxas.py LOG [--table]: LOG is the output of a whole build of the CUDA module.
"""

import pathlib
import re
import subprocess
import sys

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "kernels" / "cuda"
ARCHITECTURES = {"sm_80", "sm_90a"}
HOPPER = {"sm_90a"}
HOPPER_HEADER = '#include "kernels/cuda/hopper_device.h"'
KERNEL = re.compile(r"(?:^template <([^>]*)>\n)?^PHX_GLOBAL void PHX_BOUNDS\([^)]*\)\s+(\w+)\(", re.M)

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
# setmaxnreg ignored, wgmma serialised: https://docs.nvidia.com/cuda/parallel-thread-execution
LOSS = re.compile(r"C75\d\d|Potential Performance Loss")


def expected(folder):
    """{name: (architectures, place of kHalf among its template's parameters or None)} of the kernels in `folder`."""
    kernels = {}
    for path in sorted(folder.glob("*.cu*")):
        text = path.read_text(encoding="utf-8")
        architectures = HOPPER if HOPPER_HEADER in text else ARCHITECTURES
        found = KERNEL.findall(text)
        if len(found) != text.count("PHX_GLOBAL"):
            raise ValueError(f"{path}: {text.count('PHX_GLOBAL')} kernels, of which only {len(found)} are understood")
        for parameters, name in found:
            words = [parameter.split()[-1] for parameter in parameters.split(",")] if parameters else []
            kernels[name] = (architectures, words.index("kHalf") if "kHalf" in words else None)
    return kernels


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


def other_type(name, place):
    """The instance `name` with fp16 for bf16, or the other way round; `place` is that of kHalf."""
    base, _, arguments = name.removesuffix(">").partition("<")
    depth, parts = 0, [""]
    for letter in arguments:
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    half = parts[place].strip()
    parts[place] = parts[place].replace(half, {"true": "false", "false": "true"}[half])
    return f"{base}<{','.join(parts)}>"


def missing(instances, kernels):
    """Yields what `kernels` says should be among `instances`, of (name, architecture), and what it does not know."""
    of_kernel = {}
    for name, architecture in instances:
        of_kernel.setdefault(name.partition("<")[0], set()).add((name, architecture))
    for kernel in sorted(of_kernel.keys() - kernels.keys()):
        yield f"{kernel} is in the log and not in the sources"
    for kernel, (architectures, half) in sorted(kernels.items()):
        found = of_kernel.get(kernel, set())
        for architecture in sorted(architectures):
            if not any(of == architecture for _, of in found):
                yield f"{kernel} for {architecture} is missing"
                continue
            wanted = {name for name, _ in found}
            if half is not None:
                wanted |= {other_type(name, half) for name in wanted}
            for name in sorted(wanted):
                if (name, architecture) not in found:
                    yield f"{name} for {architecture} is missing: there is another type or architecture of it"


def main(arguments, sources=SOURCES):
    with open(arguments[0], encoding="utf-8") as log:
        lines = log.readlines()
    kernels = list(read(lines))
    problems = [line.strip() for line in lines if LOSS.search(line)]
    for kernel, name in zip(kernels, names([k[0] for k in kernels]), strict=True):
        kernel[0] = name
    bad = [k for k in kernels if None in k or any(k[2:5])]
    for name, architecture, stack, stores, loads, registers in kernels if "--table" in arguments else bad:
        print(f"{name} {architecture}: {registers} registers, {stack} bytes of stack, {stores} and {loads} spilled")
    problems += missing([(k[0], k[1]) for k in kernels], expected(sources))
    for problem in problems:
        print(problem)
    most = max((k[5] for k in kernels), default=0)
    print(f"{len(kernels)} kernels, {len(bad)} with a stack or spills, at most {most} registers")
    return 1 if bad or problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
