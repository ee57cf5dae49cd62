import json
import os
import pathlib

import pytest

import tiny_gguf
from cluster import ROOT, Cluster, require_binaries

GOLDEN = ROOT / "tests" / "golden" / "smollm2_reference.json"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"

running = []  # clusters, for their logs when a test fails


def pytest_sessionstart(session):
    if missing := require_binaries():
        pytest.exit(missing, returncode=1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        for cluster in running:
            report.sections.append((f"logs of the cluster at {cluster.address}", cluster.logs()))
    return report


@pytest.fixture(scope="module")
def make_cluster(tmp_path_factory):
    """make_cluster(workers=2, ...) -> a Cluster that ends with the module's tests."""
    clusters = []

    def make(*args, **kwargs):
        cluster = Cluster(tmp_path_factory.mktemp("cluster"), *args, **kwargs)
        clusters.append(cluster)
        running.append(cluster)
        return cluster

    yield make
    errors = []
    for cluster in clusters:
        try:
            cluster.close()
        except AssertionError as error:
            errors.append(str(error))
        running.remove(cluster)
    assert not errors, "\n".join(errors)


@pytest.fixture
def own_cluster(tmp_path):
    """The same for one test, which may hurt it."""
    clusters = []

    def make(*args, **kwargs):
        (folder := tmp_path / f"cluster{len(clusters)}").mkdir()
        cluster = Cluster(folder, *args, **kwargs)
        clusters.append(cluster)
        running.append(cluster)
        return cluster

    yield make
    for cluster in clusters:
        running.remove(cluster)
    errors = []
    for cluster in clusters:
        try:
            cluster.close()
        except AssertionError as error:
            errors.append(str(error))
    assert not errors, "\n".join(errors)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "random.gguf"
    tiny_gguf.write_random(path)
    return path


@pytest.fixture(scope="session")
def script_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "script.gguf"
    tiny_gguf.write_script(path)
    return path


@pytest.fixture(scope="session")
def smollm2():
    folders = os.environ.get("PHALANX_TEST_DATA", "")
    for folder in filter(None, folders.split(":")):
        path = pathlib.Path(folder) / SMOLLM2
        if path.is_file():
            return path
    pytest.skip(f"no {SMOLLM2} in the folders of PHALANX_TEST_DATA={folders}")


@pytest.fixture(scope="session")
def golden():
    return json.loads(GOLDEN.read_text())
