"""Tables and lines on the terminal. Results go to standard output; notes and progress to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from blockpunch.atomic import write_atomic
from blockpunch.optimize import Event

_EVERY = 20.0  # seconds between lines about a long stage where there is no terminal to draw a bar on
_WIDE = 400  # a pipe has no width: long rows must not be folded or cut there


def console(*, error: bool = False) -> Console:
    """The terminal as it is now (tests replace the streams)."""
    stream = sys.stderr if error else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDE, highlight=False, soft_wrap=False)


def note(text: str) -> None:
    """A line about what is being done, on standard error."""
    console(error=True).print(Text(text), style="dim")


def line(text: str) -> None:
    """A line of the result."""
    console().print(Text(text))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "",
          tails: Collection[str] = ()) -> None:
    """A table; a column whose cells are all numbers (or ``-``) is aligned to the right.

    What does not fit is cut at its end, in the columns named in ``tails`` at its beginning.
    """
    shown = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", caption=caption or None,
                  caption_justify="left", pad_edge=False, show_header=any(columns))
    out = console()
    numbers = [_numeric([row[i] for row in rows]) for i in range(len(columns))]
    cells = [_column([row[i] for row in rows]) for i in range(len(columns))]
    natural = [max(len(cell) for cell in (name, *column)) for name, column in zip(columns, cells, strict=True)]
    widths = _fit(natural, numbers, out.width - 3 * len(columns))
    for name, number, width in zip(columns, numbers, widths, strict=True):
        shown.add_column(name, justify="right" if number else "left", no_wrap=True, overflow="ellipsis",
                         min_width=width, max_width=width)
    cells = [[_tail(text, width) for text in column] if name in tails else column
             for name, column, width in zip(columns, cells, widths, strict=True)]
    for row in zip(*cells, strict=True):
        shown.add_row(*(Text(cell) for cell in row))
    out.print(shown)


def _tail(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[1 - width:]}"


def _fit(widths: list[int], numbers: list[bool], room: int) -> list[int]:
    """Column widths for a terminal: the widest texts give way, down to 8 characters; numbers stay whole."""
    widths = list(widths)
    while sum(widths) > room:
        texts = [i for i, number in enumerate(numbers) if not number and widths[i] > 8]
        if not texts:
            break
        widths[max(texts, key=lambda i: widths[i])] -= 1
    return widths


def _numeric(values: Sequence[object]) -> bool:
    return all(isinstance(value, int | float) or value in (None, "") or _starts_with_number(value) for value in values)


def _starts_with_number(value: object) -> bool:
    text = str(value)
    return text[:1].isdigit() and text.rstrip(" %x").replace(".", "").replace("e-", "").replace("e+", "").isdigit()


def _column(values: Sequence[object]) -> list[str]:
    """The cells of a column as text; all its fractions get as many decimals as the largest one needs."""
    largest = max((abs(value) for value in values if isinstance(value, float)), default=0.0)
    decimals = 3 if largest < 10 else 2 if largest < 100 else 1
    return [_cell(value, decimals) for value in values]


def _cell(value: object, decimals: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{decimals}f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", " ")
    return str(value)


class Watching:
    """Shows a job's events on standard error: lines, and a bar that moves on a terminal for stages with a length."""

    def __init__(self) -> None:
        self._out = console(error=True)
        self._spoke = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_bar()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if not event.total:
            self._end_bar()
            self._out.print(Text(event.text), style="dim")
        elif not self._out.is_terminal:
            if time.monotonic() - self._spoke > _EVERY:
                self._out.print(Text(f"{event.text} ({100 * event.done / event.total:.0f} %)"), style="dim")
                self._spoke = time.monotonic()
        else:
            if self._bar is None:
                self._bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(),
                                     console=self._out, transient=True)
                self._bar.start()
                self._task = self._bar.add_task(event.text, total=event.total)
            assert self._task is not None
            self._bar.update(self._task, completed=event.done, description=event.text)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None


def write_json(data: Any, where: str) -> None:
    """Write JSON to a file, or to standard output for ``-``."""
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    if where == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomic(Path(where), text.encode())


def megabytes(count: int) -> str:
    """Bytes as MiB or KiB."""
    return f"{count / 2**20:.1f} MiB" if count >= 1 << 20 else f"{count / 1024:.0f} KiB"
