"""The ``.bp`` file: a compiled network, whole.

It is a ZIP file (any unzip shows it) whose members are stored, not compressed::

    manifest.json     what the network is, what it was built for, and the SHA-256 of every other member
    weights.bin       packed weights; begins at a multiple of 4096 bytes, so that it can be mapped into memory
    src/*.c, *.h      the generated C and the C runtime
    src/build.log     how the library was built
    lib/TARGET.so     the shared library

The archive's comment holds the SHA-256 of the manifest. The same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from blockpunch import atomic
from blockpunch.errors import ArtifactError
from blockpunch.manifest import LayerRecord, Manifest, TensorSpec
from blockpunch.target import Target

if TYPE_CHECKING:
    from blockpunch.compiler.program import Program
    from blockpunch.compiler.toolchain import Build

MANIFEST, WEIGHTS, SOURCES, BUILD_LOG = "manifest.json", "weights.bin", "src/", "src/build.log"
_PAGE = 4096
_PADDING_FIELD = 0xD935  # the extra field that zipalign uses for padding
_DATE = (1980, 1, 1, 0, 0, 0)
_COMMENT = b"blockpunch manifest sha256:"
_BROKEN_FIX = "copy or download it again, or compile the network anew"


@dataclass(frozen=True, eq=False, repr=False)
class Artifact:
    """A compiled network in memory or in a file.

    Attributes:
        manifest: names, shapes, target, layers and hashes.
        weights: the packed weights, uint8; mapped from the file when the artifact was loaded from one.
        sources: file name to text: the generated C and the runtime's.
        library: bytes of the shared library, ``None`` if it was not built.
        build_log: commands and messages of the build.
        path: the file it was loaded from.
    """

    manifest: Manifest
    weights: npt.NDArray[np.uint8]
    sources: Mapping[str, str]
    library: bytes | None
    build_log: str = ""
    path: Path | None = None

    def __repr__(self) -> str:
        kept, dense = (sum(getattr(layer, field) for layer in self.layers) for field in ("kept_macs", "macs"))
        library = "" if self.library is not None else ", no library"
        return (f"Artifact({self.name!r} for {self.target.name}: {len(self.layers)} layers, "
                f"{kept:,} of {dense:,} MACs, "
                f"{self.weights.size:,} bytes of weights{library})")

    @property
    def name(self) -> str:
        """Name of the network."""
        return self.manifest.name

    @property
    def target(self) -> Target:
        """The core it was built for."""
        return self.manifest.target

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name and shape of each input (float32)."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name and shape of each output (float32)."""
        return self.manifest.outputs

    @property
    def layers(self) -> tuple[LayerRecord, ...]:
        """One record per step of the network, in the order they run."""
        return self.manifest.layers

    @staticmethod
    def from_program(program: Program, target: Target, runtime: Mapping[str, str], build: Build | None) -> Artifact:
        """Put together what the compiler and the toolchain made (``build`` is ``None``: no library)."""
        layers = tuple(LayerRecord(**vars(step)) for step in program.steps)
        manifest = Manifest(name=program.name, target=target, inputs=_tensors(program.inputs),
                            outputs=_tensors(program.outputs), layers=layers, weights_bytes=len(program.weights),
                            scratch_bytes=program.scratch_bytes,
                            compiler=build.log.partition("\n")[0].lstrip("# ") if build else "")
        return Artifact(manifest, np.frombuffer(program.weights, np.uint8), {**program.source, **runtime},
                        build.data if build else None, build.log if build else "")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the ``.bp`` file, whole or not at all.

        Raises:
            OutputError: no permission, disk full, or no such folder.
        """
        members = self._members()
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
        manifest = self.manifest.to_json(hashes).encode("utf-8")
        with atomic.atomic_open(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _store(archive, file, MANIFEST, manifest)
            for name, data in members.items():
                _store(archive, file, name, data)
            archive.comment = _COMMENT + hashlib.sha256(manifest).hexdigest().encode("ascii")
        return Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Artifact:
        """Read a ``.bp`` file, check every hash, and map the weights into memory.

        Raises:
            ArtifactError: no such file, not an artifact, truncated, altered, or of a newer version.
        """
        file = Path(path)
        try:
            with zipfile.ZipFile(file) as archive:
                manifest, hashes = _read_manifest(archive, file)
                return _read_members(archive, file, manifest, hashes)
        except (zipfile.BadZipFile, RuntimeError, ValueError):  # the last two: header fields that make no sense
            raise _broken(file) from None
        except (OSError, EOFError, struct.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise ArtifactError(f"cannot be read: {reason}", where=str(file), fix="check the path") from error

    def extract(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the parts as plain files for use without Python, and return their paths.

        ``weights.bin``, the library (``libNAME.so``), ``blockpunch.h`` and ``bp_model.h``; all of the C in ``src/``.

        Raises:
            OutputError: the folder cannot be written in.
        """
        root = atomic.make_folder(folder)
        atomic.make_folder(root / "src")
        files = {root / "src" / name: text.encode("utf-8") for name, text in self.sources.items()}
        files |= {root / name: text.encode("utf-8") for name, text in self.sources.items()
                  if name in ("blockpunch.h", "bp_model.h")}
        files[root / WEIGHTS] = self.weights.tobytes()
        if self.library is not None:
            files[root / f"lib{re.sub(r'[^A-Za-z0-9_.-]', '_', self.name)}.so"] = self.library
        for path, data in files.items():
            atomic.write_atomic(path, data)
        return sorted(files)

    def _members(self) -> dict[str, bytes | memoryview]:
        members: dict[str, bytes | memoryview] = {WEIGHTS: self.weights.data}
        members |= {f"{SOURCES}{name}": text.encode("utf-8") for name, text in self.sources.items()}
        if self.build_log:
            members[BUILD_LOG] = self.build_log.encode("utf-8")
        if self.library is not None:
            members[self.manifest.library_member] = self.library
        return members


