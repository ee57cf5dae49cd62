"""Groups whose ranks exchange activations over TCP: the same tokens, and clean ends."""

import os
import shutil
import signal
import subprocess

import pytest

from cluster import FAULT_SECONDS, READY_SECONDS
from reflection_client import wait_for

REQUEST = {"text": "Once upon a time", "logprobs": 2,
           "sampling": {"temperature": 1, "seed": 4, "max_tokens": 60, "ignore_eos": True}}
ENDLESS = {"text": "On and on", "sampling": {"temperature": 1, "max_tokens": 60000, "ignore_eos": True}}


def tokens(cluster):
    answer = cluster.client.generate(**REQUEST)
    assert answer.code.name == "OK", answer.details
    return answer.ids, [str(p) for p in answer.logprobs]


def load(cluster, model, ranks):
    """Loads the model and gives its tokens; the group is ready."""
    cluster.load(model, "--name", "random", "--tp", ranks)
    cluster.wait_state("READY")
    return tokens(cluster)


def connections(process, ports):
    """Established TCP connections of a process, by /proc, with one of `ports` at either end."""
    sockets = set()
    for fd in os.listdir(f"/proc/{process.pid}/fd"):
        try:
            sockets.add(os.readlink(f"/proc/{process.pid}/fd/{fd}"))
        except FileNotFoundError:
            pass
    count = 0
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{process.pid}/net/{table}", encoding="ascii") as lines:
            for line in lines.readlines()[1:]:
                fields = line.split()
                ends = [int(field.rsplit(":", 1)[1], 16) for field in fields[1:3]]
                established = fields[3] == "01" and f"socket:[{fields[9]}]" in sockets
                count += established and any(port in ports for port in ends)
    return count


@pytest.fixture(scope="module")
def expected(make_cluster, random_model):
    """One rank's tokens, which two over shared memory have as well."""
    cluster = make_cluster(workers=2)
    one = load(cluster, random_model, 1)
    cluster.client.unload("random")
    assert load(cluster, random_model, 2) == one
    cluster.client.unload("random")
    return one


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_tokens_of_one_rank(own_cluster, random_model, expected, ranks):
    # Below the ports that the system gives to others.
    first = 20000 + os.getpid() % 100 * 100
    cluster = own_cluster(workers=ranks, coordinator_flags=["--collective", "tcp"],
                          worker_flags=["--collective-listen", f"127.0.0.1:{first}-{first + 99}"])
    assert load(cluster, random_model, ranks) == expected
    for name in cluster.group().workers:  # one to each other rank
        assert connections(cluster.workers[name], range(first, first + 100)) == ranks - 1
    cluster.client.unload("random")


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_follower(own_cluster, random_model, expected, fault):
    cluster = own_cluster(workers=2, coordinator_flags=["--collective", "tcp", "--heartbeat-timeout", "3"])
    assert load(cluster, random_model, 2) == expected
    victim = cluster.group().workers[1]
    stream = cluster.client.stream(**ENDLESS).read_tokens(5)
    cluster.workers[victim].signal(fault)
    answer = stream.result()
    assert answer.code.name == "UNAVAILABLE", answer.details
    assert victim in answer.details, answer.details
    cluster.start_worker("spare")
    wait_for(lambda: "spare" in cluster.group().workers and cluster.client.group_state(cluster.group()) == "READY",
             READY_SECONDS, lambda: f"a group with the spare: {cluster.group()}")
    assert tokens(cluster) == expected


