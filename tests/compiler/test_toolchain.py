"""The C compiler driver: what is found, what is built, what is said when it fails."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from blockpunch.compiler import toolchain
from blockpunch.compiler.toolchain import Compiler, find_compiler
from blockpunch.errors import ToolchainError
from blockpunch.target import Target, host_arch

SOURCES = {
    "sum.h": "__attribute__((visibility(\"default\"))) float sum(const float *x, int n);\nfloat scale(float x);\n",
    "sum.c": '#include "sum.h"\nfloat sum(const float *x, int n) {\n  float s = 0;\n'
             "  for (int i = 0; i < n; i++) s += scale(x[i]);\n  return s;\n}\n",
    "scale.c": '#include "sum.h"\nfloat scale(float x) { return 2 * x; }\n',
}
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)] + ["zig"]


def compiler(name: str, target: Target | None = None) -> Compiler:
    if name != "zig":
        return toolchain._find(host_arch(), name, "")
    if not (command := toolchain._zig_command()):
        pytest.skip("ziglang is not installed")
    found = toolchain._probe(command[0])
    assert found
    return found


def load(data: bytes, folder: Path) -> ctypes.CDLL:
    path = folder / "built.so"
    path.write_bytes(data)
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("target", ["host", "x86-64-v3", "x86-64"])
def test_builds_and_runs(name: str, target: str, tmp_path: Path) -> None:
    chosen = Target.named(target)
    if not chosen.runs_here()[0]:
        pytest.skip("not for this machine")
    # Freestanding: zig needs seconds for its first libc, which has nothing to do with this.
    library = load(compiler(name).build_shared(SOURCES, chosen, freestanding=True), tmp_path)
    library.sum.restype = ctypes.c_float
    x = np.arange(100, dtype=np.float32)
    assert library.sum(ctypes.c_void_p(x.ctypes.data), 100) == 2 * x.sum()
    assert not hasattr(library, "scale")  # what is not marked is not exported


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize(("target", "register"), [("x86-64-v4", "zmm"), ("x86-64-v3", "ymm"), ("x86-64", "xmm")])
def test_vector_width_is_the_targets(name: str, target: str, register: str, tmp_path: Path) -> None:
    if not shutil.which("objdump") or host_arch() != "x86_64":
        pytest.skip("needs objdump for x86-64")
    source = "__attribute__((visibility(\"default\"))) void twice(float *restrict y, const float *restrict x) {\n" \
             "  for (int i = 0; i < 4096; i++) y[i] = 2 * x[i] + y[i];\n}\n"
    path = tmp_path / "built.so"
    path.write_bytes(compiler(name).build_shared({"k.c": source}, Target.named(target), freestanding=True))
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    kernel = listing.stdout.partition("<twice>:")[2].partition("ret")[0]
    widest = next(kind for kind in ("zmm", "ymm", "xmm") if kind in kernel)
    assert widest == register
    assert ("vfmadd" in kernel) == (target != "x86-64")


@pytest.mark.parametrize("target", ["aarch64", "cortex-a76", "cortex-a55", "neoverse-n1"])
def test_cross_builds(target: str) -> None:
    pytest.importorskip("ziglang")
    chosen = Target.named(target)
    data = find_compiler(chosen).build_shared(SOURCES, chosen, freestanding=True)
    assert data[:4] == b"\x7fELF"
    assert data[18:20] == (183).to_bytes(2, "little")  # EM_AARCH64


@pytest.mark.slow
def test_cross_build_of_the_runtime() -> None:
    """With a C library and threads: zig builds its glibc first."""
    pytest.importorskip("ziglang")
    target = Target.named("cortex-a76")
    model = """
