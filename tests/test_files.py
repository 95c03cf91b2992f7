"""Files are complete or not there, whatever happens in the middle."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from sff_fast import files
from sff_fast.errors import ArgumentError, CheckpointError, DataError, OutputError
from sff_fast.files import atomic, temporaries

ROOT = Path(__file__).resolve().parent.parent


def left_overs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if ".sff-" in path.name)


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


# --- atomic_write -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain.bin", "with space.bin", "ünï-☃.json", "n" * 250, "ü" * 125, ".hidden"])
def test_a_file_appears_with_its_contents_under_any_name(tmp_path: Path, name: str) -> None:
    with files.atomic_write(tmp_path / name) as file:
        file.write(b"abc")
        assert not (tmp_path / name).exists()
    assert (tmp_path / name).read_bytes() == b"abc"
    assert os.listdir(tmp_path) == [name]


def test_a_file_name_that_is_not_utf8_works(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/bad-\xff"
    with files.atomic_write(os.fsdecode(path)) as file:
        file.write(b"abc")
    with open(path, "rb") as file:
        assert file.read() == b"abc"


def test_an_exception_in_the_block_keeps_the_old_file_and_removes_the_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), files.atomic_write(path) as file:  # noqa: PT012
        file.write(b"new" * 1_000_000)
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_ctrl_c_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), files.atomic_write(tmp_path / "a") as file:  # noqa: PT012
        file.write(b"new")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_the_old_file_and_its_temporary_is_cleared_up_later(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "state").mkdir(parents=True)
    (out / "metrics.json").write_text("old")
    code = (
        "import os, sys; from sff_fast import files\n"
        "out = sys.argv[1]\n"
        "a = files.atomic_write(out + '/metrics.json'); a.__enter__().write(b'new')\n"
        "b = files.atomic_write(out + '/state/x'); b.__enter__().write(b'new')\n"
        "c = files.atomic_directory(out + '/model'); (c.__enter__() / 'w').write_text('half')\n"
        "os.kill(os.getpid(), 9)"
    )
    assert run_python(code, out).returncode == -9
    assert (out / "metrics.json").read_text() == "old"
    assert len(left_overs(out)) == 3
    assert files.check_output_directory(out, overwrite=True) == "finished"
    assert left_overs(out) == []
    assert not (out / "model").exists()


def test_the_temporary_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with files.atomic_write(tmp_path / "a") as file, files.atomic_directory(tmp_path / "d") as folder:
        file.write(b"abc")
        files.check_output_directory(tmp_path)
        assert folder.is_dir()
        assert len(left_overs(tmp_path)) == 2
    assert (tmp_path / "a").read_bytes() == b"abc"


def test_a_new_file_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with files.atomic_write(tmp_path / "a") as file:
            file.write(b"x")
        with open(tmp_path / "b", "wb") as file:
            file.write(b"x")
        with files.atomic_directory(tmp_path / "c"):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o750


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with files.atomic_write(path) as file:
        file.write(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_stays_and_its_target_is_written(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "target"
    if exists:
        target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to("far/target")
    with files.atomic_write(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert left_overs(tmp_path) == []


def test_a_wrapper_that_closes_the_file_does_no_harm(tmp_path: Path) -> None:
    with files.atomic_write(tmp_path / "a") as file, io.TextIOWrapper(file, encoding="utf-8") as text:
        text.write("é")
    assert (tmp_path / "a").read_bytes() == "é".encode()


def test_a_write_goes_to_the_disk_before_the_name_and_the_folder_after_it(tmp_path: Path, monkeypatch) -> None:
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else f"file of {os.fstat(fd).st_size}")
        real_fsync(fd)

    def replace(source: Path, target: Path) -> None:
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with files.atomic_write(tmp_path / "a") as file:
        file.write(b"abc")
    assert events == ["file of 3", "rename", "folder"]


@pytest.mark.parametrize("size", [10, 5_000_000])
def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path: Path, monkeypatch, size: int) -> None:
    path = tmp_path / "a b"
    path.write_bytes(b"old")

    def full(self: io.FileIO, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    # FileIO's own write cannot be replaced, so a class that raises stands between it and the file that is written to.
    raw = type("Full", (io.FileIO,), {"write": full})
    monkeypatch.setattr(atomic, "_RawFile", type("_RawFile", (atomic._RawFile, raw), {}))
    with (
        pytest.raises(OutputError, match=r"^cannot write '.*/a b': no space left on device; free some space") as caught,
        files.atomic_write(path) as file,
    ):
        file.write(b"x" * size)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a b"]


def test_a_write_beyond_the_limit_of_the_system_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with (
            pytest.raises(OutputError, match=r"^cannot write .*: file too large; raise the limit"),
            files.atomic_write(tmp_path / "a") as file,
        ):
            file.write(b"x" * 5_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failing_system_call_at_the_end_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch, name: str) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OutputError, match="input/output error"), files.atomic_write(tmp_path / "a") as file:
        file.write(b"abc")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/a", "the folder '.*missing' does not exist; create it first"),
        ("folder", "it is a folder"),
        ("file/a", "the folder '.*file' does not exist|a part of the path is a file"),
        ("loop", "loop of symbolic links"),
        ("fifo", "device or pipe"),
        ("/dev/null", "device or pipe"),
        ("", "is not a path"),
        ("a\0b", "is not a path"),
        ("x" * 300, "file name too long; choose a shorter name"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    with (
        pytest.raises(OutputError, match=message) as caught,
        files.atomic_write(tmp_path / path if path and path[0] != "/" else path) as file,
    ):
        file.write(b"abc")
    assert "\n" not in str(caught.value)
    assert left_overs(tmp_path) == []


def test_a_read_only_file_system_is_one_line(tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments: object, **options: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", fail)
    with (
        pytest.raises(OutputError, match="read-only file system; choose a folder that you may write to"),
        files.atomic_write(tmp_path / "a"),
    ):
        pass


@pytest.fixture
def ordinary_folder() -> Iterator[Path]:
    """A folder whose owner is bound by permissions: root, who is not, becomes nobody for as long as the test runs."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.geteuid() == 0
        if root:
            os.chown(folder, 65534, 65534)
            os.setresuid(65534, 65534, 0)
        try:
            yield Path(folder)
        finally:
            os.chmod(folder, 0o755)
            if root:
                os.setresuid(0, 0, 0)


