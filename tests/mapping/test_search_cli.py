"""``map --method search``: files, messages, and going on from a journal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from blockpunch.cli.app import app
from blockpunch.mapping import LatencyTable, Network
from mapping_cases import fill

run = CliRunner().invoke


@pytest.fixture(scope="module")
def folder(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table and photos."""
    folder = tmp_path_factory.mktemp("search")
    fill(LatencyTable(folder / "t.jsonl", network.target), network)
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / "photos" / f"{number:02}.png")
    return folder


def command(model: Path, folder: Path, *more: str) -> list[str]:
    return ["map", str(model), "--table", str(folder / "t.jsonl"), "--method", "search", "--speedup", "1.5", "-o",
            str(folder / "plan.json"), "--errors", str(folder / "e.json"), "--photos", str(folder / "photos"),
            "--evaluations", "6", *more]


def test_a_search_writes_the_plan_and_goes_on_from_its_journal(small_wide: Path, folder: Path) -> None:
    done = run(app, command(small_wide, folder))
    assert done.exit_code == 0, done.output
    assert "search, goal 1.5 x" in done.output and "networks tried; loss" in done.output
    plan, journal = (folder / "plan.json").read_text(), folder / "plan.journal.jsonl"
    assert json.loads(plan)["layers"]["second"]["source"] == "search"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:3]))
    assert run(app, command(small_wide, folder, "--workers", "1")).exit_code == 0
    assert (folder / "plan.json").read_text() == plan and sorted(journal.read_text().splitlines(keepends=True)) == \
        sorted(lines)
    refused = run(app, command(small_wide, folder, "--seed", "3"))
    assert refused.exit_code == 1 and "seed differs" in refused.output


@pytest.mark.parametrize("options, word", [(["--executor", "cloud"], "local, ray"), (["--max-drop", "1"], "one goal")])
def test_refusals_of_a_search_say_what_to_do(small_wide: Path, folder: Path, options: list[str], word: str) -> None:
    done = run(app, command(small_wide, folder, *options))
    assert done.exit_code == 1 and word in done.output


def test_a_search_needs_photos(small_wide: Path, folder: Path) -> None:
    done = run(app, ["map", str(small_wide), "--table", str(folder / "t.jsonl"), "--method", "search", "--speedup", "2",
                     "-o", str(folder / "p.json"), "--errors", str(folder / "e.json")])
    assert done.exit_code == 1 and "--photos FOLDER" in done.output
