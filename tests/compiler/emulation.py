"""AVX-512 code on a CPU that has AVX2 alone: the compiler splits the vectors, and the instructions that have a name of
their own in the templates are plain C here. So what a machine without AVX-512 tests is the code for it, if not its
speed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from blockpunch.target import Target

_INSTRUCTIONS = """
#define LANES for (int l = 0; l < VL; l++)
static inline vf e_max(vf a, vf b) { vf r; LANES r[l] = a[l] > b[l] ? a[l] : b[l]; return r; }
static inline vf e_min(vf a, vf b) { vf r; LANES r[l] = a[l] < b[l] ? a[l] : b[l]; return r; }
static inline vf e_sqrt(vf a) { vf r; LANES r[l] = __builtin_sqrtf(a[l]); return r; }
static inline vf e_inverse(vf a) { vf r; LANES r[l] = 1.0f / a[l]; return r; }
static inline void e_store(float *p, unsigned mask, vf x) { LANES if (mask >> l & 1) p[l] = x[l]; }
static inline vi e_align(vi high, vi low, int n) {
  vi r;
  LANES r[l] = l + n < VL ? low[l + n] : high[l + n - VL];
  return r;
}
static inline vf e_fma(vf a, vf b, vf sum, unsigned mask) {
  LANES if (mask >> l & 1) sum[l] += a[l] * b[l];
  return sum;
}
static inline vi e_pick(vi index, vi x) { vi r; LANES r[l] = x[index[l] & (VL - 1)]; return r; }
static inline vf e_scale(vf a, vf b) { /* a * 2^floor(b), |b| < 1000 */
  vf r = a;
  LANES {
    int n = (int)__builtin_floorf(b[l]);
    for (; n > 0; n--) r[l] *= 2.0f;
    for (; n < 0; n++) r[l] *= 0.5f;
  }
  return r;
}
static inline vf e_nearer_zero(vf a, vf b) { /* the smaller magnitude, with the sign of a */
  vf r;
  LANES r[l] = __builtin_copysignf(__builtin_fabsf(b[l]) < __builtin_fabsf(a[l]) ? b[l] : a[l], a[l]);
  return r;
}
#define _mm512_max_ps(a, b) e_max((vf)(a), (vf)(b))
#define _mm512_min_ps(a, b) e_min((vf)(a), (vf)(b))
#define _mm512_sqrt_ps(a) e_sqrt((vf)(a))
#define _mm512_rcp14_ps(a) e_inverse((vf)(a))
#define _mm512_mask_storeu_ps(p, mask, x) e_store(p, mask, (vf)(x))
#define _mm512_alignr_epi32(high, low, n) e_align((vi)(high), (vi)(low), n)
#define _mm512_mask3_fmadd_ps(a, b, c, mask) e_fma((vf)(a), (vf)(b), (vf)(c), mask)
#define _mm512_permutexvar_ps(index, x) ((vf)e_pick((vi)(index), (vi)(x)))
#define _mm512_permutexvar_epi32(index, x) e_pick((vi)(index), (vi)(x))
#define _mm512_scalef_ps(a, b) e_scale((vf)(a), (vf)(b))
#define _mm512_range_ps(a, b, kind) e_nearer_zero((vf)(a), (vf)(b))
"""


def runs(target: Target) -> bool:
    """Whether code for ``target`` runs here, by itself or emulated."""
    return target.runs_here()[0] or emulated(target)


def emulated(target: Target) -> bool:
    """Whether it runs emulated."""
    return target.isa == "avx512" and not target.runs_here()[0] and Target.named("x86-64-v3").runs_here()[0]


EMULATED = ["x86-64-v4"] if emulated(Target.named("x86-64-v4")) else []
"""Names of the targets that run emulated, for tests beside the host's own; not for all, since split vectors take long
to compile."""


def translate(sources: Mapping[str, str], target: Target) -> tuple[dict[str, str], Target]:
    """The sources for AVX-512 such that a compiler for AVX2 takes them, and the target that it builds for."""
    after = "typedef float vf_any"
    found = {}
    for name, text in sources.items():
        if after in text:
            text = text.replace(after, _INSTRUCTIONS + after, 1)
            text = re.sub(r"#define HOLD\(x\).*", "#define HOLD(x)", text)
        found[name] = text
    return found, replace(target, cflags=("-march=x86-64-v3", "-Wno-psabi"))
