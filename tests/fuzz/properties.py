"""Properties of the Python layer for inputs that hypothesis makes: loader, masks, splits, factors by pattern, plans, states.

``python tests/fuzz/properties.py --seconds 60 --seed 1`` goes round them with new examples until the time is over; the examples
depend on the seed alone. tests/test_fuzz.py runs each a few times in the fast suite.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import io
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import torch
from hypothesis import HealthCheck, assume, seed, settings
from hypothesis import strategies as st

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import sff_fast
from sff_fast.data.masks import hide_patches
from sff_fast.data.split import split_borders
from sff_fast.data.windows import WindowSet
from sff_fast.errors import ArgumentError, DataError
from sff_fast.factors import match_factors, parse_factors
from sff_fast.training.state import join_tensors, split_tensors

SCRATCH = Path(tempfile.mkdtemp(prefix="sff-properties-"))
SEEDS = st.integers(0, 2**64 - 1)
NUMBERS = st.floats(-1e99, 1e99)  # beyond is refused: too large to compute with


def given(*arguments: Any, **named: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Notes of which inputs a property holds; it stays a function, so that :func:`run` can try it again and again."""

    def mark(function: Callable[..., None]) -> Callable[..., None]:
        function.inputs = arguments, named
        return function

    return mark


# ---------------------------------------------------------------------- loader
@st.composite
def csv_files(draw) -> tuple[bytes, np.ndarray]:
    """A table as somebody may write it, and its numbers."""
    rows, columns = draw(st.integers(2, 12)), draw(st.integers(1, 4))
    numbers = st.one_of(NUMBERS, st.integers(-(10**6), 10**6).map(float))
    values = np.array([[draw(numbers) for _ in range(columns)] for _ in range(rows)])
    separator = draw(st.sampled_from(",;\t|")) if columns > 1 else ","
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=draw(st.sampled_from(["\n", "\r\n"])))
    writer.writerow([f"{draw(st.sampled_from(['c', 'ä b', 'x.y', '温度']))}{i}" for i in range(columns)])
    form = draw(st.sampled_from([repr, "{:.17e}".format, "{:+.17g}".format]))
    for row in values:
        writer.writerow([form(float(value)) for value in row])
    return text.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))), values


@given(csv_files())
def a_table_is_read_to_the_last_bit(case):
    data, values = case
    path = SCRATCH / "t.csv"
    path.write_bytes(data)
    try:
        found = sff_fast.read_table(path).values
    except DataError as error:
        if "date" not in str(error) and "time stamp" not in str(error):  # numbers that may be years, in a column of their own
            raise
        return
    if found.shape != values.shape:  # a first column that counts the rows is none of the data, and said to be so
        found, values = found, values[:, 1:]
    assert np.array_equal(found, values)


@given(
    rows=st.integers(1, 400),
    shares=st.tuples(st.integers(1, 98), st.integers(1, 98)),
    context=st.integers(1, 60),
    horizon=st.integers(0, 30),
)
def a_split_puts_every_row_into_one_part(rows, shares, context, horizon):
    train, val = shares
    assume(train + val < 100)
    shares = (train / 100, val / 100, (100 - train - val) / 100)
    try:
        borders = split_borders(rows, shares, context, horizon)
    except DataError:
        parts = int(rows * shares[0]), rows - int(rows * shares[0]) - int(rows * shares[2]), int(rows * shares[2])
        # The first part has no rows before it, the others have the context of their first window there.
        assert parts[0] < context + max(horizon, 1) or min(parts) < max(horizon, 1) or horizon == 0
        return
    assert borders.train[0] == 0
    assert borders.val[0] + context == borders.train[1]
    assert borders.test[0] + context == borders.val[1]
    assert borders.test[1] == rows