class Network:
    """A bridge in a namespace of its own, and a namespace for each host on it. The test's own host gets one end of a
    cable to it; no interface that was there before is touched."""

    def __init__(self, hosts):
        self.name = f"px{os.getpid()}"
        self.hosts = hosts
        # By process, so that two runs do not meet.
        self.net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self.address = f"{self.net}.1"

    def ip(self, *words):
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)

    def build(self):
        hub = f"{self.name}-hub"
        self.ip("netns", "add", hub)
        self.ip("-n", hub, "link", "add", "br0", "type", "bridge")
        self.ip("-n", hub, "link", "set", "br0", "up")
        self.ip("link", "add", self.name, "type", "veth", "peer", "name", "port-0", "netns", hub)
        self.ip("addr", "add", f"{self.address}/24", "dev", self.name)
        self.ip("link", "set", self.name, "up")
        self.ip("-n", hub, "link", "set", "port-0", "master", "br0", "up")
        for i, host in enumerate(self.hosts):
            space = f"{self.name}-{host}"
            self.ip("netns", "add", space)
            self.ip("-n", space, "link", "set", "lo", "up")
            self.ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", f"port-{host}", "netns", hub)
            self.ip("-n", space, "addr", "add", f"{self.address_of(i)}/24", "dev", "eth0")
            self.ip("-n", space, "link", "set", "eth0", "up")
            self.ip("-n", hub, "link", "set", f"port-{host}", "master", "br0", "up")

    def address_of(self, i):
        return f"{self.net}.{10 + i}"

    def cable(self, host, state):
        self.ip("-n", f"{self.name}-hub", "link", "set", f"port-{host}", state)

    def mute(self, i, towards_host, muted):
        """One way of the cable between this test's host and hosts[i]: frames go to a card that there is not."""
        space, device, to = ([], self.name, self.address_of(i)) if towards_host else (
            ["-n", f"{self.name}-{self.hosts[i]}"], "eth0", self.address)
        if muted:
            self.ip(*space, "neigh", "replace", to, "lladdr", "02:00:00:00:00:01", "nud", "permanent", "dev", device)
        else:
            self.ip(*space, "neigh", "del", to, "dev", device)

    def remove(self):
        for name in [f"{self.name}-{host}" for host in (*self.hosts, "hub")]:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)
        subprocess.run(["ip", "link", "del", self.name], check=False, capture_output=True, timeout=20)


@pytest.fixture
def network():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and `ip` (iproute2)")
    networks = []

    def make(hosts):
        networks.append(Network(hosts))
        try:
            networks[-1].build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this host allows no network namespaces: {error.stderr.strip()}")
        return networks[-1]

    yield make
    for made in networks:
        made.remove()


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_cut_cable_between_hosts(network, own_cluster, random_model, expected, ranks):
    hosts = ["a", "b", "c"][:ranks]
    net = network(hosts)
    cluster = own_cluster(coordinator_flags=["--heartbeat-timeout", "3"], host=net.address)
    for i, host in enumerate(hosts):
        cluster.start_worker(f"w{host}", "--host-id", host, "--threads", "1", "--listen", f"{net.address_of(i)}:0",
                             prefix=["ip", "netns", "exec", f"{net.name}-{host}"])
    assert load(cluster, random_model, ranks) == expected
    victim = hosts[-1]
    stream = cluster.client.stream(**ENDLESS).read_tokens(5)
    net.cable(victim, "down")
    answer = stream.result()
    assert answer.code.name == "UNAVAILABLE", answer.details
    refused = cluster.client.generate(timeout=5, **REQUEST)
    assert refused.code.name == "UNAVAILABLE"
    trailers = dict(refused.error.trailing_metadata())
    assert int(trailers["retry-after-ms"]) > 0, trailers
    wait_for(lambda: cluster.client.worker_state(cluster.worker(f"w{victim}")) == "LOST", FAULT_SECONDS,
             lambda: f"w{victim} is lost: {cluster.worker('w' + victim)}")
    net.cable(victim, "up")
    wait_for(lambda: cluster.client.group_state(cluster.group()) == "READY", READY_SECONDS,
             lambda: f"the group is ready again: {cluster.group()}")
    assert tokens(cluster) == expected


@pytest.mark.parametrize("towards_worker", [True, False])
def test_a_cable_that_carries_one_way_only(network, own_cluster, random_model, expected, towards_worker):
    net = network(["a"])
    cluster = own_cluster(coordinator_flags=["--heartbeat-timeout", "3"], host=net.address)
    cluster.start_worker("wa", "--host-id", "a", "--threads", "1", "--listen", f"{net.address_of(0)}:0",
                         prefix=["ip", "netns", "exec", f"{net.name}-a"])
    assert load(cluster, random_model, 1) == expected
    stream = cluster.client.stream(**ENDLESS).read_tokens(5)
    net.mute(0, towards_worker, True)
    answer = stream.result()
    assert answer.code.name == "UNAVAILABLE", answer.details
    wait_for(lambda: cluster.client.worker_state(cluster.worker("wa")) == "LOST", FAULT_SECONDS,
             lambda: f"wa is lost: {cluster.worker('wa')}")
    net.mute(0, towards_worker, False)
    wait_for(lambda: cluster.client.group_state(cluster.group()) == "READY", READY_SECONDS,
             lambda: f"the group is ready again: {cluster.group()}")
    assert tokens(cluster) == expected
