"""DeepSpeed ranks for tests: one in this process, or several in processes of their own, called like a learner's."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.multiprocessing

from rlft.config import Config
from rlft.engines.critic_rank import CriticRank
from rlft.engines.deepspeed import Rendezvous
from rlft.engines.learner import RankedCritic, RankedLearner, RankedRewardModel
from rlft.engines.policy_rank import PolicyRank
from rlft.engines.reward_rank import RewardRank
from rlft.engines.task_learner import RankedTasks
from rlft.engines.task_rank import TaskRank
from rlft.engines.weights import WeightUpdate

PATIENCE_S = 120.0  # a call takes less than a second; starting takes the imports of torch and DeepSpeed


class Ranks:
    """`num_ranks` processes that talk over gloo. A rank that fails takes all of them down; the next start is fresh."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
        self._here: Any = None
        self._processes: list[Any] = []
        self._pipes: list[Any] = []

    def learner(self, config: Config) -> RankedLearner:
        """A fresh learner over all ranks; the one before it is gone."""
        assert config.learner.num_ranks == self.num_ranks
        self._start(PolicyRank, config)
        return RankedLearner(config, self._call)

    def critic(self, config: Config) -> RankedCritic:
        """A fresh critic over all ranks."""
        assert config.critic.num_ranks == self.num_ranks
        self._start(CriticRank, config)
        return RankedCritic(config, self._call)

    def reward_model(self, config: Config) -> RankedRewardModel:
        """A fresh reward model over all ranks."""
        assert config.learner.num_ranks == self.num_ranks
        self._start(RewardRank, config)
        return RankedRewardModel(config, self._call)

    def tasks(self, config: Config) -> RankedTasks:
        """A fresh model with several heads over all ranks."""
        assert config.learner.num_ranks == self.num_ranks
        self._start(TaskRank, config)
        return RankedTasks(config, self._call)

    def _start(self, kind: Any, config: Config) -> None:
        if self.num_ranks == 1:
            self._here = kind(config, Rendezvous())
        else:
            self._spawn()
            self._ask([("start", (kind, config))] * self.num_ranks)

    def _call(self, method: str, args: Sequence[tuple[Any, ...]]) -> list[Any]:
        if self.num_ranks == 1:
            return [getattr(self._here, method)(*args[0])]
        return self._ask([(method, a) for a in args])

    def _ask(self, questions: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        for pipe, question in zip(self._pipes, questions, strict=True):
            pipe.send(question)
        answers = []
        for rank, pipe in enumerate(self._pipes):
            try:
                ok, answer = pipe.recv() if pipe.poll(PATIENCE_S) else (False, f"no answer within {PATIENCE_S:g} s")
            except EOFError:
                ok, answer = False, "the process died"
            if not ok:
                self.close()
                raise RuntimeError(f"rank {rank}, {questions[rank][0]}: {answer}")
            answers.append(answer)
        return answers

    def _spawn(self) -> None:
        if self._processes:
            return
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        context = torch.multiprocessing.get_context("spawn")
        for rank in range(self.num_ranks):
            ours, theirs = context.Pipe()
            where = Rendezvous(rank, self.num_ranks, port=port, timeout_s=PATIENCE_S)
            process = context.Process(target=_serve, args=(theirs, where), daemon=True)
            process.start()
            self._processes.append(process)
            self._pipes.append(ours)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes, self._here = [], [], None


def _serve(pipe: Any, where: Rendezvous) -> None:
    torch.set_num_threads(1)
    rank: Any = None
    while True:
        method, args = pipe.recv()
        try:
            if method == "start":
                rank = args[0](args[1], where)
                pipe.send((True, None))
            else:
                pipe.send((True, getattr(rank, method)(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def tensors_of(update: WeightUpdate) -> dict[str, torch.Tensor]:
    """What an update brings, by name."""
    result = {}
    for e in update.entries:
        raw = np.asarray(update.buckets[e.bucket])[e.offset : e.offset + e.num_bytes]
        result[e.name] = torch.frombuffer(bytearray(raw), dtype=getattr(torch, e.dtype)).view(e.shape)
    return result


def weights_of(learner: RankedLearner) -> dict[str, torch.Tensor]:
    """Every weight of a learner."""
    return tensors_of(learner.publish(0, everything=True))


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Over all weights of two learners."""
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)