@given(st.data())
def every_window_is_a_slice_of_the_series(data):
    rows, channels = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 4))
    context, horizon, stride = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 6)), data.draw(st.integers(1, 5))
    begin = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(begin + 1, rows))
    independent = data.draw(st.booleans())
    table = torch.arange(rows * channels, dtype=torch.float32).reshape(rows, channels)
    series = table.T.contiguous() if independent else table
    starts = [r for r in range(begin, end, stride) if r + context + horizon <= end]
    expected = [(r, c) for c in range(channels) for r in starts] if independent else [(r, None) for r in starts]
    subset = data.draw(st.none() | st.integers(0, len(expected) + 1))
    try:
        windows = WindowSet(series, (begin, end), context, horizon, stride, independent, subset)
    except ArgumentError:
        assert not starts or not (subset is None or 1 <= subset <= len(expected))
        return
    if subset is not None:
        expected = [expected[i * len(expected) // subset] for i in range(subset)]
    first, channel = windows.positions(torch.arange(len(windows)))
    assert list(zip(first.tolist(), [None] * len(first) if channel is None else channel.tolist())) == expected
    batch = windows.batch(torch.arange(len(windows)))
    for i, (row, channel) in enumerate(expected):
        columns = slice(None) if channel is None else slice(channel, channel + 1)
        assert torch.equal(batch.context[i], table[row : row + context, columns])
        assert torch.equal(batch.target[i], table[row + context : row + context + horizon, columns])


# ---------------------------------------------------------------------- masks
@given(
    key=SEEDS,
    windows=st.lists(st.integers(0, 2**40), min_size=1, max_size=5, unique=True),
    patches=st.integers(1, 20),
    channels=st.integers(1, 4),
    data=st.data(),
)
def a_mask_hides_as_many_patches_as_asked_in_whatever_batch(key, windows, patches, channels, data):
    hidden = torch.tensor([data.draw(st.integers(0, patches - 1)) for _ in windows])
    numbers = torch.tensor(windows)
    seen = hide_patches(key, "name", numbers, hidden, patches, channels)
    assert seen[:, 0].all()
    assert torch.equal((~seen).sum(1), hidden[:, None].expand(-1, channels))
    for i in range(len(windows)):
        assert torch.equal(hide_patches(key, "name", numbers[i : i + 1], hidden[i : i + 1], patches, channels)[0], seen[i])


# ---------------------------------------------------------------------- factors by pattern
NAMES = st.lists(
    st.sampled_from([f"{a}.{b}" for a in ("head", "body.0", "body.1") for b in ("weight", "bias")]), min_size=1, unique=True
)
PATTERNS = st.dictionaries(st.sampled_from(["*", "head.*", "*.bias", "body.?.*", "b*", "*.0.weight", "none"]), st.floats(0, 1))


@given(NAMES, PATTERNS)
def the_first_pattern_that_matches_a_name_counts(names, patterns):
    unmatched = [pattern for pattern in patterns if not any(fnmatch.fnmatchcase(name, pattern) for name in names)]
    try:
        found = match_factors(names, parse_factors(patterns, None, None))
    except ArgumentError as error:
        if patterns and not any(repr(pattern) in str(error) for pattern in unmatched):
            raise
        return
    assert not unmatched
    for name in names:
        first = next((value for pattern, value in patterns.items() if fnmatch.fnmatchcase(name, pattern)), None)
        assert found.get(name) == (None if first is None else (first, 1.0 - first))


# ---------------------------------------------------------------------- plan -> table -> kernels
def models(width: int, kind: str, dtype: torch.dtype) -> torch.nn.Module:
    """A small model of a kind whose constructor draws."""
    layers = {
        "linear": lambda: [torch.nn.Linear(width, 3), torch.nn.LayerNorm(3)],
        "conv": lambda: [torch.nn.Conv1d(2, width, 3), torch.nn.BatchNorm1d(width)],
        "attention": lambda: [torch.nn.MultiheadAttention(2 * width, 2)],
        "embedding": lambda: [torch.nn.Embedding(5, width, padding_idx=1), torch.nn.GRU(width, 2)],
    }
    return torch.nn.Sequential(*layers[kind]()).to(dtype)


@given(
    width=st.integers(1, 9),
    kind=st.sampled_from(["linear", "conv", "attention", "embedding"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    alpha=st.floats(0, 1) | st.fixed_dictionaries({"0.*": st.floats(0, 1)}),
    rounding=st.sampled_from(["nearest", "stochastic"]),
    key=SEEDS,
    threads=st.integers(1, 3),
)
def a_saved_plan_smooths_as_the_reference_does(width, kind, dtype, alpha, rounding, key, threads):
    plan = sff_fast.trace(lambda: models(width, kind, dtype))
    plan.save(SCRATCH / "plan.json", seed=key)
    again = sff_fast.InitPlan.load(SCRATCH / "plan.json")
    assert again.hash == plan.hash
    made = []
    for backend, used in (("cpu", again), ("reference", plan)):
        torch.manual_seed(0)
        model = models(width, kind, dtype)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sff_fast.smooth_(model, used, alpha=alpha, seed=key, backend=backend, rounding=rounding, threads=threads)
        made.append(dict(model.named_parameters()))
    for name, ours in made[0].items():
        assert torch.equal(ours, made[1][name]), name
        untouched = (isinstance(alpha, dict) and not name.startswith("0.")) or 1.0 in (alpha, *_values(alpha))
        assert not untouched or torch.equal(ours, before[name])


def _values(alpha: Any) -> tuple[float, ...]:
    return tuple(alpha.values()) if isinstance(alpha, dict) else ()


# ---------------------------------------------------------------------- states
TENSORS = st.builds(lambda n, d: torch.arange(n).to(d), st.integers(0, 4), st.sampled_from([torch.float32, torch.int64]))
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
NESTED = st.recursive(
    PLAIN | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(-3, 3), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal in types, values and tensors."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


@given(NESTED)
def a_nested_state_comes_back_from_json_and_tensors(value):
    tensors: dict[str, torch.Tensor] = {}
    skeleton = split_tensors(value, tensors)
    assert same(join_tensors(json.loads(json.dumps(skeleton)), tensors), value)


@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    states=st.sampled_from(["float32", "bfloat16", "int8"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    amsgrad=st.booleans(),
    steps=st.tuples(st.integers(0, 3), st.integers(1, 2)),
    decay=st.sampled_from([0.0, 0.1]),
)
def an_optimizers_state_dict_goes_on_with_the_same_bits(sizes, states, dtype, amsgrad, steps, decay):
    amsgrad = amsgrad and states == "float32"
    options = {"lr": 0.01, "weight_decay": decay, "state_dtype": states, "amsgrad": amsgrad}

    def gradients(params: list[torch.Tensor], step: int) -> None:
        for i, p in enumerate(params):
            p.grad = torch.sin(torch.arange(p.numel()) * (i + 1.0) + step).to(p.dtype)

    params = [torch.cos(torch.arange(n) * 1.0).to(dtype).requires_grad_() for n in sizes]
    optimizer = sff_fast.FusedAdamW(params, **options)
    for step in range(steps[0]):
        gradients(params, step)
        optimizer.step()
    copies = [p.detach().clone().requires_grad_() for p in params]
    other = sff_fast.FusedAdamW(copies, **options)
    other.load_state_dict(optimizer.state_dict())
    for step in range(steps[0], sum(steps)):
        for group, opt in ((params, optimizer), (copies, other)):
            gradients(group, step)
            opt.step()
    assert all(torch.equal(a, b) for a, b in zip(params, copies))


PROPERTIES = (
    a_table_is_read_to_the_last_bit,
    a_split_puts_every_row_into_one_part,
    every_window_is_a_slice_of_the_series,
    a_mask_hides_as_many_patches_as_asked_in_whatever_batch,
    the_first_pattern_that_matches_a_name_counts,
    a_saved_plan_smooths_as_the_reference_does,
    a_nested_state_comes_back_from_json_and_tensors,
    an_optimizers_state_dict_goes_on_with_the_same_bits,
)


def run(property_: Callable[..., None], number: int, examples: int) -> None:
    """Try a property with examples that depend on a number alone."""
    chosen = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    arguments, named = property_.inputs
    seed(number)(chosen(hypothesis.given(*arguments, **named)(property_)))()


def main() -> None:
    """Go round until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="default 60")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    options = parser.parse_args()
    torch.set_num_threads(1)
    end, turn = time.monotonic() + options.seconds, 0
    while time.monotonic() < end:
        for property_ in PROPERTIES:
            run(property_, options.seed * 1_000_003 + turn, 50)
        turn += 1
    print(f"{turn} rounds of {len(PROPERTIES)} properties, 50 examples each")


if __name__ == "__main__":
    main()
