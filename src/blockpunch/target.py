"""Target: what the compiler must know about the core that will run the network.

A target is plain data: instruction set, vector width, registers, cache sizes, the CPU flags that the code will need,
and the compiler flags that follow. :meth:`Target.host` reads this machine, :meth:`Target.named` knows common cores.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from blockpunch.errors import TargetError

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

# The psABI levels that -march=x86-64-v3/-v4 let the compiler use, in the words of /proc/cpuinfo ('abm' is LZCNT).
_V3_FEATURES = ("avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm")
_V4_FEATURES = (*_V3_FEATURES, "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd")
_ARM82_FEATURES = ("asimd", "atomics", "asimdrdm", "fphp", "asimdhp", "asimddp", "lrcpc")


@dataclass(frozen=True)
class Target:
    """One kind of core.

    Attributes:
        name: as given to :meth:`named`, or the level that the host was found to have.
        arch: ``x86_64`` or ``aarch64``.
        isa: ``avx512``, ``avx2``, ``sse`` or ``neon``: which vector instructions the kernels use.
        vector_floats: float32 values in one vector register.
        registers: number of vector registers.
        features: CPU flags (as in ``/proc/cpuinfo``) that the built code needs.
        l1_bytes: first-level data cache of one core.
        l2_bytes: second-level cache of one core.
        l3_bytes: last-level cache (shared), 0 when there is none.
        cflags: compiler flags that select the core, as gcc and clang spell them.
    """

    name: str
    arch: str
    isa: str
    vector_floats: int
    registers: int
    features: tuple[str, ...]
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    cflags: tuple[str, ...]

    @staticmethod
    def host() -> Target:
        """The widest target that this machine can run, with its own cache sizes.

        Where the machine does not say what it has (no ``/proc/cpuinfo``), the portable target of its architecture.
        """
        return _host()

    @staticmethod
    def named(name: str) -> Target:
        """The target called ``name`` (see :data:`TARGET_NAMES`); ``host`` is this machine.

        Raises:
            TargetError: no such target.
        """
        if name == "host":
            return Target.host()
        try:
            return _NAMED[name]
        except KeyError:
            raise TargetError(f"unknown target '{name}'", fix=f"choose one of: {', '.join(TARGET_NAMES)}") from None

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Target:
        """Read what :meth:`to_dict` wrote.

        Raises:
            TargetError: a field is missing or not of the right kind.
        """
        try:
            numbers = ("vector_floats", "registers", "l1_bytes", "l2_bytes", "l3_bytes")
            return Target(name=str(data["name"]), arch=str(data["arch"]), isa=str(data["isa"]),
                          features=tuple(map(str, data["features"])), cflags=tuple(map(str, data["cflags"])),
                          **{key: int(data[key]) for key in numbers})
        except (KeyError, TypeError, ValueError) as error:
            raise TargetError(f"not a description of a target ({type(error).__name__}: {error})") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"features": list(self.features), "cflags": list(self.cflags)}

    def runs_here(self) -> tuple[bool, tuple[str, ...]]:
        """Whether this machine can run code built for the target, and what it lacks if not.

        Another architecture is reported as its name alone, e.g. ``('aarch64',)``.
        """
        if self.arch != host_arch():
            return False, (self.arch,)
        have = host_features()
        if have is None:  # the machine does not say: only code that needs nothing special is safe
            baseline = _NAMED["aarch64" if self.arch == "aarch64" else "x86-64"].features
            missing = tuple(flag for flag in self.features if flag not in baseline)
        else:
            missing = tuple(flag for flag in self.features if flag not in have)
        return not missing, missing


def _x86(name: str, isa: str, floats: int, registers: int, features: tuple[str, ...], l2: int, *cflags: str) -> Target:
    return Target(name, "x86_64", isa, floats, registers, features, 32 << 10, l2, 8 << 20, cflags)


def _arm(name: str, features: tuple[str, ...], l1: int, l2: int, l3: int, *cflags: str) -> Target:
    return Target(name, "aarch64", "neon", 4, 32, features, l1, l2, l3, cflags)


_NAMED: dict[str, Target] = {target.name: target for target in (
    _x86("x86-64-v4", "avx512", 16, 32, _V4_FEATURES, 1 << 20, "-march=x86-64-v4", "-mprefer-vector-width=512"),
    _x86("x86-64-v3", "avx2", 8, 16, _V3_FEATURES, 256 << 10, "-march=x86-64-v3"),
    _x86("x86-64", "sse", 4, 16, (), 256 << 10, "-march=x86-64"),
    _arm("aarch64", ("asimd",), 32 << 10, 256 << 10, 1 << 20, "-march=armv8-a"),
    _arm("cortex-a76", _ARM82_FEATURES, 64 << 10, 256 << 10, 2 << 20, "-mcpu=cortex-a76"),
    _arm("cortex-a55", _ARM82_FEATURES, 32 << 10, 128 << 10, 1 << 20, "-mcpu=cortex-a55"),
    _arm("neoverse-n1", _ARM82_FEATURES, 64 << 10, 1 << 20, 32 << 20, "-mcpu=neoverse-n1"),
)}

TARGET_NAMES: tuple[str, ...] = ("host", *_NAMED)
"""What :meth:`Target.named` accepts."""


def host_arch() -> str:
    """This machine's architecture as :attr:`Target.arch` spells it; unknown ones as the system does."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def host_features() -> frozenset[str] | None:
    """CPU flags of this machine, or ``None`` where the system does not tell."""
    return _read_features(_CPUINFO)


