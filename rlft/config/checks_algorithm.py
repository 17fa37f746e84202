"""What must hold between the keys of the algorithm, and between them and those of the roles that it needs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from rlft.config.algorithm import PRESETS, WITHOUT_REFERENCE
from rlft.config.checks_tasks import check_tasks
from rlft.config.derived import (
    compares,
    has_ratio,
    learns_from,
    makes_reward_model,
    uses_critic,
    uses_reference,
    uses_teacher,
)
from rlft.config.problems import Problem
from rlft.config.schema import Config

_WITHOUT_GROUPS = ("gae", "batch", "batch_baseline", "leave_one_out")  # which have no groups' deviations to scale by


def check_type(config: Config) -> Iterator[Problem]:
    """An algorithm that there is, or a function."""
    name = config.algorithm.type
    if name in PRESETS or ":" in name:
        return
    near = difflib.get_close_matches(name.lower().replace("-", "_"), PRESETS, n=1, cutoff=0.4)
    meant = f", did you mean {near[0]}?" if near else "."
    yield Problem(
        "algorithm.type",
        f'found "{name}"{meant} Expected one of {", ".join(PRESETS)}, or a policy loss of your own: my_file.py:my_loss',
    )


def check_comparison(config: Config) -> Iterator[Problem]:
    """A group large enough to compare samples in, and a scale that fits."""
    algorithm = config.algorithm
    if (
        algorithm.advantage in ("group", "parts", "leave_one_out", "batch_baseline", "pairs")
        and algorithm.group_size < 2
    ):
        yield Problem(
            "algorithm.group_size",
            f"1 sample has nothing to be compared with; {algorithm.type} needs at least 2, usually 4 to 16",
        )
    if algorithm.advantage in _WITHOUT_GROUPS and algorithm.advantage_scale == "group":
        yield Problem(
            "algorithm.advantage_scale",
            f"group, but algorithm.advantage {algorithm.advantage} knows no groups to scale by; expected batch or none",
        )


def check_policy_loss(config: Config) -> Iterator[Problem]:
    """Pairs and their loss together; bounds that bound something."""
    algorithm = config.algorithm
    if (algorithm.policy_loss == "preference") != (algorithm.advantage == "pairs"):
        yield Problem(
            "algorithm.policy_loss",
            f"{algorithm.policy_loss} with algorithm.advantage {algorithm.advantage}: preference and pairs go together",
        )
    if algorithm.policy_loss == "cispo" and algorithm.ratio_cap is None:
        yield Problem(
            "algorithm.ratio_cap", "is empty, but algorithm.policy_loss cispo is bounded by nothing else; usual: 5"
        )
    if algorithm.policy_loss.endswith("clip") and (algorithm.ratio_cap or 9e9) <= 1 + algorithm.clip_high:
        yield Problem(
            "algorithm.ratio_cap",
            f"{algorithm.ratio_cap:g} is not above 1 + algorithm.clip_high, {1 + algorithm.clip_high:g}: it would "
            "bound positive advantages too",
        )
    if algorithm.off_policy_correction == "clip" and not has_ratio(algorithm):
        yield Problem(
            "algorithm.off_policy_correction",
            f"clip needs an importance ratio, and policy_loss {algorithm.policy_loss} has none; expected token",
        )


def check_kl(config: Config) -> Iterator[Problem]:
    """A reward that the divergence can be taken off."""
    algorithm = config.algorithm
    if algorithm.kl_coef > 0 and algorithm.kl_in == "reward" and algorithm.advantage in ("parts", "accepted", "none"):
        yield Problem(
            "algorithm.kl_in",
            f"reward, but algorithm.advantage {algorithm.advantage} does not look at the reward of single tokens; "
            "expected loss",
        )


def check_preference(config: Config) -> Iterator[Problem]:
    """A loss on pairs for pairs, with a reference if it needs one, and a share of swapped labels for what is built on
    it."""
    algorithm = config.algorithm
    loss = algorithm.preference_loss
    if learns_from(algorithm) == "labels" and loss not in ("kto", "apo_zero"):
        yield Problem(
            "algorithm.preference_loss",
            f"{loss} compares two completions, but algorithm.type {algorithm.type} learns from single ones; expected "
            "kto or apo_zero",
        )
    if not compares(algorithm) or makes_reward_model(config):
        return
    if loss == "kto":
        yield Problem(
            "algorithm.preference_loss", "kto looks at single completions; expected algorithm.type kto for it"
        )
    if loss in WITHOUT_REFERENCE and algorithm.preference_reference:
        yield Problem("algorithm.preference_reference", f"true, but {loss} compares with no reference; expected false")
    if loss == "robust" and algorithm.preference_smoothing is None:
        yield Problem(
            "algorithm.preference_smoothing", "is empty, and then robust is dpo; give the share of pairs that are wrong"
        )


def check_teacher(config: Config) -> Iterator[Problem]:
    """A teacher where one is learned from."""
    if uses_teacher(config) and config.teacher.path is None:
        yield Problem(
            "teacher.path", "is empty, but algorithm.teacher_coef is above 0: name a model with the same vocabulary"
        )
    algorithm = config.algorithm
    if learns_from(algorithm) == "examples":
        if algorithm.teacher_coef == 0 and algorithm.sft_coef == 0:
            yield Problem("algorithm.sft_coef", "0, and there is no teacher: nothing would be learned")
        if algorithm.teacher_coef > 0 and algorithm.teacher_signal == "sampled":
            yield Problem(
                "algorithm.teacher_signal", "sampled asks for samples; from data expected forward_kl, reverse_kl or js"
            )
    elif algorithm.advantage == "none" and algorithm.teacher_coef == 0:
        yield Problem("algorithm.advantage", "none learns from nothing: no reward counts and there is no teacher")


def check_reference(config: Config) -> Iterator[Problem]:
    """A reference that can become what the policy is."""
    if config.algorithm.reference_every and config.model.adapter is not None and uses_reference(config):
        yield Problem(
            "algorithm.reference_every",
            "with model.adapter the reference is the model without it and cannot follow; expected 0, or full weights",
        )


def check_critic(config: Config) -> Iterator[Problem]:
    """A policy that learns at all."""
    if uses_critic(config) and config.critic.alone_steps >= config.loop.steps:
        yield Problem(
            "critic.alone_steps",
            f"{config.critic.alone_steps} leaves the policy none of loop.steps {config.loop.steps}",
        )


def check_steps(config: Config) -> Iterator[Problem]:
    """An average that there is over steps."""
    average = config.algorithm.loss_average
    if learns_from(config.algorithm) == "steps" and average not in ("token", "sequence"):
        yield Problem(
            "algorithm.loss_average",
            f"{average} is about the length of completions; process_reward expects token (every step weighs the same) "
            "or sequence (every row)",
        )


ALGORITHM_CHECKS = (
    check_type, check_comparison, check_policy_loss, check_kl, check_preference, check_teacher, check_reference,
    check_critic,
)  # fmt: skip
FROM_DATA_CHECKS = (check_preference, check_teacher, check_steps, check_tasks)
