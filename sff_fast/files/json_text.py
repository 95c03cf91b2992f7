"""JSON that other programs read too: no NaN, no key twice; written whole or not at all."""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sff_fast.errors import ArgumentError, DataError, SffFastError

from .atomic import atomic_write
from .disk import one_line, reason


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write an object as JSON, atomically.

    Args:
        path: The file to write.
        obj: Dictionaries with string keys, lists, tuples, strings, finite numbers, booleans and None; NumPy scalars and
            arrays and paths are converted.

    Raises:
        ArgumentError: The object holds something that JSON cannot: NaN, infinity, a tensor, a key that is not a string.
            The message says where.
        OutputError: The file cannot be written.
    """
    text = json.dumps(_plain(obj, "the value"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        # A lone surrogate, such as os.fsdecode gives for a file name that is not UTF-8: JSON can hold it escaped.
        data = (json.dumps(_plain(obj, "the value"), indent=2, allow_nan=False) + "\n").encode("ascii")
    with atomic_write(path) as file:
        file.write(data)


def read_json(path: str | os.PathLike[str], error: type[SffFastError] = DataError) -> Any:
    """Read a JSON file, strictly: UTF-8, no NaN or infinity, no duplicate keys.

    Args:
        path: The file to read.
        error: The exception to raise for a file that cannot be used.

    Returns:
        The parsed value.

    Raises:
        SffFastError: Of the type ``error``: the file is missing, unreadable or no valid JSON.
    """
    name = repr(os.fspath(path))
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as cause:
        raise error(f"cannot read the file {name}: {reason(cause)}") from cause
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()  # "utf-8-sig" would be a module to load, from a disk that may be full
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as cause:
        raise error(f"{name} is not valid JSON (line {cause.lineno}, column {cause.colno}: {cause.msg})") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{name} is not valid JSON (byte {cause.start} is not UTF-8)") from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{name} is not valid JSON ({one_line(cause)})") from cause


def _plain(obj: Any, where: str) -> Any:
    """Convert an object to what JSON holds, or say which part of it JSON cannot hold."""
    if obj is None or isinstance(obj, (bool, str)):
        return obj
    if isinstance(obj, np.generic):
        return _plain(obj.item(), where)
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        if not math.isfinite(obj):
            raise ArgumentError(f"{where} is {obj}, which JSON cannot hold: use None")
        return float(obj)
    if isinstance(obj, os.PathLike):
        return os.fsdecode(os.fspath(obj))
    if isinstance(obj, np.ndarray):
        return _plain(obj.tolist(), where)
    if isinstance(obj, Mapping):
        for key in obj:
            if not isinstance(key, str):
                raise ArgumentError(f"{where} has the key {key!r} of type {type(key).__name__}: JSON keys are strings")
        return {key: _plain(value, f"{where}[{key!r}]") for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value, f"{where}[{index}]") for index, value in enumerate(obj)]
    raise ArgumentError(f"{where} is a {type(obj).__name__}, which JSON cannot hold: convert it first")


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"it holds {text}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice")
    return result
