"""The engine's tables: what is kept, what is measured again, and what the figures are compared with."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def settings(tmp_path):
    from engine_tables.results import Settings

    return Settings(tmp_path / "out", 1.0, 0.0, ("onnxruntime",), ())


def test_rows_are_measured_once_for_the_same_code(settings, monkeypatch):
    import engine
    from engine_tables import results

    calls = []
    part = engine.Part("Title", lambda s: ["a", "b"], lambda key, s: calls.append(key) or {"ms": 1.5},
                       lambda rows: f"{list(rows)}", 1)
    monkeypatch.setitem(engine.PARTS, "bars", part)
    assert "['a', 'b']" in engine.run("bars", settings) and calls == ["a", "b"]
    engine.run("bars", settings)
    assert calls == ["a", "b"] and json.loads((settings.folder / "bars.json").read_text())["a"]["ms"] == 1.5
    monkeypatch.setattr(results, "code_version", lambda: "other")
    engine.run("bars", settings)
    assert calls == ["a", "b", "a", "b"]


def test_an_interrupted_part_goes_on(settings, monkeypatch):
    import engine

    calls = []

    def measure(key, _):
        calls.append(key)
        if calls == ["a", "b"]:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setitem(engine.PARTS, "bars", engine.Part("", lambda s: ["a", "b"], measure, str, 1))
    with pytest.raises(KeyboardInterrupt):
        engine.run("bars", settings)
    engine.run("bars", settings)
    assert calls == ["a", "b", "b"]


def test_figures_and_bars():
    from engine_tables.results import markdown, versus

    assert versus(4.5, 4.4) == "**4.50** (≥ 4.4)" and versus(4.3, 4.4) == "4.30 (≥ 4.4)"
    assert versus(1.04, 1.05, at_most=True) == "**1.04** (≤ 1.05)" and versus(2.0, None) == "2.00"
    assert versus(None, 1) is None
    assert markdown(("a", "b"), [(1.234, None)]).splitlines()[-1] == "| 1.23 | - |"


def test_tables_of_made_up_rows(tmp_path):
    from engine_tables import bars, foreign, rates, scaling

    row = {"ms": {"ours dense": 10.0, "ours pruned": 2.0, "openvino": 9.0, "mnn": 12.0}, "error": 1e-6,
           "peak_share": 0.71, "convolutions_peak_share": 0.8}
    table = bars.both_tables({"resnet50": row})
    assert "9.00 OpenVINO | 12.00 MNN" in table and "**4.50** (≥ 4.4)" in table and "71 % (≥ 70 %)" in table
    assert "1.11 (≤ 1.05)" in table, "our dense build is too slow"
    assert "**4.50** (≥ 3.3)" in bars.avx2_tables({"resnet50": row})
    bars.plot({"resnet50": row}, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 1000

    table = foreign.table({"pattern + connectivity": {"ms": {"dense": 90, "pruned": 50, "other": 40}, "error": 0}})
    assert "**0.80** (≥ 0.7)" in table
    times = dict(zip(map(str, range(10)), (10, 9, 8, 8.1, 6, 7, 4, 3, 2, 1), strict=True))
    assert rates.rises({"ms": times}) == ["5"]
    flat = scaling.relative("resnet50 batch", {"ms": {"1": 2, "2": 5}, "kept_macs": {"1": 10, "2": 20}})
    assert flat == {"1": 1.0, "2": 1.25}


def test_publishing(settings, tmp_path):
    import engine
    from engine_tables.results import Rows

    row = {"ms": {"ours dense": 10.0, "ours pruned": 2.0, "openvino": 9.0}, "error": 1e-6, "peak_share": 0.71,
           "convolutions_peak_share": 0.8}
    Rows("bars", settings).add("resnet50", row)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"head\n{engine.BEGIN}\nold\n{engine.END}\ntail\n")
    engine.publish(settings, tmp_path)
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("head\n") and readme.endswith("\ntail\n") and "old" not in readme
    assert "| ResNet-50 224 | 6 | 9.00 (OpenVINO) | 10.00 | **2.00** | **4.50×** | 5.00× | 1e-06 |" in readme
    page = (tmp_path / "docs" / "engine-results.md").read_text()
    assert "**4.50** (≥ 4.4)" in page and (tmp_path / "docs" / "pictures" / "bars.png").exists()
    assert engine.BEGIN in (BENCHMARKS.parent / "README.md").read_text()


def test_the_largest_pair_of_activations(small_onnx):
    from engine_tables.building import largest_pair

    assert largest_pair(small_onnx) == 4 * (8 * 144 + 16 * 144)


def test_what_takes_part(monkeypatch):
    from engine_tables import peers

    assert "blockpunch" not in peers.installed() and "onnxruntime" in peers.installed()
    assert set(peers.TITLES) >= set(peers.installed())
