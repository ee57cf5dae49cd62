"""The engine's logits and greedy tokens against transformers' on the same random checkpoint.

  torch_reference.py prompts FOLDER FILE           FILE.tokens: prompts for engine_logits
  torch_reference.py compare FOLDER FILE DEVICE    FILE and FILE.json: what engine_logits wrote and said

The truth is transformers in fp32. Our error may be half again as large as that of transformers in bf16, which rounds
where we round; a token must be the truth's wherever that leads by more than the errors can explain.
"""

import gc
import json
import pathlib
import random
import sys

LENGTHS = [7, 64, 300]
ERROR_FACTOR, ERROR_FLOOR = 1.5, 2e-3   # of transformers' own bf16 error
COSINE = 0.999
LEAD = 6.0                              # root mean square errors that a clear winner leads by


def prompts(folder, file):
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    source = random.Random(11)
    lines = [" ".join(str(source.randrange(vocab)) for _ in range(n)) for n in LENGTHS]
    pathlib.Path(f"{file}.tokens").write_text("\n".join(lines) + "\n")


def logits_of(folder, sequences, device, dtype):
    """fp32 logits of every position of every sequence."""
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").to(device).eval()
    with torch.no_grad():
        out = [model(torch.tensor([ids], device=device)).logits[0].float().cpu() for ids in sequences]
    del model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return out


def compare(folder, file, device):
    import numpy
    import torch
    said = json.loads(pathlib.Path(f"{file}.json").read_text())
    lines = pathlib.Path(f"{file}.tokens").read_text().split("\n")
    asked = [[int(word) for word in line.split()] for line in lines if line]
    ours = torch.from_numpy(numpy.fromfile(file, dtype=numpy.float32).reshape(-1, said["vocab"]))
    # Beyond the prompts what the engine chose, so that each choice is judged by the same past.
    sequences = [ids + greedy[:-1] for ids, greedy in zip(asked, said["greedy"], strict=True)]
    assert len(ours) == sum(map(len, asked)), (len(ours), [len(ids) for ids in asked])
    truth = logits_of(folder, sequences, device, torch.float32)
    narrow = logits_of(folder, sequences, device, torch.bfloat16)
    failures, worst, at, clear, tokens, agree = [], {"cosine": 1.0, "error": 0.0, "bf16_error": 0.0}, 0, 0, 0, 0
    for ids, greedy, want, bf16 in zip(asked, said["greedy"], truth, narrow, strict=True):
        n = len(ids)
        got = ours[at:at + n]
        at += n
        if not torch.isfinite(got).all():
            failures.append(f"prompt of {n}: logits that are not finite")
            continue
        error = float((got - want[:n]).norm() / want[:n].norm())
        own = float((bf16[:n] - want[:n]).norm() / want[:n].norm())
        cosine = float(torch.nn.functional.cosine_similarity(got, want[:n], dim=1).min())
        worst = {"cosine": min(worst["cosine"], cosine), "error": max(worst["error"], error),
                 "bf16_error": max(worst["bf16_error"], own)}
        if error > ERROR_FACTOR * own + ERROR_FLOOR:
            failures.append(f"prompt of {n}: error {error:.4f}, transformers' own in bf16 {own:.4f}")
        if cosine < COSINE:
            failures.append(f"prompt of {n}: cosine {cosine:.5f} at its worst position")
        step = float((got - want[:n]).pow(2).mean().sqrt())
        best = want.topk(2, dim=1)
        leads = best.values[:, 0] - best.values[:, 1] > LEAD * step
        chosen = torch.cat([got.argmax(dim=1)[:n - 1], torch.tensor(greedy)])
        same = chosen == best.indices[:, 0]
        clear += int(leads.sum())
        tokens += len(chosen)
        agree += int(same.sum())
        for position in torch.nonzero(leads & ~same).flatten().tolist():
            failures.append(f"prompt of {n}: token {int(chosen[position])} at position {position}, "
                            f"must be {int(best.indices[position, 0])}")
    summary = (f"error {worst['error']:.4f} (transformers in bf16: {worst['bf16_error']:.4f}), cosine at least "
               f"{worst['cosine']:.5f}, tokens equal at {agree} of {tokens} positions, at all {clear} clear ones")
    print(json.dumps({**worst, "clear": clear, "positions": tokens, "equal": agree, "failures": failures[:8],
                      "summary": summary, "instruction_set": said["instruction_set"]}))


if __name__ == "__main__":
    if sys.argv[1] == "prompts":
        prompts(pathlib.Path(sys.argv[2]), sys.argv[3])
    else:
        compare(pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4])
