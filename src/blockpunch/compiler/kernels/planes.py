"""Depthwise sums of a whole small plane in registers: the C statements, vector by vector.

A plane of few vectors is loaded once. What a tap sees is that plane shifted by dy rows and dx columns: shifts by rows
are shared between the taps of a row of the kernel, shifts by columns are made once for the sum of a column of taps, and
lanes that a column shift would take from the neighbouring row are cleared. So no map needs margins for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

ZERO = "(vf){0}"


@dataclass
class PlaneSums:
    """Writes the statements that leave the sum of all taps for output vector j in ``sum<j>``.

    Attributes:
        taps: (dy, dx) of each weight ``w<t>``.
        height, width: pixels of the input plane, from ``x`` on.
        row: floats from row to row, of input and sums.
        lanes: floats per vector.
    """

    taps: Sequence[tuple[int, int]]
    height: int
    width: int
    row: int
    lanes: int
    _lines: list[str] = field(default_factory=list)
    _known: dict[str, str] = field(default_factory=dict)

    def vector(self, j: int) -> list[str]:
        """The statements for output vector ``j``; those for the vectors before it have been written already."""
        self._lines = []
        self._say(f"sum{j}", f"bias{self._products(0, j)}")
        for dx in sorted({dx for _, dx in self.taps} - {0}):
            part = self._shift(f"column{dx}", self._column_sum(dx, j * self.lanes + dx),
                               self._column_sum(dx, j * self.lanes + dx + self.lanes - 1), j * self.lanes + dx)
            if part != ZERO:
                self._lines.append(f"sum{j} += v_keep({part}, {self._inside(j, dx)});")
        return self._lines

    def _say(self, name: str, value: str) -> str:
        self._lines.append(f"vf {name} = {value};")
        return name

    def _once(self, name: str, value: str) -> str:
        """Declare ``name`` when it is first needed; it may have turned out to be nothing but zeros."""
        if name not in self._known:
            self._known[name] = value if value == ZERO else self._say(name, value)
        return self._known[name]

    def _column_sum(self, dx: int, at: int) -> str:
        """Sum over the taps of one column of the kernel, before its shift, for the vector that holds float ``at``."""
        k = at // self.lanes
        name = f"part{'m' if dx < 0 else ''}{abs(dx)}_{k}".replace("_-", "_m")
        if name not in self._known:
            self._once(name, self._products(dx, k).removeprefix(" + ") or ZERO)
        return self._known[name]

    def _products(self, dx: int, k: int) -> str:
        terms = [(t, self._rows(k, dy)) for t, (dy, tap_dx) in enumerate(self.taps) if tap_dx == dx]
        return "".join(f" + w{t} * {value}" for t, value in terms if value != ZERO)

    def _rows(self, k: int, dy: int) -> str:
        """The input shifted by ``dy`` rows, vector ``k``."""
        at = k * self.lanes + dy * self.row
        return self._shift("rows", self._input(at), self._input(at + self.lanes - 1), at)

    def _shift(self, what: str, low: str, high: str, at: int) -> str:
        """The vector that starts at float ``at``, out of the two that it lies in."""
        if at % self.lanes == 0 or low == high == ZERO:
            return low
        name = f"{what}_{at}".replace("-", "m")
        return self._once(name, f"v_shift({low}, {high}, {at % self.lanes})")

    def _input(self, at: int) -> str:
        """The input vector that holds float ``at`` of the plane; nothing but zeros above and below it."""
        k, end = at // self.lanes, self.height * self.row
        if not 0 <= k * self.lanes < end:
            return ZERO
        inside = end - k * self.lanes
        load = f"v_load(x + {k * self.lanes})"
        return self._once(f"in{k}", load if inside >= self.lanes else
                          f"v_keep({load}, {self._mask([lane < inside for lane in range(self.lanes)])})")

    def _inside(self, j: int, dx: int) -> str:
        """Lanes of vector ``j`` whose neighbour ``dx`` columns away is a pixel of the same row."""
        return self._mask([0 <= (j * self.lanes + lane) % self.row + dx < self.width for lane in range(self.lanes)])

    @staticmethod
    def _mask(keep: Sequence[bool]) -> str:
        return "(vi){" + ", ".join("-1" if k else "0" for k in keep) + "}"
