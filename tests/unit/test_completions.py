"""Losses on whole completions, as the learner calls them, worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rlft.algorithms.statistics import metrics_of
from rlft.algorithms.table import make_loss
from rlft.batch import make_pack
from rlft.config.algorithm import AlgorithmConfig
from rlft.config.derived import loss_average
from rlft.models.logprobs import token_logprobs
from rlft.models.policy import TokenScores
from rlft.samples import Group, TopTokens, count_totals
from tests.helpers import make_group

LOG3 = math.log(3.0)


def loss_of(groups: list[Group], logprobs: list[float], kl: float = 0.0, **keys: Any) -> tuple[float, dict[str, float]]:
    """The loss of groups whose trained tokens have these log-probs, one behind the other, and its metrics."""
    algorithm = AlgorithmConfig(**keys)
    totals = replace(count_totals(groups, 8), kl=kl)
    pack = make_pack(groups, totals, loss_average(algorithm))
    scores = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    value, stats = make_loss(algorithm, "none")(TokenScores(scores, torch.zeros(len(logprobs))), pack, 0.0)
    value.backward()
    return value.item(), metrics_of(stats)


def pair(chosen: int, rejected: int, reference: float | None = -1.0) -> Group:
    """Completions of so many tokens; the reference gives each token this log-prob."""
    group = make_group([4, 5], [[7] * chosen, [9] * rejected], advantages=[1.0, -1.0])
    if reference is None:
        return group
    return group.with_samples([
        replace(s, ref_logprobs=np.where(s.loss_mask, reference, 0).astype("f4")) for s in group.samples
    ])  # fmt: skip


def test_dpo_takes_sums_and_per_token_means() -> None:
    # Against the reference the chosen one gains 2 * 0.5, the rejected one loses 1: a gap of 2, or of 0.5 + 1 by token.
    logprobs = [-0.5, -0.5, -2.0]
    found, metrics = loss_of([pair(2, 1)], logprobs, type="dpo", preference_beta=LOG3 / 2)
    assert found == pytest.approx(math.log(4 / 3))
    assert metrics["preference/margin"] == pytest.approx(LOG3)
    assert metrics["preference/chosen"] == pytest.approx(LOG3 / 2)
    assert metrics["preference/accuracy"] == 1 and metrics["preference/chosen_nll"] == pytest.approx(0.5)
    by_token, _ = loss_of([pair(2, 1)], logprobs, type="dpo", preference_beta=LOG3 / 1.5, preference_per_token=True)
    assert by_token == pytest.approx(math.log(4 / 3))


def test_the_sft_term_is_the_mean_over_pairs_of_means_over_tokens() -> None:
    groups, logprobs = [pair(2, 1), pair(1, 1)], [-0.5, -1.5, -1.0, -3.0, -1.0]
    plain, _ = loss_of(groups, logprobs, type="dpo")
    with_term, metrics = loss_of(groups, logprobs, type="dpo", sft_coef=0.1)
    assert with_term - plain == pytest.approx(0.1 * (1.0 + 3.0) / 2)
    assert metrics["preference/chosen_nll"] == pytest.approx(2.0)


def test_losses_without_a_reference() -> None:
    groups = [pair(2, 1, reference=None)]
    # cpo: sums -1 and -1 - log 3 / 0.5: a gap of log 3; and the chosen one's mean nll of 0.5
    found, _ = loss_of(groups, [-0.5, -0.5, -1 - 2 * LOG3], type="cpo", preference_beta=0.5)
    assert found == pytest.approx(math.log(4 / 3) + 0.5)
    # simpo: means 0 - (-1) times beta 2, less the margin of 1
    found, _ = loss_of(groups, [-0.1, -0.3, -1.2], type="simpo")
    assert found == pytest.approx(math.log(1 + math.exp(-1)))
    # orpo: mean probabilities 3/4 and 1/2, odds 3 and 1; half of it, and the nll
    found, _ = loss_of(groups, [math.log(0.75)] * 2 + [math.log(0.5)], type="orpo", preference_beta=0.5)
    assert found == pytest.approx(0.5 * math.log(4 / 3) - math.log(0.75))


def labelled(sign: float) -> Group:
    group = make_group([4], [[7, 8]], advantages=[sign])
    return group.with_samples(
        [replace(s, ref_logprobs=np.where(s.loss_mask, -1, 0).astype("f4")) for s in group.samples]
    )


def test_kto_by_hand() -> None:
    """Both gain log 3 + 1, and the kl is 1: 1 - 3/4 for the good one, 2 * 3/4 for the bad one."""
    gained = [-1 + (LOG3 + 1) / 2] * 2
    groups = [labelled(1.0), labelled(-1.0)]
    found, metrics = loss_of(groups, gained * 2, kl=1.0, type="kto", preference_beta=1.0, bad_weight=2.0)
    assert found == pytest.approx((0.25 + 1.5) / 2)
    assert metrics["preference/good"] == 0.5
    assert metrics["preference/chosen"] == metrics["preference/rejected"] == pytest.approx(LOG3 + 1)
    found, _ = loss_of(groups, [-1 + LOG3 / 2] * 4, type="kto", preference_beta=1.0, preference_loss="apo_zero")
    assert found == pytest.approx((0.25 + 0.75) / 2)


@pytest.mark.parametrize("signal", ["forward_kl", "reverse_kl"])
def test_distillation_at_a_temperature(signal: str) -> None:
    """Against KL over the whole vocabulary of 6 tokens, written out; the likelihood stays that of temperature 1."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.log_softmax(torch.randn(3, 6, generator=generator, dtype=torch.float64) / 2.0, -1)
    tokens = np.broadcast_to(np.arange(6, dtype=np.int32), (4, 6)).copy()
    top = TopTokens(tokens, np.concatenate([np.zeros((1, 6)), teacher.numpy()]).astype(np.float32), 2.0)
    group = make_group([4], [[1, 2, 3]])
    group = group.with_samples([replace(group.samples[0], teacher_top=top)])
    algorithm = AlgorithmConfig(type="kd", teacher_signal=signal, sft_coef=0.25, teacher_coef=0.5)
    pack = make_pack([group], count_totals([group], 8), loss_average(algorithm))
    assert pack.teacher_top is not None
    scores = token_logprobs(
        lambda x: x, student, pack.targets, also=pack.teacher_top.ids, also_temperature=2.0, chunk=2
    )
    found, stats = make_loss(algorithm, "none")(TokenScores(*scores), pack, 0.0)

    at_two = torch.log_softmax(student / 2.0, -1)
    p, q = (teacher, at_two) if signal == "forward_kl" else (at_two, teacher)
    kl = (p.exp() * (p - q)).sum(-1)
    nll = -torch.log_softmax(student, -1)[[0, 1, 2], [1, 2, 3]]
    expected = (0.25 * nll + 0.5 * 4 * kl).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics_of(stats)["teacher/distance"] == pytest.approx(kl.mean().item(), rel=1e-4)
    (ours,), (theirs,) = torch.autograd.grad(found, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
