"""The package's front door."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sff_fast


def test_every_public_name_is_there_and_none_is_hidden_by_a_module():
    for name in sff_fast.__all__:
        assert type(getattr(sff_fast, name)).__name__ != "module", name
    assert set(sff_fast._HOME) | {"__version__"} == set(sff_fast.__all__)
    assert set(sff_fast.__all__) <= set(dir(sff_fast))


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'sff_fast' has no attribute 'smoth_'"):
        _ = sff_fast.smoth_


@pytest.mark.parametrize("module", ["sff_fast", "sff_fast.cli"])
def test_importing_the_package_does_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_modules_import_without_optional_packages():
    # everything that an extra brings is refused; the core must not notice
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        optional = "click rich matplotlib pandas jinja2 pyarrow scipy transformers huggingface_hub einops accelerate"
        optional += " tsfm_public chronos sktime momentfm timesfm uni2ts gluonts lightning jaxtyping peft"
        if name.split(".")[0] in optional.split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
import torch, sff_fast
for name in sff_fast.__all__:
    getattr(sff_fast, name)
model = torch.nn.Linear(2, 2)
sff_fast.smooth_(model, lambda: torch.nn.Linear(2, 2))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