def _tensors(pairs: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(name), tuple(int(size) for size in shape)) for name, shape in pairs)


def _store(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(name, _DATE)
    info.external_attr = 0o644 << 16
    if name == WEIGHTS:
        begin = file.tell() + 30 + len(name.encode()) + 4  # the local header, the name, the extra field's own header
        padding = -begin % _PAGE
        info.extra = struct.pack("<HH", _PADDING_FIELD, padding) + bytes(padding)
    with archive.open(info, "w", force_zip64=False) as member:
        member.write(data)


def _broken(file: Path) -> ArtifactError:
    with file.open("rb") as opened:
        is_zip = opened.read(4) == b"PK\x03\x04"
    if is_zip:
        return ArtifactError("truncated or damaged", where=str(file), fix=_BROKEN_FIX)
    return ArtifactError("not a blockpunch artifact", where=str(file), fix="name a .bp file that 'compile' wrote")


def _read_manifest(archive: zipfile.ZipFile, file: Path) -> tuple[Manifest, dict[str, str]]:
    if MANIFEST not in archive.namelist() or not archive.comment.startswith(_COMMENT):
        raise ArtifactError("a ZIP file, but not a blockpunch artifact", where=str(file),
                            fix="name a .bp file that 'compile' wrote")
    data = archive.read(MANIFEST)
    if hashlib.sha256(data).hexdigest().encode("ascii") != archive.comment.removeprefix(_COMMENT):
        raise ArtifactError("altered: its manifest is not the one that was written", where=str(file), fix=_BROKEN_FIX)
    return Manifest.from_json(data.decode("utf-8"), where=str(file))


def _read_members(archive: zipfile.ZipFile, file: Path, manifest: Manifest, hashes: dict[str, str]) -> Artifact:
    present = set(archive.namelist())
    if missing := [name for name in dict.fromkeys((WEIGHTS, *hashes)) if name not in present]:
        raise ArtifactError(f"truncated: it lacks {', '.join(missing)}", where=str(file), fix=_BROKEN_FIX)
    weights = _map_member(archive, file, WEIGHTS)
    data: dict[str, Any] = {name: weights if name == WEIGHTS else archive.read(name) for name in hashes}
    for name, digest in hashes.items():
        if hashlib.sha256(data[name]).hexdigest() != digest:
            raise ArtifactError(f"altered: {name} is not what was written", where=str(file), fix=_BROKEN_FIX)
    if weights.size != manifest.weights_bytes:
        raise ArtifactError("altered: the weights are not of the manifest's size", where=str(file), fix=_BROKEN_FIX)
    sources = {name.removeprefix(SOURCES): data[name].decode("utf-8") for name in data
               if name.startswith(SOURCES) and name != BUILD_LOG}
    log = data[BUILD_LOG].decode("utf-8") if BUILD_LOG in data else ""
    return Artifact(manifest, weights, sources, data.get(manifest.library_member), log, file)


def _map_member(archive: zipfile.ZipFile, file: Path, name: str) -> npt.NDArray[np.uint8]:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ArtifactError(f"altered: {name} is compressed and cannot be mapped", where=str(file), fix=_BROKEN_FIX)
    with file.open("rb") as opened:
        opened.seek(info.header_offset)
        header = opened.read(30)
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    begin = info.header_offset + 30 + name_bytes + extra_bytes
    if begin + info.file_size > file.stat().st_size:
        raise _broken(file)
    if info.file_size == 0:
        return np.zeros(0, np.uint8)
    return np.memmap(file, np.uint8, "r", begin, (info.file_size,))
