"""Drafts that a model criticises and rewrites by principles: the supervised part of Constitutional AI.

Bai et al. 2022, "Constitutional AI: Harmlessness from AI Feedback", arXiv:2212.08073, section 3. Each critique and
revision begins with the prompt and the newest answer, as there. Unlike there the draft is asked for without examples,
and with the chat template of the endpoint's model. Knows nothing about files or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

from rlft.data.prompts import Conversation
from rlft.endpoint.client import Asker, row_seed
from rlft.endpoint.replies import Reply
from rlft.synthesis.config import ReviseConfig
from rlft.synthesis.constitution import Constitution, Principle
from rlft.synthesis.rows import LeftOut, Outcome, SourceRow, made_row, with_answer

REASONS = {"length": "truncated", "content_filter": "filtered"}
"""Why an answer is left out, by its finish reason."""


def reviser(config: ReviseConfig, constitution: Constitution, seed: int) -> Callable[[SourceRow, Asker], Outcome]:
    """What makes the row {prompt, completion, draft, critiques, revisions, principles} for one prompt; `seed` is the
    run's."""

    def revise(row: SourceRow, ask: Asker) -> Outcome:
        principles = constitution.draw(config.num_principles, row_seed(seed, row.id, "principles"))
        draft = answer = whole_answer(ask(row.messages))
        critiques, revisions = [], []
        for principle in principles:
            critique, answer = _step(row.messages, answer, principle, ask)
            critiques.append(critique)
            revisions.append(answer)
        if config.pairs and answer == draft:
            raise LeftOut("unchanged")
        made = {
            "completion": answer,
            **with_answer(row, answer),
            **({"chosen": answer, "rejected": draft} if config.pairs else {}),
            "draft": draft,
            "critiques": critiques,
            "revisions": revisions,
            "principles": [principle.name for principle in principles],
        }
        return Outcome((made_row(row, made),))

    return revise


def _step(messages: Conversation, answer: str, principle: Principle, ask: Asker) -> tuple[str, str]:
    """(critique, revision) of `answer`."""
    assert principle.critique is not None and principle.revision is not None, "load_constitution sees to it"
    talk = [*messages, _says("assistant", answer), _says("user", f"{principle.critique}\n\nGive only the critique.")]
    critique = whole_answer(ask(talk))
    talk = [*talk, _says("assistant", critique), _says("user", f"{principle.revision}\n\nGive only the new answer.")]
    return critique, whole_answer(ask(talk))


def whole_answer(reply: Reply) -> str:
    """The text of an answer that is whole. Raises LeftOut when it was cut off, filtered or is empty."""
    if reply.finish_reason != "stop":
        raise LeftOut(REASONS.get(reply.finish_reason, "not_an_answer"))
    if not reply.text.strip():
        raise LeftOut("empty")
    return reply.text


def _says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
