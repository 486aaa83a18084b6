"""The forms of a convolution: the cost model compares all of them, for dense and for pruned layers alike."""

from __future__ import annotations

from blockpunch.compiler.forms.base import Form
from blockpunch.compiler.forms.filters import Filters
from blockpunch.compiler.forms.patterns import Patterns
from blockpunch.compiler.forms.pixels import Pixels
from blockpunch.compiler.forms.rows import Rows
from blockpunch.compiler.forms.winograd import Winograd
from blockpunch.compiler.forms.winograd_tiles import WinogradTiles

FORMS: dict[str, Form] = {form.name: form for form in (Pixels(), Rows(), Filters(), Patterns(), Winograd(),
                                                       WinogradTiles())}

__all__ = ["FORMS", "Form"]
