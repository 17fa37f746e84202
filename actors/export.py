"""`rlft export`: a checkpoint as a folder that others load, proved by loading it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import ValidationError

from actors import launch
from actors.process import prepare
from actors.targets import find_checkpoint
from rlft import __version__
from rlft.config import Config
from rlft.errors import RunError, UserError
from rlft.exporting.card import model_card
from rlft.exporting.comparing import compare
from rlft.exporting.loading import who_loads
from rlft.exporting.saved import Saved
from rlft.exporting.writing import write_model
from rlft.runs.checkpoints import Checkpoints, read_state, step_of
from rlft.runs.files import fsync_path, full_disk_named


class Exported(NamedTuple):
    """What was done."""

    folder: Path
    lines: tuple[str, ...]  # for people


def export(
    target: str,
    to: str,
    merge: bool = False,
    dtype: str | None = None,
    step: int | None = None,
    push: str | None = None,
) -> Exported:
    """Write the newest checkpoint of a run (or that of `step`, or the checkpoint that is named) to the folder `to`.

    Raises UserError before anything is written for what cannot be exported so, and RunError, nothing left, when what
    was written says something else than the checkpoint. `push`: a name on the Hub to upload it to.
    """
    folder = Path(to).expanduser().absolute()
    _refuse_taken(folder)
    saved = find_saved(Path(target), step)
    if folder.is_relative_to(saved.run.absolute() / "checkpoints"):
        raise UserError(f"--to {folder}: is among the run's own checkpoints; name a folder somewhere else")
    form = saved.form(merge)
    token = None if push is None else hub_token()
    prepare(saved.config, gpus=0)
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _make(temporary, folder)
        with full_disk_named(folder):
            write_model(saved, form, dtype, temporary)
            gap = compare(saved, form, dtype, temporary)
            loaders = saved.loaders(form, temporary / saved.folders()[0])
            (temporary / "README.md").write_text(
                model_card(saved, form, gap, loaders, temporary, __version__), encoding="utf-8"
            )
        _put_in_place(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    told = {"full": "the whole model", "adapter": "its adapter", "merged": "its adapter merged into the base"}[form]
    lines = [f"{folder}: {told}, of {saved.checkpoint}", who_loads(saved, form, loaders), f"loaded back: {gap.text()}"]
    if push is not None:
        lines.append(f"uploaded to {upload(folder, push, token)} (private until you change that there)")
    return Exported(folder, tuple(lines))


def find_saved(target: Path, step: int | None = None) -> Saved:
    """The checkpoint that `target` names, or that of `step` in a run. Raises UserError when there is none."""
    if target.is_file():
        raise UserError(f"{target}: is a file; expected a run's folder, or a checkpoint in one")
    if not target.is_dir():
        from rlft.config.problems import near_files

        raise UserError(f"{target}: there is no such checkpoint or run folder{near_files(target)}")
    if step is not None:
        if not (target / "config.yaml").is_file():
            raise UserError(f"--step {step}: {target} is no run folder; give a run's, or leave --step out")
        paths = {step_of(path): path for path in Checkpoints(target / "checkpoints", keep=1).paths()}
        if step not in paths:
            there = ", ".join(str(number) for number in paths) or "none"
            raise UserError(f"--step {step}: {target} has no checkpoint of that step; there are: {there}")
        target = paths[step]
    run, checkpoint = find_checkpoint(target, to="export")
    text = (run / "config.yaml").read_text(encoding="utf-8")
    try:
        config = Config.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{run}/config.yaml: {key}: {first['msg']}. Was it written by another version of rlft?"
        ) from error
    return Saved(launch.with_model(config, run), run, checkpoint, int(read_state(checkpoint)["step"]))


def _refuse_taken(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder}: is a file; expected a folder that is not there yet, or empty")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--to {folder}: is not empty, and an export overwrites nothing; name another folder")


def _make(temporary: Path, folder: Path) -> None:
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--to {folder}: nothing can be written there ({error})") from error


def _put_in_place(temporary: Path, folder: Path) -> None:
    for path in temporary.rglob("*"):
        fsync_path(path)
    try:
        temporary.rename(folder)  # onto an empty folder too
    except OSError as error:
        raise RunError(
            f"{folder}: somebody else has put something there meanwhile ({error}). Nothing was left"
        ) from error
    fsync_path(folder.parent)


def hub_token() -> str:
    """The user's, for the Hugging Face Hub. Raises UserError without one, or where the Hub may not be reached."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError("--push: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it, or leave --push out")
    token = get_token()
    if token is None:
        raise UserError("--push: there is no token for the Hugging Face Hub; log in (hf auth login) or set HF_TOKEN")
    return token


def upload(folder: Path, name: str, token: str | None) -> str:
    """Upload a folder into a repository, which is made (private) where there is none. Gives its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="rlft export")
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise RunError(f"--push {name}: not uploaded ({error}). The export is in {folder}") from error
    return str(address)
