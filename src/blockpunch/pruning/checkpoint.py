"""Checkpoints of a recovery run: one safetensors file with JSON in its metadata; no pickles, nothing is executed."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from blockpunch.atomic import write_atomic
from blockpunch.errors import MissingExtraError, TrainingError

try:
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save as serialize
except ImportError as error:
    raise MissingExtraError("safetensors", "train", "Checkpoints") from error

FORMAT = "blockpunch-recovery"
VERSION = 1


def save(path: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able ``state`` to one file, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    data = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps({"format": FORMAT, "version": VERSION, **state})
    write_atomic(path, serialize(data, metadata={"blockpunch": text}))


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the state that :func:`save` wrote.

    Raises:
        TrainingError: no checkpoint of this version, or a damaged one.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            state = json.loads((file.metadata() or {}).get("blockpunch", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError) as error:
        raise TrainingError(f"not a checkpoint, or damaged ({error})", where=str(path),
                            fix="remove the file to start anew") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or state.get("version") != VERSION:
        raise TrainingError(f"not a checkpoint of version {VERSION}", where=str(path),
                            fix="remove the file to start anew")
    return tensors, state


def random_state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of torch's, numpy's and Python's global random generators, as tensors and JSON."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - user code may draw from it
    version, words, next_gauss = random.getstate()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
               "python": torch.tensor(words, dtype=torch.int64)}
    return tensors, {"numpy": [str(kind), int(position), int(has_gauss), float(gauss)], "python": [version, next_gauss]}


def restore_random(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Put the generators back where :func:`random_state` found them."""
    torch.set_rng_state(tensors["torch"])
    kind, position, has_gauss, gauss = state["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, gauss))  # noqa: NPY002 - as above
    version, next_gauss = state["python"]
    random.setstate((version, tuple(int(word) for word in tensors["python"]), next_gauss))


def flatten_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's ``state_dict`` as named tensors, and the rest as JSON."""
    tensors, rest = {}, {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value
            elif value is not None:
                rest[f"{index}.{key}"] = value
    return tensors, {"values": rest, "groups": state["param_groups"]}


def unflatten_optimizer(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> dict[str, Any]:
    """The ``state_dict`` that :func:`flatten_optimizer` took apart."""
    entries: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *state["values"].items()]:
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = value
    return {"state": entries, "param_groups": state["groups"]}