def test_a_read_only_folder_and_file_are_refused(ordinary_folder: Path) -> None:
    (ordinary_folder / "a").write_bytes(b"old")
    (ordinary_folder / "a").chmod(0o444)
    with pytest.raises(OutputError, match="the file is read-only"), files.atomic_write(ordinary_folder / "a"):
        pass
    ordinary_folder.chmod(0o555)
    with pytest.raises(OutputError, match="permission denied"), files.atomic_write(ordinary_folder / "b"):
        pass
    with pytest.raises(OutputError, match="no permission to write"):
        files.check_output_directory(ordinary_folder / "out")


# --- atomic_directory -------------------------------------------------------------------------------------------------


def test_a_folder_appears_with_its_contents(tmp_path: Path) -> None:
    with files.atomic_directory(tmp_path / "a b") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("1")
        assert not (tmp_path / "a b").exists()
    assert (tmp_path / "a b" / "sub" / "x").read_text() == "1"
    assert os.listdir(tmp_path) == ["a b"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_replaced_folder_holds_the_new_contents_only(tmp_path: Path, monkeypatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(temporaries, "exchange", lambda first, second: False)
    target = tmp_path / "model"
    target.mkdir(mode=0o700)
    (target / "old").write_text("old")
    with files.atomic_directory(target, replace=True) as folder:
        (folder / "new").write_text("new")
        assert os.listdir(target) == ["old"]
    assert os.listdir(target) == ["new"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_is_swapped_without_a_moment_in_which_it_is_missing(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    if not temporaries.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("the file system of the temporary folder has no atomic exchange")
    monkeypatch.setattr(os, "rename", lambda source, target: pytest.fail("moved aside instead of exchanged"))
    with files.atomic_directory(tmp_path / "a", replace=True) as folder:
        (folder / "new").write_text("new")
    assert os.listdir(tmp_path / "a") == ["new"]


def test_a_folder_that_fails_in_the_middle_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), files.atomic_directory(tmp_path / "model", replace=True) as folder:  # noqa: PT012
        (folder / "new").write_text("new")
        raise ZeroDivisionError
    assert os.listdir(tmp_path / "model") == ["old"]
    assert os.listdir(tmp_path) == ["model"]


def test_every_file_of_a_folder_is_flushed_before_the_rename(tmp_path: Path, monkeypatch) -> None:
    events = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        real_fsync(fd)

    def rename(source: Path, target: Path) -> None:
        events.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    with files.atomic_directory(tmp_path / "m") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("1")
        (folder / "y").write_text("2")
        name = folder.name
    assert events == ["x", "sub", "y", name, "rename", tmp_path.name]


def test_an_existing_folder_or_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("old")
    with pytest.raises(OutputError, match=r"exists already: .*\(overwrite=True\)"), files.atomic_directory(tmp_path / "d"):
        pass
    with pytest.raises(OutputError, match="it is a file"), files.atomic_directory(tmp_path / "f", replace=True):
        pass
    with pytest.raises(OutputError, match="made by someone else"), files.atomic_directory(tmp_path / "e"):
        (tmp_path / "e").mkdir()
    assert sorted(os.listdir(tmp_path)) == ["d", "e", "f"]


def test_a_process_killed_between_the_two_renames_gets_its_old_folder_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "model").mkdir(parents=True)
    (out / "model" / "old").write_text("old")
    code = (
        "import os, sys; from sff_fast import files\n"
        "files.temporaries.exchange = lambda first, second: False\n"
        "real = os.rename\n"
        "def rename(source, target):\n"
        "    if str(target).endswith('model'): os.kill(os.getpid(), 9)\n"
        "    real(source, target)\n"
        "os.rename = rename\n"
        "with files.atomic_directory(sys.argv[1], replace=True) as folder: (folder / 'new').write_text('new')"
    )
    assert run_python(code, out / "model").returncode == -9
    assert not (out / "model").exists()
    assert len(left_overs(out)) == 2
    files.check_output_directory(out)
    assert os.listdir(out) == ["model"]
    assert os.listdir(out / "model") == ["old"]


def test_an_old_folder_left_after_a_complete_swap_is_removed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / f".model.{'0' * 16}.sff-old").mkdir()
    (tmp_path / f".model.{'0' * 16}.sff-old" / "x").write_text("old")
    files.check_output_directory(tmp_path)
    assert os.listdir(tmp_path) == ["model"]


def test_a_failing_second_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(temporaries, "exchange", lambda first, second: False)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if str(source).endswith(".sff-tmp"):
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with (
        pytest.raises(OutputError, match="input/output error"),
        files.atomic_directory(tmp_path / "model", replace=True) as folder,
    ):
        (folder / "new").write_text("new")
    assert os.listdir(tmp_path / "model") == ["old"]
    assert os.listdir(tmp_path) == ["model"]


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_round_trips_and_converts_numpy_and_paths(tmp_path: Path) -> None:
    obj = {
        "a": [1, 2.5, None, True, "é ☃"],
        "n": np.float32(0.5),
        "i": np.int64(3),
        "b": np.bool_(True),
        "v": np.array([[1.0, 2.0]]),
        "p": Path("x/y"),
        "t": (1, 2),
    }
    files.write_json(tmp_path / "a.json", obj)
    expected = {
        "a": [1, 2.5, None, True, "é ☃"],
        "n": 0.5,
        "i": 3,
        "b": True,
        "v": [[1.0, 2.0]],
        "p": "x/y",
        "t": [1, 2],
    }
    assert files.read_json(tmp_path / "a.json") == expected
    assert "é ☃" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")


def test_json_holds_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"source": os.fsdecode(b"bad-\xff")})
    assert files.read_json(tmp_path / "a.json") == {"source": os.fsdecode(b"bad-\xff")}


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (
            {"runs": [{"val_mse": float("nan")}]},
            r"^the value\['runs'\]\[0\]\['val_mse'\] is nan, which JSON cannot hold",
        ),
        ({"x": np.float32("inf")}, r"\['x'\] is inf"),
        ({1: 2}, "has the key 1 of type int"),
        ({"x": torch.zeros(1)}, r"\['x'\] is a Tensor"),
        ([{1, 2}], r"\[0\] is a set"),
    ],
)
def test_what_json_cannot_hold_is_named_and_nothing_is_written(tmp_path: Path, obj: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        files.write_json(tmp_path / "a.json", obj)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "cannot read the file .*: it does not exist"),
        (b"", "line 1, column 1"),
        (b'{"a": 1,\n "b" 2}', "line 2, column 6"),
        (b'{"a": NaN}', "it holds NaN"),
        (b'{"a": -Infinity}', "it holds -Infinity"),
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": 1} x', "Extra data"),
        (b"1" * 5000, "not valid JSON"),
    ],
)
def test_bad_json_is_refused_in_one_line_with_the_callers_error(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "a b.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        files.read_json(path, CheckpointError)
    assert "a b.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert files.read_json(tmp_path / "a.json") == [1]


# --- safetensors ------------------------------------------------------------------------------------------------------

TENSORS = {
    "odd": torch.arange(3, dtype=torch.uint8),
    "transposed": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "double": torch.tensor([1e300, float("nan")], dtype=torch.float64),
    "half": torch.tensor([1.0, -0.0], dtype=torch.float16),
    "strided": torch.arange(20)[::3],
    "f8": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
    "unsigned": torch.tensor([65535], dtype=torch.uint16),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "é": torch.tensor([1], dtype=torch.int8),
}


def test_safetensors_are_read_back_by_the_official_library(tmp_path: Path) -> None:
    files.save_safetensors(tmp_path / "a.safetensors", TENSORS, {"format": "pt", "key": "ü"})
    loaded = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        raw = [t.detach().contiguous().reshape(-1).view(torch.uint8).tolist() for t in (loaded[name], tensor)]
        assert raw[0] == raw[1], name
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "key": "ü"}


