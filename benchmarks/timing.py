"""Milliseconds of a pruned network, compiled, beside the fastest dense peer: for the tables of accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blockpunch as bp
from blockpunch.measure.bench import OURS, Entry, bench_entries

PEERS = ("onnxruntime", "openvino")


def beside_peers(pruned: Path, dense: Path, peers: Sequence[str] = PEERS, *, seconds: float = 2.0,
                 tune: float = 0.0) -> dict[str, Any]:
    """``ms`` of the ONNX file ``pruned``, compiled beside it, and ``peer`` and ``peer_ms`` of ``dense``; one thread.

    Args:
        pruned: ONNX file.
        dense: ONNX file that the peers run, in the same rounds.
        peers: engines, as ``blockpunch bench`` names them.
        seconds: measuring time for each engine.
        tune: seconds of tuning.
    """
    compiled = pruned.with_suffix(".bp")
    bp.compile(pruned, tune_s=tune).save(compiled)
    entries = [Entry("ours", OURS, compiled, pruned), *(Entry(name, name, dense) for name in peers)]
    engines = bench_entries(pruned.stem, entries, threads=1, seconds=seconds).engines
    peer = min(engines.keys() & peers, key=lambda name: engines[name].median_ms)
    return {"ms": engines["ours"].median_ms, "peer": peer, "peer_ms": engines[peer].median_ms}
