"""The table of tests/gpu/RESULTS.md, from what the parts of tests/gpu/run left in a folder."""

import json
import re

QUANTISED = re.compile(" (fp8|awq) M=")
PARTS = ["conformance", "graphs", "ranks", "reference", "kernels", "engine-mini", "engine-phi4"]
NOT_RUN = "not yet run on a device"
SMALL = (1, 2, 4, 8, 16)
# The rows of the timing table: (name, goal, part, function of the figures of that part -> text or None)
ROWS = []


def row(name, goal, part):
    def add(function):
        ROWS.append((name, goal, part, function))
        return function
    return add


def bench(figures):
    return {f"{r['group']} {r['name']}": r for r in figures["ours"]["rows"]} if "ours" in figures else {}


def engine_row(figures, name, batch):
    """Of the mode `invariant`, the default."""
    found = figures.get(f"{name} invariant", {})
    decode = found.get(f"decode {batch}")
    if decode is None:
        return None
    return (f"{decode['share_of_bandwidth']:.0%} of {found['read_bytes_per_second'] / 1e12:.2f} TB/s; "
            f"{decode['tokens_per_second']:.0f} tokens/s, {decode['ms_per_step']:.2f} ms a step")


@row("decode, batch 1, 1k context, Phi-4-mini bf16, of copy bandwidth", ">= 88 %", "engine-mini")
def _(figures):
    return engine_row(figures, "phi-4-mini-instruct", "1@1024")


@row("the same, Phi-4 bf16", ">= 90 %", "engine-phi4")
def _(figures):
    return engine_row(figures, "phi-4", "1@1024")


@row("decode attention, batch 32, 4k context, of copy bandwidth", ">= 88 %", "kernels")
def _(figures):
    found = [f"{n.split()[2]} {r['share_of_copy']:.0%} ({r['bytes_per_second'] / 1e12:.2f} TB/s){against(figures, n)}"
             for n, r in bench(figures).items() if n.startswith("decode attention") and n.endswith("batch 32 at 4096")]
    return "; ".join(found)


def against(figures, name):
    theirs = figures.get("torch", {}).get("rows", {}).get(name)
    if not theirs:
        return ""
    return f", {theirs / (bench(figures)[name]['microseconds'] * 1e-6):.2f} x torch"


def products(figures, counts):
    """(name, ours, torch's seconds or None) of the products of so many rows."""
    theirs = figures.get("torch", {}).get("rows", {})
    return [(n, r, theirs.get(n)) for n, r in bench(figures).items()
            if n.startswith("product ") and not QUANTISED.search(n) and int(n.rsplit("=", 1)[1]) in counts]


@row("products of 16 rows and fewer, of copy bandwidth", ">= 85 %", "kernels")
def _(figures):
    found = products(figures, SMALL)
    if not found:
        return None
    worst = min(found, key=lambda f: f[1]["share_of_copy"])
    shares = sorted(f[1]["share_of_copy"] for f in found)
    return f"median {shares[len(shares) // 2]:.0%}, worst {shares[0]:.0%} ({worst[0]})"


@row("the same, against cuBLASLt by torch", ">= 1 at every shape", "kernels")
def _(figures):
    return ratios(products(figures, SMALL))


def ratios(found):
    found = [(theirs / (ours["microseconds"] * 1e-6), name) for name, ours, theirs in found if theirs]
    if not found:
        return None
    found.sort()
    below = sum(1 for ratio, _ in found if ratio < 1)
    return (f"median {found[len(found) // 2][0]:.2f}, worst {found[0][0]:.2f} ({found[0][1]}), below 1 at {below} of "
            f"{len(found)}")


@row("prefill products (2048 rows), against cuBLASLt by torch", ">= 0.95", "kernels")
def _(figures):
    found = products(figures, (2048,))
    if not found:
        return None
    best = max(ours["flops"] for _, ours, _ in found) / 1e12
    limit = figures.get("torch", {}).get("gemm_flops", 0) / 1e12
    return f"{ratios(found)}; {best:.0f} TFLOP/s at best, torch's 8192 cubed {limit:.0f}"


