"""The models that the script runs: published configurations, whole or cut, and tiny ones for --dry-run."""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def published(name):
    """A config.json of tests/base/known_configs.h."""
    text = (ROOT / "tests" / "base" / "known_configs.h").read_text()

    def factors(constant):
        return "".join(re.findall(r'"([^"]*)"', re.search(rf"{constant}\[\] =(.*?);", text, re.S).group(1)))
    config = re.search(rf'\{{"{name}",[^R]*R"\((.*?)\)"', text, re.S).group(1)
    config = config.replace('"SHORT"', f"[{factors('kShortFactors')}]").replace(
        '"LONG"', f"[{factors('kLongFactors')}]")
    return json.loads(config)


def tiny(config):
    """The same kind of model, so small that an emulator runs it."""
    heads = config["num_attention_heads"] // config["num_key_value_heads"]
    small = dict(config, hidden_size=128, num_hidden_layers=2, num_attention_heads=2 * heads, num_key_value_heads=2,
                 head_dim=32, intermediate_size=192, vocab_size=500, bos_token_id=0, eos_token_id=1, pad_token_id=0)
    small["hidden_size"] = 32 * 2 * heads
    rotary = int(32 * small.get("partial_rotary_factor", 1))
    scaling = small.get("rope_scaling")
    if scaling:
        small["rope_scaling"] = dict(scaling, short_factor=scaling["short_factor"][:rotary // 2],
                                     long_factor=scaling["long_factor"][:rotary // 2])
    return small


def make(name, folder, layers=None, small=False):
    """Writes a checkpoint of random weights; returns its folder."""
    config = published(name)
    if small:
        config = tiny(config)
        layers = None
    folder = pathlib.Path(folder)
    if (folder / "model.safetensors.index.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / f"{folder.name}.config.json").write_text(json.dumps(config))
    command = [sys.executable, str(ROOT / "tests" / "bench" / "make_random_checkpoint.py"),
               str(folder.parent / f"{folder.name}.config.json"), str(folder)]
    if layers:
        command += ["--layers", str(layers)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder
