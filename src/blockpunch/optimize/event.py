"""What a running job tells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Something to show: a line of ``text``, or how far a stage is (``done`` of ``total``, any unit)."""

    text: str
    done: float = 0.0
    total: float = 0.0