def host_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=8)
def _read_features(path: Path) -> frozenset[str] | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # Cores may differ (big.LITTLE, odd hypervisors) and code may land on any of them: only what all have counts.
    cores = [frozenset(line.partition(":")[2].split()) for line in text.splitlines()
             if line.partition(":")[0].strip() in ("flags", "Features")]
    return frozenset.intersection(*cores) if cores else None


@lru_cache(maxsize=1)
def _host() -> Target:
    return detect(host_arch(), host_features(), cache_bytes(_CACHES))


def detect(arch: str, features: frozenset[str] | None, caches: Mapping[int, int]) -> Target:
    """The widest named target that fits a machine, with the machine's cache sizes put in.

    Args:
        arch: architecture as :func:`host_arch` gives it.
        features: CPU flags, or ``None`` when unknown.
        caches: cache level (1 is data only) to bytes; missing levels keep the named target's value.

    Raises:
        TargetError: an architecture we have no kernels for.
    """
    candidates = {"x86_64": ("x86-64-v4", "x86-64-v3", "x86-64"), "aarch64": ("aarch64",)}.get(arch)
    if candidates is None:
        raise TargetError(f"no kernels for the architecture '{arch}'", fix="name a target to build for another machine")
    # The last candidate is the portable one: it is also the answer where nothing is known.
    fitting = (name for name in candidates[:-1] if features and features.issuperset(_NAMED[name].features))
    target = _NAMED[next(fitting, candidates[-1])]
    # A machine that lists its caches and shows no third level has none.
    l3 = caches.get(3, 0) if caches else target.l3_bytes
    l1, l2 = caches.get(1, target.l1_bytes), caches.get(2, target.l2_bytes)
    return replace(target, l1_bytes=l1, l2_bytes=l2, l3_bytes=l3)


def cache_bytes(folder: Path) -> dict[int, int]:
    """Cache level to bytes from a ``/sys/devices/system/cpu/cpu0/cache`` folder; empty where there is none."""
    sizes: dict[int, int] = {}
    for index in sorted(folder.glob("index[0-9]*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
            if kind in ("Data", "Unified"):
                sizes[int(level)] = int(size.rstrip("KM")) * unit
        except (OSError, ValueError):
            continue
    return sizes
