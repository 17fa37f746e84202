"""The project as a whole: its shape, its configurations, its public face."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rlft
from rlft.config.load import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MAX_LINES = 400  # beyond that a file holds two ideas


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_is_right_and_says_how_to_start_it(path, monkeypatch, tmp_path):
    """As in a fresh checkout: with a folder `runs` there, checkpoints of runs that were not made are missed."""
    for entry in ROOT.iterdir():
        if entry.name != "runs":
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    assert load_config(path).run.name == path.stem
    assert f"rlft train configs/{path.name}" in path.read_text().partition("\nmodel:")[0]


def test_there_are_configs():
    assert {"grpo_gsm8k.yaml", "grpo_gsm8k_smoke.yaml"} <= {path.name for path in CONFIGS}


def test_no_file_holds_two_ideas():
    files = [path for folder in ("rlft", "actors", "rewards") for path in (ROOT / folder).rglob("*.py")]
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert len(files) > 30
    assert long == {}


def test_every_file_says_what_it_is_for():
    files = [path for folder in ("rlft", "actors", "rewards") for path in (ROOT / folder).rglob("*.py")]
    silent = [
        str(path.relative_to(ROOT)) for path in files if path.read_text().strip() and '"""' not in path.read_text()[:5]
    ]
    assert silent == []


def test_import_is_light():
    code = "import rlft, sys; print([name for name in ('torch', 'ray', 'numpy', 'pydantic') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


def test_the_public_face():
    from rlft.samples import RewardResult

    assert rlft.RewardResult is RewardResult
    assert rlft.load_config is load_config
    assert not hasattr(rlft, "nothing")


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("rewards.py", "def f(): ...", "my_rewards.py"),
        ("actors.py", "", "my_actors.py"),
        ("rewards/__init__.py", "", "my_rewards"),
    ],
)
def test_a_file_that_hides_ours_is_named(tmp_path, name, content, advice):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import rlft"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"{file} hides rlft's own package" in done.stderr
    assert advice in done.stderr


def test_a_driver_that_is_called_rewards_is_told_so(tmp_path):
    driver = tmp_path / "rewards.py"
    driver.write_text(f"import sys; sys.path.append({str(ROOT)!r}); import rlft")
    done = subprocess.run([sys.executable, str(driver)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert f"{driver} hides rlft's own package" in done.stderr


def test_constraints_pin_every_dependency_within_its_range():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for text in project["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), text
    assert not re.search(r"\+cpu|https?:|file:", "\n".join(lines))
