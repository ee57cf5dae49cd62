"""The parts of tests/gpu/run: what is checked and what is measured."""

import json
import pathlib
import re
import shutil
import time

import models
from run import DEVICE_TESTS, PART_SECONDS, Absent, Failed

# The share of a test's cases that a dry run takes: the emulator is slow, and CI runs all of them.
DRY_SHARDS = {"cuda_ops_test": 40, "cuda_invariance_test": 16, "cuda_engine_test": 1, "cuda_ops_fast_test": 12}
# Cases of the kernels of mode invariant but the exchanges', for tools that slow them down a hundredfold; in bf16, with
# caches of every type.
SANITIZED = ["SwiGlu", "Embed", "RmsNorm", "MatmulShapes", "ShardedMatmul", "HeadMatmul", "AttentionOfManySequences",
             "RopeModesAndFactors", "SampleEdges", "Route", "GroupedMatmulOfAToken", "MatmulManyRowsAndWideWeights",
             "Attention", "CodesAgreeWithPlainLoops", "BitsAreThoseOfTheWidenedWeight", "ColumnsOutOfOrder"]
SANITIZERS = ["memcheck", "racecheck"]
SANITIZER_SECONDS = 110


def shards(context, test):
    if not context.dry:
        return {}
    return {"GTEST_TOTAL_SHARDS": str(DRY_SHARDS.get(test, 2)), "GTEST_SHARD_INDEX": "0"}


def gtest_summary(output):
    ran = re.search(r"\[==========\] (\d+) tests? .*ran", output)
    if not ran or ran.group(1) == "0":
        raise Failed(f"ran no test\n{output[-1500:]}")
    skipped = len(set(re.findall(r"\[  SKIPPED \] (\S+)", output)))
    return f"{ran.group(1)} tests" + (f", {skipped} of them skipped" if skipped else "")


def conformance(context, found):
    for test in DEVICE_TESTS:
        found.check(test, lambda test=test: gtest_summary(
            context.program(test, seconds=200, env=shards(context, test))))
    found.check("cuda_ops_test, mode fast", lambda: fast_conformance(context))
    for tool in SANITIZERS:
        found.check(f"{tool} (compute-sanitizer)", lambda tool=tool: sanitize(context, tool))
    # Every array of these tests lies between sentinels, outputs and unused cache slots begin as NaN.
    found.data["guards"] = "guard words and poison in every test"


def fast_conformance(context):
    if not context.dry:
        return gtest_summary(context.program("cuda_ops_test", seconds=200, env={"PHALANX_TESTED_MODE": "fast"},
                                             log="cuda_ops_test-fast"))
    # The emulated module has no cuBLASLt; this test links a device with one of its own, which multiplies on the host.
    context.env.pop("PHALANX_EMULATED_STRICT", None)
    test = "cuda_ops_fast_test"
    return gtest_summary(context.program(test, env={**shards(context, test), "PHALANX_TESTED_DEVICE": "cuda-emulated"}))


def without_fast(context, error):
    """Raises what a program's failure in mode fast means."""
    lacking = re.search(r": (UNIMPLEMENTED: .*)", str(error)) or (
        context.dry and re.search(r": (\w+: .*cuBLASLt.*)", str(error)))
    raise Absent(lacking.group(1)) if lacking else error


def sanitize(context, tool):
    if context.dry:
        raise Absent("compute-sanitizer needs a device")
    binary = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if not binary:
        raise Absent("compute-sanitizer is not installed: guard words and poison alone")
    prefix = [binary, "--tool", tool, "--error-exitcode", "9"]
    done, began = [], time.monotonic()
    for case in SANITIZED:
        left = SANITIZER_SECONDS - (time.monotonic() - began)
        if left < 5:
            break
        try:
            gtest_summary(context.program("cuda_ops_test", f"--gtest_filter=*Test.{case}/cuda_fast*", seconds=left,
                                          prefix=prefix, log=f"{tool}-{case}"))
        except Failed as e:
            if not done and re.search(r"not supported|Unable to|error 999", str(e)):
                raise Absent(f"compute-sanitizer refuses this device, guard words and poison alone: {e}") from None
            if "not done after" in str(e):
                break
            raise
        done.append(case)
    if not done:
        raise Failed(f"not one case was done within {SANITIZER_SECONDS} s")
    return f"no error in {', '.join(done)}; {len(SANITIZED) - len(done)} not reached in {SANITIZER_SECONDS} s"


def graphs(context, found):
    def replay():
        return gtest_summary(context.program("cuda_graphs_test", env=shards(context, "cuda_graphs_test")))
    found.check("bits of graph replay", replay)


def ranks(context, found):
    # Ranks on the emulated device meet in the host's memory.
    context.env.pop("PHALANX_EMULATED_STRICT", None)

    def cluster(exchange):
        for module in ("grpc", "google.protobuf"):
            try:
                __import__(module)
            except ImportError:
                raise Absent(f"Python's {module} is not installed here") from None
        folder = context.scratch / exchange
        folder.mkdir()
        output = context.python("ranks.py", context.root, folder, exchange, *(["--dry-run"] if context.dry else []),
                                seconds=PART_SECONDS / 2, log=f"ranks-{exchange}")
        for line in output.splitlines():
            if line.startswith("absent: "):
                raise Absent(line.removeprefix("absent: "))
        return output.strip().splitlines()[-1]
    for exchange in ("peer", "nccl"):
        found.check(f"two and three ranks on one GPU, one killed, by {exchange}", lambda e=exchange: cluster(e))


