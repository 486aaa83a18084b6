"""What is found out about the machine, and about a compiled network's layers."""

import sys

import pytest
from rich.console import Console

from blockpunch.artifact import Artifact
from blockpunch.cli import building, show
from blockpunch.errors import TargetMismatchError
from blockpunch.manifest import LayerRecord
from blockpunch.measure import layers, machine
from blockpunch.measure.layers import Bounds, LayerTime, time_layers, total
from blockpunch.measure.peak import Level, fma_peak, memory_levels
from blockpunch.target import Target


def test_peak_of_this_cpu():
    """Wide vectors need not be faster: some cores run an instruction of 256 bits in two halves."""
    host = Target.host()
    peak = fma_peak(host)
    assert 1e9 < peak < 1e12
    if host.arch == "x86_64":
        assert peak > 0.5 * fma_peak(Target.named("x86-64"))


def test_peak_of_another_cpu_is_refused():
    other = "cortex-a76" if Target.host().arch == "x86_64" else "x86-64-v3"
    with pytest.raises(TargetMismatchError, match="lacks"):
        fma_peak(Target.named(other))


def test_missing_extras_are_found(monkeypatch):
    monkeypatch.setattr(machine, "_installed", lambda name: name not in ("openvino", "typer"))
    machine.missing_extras.cache_clear()
    try:
        missing = machine.missing_extras()
    finally:
        machine.missing_extras.cache_clear()
    assert missing["openvino"] == ("openvino",) and missing["cli"] == ("typer",) and "bench" not in missing


def test_memory_gets_slower_with_distance():
    levels = memory_levels(Target.host())
    assert levels[0].name == "L2" and levels[-1].name == "DRAM" and levels[-1].capacity is None
    assert 1e9 < levels[-1].bytes_per_second < levels[0].bytes_per_second < 1e12


def test_layers_are_timed(small_bp):
    artifact = Artifact.load(small_bp)
    timed = time_layers(artifact, seconds=0.05)
    assert [row.record for row in timed] == list(artifact.layers)
    second = next(row for row in timed if row.record.name == "second")
    assert second.record.macs == 16 * 8 * 9 * 144 == second.record.kept_macs
    assert (second.record.read_bytes, second.record.written_bytes) == (4 * 8 * 144, 4 * 16 * 144)
    assert second.bytes_moved >= 4 * (16 * 8 * 9 + 8 * 144 + 16 * 144)
    assert 0 < second.peak_share < 4  # of direct multiply-adds; Winograd needs down to a quarter of them
    assert second.gmacs_per_second > 0 and second.record.packing
    assert second.bound in ("FMA", "L2", "overhead") and second.distance > 0.25
    assert sum(row.share for row in timed) == pytest.approx(1)
    assert [LayerTime.from_json(row.to_json()) for row in timed] == timed
    whole = total(timed)
    assert whole.ms == pytest.approx(sum(row.ms for row in timed)) and whole.share == pytest.approx(1)
    assert whole.record.kept_macs == sum(row.record.kept_macs for row in timed)


def record(**facts):
    return LayerRecord(**({"name": "x", "kind": "conv", "path": "", "macs": 0, "kept_macs": 0, "weight_bytes": 0,
                           "packing": "", "reason": ""} | facts))


@pytest.mark.parametrize(("ms", "macs", "moved", "bound", "distance"), [
    (1.0, 80_000_000, 1000, "FMA", 1.25), (1.0, 1000, 160_000, "L3", 1.25), (4.0, 80_000_000, 1000, "overhead", 5.0)])
def test_the_bound_that_binds(small_bp, monkeypatch, ms, macs, moved, bound, distance):
    """A core of 100 MMAC and, from L3, 200 kB a millisecond."""
    monkeypatch.setattr(layers, "fma_peak", lambda _: 100e9)
    monkeypatch.setattr(layers, "memory_levels", lambda _: (Level("L2", 2000, 1e9), Level("L3", None, 0.2e9)))
    step = record(kept_macs=macs, read_bytes=moved)
    row = LayerTime(step, ms, 1.0, *Bounds(Artifact.load(small_bp)).of(step))
    assert row.bound == bound and row.distance == pytest.approx(distance, rel=1e-3)
    assert row.peak_share == pytest.approx(macs / 100e6 / ms)


def test_bounds_of_two_threads_and_of_levels(small_bp, monkeypatch):
    monkeypatch.setattr(layers, "fma_peak", lambda _: 100e9)
    monkeypatch.setattr(layers, "memory_levels", lambda _: (Level("L2", 1000, 2e6), Level("DRAM", None, 1e6)))
    bounds = Bounds(Artifact.load(small_bp), threads=2)
    # The network's weights do not fit into the first level, so they come from memory; these values do fit.
    assert bounds.of(record(weight_bytes=500)) == (0, 0.25, "DRAM")
    assert bounds.of(record(read_bytes=250, written_bytes=250)) == (0, 0.125, "L2")
    assert bounds.of(record(kept_macs=200_000_000)) == (1.0, 0, "L2")


def test_the_profile_fits_120_columns(small_bp, monkeypatch, capsys):
    """Numbers stay whole; of a long name the end is kept, of a long schedule the beginning."""
    long = record(name="/features/features.17/conv/conv.2/Conv", packing="8 filters x 3 vectors, 384 of 2304 columns",
                  kept_macs=10**9, weight_bytes=10**8)
    rows = [LayerTime(long, 1234.567, 0.5, 1000.0, 100.0, "DRAM"), LayerTime(record(name="pool"), 0.001, 0.5, 0, 0, "")]
    monkeypatch.setattr(show, "console", lambda **_: Console(file=sys.stdout, width=120))
    monkeypatch.setattr(building, "time_layers", lambda *_, **__: rows)
    building.inspect(small_bp, timed=True, threads=1, shape=None, json_=None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    row = next(line for line in lines if "conv.2/Conv" in line)
    assert "…" in row and all(part in row for part in ("1234.6", "50 %", "81 %", "100.0", "FMA", "1.2 x", "8 filters"))
    assert any(line.strip().startswith("total") for line in lines) and "GMAC/s; L2" in lines[-1]
