"""Which model to ship: chosen by validation alone, said in plain words with the test figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .comparisons import BASELINE, build_comparisons
from .labels import ZERO_SHOT, label_runs, plain_name
from .statistics import mean_and_std

FEW_SEEDS = 3
"""Up to so many Student's t is so wide that it is said."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The strategy with the lowest validation MSE, averaged over its seeds.

    Attributes:
        best: Its run with the lowest validation MSE; None when no tuned run has a finite one.
        group: Its runs, one for each seed.
        val_mse: Its mean validation MSE.
        ship: Whether that is below the zero-shot model's, so that a tuned model is to be shipped.
    """

    best: Mapping[str, Any] | None
    group: tuple[Mapping[str, Any], ...]
    val_mse: float | None
    ship: bool


def choose(zero_shot: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Choice:
    """Choose a model without looking at the test part.

    The strategy (with its alpha) is chosen by its mean over seeds, because the luckiest of many single runs says little;
    then its best seed is taken. A strategy one of whose runs has no finite validation MSE is not chosen. The zero-shot
    model wins ties: it costs nothing.

    Args:
        zero_shot: The ``zero_shot`` entry of ``metrics.json``.
        runs: Entries of ``runs`` in ``metrics.json``.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(f"{run['strategy']} {run['alpha']}", []).append(run)
    scored = [
        (mean_and_std([run["val_mse"] for run in group])[0], tuple(group))
        for group in groups.values()
        if all(run["val_mse"] is not None for run in group)
    ]
    if not scored:
        return Choice(None, (), None, False)
    val_mse, group = min(scored, key=lambda pair: pair[0])
    best = min(group, key=lambda run: run["val_mse"])
    ship = zero_shot["val_mse"] is None or val_mse < zero_shot["val_mse"]
    return Choice(best, group, val_mse, ship)


def verdict(zero_shot: Mapping[str, Any], runs: Sequence[Any], comparisons: Sequence[Mapping[str, Any]] | None = None) -> str:
    """Say which model to ship, a tuned one or the zero-shot model, and what the test part shows, with intervals.

    Args:
        zero_shot: The ``zero_shot`` entry of ``metrics.json``.
        runs: Entries of ``runs`` in ``metrics.json``, or run results.
        comparisons: Its ``comparisons``. Default: made from the runs' errors, without their windows.

    Returns:
        The text, one line.
    """
    entries = [run if isinstance(run, Mapping) else run.to_json() for run in runs]
    if not entries:
        return (
            f"Only the pre-trained model was evaluated: validation MSE {_figure(zero_shot['val_mse'])}, "
            f"test MSE {_figure(zero_shot['test_mse'])}."
        )
    choice = choose(zero_shot, entries)
    if choice.best is None:
        if zero_shot["val_mse"] is None:
            return "Ship no model: none reached a finite validation MSE, zero-shot neither."
        return "Ship the zero-shot model: no tuned one reached a finite validation MSE."
    comparisons = build_comparisons(zero_shot, entries) if comparisons is None else comparisons
    names = {label: plain_name(run) for label, run in zip(label_runs(entries), entries, strict=True)}
    best = next(label for label, run in zip(label_runs(entries), entries, strict=True) if run is choice.best)
    evidence = " ".join(_evidence(zero_shot, choice, best, names, comparisons))
    mean = "mean " if len(choice.group) > 1 else ""
    if not choice.ship:
        return (
            f"Ship the zero-shot model: it has the lowest validation MSE ({_figure(zero_shot['val_mse'])}; "
            f"the best tuned one is {names[best]} with {mean}{_figure(choice.val_mse)}). {evidence}"
        )
    seed = f", seed {choice.best['seed']}" if len(choice.group) > 1 else ""
    return (
        f"Ship {names[best]}{seed}: it has the lowest {mean}validation MSE ({_figure(choice.val_mse)}, "
        f"zero-shot {_figure(zero_shot['val_mse'])}). {evidence}"
    )


