"""One node of an exported torch program as the rules see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blockpunch.graph.builder import Const, GraphBuilder, Tensor, Unsupported


@dataclass
class TorchNode:
    """A call of an aten operator, its arguments by their name in the operator's schema, defaults filled in.

    Tensor arguments are values of the graph or constants; lists of tensors are lists of these.
    """

    op: str  # without namespace and overload, e.g. "conv2d"
    args: dict[str, Any]

    def tensor(self, name: str = "self") -> Tensor:
        """A tensor argument; a plain number stands for a constant."""
        value = self.args[name]
        if not isinstance(value, str | Const):
            raise Unsupported(f"its {name} is not a tensor")
        return value

    def constant(self, name: str) -> Const:
        """A tensor argument that must be known at import."""
        value = self.tensor(name)
        if not isinstance(value, Const):
            raise Unsupported(f"its {name} is computed at run time")
        return value

    def optional(self, name: str) -> Const | None:
        """A constant tensor argument that may be left out."""
        return None if self.args.get(name) is None else self.constant(name)

    def ints(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers; an absent one is empty."""
        value = self.args.get(name)
        if value is None:
            return ()
        return tuple(int(item) for item in value) if isinstance(value, list | tuple) else (int(value),)

    def pair(self, name: str, default: tuple[int, int] | None = None) -> tuple[int, int]:
        """Two whole numbers, given as two, as one for both, or absent."""
        value = self.ints(name)
        if not value and default is not None:
            return default
        if len(value) not in (1, 2):
            raise Unsupported(f"its {name} {value} is not two-dimensional")
        return value[0], value[-1]

    def number(self, name: str) -> float:
        """A plain number."""
        return float(self.args[name])


Rule = Callable[[GraphBuilder, TorchNode], "Tensor | list[Tensor]"]
