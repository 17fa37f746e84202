"""Asks a judge many questions at once: so many under way, each until its reply is a verdict, and all in time.

What the judge cannot say is a failure with its status, never a verdict. Knows nothing about rewards or what a verdict
means.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.judge.cache import Cache
from rewards.judge.questions import Question
from rewards.judge.settings import JudgeArgs
from rlft.endpoint.breaker import Breaker
from rlft.endpoint.client import Endpoint, RequestFailed, row_seed
from rlft.endpoint.usage import Usage
from rlft.samples import RewardStatus

_SPARE = (0.1, 2.0)  # of the time that is left, and at most so many seconds: to come back before the caller gives up


@dataclass(frozen=True)
class Answer:
    """What came of one question."""

    verdict: dict[str, Any] | None  # Question.read's; None when there is none
    status: RewardStatus = "ok"  # timeout, refused (the breaker is open) or error, without a verdict
    detail: str = ""  # why there is none
    counts: dict[str, float] = field(default_factory=dict)  # what it took


class Asking:
    """One judge, for several threads at once. Limits, breaker and cache are this process's own."""

    def __init__(self, args: JudgeArgs) -> None:
        """Raises UserError when the key's variable is not set, or the cache cannot be used."""
        self._args = args
        self._endpoint = Endpoint(args.endpoint)
        self._breaker = Breaker(args.max_failures, args.pause_s)
        self._cache = Cache(args.cache if isinstance(args.cache, str) else None) if args.cache else None
        self._places = threading.BoundedSemaphore(args.endpoint.max_concurrent)
        body = args.endpoint.model_dump(include={"model", "max_tokens", "extra_body"})
        self._settings = repr((sorted(body.items()), args.temperature))  # what shapes verdicts, besides the question

    def ask(self, questions: Sequence[Question], deadline: float | None) -> list[Answer]:
        """The answers, in order; `deadline` is the caller's, of time.monotonic(). With a cache the same question is
        asked once. Raises UserError where no request can succeed."""
        end = None if deadline is None else deadline - min(_SPARE[1], _SPARE[0] * (deadline - time.monotonic()))
        names = [question.digest(self._settings) for question in questions]
        first = {name: i for i, name in reversed(list(enumerate(names)))}
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for i, name in enumerate(names):
            if self._cache is None or first[name] == i:
                todo.put(i)
        found: dict[int, Answer | BaseException] = {}
        threads = [
            threading.Thread(target=self._work, args=(todo, questions, names, end, found), daemon=True)
            for _ in range(min(todo.qsize(), self._args.endpoint.max_concurrent))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()  # every request and every wait in it is bounded
        answers = []
        for i, name in enumerate(names):
            answer = found.get(i, found[first[name]])
            if isinstance(answer, BaseException):
                raise answer
            answers.append(
                answer if i in found else Answer(answer.verdict, answer.status, answer.detail, self._took(1))
            )
        return answers

    def _work(
        self,
        todo: queue.SimpleQueue[int],
        questions: Sequence[Question],
        names: Sequence[str],
        end: float | None,
        found: dict[int, Answer | BaseException],
    ) -> None:
        while True:
            try:
                i = todo.get_nowait()
            except queue.Empty:
                return
            try:
                found[i] = self._one(questions[i], names[i], end)
            except BaseException as error:  # for the thread that waits
                found[i] = error

    def _one(self, question: Question, name: str, end: float | None) -> Answer:
        if self._cache is not None and (known := self._cache.get(name)) is not None:
            return Answer(known, counts=self._took(1))
        usage, unreadable, why = Usage(), 0, ""
        for attempt in range(self._args.max_asks):
            if not self._places.acquire(timeout=None if end is None else max(0.0, end - time.monotonic())):
                return self._failed(
                    "timeout", "no place became free in time (endpoint.max_concurrent)", usage, unreadable
                )
            try:
                if refusal := self._breaker.refusal():
                    return self._failed("refused", refusal, usage, unreadable)
                token = secrets.token_hex(6)
                try:
                    reply = self._send(question, token, usage, row_seed(0, name, f"ask {attempt}"), end)
                except RequestFailed as failure:
                    if failure.kind == "refused":  # the server is there; this one request was not to its liking
                        self._breaker.worked()
                    else:
                        self._breaker.failed(str(failure))
                    status = "timeout" if failure.kind == "timeout" else "error"
                    return self._failed(status, f"{failure.kind}: {failure}{_hint(failure)}", usage, unreadable)
                except BaseException as error:
                    self._breaker.failed(str(error))
                    raise
                self._breaker.worked()
            finally:
                self._places.release()
            try:
                verdict = question.read(reply, token)
            except ValueError as error:
                unreadable, why = unreadable + 1, str(error)
                continue
            if self._cache is not None:
                self._cache.put(name, verdict)
            return Answer(verdict, counts=self._took(0, usage, unreadable))
        return self._failed("error", f"{unreadable} replies without a verdict; the last: {why}", usage, unreadable)

    def _send(self, question: Question, token: str, usage: Usage, seed: int, end: float | None) -> str:
        messages = [{"role": "user", "content": question.text(token)}]
        return self._endpoint.ask(
            messages, usage, seed=seed, temperature=self._args.temperature,
            response_format=question.response_format(), deadline=end,
        ).text  # fmt: skip

    def _failed(self, status: RewardStatus, detail: str, usage: Usage, unreadable: int) -> Answer:
        return Answer(None, status, detail, self._took(0, usage, unreadable))

    def _took(self, cached: int, usage: Usage | None = None, unreadable: int = 0) -> dict[str, float]:
        usage = usage or Usage()
        took: dict[str, float] = {
            "requests": usage.requests,
            "retries": usage.retries,
            "failed_requests": usage.failures.total(),
            "unreadable": unreadable,
            "cached": cached,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "replies_without_usage": usage.uncounted,
        }
        cost = self._endpoint.cost(usage)
        return took if cost is None else took | {"cost": cost}


def _hint(failure: RequestFailed) -> str:
    if failure.kind != "refused" or "response_format" not in str(failure):
        return ""
    return " (for a server without structured output: endpoint: {extra_body: {response_format: null}})"
