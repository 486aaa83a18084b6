"""The ARM emulation that the kernel tests rest on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "runtime"))

import neon
import tiny

NEON = r"""
#include <arm_neon.h>
#include <stddef.h>
#define EXPORT __attribute__((visibility("default")))
static float table[] = {1, 2, 3, 4};
static float *indirect = table + 1;  /* a relocation */
EXPORT long fma4(const float *a, const float *b, float *y, int n) {
  for (int i = 0; i < n; i += 4) vst1q_f32(y + i, vfmaq_laneq_f32(vld1q_f32(y + i), vld1q_f32(a + i), vld1q_f32(b), 1));
  return n / 4;
}
EXPORT void clear(float *y, int n) { for (int i = 0; i < n; i++) y[i] = 0; }
typedef struct { float v[512]; } large;
EXPORT void move(large *y, const large *x) { *y = *x; }
EXPORT long second(void) { return (long)*indirect; }
EXPORT void outside(float *y, int n) { y[n] = 1; }
"""


@pytest.fixture(scope="module")
def library() -> neon.ArmLibrary:
    return neon.build({"k.c": NEON})


def test_neon_arithmetic(library: neon.ArmLibrary) -> None:
    rng = np.random.default_rng(1)
    a, y = (rng.normal(size=64).astype(np.float32) for _ in range(2))
    b = np.array([9, 0.5, 9, 9], np.float32)
    at = library.put(y)
    assert library.call("fma4", library.put(a), library.put(b), at, 64) == 16
    np.testing.assert_allclose(library.get(at, (64,)), y + a * np.float32(0.5), rtol=1e-6)


def test_what_compilers_call_is_there(library: neon.ArmLibrary) -> None:
    x = np.arange(512, dtype=np.float32)
    at = library.put(np.ones(512, np.float32))
    library.call("move", at, library.put(x))
    np.testing.assert_array_equal(library.get(at, (512,)), x)
    library.call("clear", at, 511)
    assert library.get(at, (512,)).tolist() == [0.0] * 511 + [511.0]
    assert library.call("second") == 2


def test_a_write_outside_is_found(library: neon.ArmLibrary) -> None:
    with pytest.raises(AssertionError, match="outside stopped"):
        library.call("outside", library.allocate(64), 16)


@pytest.mark.parametrize(("target", "ranges"),
                         [("aarch64", 1), ("cortex-a76", 3), ("cortex-a55", 1), ("neoverse-n1", 1)])
def test_a_network(target: str, ranges: int) -> None:
    x = tiny.sample()
    scaled, total = neon.run_model({"model.c": tiny.SOURCE}, tiny.WEIGHTS.tobytes(), 600, [x], [tiny.SHAPE, (1,)],
                                   target=target, ranges=ranges)
    np.testing.assert_array_equal(scaled, 2 * x + tiny.WEIGHTS)
    np.testing.assert_allclose(total, [x.sum()], rtol=1e-4, atol=1e-4)
