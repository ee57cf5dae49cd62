"""`phalanx bench`: both kinds of load, its reports, and what it says of a cluster that refuses."""

import html.parser
import json
import signal
import subprocess
import time

import pytest

from cluster import PHALANX
from reflection_client import wait_for


@pytest.fixture(scope="module")
def cluster(make_cluster, random_model):
    cluster = make_cluster(workers=1)
    cluster.load(random_model, "--name", "m")
    return cluster


def bench(cluster, tmp_path, *flags, code=0):
    result = cluster.phalanx("bench", "--json", tmp_path / "out.json", "--html", tmp_path / "out.html", *flags,
                             timeout=120)
    assert result.returncode == code, result.stdout + result.stderr
    return result, json.loads((tmp_path / "out.json").read_text()), (tmp_path / "out.html").read_text()


class Page(html.parser.HTMLParser):
    """Balanced, without scripts and without anything fetched."""

    VOID = {"meta", "line", "rect", "polyline"}

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.plots = [], [], 0
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href"} & dict(attributes).keys()
        self.plots += tag == "svg"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in self.VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def check_times(times, count):
    assert times["count"] == count
    assert 0 <= times["min"] <= times["p50"] <= times["p90"] <= times["p95"] <= times["p99"] <= times["max"]
    assert times["min"] <= times["mean"] <= times["max"]


def test_closed_loop(cluster, tmp_path):
    before = cluster.group("m").generated_tokens
    result, out, page = bench(cluster, tmp_path, "--concurrency", 4, "--requests", 20, "--warmup", 2, "--input-len",
                              "5:30", "--output-len", "4:9", "--ignore-eos", "--seed", 3)
    assert out["requests"] == {"sent": 20, "finished": 20, "refused": 0, "failed": 0, "most_in_flight": 4}
    assert 20 * 5 <= out["tokens"]["prompt"] <= 20 * 30
    assert 20 * 4 <= out["tokens"]["output"] <= 20 * 9
    assert out["tokens"]["output_in_window"] == out["tokens"]["output"]
    assert sum(out["timeline"]["output_tokens"]) == out["tokens"]["output"]
    assert out["timeline"]["in_flight"][-1] == 0
    assert out["output_tokens_per_second"] == pytest.approx(out["tokens"]["output"] / out["window_seconds"])
    assert out["total_tokens_per_second"] == pytest.approx(
        (out["tokens"]["output"] + out["tokens"]["prompt"]) / out["window_seconds"])
    seconds = out["seconds"]
    check_times(seconds["time_to_first_token"], 20)
    check_times(seconds["end_to_end"], 20)
    check_times(seconds["inter_token_latency"], out["tokens"]["output"] - 20)
    assert seconds["time_to_first_token"]["p50"] <= seconds["end_to_end"]["p50"]
    assert "20 sent, 20 finished" in result.stdout and "time to first token" in result.stdout
    page = Page(page)
    assert page.plots == 5 and "Inter-token latency" in page.headings
    # The same seed asks the same: as many tokens once more, the warm-up's beside them.
    _, again, _ = bench(cluster, tmp_path, "--concurrency", 2, "--requests", 20, "--warmup", 2, "--input-len",
                        "5:30", "--output-len", "4:9", "--ignore-eos", "--seed", 3)
    assert again["tokens"] == out["tokens"]
    wait_for(lambda: cluster.group("m").generated_tokens >= before + 2 * out["tokens"]["output"], 10,
             "the group counted what the client did")


def test_open_loop_for_a_time(cluster, tmp_path):
    result, out, _ = bench(cluster, tmp_path, "--rate", 20, "--duration", 3, "--input-len", 4, "--output-len", 2,
                           "--ignore-eos", "--seed", 1)
    requests = out["requests"]
    assert requests["finished"] == requests["sent"] and 20 <= requests["sent"] <= 140  # of 60, by chance
    assert out["window_seconds"] == pytest.approx(3, abs=1)
    check_times(out["seconds"]["client_lag"], requests["sent"])


