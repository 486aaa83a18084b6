"""The C compiler: find one, build shared libraries and executables with it, and show what it said.

Order: ``$CC`` (with its arguments), clang, gcc, the ``ziglang`` package. Another architecture is built by ``$CC`` where
that is a compiler for it, else by ``ziglang``, which is a complete cross compiler.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from blockpunch.errors import ToolchainError
from blockpunch.target import Target, host_arch, host_cores

COMMON_FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fPIC",
                "-fno-semantic-interposition", "-fvisibility=hidden")
"""Flags of every build. Not ``-ffast-math``: NaN and infinity keep their meaning, sums keep their order."""

_SANITIZERS = {"address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
               "thread": ("-fsanitize=thread",)}
_FREESTANDING = "freestanding.c"
_NO_COMPILER = "set CC, install clang or gcc, or: pip install 'blockpunch[toolchain]'"


@dataclass(frozen=True)
class Build:
    """A finished build: the file's bytes, and the commands with everything the compiler said."""

    data: bytes
    log: str


@dataclass(frozen=True)
class Compiler:
    """A C compiler that was found to run.

    Attributes:
        command: program and fixed arguments, e.g. ``("ccache", "gcc")``.
        version: first line of what it says of itself.
        kind: ``gcc``, ``clang`` or ``zig``.
    """

    command: tuple[str, ...]
    version: str
    kind: str

    def build_shared(self, sources: Mapping[str, str], target: Target, *, sanitize: bool | str = False,
                     freestanding: bool = False, keep_dir: Path | None = None, flags: Sequence[str] = ()) -> bytes:
        """Compile ``sources`` (file name to text; headers too) into a shared library and return its bytes.

        Args:
            sources: C files and the headers that they include by name.
            target: the core to build for.
            sanitize: ``True`` or ``"address"`` for address and undefined-behaviour checks, ``"thread"`` for data races.
            freestanding: use no C library (memcpy and its like are supplied); such a build works for any system.
            keep_dir: folder to keep sources, objects and ``build.log`` in; made if missing.
            flags: more compiler flags, after all others.

        Raises:
            ToolchainError: the compiler failed; the message has its first error lines.
        """
        return self.build(sources, target, sanitize=sanitize, freestanding=freestanding, keep_dir=keep_dir,
                          flags=flags).data

    def build_executable(self, sources: Mapping[str, str], target: Target, *, sanitize: bool | str = False,
                         keep_dir: Path | None = None, flags: Sequence[str] = ()) -> bytes:
        """Like :meth:`build_shared`, for a program with a ``main``; the caller writes and ``chmod``s the bytes."""
        return self.build(sources, target, shared=False, sanitize=sanitize, keep_dir=keep_dir, flags=flags).data

    def build(self, sources: Mapping[str, str], target: Target, *, shared: bool = True, sanitize: bool | str = False,
              freestanding: bool = False, keep_dir: Path | None = None, flags: Sequence[str] = ()) -> Build:
        """Like :meth:`build_shared` and :meth:`build_executable`, with the log."""
        if freestanding:
            sources = {**sources, **_read_c(_FREESTANDING)}
        units = [name for name in sources if name.endswith(".c")]
        cc = [*self.command, *self._compile_flags(target, sanitize, freestanding), *flags]
        link = [*self.command, *self._link_flags(target, shared, sanitize, freestanding), *map(_object, units),
                *flags, "-o", "out.bin", *([] if freestanding else ["-lm", "-pthread"])]
        with _build_dir(keep_dir) as folder:
            for name, text in sources.items():
                (folder / name).write_text(text, encoding="utf-8")
            # Files are named relative to the folder, so that neither the log nor the binary depends on where it was.
            commands = [[*cc, *_unit_flags(name, self.kind), "-c", name, "-o", _object(name)] for name in units]
            logs = _run_all(commands, folder)
            if not any(code for code, _ in logs):
                logs += _run_all([link], folder)
            log = f"# {self.version}\n" + "".join(text for _, text in logs)
            if keep_dir is not None:
                (folder / "build.log").write_text(log, encoding="utf-8")
            _raise_on_failure(logs, self)
            return Build((folder / "out.bin").read_bytes(), log)

    def _compile_flags(self, target: Target, sanitize: bool | str, freestanding: bool) -> list[str]:
        flags = [*self._triple(target, freestanding), *COMMON_FLAGS, *self._cpu_flags(target)]
        if sanitize:
            flags += ["-O1", "-g", "-fno-omit-frame-pointer", *_sanitizer(sanitize)]
        elif self.kind == "zig":
            flags += ["-fno-sanitize=undefined"]  # zig turns it on by default, with a runtime that a library lacks
        if freestanding:
            flags += ["-ffreestanding", "-fno-stack-protector"]
        return flags

    def _link_flags(self, target: Target, shared: bool, sanitize: bool | str, freestanding: bool) -> list[str]:
        # No CPU flags here: zig would build a whole C library for that core.
        flags = self._triple(target, freestanding)
        if shared:
            flags += ["-shared", "-fPIC"]
        if sanitize:
            flags += _sanitizer(sanitize)
        elif self.kind == "zig":
            flags += ["-fno-sanitize=undefined"]
        if freestanding:
            flags += ["-nostdlib"]
            if target.arch == "aarch64":
                flags += ["-Wl,-z,max-page-size=16384"]  # Android 15 asks for it, and smaller pages take it
        elif not sanitize and shared and sys.platform == "linux":
            flags += ["-Wl,-z,defs"]
        return flags

    def _triple(self, target: Target, freestanding: bool) -> list[str]:
        if self.kind != "zig":
            return []
        if freestanding:  # the android ABI has no libc of its own to be built; nothing of Android is used
            return ["-target", f"{target.arch}-linux-{'android' if target.arch == 'aarch64' else 'gnu'}"]
        return [] if target.arch == host_arch() else ["-target", f"{target.arch}-linux-gnu"]

    def _cpu_flags(self, target: Target) -> list[str]:
        if self.kind != "zig":
            return list(target.cflags)
        return [_zig_cpu_flag(flag) for flag in target.cflags]


