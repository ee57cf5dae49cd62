"""phalanx inspect: no server, one line for an error, the same numbers for people and machines."""

import json

import pytest

from cluster import PHALANX, run

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96,
    "vocab_size": 100, "max_position_embeddings": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "bfloat16",
}


def inspect(*arguments):
    return run(PHALANX, "inspect", *map(str, arguments), timeout=20)


def fails(result, *named):
    assert result.returncode == 1, f"exit code {result.returncode}\n{result.stdout}{result.stderr}"
    assert result.stdout == ""
    assert result.stderr.endswith("\n") and result.stderr.count("\n") == 1, f"not one line:\n{result.stderr}"
    for name in named:
        assert name in result.stderr, result.stderr


def test_gguf_file(random_model):
    text = inspect(random_model, "--device-memory", "3GiB", "--context", "1000")
    assert text.returncode == 0 and text.stderr == ""
    assert "9 query heads, 3 KV heads, heads of 32" in text.stdout
    report = json.loads(inspect(random_model, "--json", "--device-memory", "3GiB", "--context", "1000").stdout)
    assert report["servable"] and report["architecture"] == "llama"
    assert report["memory"]["tokens"] == 1000
    ranks = report["memory"]["ranks"]
    assert [rank["ranks"] for rank in ranks] == list(range(1, 9))
    # Two layers, three heads of 32 and 32 channels, two bytes.
    assert ranks[0]["kv_bytes_per_token"] == 2 * 3 * 64 * 2
    assert ranks[0]["weight_bytes"] == report["weights"]["bytes"] == 4 * report["parameters"]
    for codes in ("int8", "fp8"):
        of_codes = json.loads(inspect(random_model, "--json", "--kv-dtype", codes).stdout)["memory"]["ranks"]
        assert of_codes[0]["kv_bytes_per_token"] == 2 * 3 * (64 + 2 * 2)
    # 1000 tokens are 32 blocks of 32.
    usable = int(3 * 2**30 * 0.9) - 2 * 2**30 - ranks[0]["weight_bytes"]
    assert ranks[0]["sequences"] == usable // (ranks[0]["kv_bytes_per_token"] * 1024)
    assert f"{ranks[0]['sequences']:,}" in text.stdout


def test_hugging_face_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    result = inspect(tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    assert "qwen2 (Qwen2ForCausalLM)" in result.stdout and "SEQUENCES" not in result.stdout
    by_file = inspect(tmp_path / "config.json")
    assert by_file.returncode == 0 and by_file.stdout == result.stdout


def test_what_cannot_be_inspected(tmp_path):
    fails(inspect(tmp_path / "none.gguf"), "NOT_FOUND", "none.gguf")
    fails(inspect(tmp_path), "NOT_FOUND", "config.json")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03")
    fails(inspect(tmp_path / "bad.gguf"), "INVALID_ARGUMENT", "bad.gguf")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": -1}))
    fails(inspect(tmp_path), "config.json: hidden_size is -1")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["MambaForCausalLM"]}))
    fails(inspect(tmp_path), "UNIMPLEMENTED", "'MambaForCausalLM'", "Phi3ForCausalLM")


@pytest.mark.parametrize("flags, named", [
    ([], "path"),
    (["x", "--device-memory", "80"], "--device-memory"),
    (["x", "--device-memory", "-1GB"], "--device-memory"),
    (["x", "--kv-dtype", "int3"], "bf16, f32, fp8 or int8"),
    (["x", "--weight-dtype", "fp5"], "fp5"),
    (["x", "--context", "-1"], "--context"),
    (["x", "--shards", "-1"], "--shards"),
])
def test_wrong_flags(flags, named):
    fails(inspect(*flags), named)


def test_too_many_shards(random_model):
    fails(inspect(random_model, "--shards", "65"), "65")
