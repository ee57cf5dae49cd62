"""Metrics and health over HTTP, read by Prometheus' own parser; and the lines that logs say of requests."""

import http.client
import re
import threading
import urllib.error
import urllib.request

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster import free_port
from reflection_client import wait_for

SHORT = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
ENDLESS = {"temperature": 1, "max_tokens": 60000, "ignore_eos": True}
GRPC_STATUS_DETAILS = "grpc-status-details-bin"


def get(port, path):
    """(status, content type, body)."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, reply.headers["Content-Type"], reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


class Scrape:
    """The samples of one scrape."""

    def __init__(self, port):
        status, kind, text = get(port, "/metrics")
        assert status == 200 and kind.startswith("text/plain; version=0.0.4")
        self.types, self.samples = {}, {}
        for family in text_string_to_metric_families(text):
            assert family.name not in self.types, f"{family.name} comes twice"
            assert family.documentation
            self.types[family.name] = family.type
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.samples, f"{key} comes twice"
                self.samples[key] = sample.value

    def get(self, name, **labels):
        """The one sample of that name with those labels and maybe others, or None."""
        found = [v for (n, of), v in self.samples.items() if n == name and labels.items() <= dict(of).items()]
        assert len(found) <= 1, (name, labels, found)
        return found[0] if found else None

    def rising(self):
        """All that may never fall."""
        counters = {name for name, kind in self.types.items() if kind == "counter"}
        return {key: value for key, value in self.samples.items()
                if key[0].endswith(("_bucket", "_count")) or key[0].removesuffix("_total") in counters}

    def check_histograms(self):
        series = {}
        for (name, labels), value in self.samples.items():
            if name.endswith("_bucket"):
                rest = frozenset(item for item in labels if item[0] != "le")
                series.setdefault((name[:-7], rest), []).append((float(dict(labels)["le"]), value))
        assert series
        for (name, rest), buckets in series.items():
            counts = [count for _, count in sorted(buckets)]
            assert counts == sorted(counts) and counts[-1] == self.samples[f"{name}_count", rest]


@pytest.fixture(scope="module")
def served(make_cluster):
    port, worker_port = free_port(), free_port()
    cluster = make_cluster(coordinator_flags=["--metrics-listen", f"127.0.0.1:{port}"])
    cluster.start_worker("w0", "--metrics-listen", f"127.0.0.1:{worker_port}")
    cluster.metrics_port, cluster.worker_metrics_port = port, worker_port
    return cluster


@pytest.fixture
def cluster(served):
    served.wait_workers("IDLE", served.workers)
    yield served
    served.unload_all()


def scrape_until(port, condition, what):
    def there():
        scrape = Scrape(port)
        return scrape if condition(scrape) else None
    return wait_for(there, 20, what)


def test_counts_requests_and_tokens(cluster, random_model):
    cluster.load(random_model, "--name", "m")
    port = cluster.metrics_port
    before = Scrape(port)
    answers = [cluster.client.generate(model="m", text="Hi there", sampling=SHORT) for _ in range(3)]
    assert cluster.client.generate(model="m", text="", sampling=SHORT).code.name == "INVALID_ARGUMENT"
    assert cluster.client.generate(model="other", text="x").code.name == "NOT_FOUND"
    after = scrape_until(port, lambda s: s.get("phalanx_requests_total", code="NOT_FOUND"), "the last call's end")
    after.check_histograms()

    def rise(name, **labels):
        return after.get(name, **labels) - (before.get(name, **labels) or 0)

    prompt = sum(answer.started.prompt_tokens for answer in answers)
    for prefix in ("phalanx_", "vllm:"):
        assert rise(prefix + "prompt_tokens_total", model_name="m") == prompt
        assert rise(prefix + "generation_tokens_total", model_name="m") == 24
        assert rise(prefix + "request_success_total", model_name="m", finished_reason="length") == 3
        assert rise(prefix + "time_to_first_token_seconds_count", model_name="m") == 3
        assert rise(prefix + "inter_token_latency_seconds_count", model_name="m") == 21
        assert rise(prefix + "e2e_request_latency_seconds_count", model_name="m") == 3
        assert rise(prefix + "request_queue_time_seconds_count", model_name="m") == 3
        assert rise(prefix + "request_generation_tokens_sum", model_name="m") == 24
        assert rise(prefix + "request_max_num_generation_tokens_sum", model_name="m") == 24
        assert after.get(prefix + "num_requests_running", model_name="m") == 0
        assert after.get(prefix + "num_requests_waiting", model_name="m") == 0
    assert rise("vllm:time_per_output_token_seconds_count", model_name="m") == 21
    assert rise("phalanx_requests_total", model_name="m", code="OK") == 3
    assert rise("phalanx_requests_total", model_name="m", code="INVALID_ARGUMENT") == 1
    assert rise("phalanx_requests_total", model_name="", code="NOT_FOUND") == 1
    seconds = sum(answer.finished.usage.total_seconds for answer in answers)
    assert rise("phalanx_e2e_request_latency_seconds_sum", model_name="m") >= 0.9 * seconds
    for name in ("prefix_cache_queries_total", "prefix_cache_hits_total", "num_preemptions_total"):
        assert after.get("vllm:" + name, model_name="m") is not None
    assert after.get("process_resident_memory_bytes") > 1e6
    assert after.types["process_cpu_seconds"] == "counter"
    assert after.get("phalanx_build_info", version=cluster.client.status().version) == 1


def test_prefix_hits_are_counted(cluster, random_model):
    cluster.load(random_model, "--name", "cached")
    for _ in range(2):
        assert cluster.client.generate(model="cached", text="x" * 100, sampling=SHORT).code == grpc.StatusCode.OK
    scrape = scrape_until(cluster.metrics_port, lambda s: s.get("vllm:prefix_cache_hits_total", model_name="cached"),
                          "a prefix found")
    assert scrape.get("vllm:prefix_cache_hits_total", model_name="cached") == 96  # 3 whole blocks of 32
    scrape_until(cluster.metrics_port, lambda s: s.get("vllm:prefix_cache_queries_total", model_name="cached") == 200,
                 "both prompts looked up")


def test_gauges_under_load(cluster, random_model):
    cluster.load(random_model, "--name", "m")
    port = cluster.metrics_port
    streams = [cluster.client.stream(model="m", text="Hi", sampling=ENDLESS).read_tokens(1) for _ in range(3)]
    try:
        # A scrape may fall between two gauges of one report.
        scrape = scrape_until(port, lambda s: s.get("vllm:kv_cache_usage_perc", model_name="m")
                              and s.get("vllm:num_requests_running", model_name="m") == 3, "three with KV blocks")
        assert 0 < scrape.get("vllm:kv_cache_usage_perc", model_name="m") <= 1
        assert int(cluster.group("m").kv_blocks_total) == scrape.get("phalanx_group_kv_blocks", model_name="m")
        assert scrape.get("phalanx_groups", model_name="m", state="ready") == 1
        assert scrape.get("phalanx_workers", state="ready") == 1
        assert scrape.get("phalanx_in_flight_choices") == 3
        # The scrapes of several, while tokens are counted: no value ever falls.
        errors = []

        def watch():
            try:
                before = Scrape(port).rising()
                for _ in range(10):
                    now = Scrape(port).rising()
                    assert all(now[key] >= value for key, value in before.items())
                    before = now
            except Exception as error:  # to the test's thread
                errors.append(error)
        threads = [threading.Thread(target=watch) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors
    finally:
        for stream in streams:
            stream.cancel()
    scrape_until(port, lambda s: s.get("phalanx_num_requests_running", model_name="m") == 0
                 and s.get("phalanx_in_flight_choices") == 0, "nothing in flight")
    assert Scrape(port).get("vllm:request_success_total", model_name="m", finished_reason="abort") == 3


def test_counters_outlive_their_model(cluster, random_model):
    port = cluster.metrics_port
    cluster.load(random_model, "--name", "again")
    cluster.client.generate(model="again", text="Hi", sampling=SHORT)
    before = scrape_until(port, lambda s: s.get("phalanx_requests_total", model_name="again"), "the call's end")
    cluster.client.unload("again")
    between = scrape_until(port, lambda s: s.get("phalanx_groups", model_name="again") is None, "no group")
    cluster.wait_workers("IDLE", cluster.workers)
    cluster.load(random_model, "--name", "again")
    cluster.client.generate(model="again", text="Hi", sampling=SHORT)
    after = scrape_until(port, lambda s: s.get("phalanx_requests_total", model_name="again") == 2, "both calls")
    for earlier, later in ((before, between), (between, after)):
        later = later.rising()
        assert all(later[key] >= value for key, value in earlier.rising().items())
    assert after.get("vllm:generation_tokens_total", model_name="again") == 16


def test_labels_are_escaped(cluster, random_model):
    name = 'quo"te\\ back\u20ac'
    loaded = cluster.phalanx("load", random_model, "--name", name)
    if loaded.returncode != 0:
        pytest.skip(f"such a name is refused: {loaded.stderr}")
    cluster.client.generate(model=name, text="Hi", sampling=SHORT)
    scrape_until(cluster.metrics_port, lambda s: s.get("vllm:generation_tokens_total", model_name=name) == 8,
                 "the tokens of the model with the odd name")


def test_health(cluster, random_model):
    port = cluster.metrics_port
    assert get(port, "/healthz")[0] == 200
    assert get(port, "/metrics?x=1")[0] == 200
    assert get(port, "/")[0] == 404
    assert get(cluster.worker_metrics_port, "/healthz")[0] == 200
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for _ in range(3):  # one connection
        connection.request("POST", "/metrics")
        reply = connection.getresponse()
        assert reply.status == 405 and reply.headers["Allow"] == "GET, HEAD"
        reply.read()
    connection.request("HEAD", "/healthz")
    assert connection.getresponse().read() == b""
    connection.close()
    cluster.load(random_model)
    wait_for(lambda: get(port, "/readyz")[0] == 200, 10, "ready")


def test_a_worker_says_what_it_does(cluster, random_model):
    cluster.load(random_model, "--name", "m")
    before = Scrape(cluster.worker_metrics_port)
    cluster.client.generate(model="m", text="Hi", sampling=SHORT)
    after = Scrape(cluster.worker_metrics_port)
    after.check_histograms()
    assert after.get("phalanx_worker_step_seconds_count") >= before.get("phalanx_worker_step_seconds_count") + 8
    assert after.get("phalanx_worker_memory_bytes") > 0
    assert after.get("phalanx_worker_last_step_age_seconds") >= 0


def test_logs_name_requests(cluster, random_model):
    cluster.load(random_model, "--name", "m")
    cluster.client.generate(model="m", text="Hi", request_id="say when", sampling=SHORT)
    cluster.client.generate(model="m", text="Hi", request_id='x" OK forged\u2028', sampling={"n": 1000})
    stream = cluster.client.stream(model="m", text="Hi", request_id="left", sampling=ENDLESS).read_tokens(1)
    stream.cancel()

    def line(pattern):
        log = cluster.coordinator.log.read_text()
        found = wait_for(lambda: [l for l in cluster.coordinator.log.read_text().splitlines() if re.search(pattern, l)],
                         10, lambda: f"{pattern} in {log}")
        assert len(found) == 1, found
        return found[0]
    done = line(r'request "say when": OK')
    assert re.search(r"\(length\), model 'm', group \S+, \d+ prompt tokens, 1 choices, 8 tokens, queued [\d.]+ s, "
                     r"first token [\d.]+ s, total [\d.]+ s$", done), done
    bad = line(r"INVALID_ARGUMENT.*sampling\.n is 1000")
    assert '"x\\" OK forged\\342\\200\\250"' in bad
    assert "CANCELLED" in line(r'request "left": ')


def test_a_worker_names_requests_as_their_clients_do(own_cluster, random_model):
    cluster = own_cluster(workers=1, worker_flags=["--log-level", "debug"])
    cluster.load(random_model)
    cluster.client.generate(text="Hi", request_id='x" forged\u2028', sampling={**SHORT, "n": 2})

    def lines():
        return re.findall(r'D worker request "x\\" forged\\342\\200\\250", number \d+: (.*)',
                          cluster.workers["w0"].log.read_text())
    wait_for(lambda: len(lines()) == 4, 10, lambda: cluster.workers["w0"].log.read_text())
    assert sorted(lines()) == ["accepted"] * 2 + ["ended (length), 8 tokens, 0 of its prompt from the cache"] * 2


def test_a_refused_request_says_when_to_try_again(own_cluster, random_model):
    port = free_port()
    cluster = own_cluster(workers=1, coordinator_flags=[
        "--max-in-flight", "1", "--metrics-listen", f"127.0.0.1:{port}"])
    cluster.load(random_model, "--name", "m")
    stream = cluster.client.stream(text="Hi", sampling=ENDLESS).read_tokens(1)
    refused = cluster.client.generate(text="Hi", sampling=SHORT)
    assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(refused.error.trailing_metadata())
    delay_ms = int(trailers["retry-after-ms"])
    assert 500 <= delay_ms <= 60000
    # google.rpc.Status with one google.rpc.RetryInfo, by hand: field 1 of the Duration is its seconds.
    details = trailers[GRPC_STATUS_DETAILS]
    assert details[:2] == b"\x08\x08" and b"type.googleapis.com/google.rpc.RetryInfo" in details
    assert refused.details.encode() in details
    assert re.search(rb"\x0a.\x08[\x00-\x3c]|\x0a.\x10", details.split(b"RetryInfo")[1], re.S)
    scrape_until(port, lambda s: s.get("phalanx_requests_total", code="RESOURCE_EXHAUSTED") == 1, "the refusal")
    wait_for(lambda: "1 requests refused" in cluster.coordinator.log.read_text(), 10, "the refusal's line in the log")
    stream.cancel()