def _evidence(
    zero_shot: Mapping[str, Any],
    choice: Choice,
    best: str,
    names: Mapping[str, str],
    comparisons: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What the test part says of the best tuned strategy, of smoothing, and of full fine-tuning; then what it cannot say."""
    table = {(one["a"], one["b"]): one for one in comparisons}
    values = [run["test_mse"] for run in choice.group if run["test_mse"] is not None]
    if zero_shot["test_mse"] is None or not values:
        return ["On the test part there is no finite MSE to compare."]
    smoothed = next((label for label in names if label.split("-alpha")[0] == "sff"), best)
    subjects = [smoothed if best == BASELINE else best]
    subjects += [BASELINE] if BASELINE in names and BASELINE not in subjects else []
    used = [table[pair] for pair in ((subjects[0], BASELINE), *((one, ZERO_SHOT) for one in subjects)) if pair in table]
    figure = _figure(mean_and_std(values)[0])
    parts = [f"On the test part {names[best]} has {'a mean MSE of' if len(values) > 1 else 'an MSE of'} {figure}"]
    parts[0] += f" against zero-shot's {_figure(zero_shot['test_mse'])}"
    if (subjects[0], BASELINE) in table:
        parts.append(_statement(table[subjects[0], BASELINE], names))
    against = [table[one, ZERO_SHOT] for one in subjects if (one, ZERO_SHOT) in table]
    directions = [_direction(one) for one in against]
    if len(against) == 2 and directions[0] == directions[1] and directions[0]:
        better = "better" if directions[0] < 0 else "worse"
        parts.append(f"both are {better} than zero-shot, by {_amount(against[0])} and {_amount(against[1])}")
    else:
        parts += [_statement(one, names) for one in against]
    return ["; ".join(parts) + ".", *_limits(used)]


def _direction(entry: Mapping[str, Any]) -> int:
    """-1 where a is better, 1 where it is worse, 0 where the interval holds no difference or there is none."""
    low, high = _bounds(entry)
    if low is None or low <= 0 <= high:
        return 0
    return -1 if high < 0 else 1


def _bounds(entry: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The interval; with one seed that over its windows, if there is any."""
    if entry["ci_low"] is not None:
        return entry["ci_low"], entry["ci_high"]
    return entry["windows_ci_low"], entry["windows_ci_high"]


def _statement(entry: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """One comparison in words."""
    a, b = (names.get(entry[side], entry[side]) for side in "ab")
    direction = _direction(entry)
    if direction:
        return f"{a} {'lowers' if direction < 0 else 'raises'} the test MSE by {_amount(entry)} over {b}"
    if entry["difference"] == 0:
        return f"{a} and {b} have the same test MSE"
    if _bounds(entry)[0] is None:
        return f"{a} is {_amount(entry)} {'better' if entry['difference'] < 0 else 'worse'} than {b}"
    return f"{a} cannot be told from {b}: {_amount(entry, signed=True)}"


def _amount(entry: Mapping[str, Any], signed: bool = False) -> str:
    """The size of a difference with its interval, ``1.2 % [0.4, 2.0]``; with a sign ``-0.3 % [-1.1, 0.5]``."""
    keys, form, unit = ("percent", "percent_low", "percent_high"), ".1f", " %"
    values = [entry[key] for key in keys]
    if values[0] is None:  # the error that it would be a part of is 0
        values, form, unit = [entry["difference"], *_bounds(entry)], ".3g", ""
    if values[1] is not None and not signed and values[0] < 0:
        values = [-values[0], -values[2], -values[1]]
    first = f"{values[0]:+{form}}" if signed else f"{abs(values[0]):{form}}"
    return f"{first}{unit}" + ("" if values[1] is None else f" [{values[1]:{form}}, {values[2]:{form}}]")


def _limits(used: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the intervals stand for, and what they cannot say."""
    if not used:
        return []
    one, seeds = used[0], min(entry["n"] for entry in used)
    if one["covers"] is None:
        return ["One seed cannot tell that from seed noise."]
    corrected = "" if one["corrected_for"] == 1 else f", corrected for {one['corrected_for']} comparisons"
    if seeds == 1:
        return [f"The 95 % intervals are over windows alone{corrected}: one seed cannot tell that from seed noise."]
    text = f"The 95 % intervals are over {seeds} seeds"
    text += f" and {one['blocks']} blocks of windows" if "windows" in one["covers"] else " on these windows alone"
    text += corrected
    return [f"{text}; so few seeds show large differences only." if seeds <= FEW_SEEDS else f"{text}."]


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
