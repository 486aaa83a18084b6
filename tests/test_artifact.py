"""The .bp file: what is written is read back, and every kind of damage is found."""

from __future__ import annotations

import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "runtime"))

import tiny

from blockpunch import artifact as module
from blockpunch.artifact import Artifact
from blockpunch.errors import ArtifactError, OutputError
from blockpunch.runtime.session import Session


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tiny.artifact().save(tmp_path / "tiny.bp")


def test_round_trip(saved: Path) -> None:
    wrote, read = tiny.artifact(), Artifact.load(saved)
    assert replace(read.manifest, created_by="") == wrote.manifest
    assert read.manifest.created_by.startswith("blockpunch ")
    np.testing.assert_array_equal(read.weights, wrote.weights)
    assert read.library == wrote.library
    assert dict(read.sources) == dict(wrote.sources)
    assert read.build_log == wrote.build_log
    assert "model.c" in read.build_log
    assert [layer.name for layer in read.layers] == ["twice", "add"]
    assert (read.layers[0].macs, read.layers[0].kept_macs, read.layers[0].packing) == (150, 75, "dense")


def test_same_network_same_bytes(saved: Path, tmp_path: Path) -> None:
    again = Artifact.load(saved).save(tmp_path / "again.bp")
    assert again.read_bytes() == saved.read_bytes()


def test_any_unzip_reads_it(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
        assert archive.read("weights.bin") == tiny.WEIGHTS.tobytes()
    assert manifest["format"] == "blockpunch artifact"
    assert manifest["inputs"] == [{"name": "x", "shape": [3, 50]}]
    assert set(manifest["sha256"]) == {name for name in archive.namelist() if name != "manifest.json"}


@pytest.mark.parametrize("keep", [0, 3, 100, 5000, -1, -30, -400])
def test_truncated(saved: Path, keep: int) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[:keep])
    with pytest.raises(ArtifactError, match=r"truncated|not a blockpunch artifact"):
        Artifact.load(saved)


def test_every_altered_byte_that_matters_is_found(saved: Path) -> None:
    """Flip one byte here and there: the artifact is refused, or (in padding, say) is the very same network."""
    data = saved.read_bytes()
    original = Artifact.load(saved)
    refused = 0
    positions = np.random.default_rng(3).choice(len(data), 300, replace=False)
    for position in positions:
        altered = bytearray(data)
        altered[position] ^= 0x41
        saved.write_bytes(altered)
        try:
            read = Artifact.load(saved)
        except ArtifactError:
            refused += 1
            continue
        assert read.manifest == original.manifest
        assert read.library == original.library
        assert dict(read.sources) == dict(original.sources)
        assert read.weights.tobytes() == tiny.WEIGHTS.tobytes()
    assert refused > 200


def rewrite(path: Path, change: dict[str, bytes | None]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        comment = archive.comment
    members |= {name: data for name, data in change.items() if data is not None}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if change.get(name, b"") is not None:
                archive.writestr(name, data)
        archive.comment = comment


def test_replaced_and_missing_members(saved: Path) -> None:
    library = Artifact.load(saved).manifest.library_member
    for name, message in ((library, "altered: lib"), ("weights.bin", "altered: weights.bin"),
                          ("src/model.c", "altered: src/model.c"), ("manifest.json", "altered: its manifest")):
        tiny.artifact().save(saved)
        rewrite(saved, {name: b"other"})
        with pytest.raises(ArtifactError, match=message):
            Artifact.load(saved)
    for name in (library, "weights.bin", "src/model.c"):
        tiny.artifact().save(saved)
        rewrite(saved, {name: None})
        with pytest.raises(ArtifactError, match=f"lacks {name}"):
            Artifact.load(saved)


def test_newer_version(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockpunch.manifest.VERSION", 2)
    tiny.artifact().save(saved)
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match=r"format version 2; this blockpunch reads up to 1\n  -> pip install"):
        Artifact.load(saved)


def test_not_an_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        Artifact.load(tmp_path / "none.bp")
    with pytest.raises(ArtifactError, match="cannot be read"):
        Artifact.load(tmp_path)
    text = tmp_path / "text.bp"
    text.write_text("hello")
    with pytest.raises(ArtifactError, match="not a blockpunch artifact"):
        Artifact.load(text)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ArtifactError, match="not a blockpunch artifact"):
        Artifact.load(tmp_path / "other.zip")


def test_loaded_after_a_failed_save_is_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_store", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.artifact().save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none.*cannot be written.*\n  -> make the folder"):
        tiny.artifact().save(tmp_path / "none" / "net.bp")
    with pytest.raises(OutputError, match="name a file, not a folder"):
        tiny.artifact().save(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = Path.open

    def full(path: Path, *args: object, **kwargs: object) -> object:
        return real_open(Path("/dev/full"), "wb") if path.suffix == ".part" else real_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match="free some space"):
        tiny.artifact().save(tmp_path / "net.bp")
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_extract(saved: Path, tmp_path: Path) -> None:
    artifact = Artifact.load(saved)
    written = {path.relative_to(tmp_path / "c").as_posix() for path in artifact.extract(tmp_path / "c")}
    assert {"weights.bin", "libtiny.so", "blockpunch.h", "bp_model.h", "src/model.c", "src/runtime.c"} <= written
    assert (tmp_path / "c" / "weights.bin").read_bytes() == tiny.WEIGHTS.tobytes()
    assert (tmp_path / "c" / "libtiny.so").read_bytes() == artifact.library


def test_network_without_weights(tmp_path: Path) -> None:
    """A network of activations alone: nothing to map."""
    source = tiny.SOURCE.replace("N * sizeof(float), N * sizeof(float)", "0, N * sizeof(float)").replace(
        "a->x[i] + a->w[i]", "a->x[i]")
    target = tiny.Target.host()
    made = tiny.toolchain.find_compiler().build({"model.c": source, **tiny.toolchain.runtime_sources()}, target)
    program = tiny.program()
    program.weights = b""
    path = Artifact.from_program(program, target, {}, made).save(tmp_path / "bare.bp")
    x = tiny.sample()
    with Session(path) as session:
        np.testing.assert_array_equal(session.run(x)[0], 2 * x)
