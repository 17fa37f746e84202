"""Every recorded case of ../shared/goldens, and that the checker can fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rlft.algorithms.policy import clipped_policy_loss
from tests.golden import check
from tests.golden.cases import FILES

GOLDENS = Path(__file__).parents[2].parent / "shared" / "goldens"
needs_goldens = pytest.mark.skipif(not GOLDENS.is_dir(), reason=f"the golden numbers are not at {GOLDENS}")


def outcomes() -> list[check.Outcome]:
    return list(check.check_folder(GOLDENS)) if GOLDENS.is_dir() else []


@needs_goldens
@pytest.mark.parametrize("outcome", outcomes(), ids=lambda o: f"{o.file}-{o.case}")
def test_recorded(outcome: check.Outcome) -> None:
    assert outcome.status == "ok", outcome


@needs_goldens
def test_every_file_has_cases() -> None:
    assert {outcome.file for outcome in outcomes()} == set(FILES)


@needs_goldens
def test_clip_fraction() -> None:
    case = json.loads((GOLDENS / "index.json").read_text())["files"]["grpo.npz"]["cases"]["grpo_b0.0"]
    with np.load(GOLDENS / "grpo.npz") as data:
        mask = data["mask"].astype(bool)
        advantages = np.broadcast_to(data["advantages"][:, None], mask.shape)
        arrays = [data["per_token_logps"], data["old_per_token_logps"], advantages]
    clipped = clipped_policy_loss(*(torch.from_numpy(a[mask]) for a in arrays), 0.2, 0.2).clipped
    assert clipped.double().mean().item() == pytest.approx(case["metrics"]["clip_ratio/region_mean"], rel=1e-6)


def made(folder: Path, loss: float, **case: object) -> Path:
    """A folder with one case: two tokens, ratio 1, advantage 2: the loss is -2, the gradient -1 for each token."""
    ones = np.ones((1, 2))
    np.savez(
        folder / "grpo.npz", per_token_logps=-ones, old_per_token_logps=-ones, ref_per_token_logps=-ones,
        advantages=np.array([2.0]), mask=np.ones((1, 2), int), **{"mine/loss": np.array(loss), "mine/grad": -ones},
    )  # fmt: skip
    cases = {"mine": {"loss_type": "grpo", **case}}
    (folder / "index.json").write_text(
        json.dumps({"files": {"grpo.npz": {"max_completion_length": 8, "cases": cases}}})
    )
    return folder


def test_right_and_wrong_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([str(made(tmp_path, -2.0))]) == 0
    assert "1 ok, 0 failed, 0 unsupported" in capsys.readouterr().out
    assert check.main([str(made(tmp_path, -2.0 - 1e-8))]) == 1
    out = capsys.readouterr().out
    assert "grpo.npz         mine                       FAIL         5.0e-09  loss 5e-09" in out
    assert "0 ok, 1 failed" in out


def test_what_is_not_known_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, -2.0, loss_type="quantum")
    np.savez(tmp_path / "new.npz", x=np.zeros(2))
    assert check.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "unknown loss_type 'quantum'" in out and "unknown file" in out and "2 unsupported" in out
    assert check.main([str(tmp_path), "--strict"]) == 1
    assert check.main([str(made(tmp_path, -2.0, sharpness=3))]) == 0
    assert "unknown parameter sharpness" in capsys.readouterr().out


def test_no_goldens_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([str(tmp_path / "nowhere")]) == 2
    assert "index.json is not there" in capsys.readouterr().err
    (tmp_path / "index.json").write_text("[]")
    assert check.main([str(tmp_path)]) == 2
    (tmp_path / "index.json").write_text('{"files": {"grpo.npz": {}}}')
    assert check.main([str(tmp_path)]) == 2
    assert "holds no .npz file; its index names grpo.npz" in capsys.readouterr().err
