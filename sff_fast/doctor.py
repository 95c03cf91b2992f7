"""What this machine offers to sff_fast: versions, backends, families, threads and memory, each with the reason or cure.

Source of the memory limit: the Linux kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

#: Optional packages: distribution, module, the extra that brings it, what it is for.
OPTIONAL_PACKAGES = (
    ("click", "click", "cli", "the command line"),
    ("rich", "rich", "cli", "progress bars and tables"),
    ("matplotlib", "matplotlib", "cli", "pictures of the report"),
    ("jinja2", "jinja2", "cli", "the report's page"),
    ("pandas", "pandas", "data", "DataFrames as input"),
    ("pyarrow", "pyarrow", "data", "parquet files"),
)
_REQUIRED_PACKAGES = ("torch", "numpy", "safetensors")
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def examine() -> dict[str, Any]:
    """Look at the machine and at the installation; nothing is changed.

    Returns:
        A dictionary fit for JSON: ``sff_fast``, ``stream_version``, ``python``, ``platform``, ``packages``,
        ``optional_packages``, ``backends``, ``instruction_set``, ``cuda``, ``families``, ``threads``, ``memory``.
        A figure that the system does not tell is None.
    """
    import torch

    from sff_fast.backends import available_backends
    from sff_fast.version import __version__

    return {
        "sff_fast": __version__,
        "stream_version": stream_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _REQUIRED_PACKAGES},
        "optional_packages": _optional_packages(),
        "backends": dict(available_backends()),
        "instruction_set": {"machine": platform.machine(), "torch": torch.backends.cpu.get_cpu_capability()},
        "cuda": _cuda(),
        "families": _families(),
        "threads": {
            "cpus": os.cpu_count(),
            "usable_cpus": _usable_cpus(),
            "torch": torch.get_num_threads(),
            "torch_interop": torch.get_num_interop_threads(),
        },
        "memory": memory(),
    }


def stream_version() -> int:
    """The version of the random stream that this package draws from."""
    from sff_fast.stream import STREAM_VERSION

    return STREAM_VERSION


def memory() -> dict[str, int | None]:
    """Physical memory, memory available now, and the container's limit, in bytes; None for what is not known."""
    total = available = None
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        total = _kibibytes(fields.get("MemTotal"))
        available = _kibibytes(fields.get("MemAvailable"))
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"total_bytes": total, "available_bytes": available, "limit_bytes": _container_limit(total)}


def to_text(report: Mapping[str, Any]) -> str:
    """The result of :func:`examine` for people, one fact a line."""
    lines = [f"sff_fast {report['sff_fast']} (random stream version {report['stream_version']})"]

    def section(title: str, facts: Mapping[str, str]) -> None:
        lines.append("")
        lines.append(title)
        width = max(map(len, facts))
        lines.extend(f"  {name:<{width}}  {text}" for name, text in facts.items())

    section("system", {"python": report["python"], "platform": report["platform"]})
    section("packages", dict(report["packages"]))
    section(
        "optional packages",
        {
            name: f"{found['version']}" if found["version"] else f"absent, {found['purpose']}: {found['install']}"
            for name, found in report["optional_packages"].items()
        },
    )
    section("backends", report["backends"])
    instructions = report["instruction_set"]
    section("instruction set", {"machine": instructions["machine"], "torch uses": instructions["torch"]})
    section("cuda", {"state": _cuda_text(report["cuda"])})
    section(
        "families",
        {
            name: f"ready ({', '.join(found['tasks'])})" if found["installed"] else f"absent: {found['install']}"
            for name, found in report["families"].items()
        },
    )
    threads = report["threads"]
    section(
        "threads",
        {
            "processors": f"{threads['usable_cpus']} usable of {threads['cpus']}",
            "torch": f"{threads['torch']} within an operation, {threads['torch_interop']} between operations",
        },
    )
    section(
        "memory",
        {
            name.removesuffix("_bytes"): ("none" if name == "limit_bytes" else "unknown")
            if count is None
            else f"{count / 1024**3:.1f} GiB"
            for name, count in report["memory"].items()
        },
    )
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _optional_packages() -> dict[str, dict[str, str | None]]:
    found = {}
    for package, module, extra, purpose in OPTIONAL_PACKAGES:
        version = _version(package) if importlib.util.find_spec(module) is not None else None
        found[package] = {"version": version, "purpose": purpose, "install": f"pip install 'sff_fast[{extra}]'"}
    return found


def _families() -> dict[str, dict[str, Any]]:
    from sff_fast.adapters import families

    return {
        name: {
            "installed": info.installed,
            "package": info.package,
            "tasks": sorted(info.tasks),
            "install": None if info.installed else _install_command(info.extra, info.package),
        }
        for name, info in families().items()
    }


def _install_command(extra: str | None, package: str | None) -> str:
    """A family of this package comes with an extra of it, a plug-in's with its own package."""
    return f"pip install 'sff_fast[{extra}]'" if extra else f"pip install {package}"


def _cuda() -> dict[str, Any]:
    import torch

    if torch.version.cuda is None:
        return {"available": False, "reason": "this torch was built without CUDA", "devices": []}
    if not torch.cuda.is_available():
        return {"available": False, "reason": "torch finds no CUDA device or driver", "devices": []}
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return {"available": True, "reason": None, "version": torch.version.cuda, "devices": devices}


def _cuda_text(cuda: Mapping[str, Any]) -> str:
    if not cuda["available"]:
        return f"absent: {cuda['reason']}"
    devices = ", ".join(
        f"{device['name']} (sm_{device['compute_capability'].replace('.', '')}, {device['memory_bytes'] / 1024**3:.0f} GiB)"
        for device in cuda["devices"]
    )
    return f"{cuda['version']}: {devices}"


def _usable_cpus() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _kibibytes(text: str | None) -> int | None:
    return None if text is None else int(text.split()[0]) * 1024


def _container_limit(total: int | None) -> int | None:
    """The memory limit of this process's container; a limit above the physical memory is none."""
    for path in _CGROUP_LIMITS:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and (total is None or int(text) < total):
            return int(text)
    return None