def find_compiler(target: Target | None = None) -> Compiler:
    """The compiler to build for ``target`` (default: this machine) with.

    Raises:
        ToolchainError: there is none, or ``$CC`` does not run.
    """
    return _find(target.arch if target else host_arch(), os.environ.get("CC", "").strip(), os.environ.get("PATH", ""))


@lru_cache(maxsize=16)
def _find(arch: str, env_cc: str, _path: str) -> Compiler:
    if env_cc:
        command = tuple(shlex.split(env_cc))
        if not (found := _probe(command)):
            raise ToolchainError(f"'{env_cc}' does not run as a C compiler", where="$CC", fix="correct or unset CC")
        if arch == host_arch() or arch == _machine_of(command):
            return found
    candidates = [("clang",), ("gcc",), ("cc",)] if arch == host_arch() else []
    for command in [*filter(lambda command: shutil.which(command[0]), candidates), *_zig_command()]:
        if found := _probe(command):
            return found
    if arch == host_arch():
        raise ToolchainError("no C compiler was found", fix=_NO_COMPILER)
    raise ToolchainError(f"no C compiler for {arch} was found on this {host_arch()} machine",
                         fix=f"pip install 'blockpunch[toolchain]', or set CC to a cross compiler for {arch}")


def _zig_command() -> list[tuple[str, ...]]:
    spec = importlib.util.find_spec("ziglang")
    if spec and spec.origin:
        program = Path(spec.origin).parent / ("zig.exe" if os.name == "nt" else "zig")
        if program.exists():
            return [(str(program), "cc")]
    return []


def _probe(command: tuple[str, ...]) -> Compiler | None:
    """Run ``command --version``; ``None`` when that fails."""
    text = _output((*command, "--version"))
    if text is None:
        return None
    is_zig = any(Path(word).stem == "zig" or word == "ziglang" for word in command)
    kind = "zig" if is_zig else "clang" if "clang" in text.lower() else "gcc"
    version = text.strip().splitlines()[0] if text.strip() else "unknown"
    return Compiler(command, f"zig cc, {version}" if is_zig else version, kind)


