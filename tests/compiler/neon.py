"""Runs a 64-bit ARM shared object inside this process, on an emulated core: pip packages only, no ARM machine.

It loads a freestanding library (no libc, no threads) as a dynamic linker would, and calls its functions with arrays.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from blockpunch.compiler import toolchain
from blockpunch.target import Target

unicorn = pytest.importorskip("unicorn")
pytest.importorskip("elftools")

from elftools.elf.elffile import ELFFile  # noqa: E402
from unicorn import arm64_const as arm  # noqa: E402

PAGE = 4096
_IMAGE, _STACK, _HEAP = 0x1000_0000, 0x4000_0000, 0x1_0000_0000
_STACK_BYTES = 8 << 20
_RELATIVE, _GLOB_DAT, _JUMP_SLOT, _ABS64 = 1027, 1025, 1026, 257
_ARGUMENTS = [getattr(arm, f"UC_ARM64_REG_X{i}") for i in range(8)]

# Calls bp_model_run with a parallel_for that cuts the range into `ranges` parts and runs them one after the other.
_DRIVER = r"""
#include "bp_model.h"
static void split(void *pool, void (*task)(void *, int, int, int), void *arg, int n, int grain) {
  (void)grain;
  int ranges = *(int *)pool;
  for (int r = ranges; r-- > 0;) {
    int begin = (int)((int64_t)n * r / ranges), end = (int)((int64_t)n * (r + 1) / ranges);
    if (begin < end) task(arg, begin, end, r);
  }
}
BP_EXPORT void bp_emulate(const void *weights, void *scratch, const float *const *in, float *const *out, int ranges) {
  bp_env env = {split, &ranges, 0, 0};
  bp_model_run(weights, scratch, in, out, &env);
}
"""


class ArmLibrary:
    """An aarch64 shared object, loaded into an emulated core.

    Args:
        data: the file's bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._core = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        # Floating point and NEON trap until they are switched on, as on a real core at reset.
        self._core.reg_write(arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)
        self._core.mem_map(_STACK, _STACK_BYTES)
        self._heap = _HEAP
        self._symbols = self._load(ELFFile(io.BytesIO(data)))
        self._exit = self.allocate(4)  # where functions return to: never executed

    def allocate(self, size: int, align: int = 64) -> int:
        """Address of new, zeroed memory, with a page that may not be touched after it."""
        pages = -(-(size + align) // PAGE) * PAGE
        base = self._heap
        self._core.mem_map(base, pages)
        self._heap += pages + PAGE
        return base + (pages - size) // align * align  # at the end, so that writes beyond it fault

    def put(self, array: np.ndarray, align: int = 64) -> int:
        """Address of a copy of ``array``."""
        address = self.allocate(max(1, array.nbytes), align)
        self._core.mem_write(address, np.ascontiguousarray(array).tobytes())
        return address

    def get(self, address: int, shape: tuple[int, ...]) -> np.ndarray:
        """float32 array at ``address``."""
        data = bytes(self._core.mem_read(address, 4 * int(np.prod(shape))))
        return np.frombuffer(data, np.float32).reshape(shape)

    def call(self, function: str, *arguments: int) -> int:
        """Call an exported function with up to 8 integers or addresses; its integer result."""
        for register, value in zip(_ARGUMENTS, arguments, strict=False):
            self._core.reg_write(register, value & 0xFFFF_FFFF_FFFF_FFFF)
        self._core.reg_write(arm.UC_ARM64_REG_SP, _STACK + _STACK_BYTES - 64)
        self._core.reg_write(arm.UC_ARM64_REG_LR, self._exit)
        try:
            self._core.emu_start(self._symbols[function], self._exit)
        except unicorn.UcError as error:
            at = self._core.reg_read(arm.UC_ARM64_REG_PC) - _IMAGE
            raise AssertionError(f"{function} stopped at {at:#x}: {error}") from error
        return int(self._core.reg_read(arm.UC_ARM64_REG_X0))

    def _load(self, elf: ELFFile) -> dict[str, int]:
        assert elf["e_machine"] == "EM_AARCH64"
        segments = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
        end = max(segment["p_vaddr"] + segment["p_memsz"] for segment in segments)
        self._core.mem_map(_IMAGE, -(-end // PAGE) * PAGE)
        for segment in segments:
            self._core.mem_write(_IMAGE + segment["p_vaddr"], segment.data())
        table = elf.get_section_by_name(".dynsym")
        symbols = {symbol.name: _IMAGE + symbol["st_value"] for symbol in table.iter_symbols()
                   if symbol.name and symbol["st_shndx"] != "SHN_UNDEF"}
        for section in elf.iter_sections():
            if section["sh_type"] == "SHT_RELA":
                for entry in section.iter_relocations():
                    self._relocate(entry, table.get_symbol(entry["r_info_sym"]).name, symbols)
        return symbols

    def _relocate(self, entry: Mapping[str, int], name: str, symbols: dict[str, int]) -> None:
        kind = entry["r_info_type"]
        if kind == _RELATIVE:
            value = _IMAGE + entry["r_addend"]
        elif kind in (_GLOB_DAT, _JUMP_SLOT, _ABS64):
            assert name in symbols, f"the library needs '{name}' from outside"
            value = symbols[name] + entry["r_addend"]
        else:
            raise AssertionError(f"relocation of kind {kind}")
        self._core.mem_write(_IMAGE + entry["r_offset"], value.to_bytes(8, "little"))


def build(sources: Mapping[str, str], target: Target | str = "aarch64") -> ArmLibrary:
    """Build C for an ARM core with ziglang and load it."""
    pytest.importorskip("ziglang")
    target = Target.named(target) if isinstance(target, str) else target
    compiler = toolchain.find_compiler(target)
    return ArmLibrary(compiler.build_shared({**toolchain.model_header(), **sources}, target, freestanding=True))


def run_model(sources: Mapping[str, str], weights: bytes, scratch_bytes: int, inputs: Sequence[np.ndarray],
              output_shapes: Sequence[tuple[int, ...]], *, target: Target | str = "aarch64",
              ranges: int = 1) -> list[np.ndarray]:
    """Run a generated network (it keeps to ``bp_model.h``) on the emulated core.

    Args:
        sources: the generated C.
        weights: the packed weights.
        scratch_bytes: scratch memory that the network asks for; filled with NaN, so that nothing rests on zeros.
        inputs: float32 arrays, in order.
        output_shapes: shapes of the outputs, in order.
        target: an aarch64 target.
        ranges: into how many parts each parallel_for is cut.
    """
    library = build({**sources, "bp_driver.c": _DRIVER}, target)
    scratch = library.put(np.full(max(16, -(-scratch_bytes // 4)), np.nan, np.float32))
    outs = [library.allocate(4 * int(np.prod(shape)), align=4) for shape in output_shapes]
    ins = [library.put(np.asarray(array, np.float32), align=4) for array in inputs]
    pointers = [library.put(np.array(addresses, np.uint64)) for addresses in (ins, outs)]
    library.call("bp_emulate", library.put(np.frombuffer(weights, np.uint8)), scratch, *pointers, ranges)
    return [library.get(address, shape) for address, shape in zip(outs, output_shapes, strict=True)]
