"""Init plans: how every parameter of a model is drawn, without drawing it.

A plan is what :func:`sff_fast.trace` finds out about a constructor. It is saved as versioned JSON with a content hash;
tables of fixed values lie beside it in a safetensors file.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sff_fast.boxes import Box, paint
from sff_fast.distributions import ELEMENTWISE, Distribution, Materialized, is_random
from sff_fast.errors import PlanError
from sff_fast.recipes import draw_recipe
from sff_fast.replay.program import DrawRecord, DrawTarget


@dataclass(frozen=True)
class Segment:
    """A box of a parameter's elements that one distribution describes.

    For the multi-index ``m`` in ``size``: element ``offset + sum(m * strides)`` of the parameter (row-major logical index)
    takes element ``draw_offset + sum(m * draw_strides)`` of the draw.

    Args:
        distribution: What the values are drawn from.
        size: Sizes of the box.
        strides: Step of the parameter's element number a dimension.
        offset: The parameter's element at ``m = 0``.
        draw: Name of the draw; empty for values that need none (constants, tables, opaque values).
        draw_strides: Step of the draw's element number a dimension.
        draw_offset: The draw's element at ``m = 0``.

    Raises:
        PlanError: The lists differ in length, or a number is out of range.
    """

    distribution: Distribution
    size: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    draw: str
    draw_strides: tuple[int, ...]
    draw_offset: int

    def __post_init__(self) -> None:
        if not isinstance(self.distribution, (*ELEMENTWISE, Materialized)):
            raise PlanError(f"Segment.distribution must be a distribution of sff_fast, got {self.distribution!r}")
        if not len(self.size) == len(self.strides) == len(self.draw_strides):
            raise PlanError(
                f"a segment needs as many sizes as strides, got size={self.size}, strides={self.strides} and "
                f"draw_strides={self.draw_strides}"
            )
        if not all(isinstance(n, int) for n in (*self.size, *self.strides, *self.draw_strides)):
            raise PlanError(f"sizes and strides of a segment must be integers, got {self.size} and {self.strides}")
        if any(n < 1 for n in self.size) or self.offset < 0:
            raise PlanError(f"a segment needs sizes above 0 and an offset of at least 0, got {self.size}, {self.offset}")
        if any(n > 1 and s < 1 for n, s in zip(self.size, self.strides)):
            raise PlanError(f"Segment.strides must be above 0, got {self.strides} for size {self.size}")
        lowest = self.draw_offset + sum((n - 1) * min(s, 0) for n, s in zip(self.size, self.draw_strides))
        if lowest < 0:
            raise PlanError(f"a segment of the draw {self.draw!r} reaches element {lowest}: expected 0 or more")

    @staticmethod
    def whole(distribution: Distribution, numel: int, draw: str) -> Segment:
        """The segment that covers a parameter of ``numel`` elements, element i taking element i of the draw."""
        random = draw if _needs_draw(distribution) else ""
        return Segment(distribution, (numel,), (1,), 0, random, (1,) if random else (0,), 0)

    @property
    def box(self) -> Box:
        """The parameter's elements."""
        return Box(self.size, self.strides, self.offset)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.size)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return {
            "distribution": self.distribution.to_json(),
            "size": list(self.size),
            "strides": list(self.strides),
            "offset": self.offset,
            "draw": self.draw,
            "draw_strides": list(self.draw_strides),
            "draw_offset": self.draw_offset,
        }


def _needs_draw(distribution: Distribution) -> bool:
    return is_random(distribution) and not (isinstance(distribution, Materialized) and distribution.kind == "opaque")


