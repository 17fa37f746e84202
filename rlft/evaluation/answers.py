"""Answers that were drawn so far, on the disk, so that a comparison that is stopped need not draw them again.

    OUT.answers.jsonl    the settings, then a line per answer: whose, to which prompt, text. Only appended to

Knows nothing about who draws them or what they are for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.errors import RunError, UserError
from rlft.runs.files import is_out_of_space, whole_lines
from rlft.samples import Prompt


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    text: str
    cut_off: bool  # at the largest number of tokens


class Answers:
    """The file of one comparison."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Begin it, or take it over. `settings`: everything that shapes the answers. Raises UserError when it was begun
        with others, or a line is damaged. A last line that a kill left half written is cut off."""
        self._path, self._answers = path, dict[tuple[str, str], Answer]()
        settings = json.loads(json.dumps(settings))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or not self._take_over(settings):
                self._write({"settings": settings})
        except OSError as error:
            raise UserError(f"run.out: {path} cannot be written: {error.strerror}. Give another --out.") from error

    def missing(self, whose: str, prompts: Sequence[Prompt]) -> list[int]:
        """Places of the prompts that have no answer yet."""
        return [i for i, prompt in enumerate(prompts) if _key(whose, prompt) not in self._answers]

    def add(self, whose: str, prompt: Prompt, answer: Answer) -> None:
        """Append one."""
        whom, key = _key(whose, prompt)
        self._write({"whose": whom, "prompt": key, "text": answer.text, "cut_off": answer.cut_off})
        self._answers[whom, key] = answer

    def of(self, whose: str, prompt: Prompt) -> Answer:
        """The answer to a prompt that is not missing."""
        return self._answers[_key(whose, prompt)]

    def _take_over(self, settings: Mapping[str, Any]) -> bool:
        number = 0
        for number, line, _ in whole_lines(self._path):
            try:
                tree = json.loads(line)
                if number == 1:
                    self._refuse_changed(tree["settings"], settings)
                else:
                    self._answers[tree["whose"], tree["prompt"]] = Answer(tree["text"], tree["cut_off"])
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{self._path}, line {number} is damaged: {line[:80]!r}. Delete that line (its answer is then "
                    "drawn again), or give another --out."
                ) from None
        return number > 0

    def _refuse_changed(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        changed = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
        if changed:
            said = "; ".join(f"{k}: was {json.dumps(old.get(k))}, now {json.dumps(new.get(k))}" for k in changed)
            raise UserError(
                f"{self._path} was begun with other settings, and answers of both must not be mixed. {said}. Give "
                "another --out, or set these back."
            )

    def _write(self, tree: Mapping[str, Any]) -> None:
        try:
            with self._path.open("ab") as file:
                file.write((json.dumps(tree, ensure_ascii=True) + "\n").encode())
        except OSError as error:
            if not is_out_of_space(error):
                raise
            raise RunError(f"{self._path}: cannot be written, the disk or quota is used up ({error}).") from error


def _key(whose: str, prompt: Prompt) -> tuple[str, str]:
    """A prompt is known by its place in the data and by its text, template included."""
    digest = hashlib.blake2b(prompt.text.encode(), digest_size=16).hexdigest()
    return whose, f"{prompt.id} {digest}"
