"""What this machine has: CPU, compiler, peak, peers, and which optional packages are missing."""

from __future__ import annotations

import platform
import re
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from blockpunch.errors import BlockpunchError, ToolchainError
from blockpunch.measure.engines import ENGINES
from blockpunch.measure.peak import fma_peak
from blockpunch.target import Target, host_cores

_CPUINFO = Path("/proc/cpuinfo")
_REQUIREMENT = re.compile(r"""^([A-Za-z0-9._-]+).*extra\s*==\s*['"]([a-z]+)['"]""")
#: Extras that a user may want, and what for, in the order in which ``doctor`` shows them.
EXTRAS = {"cli": "the command line", "compile": "reading ONNX files", "train": "pruning and recovering torch models",
          "images": "reading photos", "report": "HTML reports", "bench": "ONNX Runtime beside ours",
          "openvino": "OpenVINO beside ours", "ncnn": "ncnn beside ours", "mnn": "MNN beside ours",
          "toolchain": "a C compiler, also for other CPUs",
          "demo": "the demonstration"}


@dataclass(frozen=True)
class Machine:
    """Facts about this machine. ``peak_gmacs`` is one core's measured FMA peak (None where it cannot be measured)."""

    cpu: str
    system: str
    cores: int
    arch: str
    isa: str
    vector_bits: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    compiler: str | None
    compiler_problem: str | None
    peak_gmacs: float | None
    engines: dict[str, str | None]
    missing: dict[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Hardware", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def missing_extras() -> dict[str, tuple[str, ...]]:
    """Extra -> packages of it that are not installed; extras that are complete are left out."""
    needed: dict[str, list[str]] = {}
    try:
        requirements = metadata.requires("blockpunch") or []
    except metadata.PackageNotFoundError:
        return {}
    for text in requirements:
        found = _REQUIREMENT.match(text)
        if found and found[2] in EXTRAS:
            needed.setdefault(found[2], []).append(found[1])
    return {extra: lacking for extra in EXTRAS
            if (lacking := tuple(name for name in needed.get(extra, []) if not _installed(name)))}


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def survey(*, measure_peak: bool = True) -> Machine:
    """Look at this machine. Measuring the peak takes about half a second.

    Raises:
        TargetError: a CPU architecture that there are no kernels for.
    """
    target = Target.host()
    compiler, problem = None, None
    try:
        from blockpunch.compiler.toolchain import find_compiler  # late: the compiler's package needs jinja2

        compiler = find_compiler(target).version
    except (ToolchainError, ImportError) as error:
        problem = str(error)
    peak = None
    if measure_peak and compiler:
        try:
            peak = round(fma_peak(target) / 1e9, 1)
        except BlockpunchError as error:
            problem = str(error)
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return Machine(cpu=cpu_name(), system=system,
                   cores=host_cores(), arch=target.arch, isa=target.isa, vector_bits=target.vector_floats * 32,
                   l1_bytes=target.l1_bytes, l2_bytes=target.l2_bytes, l3_bytes=target.l3_bytes, compiler=compiler,
                   compiler_problem=problem, peak_gmacs=peak,
                   engines={name: row.version() for name, row in ENGINES.items()}, missing=missing_extras())
