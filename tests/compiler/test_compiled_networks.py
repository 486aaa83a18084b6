"""Whole networks at small resolutions against ONNX Runtime: a fast part of benchmarks/check_networks.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import check_networks

BUILDS = (("host", 1), ("x86-64-v3", 2))
NETWORKS = {"mobilenet-v2-32": None, "resnet20": None, "yolov5s": 64, "resnet50": 64}
CASES = [("mobilenet-v2-32", "dense", 1.0), ("mobilenet-v2-32", "block-punched:8x4", 6.0),
         ("mobilenet-v2-32", "unstructured", 2.0), ("resnet20", "pattern", 2.0), ("resnet20", "filter", 6.0),
         ("yolov5s", "channel", 2.0), ("yolov5s", "block-punched:8x4", 6.0), ("resnet50", "block-punched:8x4", 6.0)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path | None]]:
    """Each network's ONNX file, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("networks")

    class Files(dict[str, Path | None]):
        def __missing__(self, name: str) -> Path | None:
            self[name] = check_networks.source(name, folder, NETWORKS[name])
            return self[name]

    yield Files()


@pytest.mark.parametrize(("network", "scheme", "rate"), CASES, ids=[f"{n}-{s}-{r:g}" for n, s, r in CASES])
def test_same_as_onnxruntime(files: dict[str, Path | None], tmp_path: Path, network: str, scheme: str,
                             rate: float) -> None:
    path = files[network]
    if path is None:
        pytest.skip("its trained weights are not here")
    pruned, kept = check_networks.prune(path, scheme, rate, tmp_path)
    builds = BUILDS if network == "mobilenet-v2-32" else BUILDS[:1]
    rows = list(check_networks.check(network, pruned, scheme, rate, kept, builds, tmp_path))
    assert rows or not check_networks.bp.Target.named("x86-64-v3").runs_here()[0]
    for row in rows:
        assert row.passed, row
    if network == "resnet50":
        assert all(row.size < check_networks.SIZE_BAR for row in rows)


def test_results_of_other_code_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = check_networks.Row("resnet20", "dense", 1.0, "x86-64-v3", 1e-6, 2e-6, 1.0, 1.0, 1.1)
    monkeypatch.setattr(check_networks, "BUILDS", (("x86-64-v3", 1),))
    monkeypatch.setattr(check_networks.bp.Target, "runs_here", lambda self: (True, ()))
    check_networks.Results(tmp_path / "r.jsonl").add(row)
    assert check_networks.Results(tmp_path / "r.jsonl").has("resnet20", "dense", 1.0) == [row]
    monkeypatch.setattr(check_networks, "fingerprint", lambda: "other")
    assert check_networks.Results(tmp_path / "r.jsonl").has("resnet20", "dense", 1.0) == []
    assert check_networks.verdict([row], []) == 0
    assert check_networks.verdict([check_networks.Row("a", "dense", 1.0, "t", 1e-6, 2e-4, 1.0, 1.0, 1.1)], []) == 1
    assert check_networks.verdict([], ["resnet20"]) == 1
