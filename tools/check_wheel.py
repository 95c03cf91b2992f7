"""Checks an installed wheel: the native module loads, smooths to the bits of the reference, and is linked to no torch.

``python tools/check_wheel.py``, outside of a clone or with the wheel installed; exit code 0 and one line when all holds.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

import sff_fast


def needed_libraries(path: Path) -> list[str]:
    """What an ELF file asks the loader for."""
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        sections = [section for section in ELFFile(file).iter_sections() if isinstance(section, DynamicSection)]
        return [tag.needed for section in sections for tag in section.iter_tags() if tag.entry.d_tag == "DT_NEEDED"]


def main() -> int:
    """Smooth a small model with both backends and compare."""
    models = []
    for backend in ("cpu", "reference"):
        torch.manual_seed(0)
        model = torch.nn.Linear(129, 7)
        sff_fast.smooth_(model, lambda: torch.nn.Linear(129, 7), backend=backend)
        models.append(model)
    if not all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters())):
        print("the native module and the reference differ", file=sys.stderr)
        return 1
    if importlib.util.find_spec("elftools") is not None:
        native = Path(sys.modules["sff_fast._cpu"].__file__)
        foreign = [name for name in needed_libraries(native) if name.startswith(("libtorch", "libc10"))]
        if foreign:
            print(f"{native.name} is linked to {', '.join(foreign)}", file=sys.stderr)
            return 1
    print(f"sff_fast {sff_fast.__version__} with torch {torch.__version__}: {sff_fast.available_backends()['cpu']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
