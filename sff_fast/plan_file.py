"""Plans in files: JSON with a schema version, a content hash and the versions that decided it, tables beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sff_fast.distributions import Materialized, distribution_from_json
from sff_fast.errors import PlanError
from sff_fast.files import read_json, save_safetensors, sha256, write_json
from sff_fast.plan import InitPlan, ParameterPlan, Segment
from sff_fast.replay.program import dtype_named, program_digest, program_to_json, read_program

SCHEMA = 1


def plan_to_json(plan: InitPlan) -> dict[str, Any]:
    """The whole plan without its tables, as its file holds it."""
    draws = program_to_json(plan.program)
    return {
        "schema": SCHEMA,
        "hash": plan.hash,
        "versions": plan.versions,
        "notes": list(plan.notes),
        "parameters": [parameter.to_json() for parameter in plan.parameters.values()],
        **({"program": {"sha256": program_digest(draws), "draws": draws}} if draws else {}),
    }


def save_plan(plan: InitPlan, path: Path, seed: int) -> None:
    """Write a plan; see :meth:`sff_fast.plan.InitPlan.save`."""
    if path.suffix == ".safetensors":
        raise PlanError(f"a plan is a JSON file, got the path {str(path)!r}: the tables' file is named after it")
    content = plan_to_json(plan)
    tensors, opaque = {}, False
    for parameter in plan.parameters.values():
        for i, segment in enumerate(parameter.segments):
            kind = segment.distribution.kind
            if kind in ("table", "opaque"):
                values = plan.table(parameter.name, i) if kind == "table" else plan.opaque(seed, (parameter.name, i))
                tensors[_table_key(parameter.name, i)] = _storable(values.detach().contiguous())
                opaque |= kind == "opaque"
    if tensors:
        tables = path.with_suffix(".safetensors")
        save_safetensors(tables, tensors, {"plan": plan.hash})
        content["tables"] = {"file": tables.name, "sha256": sha256(tables)}
        if opaque:
            content["tables"]["seed"] = seed
    write_json(path, content)


def load_plan(path: Path) -> InitPlan:
    """Read a plan; see :meth:`sff_fast.plan.InitPlan.load`."""
    content = read_json(path, PlanError)
    if not isinstance(content, dict) or "schema" not in content:
        raise PlanError(f"{str(path)!r} is not an init plan: it has no schema version")
    if content["schema"] != SCHEMA:
        raise PlanError(f"{str(path)!r} has plan schema {content['schema']!r}, this version of sff_fast reads {SCHEMA}")
    try:
        parameters = [_parameter_from_json(item) for item in content["parameters"]]
        versions, notes, recorded = dict(content["versions"]), list(content["notes"]), content["hash"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"{str(path)!r} is not a valid init plan: {error}") from error
    tables, samples, seed = _read_tables(path, content.get("tables"), parameters)
    program = read_program(content.get("program"), str(path))
    plan = InitPlan(parameters, tables=tables, samples=samples, sample_seed=seed, versions=versions, notes=notes, program=program)
    if plan.hash != recorded:
        raise PlanError(f"{str(path)!r} was changed: its content has hash {plan.hash}, it says {recorded!r}")
    return plan


# ---------------------------------------------------------------------- parts
def _table_key(name: str, index: int) -> str:
    return f"{name}[{index}]"


def _storable(values: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs of real ones: safetensors has no complex128."""
    return torch.view_as_real(values) if values.is_complex() else values


def _parameter_from_json(content: Mapping[str, Any]) -> ParameterPlan:
    try:
        dtype = dtype_named(content["dtype"])
    except ValueError as error:
        raise PlanError(f"{content['name']!r} has the {error}") from None
    segments = tuple(
        Segment(
            distribution_from_json(item["distribution"]),
            tuple(item["size"]),
            tuple(item["strides"]),
            item["offset"],
            item["draw"],
            tuple(item["draw_strides"]),
            item["draw_offset"],
        )
        for item in content["segments"]
    )
    return ParameterPlan(content["name"], tuple(content["shape"]), dtype, segments, tuple(content["aliases"]))


def _read_tables(
    path: Path, entry: Mapping[str, Any] | None, parameters: Sequence[ParameterPlan]
) -> tuple[dict[tuple[str, int], torch.Tensor], dict[tuple[str, int], torch.Tensor], int | None]:
    if entry is None:
        return {}, {}, None
    if not isinstance(entry, Mapping) or not all(isinstance(entry.get(key), str) for key in ("file", "sha256")):
        raise PlanError(f"{str(path)!r} is not a valid init plan: tables must name a file and its sha256")
    if not Path(entry["file"]).name:
        raise PlanError(f"{str(path)!r} is not a valid init plan: tables must name a file and its sha256")
    file = path.with_name(Path(entry["file"]).name)
    if not file.is_file():
        raise PlanError(f"the plan {str(path)!r} needs its tables in {str(file)!r}, which is missing")
    if sha256(file) != entry["sha256"]:
        raise PlanError(f"{str(file)!r} does not have the sha256 that {str(path)!r} recorded: it was changed or is damaged")
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        stored = load(file.read_bytes())
    except (SafetensorError, KeyError) as error:  # KeyError: of a dtype that torch lacks
        raise PlanError(f"{str(file)!r} is no valid safetensors file: {' '.join(str(error).split())}") from error
    tables, samples = {}, {}
    for parameter in parameters:
        for i, segment in enumerate(parameter.segments):
            distribution = segment.distribution
            if not isinstance(distribution, Materialized) or distribution.kind == "recipe":
                continue
            values = stored.get(_table_key(parameter.name, i))
            if values is None:
                raise PlanError(f"{str(file)!r} lacks the values of segment {i} of {parameter.name!r}")
            if parameter.dtype.is_complex:
                if values.ndim == 0 or values.shape[-1] != 2 or not values.is_floating_point():
                    raise PlanError(
                        f"{str(file)!r}: the values of segment {i} of {parameter.name!r} are no pairs of real numbers"
                    )
                values = torch.view_as_complex(values)
            (tables if distribution.kind == "table" else samples)[(parameter.name, i)] = values
    return tables, samples, entry.get("seed")
