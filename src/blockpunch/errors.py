"""Every error blockpunch raises on purpose, in one tree.

BlockpunchError
├── ModelError                 a model cannot be read or used as it is
│   ├── UnsupportedOperatorError   operators outside the table; lists all of them at once
│   └── DynamicShapeError          a dimension is not a number; asks for ``shape=``
├── GraphError                 a graph breaks its own rules (a defect of ours, or of a hand-built graph)
├── SelectorError              a layer selector that matches nothing
├── SchemeError                an impossible regularity, rate or block size
├── PlanError                  a plan that cannot be read, or is for another model
├── DataError                  images, labels or calibration data that cannot be used
├── TrainingError              recovery cannot go on (loss not finite, checkpoint of another run)
├── ToolchainError             no C compiler, or it failed
├── TargetError                an unknown target
├── ArtifactError              an artifact that is truncated, altered or of another version
│   └── TargetMismatchError        built for a CPU that this one is not
├── InputError                 wrong count, shape or dtype of arrays given to a session
├── OutputError                a result cannot be written (no permission, disk full)
├── ClusterError               a cluster that cannot be reached, or is lost
├── BenchmarkError             a measurement that cannot be made, or an engine that disagrees
└── MissingExtraError          an optional package is not installed
"""

from __future__ import annotations


class BlockpunchError(Exception):
    """Base of all errors raised on purpose: says what is wrong, where, and what to do.

    Args:
        what: the fault, in one sentence.
        where: the file, node, layer or field it was found in.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        text = f"{where}: {what}" if where else what
        super().__init__(f"{text}\n  -> {fix}" if fix else text)


class ModelError(BlockpunchError):
    """A model cannot be read or used as it is."""


class UnsupportedOperatorError(ModelError):
    """Operators outside the operator table; the message lists all of them, with their nodes."""


class DynamicShapeError(ModelError):
    """A dimension of the model is not a number."""


class GraphError(BlockpunchError):
    """A graph breaks the rules of the intermediate representation."""


class SelectorError(BlockpunchError):
    """A layer selector matches nothing."""


class SchemeError(BlockpunchError):
    """An impossible regularity, rate or block size."""


class PlanError(BlockpunchError):
    """A plan cannot be read, or belongs to another model."""


class DataError(BlockpunchError):
    """Images, labels or calibration data cannot be used."""


class TrainingError(BlockpunchError):
    """Recovery cannot go on."""


class ToolchainError(BlockpunchError):
    """No C compiler was found, or it failed."""


class TargetError(BlockpunchError):
    """An unknown target."""


class ArtifactError(BlockpunchError):
    """An artifact is truncated, altered or of another format version."""


class TargetMismatchError(ArtifactError):
    """An artifact was built for a CPU that this one is not."""


class InputError(BlockpunchError):
    """Wrong count, shape or dtype of the arrays given to a session."""


class OutputError(BlockpunchError):
    """A result cannot be written."""


class BenchmarkError(BlockpunchError):
    """A measurement cannot be made, or an engine's output disagrees with the reference."""


class ClusterError(BlockpunchError):
    """A cluster cannot be reached, or work on it failed."""


class MissingExtraError(BlockpunchError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}', which is not installed",
                         fix=f"pip install 'blockpunch[{extra}]'")
