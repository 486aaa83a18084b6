"""Winograd's F(4 x 4, 3 x 3) with tiles along the vectors: 4 x 4 tiles, 16 x 16 pixels, are one vector per position.

:mod:`winograd <blockpunch.compiler.forms.winograd>` has the method. There channels and filters lie along the vectors,
so that a map of any size wastes nothing, but every value is turned around twice. Here pixels are loaded and stored as
they lie in the rows of a map, which is what counts where few channels or filters share a transform: first layers,
large maps. A block at the right or lower edge of the map is moved inwards and leaves alone what its neighbour writes.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from blockpunch.compiler.forms.base import (
    BROADCAST_CYCLES,
    FMA_LATENCY,
    FMA_PER_CYCLE,
    TILE_CYCLES,
    Emitted,
    Form,
    Layer,
    Schedule,
)
from blockpunch.compiler.forms.minimal_filtering import input_line, output_line, unit
from blockpunch.compiler.forms.winograd import corner, side, transformed_weights
from blockpunch.compiler.kernels.base import (
    Context,
    call,
    epilogue_name,
    kernel_epilogue,
    operands,
    render,
    strides_of,
)
from blockpunch.compiler.packing import Ints
from blockpunch.compiler.program import Choice

_SIDE, _TILE, _POSITIONS = 16, 4, 36
_HEIGHTS = (8, 16, 24)
_AHEAD = 2  # filters that the result is fetched ahead
_NEAR_RATE, _FAR_RATE = 10.0, 5.7  # bytes per cycle, by where the weights are
_INPUT_CYCLES, _OUTPUT_CYCLES = (220.0, 390.0), (170.0, 240.0)  # of a channel, a filter, by where the map is


class WinogradTiles(Form):
    """One product of weights and a vector of tiles per position, channel and filter."""

    name = "winograd-tiles"
    tile_unit = "pixels square, Winograd, tiles along the vectors"

    def schedules(self, layer: Layer) -> list[Schedule]:
        """Parts of 8 to 24 filters, on maps of at least 16 x 16 pixels and cores with vectors of 16 floats."""
        if layer.target.isa != "avx512" or min(layer.rows, layer.width) < _SIDE or side(layer) != 3:
            return []
        order = np.arange(len(layer.weights))
        heights = [h for h in _HEIGHTS if h <= max(len(order), _HEIGHTS[0])]
        return [Schedule(Choice(self.name, height, _TILE, 1, grouped=False), order, _cycles(layer, height))
                for height in heights]

    def emit(self, layer: Layer, schedule: Schedule, ctx: Context) -> Emitted:
        """Transform the weights and write the four functions of the layer."""
        height, epilogue = schedule.choice.height, layer.node.epilogue
        panel, bias = transformed_weights(layer, _TILE, height, ctx)
        blocks = _blocks(layer)
        fields = _fields(layer, blocks, ctx) | {
            "u": ctx.table("float", panel), "bias": ctx.table("float", bias), "parts": len(panel)}
        assert layer.y.plane
        masked = layer.y.plane.zero_margin
        input_, product_ = "winograd_tiles_input", f"winograd_tiles_product_{height}"
        output = f"winograd_tiles_output{epilogue_name(epilogue)}"
        name = f"winograd_tiles_{height}{epilogue_name(epilogue)}{'_margin' if masked else ''}"
        texts: list[tuple[str, str, dict[str, Any]]] = [
            ("input", input_, {}), ("product", product_, {}), ("output", output, {}),
            ("layer", name, {"input": input_, "product": product_, "output": output, "masked": masked})]
        helpers = {"winograd_tiles_layer": render("winograd_tiles_layer.c.j2")}
        for what, function, more in texts:
            helpers[function] = render("winograd_tiles.c.j2", what=what, name=function, height=height, ahead=_AHEAD,
                                       loads=len(operands(layer.node)), epilogue=kernel_epilogue(epilogue),
                                       input_line=input_line, output_line=output_line, unit=unit(6), **more)
        views = [layer.x, layer.y, *(ctx.view(other) for other in operands(layer.node))]
        floats = _POSITIONS * (fields["v_step"] + height * _SIDE)
        return Emitted([(len(blocks), call(name, "winograd_tiles_layer", fields, views, ctx))], helpers, panel.size,
                       panel.nbytes, floats)


def _blocks(layer: Layer) -> Ints:
    """For each block: image, distance of its first pixel in the plane, rows and columns that its neighbours write."""
    found = []
    for image, y, x in product(range(layer.y.shape[0]), range(0, layer.rows, _SIDE), range(0, layer.width, _SIDE)):
        first_y, first_x = min(y, layer.rows - _SIDE), min(x, layer.width - _SIDE)
        found.append((image, first_y * layer.y.strides[2] + first_x, y - first_y, x - first_x))
    return np.array(found, np.int32)


def _fields(layer: Layer, blocks: Ints, ctx: Context) -> dict[str, Any]:
    """Fields of the layer's struct, apart from its weights."""
    x, y = layer.x, layer.y
    assert y.plane
    dy, dx = corner(layer)
    return {
        "block": ctx.table("int32_t", blocks), "own": "THREAD_SCRATCH", "blocks": len(blocks),
        "channels": layer.channels, "filters": len(layer.weights), "images": y.shape[0],
        "height": layer.rows, "width": layer.width, "v_step": (layer.channels | 1) * _SIDE,
        "tap": dy * x.strides[2] + dx, "row": y.strides[2],
        "in_image": x.strides[0], "in_plane": x.strides[1], "out_image": y.strides[0], "out_plane": y.strides[1],
        "head": y.plane.origin, "tail": y.plane.stride - y.plane.origin - layer.rows * y.plane.row,
    } | strides_of([ctx.view(name) for name in operands(layer.node)], res_image=0, res_plane=1)


def _cycles(layer: Layer, height: int) -> float:
    """Products, which wait for weights and inputs where these do not stay close; the transforms come on top."""
    filters, channels, l2 = len(layer.weights), layer.channels, layer.target.l2_bytes
    blocks, parts = len(_blocks(layer)), -(-filters // height)
    blocks = -(-blocks // layer.threads) * layer.threads  # threads wait for the one with the most
    per_channel = max(height / FMA_PER_CYCLE, (height + 1) * BROADCAST_CYCLES, FMA_LATENCY)
    weight_bytes = 4.0 * _POSITIONS * parts * height * channels
    if weight_bytes + 4.0 * _POSITIONS * channels * _SIDE > 2 * layer.target.l1_bytes:  # weights and inputs stream in
        rate = _NEAR_RATE if weight_bytes <= 0.75 * l2 else _FAR_RATE
        per_channel = max(per_channel, 4.0 * (height + _SIDE) / rate)
    total = _POSITIONS * parts * (channels * per_channel + TILE_CYCLES + height)
    for count, (near, far) in ((channels, _INPUT_CYCLES), (filters, _OUTPUT_CYCLES)):
        total += count * (near if 4 * count * layer.vectors * _SIDE <= 2 * l2 else far)
    return blocks * total
