"""Winograd's minimal filtering, F(m x m, r x r): a dense convolution of stride 1 with fewer multiplications.

A kernel of 6x6 and stride 2 is one of 3x3 over the four phases of its input, one of 7x7 fits into 4x4, so that first
layers profit, too.

A tile of m x m results is ``A^T [(G g G^T) * (B^T d B)] A``, d being its n x n inputs, n = m + r - 1, and g the
weights, whose side is computed here; :mod:`minimal_filtering <blockpunch.compiler.forms.minimal_filtering>` has the
matrices. The elementwise product over all channels is a matrix product for each of the n^2 positions: for 3x3 36
multiplications per channel instead of 144 for m = 4, 16 instead of 36 for m = 2. Zeros among the weights are weights
like any other.

Work is cut into chunks of tiles and parts of filters. For a chunk, the inputs of all channels are transformed once and
stay with the thread; each part of filters multiplies them with its weights and transforms the results back. Channels
and filters lie along the vectors, so a map of any size wastes nothing. A tile at the right or lower edge of the map
is moved inwards and leaves alone the pixels that its neighbour writes, so that nothing outside is read or written.
"""

from __future__ import annotations

from collections.abc import Callable
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
    counts_for,
    shared_cycles,
    stream_bytes,
)
from blockpunch.compiler.forms.minimal_filtering import input_line, output_line, unit, weight_matrix
from blockpunch.compiler.kernels.base import (
    Context,
    biases,
    call,
    epilogue_code,
    epilogue_name,
    operands,
    render,
    strides_of,
)
from blockpunch.compiler.packing import Floats, Ints
from blockpunch.compiler.program import Choice
from blockpunch.target import Target

_AHEAD = 8  # tiles that the maps are fetched ahead
_PARTS = (2, 3)  # vectors of filters
_INPUT_CYCLES = {  # n -> of a tile and a vector of channels, by where the map is
    4: (110.0, 190.0), 5: (185.0, 315.0), 6: (280.0, 480.0), 7: (420.0, 680.0), 8: (560.0, 900.0)}
_OUTPUT_CYCLES = {  # m, n -> the same of a vector of filters
    (2, 4): (130.0, 200.0), (2, 5): (150.0, 225.0), (2, 6): (170.0, 250.0), (2, 7): (195.0, 280.0),
    (2, 8): (220.0, 310.0), (4, 6): (185.0, 290.0), (4, 7): (240.0, 350.0), (4, 8): (290.0, 400.0)}
_RESULT_SHARE = 0.375  # of the second-level cache, that products may take beside all that passes through it
_CHANNELS = {8: 128}  # n -> most input channels, so that rounding errors stay about those of 3x3 with 512
_MEMORY_RATE, _OWN_RATE, _RESULT_RATE = 9.5, 12.0, 48.0  # bytes per cycle