def torch_here():
    try:
        import torch
    except ImportError:
        raise Absent("torch is not installed here") from None
    return torch


def device_of_torch(context):
    torch = torch_here()
    if context.dry:
        return "cpu"
    if not torch.cuda.is_available():
        raise Failed("torch sees no GPU")
    return "cuda"


def reference(context, found):
    for name, layers, modes in (("phi-4-mini-instruct", None, ["invariant"]), ("phi-4", 4, ["invariant", "fast"])):
        label = f"{name}{f', {layers} layers' if layers else ''}"
        folder, file = context.scratch / name, context.scratch / f"{name}.logits"
        for mode in modes:
            found.check(f"{label}, {mode}, against transformers", lambda name=name, layers=layers, mode=mode: compare(
                context, found, models.make(name, context.scratch / name, layers, context.dry), mode))
        shutil.rmtree(folder, ignore_errors=True)
        file.unlink(missing_ok=True)


def compare(context, found, folder, mode):
    file = context.scratch / f"{folder.name}.logits"
    context.python("torch_reference.py", "prompts", folder, file)
    try:
        said = context.program("engine_logits", "--model", folder, "--rung", "cuda", "--cuda-mode", mode, "--tokens",
                               f"{file}.tokens", "--out", file, "--chunk", 64, log=f"engine_logits-{folder.name}-{mode}")
    except Failed as e:
        if mode == "fast":
            without_fast(context, e)
        raise
    pathlib.Path(f"{file}.json").write_text(said.strip().splitlines()[-1])
    device = device_of_torch(context)
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise Absent("the engine ran; transformers is not installed here") from None
    output = context.python("torch_reference.py", "compare", folder, file, device,
                            log=f"torch_reference-{folder.name}-{mode}")
    result = json.loads(output.strip().splitlines()[-1])
    found.data["figures"][f"{folder.name} {mode}"] = result
    if result["failures"]:
        raise Failed("; ".join(result["failures"]))
    return result["summary"]


def kernels(context, found):
    def ours():
        file = context.out / "cuda_bench.json"
        output = context.program("cuda_bench", "--json", file, *(["--tiny"] if context.dry else []), seconds=400)
        found.data["figures"]["ours"] = json.loads(file.read_text())
        return output.strip().splitlines()[1]
    found.check("kernels", ours)

    def fast():
        file = context.out / "cuda_bench_fast.json"
        output = context.program("cuda_bench", "--mode", "fast", "--only", "fp8", "--json", file,
                                 *(["--tiny"] if context.dry else []), seconds=200)
        found.data["figures"]["fast"] = json.loads(file.read_text())
        return output.strip().splitlines()[1]
    found.check("FP8 products in mode fast", fast)

    def theirs():
        device = device_of_torch(context)
        file = context.out / "torch_kernels.json"
        context.python("torch_baselines.py", "kernels", file, device)
        found.data["figures"]["torch"] = json.loads(file.read_text())
        figures = found.data["figures"]["torch"]
        return f"torch {figures['torch']}: product of 8192 cubed {figures['gemm_flops'] / 1e12:.0f} TFLOP/s"
    found.check("baselines by torch (cuBLASLt, its attention)", theirs)


def engine_mini(context, found):
    engine(context, found, "phi-4-mini-instruct", "1@1024")


def engine_phi4(context, found):
    engine(context, found, "phi-4", "1@1024,64@2048")

    def baseline():
        device = device_of_torch(context)
        config = models.published("phi-4")
        (context.scratch / "phi-4.json").write_text(json.dumps(models.tiny(config) if context.dry else config))
        file = context.out / "torch_engine.json"
        context.python("torch_baselines.py", "engine", file, device, context.scratch / "phi-4.json")
        found.data["figures"]["torch"] = json.loads(file.read_text())
        return f"{found.data['figures']['torch']['tokens_per_second']:.1f} tokens/s"
    found.check("phi-4, batch 64 at 2k, torch.compile with CUDA graphs", baseline)


def engine(context, found, name, batches):
    for mode in ("invariant", "fast"):
        def run(mode=mode):
            flags = ["--prefill", 4096, "--steps", 64, "--batches", batches, "--repeats", 2]
            if context.dry:
                flags = ["--prefill", 20, "--steps", 3, "--batches", "1@10,2@12", "--repeats", 1]
            folder = models.make(name, context.scratch / name, small=context.dry)
            try:
                output = context.program("engine_bench", "--model", folder, "--rung", "cuda", "--cuda-mode", mode, *flags,
                                         "--json", seconds=240, log=f"engine_bench-{name}-{mode}")
            except Failed as e:
                if mode == "fast":
                    without_fast(context, e)
                raise
            figures = json.loads(output[output.index("{"):])
            found.data["figures"][f"{name} {mode}"] = figures
            return "; ".join(f"{k}: {v['tokens_per_second']:.1f} tokens/s, {v['share_of_bandwidth']:.1%}"
                             for k, v in figures.items() if k.startswith("decode"))
        found.check(f"{name}, {mode}", run)
    shutil.rmtree(context.scratch / name, ignore_errors=True)


PARTS = {"conformance": conformance, "graphs": graphs, "ranks": ranks, "reference": reference, "kernels": kernels,
         "engine-mini": engine_mini, "engine-phi4": engine_phi4}
