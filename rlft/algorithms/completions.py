"""Losses on whole completions: pairs of a chosen and a rejected one, and single ones labelled good or bad.

From what the policy says of a pack to a number; the formulas are in preference.py.

The advantage of a sample's tokens tells what it is: 1 for chosen or good, -1 for rejected or bad. Samples of a pair lie
one behind the other and are never split between packs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rlft.algorithms.policy import sum_by_sample
from rlft.algorithms.preference import PREFERENCE_LOSSES, apo_zero_unpaired, kto
from rlft.algorithms.sampler import sampler_stats
from rlft.algorithms.statistics import Stats, mean_of
from rlft.batch import Pack
from rlft.config.algorithm import BY_TOKEN, AlgorithmConfig
from rlft.config.derived import draws_samples
from rlft.models.policy import TokenScores

Loss = Callable[[TokenScores, Pack, float], tuple[Tensor, Stats]]


class Whole(NamedTuple):
    """Numbers of whole samples, [S] each."""

    values: Tensor  # log-prob, less the reference's if there is one; the sum or the mean over tokens
    signs: Tensor  # 1 or -1
    weights: Tensor  # of the sample in the loss
    nll: Tensor  # negative log-likelihood, the mean over tokens


def _whole(scores: TokenScores, pack: Pack, reference: bool, per_token: bool) -> Whole:
    order = torch.unique_consecutive(pack.sample_of, return_inverse=True)[1]  # samples numbered without gaps
    starts = torch.nonzero(torch.diff(order, prepend=order.new_tensor([-1])))[:, 0]

    def summed(per_token_M: Tensor) -> Tensor:
        return sum_by_sample(per_token_M, order)[starts]

    lengths = summed(torch.ones_like(scores.logprobs))
    logprobs = summed(scores.logprobs)
    values = logprobs
    if reference:
        assert pack.ref_logprobs is not None, "this loss needs a reference"
        values = summed(scores.logprobs - pack.ref_logprobs)
    values = values / lengths if per_token else values
    return Whole(values, pack.advantages[starts], summed(pack.weights), -logprobs / lengths)


def _nothing_to_learn(pack: Pack) -> bool:
    """Whether this is the pack of a rank without work of its own."""
    return not len(pack.sample_of) or not bool(pack.advantages.any())


def on_pairs(settings: AlgorithmConfig) -> Loss:
    """The preference loss of each pair plus sft_coef times the chosen completion's negative log-likelihood (the mean
    over its tokens: Pang et al. 2024, arXiv:2404.19733; ORPO's and CPO's other term), the mean over pairs."""
    beta, draws = settings.preference_beta, draws_samples(settings)
    more = {} if settings.preference_smoothing is None else {"smoothing": settings.preference_smoothing}
    if settings.preference_loss == "simpo":
        more["margin"] = settings.preference_margin
    pair_loss = partial(PREFERENCE_LOSSES[settings.preference_loss], beta=beta, **more)
    per_token = settings.preference_per_token or settings.preference_loss in BY_TOKEN

    def loss(scores: TokenScores, pack: Pack, kl_coef: float) -> tuple[Tensor, Stats]:
        if _nothing_to_learn(pack):
            return scores.logprobs.sum() * 0.0, {}
        whole = _whole(scores, pack, settings.preference_reference, per_token)
        values, signs = whole.values.view(-1, 2), whole.signs.view(-1, 2)
        assert bool((signs.sum(1) == 0).all()), "a pair is a chosen and a rejected sample"
        first = signs[:, 0] > 0
        chosen = torch.where(first, values[:, 0], values[:, 1])
        rejected = torch.where(first, values[:, 1], values[:, 0])
        nll = torch.where(first, *whole.nll.view(-1, 2).unbind(1))
        shares = whole.weights.view(-1, 2).sum(1)  # 1 / number of pairs in the update
        stats: Stats = {
            "policy/entropy": mean_of(scores.entropy),
            "preference/accuracy": mean_of(chosen > rejected),
            "preference/margin": mean_of(beta * (chosen - rejected)),
            "preference/chosen": mean_of(beta * chosen),
            "preference/rejected": mean_of(beta * rejected),
            "preference/chosen_nll": mean_of(nll),
        }
        if draws:
            old = scores.logprobs.detach() if pack.old_logprobs is None else pack.old_logprobs
            stats |= sampler_stats(old, pack)
        each = pair_loss(chosen, rejected)
        if settings.sft_coef:
            each = each + settings.sft_coef * nll
        return (each * shares).sum(), stats

    return loss


def on_labels(settings: AlgorithmConfig) -> Loss:
    """KTO's loss (or APO-zero's) of each completion, the mean over completions. The reference point is pack.kl."""
    beta, sides = settings.preference_beta, (settings.good_weight, settings.bad_weight)

    def loss(scores: TokenScores, pack: Pack, kl_coef: float) -> tuple[Tensor, Stats]:
        if _nothing_to_learn(pack):
            return scores.logprobs.sum() * 0.0, {}
        whole = _whole(scores, pack, reference=True, per_token=False)
        good, kl = whole.signs > 0, whole.values.new_tensor(pack.kl)
        if settings.preference_loss == "kto":
            each = kto(whole.values, good, kl, beta, *sides)
        else:
            each = apo_zero_unpaired(whole.values, good, beta, *sides)
        stats: Stats = {"policy/entropy": mean_of(scores.entropy), "preference/good": mean_of(good)}
        for name, chosen in (("chosen", good), ("rejected", ~good)):
            if bool(chosen.any()):
                stats[f"preference/{name}"] = mean_of(beta * whole.values[chosen])
        return (each * whole.weights).sum(), stats

    return loss
