"""Targets: what machines of several kinds are taken for, and what they may run."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from blockpunch import target as module
from blockpunch.errors import TargetError
from blockpunch.target import TARGET_NAMES, Target, cache_bytes, detect, host_arch

HASWELL = frozenset({"fpu", "sse", "sse2", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"})
SKYLAKE_X = HASWELL | {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}


@pytest.mark.parametrize(("arch", "features", "isa", "floats", "registers"), [
    ("x86_64", SKYLAKE_X, "avx512", 16, 32),
    ("x86_64", SKYLAKE_X - {"avx512dq"}, "avx2", 8, 16),
    ("x86_64", SKYLAKE_X - {"avx512bw"}, "avx2", 8, 16),
    ("x86_64", SKYLAKE_X - {"avx512vl"}, "avx2", 8, 16),
    ("x86_64", HASWELL, "avx2", 8, 16),
    ("x86_64", HASWELL - {"fma"}, "sse", 4, 16),
    ("x86_64", frozenset({"sse2"}), "sse", 4, 16),
    ("x86_64", None, "sse", 4, 16),
    ("aarch64", frozenset({"fp", "asimd"}), "neon", 4, 32),
    ("aarch64", None, "neon", 4, 32),
])
def test_the_widest_that_fits(arch: str, features: frozenset[str] | None, isa: str, floats: int,
                              registers: int) -> None:
    found = detect(arch, features, {})
    assert (found.arch, found.isa, found.vector_floats, found.registers) == (arch, isa, floats, registers)


def test_unknown_architecture() -> None:
    with pytest.raises(TargetError, match="no kernels for the architecture 'riscv64'"):
        detect("riscv64", None, {})


def test_caches_are_the_machines_own() -> None:
    found = detect("x86_64", HASWELL, {1: 48 << 10, 2: 2 << 20})
    assert (found.l1_bytes, found.l2_bytes, found.l3_bytes) == (48 << 10, 2 << 20, 0)
    unknown = detect("x86_64", HASWELL, {})
    assert min(unknown.l1_bytes, unknown.l2_bytes, unknown.l3_bytes) > 0


def test_reads_cache_folders(tmp_path: Path) -> None:
    rows = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "1024K"), ("3", "Unified", "32M"),
            ("4", "Unified", "much")]
    for index, row in enumerate(rows):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in zip(("level", "type", "size"), row, strict=True):
            (folder / name).write_text(text + "\n")
    (tmp_path / "index9").mkdir()  # and one with nothing in it
    assert cache_bytes(tmp_path) == {1: 48 << 10, 2: 1 << 20, 3: 32 << 20}
    assert cache_bytes(tmp_path / "none") == {}


def test_reads_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nFeatures\t: fp asimd atomics\nprocessor\t: 1\nFeatures\t: fp asimd\n\n")
    monkeypatch.setattr(module, "_CPUINFO", info)
    assert module.host_features() == {"fp", "asimd"}  # what every core has
    monkeypatch.setattr(module, "_CPUINFO", tmp_path / "none")
    assert module.host_features() is None


@pytest.mark.parametrize("name", TARGET_NAMES)
def test_named_targets_survive_json(name: str) -> None:
    target = Target.named(name)
    assert Target.from_dict(target.to_dict()) == target
    assert target.vector_floats in (4, 8, 16)
    assert target.cflags


def test_unknown_names_and_descriptions() -> None:
    with pytest.raises(TargetError, match=r"unknown target 'pentium'\n  -> choose one of: host, x86-64-v4"):
        Target.named("pentium")
    with pytest.raises(TargetError, match="not a description"):
        Target.from_dict({"name": "x"})


def test_host_runs_here() -> None:
    assert Target.host().arch == host_arch()
    assert Target.host().runs_here() == (True, ())
    assert Target.host() is Target.named("host")


def test_what_runs_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(module, "host_features", lambda: HASWELL)
    assert Target.named("x86-64-v3").runs_here() == (True, ())
    fits, missing = Target.named("x86-64-v4").runs_here()
    assert not fits
    assert set(missing) == SKYLAKE_X - HASWELL
    assert Target.named("cortex-a76").runs_here() == (False, ("aarch64",))
    monkeypatch.setattr(module, "host_features", lambda: None)  # a system that does not tell
    assert Target.named("x86-64").runs_here() == (True, ())
    assert not Target.named("x86-64-v3").runs_here()[0]
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert Target.named("aarch64").runs_here() == (True, ())
    assert not Target.named("cortex-a76").runs_here()[0]