@row("weights of 8 and 4 bits (gate up), times the speed of bf16: 1 row, 2048 rows", "FP8 >= 1.6 at 2048", "kernels")
def _(figures):
    found, ours = [], bench(figures)
    for name, quantised in ours.items():
        match = QUANTISED.search(name)
        plain = ours.get(QUANTISED.sub(" M=", name))
        if match and plain and name.endswith(("M=1", "M=2048")):
            found.append(f"{name.removeprefix('product ')} {plain['microseconds'] / quantised['microseconds']:.2f}")
    return "; ".join(found)


@row("mode fast: FP8 by cuBLASLt (gate up), scales of rows and of blocks, times the speed of bf16 there: 2048 and "
     "8192 rows", ">= 1.6", "kernels")
def _(figures):
    ours, found = bench({"ours": figures["fast"]}) if "fast" in figures else {}, []
    for name, fp8 in ours.items():
        match = re.search(" by fp8 (rows|blocks) (M=2048|M=8192|M=40)$", name)
        if match:
            plain = ours[name.replace(f"fp8 {match[1]}", "bf16")]
            found.append(f"{name.split()[1]} {match[1]} {match[2]} {plain['microseconds'] / fp8['microseconds']:.2f} "
                         f"({fp8['flops'] / 1e12:.0f} TFLOP/s)")
    return "; ".join(found)


@row("prefill attention, 4k to 16k causal", "350, then 550 TFLOP/s", "kernels")
def _(figures):
    found = [f"{' '.join(n.split()[2:4])} {r['flops'] / 1e12:.0f}{against(figures, n)}"
             for n, r in bench(figures).items()
             if n.startswith("prefill attention") and not n.endswith(" 2048 causal")]
    return "TFLOP/s: " + "; ".join(found) if found else None


@row("decode, batch 64, 2k context, Phi-4, of the step's bytes at copy bandwidth", ">= 75 %; >= 1.5 x torch", "engine-phi4")
def _(figures):
    ours = engine_row(figures, "phi-4", "64@2048")
    if ours and "torch" in figures:
        decode = figures["phi-4 invariant"]["decode 64@2048"]
        ratio = decode["tokens_per_second"] / figures["torch"]["tokens_per_second"]
        return f"{ours}; {ratio:.2f} x torch.compile with CUDA graphs"
    return ours


@row("invariant against fast, Phi-4: decode at batch 64, 2k context; prefill of 4k", ">= 90 %", "engine-phi4")
def _(figures):
    modes = [figures.get(f"phi-4 {mode}", {}) for mode in ("invariant", "fast")]
    found = [f"{k} {modes[0][k]['tokens_per_second'] / modes[1][k]['tokens_per_second']:.0%}"
             for k in ("decode 64@2048", "prefill 4096") if all(k in mode for mode in modes)]
    return "; ".join(found) if found else None


@row("sampling, 64 rows of 200k", "<= 40 us", "kernels")
def _(figures):
    found = [f"{n.split(' ', 4)[4]} {r['microseconds']:.0f} us" for n, r in bench(figures).items()
             if n.startswith("sampling")]
    return "; ".join(found) if found else None


def table(folder):
    """Markdown; rows without results say that they were not run."""
    parts, about = {}, {}
    for name in PARTS:
        if (folder / f"{name}.json").exists():
            parts[name] = json.loads((folder / f"{name}.json").read_text())
    if (folder / "machine.json").exists():
        about = json.loads((folder / "machine.json").read_text())
    dry = any(p["dry_run"] for p in parts.values())
    lines = []
    if about:
        lines += [f"{about['device']}, {about['date']}, commit {about['commit'][:12]}, `{about['command']}`", ""]
    if dry:
        lines += ["A dry run on the emulated device: shapes are tiny, times mean nothing.", ""]
    lines += ["| what | result |", "|---|---|"]
    for name in PARTS:
        if name not in parts:
            lines.append(f"| {name} | {NOT_RUN} |")
            continue
        for check in parts[name]["checks"]:
            detail = check["detail"].strip().split("\n")[0][:300].replace("|", "\\|")
            lines.append(f"| {name}: {check['name']} | {check['state']}{': ' + detail if detail else ''} |")
    lines += ["", "| speed | goal | measured |", "|---|---|---|"]
    for name, goal, part, function in ROWS:
        found = function(parts[part]["figures"]) if part in parts else None
        lines.append(f"| {name} | {goal} | {found or NOT_RUN} |")
    return "\n".join(lines) + "\n"
