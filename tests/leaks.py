"""Sandboxes with a hole, to see that the reward `code` notices."""

from __future__ import annotations

import sys
from pathlib import Path

LEAKS = {  # what is taken out of the sandbox: an attack that must notice
    "from rewards.code.box import landlock, zygote; zygote.make_ruleset = "
    "lambda rules: landlock.make_ruleset([*rules, ('/', landlock.READ)])": "read_secret",
    "from rewards.code.box import seccomp; seccomp._CLONE_THREAD = 17": "fork",
    "from rewards.code.box import seccomp; seccomp.ALLOWED += ('socket', 'bind')": "netlink",
    "from rewards.code.box import seccomp; seccomp._FCNTLS += (8,)": "signal_by_owner",
    "from rewards.code.box import confine; confine._limit = lambda which, value: None": "memory",
    "from rewards.code.box import confine; confine.os.closerange = lambda first, last: None": "descriptors",
}


def leaky_python(folder: Path, leak: str) -> str:
    """An interpreter whose sandbox has this leak."""
    (folder / "leaky.py").write_text(f"import sys\nexec(sys.argv[-1].replace('main(', {leak + '; main('!r}))\n")
    fake = folder / "python"
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/leaky.py "$@"\n')
    fake.chmod(0o755)
    return str(fake)