class Winograd(Form):
    """One matrix product per position of the transformed tiles."""

    name = "winograd"
    tile_unit = "pixels square, Winograd"

    def schedules(self, layer: Layer) -> list[Schedule]:
        """Tiles of 2x2 and 4x4 results, with chunks that stay in the second-level cache and ever larger ones."""
        found, order = [], np.arange(len(layer.weights))
        for m in (4, 2):
            n = m + side(layer) - 1
            if (m, n) not in _OUTPUT_CYCLES or min(layer.rows, layer.width) < m:
                continue
            if layer.channels > _CHANNELS.get(n, layer.channels):
                continue
            tiles = len(_tiles(layer, m))
            for parts in _parts(layer):
                for chunk in _chunks(layer, n, parts, tiles):
                    choice = Choice(self.name, parts * layer.target.vector_floats, m, chunk, grouped=False)
                    found.append(Schedule(choice, order, _cycles(layer, m, n, parts, chunk, tiles)))
        return found

    def emit(self, layer: Layer, schedule: Schedule, ctx: Context) -> Emitted:
        """Transform the weights, and write the products of every group size that the chunks are cut into."""
        choice, vl = schedule.choice, layer.target.vector_floats
        m, parts = choice.tile, choice.height // vl
        n = m + side(layer) - 1
        panel, bias = transformed_weights(layer, m, choice.height, ctx)
        tiles = _tiles(layer, m)
        fields = _fields(layer, tiles, choice, ctx) | {
            "u": ctx.table("float", panel), "bias": ctx.table("float", bias), "parts": len(panel)}
        most, epilogue = _group(layer.target, parts), layer.node.epilogue
        sizes = sorted({size for length in (choice.chunk, len(tiles) % choice.chunk)
                        for size in _groups(length, most)})
        base = f"winograd{m}_{n}_{parts}"
        masked = layer.y.plane is not None and layer.y.plane.zero_margin
        shared: dict[str, Any] = {"m": m, "n": n, "parts": parts, "vl": vl, "loads": len(operands(layer.node)),
                                  "ahead": _AHEAD, "input_line": input_line, "output_line": output_line,
                                  "unit": unit(n)}
        transform, result = f"winograd{n}_input", f"{base}_output{epilogue_name(epilogue)}"
        groups = len(_groups(choice.chunk, most))
        lines = -(-choice.height // (16 * groups))  # of the next panel, that a group fetches in each step
        name = f"{base}{epilogue_name(epilogue)}{'_margin' if masked else ''}_{'_'.join(map(str, sizes))}_{lines}"
        products = {size: f"winograd_product_{parts}x{size}_{lines}" for size in sizes}
        helpers = {"winograd_layer": render("winograd_layer.c.j2", vl=vl)}
        texts: list[tuple[str, str, dict[str, Any]]] = [
            ("input", transform, {}), ("output", result, {"epilogue": _epilogue(layer, m)}),
            *(("product", products[size], {"tiles": size, "lines": lines}) for size in sizes),
            ("layer", name, {"input": transform, "output": result, "products": list(products.items()),
                             "masked": masked, "tiles": most})]
        for what, function, more in texts:
            helpers[function] = render("winograd.c.j2", what=what, name=function, **shared, **more)
        views = [layer.x, layer.y, *(ctx.view(other) for other in operands(layer.node))]
        units = len(panel) * -(-len(tiles) // choice.chunk)
        floats = n * n * (fields["v_step"] + fields["m_step"])
        return Emitted([(units, call(name, "winograd_layer", fields, views, ctx))], helpers, panel.size, panel.nbytes,
                       floats, grain=len(panel))


def corner(layer: Layer) -> tuple[int, int]:
    """(dy, dx) of the first of the inputs that a result depends on."""
    taps = layer.node.attrs["taps"]
    return min(dy for _, dy, _ in taps), min(dx for _, _, dx in taps)


def side(layer: Layer) -> int:
    """r where the taps span r x r inputs, else 0: a kernel of r x r, or of up to 2r x 2r and stride 2."""
    (y, x), taps = corner(layer), layer.node.attrs["taps"]
    high, wide = max(dy for _, dy, _ in taps) - y + 1, max(dx for _, _, dx in taps) - x + 1
    return high if high == wide else 0


def _kernels(layer: Layer) -> Floats:
    """[filters, input channels (phases count), r * r] the weights as kernels, zero where a phase has no tap."""
    (y, x), taps, r = corner(layer), layer.node.attrs["taps"], side(layer)
    filters, channels = len(layer.weights), layer.weights.shape[1] // len(taps)
    kernels = np.zeros((filters, layer.channels, r * r), np.float32)
    for tap, (phase, dy, dx) in enumerate(taps):
        kernels[:, phase * channels:(phase + 1) * channels, r * (dy - y) + dx - x] = layer.weights[:, tap::len(taps)]
    return kernels


def _tiles(layer: Layer, m: int) -> Ints:
    """For each tile: image, distance of its first pixel in the plane, rows and columns that its neighbours write."""
    wanted = product(range(layer.y.shape[0]), range(0, layer.rows, m), range(0, layer.width, m))
    found = []
    for image, y, x in wanted:
        first_y, first_x = min(y, layer.rows - m), min(x, layer.width - m)
        found.append((image, first_y * layer.y.strides[2] + first_x, y - first_y, x - first_x))
    return np.array(found, np.int32)


def _parts(layer: Layer) -> list[int]:
    vectors = -(-len(layer.weights) // layer.target.vector_floats)
    return [p for p in _PARTS if p <= vectors and _group(layer.target, p) > 1] or [1]


def _group(target: Target, parts: int) -> int:
    """Most tiles at a time: their accumulators, a vector of weights per part and two more are in registers."""
    return min((target.registers - parts - 2) // parts, 16)


def _groups(tiles: int, most: int) -> list[int]:
    """Group sizes, nearly equal, as the kernel cuts a chunk."""
    sizes = []
    for left in range(-(-tiles // most), 0, -1):
        sizes.append(-(-tiles // left))
        tiles -= sizes[-1]
    return sizes


def _chunks(layer: Layer, n: int, parts: int, tiles: int) -> list[int]:
    """Chunks whose transformed values take a quarter of the second-level cache to twice it; all tiles; equal.

    All tiles at once leave the filters for threads to share: each transforms all inputs.
    """
    tile_bytes = 4 * n * n * (layer.channels + parts * layer.target.vector_floats)
    counts = {min(-(-tiles * tile_bytes // (layer.target.l2_bytes * share // 4)), tiles) for share in (1, 2, 4, 8)}
    return sorted({-(-tiles // count) for count in counts_for(layer.threads, counts, tiles) | {1}})


def _steps(layer: Layer, parts: int, chunk: int) -> tuple[int, int]:
    """Floats from one position to the next, inputs and results: an odd number of vectors, for all sets of the cache."""
    vl = layer.target.vector_floats
    return (-(-layer.channels // vl) * chunk | 1) * vl, (parts * chunk | 1) * vl


def transformed_weights(layer: Layer, m: int, height: int, ctx: Context) -> tuple[Floats, Floats]:
    """([parts, positions, channels, height] transformed weights, biases and as many zeros as a part has filters)."""
    filters, channels = len(layer.weights), layer.channels
    rows = np.minimum(np.arange(-(-filters // height) * height), filters - 1)  # the last part repeats the last filter
    matrix, kernels = weight_matrix(m, side(layer)), _kernels(layer)
    both = np.kron(matrix, matrix)
    panel = np.empty((len(rows) // height, len(both), channels, height), np.float32)
    for part, picked in zip(panel, rows.reshape(-1, height), strict=True):
        taps = kernels[picked].transpose(2, 1, 0)
        part[...] = (both @ taps.reshape(len(taps), -1).astype(np.float64)).reshape(part.shape)
    return panel, np.concatenate([biases(layer.node, ctx, filters)[rows], np.zeros(height, np.float32)])


def _fields(layer: Layer, tiles: Ints, choice: Choice, ctx: Context) -> dict[str, Any]:
    """Fields of the layer's struct, apart from its weights."""
    x, y = layer.x, layer.y
    assert y.plane
    dy, dx = corner(layer)
    v_step, m_step = _steps(layer, choice.height // layer.target.vector_floats, choice.chunk)
    residuals = [ctx.view(name) for name in operands(layer.node)]
    return {
        "tile": ctx.table("int32_t", np.concatenate([tiles, np.repeat(tiles[-1:], _AHEAD, axis=0)])),
        "own": "THREAD_SCRATCH", "tiles": len(tiles), "chunk": choice.chunk,
        "tap": dy * x.strides[2] + dx, "channels": layer.channels, "filters": len(layer.weights), "images": y.shape[0],
        "height": layer.rows, "width": layer.width, "v_step": v_step, "m_step": m_step, "row": y.strides[2],
        "in_image": x.strides[0], "in_plane": x.strides[1], "out_image": y.strides[0], "out_plane": y.strides[1],
        "head": y.plane.origin, "tail": y.plane.stride - y.plane.origin - layer.rows * y.plane.row,
    } | strides_of(residuals, res_image=0, res_plane=1)


def _epilogue(layer: Layer, m: int) -> Callable[[int, int], list[str]]:
    """Epilogue statements for the quads of every fourth filter from ``z`` on, in row ``i`` of the tile."""
    load = "v_load_quads(r{k} + {i} * row, res_at{k} + {z})" if m == 4 else "v_load_squares(r{k}, row, res_at{k} + {z})"
    count = range(len(operands(layer.node)))
    return lambda i, z: epilogue_code(layer.node.epilogue, "v_", [load.format(k=k, i=i, z=z) for k in count])


def _cycles(layer: Layer, m: int, n: int, parts: int, chunk: int, tiles: int) -> float:
    """The weights stream in beside the products, from memory for the first chunk; the transforms come on top."""
    target, positions, channels, height = layer.target, n * n, layer.channels, parts * layer.target.vector_floats
    blocks, vectors = -(-len(layer.weights) // height), -(-channels // target.vector_floats)
    chunks = -(-tiles // chunk)
    weight_bytes = 4.0 * positions * blocks * height * channels
    stream = weight_bytes * (1 / _rate(weight_bytes, target) + (chunks - 1) / stream_bytes(weight_bytes, target))
    products = 0.0
    for length, times in ((chunk, tiles // chunk), (tiles % chunk, 1)):
        for size in _groups(length, _group(target, parts)):
            per_channel = max(parts * size / FMA_PER_CYCLE, FMA_LATENCY, (parts + size) * BROADCAST_CYCLES)
            products += times * positions * blocks * (channels * per_channel + TILE_CYCLES + parts * size)
    inputs, results = layer.channels * layer.vectors, len(layer.weights) * layer.vectors
    total = max(1.08 * products, stream) + 0.15 * min(products, stream)
    total += shared_cycles(layer, chunks, weight_bytes, 4.0 * channels * layer.vectors * target.vector_floats)
    times = min(layer.threads, blocks) if chunks == 1 else 1  # that an input is transformed
    for size, (near, far), count in ((inputs, _INPUT_CYCLES[n], vectors * times),
                                     (results, _OUTPUT_CYCLES[m, n], blocks * parts)):
        total += tiles * count * (near if 4 * size * target.vector_floats <= 2 * target.l2_bytes else far)
    own_bytes = 4.0 * positions * chunk * channels
    if own_bytes > 4 * target.l2_bytes:  # every part of the filters fetches the transformed inputs from afar
        total += chunks * own_bytes * (blocks + 1) / _OWN_RATE
    if 4.0 * positions * chunk * height > _RESULT_SHARE * target.l2_bytes:  # they leave the cache and come back
        total += 2 * 4.0 * positions * tiles * blocks * height / _RESULT_RATE
    return total


def _rate(weight_bytes: float, target: Target) -> float:
    """Bytes per cycle of weights that the rest of the network may have driven out of the caches."""
    return _MEMORY_RATE if weight_bytes > target.l2_bytes else stream_bytes(weight_bytes, target)