def test_a_dataset(cluster, tmp_path):
    lines = [{"prompt": "Hello there", "max_tokens": 2}, {"messages": [{"role": "user", "content": "Hi"}]},
             {"tokens": [5, 6, 7]}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    _, out, _ = bench(cluster, tmp_path, "--dataset", tmp_path / "prompts.jsonl", "--requests", 6, "--output-len", 3,
                      "--concurrency", 1, "--ignore-eos", "--temperature", 0)
    assert out["requests"]["finished"] == 6 and out["tokens"]["output"] == 2 * (2 + 3 + 3)


@pytest.mark.parametrize("line", ["[]", "{", '{"prompt": 3}', '{"messages": [{}]}', '{"tokens": ["a"]}',
                                  '{"tokens": [4294967301]}', '{"tokens": [-1]}',
                                  '{"prompt": "x", "max_tokens": 0}'])
def test_a_bad_dataset(cluster, tmp_path, line):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n' + line + "\n")
    result = cluster.phalanx("bench", "--dataset", tmp_path / "prompts.jsonl", "--requests", 1)
    assert result.returncode == 1 and "line 2" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("flags, named", [
    (["--concurrency", "0"], "--concurrency"), (["--rate", "-1"], "--rate"), (["--input-len", "9:3"], "--input-len"),
    (["--output-len", "x"], "--output-len"), (["--duration", "nan"], "--duration"), (["--burstiness", "0"], "--burst"),
    (["--rate", "1", "--concurrency", "2"], "--concurrency"), (["--input-len", "100000"], "context"),
    (["--rate", "0"], "--rate"), (["--duration", "0"], "--duration"), (["--requests", "0"], "--requests"),
    (["--input-len", "2000000000", "--output-len", "2000000000"], "4000000000"),
    (["--input-len", "8", "--shared-prefix", "9"], "--shared-prefix"),
    (["--json", "/nothing/x"], "--json /nothing/x"), (["--html", "/"], "--html /"),
    (["--model", "nothing"], "nothing"), (["--dataset", "/nothing"], "/nothing")])
def test_wrong_flags(cluster, flags, named):
    result = cluster.phalanx("bench", *([] if "--requests" in flags else ["--requests", "1"]), *flags)
    assert result.returncode == 1 and result.stdout == "" and named in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


def test_interrupted(cluster, tmp_path):
    """Ctrl-C: what runs is cancelled, what is done is reported."""
    process = subprocess.Popen([str(PHALANX), "--server", cluster.address, "bench", "--concurrency", "2",
                                "--duration", "600", "--input-len", "4", "--output-len", "4", "--ignore-eos", "--json",
                                str(tmp_path / "out.json")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in errors
    assert json.loads((tmp_path / "out.json").read_text())["requests"]["finished"] > 0
    cluster.wait_idle()


def test_overload_is_refused_fast(own_cluster, random_model, tmp_path):
    """More than --max-in-flight: the rest is refused with a delay, and what was accepted finishes."""
    cluster = own_cluster(workers=1, coordinator_flags=["--max-in-flight", "4"])
    cluster.load(random_model, "--name", "m")
    _, out, page = bench(cluster, tmp_path, "--rate", 400, "--duration", 3, "--input-len", 8, "--output-len", 64,
                         "--ignore-eos")
    requests = out["requests"]
    assert requests["refused"] > 0 and requests["finished"] > 0 and requests["failed"] == 0, out["errors"]
    assert requests["sent"] == requests["refused"] + requests["finished"]
    check_times(out["seconds"]["refusal"], requests["refused"])
    assert out["seconds"]["retry_delay"]["count"] == requests["refused"]
    assert out["seconds"]["retry_delay"]["min"] >= 0.5
    assert sum(out["timeline"]["refused"]) == requests["refused"]
    assert "Refused per second" in Page(page).headings


def test_nothing_finished(cluster, tmp_path):
    result, out, page = bench(cluster, tmp_path, "--requests", 2, "--timeout", 0.001, code=1)
    assert "no request finished" in result.stderr and out["requests"]["failed"] == 2 and out["errors"]
    Page(page)
