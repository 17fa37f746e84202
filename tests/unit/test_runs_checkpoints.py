"""Checkpoints: real kills, real full disks, real corruption."""

import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlft.errors import RunError
from rlft.runs.checkpoints import Checkpoints, step_of, verify
from rlft.runs.files import is_out_of_space

ROOT = Path(__file__).parents[2]


def write_weights(value: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "learner").mkdir()
        (folder / "model.safetensors").write_bytes(value * 1000)
        (folder / "learner" / "rank-0.pt").write_bytes(value * 10)

    return write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def python(code: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_saves_verifies_and_keeps_the_newest(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        path = checkpoints.save(step, {"version": step}, write_weights(b"%d" % step))
        assert path == tmp_path / f"step-{step:06d}" and verify(path) == []
    assert names(tmp_path) == ["step-000002", "step-000003"]
    assert checkpoints.latest() == (tmp_path / "step-000003", {"step": 3, "version": 3})
    manifest = json.loads((tmp_path / "step-000003" / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["learner/rank-0.pt", "model.safetensors", "state.json"]
    assert manifest["files"]["model.safetensors"]["size"] == 1000


def test_the_one_just_written_is_never_deleted(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(90, {}, write_weights(b"a"))
    checkpoints.save(10, {}, write_weights(b"b"))
    assert names(tmp_path) == ["step-000010"]


def test_saving_a_step_again_replaces_it(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {"try": 1}, write_weights(b"a"))
    checkpoints.save(1, {"try": 2}, write_weights(b"b"))
    assert names(tmp_path) == ["step-000001"]
    assert checkpoints.latest() == (tmp_path / "step-000001", {"step": 1, "try": 2})


def test_a_replacement_cut_short_between_its_renames_is_undone(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {}, write_weights(b"a")).rename(tmp_path / ".replaced-step-000001")
    checkpoints.remove_leftovers()
    assert names(tmp_path) == ["step-000001"] and checkpoints.latest() is not None


def test_an_error_in_write_travels_and_leaves_nothing(tmp_path: Path):
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise KeyError("a bug")

    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {}, write_weights(b"a"))
    with pytest.raises(KeyError):
        checkpoints.save(2, {}, fail)
    assert names(tmp_path) == ["step-000001"]


def test_sigkill_in_the_middle_of_save_leaves_the_one_before(tmp_path: Path):
    code = """
import sys, time
from pathlib import Path
from rlft.runs.checkpoints import Checkpoints
def write(folder):
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    print("half way", flush=True)
    time.sleep(60)
checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
checkpoints.save(1, {}, lambda folder: None)
checkpoints.save(2, {}, write)
"""
    process = python(code, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "half way\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert names(tmp_path) == [f".tmp-step-000002-{process.pid}", "step-000001"]

    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() == (tmp_path / "step-000001", {"step": 1})
    (tmp_path / ".old-step-000000-1").mkdir()
    checkpoints.remove_leftovers()
    assert names(tmp_path) == ["step-000001"]


def test_sigkill_at_any_moment_leaves_only_whole_checkpoints(tmp_path: Path):
    code = """
import sys
from pathlib import Path
from rlft.runs.checkpoints import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
checkpoints.remove_leftovers()
for step in range(1, 100000):
    checkpoints.save(step, {}, lambda folder: [(folder / n).write_bytes(b"x" * 50000) for n in "abcdef"])
    print(step, flush=True)
"""
    for delay in (0.0, 0.013, 0.029):
        process = python(code, tmp_path)
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        printed = process.communicate(timeout=10)[0].split()
        checkpoints = Checkpoints(tmp_path, keep=2)
        checkpoints.remove_leftovers()
        assert all(verify(path) == [] for path in checkpoints.paths())
        found = checkpoints.latest()
        assert found is not None and found[1]["step"] >= int(printed[-1] if printed else 1)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "harm", "said"),
    [
        ("model.safetensors", flip_a_byte, "SHA-256"),
        ("learner/rank-0.pt", lambda path: os.truncate(path, 3), "has 3 bytes, the manifest says 10"),
        ("learner/rank-0.pt", Path.unlink, "is missing"),
        ("manifest.json", Path.unlink, "is missing"),
        ("manifest.json", lambda path: os.truncate(path, 20), "cannot be read"),
        ("manifest.json", lambda path: path.write_text('{"files": {}}'), "does not list state.json"),
        ("manifest.json", lambda path: path.write_text("[]"), "cannot be read"),
    ],
)
def test_a_corrupt_checkpoint_is_skipped_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, harm: Callable[[Path], object], said: str
):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        checkpoints.save(step, {}, write_weights(b"a"))
    harm(tmp_path / "step-000002" / file)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest() == (tmp_path / "step-000001", {"step": 1})
    for part in (str(tmp_path / "step-000002"), file, said, "step-000002.corrupt", "step-000001 is the newest"):
        assert part in caplog.text
    assert names(tmp_path) == ["step-000001", "step-000002.corrupt"]


def test_no_good_checkpoint_at_all_is_an_error(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        flip_a_byte(checkpoints.save(step, {}, write_weights(b"a")) / "model.safetensors")
    with pytest.raises(RunError, match=r"step-000002 is corrupt(.|\n)*step-000001 is corrupt(.|\n)*is whole"):
        checkpoints.latest()


def test_setting_aside(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=9)
    for step in (1, 2, 3):
        checkpoints.save(step, {}, write_weights(b"a"))
    moved = checkpoints.set_aside_from(2, besides=tmp_path / "step-000002")
    assert [path.name for path in moved] == ["step-000003.before-resume-1"]
    assert [step_of(path) for path in checkpoints.paths()] == [1, 2]


FILL = """
import sys
from pathlib import Path
from rlft.errors import RunError
from rlft.runs.checkpoints import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
checkpoints.save(1, {}, lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 1000))
def plain(folder):
    (folder / "small").write_bytes(b"x" * 500_000)
    (folder / "big").write_bytes(b"x" * 5_000_000)
def torch_(folder):
    import torch
    torch.save(torch.ones(2_000_000), folder / "rank-0.pt")
def safetensors_(folder):
    import torch
    from safetensors.torch import save_file
    save_file({"a": torch.ones(2_000_000)}, folder / "model.safetensors")
def wrapped(folder):
    try:
        plain(folder)
    except OSError as error:
        raise ValueError("rank 1 could not save") from error
for write in (plain, torch_, safetensors_, wrapped):
    try:
        checkpoints.save(2, {}, write)
    except RunError as error:
        print(str(error))
"""


def check_full_disk(folder: Path, before: str) -> None:
    process = python(before + FILL, folder)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert len(lines) == 4, out + err
    for line in lines:
        for part in (f"checkpoint {folder}/step-000002", "bytes) were written so far", "were free at that moment"):
            assert part in line
        assert f"The last good checkpoint is {folder}/step-000001" in line and "--resume auto" in line
    written = re.search(r"\((\d+) bytes\) were written", lines[0])
    assert written is not None and int(written[1]) > 500_000  # the small file and a part of the big one
    assert names(folder) == ["step-000001"]
    assert Checkpoints(folder, keep=2).latest() == (folder / "step-000001", {"step": 1})


def test_file_size_limit_at_a_checkpoint(tmp_path: Path):
    check_full_disk(
        tmp_path,
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n",
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1_000_000  # only the child was limited


def test_full_disk_at_a_checkpoint(tmp_path: Path):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip(f"mounting a small disk is not permitted here: {mount.stderr.decode().strip()}")
    try:
        check_full_disk(tmp_path, "")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_counts_as_a_full_disk():
    assert is_out_of_space(OSError(28, "No space left on device"))
    assert is_out_of_space(RuntimeError("Error while serializing: I/O error: File too large (os error 27)"))
    assert is_out_of_space(RuntimeError("ray::Learner.save() OSError: [Errno 122] Disk quota exceeded"))
    assert not is_out_of_space(OSError(2, "No such file or directory"))
    assert not is_out_of_space(RuntimeError("PytorchStreamReader failed reading zip archive (inline_container.cc:200)"))
