"""examples/c/run.c: built as its README says, and run against an extracted artifact."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny

from blockpunch.artifact import Artifact
from blockpunch.compiler import toolchain
from blockpunch.runtime.session import Session
from blockpunch.target import Target

EXAMPLE = Path(__file__).parents[2] / "examples" / "c" / "run.c"


def single_output_artifact() -> Artifact:
    """The tiny network without its second output, which the example has no use for."""
    source = tiny.SOURCE.replace('"tiny", 1, 2', '"tiny", 1, 1').replace("out[1][0] = sum;", "(void)sum;")
    assert source.count("out[1]") == 0
    program = tiny.program()
    program.source, program.outputs = {"model.c": source}, program.outputs[:1]
    runtime = toolchain.runtime_sources()
    build = toolchain.find_compiler().build({"model.c": source, **runtime}, Target.host())
    return Artifact.from_program(program, Target.host(), runtime, build)  # type: ignore[arg-type]


def compiler() -> list[str]:
    found = toolchain.find_compiler()
    if found.kind == "zig":
        pytest.skip("needs a C library that is already built")
    return [*found.command, "-Wall", "-Wextra", "-Werror"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    single_output_artifact().save(folder / "tiny.bp")
    Artifact.load(folder / "tiny.bp").extract(folder / "net")
    subprocess.run([*compiler(), "-O2", EXAMPLE, "-Inet", "-Lnet", "-ltiny", "-Wl,-rpath,$ORIGIN/net", "-o", "run"],
                   cwd=folder, check=True)
    return folder


def test_same_answer_as_the_session(folder: Path) -> None:
    x = tiny.sample()
    x.tofile(folder / "in.bin")
    done = subprocess.run(["./run", "net/weights.bin", "in.bin", "out.bin"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Session(folder / "tiny.bp") as session:
        expected = session.run(x)
    np.testing.assert_array_equal(np.fromfile(folder / "out.bin", np.float32).reshape(expected.shape), expected)
    best = int(expected.argmax())
    assert done.stdout.startswith(f"tiny: 150 outputs, the largest is scaled[{best}] = ")
    assert float(done.stdout.rpartition("= ")[2]) == pytest.approx(float(expected.flat[best]), rel=1e-5)


def test_faults_are_told(folder: Path) -> None:
    for arguments, code, message in (([], 2, "run WEIGHTS"), (["none.bin"], 1, "none.bin: cannot be opened"),
                                     (["net/weights.bin", "run", "/no/out"], 1, "/no/out")):
        done = subprocess.run(["./run", *arguments], cwd=folder, capture_output=True, text=True)
        assert (done.returncode, message in done.stderr) == (code, True)


def test_the_extracted_c_builds_by_itself(folder: Path) -> None:
    """The last line of the README: the library made anew from the sources alone."""
    sources = sorted(path.name for path in (folder / "net" / "src").glob("*.c"))
    subprocess.run([*compiler(), "-O3", "-march=native", "-shared", "-fPIC", *sources, "-lm", "-pthread",
                    "-o", "../libtiny.so"], cwd=folder / "net" / "src", check=True)
    tiny.sample(5).tofile(folder / "in.bin")
    subprocess.run(["./run", "net/weights.bin", "in.bin", "out.bin"], cwd=folder, check=True, capture_output=True)
    np.testing.assert_array_equal(np.fromfile(folder / "out.bin", np.float32).reshape(tiny.SHAPE),
                                  tiny.expected(tiny.sample(5))[0])
