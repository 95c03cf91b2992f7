"""What ``doctor`` says about the machine."""

from __future__ import annotations

import json
import os
import platform
import sys
from types import SimpleNamespace

import numpy
import pytest
import torch

from sff_fast import doctor
from sff_fast.backends import available_backends
from sff_fast.cli import main
from sff_fast.version import __version__


def test_the_report_names_versions_backends_threads_and_families():
    report = doctor.examine()
    assert report["sff_fast"] == __version__
    assert report["python"] == platform.python_version()
    assert report["packages"]["torch"] == torch.__version__
    assert report["packages"]["numpy"] == numpy.__version__
    assert report["backends"] == available_backends()
    assert report["threads"]["torch"] == torch.get_num_threads()
    assert {"timer", "ttm"} <= set(report["families"])
    assert report["instruction_set"]["machine"] == platform.machine()


def test_the_json_is_the_report(capsys):
    assert main(["doctor", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    report = json.loads(json.dumps(doctor.examine()))
    for volatile in (printed, report):
        volatile["memory"].pop("available_bytes")
    assert printed == report


def test_the_text_has_a_line_for_every_backend_and_family(capsys):
    assert main(["doctor"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    first_words = [words[0] for words in lines if words]
    for name in [*available_backends(), "timer", "ttm", "torch", "numpy", "processors", "total"]:
        assert name in first_words, name


def test_nothing_is_changed_by_looking():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    doctor.examine()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("extra", "package", "command"),
    [("ttm", "granite-tsfm", "pip install 'sff_fast[ttm]'"), (None, "other-family", "pip install other-family")],
)
def test_a_family_whose_package_is_missing_comes_with_the_pip_command(monkeypatch, extra, package, command):
    info = SimpleNamespace(installed=False, package=package, extra=extra, tasks=frozenset({"forecast"}))
    monkeypatch.setattr("sff_fast.adapters.families", lambda: {"lost": info})
    report = doctor.examine()
    assert report["families"]["lost"] == {
        "installed": False,
        "package": package,
        "tasks": ["forecast"],
        "install": command,
    }
    assert f"lost  absent: {command}" in doctor.to_text(report)


def test_an_optional_package_that_is_missing_comes_with_the_pip_command(monkeypatch):
    monkeypatch.setattr(doctor, "OPTIONAL_PACKAGES", (("no-such-package", "no_such_module", "data", "nothing"),))
    report = doctor.examine()
    assert report["optional_packages"]["no-such-package"]["version"] is None
    assert "no-such-package  absent, nothing: pip install 'sff_fast[data]'" in doctor.to_text(report)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, which is Linux's")
def test_memory_is_what_the_system_says():
    memory = doctor.memory()
    assert memory["total_bytes"] == pytest.approx(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), rel=0.01)
    assert 0 < memory["available_bytes"] <= memory["total_bytes"]


@pytest.mark.parametrize(("text", "expected"), [("1073741824\n", 1 << 30), ("max\n", None), (str(1 << 62), None)])
def test_the_containers_memory_limit_is_read_and_no_limit_is_none(tmp_path, monkeypatch, text, expected):
    (tmp_path / "memory.max").write_text(text)
    monkeypatch.setattr(doctor, "_CGROUP_LIMITS", (str(tmp_path / "absent"), str(tmp_path / "memory.max")))
    memory = doctor.memory()
    assert memory["limit_bytes"] == expected
    report = {**doctor.examine(), "memory": memory}
    assert ("limit      1.0 GiB" if expected else "limit      none") in doctor.to_text(report)


def test_cuda_devices_are_listed_and_their_absence_has_a_reason(monkeypatch):
    device = SimpleNamespace(name="H100", major=9, minor=0, total_memory=80 << 30)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    assert doctor._cuda_text(doctor._cuda()) == "13.0: H100 (sm_90, 80 GiB)"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor._cuda_text(doctor._cuda()) == "absent: torch finds no CUDA device or driver"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert doctor._cuda_text(doctor._cuda()) == "absent: this torch was built without CUDA"
