"""phalanx pull against a hub on loopback: what is fetched, resumed, refused; who sees the token."""

import json
import os
import pty
import random
import resource
import select
import shutil
import signal
import subprocess
import time

import pytest

from cluster import PHALANX, free_port
from hub_server import COMMIT, Hub, entry

REPOSITORY = "acme/Tiny-1"
WEIGHTS = random.Random(1).randbytes(300_000)
FILES = {
    "config.json": b'{"architectures": ["Qwen2ForCausalLM"]}\n',
    "tokenizer.json": b"{}" + b" " * 20_000,  # a small file in LFS
    "README.md": b"",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"not wanted",
    "sub dir/x#1.gguf": b"GGUF" * 100,
}
WANTED = {"README.md", "config.json", "model.safetensors", "tokenizer.json"}


def pull(hub, *arguments, environment=None, repository=REPOSITORY, **kwargs):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SSL_"))}
    endpoint = hub if isinstance(hub, str) else hub.endpoint
    return subprocess.run([str(PHALANX), "pull", repository, *map(str, arguments)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=20,
                          env=clean | {"HF_ENDPOINT": endpoint} | (environment or {}), **kwargs)


def works(result, folder):
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{folder}\n"
    return result


def fails(result, *named):
    assert result.returncode == 1, f"exit code {result.returncode}\n{result.stdout}{result.stderr}"
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    for name in ("phalanx: ", *named):
        assert name in last, result.stderr
    return result


def tree(folder):
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop(".phalanx-pull.json", None)
    return found


@pytest.fixture
def hub():
    with Hub(REPOSITORY, FILES) as server:
        yield server


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_what_a_server_needs_then_nothing(hub, tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = tmp_path / "phalanx" / "models" / REPOSITORY
    first = works(pull(hub, environment=environment), folder)
    assert "model.safetensors  300.0 kB" in first.stderr and "\r" not in first.stderr
    assert tree(folder) == {name: FILES[name] for name in WANTED}
    assert all("authorization" not in request.headers for request in hub.requests)
    hub.requests.clear()
    second = works(pull(hub, environment=environment), folder)
    assert [request.path.split("?")[0] for request in hub.requests] == [f"/api/models/{REPOSITORY}/revision/main"]
    assert second.stderr == ""
    # Without the note of what was verified, by hashes; what was changed since comes again.
    (folder / ".phalanx-pull.json").unlink()
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
    hub.requests.clear()
    works(pull(hub, environment=environment), folder)
    assert len(hub.requests) == 2 and hub.asked("/model.safetensors")
    assert tree(folder) == {name: FILES[name] for name in WANTED}


def test_patterns_and_a_prefix(out):
    with Hub(REPOSITORY, FILES, prefix="/hub/v1") as hub:
        works(pull(hub.endpoint + "/", "--output", out, "--include", "*.gguf", "--include", "*.bin", "--exclude",
                   "pytorch*", "--quiet"), out)
        assert tree(out) == {"sub dir/x#1.gguf": FILES["sub dir/x#1.gguf"]}
        fails(pull(hub, "--output", out, "--include", "*.onnx"), "NOT_FOUND", REPOSITORY, "*.onnx")


def test_goes_on_where_the_connection_broke(hub, out):
    hub.cuts["model.safetensors"] = [100_000, 50_000]
    result = works(pull(hub, "--output", out), out)
    assert tree(out)["model.safetensors"] == WEIGHTS
    ranges = [request.headers.get("range") for request in hub.asked("/model.safetensors")]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert sum(request.sent for request in hub.asked("/model.safetensors")) == len(WEIGHTS)
    assert "ended too early" in result.stderr and "(1 of 5)" in result.stderr


def test_the_next_pull_goes_on(hub, out):
    hub.cuts["model.safetensors"] = [120_000]
    fails(pull(hub, "--output", out, "--retries", "0"), "UNAVAILABLE", "model.safetensors", "tries: 1")
    assert (out / "model.safetensors.incomplete").read_bytes() == WEIGHTS[:120_000]
    assert not (out / "model.safetensors").exists()
    hub.requests.clear()
    works(pull(hub, "--output", out), out)
    assert [request.headers.get("range") for request in hub.requests] == [None, "bytes=120000-"]
    assert tree(out) == {name: FILES[name] for name in WANTED}


def test_what_is_left_of_another_file_is_no_harm(hub, out):
    out.mkdir()
    (out / "model.safetensors.incomplete").write_bytes(b"x" * 200_000)
    (out / "tokenizer.json.incomplete").write_bytes(b"x" * 30_000)  # longer than the file
    works(pull(hub, "--output", out), out)
    assert tree(out) == {name: FILES[name] for name in WANTED}
    assert [request.headers.get("range") for request in hub.asked("/model.safetensors")] == ["bytes=200000-", None]


def test_a_server_without_ranges(hub, out):
    hub.ranges = False
    hub.cuts["model.safetensors"] = [100_000]
    works(pull(hub, "--output", out), out)
    assert tree(out)["model.safetensors"] == WEIGHTS
    assert [request.status for request in hub.asked("/model.safetensors")] == [200, 200]


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_bodies_without_a_length(hub, out, framing):
    hub.framing = framing
    hub.cuts["model.safetensors"] = [150_000]
    works(pull(hub, "--output", out), out)
    assert tree(out) == {name: FILES[name] for name in WANTED}
    assert sum(request.sent for request in hub.asked("/model.safetensors")) == len(WEIGHTS)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_on_the_way(hub, out, name):
    hub.served[name] = FILES[name][:-1] + b"!"
    kind, wanted = ("sha256", "lfs") if name == "model.safetensors" else ("git-sha1", "blobId")
    wanted = entry(name, FILES[name])[wanted]
    fails(pull(hub, "--output", out), "DATA_LOSS", name, f"{kind}:{wanted['sha256'] if kind == 'sha256' else wanted}")
    assert name not in tree(out) and f"{name}.incomplete" not in tree(out)


def test_another_length_than_listed(hub, out):
    hub.served["model.safetensors"] = WEIGHTS + b"more"
    fails(pull(hub, "--output", out), "DATA_LOSS", "model.safetensors", "300000", "300004")
    hub.framing = "chunked"
    fails(pull(hub, "--output", out), "DATA_LOSS", "model.safetensors", "300000", "more")


def test_a_hub_that_lists_no_hashes(hub, out):
    hub.listing = {"siblings": [{"rfilename": name} for name in FILES], "sha": COMMIT}
    result = works(pull(hub, "--output", out), out)
    assert tree(out) == {name: FILES[name] for name in WANTED}
    assert "'model.safetensors': the hub gives no hash" in result.stderr
    hub.requests.clear()
    works(pull(hub, "--output", out), out)
    assert len(hub.requests) == 1
    # But names them with the file.
    shutil.rmtree(out)
    hub.etags = True
    assert "no hash" not in works(pull(hub, "--output", out), out).stderr
    shutil.rmtree(out)
    hub.served["config.json"] = FILES["config.json"][::-1]
    fails(pull(hub, "--output", out), "DATA_LOSS", "config.json")


def test_the_token_stays_at_its_hub(hub, out):
    hub.token = "hf_sesame"
    with Hub(REPOSITORY, FILES) as other:
        target = f"{other.endpoint}/{REPOSITORY}/resolve/{COMMIT}/model.safetensors"
        hub.redirects["model.safetensors"] = f"{target}?signature=abc"
        result = works(pull(hub, "--output", out, environment={"HF_TOKEN": " hf_sesame\n"}), out)
        assert tree(out) == {name: FILES[name] for name in WANTED}
        assert len(other.requests) == 1 and "authorization" not in other.requests[0].headers
        assert all(request.headers["authorization"] == "Bearer hf_sesame" for request in hub.requests)
        assert "sesame" not in result.stderr + result.stdout
    wrong = fails(pull(hub, "--output", out, environment={"HF_TOKEN": "hf_wrong"}), "UNAUTHENTICATED", "401",
                  "HF_TOKEN is set", "Invalid credentials")
    assert "hf_wrong" not in wrong.stderr
    fails(pull(hub, "--output", out), "UNAUTHENTICATED", REPOSITORY, "set HF_TOKEN")


def test_relative_redirects_and_circles(hub, out):
    path = f"/{REPOSITORY}/resolve/{COMMIT}"
    hub.redirects["config.json"] = f"../{COMMIT}/sub%20dir/config.json"
    hub.files["sub dir/config.json"] = FILES["config.json"]
    works(pull(hub, "--output", out, "--include", "config.json"), out)
    assert tree(out) == {"config.json": FILES["config.json"]}
    hub.redirects["tokenizer.json"] = f"{path}/tokenizer.json"
    fails(pull(hub, "--output", out), "5 redirects", "tokenizer.json")
    assert len(hub.asked("/tokenizer.json")) == 6
    hub.redirects["tokenizer.json"] = "file:///etc/passwd"
    fails(pull(hub, "--output", out), "file:///etc/passwd")


def test_no_such_thing(hub, out):
    fails(pull(hub, "--output", out, "--revision", "v/9"), "NOT_FOUND", REPOSITORY, "'v/9'", "404")
    assert hub.requests[-1].path == f"/api/models/{REPOSITORY}/revision/v%2F9?blobs=true"
    fails(pull(hub, "--output", out, repository="acme/none"), "NOT_FOUND", "acme/none")
    hub.refusals["list"] = [(403, {"X-Error-Message": "Access to model is restricted"})]
    fails(pull(hub, "--output", out), "PERMISSION_DENIED", "restricted", "HF_TOKEN")
    assert not out.exists()
    fails(pull(f"http://127.0.0.1:{free_port()}", "--output", out), "UNAVAILABLE", "refused")
    fails(pull("http://no-such-host.invalid", "--output", out), "no-such-host.invalid")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "a\nb", "a\u0000b", ".phalanx-pull.json"])
