"""Session: what it takes, gives and refuses; threads, forks and closing."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from blockpunch.artifact import Artifact
from blockpunch.errors import ArtifactError, InputError, TargetMismatchError
from blockpunch.runtime.session import Session
from blockpunch.target import Target


def entries(folder: str) -> int:
    return len(list(Path(folder).iterdir()))


def check(outputs: tuple[np.ndarray, ...], x: np.ndarray) -> None:
    scaled, total = tiny.expected(x)
    np.testing.assert_array_equal(outputs[0], scaled)
    np.testing.assert_allclose(outputs[1], total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_runs_what_the_c_says(tiny_bp: Path, threads: int) -> None:
    with Session(tiny_bp, threads) as session:
        assert session.threads == threads
        for seed in range(20):
            x = tiny.sample(seed)
            check(session.run(x), x)


def test_outputs_come_as_inputs_come(tiny_bp: Path) -> None:
    x = tiny.sample()
    with Session(tiny_bp) as session:
        assert [(s.name, s.shape) for s in session.inputs] == [("x", (3, 50))]
        assert [(s.name, s.shape) for s in session.outputs] == [("scaled", (3, 50)), ("total", (1,))]
        assert isinstance(session.run(x), tuple)
        check(session.run([x]), x)
        named = session.run({"x": x})
        assert list(named) == ["scaled", "total"]
        check(tuple(named.values()), x)


def test_results_are_the_callers_own(tiny_bp: Path) -> None:
    x = tiny.sample()
    with Session(tiny_bp) as session:
        first = session.run(x)
        session.run(x + 1)
        check(first, x)
        first[0][:] = 0  # writable
    np.testing.assert_array_equal(x, tiny.sample())


def test_arrays_of_any_layout(tiny_bp: Path) -> None:
    x = tiny.sample()
    raw = np.zeros(x.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(tiny.SHAPE)
    unaligned[:] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    wide = np.repeat(x, 2, axis=1)
    with Session(tiny_bp) as session:
        for given in (np.asfortranarray(x), wide[:, ::2], x[::-1][::-1], unaligned, frozen):
            check(session.run(given), x)


def test_arrays_of_other_libraries(tiny_bp: Path) -> None:
    torch = pytest.importorskip("torch")
    x = tiny.sample()
    with Session(tiny_bp) as session:
        check(session.run(torch.from_numpy(x)), x)


@pytest.mark.parametrize(("given", "message"), [
    ([], "takes 1 input"),
    ([tiny.sample(), tiny.sample()], "takes 1 input"),
    ({"y": tiny.sample()}, "named 'x', not 'y'"),
    ({}, "named 'x', not nothing"),
    ({"x": tiny.sample(), "y": tiny.sample()}, "not 'x', 'y'"),
    (tiny.sample()[:2], r"shape \(2, 50\), expected \(3, 50\)"),
    (tiny.sample()[None], r"shape \(1, 3, 50\)"),
    (tiny.sample().reshape(-1), r"shape \(150,\)"),
    (tiny.sample().astype(np.float64), r"float64, expected float32\n  -> use x.astype\(np.float32\)"),
    (np.zeros(tiny.SHAPE, np.int32), "int32"),
    (np.zeros(tiny.SHAPE, np.float16), "float16"),
    (np.zeros(tiny.SHAPE, ">f4"), "dtype >f4"),
    (np.zeros(tiny.SHAPE, object), "dtype object"),
    (["text"], "is a str, not an array"),
    (None, "is a NoneType"),
])
def test_refuses_other_inputs(tiny_bp: Path, given: object, message: str) -> None:
    with Session(tiny_bp) as session, pytest.raises(InputError, match=message):
        session.run(given)


def test_profile_has_a_time_per_layer(tiny_bp: Path) -> None:
    x = tiny.sample()
    with Session(tiny_bp, 2) as session:
        outputs, seconds = session.run_profiled(x)
        check(outputs, x)
        assert len(seconds) == len(session.artifact.layers) == 2
        assert all(0 <= s < 10 for s in seconds)


@pytest.mark.parametrize("threads", [1, 3])
def test_many_threads_share_a_session(tiny_bp: Path, threads: int) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for k in range(100):
                x = tiny.sample(seed * 1000 + k)
                check(session.run(x), x)
        except BaseException as error:
            failures.append(error)

    with Session(tiny_bp, threads) as session:
        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not failures


def test_closing_waits_for_runs_and_refuses_later_ones(tiny_bp: Path) -> None:
    session = Session(tiny_bp, 2)
    outcomes: list[str] = []

    def work() -> None:
        x = tiny.sample()
        try:
            while True:
                check(session.run(x), x)
        except InputError as error:
            outcomes.append(error.what)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    session.close()
    for worker in workers:
        worker.join()
    assert outcomes == ["the session is closed"] * 3
    session.close()
    assert session.threads == 0
    assert "closed" in repr(session)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_has_its_own_threads(tiny_bp: Path) -> None:
    x = tiny.sample()
    session = Session(tiny_bp, 3)
    session.run(x)
    child = os.fork()
    if not child:
        code = 1
        try:
            for _ in range(50):
                check(session.run(x), x)
            code = 0 if session.threads == 3 and entries("/proc/self/task") >= 3 else 2
            session.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    check(session.run(x), x)
    session.close()


@pytest.mark.skipif(sys.platform != "linux", reason="counts through /proc")
def test_sessions_leave_nothing_behind(tiny_bp: Path) -> None:
    def usage() -> tuple[int, int, int]:
        maps = Path("/proc/self/maps").read_text()
        return entries("/proc/self/fd"), entries("/proc/self/task"), maps.count("net.so")

    before = usage()
    for closes in (True, False):
        for _ in range(10):
            session = Session(tiny_bp, 3)
            session.run(tiny.sample())
            if closes:
                session.close()
            del session
    assert usage() == before


def test_weights_are_mapped_not_copied(tiny_bp: Path) -> None:
    artifact = Artifact.load(tiny_bp)
    assert isinstance(artifact.weights, np.memmap)
    assert artifact.weights.ctypes.data % 4096 == 0
    with Session(artifact) as session:
        tiny_bp.unlink()  # the mapping outlives the name
        check(session.run(tiny.sample()), tiny.sample())


def test_unaligned_weights_in_memory(tiny_bp: Path) -> None:
    raw = np.zeros(tiny.WEIGHTS.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(tiny.WEIGHTS.tobytes(), np.uint8)
    with Session(replace(tiny.artifact(), weights=raw[1:])) as session:
        check(session.run(tiny.sample()), tiny.sample())


def test_another_cpu_is_refused_before_loading() -> None:
    artifact = tiny.artifact()
    needy = replace(artifact.target, name="needy", features=("fma", "flying", "avx9000"))
    broken = replace(artifact, manifest=replace(artifact.manifest, target=needy), library=b"not loaded")
    with pytest.raises(TargetMismatchError, match=r"'needy'; this machine lacks flying, avx9000"):
        Session(broken)
    other = Target.named("aarch64" if artifact.target.arch == "x86_64" else "x86-64")
    with pytest.raises(TargetMismatchError, match=f"lacks {other.arch}"):
        Session(replace(artifact, manifest=replace(artifact.manifest, target=other)))


def test_other_faults_of_artifacts() -> None:
    artifact = tiny.artifact()
    with pytest.raises(ArtifactError, match="no library"):
        Session(tiny.artifact(build=False))
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        Session(replace(artifact, library=b"not a library"))
    with pytest.raises(ArtifactError, match="does not fit its weights"):
        Session(replace(artifact, weights=artifact.weights[:-4]))
    with pytest.raises(ArtifactError, match="two networks"):
        Session(replace(artifact, manifest=replace(artifact.manifest, outputs=artifact.manifest.outputs[:1])))
    with pytest.raises(InputError, match="threads is 0"):
        Session(artifact, threads=0)


def test_more_threads_than_the_model_was_planned_for(tiny_bp: Path) -> None:
    with Session(tiny_bp, threads=100) as session:
        assert session.threads == 64
        check(session.run(tiny.sample()), tiny.sample())
