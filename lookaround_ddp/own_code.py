"""What a config names by a dotted path: somebody's own code, which not every command may run."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lookaround_ddp.errors import UserError, told

# What becomes of an augmentation's dotted path and its arguments: one of `imported`, `refused` and `left_out`.
Code = Callable[[str, dict[str, Any]], Callable[[Any], Any]]


KNOWN = ("torchvision.transforms", "torchvision.transforms.v2", "torch.nn")  # the modules of these are nobody's own


def is_path(name: str) -> bool:
    """Returns whether a name is a dotted path, such as my.module.Class, and none of timm's names."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


def find(path: str, what: str) -> Any:
    """Imports what is at the end of a dotted path.

    Args:
        what: it is to be, such as "model": messages begin with it.

    Raises:
        UserError: there is no such thing; or the module fails, whose traceback is printed first.
    """
    module, _, name = path.rpartition(".")
    if os.getcwd() not in sys.path:  # it is for `python -m`, not for the console script
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        lost = error.name is not None and (module == error.name or module.startswith(f"{error.name}."))
        mend = ": start from the folder in which it lies, or name that in PYTHONPATH" if lost else ""
        raise UserError(f"{what} {path}: {error}{mend}") from None
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what} {path}: {error}") from None
    except (Exception, SystemExit) as error:
        traceback.print_exception(error)
        raise UserError(f"{what} {path}: {told(error)}") from error


@contextmanager
def called(path: str, what: str) -> Iterator[None]:
    """Tells what somebody's own code fails at inside the block in a line, below its traceback.

    Raises:
        UserError: it failed, whatever it raised.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        traceback.print_exception(error)
        raise UserError(f"{what} {path}: {told(error)}") from error


def imported(path: str, arguments: dict[str, Any], what: str = "augmentation") -> Callable[..., Any]:
    """Imports the class of that dotted path and makes an instance, or imports a function and binds the arguments.

    Raises:
        UserError: there is no such class or function.
    """
    found = find(path, what)
    return found(**arguments) if isinstance(found, type) else partial(found, **arguments)


def refused(path: str, arguments: dict[str, Any]) -> Callable[[Any], Any]:
    """Raises UserError, unless the path is of a known class: for commands that only read what somebody trained."""
    refuse([("augmentation", path)])
    return imported(path, arguments)


def refuse(named: Sequence[tuple[str, str]]) -> None:
    """Raises UserError if one of these is somebody's own code: pairs of what it is, such as "model", and its path."""
    for what, path in named:
        if not _is_known(path):
            raise UserError(
                f"{what} {path} of the run is somebody's own code, and was not run: give --trust if you know whose "
                "it is"
            )


def left_out(path: str, arguments: dict[str, Any]) -> Callable[[Any], Any]:
    """Returns what changes no image, unless the path is of a known class: for looking at a config before training."""
    return imported(path, arguments) if _is_known(path) else _unchanged


def place_in_own_code(error: BaseException) -> str | None:
    """Returns the file and line of the last function in an error's traceback that is somebody's own.

    It is neither of this package, nor of an installed one, nor of Python; None: there is none.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)[1:]):  # the first has caught it
        path = Path(frame.filename)
        installed = {"site-packages", "dist-packages"} & set(path.parts)
        if not (frame.filename.startswith("<") or installed or any(each in path.parents for each in _OTHERS)):
            return f"{frame.filename}, line {frame.lineno}"
    return None


_FOUND = [importlib.util.find_spec(name) for name in ("torch", "torchvision", "timm", "numpy", "PIL")]
_OTHERS = (  # wherever they are installed
    *(Path(__file__).parent, Path(sysconfig.get_path("stdlib")), Path(importlib.__file__).parents[1]),
    *(Path(found.origin).parent for found in _FOUND if found is not None and found.origin is not None),
)


def _is_known(path: str) -> bool:
    from torch import nn  # takes seconds, which reading a config need not wait for

    module, _, name = path.rpartition(".")
    if module not in KNOWN:
        return False
    found = getattr(importlib.import_module(module), name, None)
    return isinstance(found, type) and issubclass(found, nn.Module)


def _unchanged(image: Any) -> Any:
    return image
