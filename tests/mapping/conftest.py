"""A small network as the mapper sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockpunch.graph import load_graph
from blockpunch.graph.passes import optimize
from blockpunch.mapping import Network
from blockpunch.target import Target
from small_network import write_network


@pytest.fixture(scope="session")
def small_wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network, with layers wide enough for every block size."""
    return write_network(tmp_path_factory.mktemp("wide") / "wide.onnx", channels=32, filters=64, size=8)


@pytest.fixture(scope="session")
def network(small_wide: Path) -> Network:
    return Network(optimize(load_graph(small_wide)), Target.host())