@dataclass(frozen=True)
class ParameterPlan:
    """How one parameter is drawn.

    Args:
        name: Name in ``named_parameters()``.
        shape: Its shape.
        dtype: Its dtype.
        segments: Boxes in order of writing: where two overlap the later one holds.
        aliases: Further names of the same parameter (tied weights).

    Raises:
        PlanError: A segment leaves the parameter, or some element has no segment.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    segments: tuple[Segment, ...]
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for segment in self.segments:
            if segment.box.last >= self.numel:
                raise PlanError(
                    f"a segment of {self.name!r} reaches element {segment.box.last}, the parameter of shape "
                    f"{self.shape} has {self.numel}"
                )
        if self.numel and not (self.segments and self.segments[0].numel == self.numel):
            owner, unit = paint(self.numel, [segment.box for segment in self.segments])
            missing = np.flatnonzero(owner < 0)
            if missing.size:
                raise PlanError(uninitialised_message(self.name, self.shape, missing, unit))

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "aliases": list(self.aliases),
            "segments": [segment.to_json() for segment in self.segments],
        }


def uninitialised_message(name: str, shape: Sequence[int], runs: np.ndarray, unit: int) -> str:
    """One line that says which elements of a parameter nothing was written to.

    Args:
        name: The parameter.
        shape: Its shape.
        runs: Numbers of the runs without a value, ascending, as :func:`sff_fast.boxes.paint` counts them.
        unit: Elements a run.

    Returns:
        The message.
    """
    count, first = int(runs.size) * unit, int(runs[0]) * unit
    where = [str(int(i)) for i in np.unravel_index(first, tuple(shape))] if shape else []
    part = "none of its elements is" if count == math.prod(shape) else f"{count} of its {math.prod(shape)} elements are not"
    verb = "" if count == math.prod(shape) else f", the first is [{', '.join(where)}]"
    return (
        f"the parameter {name!r} of shape {tuple(shape)} is uninitialised memory: {part} written by the constructor{verb}; "
        f"initialise it in the factory"
    )


class InitPlan:
    """How every parameter of a model is drawn.

    Args:
        parameters: One plan a parameter, in the order of ``named_parameters()``.
        tables: Values of the segments of kind ``"table"`` under ``(parameter, segment index)``, in the segment's row-major
            order and the parameter's dtype.
        samples: The same for segments of kind ``"opaque"``, drawn with ``sample_seed``.
        sample_seed: Seed of ``samples``.
        versions: Versions of the packages that decided the plan.
        notes: What the reader of the plan should know.
        program: The constructor's ordered draws, for ``smooth_(…, rng="torch")``; empty where they are not known.
        factory: The constructor; kept in memory only.
        redraw: Gives the values of all opaque segments for a seed; kept in memory only.

    Raises:
        PlanError: A name appears twice, or a table is missing or does not fit its segment.
    """

    def __init__(
        self,
        parameters: Iterable[ParameterPlan],
        *,
        tables: Mapping[tuple[str, int], torch.Tensor] | None = None,
        samples: Mapping[tuple[str, int], torch.Tensor] | None = None,
        sample_seed: int | None = None,
        versions: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
        program: Iterable[DrawRecord] = (),
        factory: Callable[[], torch.nn.Module] | None = None,
        redraw: Callable[[int], Mapping[tuple[str, int], torch.Tensor]] | None = None,
    ) -> None:
        self.parameters: dict[str, ParameterPlan] = {}
        self._by_alias: dict[str, str] = {}
        for parameter in parameters:
            for name in (parameter.name, *parameter.aliases):
                if name in self._by_alias:
                    raise PlanError(f"the name {name!r} appears twice in the plan")
                self._by_alias[name] = parameter.name
            self.parameters[parameter.name] = parameter
        self.versions: dict[str, str] = dict(versions) if versions is not None else base_versions()
        self.notes: tuple[str, ...] = tuple(notes)
        self.program: tuple[DrawRecord, ...] = tuple(program)
        self.factory = factory
        self._tables = dict(tables or {})
        self._samples = dict(samples or {})
        self._sample_seed = sample_seed
        self._redraw = redraw
        self._redrawn: tuple[int, Mapping[tuple[str, int], torch.Tensor]] | None = None
        self._check_tables()
        self._hash = hashlib.sha256(_canonical([p.to_json() for p in self.parameters.values()])).hexdigest()

    def _check_tables(self) -> None:
        for parameter in self.parameters.values():
            for i, segment in enumerate(parameter.segments):
                distribution = segment.distribution
                if not (isinstance(distribution, Materialized) and distribution.kind == "table"):
                    continue
                values = self._tables.get((parameter.name, i))
                if values is None:
                    raise PlanError(f"the table of segment {i} of {parameter.name!r} is missing")
                if values.numel() != segment.numel:
                    raise PlanError(
                        f"the table of segment {i} of {parameter.name!r} has {values.numel()} values, expected {segment.numel}"
                    )
                if digest(values) != distribution.digest:
                    raise PlanError(f"the table of segment {i} of {parameter.name!r} does not have the recorded sha256")

    # ------------------------------------------------------------------ reading
    @property
    def hash(self) -> str:
        """Hex sha256 of the content: names, shapes, dtypes, segments, tables; not the package versions."""
        return self._hash

    def __len__(self) -> int:
        return len(self.parameters)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __contains__(self, name: object) -> bool:
        return name in self._by_alias

    def __getitem__(self, name: str) -> ParameterPlan:
        try:
            return self.parameters[self._by_alias[name]]
        except KeyError:
            raise PlanError(f"the plan has no parameter {name!r}{_did_you_mean(name, self._by_alias)}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InitPlan) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self._hash)

    def __repr__(self) -> str:
        return f"InitPlan({len(self)} parameters, {sum(p.numel for p in self.parameters.values())} elements, {self.hash[:12]})"

    def __str__(self) -> str:
        from sff_fast.plan_text import plan_text

        return plan_text(self)

    def totals(self) -> dict[str, dict[str, int]]:
        """Number of tensors and of elements for each kind of distribution; parameters of several kinds are mixed boxes."""
        found: dict[str, dict[str, int]] = {}
        for parameter in self.parameters.values():
            kinds = {_kind(segment.distribution) for segment in parameter.segments} or {"empty"}
            count = found.setdefault(kinds.pop() if len(kinds) == 1 else "mixed boxes", {"tensors": 0, "elements": 0})
            count["tensors"] += 1
            count["elements"] += parameter.numel
        return dict(sorted(found.items()))

    def to_json(self) -> dict[str, Any]:
        """The whole plan without its tables, as :meth:`save` writes it."""
        from sff_fast.plan_file import plan_to_json

        return plan_to_json(self)

    # ------------------------------------------------------------------ values
    def table(self, name: str, index: int) -> torch.Tensor:
        """The fixed values of a segment of kind ``"table"``: one-dimensional, in the segment's row-major order.

        Args:
            name: The parameter.
            index: Number of the segment.

        Raises:
            PlanError: The segment is no table.
        """
        try:
            return self._tables[(self[name].name, index)].reshape(-1)
        except KeyError:
            raise PlanError(f"segment {index} of {name!r} is no table") from None

    def sample(self, name: str, seed: int) -> torch.Tensor:
        """One parameter of the auxiliary model, alone.

        Args:
            name: The parameter, or an alias of it.
            seed: Seed of the random stream.

        Returns:
            A tensor of the parameter's shape and dtype on the CPU.

        Raises:
            PlanError: The plan does not know the name, or opaque values cannot be drawn.
        """
        from sff_fast.draw import draw

        return draw(self[name], seed, plan=self)

    def materialize(self, name: str, index: int, seed: int) -> torch.Tensor:
        """The values of a segment that is not elementwise.

        Args:
            name: The parameter.
            index: Number of the segment.
            seed: Seed of the random stream; a table has the same values for every seed.

        Returns:
            One-dimensional fp32 tensor in the segment's row-major order.

        Raises:
            PlanError: The segment is elementwise, or it is opaque and there is no factory to draw it with this seed.
        """
        parameter = self[name]
        if not 0 <= index < len(parameter.segments):
            raise PlanError(f"{name!r} has {len(parameter.segments)} segments, there is no segment {index}")
        segment = parameter.segments[index]
        distribution = segment.distribution
        if not isinstance(distribution, Materialized):
            raise PlanError(f"segment {index} of {name!r} is {distribution}: it is elementwise and has no stored values")
        key = (parameter.name, index)
        if distribution.kind == "table":
            return self._tables[key].to(torch.float32).reshape(-1).clone()
        if distribution.kind == "recipe":
            drawn = draw_recipe(distribution, segment.draw, seed).reshape(-1)
            view = torch.as_strided(drawn, segment.size, segment.draw_strides, segment.draw_offset)
            return view.reshape(-1).clone()
        return self.opaque(seed, key).to(torch.float32).reshape(-1).clone()

    def opaque(self, seed: int, key: tuple[str, int]) -> torch.Tensor:
        """The values of an opaque segment ``(parameter, index)`` as the constructor makes them, in its own dtype.

        Raises:
            PlanError: There is no factory to draw them with this seed.
        """
        if self._redraw is None:
            if seed == self._sample_seed and key in self._samples:
                return self._samples[key]
            stored = "" if self._sample_seed is None else f" (the plan holds the sample of seed {self._sample_seed})"
            raise PlanError(
                f"segment {key[1]} of {key[0]!r} is opaque and seed {seed} needs the factory{stored}: "
                f"trace the factory again with sff_fast.trace"
            )
        if self._redrawn is None or self._redrawn[0] != seed:
            self._redrawn = (seed, self._redraw(seed))
        return self._redrawn[1][key]

    # ------------------------------------------------------------------ editing
    def override(self, pattern: str, distribution: Distribution) -> InitPlan:
        """Another plan in which the parameters that match are drawn differently.

        Args:
            pattern: Shell-style pattern over parameter names (``*``, ``?``, ``[…]``), case-sensitive.
            distribution: What every element of them is drawn from; tables and opaque values cannot be given here.

        Returns:
            The new plan; this one is unchanged.

        Raises:
            PlanError: No parameter matches, or the distribution does not fit.
        """
        if isinstance(distribution, Materialized) and distribution.kind != "recipe":
            raise PlanError(f"override takes an elementwise distribution or a recipe, got Materialized({distribution})")
        matched = {p.name for p in self.parameters.values() if _matches(pattern, p)}
        if not matched:
            raise PlanError(f"no parameter matches {pattern!r}{_did_you_mean(pattern, self._by_alias)}")
        used = {s.draw for p in self.parameters.values() if p.name not in matched for s in p.segments} | set(self._by_alias)
        parameters = []
        for parameter in self.parameters.values():
            if parameter.name in matched:
                given = distribution
                if isinstance(given, Materialized):
                    given = replace(given, shape=parameter.shape)
                borrowed = any(
                    s.draw == parameter.name for p in self.parameters.values() if p.name not in matched for s in p.segments
                )
                draw = unused_name(parameter.name, used) if borrowed else parameter.name
                used.add(draw)
                segments = (Segment.whole(given, parameter.numel, draw),) if parameter.numel else ()
                parameter = replace(parameter, segments=segments)
            parameters.append(parameter)
        keep = {key: value for key, value in self._tables.items() if key[0] not in matched}
        samples = {key: value for key, value in self._samples.items() if key[0] not in matched}
        return InitPlan(
            parameters,
            tables=keep,
            samples=samples,
            sample_seed=self._sample_seed,
            versions=self.versions,
            notes=(*self.notes, f"{pattern!r} was overridden with {distribution}"),
            program=tuple(_without(record, matched) for record in self.program),
            factory=self.factory,
            redraw=self._redraw,
        )

    # ------------------------------------------------------------------ checking
    def check(
        self,
        named_parameters: Iterable[tuple[str, torch.Tensor]] | Mapping[str, torch.Tensor],
        subset: bool = False,
        others: Iterable[str] = (),
    ) -> list[tuple[str, torch.dtype, torch.dtype]]:
        """Whether the plan fits a model.

        Args:
            named_parameters: Names and parameters, as ``model.named_parameters()`` gives them.
            subset: Whether the plan may hold parameters that the model lacks (pipeline stages), default False.
            others: Names that the model has besides, which are not looked at and need not be in the plan.

        Returns:
            ``(name, dtype in the plan, dtype in the model)`` for every parameter whose dtype differs.

        Raises:
            PlanError: One line that lists every missing, unknown or doubled name and every differing shape.
        """
        pairs = named_parameters.items() if isinstance(named_parameters, Mapping) else named_parameters
        seen: dict[str, tuple[str, torch.Tensor]] = {}
        problems, dtypes = [], []
        for name, tensor in pairs:
            if name not in self._by_alias:
                problems.append(f"{name!r} is not in the plan{_did_you_mean(name, self._by_alias)}")
                continue
            parameter = self[name]
            if parameter.name in seen:
                other, first = seen[parameter.name]
                if first is not tensor:
                    problems.append(f"{other!r} and {name!r} are one parameter in the plan and two in the model")
                continue
            seen[parameter.name] = (name, tensor)
            if tuple(tensor.shape) != parameter.shape:
                problems.append(f"{name!r} has shape {tuple(tensor.shape)}, the plan has {parameter.shape}")
            if tensor.dtype != parameter.dtype:
                dtypes.append((name, parameter.dtype, tensor.dtype))
        if not subset:
            there = {*seen, *(self._by_alias.get(name) for name in others)}
            missing = [f"{name!r} is missing in the model" for name in self.parameters if name not in there]
            problems += missing[:-1] + [f"{text} (subset=True allows a part of a model)" for text in missing[-1:]]
        if problems:
            raise PlanError(
                f"the plan does not fit the model ({len(problems)} difference{'s' if len(problems) > 1 else ''}): "
                + "; ".join(problems)
            )
        return dtypes

    # ------------------------------------------------------------------ files
    def save(self, path: str | os.PathLike[str], seed: int = 0) -> None:
        """Write the plan as JSON, and tables as a safetensors file of the same stem beside it.

        The tables are written first: a crash between the two files leaves an older plan whose tables no longer have the
        recorded sha256, which :meth:`load` refuses.

        Args:
            path: The JSON file; it must not end in ``.safetensors``.
            seed: Seed with which opaque values are drawn and stored, default 0. Loaded without its factory the plan has
                them for this seed only.

        Raises:
            OutputError: The file cannot be written.
            PlanError: Opaque values cannot be drawn with this seed, or the path is not fit.
        """
        from sff_fast.plan_file import save_plan

        save_plan(self, Path(path), seed)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> InitPlan:
        """Read a plan that :meth:`save` wrote.

        Args:
            path: The JSON file.

        Returns:
            The plan, without its factory.

        Raises:
            PlanError: A file is missing or damaged, of another schema version, or its content does not have its hash.
        """
        from sff_fast.plan_file import load_plan

        return load_plan(Path(path))


# ---------------------------------------------------------------------- helpers
def digest(values: torch.Tensor) -> str:
    """Hex sha256 of a tensor's dtype and bytes."""
    raw = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(str(values.dtype).encode() + raw.tobytes()).hexdigest()


def base_versions() -> dict[str, str]:
    """Versions of sff_fast, Python, torch and NumPy."""
    from sff_fast.version import __version__

    return {
        "sff_fast": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": str(np.__version__),
    }


def unused_name(parameter: str, used: Iterable[str]) -> str:
    """The first of ``parameter#1``, ``parameter#2``, … that is not used."""
    taken, k = set(used), 1
    while f"{parameter}#{k}" in taken:
        k += 1
    return f"{parameter}#{k}"


def _kind(distribution: Distribution) -> str:
    if isinstance(distribution, Materialized):
        return distribution.recipe or distribution.kind
    return distribution.kind


def _without(record: DrawRecord, parameters: set[str]) -> DrawRecord:
    """A draw that these parameters no longer hold."""
    return replace(record, targets=tuple(target for target in record.targets if target.parameter not in parameters))


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _matches(pattern: str, parameter: ParameterPlan) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (parameter.name, *parameter.aliases))


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(map(repr, close))}?)" if close else ""


__all__ = ["DrawRecord", "DrawTarget", "InitPlan", "ParameterPlan", "Segment"]
