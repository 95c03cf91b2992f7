"""The Python module ``sff_fast._cuda`` on the CPU: bindings, host code and kernels unmodified, on the shim's runtime."""

from __future__ import annotations

import functools
import importlib.util
import sysconfig
from types import ModuleType

import numpy as np

from cuda_shim import ROOT, build

CSRC = ROOT / "csrc"
SOURCES = (
    CSRC / "bindings_cuda.cpp",
    CSRC / "bindings_cuda_optim.cpp",
    *(CSRC / "cuda" / name for name in ("chunks.cpp", "adamw_chunks.cpp", "smooth.cu", "adamw.cu", "adamw_resident.cu")),
    *(CSRC / "cpu" / name for name in ("check_tasks.cpp", "check_adamw.cpp")),
)


@functools.cache
def load() -> ModuleType:
    """Compile the module where no earlier run did, and import it. Its device addresses are this process's."""
    import pybind11

    includes = (f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}")
    options = ("-O0", "-DSHIM_WARPS", '-DSFF_CUDA_ARCHITECTURES="the shim"', *includes)
    library = build(SOURCES, options, sysconfig.get_config_var("EXT_SUFFIX"))
    spec = importlib.util.spec_from_file_location("_cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TASK_BYTES % np.dtype(np.uint64).itemsize == 0
    return module
