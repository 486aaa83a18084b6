"""The C runtime under the sanitizers, driven by a C program (pool_driver.c)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import tiny

from blockpunch.compiler import toolchain
from blockpunch.target import Target

DRIVER = (Path(__file__).parent / "pool_driver.c").read_text()


def build(folder: Path, sanitize: bool | str) -> Path:
    compiler = toolchain.find_compiler()
    if sanitize and compiler.kind == "zig":
        pytest.skip("zig has no sanitizer runtimes")
    sources = {"model.c": tiny.SOURCE, "driver.c": DRIVER, **toolchain.runtime_sources()}
    program = folder / "driver"
    program.write_bytes(compiler.build_executable(sources, Target.host(), sanitize=sanitize,
                                                  flags=("-Wall", "-Wextra", "-Werror")))
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("sanitize", [False, "address", "thread"])
def test_pool_and_net_from_c(tmp_path: Path, sanitize: bool | str) -> None:
    program = build(tmp_path, sanitize)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120, env={**os.environ, **{
        "ASAN_OPTIONS": "detect_leaks=1", "TSAN_OPTIONS": "halt_on_error=1 die_after_fork=0"}})
    assert done.returncode == 0, done.stderr[:4000]
    assert "Sanitizer" not in done.stderr


def test_a_hot_job_is_cheap(tmp_path: Path) -> None:
    """About 0.3 us on a free machine; the bound leaves room for a busy one."""
    program = build(tmp_path, False)
    threads = min(2, os.cpu_count() or 1)
    done = subprocess.run([program, str(threads)], capture_output=True, text=True, timeout=60, check=True)
    assert float(done.stdout) < 10
