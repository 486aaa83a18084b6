"""Every failure ends in one clear message and an exit status, never in a traceback (but for ``--debug``)."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from blockpunch.errors import BlockpunchError

FAILED, INTERRUPTED = 1, 130
_kept: dict[Path, str] = {}


def keeps(what: str, path: Path) -> None:
    """From now on, an interrupted verb says that ``what`` is kept in ``path``, once that exists."""
    _kept[path] = what


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get("BLOCKPUNCH_DEBUG", "") not in ("", "0")


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a verb: turn exceptions into messages on standard error and an exit status."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _kept.clear()
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            # An interrupt that passed through exec() (modules that write code do) leaves a flag in CPython that would
            # end the process by the signal, whatever its exit status; the next exec() clears it.
            exec("")
            _complain(f"interrupted; {_what_is_kept()}")
            raise typer.Exit(INTERRUPTED) from None
        except BlockpunchError as error:
            _raise_again(error)
            _complain(str(error))
        except BrokenPipeError:
            # The reader of our output is gone ("| head"): point stdout at nothing, so that no flush fails at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            _raise_again(error)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            _complain(f"{error.filename or 'the system'}: {error.strerror or error}"
                      + ("\n  -> free some space; finished files are whole" if full else ""))
        except MemoryError as error:
            _raise_again(error)
            _complain("not enough memory\n  -> close other programs, or use a smaller batch or network")
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            _raise_again(error)
            if type(error).__module__.startswith(("typer.", "click.")):
                raise
            _complain(f"internal error: {type(error).__name__}: {error}\n  -> please report it with the output of "
                      "the same command under BLOCKPUNCH_DEBUG=1")
        raise typer.Exit(FAILED)

    return wrapper


def _what_is_kept() -> str:
    found = [f"{what} in {path}" for path, what in _kept.items() if path.exists()]
    return f"kept: {', '.join(found)}; the same command goes on from there" if found else "nothing was written"


def _raise_again(error: BaseException) -> None:
    if debugging():
        raise error


def _complain(text: str) -> None:
    sys.stdout.flush()
    print(f"blockpunch: {text}", file=sys.stderr, flush=True)
