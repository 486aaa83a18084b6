"""What is found out about the machine, and about a compiled network's layers."""

import pytest

from blockpunch.artifact import Artifact
from blockpunch.errors import TargetMismatchError
from blockpunch.measure import machine
from blockpunch.measure.layers import static_layers, time_layers
from blockpunch.measure.peak import fma_peak
from blockpunch.target import Target


def test_peak_grows_with_the_vectors():
    host = Target.host()
    peak = fma_peak(host)
    assert 1e9 < peak < 1e12
    if host.isa in ("avx512", "avx2"):
        assert peak > 2.5 * fma_peak(Target.named("x86-64")), "wide multiply-adds beat narrow ones"


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


def test_layers_are_timed(small_bp):
    artifact = Artifact.load(small_bp)
    still, timed = static_layers(artifact), time_layers(artifact, seconds=0.05)
    assert [row.name for row in still] == [row.name for row in timed]
    second = next(row for row in timed if row.name == "second")
    assert second.macs == 16 * 8 * 9 * 144 == second.kept_macs
    assert 0 < second.peak_share < 1.2 and second.gmacs_per_second > 0 and second.packing and second.reason
    assert sum(row.share for row in timed) == pytest.approx(1)
