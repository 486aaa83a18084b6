"""The CIFAR-10 example from end to end, on a few made-up images: it runs, resumes, and says what it should."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

SCRIPT = Path(__file__).parents[2] / "examples" / "cifar10_resnet56.py"


def write_data(folder):
    rng = np.random.default_rng(0)
    for name, count in [*((f"data_batch_{i}", 128) for i in range(1, 6)), ("test_batch", 6)]:
        pixels, labels = rng.integers(0, 256, (count, 3072)).astype(np.uint8), rng.integers(0, 10, count).tolist()
        (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2))
    parts = {"__name__": "example"}  # the network's own classes, without the rest of the script
    exec(SCRIPT.read_text().split("parser = ")[0], parts)
    state = parts["ResNet"]().state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, folder / "weights.th")


def test_the_script_runs_and_is_short(tmp_path):
    assert len(SCRIPT.read_text().splitlines()) < 80
    write_data(tmp_path)
    arguments = ["--data", str(tmp_path), "--weights", str(tmp_path / "weights.th"), "--epochs", "1"]
    result = subprocess.run([sys.executable, str(SCRIPT), *arguments], cwd=tmp_path, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert "step 5 of 5" in result.stdout
    rates = re.findall(r"block-punched:8x4\s+[\d,]+\s+[\d,]+\s+([\d.]+)", result.stdout)
    assert len(rates) == 54 and all(float(rate) == pytest.approx(3, abs=0.05) for rate in rates)
    assert re.search(r"test accuracy [\d.]+ % dense, [\d.]+ % pruned", result.stdout)
    assert re.search(r"blockpunch [\d.]+ ms, onnxruntime [\d.]+ ms", result.stdout)
