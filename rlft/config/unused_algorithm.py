"""Which keys of the algorithm, and of the roles that it needs, have no effect in which combination."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rlft.config.algorithm import BY_TOKEN, AlgorithmConfig
from rlft.config.derived import (
    draws_samples,
    flat_is_useless,
    has_ratio,
    off_policy_correction,
    uses_reference,
    uses_teacher,
)
from rlft.config.schema import Config


class Rule(NamedTuple):
    """When `applies`, the `keys` (patterns) have no effect."""

    applies: Callable[[Config], bool]
    keys: tuple[str, ...]
    because: str


def _algorithm(applies: Callable[[AlgorithmConfig], bool], keys: str, because: str) -> Rule:
    return Rule(lambda config: applies(config.algorithm), tuple(f"algorithm.{key}" for key in keys.split()), because)


# The first rule that names a key explains it.
ALGORITHM_RULES = (
    _algorithm(
        lambda a: ":" in a.type,
        "policy_loss clip_low clip_high dual_clip ratio_cap preference_* sft_coef",
        "algorithm.type is a function of your own, which is the policy loss",
    ),
    _algorithm(
        lambda a: draws_samples(a) and a.policy_loss == "preference",
        "clip_* dual_clip ratio_cap loss_average kl_* entropy_* off_policy_* teacher_* advantage_scale turn_credit",
        "algorithm.policy_loss is preference, a loss on pairs of samples",
    ),
    Rule(
        lambda config: not uses_teacher(config),
        (
            "teacher.*",
            "algorithm.teacher_signal",
            "algorithm.teacher_top_k",
            "algorithm.teacher_mix",
            "algorithm.teacher_temperature",
        ),
        "algorithm.teacher_coef is 0, so no teacher is started",
    ),
    Rule(
        lambda config: not uses_reference(config),
        (
            "scorer.*",
            "algorithm.kl_in",
            "algorithm.kl_estimator",
            "algorithm.kl_unbiased",
            "algorithm.kl_target",
            "algorithm.kl_horizon",
            "algorithm.reference_every",
        ),
        "algorithm.kl_coef is 0, so no scorer is started",
    ),
    Rule(
        lambda config: config.algorithm.advantage != "gae",
        ("critic.*", "algorithm.gae_lambda", "algorithm.whiten_rewards"),
        "algorithm.advantage is not gae, so there is no critic",
    ),
    Rule(
        lambda config: config.environment is None,
        ("algorithm.turn_credit",),
        "there is no environment, and so one turn",
    ),
    _algorithm(
        lambda a: draws_samples(a) and a.policy_loss != "preference",
        "preference_* sft_coef",
        "algorithm.policy_loss is not preference",
    ),
    _algorithm(
        draws_samples,
        "good_weight bad_weight centering neftune_alpha teacher_temperature",
        "algorithm.type draws samples, at generator.temperature; only what learns from data knows such a thing",
    ),
    _algorithm(
        lambda a: a.preference_loss not in ("dpo", "robust", "exo", "simpo"),
        "preference_smoothing",
        "algorithm.preference_loss knows no such thing; dpo, robust, exo and simpo do",
    ),
    _algorithm(lambda a: a.preference_loss != "simpo", "preference_margin", "algorithm.preference_loss is not simpo"),
    _algorithm(
        lambda a: a.preference_loss in BY_TOKEN,
        "preference_per_token",
        "algorithm.preference_loss always takes means over tokens",
    ),
    _algorithm(
        lambda a: a.advantage == "none" and a.teacher_signal != "sampled",
        "policy_loss clip_* dual_clip ratio_cap entropy_share off_policy_*",
        "all advantages are 0, so only the distance to the teacher counts",
    ),
    _algorithm(lambda a: a.advantage == "accepted", "off_policy_sample_mask", "no advantage is ever negative"),
    _algorithm(lambda a: not has_ratio(a), "clip_* dual_clip ratio_cap", "this policy loss has no importance ratio"),
    _algorithm(
        lambda a: a.policy_loss in ("cispo", "sapo", "vespo"),
        "clip_low clip_high dual_clip",
        "algorithm.policy_loss does not clip",
    ),
    _algorithm(lambda a: a.policy_loss in ("sapo", "vespo"), "ratio_cap", "algorithm.policy_loss has no bound"),
    _algorithm(lambda a: a.kl_in == "reward", "kl_unbiased", "algorithm.kl_in is reward"),
    _algorithm(lambda a: a.kl_target is None, "kl_horizon", "algorithm.kl_target is empty: kl_coef stays what it is"),
    _algorithm(
        lambda a: a.advantage not in ("gae", "batch", "batch_baseline"),
        "gamma",
        "algorithm.advantage is neither gae nor batch",
    ),
    _algorithm(lambda a: a.advantage != "accepted", "accept_reward", "algorithm.advantage is not accepted"),
    _algorithm(
        lambda a: a.advantage in ("accepted", "pairs", "parts", "none"),
        "advantage_scale turn_credit",
        "algorithm.advantage gives every trained token of a sample the same, on a scale of its own",
    ),
    _algorithm(
        lambda a: not flat_is_useless(a),
        "skip_flat_groups replace_flat_groups",
        "groups whose rewards are all equal teach something here too",
    ),
    _algorithm(
        lambda a: a.teacher_signal == "sampled", "teacher_top_k teacher_mix", "algorithm.teacher_signal is sampled"
    ),
    _algorithm(lambda a: a.teacher_signal != "js", "teacher_mix", "algorithm.teacher_signal is not js"),
    Rule(
        lambda config: (
            off_policy_correction(config) not in ("token", "sequence")
            and (config.algorithm.off_policy_correction != "auto" or off_policy_correction(config) == "clip")
        ),
        ("algorithm.off_policy_cap",),
        "algorithm.off_policy_correction is none or clip (auto is clip with loop.max_staleness above 0)",
    ),
)