#include "bp_model.h"
const bp_model bp_model_info = {1};
void bp_model_run(const void *w, void *s, const float *const *in, float *const *out, const bp_env *env) {}
"""
    data = find_compiler(target).build_shared({"model.c": model, **toolchain.runtime_sources()}, target)
    assert data[:4] == b"\x7fELF"
    assert b"bp_run_profiled" in data


def test_same_sources_same_bytes() -> None:
    chosen = Target.host()
    built = [find_compiler().build_shared(SOURCES, chosen) for _ in range(2)]
    assert built[0] == built[1]


def test_log_and_kept_files(tmp_path: Path) -> None:
    keep = tmp_path / "deep" / "kept"
    build = find_compiler().build(SOURCES, Target.host(), keep_dir=keep)
    assert {"sum.c", "sum.h", "scale.c", "sum.o", "build.log"} <= {path.name for path in keep.iterdir()}
    assert (keep / "build.log").read_text() == build.log
    assert build.log.splitlines()[0] == f"# {find_compiler().version}"
    commands = [line[2:] for line in build.log.splitlines() if line.startswith("$ ")]
    assert len(commands) == 3
    (keep / "out.bin").unlink()
    for command in commands:  # they can be repeated by hand
        subprocess.run(command, shell=True, cwd=keep, check=True)
    assert (keep / "out.bin").read_bytes() == build.data


def test_errors_are_shown_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError) as caught:
        find_compiler().build_shared({"bad.c": "int f(void) { return missing; }\n"}, Target.host(), keep_dir=tmp_path)
    assert "bad.c:1" in str(caught.value)
    assert "missing" in str(caught.value)
    assert "-c bad.c" in str(caught.value)
    assert "missing" in (tmp_path / "build.log").read_text()
    undefined = "int elsewhere(void);\n__attribute__((visibility(\"default\"))) int f(void) { return elsewhere(); }\n"
    with pytest.raises(ToolchainError, match="elsewhere"):
        find_compiler().build_shared({"u.c": undefined}, Target.host())


def test_cc_with_arguments_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("gcc") or shutil.which("clang") or pytest.skip("no compiler on the path")
    wrapper = tmp_path / "my cc"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", f"'{wrapper}' -DEXTRA=1")
    found = find_compiler()
    assert found.command == (str(wrapper), "-DEXTRA=1")
    found.build_shared({"e.c": "#if EXTRA != 1\n#error no\n#endif\n"}, Target.host())
    assert "-DEXTRA=1" in (tmp_path / "calls").read_text()


def test_interrupt_ends_the_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow"
    slow.write_text('#!/bin/sh\n[ "$1" = --version ] && echo slow && exit\n'
                    f'echo $$ >> "{tmp_path}/pids"\nexec sleep 60\n')
    slow.chmod(0o755)
    monkeypatch.setenv("CC", str(slow))

    def interrupt() -> None:
        while not (tmp_path / "pids").exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    start = time.monotonic()
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        find_compiler().build_shared({f"{i}.c": "" for i in range(9)}, Target.host(), keep_dir=tmp_path / "kept")
    assert time.monotonic() - start < 20
    assert not [pid for pid in (tmp_path / "pids").read_text().split() if Path("/proc", pid, "exe").exists()]


def test_cc_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("/no/such/compiler", "false"):
        monkeypatch.setenv("CC", command)
        with pytest.raises(ToolchainError, match=r"\$CC: .*does not run"):
            find_compiler()


def test_ziglang_is_the_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler().kind == "zig"


def test_no_compiler_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchain, "_zig_command", lambda: [])
    toolchain._find.cache_clear()
    try:
        with pytest.raises(ToolchainError, match=r"no C compiler was found\n  -> set CC, install clang or gcc"):
            find_compiler()
        other = Target.named("aarch64" if host_arch() == "x86_64" else "x86-64")
        with pytest.raises(ToolchainError, match=f"no C compiler for {other.arch}"):
            find_compiler(other)
    finally:
        toolchain._find.cache_clear()


def test_cc_for_this_machine_is_not_used_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang")
    monkeypatch.setenv("CC", shutil.which("gcc") or pytest.skip("no gcc"))
    assert find_compiler().kind == "gcc"
    assert find_compiler(Target.named("aarch64" if host_arch() == "x86_64" else "x86-64")).kind == "zig"


STALE = """
#include <stdlib.h>
int main(void) { volatile char *a = malloc(4); free((void *)a); return a[0]; }
"""
RACE = """
#include <pthread.h>
int x;
static void *count(void *a) { x++; return a; }
int main(void) { pthread_t t; pthread_create(&t, 0, count, 0); x++; pthread_join(t, 0); return 0; }
"""


@pytest.mark.parametrize(("sanitize", "source", "finding"), [
    ("address", STALE, "heap-use-after-free"),
    (True, "int main(int n, char **v) { (void)v; return (2147483647 + n) & 1; }", "signed integer overflow"),
    ("thread", RACE, "data race"),
])
def test_sanitizers_find_what_they_are_for(sanitize: bool | str, source: str, finding: str, tmp_path: Path) -> None:
    found = find_compiler()
    if found.kind == "zig":
        pytest.skip("zig has no sanitizer runtimes")
    program = tmp_path / "program"
    program.write_bytes(found.build_executable({"main.c": source}, Target.host(), sanitize=sanitize))
    program.chmod(0o755)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert finding in done.stderr


def test_unknown_sanitizer() -> None:
    with pytest.raises(ToolchainError, match=r"unknown sanitizer 'magic'\n  -> choose one of: address, thread"):
        find_compiler().build_shared(SOURCES, Target.host(), sanitize="magic")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ToolchainError, match="cannot write the files of the build"):
        find_compiler().build_shared(SOURCES, Target.host(), keep_dir=tmp_path / "kept")


def test_build_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolchainError, match="cannot write the files of the build"):
        find_compiler().build_shared(SOURCES, Target.host(), keep_dir=tmp_path / "file")
