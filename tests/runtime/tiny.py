"""A hand-written network that keeps to bp_model.h: scaled = 2 x + w, and total = the sum of x, on [3, 50] floats."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import numpy as np

from blockpunch.artifact import Artifact
from blockpunch.compiler import toolchain
from blockpunch.target import Target

SHAPE = (3, 50)
WEIGHTS = np.arange(150, dtype=np.float32).reshape(SHAPE)

SOURCE = r"""
#include "bp_model.h"
#define N 150
static const bp_tensor inputs[] = {{"x", 2, {3, 50}}};
static const bp_tensor outputs[] = {{"scaled", 2, {3, 50}}, {"total", 1, {1}}};
const bp_model bp_model_info = {BP_MODEL_ABI, "tiny", 1, 2, inputs, outputs,
  N * sizeof(float), N * sizeof(float), 2, 64, 0};
typedef struct { const float *x, *w; float *y; } args;
static void twice(void *arg, int begin, int end, int thread) {
  (void)thread;
  args *a = arg;
  for (int i = begin; i < end; i++) a->y[i] = 2 * a->x[i];
}
static void add(void *arg, int begin, int end, int thread) {
  (void)thread;
  args *a = arg;
  for (int i = begin; i < end; i++) a->y[i] = a->x[i] + a->w[i];
}
void bp_model_run(const void *weights, void *scratch, const float *const *in, float *const *out, const bp_env *env) {
  args first = {in[0], 0, scratch};
  env->parallel_for(env->pool, twice, &first, N, 1);
  if (env->tick) env->tick(env->tick_arg, 0);
  args second = {scratch, weights, out[0]};
  env->parallel_for(env->pool, add, &second, N, 1);
  float sum = 0;
  for (int i = 0; i < N; i++) sum += in[0][i];
  out[1][0] = sum;
  if (env->tick) env->tick(env->tick_arg, 1);
}
"""


def step(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, kind="elementwise", path=f"net.{name}", macs=150, kept_macs=75, weight_bytes=600,
                           packing="dense", reason="a test")


def program() -> SimpleNamespace:
    """What compile_graph would return."""
    return SimpleNamespace(name="tiny", source={"model.c": SOURCE}, weights=WEIGHTS.tobytes(), scratch_bytes=600,
                           inputs=[("x", SHAPE)], outputs=[("scaled", SHAPE), ("total", (1,))],
                           steps=[step("twice"), step("add")])


def expected(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return 2 * x + WEIGHTS, x.sum(keepdims=True).reshape(1)


@lru_cache(maxsize=4)
def artifact(target: Target | None = None, build: bool = True) -> Artifact:
    target = target or Target.host()
    runtime = toolchain.runtime_sources()
    made = toolchain.find_compiler(target).build({"model.c": SOURCE, **runtime}, target, flags=("-Wall", "-Wextra")) \
        if build else None
    return Artifact.from_program(program(), target, runtime, made)  # type: ignore[arg-type]


def sample(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
