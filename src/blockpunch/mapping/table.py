"""The latency table: measured seconds of layer shapes under schemes and rates, on one device, with one set of kernels.

A JSON-lines file that is only ever appended to: a header that says where it was measured, then a line for each
measurement. What was measured stays through any interruption, and networks that share layer shapes share lines.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from blockpunch.atomic import make_folder, output_error
from blockpunch.errors import DataError
from blockpunch.mapping.curves import Curve, between, doubt, falling
from blockpunch.mapping.grid import DENSE
from blockpunch.mapping.network import Cell, Item, Network
from blockpunch.measure.machine import cpu_name
from blockpunch.schemes import Scheme
from blockpunch.target import Target
from blockpunch.tuning import kernel_version, store_path

FORMAT = "blockpunch-latency-table"
VERSION = 5


class Work(NamedTuple):
    """What the compiler makes of a layer: the form of its kernel, and the cycles that the cost model gives it."""

    form: str
    cycles: float


class Timing(NamedTuple):
    """The layers of a key under a cell, in one run: seconds, and what was run (None: nothing models its kernel)."""

    key: str
    cell: Cell
    seconds: float
    work: Work | None = None


class _Measured(NamedTuple):
    """Seconds in a round of a network, and what was run."""

    network: str
    at: int
    seconds: float
    work: Work | None = None


@dataclass(frozen=True)
class Prediction:
    """Seconds of a whole network under a plan.

    Attributes:
        seconds: in all.
        items: step of each item -> its seconds.
        rest: seconds of the steps that have no weights to prune.
        interpolated: steps whose cell was not measured itself.
    """

    seconds: float
    items: dict[str, float]
    rest: float
    interpolated: tuple[str, ...]


BELIEVED = 3
"""Measurements of a cell whose median is believed although it is slower than at a lower rate."""
DOUBT = 0.08
"""Interpolated seconds may be off by this part of them; where it may be more, they are to be measured."""


class LatencyTable:
    """A table in the file ``path``, for one target and so many threads.

    Args:
        path: read if it is there, made by the first measurement if not.
        target: that the layers are compiled for.
        threads: that they run on.
        model: the file that the user profiles or maps, for the advice in messages.
        cpu: whose times it holds, as the table's header names it; None: this machine's. For choosing plans on another
            machine than the one that will run them.

    Raises:
        DataError: the file is something else, or was measured on another device, with other kernels or threads.
    """

    def __init__(self, path: str | Path, target: Target, threads: int = 1, *, model: str = "MODEL",
                 cpu: str | None = None) -> None:
        self.path, self.target, self.threads, self.model = Path(path), target, threads, model
        self.cpu = cpu or cpu_name()
        self._cells: dict[str, dict[Cell, list[_Measured]]] = {}
        self._rest: dict[str, list[float]] = {}
        self._beside: dict[str, list[Sequence[float]]] = {}
        self._paces: dict[str, list[float]] = {}
        self._last = ""
        self._curves: dict[tuple[str, Scheme], Curve] = {}
        self._broken_tail = False
        if self.path.exists():
            self._read()

    @property
    def header(self) -> dict[str, Any]:
        """Where and with what its lines are measured."""
        return {"format": FORMAT, "version": VERSION, "cpu": self.cpu, "target": self.target.name,
                "kernels": kernel_version(), "threads": self.threads}

    def __len__(self) -> int:
        return sum(len(cells) for cells in self._cells.values())

    def cells(self, key: str) -> dict[Cell, float]:
        """The measured cells of the layers of a key, and their seconds (the median of all measurements)."""
        return {cell: self._typical(times) for cell, times in self._cells.get(key, {}).items()}

    def count(self, key: str, cell: Cell) -> int:
        """How often a cell was measured."""
        return len(self._cells.get(key, {}).get(cell, []))

    def rising(self, key: str, scheme: Scheme) -> list[float]:
        """Rates that took longer than a lower one, beyond doubt, and were not measured often enough to believe it."""
        found, least = [], math.inf
        for (known, rate), times in sorted(self._cells.get(key, {}).items(), key=lambda item: item[0][1]):
            if known == scheme:
                seconds = self._typical(times)
                if seconds > (1 + DOUBT) * least and len(times) < BELIEVED:
                    found.append(rate)
                least = min(least, seconds)
        return found

    def work(self, key: str, scheme: Scheme, rate: float) -> Work | None:
        """What was run when a cell was measured, if that is known."""
        rows = self._cells.get(key, {}).get((scheme if rate > 1 else DENSE, rate))
        return _of_one_form(rows)[-1].work if rows else None

    def rest(self, network: Network) -> float | None:
        """Seconds of all steps without weights to prune."""
        rows = self._rest.get(network.key)
        return self._typical([_Measured(network.key, at, seconds) for at, seconds in enumerate(rows)]) if rows else None

    def _typical(self, rows: Sequence[_Measured]) -> float:
        """The median of seconds, each taken at the usual pace of the machine."""
        return statistics.median(row.seconds / self._pace(row.network, row.at) for row in _of_one_form(rows))

    def _pace(self, network: str, at: int) -> float:
        """How much longer than usual everything took in a round, by the dense network beside it.

        By the median over its layers: what else runs on a machine slows layers that wait for memory more than others.
        """
        if network not in self._paces:
            first = np.asarray(self._beside[network][0])
            ratios = [float(np.median(np.asarray(beside) / first)) for beside in self._beside[network]]
            self._paces[network] = [ratio / statistics.median(ratios) for ratio in ratios]
        return self._paces[network][at]

    def add(self, network: Network, cells: Mapping[str, Timing], rest: float,
            beside: Sequence[float]) -> None:
        """Remember one run of a network, now and on disk, in one write.

        Args:
            network: that ran.
            cells: by step.
            rest: seconds of its other steps.
            beside: seconds of the dense network's items, measured in turns with it: they tell the machine's pace.

        Raises:
            OutputError: the file cannot be written.
        """
        records: list[dict[str, Any]] = [{"network": network.key, "name": network.graph.name, "rest": rest,
                                          "beside": list(beside)}]
        records += [{"layer": key, "scheme": str(scheme), "rate": rate, "seconds": seconds,
                     **(work._asdict() if work else {})} for key, (scheme, rate), seconds, work in cells.values()]
        new = not self.path.exists()
        text = "".join(json.dumps(record) + "\n" for record in ([self.header] if new else []) + records)
        make_folder(self.path.parent)
        try:
            with self.path.open("ab") as file:
                file.write((("\n" if self._broken_tail else "") + text).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise output_error(error, self.path) from error
        self._broken_tail = False
        for record in records:
            self._take(record)

    def estimate(self, key: str, scheme: Scheme, rate: float) -> tuple[float, bool] | None:
        """(seconds, whether this very cell was measured), or None where nothing is known.

        Between measured rates the seconds go with the weights that are kept, 1/rate; beyond the highest one they stay.
        """
        curve = self.curve(key, scheme)
        if not curve:
            return None
        if rate in curve:
            return curve[rate], True
        return between(curve, rate), False

    def sure(self, key: str, scheme: Scheme, rate: float) -> bool:
        """Whether a cell is known well enough to be chosen: measured, or between measurements that leave no doubt.

        A mapper looks for the best of many cells: among guesses it would find those that are most wrong.
        """
        curve = self.curve(key, scheme)
        return rate in curve or (bool(curve) and doubt(curve, rate) <= DOUBT * between(curve, rate))

    def curve(self, key: str, scheme: Scheme) -> Curve:
        """Rate -> measured seconds under a scheme, rate 1 being the dense layer; empty if the scheme has none.

        Among rates that run in one form they fall (:func:`~blockpunch.mapping.curves.falling`).
        """
        if (key, scheme) not in self._curves:
            cells = self._cells.get(key, {})
            dense = cells.get((DENSE, 1.0))
            times = {rate: times for (known, rate), times in sorted(cells.items(), key=lambda item: item[0][1])
                     if known == scheme}
            seconds: list[float] = []
            for _, rates in groupby(times, lambda rate: (work := self.work(key, scheme, rate)) and work.form):
                alike = [times[rate] for rate in rates]
                seconds += falling([self._typical(t) for t in alike], [len(t) for t in alike])
            self._curves[key, scheme] = ({1.0: self._typical(dense)} | dict(zip(times, seconds, strict=True))
                                         if dense and times else {})
        return self._curves[key, scheme]

    def predict(self, network: Network, choices: Mapping[str, Cell]) -> Prediction:
        """Seconds of ``network`` with each item (by its step) under its cell; items that are not named are dense.

        Raises:
            DataError: the table has nothing about the network, or about a scheme on one of its layers.
        """
        rest = self.rest(network)
        if rest is None:
            raise DataError(f"holds nothing about {network.graph.name}", where=str(self.path), fix=self.advice)
        seconds, guessed = {}, []
        for item in network.items:
            scheme, rate = choices.get(item.step, (DENSE, 1.0))
            found = self.estimate(item.key, scheme, rate) if rate > 1 else (self.dense(item), True)
            if found is None:
                raise DataError(f"holds nothing about '{scheme}' on {item.name}", where=str(self.path), fix=self.advice)
            seconds[item.step] = found[0]
            if not found[1]:
                guessed.append(item.step)
        return Prediction(rest + sum(seconds.values()), seconds, rest, tuple(guessed))

    def dense(self, item: Item) -> float:
        """Seconds of the dense layer.

        Raises:
            DataError: it was not measured.
        """
        times = self._cells.get(item.key, {}).get((DENSE, 1.0))
        if times is None:
            raise DataError(f"holds nothing about {item.name}", where=str(self.path), fix=self.advice)
        return self._typical(times)

    @property
    def advice(self) -> str:
        """The command that measures what is missing."""
        target = "" if self.target.name == Target.host().name else f" --target {self.target.name}"
        threads = "" if self.threads == 1 else f" --threads {self.threads}"
        return f"blockpunch profile {self.model} -o {self.path}{target}{threads}"

    def _read(self) -> None:
        try:
            text = self.path.read_text(encoding="utf-8")
            head, *lines = text.split("\n")
            header = json.loads(head)
            if header["format"] != FORMAT:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError("is not a latency table", where=str(self.path),
                            fix=f"name another file; if it was one, measure it anew: {self.advice} --renew") from error
        words = {"version": "by another version of blockpunch", "cpu": "on another CPU",
                 "target": "for another target", "kernels": "with other kernels",
                 "threads": "with another number of threads"}
        for field, word in words.items():
            if header.get(field) != self.header[field]:
                raise DataError(f"was measured {word} ({header.get(field)}, not {self.header[field]})",
                                where=str(self.path), fix=f"measure it anew: {self.advice} --renew")
        self._broken_tail = bool(lines) and lines[-1] != ""
        for line in lines:
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # the last line of an interrupted write

    def _take(self, record: dict[str, Any]) -> None:
        """One line; those of cells follow that of the round in which they were measured."""
        self._curves.clear()
        if "network" in record:
            rest, beside = float(record["rest"]), [float(seconds) for seconds in record["beside"]]
            self._last = record["network"]
            self._rest.setdefault(self._last, []).append(rest)
            self._beside.setdefault(self._last, []).append(beside)
            self._paces.pop(self._last, None)
        else:
            cell = Scheme.parse(record["scheme"]), float(record["rate"])
            work = Work(record["form"], float(record["cycles"])) if "cycles" in record else None
            found = _Measured(self._last, len(self._beside[self._last]) - 1, float(record["seconds"]), work)
            self._cells.setdefault(record["layer"], {}).setdefault(cell, []).append(found)


def _of_one_form(rows: Sequence[_Measured]) -> list[_Measured]:
    """The measurements in the form of kernel that most were in.

    Where two forms are about as fast by the model, layers of one shape fall on either side; a mean of both is neither.
    """
    forms = [row.work and row.work.form for row in rows]
    most = max(reversed(forms), key=forms.count)
    return [row for row, form in zip(rows, forms, strict=True) if form == most]


def table_path(target: Target, threads: int) -> Path:
    """The table for this CPU, these kernels and so many threads, in the user's cache folder."""
    schedules = store_path(target, threads)
    return schedules.parent.parent / "latencies" / f"{schedules.stem}-{VERSION}.jsonl"
