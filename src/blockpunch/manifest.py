"""The manifest of an artifact: what the network is and what it was built for, as JSON that a person can read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from blockpunch.errors import ArtifactError, TargetError
from blockpunch.target import Target

FORMAT = "blockpunch artifact"
VERSION = 1


@dataclass(frozen=True)
class TensorSpec:
    """Name and shape of an input or output (float32)."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerRecord:
    """One step of a compiled network.

    Attributes:
        name: the step's name.
        kind: its operator.
        path: the module or ONNX node it came from.
        macs: multiply-accumulates of the dense layer.
        kept_macs: those left after pruning.
        weight_bytes: bytes of its packed weights, indices included.
        packing: how its weights are stored.
        reason: why that packing.
        read_bytes: bytes of the values that it reads.
        written_bytes: bytes of its results.
    """

    name: str
    kind: str
    path: str
    macs: int
    kept_macs: int
    weight_bytes: int
    packing: str
    reason: str
    read_bytes: int = 0
    written_bytes: int = 0


@dataclass(frozen=True)
class Manifest:
    """What an artifact says of itself. Sizes are bytes; ``compiler`` is the C compiler's version line."""

    name: str
    target: Target
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[LayerRecord, ...]
    weights_bytes: int
    scratch_bytes: int
    compiler: str = ""
    created_by: str = ""

    @property
    def library_member(self) -> str:
        """Name of the library inside the file."""
        return f"lib/{self.target.name}.so"

    def to_json(self, hashes: Mapping[str, str]) -> str:
        """The manifest's text, with the SHA-256 of each other member."""
        data: dict[str, Any] = {"format": FORMAT, "version": VERSION, "created_by": self.created_by or _created_by()}
        data |= {"name": self.name, "inputs": [asdict(spec) for spec in self.inputs],
                 "outputs": [asdict(spec) for spec in self.outputs], "weights_bytes": self.weights_bytes,
                 "scratch_bytes": self.scratch_bytes, "target": self.target.to_dict(), "compiler": self.compiler,
                 "sha256": dict(hashes), "layers": [asdict(layer) for layer in self.layers]}
        return json.dumps(data, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, *, where: str) -> tuple[Manifest, dict[str, str]]:
        """Read what :meth:`to_json` wrote: the manifest and the hashes.

        Raises:
            ArtifactError: not a manifest, or of a newer version.
        """
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError(f"format is {data['format']!r}")
            if int(data["version"]) > VERSION:
                raise ArtifactError(f"of format version {data['version']}; this blockpunch reads up to {VERSION}",
                                    where=where, fix="pip install --upgrade blockpunch")
            manifest = Manifest(
                name=data["name"], target=Target.from_dict(data["target"]), inputs=_specs(data["inputs"]),
                outputs=_specs(data["outputs"]), layers=tuple(LayerRecord(**layer) for layer in data["layers"]),
                weights_bytes=int(data["weights_bytes"]), scratch_bytes=int(data["scratch_bytes"]),
                compiler=data["compiler"], created_by=data["created_by"])
            return manifest, {str(name): str(digest) for name, digest in data["sha256"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, TargetError) as error:
            raise ArtifactError(f"its manifest cannot be understood ({type(error).__name__}: {error})", where=where,
                                fix="copy or download it again, or compile the network anew") from error


def _specs(items: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(item["name"]), tuple(int(size) for size in item["shape"])) for item in items)


def _created_by() -> str:
    return f"blockpunch {metadata.version('blockpunch')}"
