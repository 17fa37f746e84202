"""The checker on goldens of other shapes, masks and parameters, and on folders that are not as they should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.golden import check
from tests.golden.plain import other_goldens


@pytest.mark.parametrize("seed", range(5))
def test_other_shapes_masks_and_parameters(tmp_path: Path, seed: int) -> None:
    outcomes = list(check.check_folder(other_goldens(tmp_path, seed)))
    assert [o for o in outcomes if o.status != "ok" or "not compared" in o.detail] == []
    assert len(outcomes) > 70


def test_every_recorded_array_counts(tmp_path: Path) -> None:
    """Each result, changed a little at one place, fails its case and no other. (PPO is given its advantages and
    returns.)"""
    folder = other_goldens(tmp_path, 1)
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as opened:
            arrays = dict(opened)
        results = [key for key in arrays if key.rpartition("/")[2].startswith(check.RESULTS)]
        for key in set(results) - {"ppo/advantages", "ppo/returns", "advantages"}:
            wrong = np.array(arrays[key])
            wrong.flat[np.abs(wrong).argmax()] += 1e-6
            data = arrays | {key: wrong}
            file = json.loads((folder / "index.json").read_text())["files"][path.name]
            found = [
                check.check_case(path.name, case, settings, file, data, 1e-9)
                for case, settings in check.cases_of(file, data).items()
            ]
            assert [o.case for o in found if o.status != "ok"] == [key.rpartition("/")[0] or "(the file)"]


def test_what_is_amiss_is_named_and_the_rest_is_checked(tmp_path: Path) -> None:
    folder = other_goldens(tmp_path, 2)
    index = json.loads((folder / "index.json").read_text())
    files = index["files"]
    del files["kto.npz"]  # arrays without an entry
    del files["dpo.npz"]["cases"]["ipo"]  # a case without one
    files["dpo.npz"]["cases"]["gone"] = {"loss_type": "sigmoid"}  # a case without arrays
    files["dpo.npz"]["cases"]["hinge"]["beta"] = "much"  # a known parameter that makes no sense
    files["new.npz"] = {"cases": {"a": {}}}  # a file that is not there
    (folder / "rloo.npz").write_bytes(b"not a zip")
    (folder / "index.json").write_text(json.dumps(index))
    found = {(o.file, o.case): o for o in check.check_folder(folder)}
    named = {place: (o.status, o.detail.split(":")[0]) for place, o in found.items() if o.status != "ok"}
    unknown = ("unsupported", "not in the index, so that its parameters are not known")
    assert named == {
        ("kto.npz", "kto"): unknown,
        ("kto.npz", "apo_zero_unpaired"): unknown,
        ("dpo.npz", "ipo"): unknown,
        ("dpo.npz", "gone"): ("unsupported", "nothing is recorded for it"),
        ("dpo.npz", "hinge"): ("FAIL", "TypeError"),
        ("new.npz", "(the file)"): ("unsupported", "named in the index, and not there"),
        ("rloo.npz", "(the file)"): ("FAIL", "cannot be read"),
    }
    assert len(found) > 70


def test_what_we_do_not_compute_is_said(tmp_path: Path) -> None:
    folder = other_goldens(tmp_path, 3)
    with np.load(folder / "rloo.npz") as opened:
        np.savez(folder / "rloo.npz", **opened, **{"rloo/entropy": np.zeros(3)})
    (rloo,) = (o for o in check.check_folder(folder) if o.file == "rloo.npz")
    assert (rloo.status, rloo.detail) == ("ok", "loss, grad (not compared: entropy)")


def test_errors_are_relative_to_the_largest_number() -> None:
    def error(ours: float, expected: float) -> float:
        return check.relative_error(np.array([ours, -200.0]), np.array([expected, -200.0]))

    assert error(1.0, 2.0) == 1 / 200
    assert check.relative_error(np.zeros(2), np.array([1e-17, -1e-17])) == pytest.approx(1e-11)  # noise about 0
    assert error(np.nan, 2.0) == error(1.0, np.nan) == np.inf
    assert check.relative_error(np.zeros(2), np.zeros(3)) == np.inf
