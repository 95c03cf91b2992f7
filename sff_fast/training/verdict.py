"""Which model to ship: chosen by validation alone, said in plain words with the test figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .statistics import mean_and_std, paired_interval


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


def verdict(zero_shot: Mapping[str, Any], runs: Sequence[Any]) -> str:
    """Say in two sentences which model to ship, or none of the tuned ones.

    Args:
        zero_shot: The ``zero_shot`` entry of ``metrics.json``.
        runs: Entries of ``runs`` in ``metrics.json``, or run results.

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
        return "Ship none of the tuned models: none of them reached a finite validation MSE."
    name = _name(choice.best)
    mean = "mean " if len(choice.group) > 1 else ""
    if not choice.ship:
        return (
            f"Ship none of the tuned models: zero-shot has the lowest validation MSE ({_figure(zero_shot['val_mse'])}; "
            f"the best tuned one is {name} with {mean}{_figure(choice.val_mse)}). {_test_sentence(zero_shot, choice)}"
        )
    seed = f", seed {choice.best['seed']}" if len(choice.group) > 1 else ""
    return (
        f"Ship {name}{seed}: it has the lowest {mean}validation MSE ({_figure(choice.val_mse)}, "
        f"zero-shot {_figure(zero_shot['val_mse'])}). {_test_sentence(zero_shot, choice)}"
    )


def _test_sentence(zero_shot: Mapping[str, Any], choice: Choice) -> str:
    """How the chosen strategy did on the test part, and how far that can be trusted."""
    name, base = _name(choice.best), zero_shot["test_mse"]
    values = [run["test_mse"] for run in choice.group if run["test_mse"] is not None]
    if base is None or not values:
        return "On the test part there is no finite MSE to compare."
    mean, low, high = paired_interval([value - base for value in values])
    against = f"{_figure(base + mean)} against zero-shot's {_figure(base)}"
    against = f"On the test part {name} has {'a mean MSE of' if len(values) > 1 else 'an MSE of'} {against}"
    change = _change(mean, base)
    if low is None:
        return f"{against} ({change}); one seed cannot tell that from seed noise."
    interval = f"95 % interval of the difference over {len(values)} seeds {low:+.4f} to {high:+.4f}"
    if low <= 0 <= high:
        return f"{against} ({change}), which is within seed noise ({interval})."
    return f"{against} ({change}), which is more than seed noise ({interval})."


def _change(difference: float, base: float) -> str:
    if difference == 0 or base == 0:
        return "the same" if difference == 0 else f"{difference:+.4f}"
    return f"{100 * abs(difference) / base:.1f} % {'better' if difference < 0 else 'worse'}"


def _name(run: Mapping[str, Any]) -> str:
    if run["alpha"] is None:
        return run["strategy"]
    alpha = run["alpha"]
    return f"{run['strategy']} (alpha {'by name' if isinstance(alpha, Mapping) else f'{alpha:g}'})"


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
