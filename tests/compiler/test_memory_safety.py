"""Generated C under the address and undefined-behaviour sanitizers, with every array of exactly its size."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import conv_cases
import numpy as np
import other_cases
import pytest
from harness import Bundle, differences, fused
from random_cases import network
from test_sides import no_gaps, rests

import blockpunch.compiler as compiler
from blockpunch.compiler import compile_graph, schedule, toolchain
from blockpunch.graph import interpreter
from blockpunch.target import Target

# Reads weights and inputs from files, runs with scratch memory full of NaN, and writes the outputs to a file.
DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "bp_model.h"
static void split(void *pool, void (*task)(void *, int, int, int), void *arg, int n) {
  int ranges = *(int *)pool;
  for (int r = ranges; r-- > 0;) {
    int begin = (int)((int64_t)n * r / ranges), end = (int)((int64_t)n * (r + 1) / ranges);
    if (begin < end) task(arg, begin, end, r);
  }
}
/* exactly `bytes` that may be touched, `shift` bytes past what malloc gives */
static char *take(FILE *file, size_t bytes, size_t align, size_t shift) {
  char *p = align > 16 ? aligned_alloc(align, bytes) : malloc(bytes + shift);
  if (!p || (file && fread(p + shift, 1, bytes, file) != bytes)) exit(3);
  if (!file) memset(p + shift, 0xff, bytes);
  return p + shift;
}
static size_t size_of(const bp_tensor *t) {
  size_t n = sizeof(float);
  for (int d = 0; d < t->rank; d++) n *= (size_t)t->shape[d];
  return n;
}
int main(int argc, char **argv) {
  const bp_model *m = &bp_model_info;
  if (argc != 5 || m->abi != BP_MODEL_ABI) return 2;
  int ranges = atoi(argv[4]);
  FILE *weights_file = fopen(argv[1], "rb"), *in_file = fopen(argv[2], "rb"), *out_file = fopen(argv[3], "wb");
  void *weights = take(weights_file, m->weights_bytes, 64, 0);
  void *scratch = take(NULL, m->scratch_bytes + (size_t)ranges * m->thread_scratch_bytes, 64, 0);
  const float *in[64];
  float *out[256];
  for (int i = 0; i < m->n_inputs; i++) in[i] = (float *)take(in_file, size_of(m->inputs + i), 0, 4);
  for (int i = 0; i < m->n_outputs; i++) out[i] = (float *)take(NULL, size_of(m->outputs + i), 0, 4);
  bp_env env = {split, &ranges, 0, 0};
  bp_model_run(weights, scratch, in, out, &env);
  for (int i = 0; i < m->n_outputs; i++) fwrite(out[i], 1, size_of(m->outputs + i), out_file);
  for (int i = 0; i < m->n_inputs; i++) free((char *)in[i] - 4);
  for (int i = 0; i < m->n_outputs; i++) free((char *)out[i] - 4);
  free(weights);
  free(scratch);
  return fclose(weights_file) + fclose(in_file) + fclose(out_file);
}
"""

def winograd() -> Bundle:
    """Tiles that hang over the edges of maps, with and without margins, operands, and several images."""
    b = Bundle(73)
    for n, c, h, w, f, pad in ((2, 18, 7, 9, 35, 1), (1, 5, 13, 11, 6, 0), (1, 3, 4, 2, 9, 1)):
        size = (n, f, h + 2 * pad - 2, w + 2 * pad - 2)
        y = b.conv(b.value(n, c, h, w), b.weights(f, c, 3, 3), pads=(pad,) * 4, epilogue=[fused("Add", 3)],
                   operands=[b.value(*size)])
        b.output(y, b.conv(y, b.weights(4, f, 3, 3), pads=(1, 1, 1, 1)))
    for side, stride, pad in ((4, 1, 0), (5, 1, 2), (7, 1, 3), (7, 2, 3)):
        b.output(b.conv(b.value(1, 5, 15, 13), b.weights(9, 5, side, side), stride=(stride,) * 2, pads=(pad,) * 4))
    return b