def _machine_of(command: tuple[str, ...]) -> str:
    """Architecture that a compiler builds for by default."""
    return (_output((*command, "-dumpmachine")) or "").partition("-")[0].replace("arm64", "aarch64")


def _output(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _zig_cpu_flag(flag: str) -> str:
    """Spell a ``-march``/``-mcpu`` flag as zig does: always -mcpu, names with underscores."""
    name, _, value = flag.partition("=")
    if name not in ("-march", "-mcpu"):
        return flag
    value = {"armv8-a": "generic", "x86-64": "x86_64"}.get(value, value.replace("-", "_"))
    return f"-mcpu={value}"


def _sanitizer(sanitize: bool | str) -> tuple[str, ...]:
    name = "address" if sanitize is True else str(sanitize)
    if name not in _SANITIZERS:
        raise ToolchainError(f"unknown sanitizer '{name}'", fix=f"choose one of: {', '.join(_SANITIZERS)}")
    return _SANITIZERS[name]


def _unit_flags(name: str, kind: str) -> tuple[str, ...]:
    """The supplied memset must not be compiled into a call of itself."""
    if name != _FREESTANDING:
        return ()
    return ("-fno-builtin", "-fno-tree-loop-distribute-patterns") if kind == "gcc" else ("-fno-builtin",)


def _object(name: str) -> str:
    return f"{name.removesuffix('.c')}.o"


@contextmanager
def _build_dir(keep_dir: Path | None) -> Iterator[Path]:
    try:
        if keep_dir is not None:
            keep_dir.mkdir(parents=True, exist_ok=True)
            yield keep_dir
        else:
            with tempfile.TemporaryDirectory(prefix="blockpunch-") as folder:
                yield Path(folder)
    except OSError as error:
        raise ToolchainError(f"cannot write the files of the build: {error.strerror or error}",
                             where=str(error.filename or ""),
                             fix="free some space, or set TMPDIR to a folder that can be written") from error


def _run_all(commands: Sequence[Sequence[str]], folder: Path) -> list[tuple[int, str]]:
    """Run commands side by side, one per core: exit status and log of each. None outlives an interrupt."""
    running: set[subprocess.Popen[str]] = set()
    stopped = threading.Event()

    def run(command: Sequence[str]) -> tuple[int, str]:
        with subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace") as process:
            running.add(process)
            if stopped.is_set():  # started while the others were being ended
                process.kill()
            text = process.communicate()[0]
        running.discard(process)
        return process.returncode, f"$ {shlex.join(command)}\n{text}"

    with ThreadPoolExecutor(max(1, min(len(commands), host_cores()))) as pool:
        try:
            waiting = [pool.submit(run, command) for command in commands]
            return [future.result() for future in waiting]
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(running):
                process.kill()
            raise


def _raise_on_failure(logs: Iterable[tuple[int, str]], compiler: Compiler) -> None:
    for code, text in logs:
        if code:
            command, *lines = text.splitlines()
            errors = [line for line in lines if "error" in line.lower() or "undefined" in line.lower()] or lines
            shown = "\n".join(errors[:5]) or f"exit status {code}"
            raise ToolchainError(f"the C compiler ({compiler.version}) failed:\n{shown}",
                                 where=command.removeprefix("$ "),
                                 fix="keep_dir= keeps the sources and the full log; CC chooses another compiler")


def model_header() -> dict[str, str]:
    """``bp_model.h``, which every generated model includes, as ``{file name: text}``."""
    return _read_c("bp_model.h")


def runtime_sources() -> dict[str, str]:
    """The C runtime (thread pool, ``blockpunch.h``) to build together with a model, as ``{file name: text}``."""
    return _read_c("bp_model.h", "blockpunch.h", "pool.h", "pool.c", "runtime.c")


def _read_c(*names: str) -> dict[str, str]:
    folder = resources.files("blockpunch") / "runtime" / "c"
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}
