"""The verbs ``profile`` and ``map``: messages and files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from blockpunch.cli.app import app
from blockpunch.mapping import LatencyTable, Network
from blockpunch.pruning.layer_errors import LayerErrors
from mapping_cases import fill

run = CliRunner().invoke


@pytest.fixture
def table(tmp_path: Path, network: Network) -> Path:
    fill(LatencyTable(tmp_path / "t.jsonl", network.target), network)
    return tmp_path / "t.jsonl"


def test_map_by_both_methods(small_wide: Path, table: Path, tmp_path: Path) -> None:
    lost = {"second": {("block-shuffled:8x1", 4.0): 0.2, ("filter", 2.0): 0.5}}
    errors = LayerErrors(errors=lost, costs=lost)
    errors.save(tmp_path / "e.json")
    plan = tmp_path / "plan.json"
    done = run(app, ["map", str(small_wide), "--table", str(table), "--speedup", "1.5", "-o", str(plan),
                     "--errors", str(tmp_path / "e.json"), "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    assert "block-shuffled:8x1" in done.output and "x predicted" in done.output and "frontier" in done.output
    assert json.loads((tmp_path / "out.json").read_text())["cost"] == pytest.approx(0.2)
    done = run(app, ["map", str(small_wide), "--table", str(table), "--method", "rules", "--speedup", "1.5",
                     "-o", str(plan)])
    assert done.exit_code == 0, done.output
    pruned = run(app, ["prune", str(small_wide), "--plan", str(plan), "-o", str(tmp_path / "p.onnx")])
    assert pruned.exit_code == 0, pruned.output


@pytest.mark.parametrize("options, word", [
    (["--speedup", "1.5"], "--photos FOLDER"), (["--method", "rules"], "one goal"),
    (["--method", "guess", "--speedup", "2"], "exact, rules"),
    (["--method", "rules", "--speedup", "900"], "ask for at most")])
def test_refusals_say_what_to_do(small_wide: Path, table: Path, tmp_path: Path, options: list[str], word: str) -> None:
    done = run(app, ["map", str(small_wide), "--table", str(table), "-o", str(tmp_path / "p.json"), *options])
    assert done.exit_code == 1 and word in done.output
    assert not (tmp_path / "p.json").exists()


def test_a_missing_table_names_the_command(small_wide: Path, tmp_path: Path) -> None:
    done = run(app, ["map", str(small_wide), "--table", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "p.json"),
                     "--method", "rules", "--speedup", "2"])
    assert done.exit_code == 1 and "blockpunch profile" in done.output


def test_map_to_a_loss_of_accuracy(small_wide: Path, table: Path, tmp_path: Path) -> None:
    """With labels that the network itself gave: 20 photos to fit on, others to try plans on."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 255, (10, 10, 3), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    call = ["map", str(small_wide), "--table", str(table), "--max-drop", "60", "-o", str(tmp_path / "plan.json")]
    exact = [*call, "--errors", str(tmp_path / "e.json"), "--photos", str(tmp_path / "photos")]
    done = run(app, [*exact, "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    assert "Plans that were tried" in done.output and (tmp_path / "e.trials.json").is_file()
    mapped = json.loads((tmp_path / "out.json").read_text())
    assert mapped["dense"] > mapped["seconds"]
    tried = json.loads((tmp_path / "e.trials.json").read_text())["drops"]
    assert len(tried) == len(mapped["trials"]) and min(t[2] for t in mapped["trials"]) <= 60
    for method, word in ((["--method", "rules"], "use the method exact"), (["--errors", str(tmp_path / "e.json")],
                                                                           "--photos FOLDER")):
        done = run(app, [*call, *method])
        assert done.exit_code == 1 and word in done.output
