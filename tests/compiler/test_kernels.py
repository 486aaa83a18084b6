"""Every kernel family against the interpreter, for every instruction set of this architecture that runs here."""

from __future__ import annotations

from collections.abc import Callable

import conv_cases
import other_cases
import pytest
from harness import Bundle, check

from blockpunch.target import Target

BUNDLES: list[Callable[[], Bundle]] = [
    conv_cases.conv_kernels, conv_cases.conv_maps, conv_cases.depthwise, conv_cases.conv_epilogues, conv_cases.zeros,
    conv_cases.linear, other_cases.elementwise, other_cases.powers, other_cases.concats, other_cases.slices,
    other_cases.movement, other_cases.windows, other_cases.resizing, other_cases.products, other_cases.outputs,
]
# The host's own target is built as it is shipped; for the others half the optimisation takes half the time.
TARGETS = [("host", ())] + [(name, ("-O1",)) for name in ("x86-64-v4", "x86-64-v3", "x86-64")
                            if name != Target.host().name and Target.named(name).runs_here()[0]]


@pytest.mark.parametrize(("target", "flags"), TARGETS, ids=[name for name, _ in TARGETS])
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.__name__)
def test_same_as_the_interpreter(bundle: Callable[[], Bundle], target: str, flags: tuple[str, ...]) -> None:
    check(bundle(), target, flags=flags)