def test_names_that_lead_outside(hub, out, name):
    hub.listing = {"sha": COMMIT, "siblings": [entry("config.json", FILES["config.json"]), entry(name, b"evil")]}
    result = fails(pull(hub, "--output", out), "INVALID_ARGUMENT", "siblings[1]", "is refused")
    assert result.stderr.count("\n") == 1 and not out.exists()


def test_links_that_lead_outside(hub, out, tmp_path):
    out.mkdir()
    (tmp_path / "outside").mkdir()
    (out / "sub dir").symlink_to(tmp_path / "outside")
    fails(pull(hub, "--output", out, "--include", "*.gguf"), "FAILED_PRECONDITION", "sub dir")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("listing, named", [
    (b"<html>busy</html>", "list of files"), ({"siblings": 3}, "siblings"), ({"sha": COMMIT}, "siblings"),
    ({"siblings": [{"rfilename": "config.json", "size": -1}]}, "size"),
])
def test_lists_that_are_none(hub, out, listing, named):
    hub.listing = listing
    fails(pull(hub, "--output", out), "INVALID_ARGUMENT", REPOSITORY, named)


def test_too_many_requests_then_fine(hub, out):
    hub.refusals = {"list": [(429, {"Retry-After": "0"})], "config.json": [(503, {"Retry-After": "0"}), (500, {})]}
    result = works(pull(hub, "--output", out), out)
    assert len(hub.asked("/config.json")) == 3 and "429" in result.stderr
    hub.refusals = {"list": [(429, {"Retry-After": "86400"})]}
    fails(pull(hub, "--output", out), "RESOURCE_EXHAUSTED", "86400")


