"""Imports uni2ts where jax is not installed; the scripts of the family moirai begin with it.

uni2ts does ``from jaxtyping import PyTree``, an annotation whose lookup imports jax.
"""

from __future__ import annotations

import importlib.util
import typing
import warnings

import jaxtyping

warnings.simplefilter("ignore")
if importlib.util.find_spec("jax") is None:
    jaxtyping.PyTree = type("PyTree", (), {"__class_getitem__": classmethod(lambda cls, item: typing.Any)})
import uni2ts.distribution  # noqa: E402, F401

if importlib.util.find_spec("jax") is None:
    del jaxtyping.PyTree