def tiles() -> Bundle:
    """Blocks of 16 x 16 pixels that hang over the edges of maps, with and without margins, operands, two images."""
    b = Bundle(74)
    for n, c, h, w, f, pad in ((2, 5, 19, 33, 11, 1), (1, 3, 18, 18, 25, 0)):
        size = (n, f, h + 2 * pad - 2, w + 2 * pad - 2)
        y = b.conv(b.value(n, c, h, w), b.weights(f, c, 3, 3), pads=(pad,) * 4, epilogue=[fused("Add", 3)],
                   operands=[b.value(*size)])
        b.output(y, b.conv(y, b.weights(4, f, 3, 3), pads=(1, 1, 1, 1)))
    return b


CASES: list[tuple[str, Callable[[], Bundle], str]] = [
    ("convolutions", conv_cases.conv_kernels, "x86-64-v4"), ("maps", conv_cases.conv_maps, "x86-64-v3"),
    ("depthwise", conv_cases.depthwise, "x86-64-v4"), ("depthwise, narrow", conv_cases.depthwise, "x86-64-v3"),
    ("zeros", conv_cases.zeros, "x86-64"),
    ("linear", conv_cases.linear, "x86-64-v3"), ("windows", other_cases.windows, "x86-64-v4"),
    ("concats", other_cases.concats, "x86-64-v3"), ("movement", other_cases.movement, "x86-64-v4"),
    ("network", lambda: network(5, 40), "x86-64-v3"), ("filters along vectors", conv_cases.layers, "x86-64-v4"),
    ("filters along vectors, narrow", conv_cases.layers, "x86-64-v3"), ("winograd", winograd, "x86-64-v4"),
    ("winograd, narrow", winograd, "x86-64-v3"), ("winograd, tiles along vectors", tiles, "x86-64-v4"),
    ("kernel patterns", conv_cases.patterns, "x86-64-v4"),
    ("kernel patterns, narrow", conv_cases.patterns, "x86-64-v3"),
    ("no gaps between rows", rests, "x86-64-v4"),
    ("no gaps between rows, narrow", rests, "x86-64-v3"),
]
FORM_OF = {conv_cases.layers: "filters", conv_cases.patterns: "patterns", winograd: "winograd",
           tiles: "winograd-tiles"}


@pytest.mark.parametrize(("bundle", "target"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_nothing_outside_its_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Callable[[], Bundle],
                                    target: str) -> None:
    chosen = Target.named(target)
    cc = toolchain.find_compiler(chosen)
    if cc.kind == "zig" or not chosen.runs_here()[0]:
        pytest.skip("needs sanitizers, which zig lacks, and a CPU that runs the code")
    b = bundle()
    monkeypatch.setattr(schedule, "_WORST", 1e9)
    if bundle is rests:
        monkeypatch.setattr(compiler, "lay_out", no_gaps)
    options = compile_graph(b.graph, chosen, threads_hint=2).options
    other = {name: next((c for c in item.choices if c.form == FORM_OF.get(bundle)), item.choices[0])
             for name, item in options.items()}
    program = compile_graph(b.graph, chosen, threads_hint=2, choices=other)
    sources = {**program.source, **toolchain.model_header(), "main.c": DRIVER}
    binary = tmp_path / "run"
    binary.write_bytes(cc.build_executable(sources, chosen, sanitize=True, flags=("-O0",)))
    binary.chmod(0o755)
    inputs = b.sample()
    (tmp_path / "weights").write_bytes(program.weights)
    (tmp_path / "in").write_bytes(b"".join(array.tobytes() for array in inputs))
    done = subprocess.run([binary, "weights", "in", "out", "3"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:6000]
    assert "runtime error" not in done.stderr
    expected = list(interpreter.run(b.graph, inputs).values())
    flat = np.fromfile(tmp_path / "out", np.float32)
    parts = np.split(flat, np.cumsum([array.size for array in expected]))[:-1]
    found = [part.reshape(array.shape) for part, array in zip(parts, expected, strict=True)]
    wrong = {name: error for name, error in differences(b.graph, found, expected).items() if error > 1e-4}
    assert not wrong