def test_silence_has_an_end(hub, out):
    hub.hang.add("config.json")
    fails(pull(hub, "--output", out, "--stall-timeout", "0.2", "--retries", "0"), "DEADLINE_EXCEEDED", "config.json")


def test_a_file_that_cannot_be_written(hub, out):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    fails(pull(hub, "--output", out, preexec_fn=limit), "RESOURCE_EXHAUSTED", "model.safetensors", "100000 bytes")
    works(pull(hub, "--output", out), out)
    assert hub.asked("/model.safetensors")[-1].headers["range"] == "bytes=100000-"


def test_a_new_commit_replaces_and_removes(hub, out):
    works(pull(hub, "--output", out), out)
    (out / "mine.txt").write_text("mine")
    del hub.files["README.md"]
    hub.files["config.json"] = b"{}"
    works(pull(hub, "--output", out), out)
    assert tree(out) == {"config.json": b"{}", "mine.txt": b"mine", "model.safetensors": WEIGHTS,
                         "tokenizer.json": FILES["tokenizer.json"]}
    note = json.loads((out / ".phalanx-pull.json").read_text())
    assert note["commit"] == COMMIT and set(note["files"]) == WANTED - {"README.md"}


def test_bar_on_a_terminal(hub, out):
    main, side = pty.openpty()
    process = subprocess.Popen([str(PHALANX), "pull", REPOSITORY, "--output", str(out)], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=side, env=os.environ | {"HF_ENDPOINT": hub.endpoint})
    os.close(side)
    shown, deadline = b"", time.monotonic() + 10
    while select.select([main], [], [], max(0, deadline - time.monotonic()))[0]:
        try:
            piece = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        shown += piece
    os.close(main)
    assert process.communicate(timeout=10)[0].decode() == f"{out}\n" and process.returncode == 0
    assert b"\r\x1b[K[" in shown and b"model.safetensors" in shown and b"100%" in shown


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_tls(out, tmp_path):
    certificate = tmp_path / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", certificate, "-out", tmp_path / "public.pem", "-days", "2", "-subj", "/CN=hub",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True, timeout=20)
    public = (tmp_path / "public.pem").read_text()
    certificate.write_text(certificate.read_text() + public)
    with Hub(REPOSITORY, FILES, certificate=certificate) as hub:
        fails(pull(hub, "--output", out), "FAILED_PRECONDITION", "not trusted", "self-signed")
        trust = {"SSL_CERT_FILE": str(tmp_path / "public.pem")}
        works(pull(hub, "--output", out, environment=trust), out)
        assert tree(out) == {name: FILES[name] for name in WANTED}
        # The certificate is for the address, not for the name.
        fails(pull(hub.endpoint.replace("127.0.0.1", "localhost"), "--output", out, environment=trust),
              "not trusted", "localhost")
        # No step down to plain HTTP.
        hub.redirects["config.json"] = "http://127.0.0.1:1/x"
        (out / "config.json").unlink()
        fails(pull(hub, "--output", out, environment=trust), "PERMISSION_DENIED", "without TLS")


@pytest.mark.parametrize("arguments, environment, named", [
    (["a/b/c"], {}, "ORG/NAME"), (["a"], {}, "ORG/NAME"), (["../b"], {}, "ORG/NAME"),
    (["a/b", "--revision", ""], {}, "--revision"), (["a/b", "--retries", "-1"], {}, "--retries"),
    (["a/b", "--stall-timeout", "0"], {}, "--stall-timeout"), (["a/b"], {"HF_ENDPOINT": "ftp://x"}, "HF_ENDPOINT"),
    (["a/b"], {"HF_TOKEN": "a\nb"}, "HF_TOKEN"),
])
def test_wrong_flags(arguments, environment, named):
    result = subprocess.run([str(PHALANX), "pull", *arguments], env=os.environ | environment, capture_output=True,
                            text=True, timeout=20)
    fails(result, named)
