"""Numbers from somebody's program, in whatever it keeps them, as arrays that can be computed with."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from system.errors import RunError

Array = NDArray[Any]


class InputError(RunError, ValueError):
    """Numbers that can't be used; the text is one line that says what was given and what is expected."""


class NotFittedError(InputError, AttributeError):
    """A question before `fit`; a ValueError and an AttributeError, as scikit-learn's is."""


def as_columns(values: Any, name: str, columns: int) -> Array:
    """`values` as float64 [N, `columns`]; raises `InputError` for anything but finite numbers of this shape."""
    numbers = as_numbers(values, name)
    if not numbers.size:
        return np.empty((0, columns))
    shaped = numbers[:, None] if columns == 1 and numbers.ndim == 1 else numbers
    if shaped.ndim != 2 or shaped.shape[1] != columns:
        expected = "[N] or [N, 1]" if columns == 1 else f"[N, {columns}]"
        raise InputError(f"{name} has a shape that can't be used (got {list(numbers.shape)}; expected {expected})")
    for row, column in np.argwhere(~np.isfinite(shaped))[:1].tolist():
        raise InputError(f"{name} can't be used (got {shaped[row, column]} in row {row}; expected finite numbers)")
    return shaped


def as_numbers(values: Any, name: str) -> Array:
    """An array-like of numbers as float64, NaN where one is masked; raises `InputError` for words, dates, booleans and None."""
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            values = (values.double() if values.is_floating_point() else values).numpy()
        array = np.ma.asarray(values) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
        items = array.ravel().tolist() if array.dtype.kind == "O" else _booleans(values)
        others = [item for item in items if not isinstance(item, Real) or isinstance(item, bool)]
        if array.dtype.kind in "iufO" and not others:
            return np.ma.filled(array.astype(float), np.nan)
        got = type(others[0]).__name__ if others else "text" if array.dtype.kind in "US" else str(array.dtype)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        got = " ".join(str(error).split())[:100]
    raise InputError(f"{name} is no array of numbers (got {got}; expected integers or floats)")


def _booleans(values: Any) -> Iterator[Any]:
    """Those in nested lists and tuples: beside numbers, numpy takes a boolean for one."""
    if isinstance(values, list | tuple):
        yield from (one for value in values for one in _booleans(value))
    elif isinstance(values, bool | np.bool_):
        yield bool(values)


def each(tasks: Any, name: str) -> list[Any]:
    """The arrays of several tasks; raises `InputError` for what is no sequence."""
    try:
        return list(tasks)
    except TypeError:
        raise InputError(f"{name} is no sequence (got {type(tasks).__name__}; expected an array for each task)") from None


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, numpy's too, and no boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_lengths(x: Array, y: Array) -> None:
    """Raise `InputError` for points whose inputs and targets differ in number."""
    if len(x) != len(y):
        raise InputError(f"x and y differ in length (got {len(x)} and {len(y)}; expected as many)")


def finite_curves(curves: Array) -> Array:
    """Those of the sampled curves [M, N] that are finite."""
    return curves[np.isfinite(curves).all(1)]
