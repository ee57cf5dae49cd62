#!/usr/bin/env python3
r"""Writes tests/golden/models: tiny random checkpoints of every class and format, and what transformers makes of them.

    pip install torch transformers gguf numpy       # the versions of the committed files are in references/*.json
    python make_model_fixtures.py                   # the committed fixtures, again: same bytes (logits: same CPU)
    python make_model_fixtures.py --seed 7 --out /tmp/models    # other shapes, weights and prompts
    python make_model_fixtures.py --only llama_ --out /tmp/models

In the folder:

  NAME/                  a Hugging Face directory: config.json and safetensors. _v5: transformers 5's dialect of the
                         config, where weights are shared as links to the other directory
  gguf/*.gguf            GGUF files of the same weights, or of random K-quant blocks
  references/NAME.json   what the checkpoints that it lists (paths in the folder) must say:
    class, versions, seed
    checkpoints          paths; gguf files of it have exactly these weights too
    tp                   tensor-parallel degrees that make sense
    prompts[]            name, prompt_ids, greedy_ids (argmax, going on after an eos), gaps (best minus second logit),
                         min_gap; rope: "short" or "long" where the model has LongRoPE, which it is run with, else
                         null; fp64_difference: the largest difference of fp32 to fp64 over the largest logit, of the
                         worst row
    dequantised[]        checkpoint, tensor (of a GGUF file its own name, of a directory the module's), shape
  references/NAME.safetensors   F32: logits/PROMPT [tokens, vocabulary] of every position of the prompt;
                         dequantised/TENSOR [first rows, columns] of some quantised tensors

All of it is transformers in fp32 with eager attention: on the directory itself, or where it is quantised on the weights
that plain numpy gets out of it (fixtures/quantise.py) or that gguf does. Greedy tokens are made without a cache, so
LongRoPE is what generate() gives: short factors up to original_max_position_embeddings tokens, long ones for all of a
longer sequence. A sequence that crosses the border is recorded with the long factors throughout ("long").
"""

import argparse
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "models")
    parser.add_argument("--seed", type=int, default=0, help="0: the committed fixtures")
    parser.add_argument("--only", default="", help="only the cases whose names begin so; others stay as they are")
    options = parser.parse_args()

    import torch
    import transformers

    from fixtures.cases import CASES
    from fixtures.maker import Maker

    torch.set_num_threads(1)  # sums in one order
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    maker = Maker(options.out, options.seed)
    for make in CASES:
        if make.__name__.startswith(options.only):
            maker.begin(make.__name__)
            make(maker)


if __name__ == "__main__":
    main()
