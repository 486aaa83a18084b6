"""Any ONNX files, dense, in our engine and beside the others: which models are taken, how exact, how fast.

    python benchmarks/models.py FILE.onnx [FILE.onnx@x=1,3,320,320 ...] [--seconds 3] [--json rows.jsonl]

prints a table for docs/models.md. A shape behind ``@`` is for a file with open dimensions. Files that we cannot take
are named with the reason. Rows are kept as they are measured; a file that has one already is not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from blockpunch.cli.options import parse_shapes
from blockpunch.errors import BlockpunchError
from blockpunch.measure.bench import OURS, bench
from blockpunch.measure.engines import ENGINES


def measure(model: str, seconds: float) -> dict[str, Any]:
    """Milliseconds by engine, our error against ONNX Runtime, and the peers that cannot run the file, or not right."""
    path, _, shape = model.partition("@")
    peers = [name for name in ("onnxruntime", "openvino", "mnn") if ENGINES[name].version()]
    row: dict[str, Any] = {"model": model, "name": Path(path).stem}
    try:
        result = bench(Path(path), [OURS, *peers], shapes=parse_shapes([shape] if shape else None), seconds=seconds)
    except BlockpunchError as error:
        return row | {"refused": str(error)}
    return row | {"ms": {name: engine.median_ms for name, engine in result.engines.items()},
                  "error": result.engines[OURS].max_rel_error, "left_out": list(result.left_out)}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, the fastest against the best peer first."""
    names = [name for name in ENGINES if name != OURS and any(name in row.get("ms", {}) for row in rows)]
    lines = [f"| model | ours, ms | {' | '.join(names)} | best peer / ours | error |", "|---" * (len(names) + 4) + "|"]

    def ratio(row: dict[str, Any]) -> float:
        return float(min((ms for name, ms in row["ms"].items() if name != OURS), default=0.0) / row["ms"][OURS])

    for row in sorted((row for row in rows if "ms" in row), key=ratio, reverse=True):
        peers = (f"{row['ms'][name]:.2f}" if name in row["ms"] else "–" for name in names)
        lines.append(f"| {row['name']} | **{row['ms'][OURS]:.2f}** | {' | '.join(peers)} | {ratio(row):.2f} "
                     f"| {row['error']:.0e} |")
    return "\n".join([*lines, *(f"\nNot taken: {row['name']}: {row['refused']}" for row in rows if "refused" in row)])


def main() -> None:
    """Measure what has not been measured, print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each engine")
    parser.add_argument("--json", type=Path, default=Path("out/models.jsonl"), help="where rows are kept")
    options = parser.parse_args()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    kept = options.json.read_text().splitlines() if options.json.exists() else []
    rows = {row["model"]: row for row in map(json.loads, kept)}
    for model in options.models:
        if model not in rows:
            rows[model] = measure(model, options.seconds)
            with options.json.open("a") as file:
                file.write(json.dumps(rows[model]) + "\n")
            print(json.dumps(rows[model]), flush=True)
    print(table([rows[model] for model in options.models]))


if __name__ == "__main__":
    main()