def test_safetensors_are_byte_for_byte_what_the_official_library_writes(tmp_path: Path) -> None:
    tensors = {name: t.detach().contiguous() for name, t in TENSORS.items() if name not in ("f8", "unsigned")}
    files.save_safetensors(tmp_path / "ours", tensors, {"format": "pt"})
    safetensors.torch.save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    ours, theirs = ((tmp_path / name).read_bytes() for name in ("ours", "theirs"))
    sizes = [int.from_bytes(data[:8], "little") for data in (ours, theirs)]
    headers = [json.loads(data[8 : 8 + size]) for data, size in zip((ours, theirs), sizes)]
    assert sizes[0] % 8 == 0  # tensors begin aligned, as the format asks
    # Where two dtypes have one width the library orders them by its own numbering, so tensors are compared one by one.
    for name in tensors:
        cuts = []
        for data, size, header in zip((ours, theirs), sizes, headers):
            begin, end = header[name]["data_offsets"]
            assert begin % tensors[name].element_size() == 0
            cuts.append((header[name]["dtype"], header[name]["shape"], data[8 + size + begin : 8 + size + end]))
        assert cuts[0] == cuts[1], name
    assert len(ours) - sizes[0] == len(theirs) - sizes[1]


def test_a_failed_save_of_tensors_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.save_safetensors(path, {"x": torch.ones(2)})
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match="file too large"):
            files.save_safetensors(path, {"x": torch.ones(1000), "y": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"__metadata__": torch.ones(1)}, None, "cannot be the name of a tensor"),
        ({3: torch.ones(1)}, None, "3 cannot be the name"),
        ({"x": np.ones(1)}, None, "'x' must be a tensor, got ndarray"),
        ({"x": torch.ones(2, 2).to_sparse()}, None, "'x' must be a dense tensor"),
        ({"x": torch.ones(2, device="meta")}, None, "'x' must be a dense tensor with data, got .* on meta"),
        ({"x": torch.ones(2, dtype=torch.complex64)}, None, "complex64, which safetensors cannot hold"),
        ({"x": torch.ones(2)}, {"step": 3}, "metadata must map strings to strings"),
    ],
)
def test_what_safetensors_cannot_hold_is_named(tmp_path: Path, tensors: dict, metadata: dict | None, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        files.save_safetensors(tmp_path / "a", tensors, metadata)
    assert os.listdir(tmp_path) == []


# --- sha256, check_output_directory -----------------------------------------------------------------------------------


def test_sha256_is_the_known_value(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "a").write_bytes(b"a" * 1_000_000)  # FIPS 180 test vector, longer than a block that is read at once
    with open(tmp_path / "a", "ab") as file:
        file.write(b"a" * 0)
    assert files.sha256(tmp_path / "a") == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    with pytest.raises(DataError, match=r"cannot read the file .*: it does not exist"):
        files.sha256(tmp_path / "b")
    with pytest.raises(CheckpointError, match="is a directory"):
        files.sha256(tmp_path, CheckpointError)


def test_an_output_folder_is_new_unfinished_or_finished(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert files.check_output_directory(out) == "new"
    assert not out.parent.exists()
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("the user's own")
    assert files.check_output_directory(out) == "new"
    (out / "state").mkdir()
    assert files.check_output_directory(out) == "new"
    (out / "state" / f".run.json.{'2' * 16}.sff-tmp").write_text("{")  # a dead run that had written nothing yet
    assert files.check_output_directory(out) == "new"
    (out / "state" / "run.json").write_text("{}")
    with pytest.raises(OutputError, match=r"holds an unfinished run: .* continue it \(--resume\) or --overwrite"):
        files.check_output_directory(out)
    assert files.check_output_directory(out, resume=True) == "unfinished"
    (out / "metrics.json").write_text("{}")
    with pytest.raises(OutputError, match=r"holds a finished run: choose another folder, or overwrite it \(--overwrite\)"):
        files.check_output_directory(out)
    assert files.check_output_directory(out, overwrite=True) == "finished"
    assert files.check_output_directory(out, resume=True) == "finished"
    assert (out / "notes.txt").read_text() == "the user's own"


def test_an_output_folder_below_a_file_or_with_contradicting_options_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match=r"'.*/f' is a file"):
        files.check_output_directory(tmp_path / "f")
    with pytest.raises(OutputError, match=r"'.*/f' is a file"):
        files.check_output_directory(tmp_path / "f" / "x")
    with pytest.raises(ArgumentError, match="overwrite and resume exclude each other"):
        files.check_output_directory(tmp_path, overwrite=True, resume=True)


def test_an_output_folder_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="no permission to write to"):
        files.check_output_directory(tmp_path / "out")


def test_clearing_up_spares_the_users_files_and_links(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "x").write_text("x")
    out = tmp_path / "out"
    out.mkdir()
    (out / f".a.{'1' * 16}.sff-tmp").symlink_to(keep)
    (out / f".b.{'1' * 16}.sff-old").symlink_to(keep)
    (out / ".a.sff-tmp").write_text("not ours: no token")
    (out / f"c.{'1' * 16}.sff-tmp").write_text("not ours: no dot")
    files.check_output_directory(out)
    assert len(os.listdir(out)) == 4
    assert (keep / "x").read_text() == "x"


def test_a_folder_on_a_file_system_that_takes_no_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/proc/self").exists():
        with pytest.raises(OutputError, match=r"nothing can be written into '/proc' \(no such file or directory\)"):
            files.check_output_directory("/proc/nope")

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(OutputError, match="read-only file system"):
        files.check_output_directory(tmp_path / "out")


def test_checking_an_output_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    assert files.check_output_directory(tmp_path / "a" / "b") == "new"
    assert list(tmp_path.iterdir()) == []
