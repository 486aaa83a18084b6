"""Fixtures that all tests share: small networks, the data folder, one thread for torch."""
# ruff: noqa: E402 - the environment has to be set before numpy is imported

import os
import signal

# Started in the background, a shell has us ignore Ctrl-C, and so would every process that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# One computing thread per test process: they run side by side, and results must not depend on how many there are.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

from pathlib import Path

import hypothesis
import numpy as np
import pytest

from blockpunch.data import data_root
from small_network import write_network

# The suite asks the same every time, so that a change is judged by what it changed; `make fuzz` draws new examples.
hypothesis.settings.register_profile("fixed", derandomize=True, database=None)
hypothesis.settings.register_profile("fuzz", derandomize=False)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the user has tuned must not change what the tests compile."""
    os.environ["BLOCKPUNCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of data sets; a test that needs it is skipped where there is none."""
    root = data_root()
    if root is None:
        pytest.skip("no data sets here: set BLOCKPUNCH_DATA")
    return root


@pytest.fixture
def small_onnx(tmp_path: Path) -> Path:
    """A network of three layers as an ONNX file."""
    return write_network(tmp_path / "small.onnx")


@pytest.fixture(scope="session")
def small_bp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network, compiled for this machine."""
    from blockpunch.build import compile as compile_model

    folder = tmp_path_factory.mktemp("small")
    return compile_model(write_network(folder / "small.onnx")).save(folder / "small.bp")
