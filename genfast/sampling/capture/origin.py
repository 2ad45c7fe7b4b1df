"""Where in the user's code an operation comes from: read off the Python stack while it runs."""

import ast
import linecache
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import nn

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parents[1])
Names = dict[int, str]
Result = TypeVar("Result")


def call_user(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call the user's code: what lies above this frame on the stack is not the user's forward."""
    return function(*args, **kwargs)


def name_modules(model: nn.Module) -> Names:
    """The path of every submodule, by its id."""
    return {id(module): path for path, module in model.named_modules()}


def user_line(what: str, names: Names) -> str:
    """Describe the running operation: `what`, the module it runs in, and the user's source line.

    The line is the innermost one that is neither torch's nor of this package's pipeline.
    """
    path, line = None, None
    for frame in _frames():
        if path is None:
            path = _module_path(frame, names)
        if line is None and not _is_library(frame):
            line = frame
        if path is not None and line is not None:
            break
    where = what
    if path:
        where += f" in {path}"
    if line is not None:
        at = f"{line.f_code.co_filename}:{line.f_lineno}, {line.f_code.co_name}"
        where += f" ({at}: {_source(line)})"
    return where


def is_assertion() -> bool:
    """Whether the running operation serves an `assert` of the user, and nothing after it."""
    for frame in _frames():
        if not _is_library(frame):
            where = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
            line, last_line, column, last_column = (each or 0 for each in where)
            return any(
                start <= (line, column) and (last_line, last_column) <= end
                for start, end in _assertions("".join(linecache.getlines(frame.f_code.co_filename)))
            )
    return False


@lru_cache(maxsize=8)
def _assertions(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """First and last line and column of each `assert` that gives no name to what it looks at."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    return [
        ((each.lineno, each.col_offset), (each.end_lineno or 0, each.end_col_offset or 0))
        for each in ast.walk(tree)
        if isinstance(each, ast.Assert)
        and not any(isinstance(part, ast.NamedExpr) for part in ast.walk(each))
    ]


def _frames() -> Iterator[FrameType]:
    """The frames of the user's forward, innermost first, with the library frames in between."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not call_user.__code__:
        yield frame
        frame = frame.f_back


def _is_library(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith((_TORCH, _OURS))


def _module_path(frame: FrameType, names: Names) -> str | None:
    if frame.f_code.co_argcount == 0 or "self" not in frame.f_code.co_varnames[:1]:
        return None
    return names.get(id(frame.f_locals.get("self")))


def _source(frame: FrameType) -> str:
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
