"""Makes the hand-written network importable to the tests of this folder, and gives it as fixtures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import tiny


@pytest.fixture
def tiny_bp(tmp_path: Path) -> Path:
    """The tiny network, saved."""
    return tiny.artifact().save(tmp_path / "tiny.bp")
