"""algorithm: what is optimised.

PRESETS is the table of algorithms: what each sets of the keys below. FROM_DATA are those that learn from data alone,
where no sample is drawn."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from rlft.config.base import Section

# What off_policy_correction comes to: see rlft.config.derived.
Correction = Literal["clip", "token", "sequence", "none"]
Advantage = Literal["group", "parts", "leave_one_out", "batch", "batch_baseline", "gae", "accepted", "pairs", "none"]
PolicyLoss = Literal["clip", "sequence_clip", "sample_clip", "cispo", "sapo", "vespo", "reinforce", "preference"]

BY_TOKEN = ("ipo", "orpo", "simpo")  # preference losses on means over tokens
WITHOUT_REFERENCE = ("orpo", "simpo")  # preference losses that know none
_NO_REFERENCE = {"preference_reference": False}
_GSPO = {"policy_loss": "sequence_clip", "clip_low": 3e-4, "clip_high": 4e-4}
PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"advantage_scale": "none", "loss_average": "max_length"},
    "bnpo": {"loss_average": "token"},
    "dapo": {"clip_high": 0.28, "loss_average": "token", "replace_flat_groups": 64},
    "gdpo": {"advantage": "parts", "advantage_scale": "batch"},
    "gspo": {**_GSPO, "loss_average": "sequence"},
    "luspo": {**_GSPO, "loss_average": "sample_sum"},
    "cispo": {"policy_loss": "cispo", "ratio_cap": 5.0},
    "sapo": {"policy_loss": "sapo", "loss_average": "sequence"},
    "vespo": {"policy_loss": "vespo"},
    "rloo": {
        "advantage": "leave_one_out", "advantage_scale": "none", "policy_loss": "sample_clip",
        "loss_average": "sequence", "kl_in": "reward", "kl_estimator": "k1",
    },
    "reinforce": {"advantage": "batch", "advantage_scale": "batch", "policy_loss": "reinforce", "group_size": 1},
    "reinforce_pp": {
        "advantage": "batch", "advantage_scale": "batch", "group_size": 1, "kl_in": "reward", "kl_estimator": "k1",
    },
    "reinforce_pp_baseline": {"advantage": "batch_baseline", "advantage_scale": "batch", "kl_estimator": "k2"},
    "ppo": {
        "advantage": "gae", "advantage_scale": "batch", "group_size": 1, "kl_in": "reward", "kl_estimator": "k1",
        "num_minibatches": 4,
    },
    "rft": {"advantage": "accepted", "advantage_scale": "none", "policy_loss": "reinforce"},
    "online_dpo": {"advantage": "pairs", "advantage_scale": "none", "policy_loss": "preference"},
    "distill": {"advantage": "none", "advantage_scale": "none", "teacher_coef": 1.0, "group_size": 1},
    "sft": {"sft_coef": 1.0},
    "kd": {"teacher_coef": 1.0, "teacher_signal": "forward_kl"},
    "dpo": {},
    "ipo": {"preference_loss": "ipo"},
    "cpo": {**_NO_REFERENCE, "sft_coef": 1.0},
    "orpo": {**_NO_REFERENCE, "preference_loss": "orpo", "sft_coef": 1.0},
    "simpo": {**_NO_REFERENCE, "preference_loss": "simpo", "preference_beta": 2.0},
    "kto": {"preference_loss": "kto"},
    "reward": {},
    "process_reward": {},
    "tasks": {},
}  # fmt: skip


class FromData(NamedTuple):
    """What an algorithm that draws no samples learns from, and the keys below that count there."""

    rows: Literal["examples", "pairs", "labels", "steps", "tasks"]
    keys: tuple[str, ...]


_EXAMPLES = FromData("examples", (
    "loss_average", "neftune_alpha", "sft_coef", "teacher_coef", "teacher_signal", "teacher_top_k", "teacher_mix",
    "teacher_temperature",
))  # fmt: skip
_PAIRS = FromData("pairs", (
    "preference_loss", "preference_beta", "preference_smoothing", "preference_reference", "preference_per_token",
    "preference_margin", "sft_coef",
))  # fmt: skip
FROM_DATA: dict[str, FromData] = {
    "sft": _EXAMPLES,
    "kd": _EXAMPLES,
    "dpo": _PAIRS,
    "ipo": _PAIRS,
    "cpo": _PAIRS,
    "orpo": _PAIRS,
    "simpo": _PAIRS,
    "kto": FromData("labels", ("preference_loss", "preference_beta", "good_weight", "bad_weight")),
    "reward": FromData("pairs", ("centering",)),
    "process_reward": FromData("steps", ("loss_average",)),
    "tasks": FromData("tasks", ("gradient_surgery", "task_temperature")),
}


class AlgorithmConfig(Section):
    """algorithm: what is optimised. `type` sets the keys that make it that algorithm; a key given beside it wins."""

    type: str = "grpo"
    """`grpo` (Shao et al. 2024), `dr_grpo`, `bnpo`, `dapo`, `gdpo`, `gspo`, `luspo`, `cispo`, `sapo`, `vespo`: groups
    of samples compared with each other. `rloo`, `reinforce`, `reinforce_pp`, `reinforce_pp_baseline`: REINFORCE with
    baselines. `ppo`: with a critic. `rft`: sample, keep what the reward accepts, imitate it. `online_dpo`: pairs of the
    best and the worst of a group. `distill`: a teacher scores what the student says. Or a policy loss of your own,
    `my_file.py:my_loss`. From data, without samples: `sft` (worked examples or documents), `kd` (a teacher's
    distributions on them), `dpo`, `ipo`, `cpo`, `orpo`, `simpo` (pairs of a chosen and a rejected completion), `kto`
    (completions labelled good or bad), `reward` (a reward model, from pairs), `process_reward` (one that scores each
    step, from labelled steps), `tasks` (several heads on one model: see tasks)."""
    group_size: int = Field(default=8, ge=1)
    """Samples per prompt. What compares them with each other needs at least 2."""
    advantage: Advantage = "group"
    """How rewards become advantages. `group`: less the group's mean. `parts`: each reward function's values less the
    group's mean, by their deviation, then added up: no function drowns another by its scale. `leave_one_out`: less the
    mean of the others. `batch`: whitened over all tokens of the step. `batch_baseline`: the group's mean goes first.
    `gae`: a critic's estimates. `accepted`: 1 from accept_reward on, the rest is left out. `pairs`: the best and the
    worst of each group. `none`: the reward is only reported, as with a teacher alone."""
    advantage_scale: Literal["group", "batch", "none"] = "group"
    """Divide by the standard deviation of the group's rewards, the batch's, or not at all."""
    turn_credit: bool = False
    """A token earns what its own turn and later ones were given, not what came before. For environments that reward
    turns."""
    accept_reward: float = 1.0
    """For `accepted`: the least reward of a sample that is imitated."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of rewards from one token to the one before. For `gae` and `batch`."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """For `gae`: 1 trusts the rewards alone (unbiased), less trusts the critic (less variance)."""
    whiten_rewards: bool = False
    """For `gae`: divide all tokens' rewards by their standard deviation."""
    policy_loss: PolicyLoss = "clip"
    """`clip`: PPO's clipped surrogate. `sequence_clip`: with the geometric mean of a sample's ratios (GSPO).
    `sample_clip`: with their product (RLOO). `cispo`, `sapo`, `vespo`: as their papers say. `reinforce`: -advantage *
    log-prob. `preference`: preference_loss between the two samples of a pair."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The importance ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(default=0.2, gt=0)
    """The importance ratio is clipped above at 1 + clip_high."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Where it is clipped: with a negative advantage the loss is at most this times its size. Usual: 3."""
    ratio_cap: float | None = Field(default=None, gt=1)
    """For `cispo` the ratio's upper bound; where it is clipped that of the unclipped term, for negative advantages."""
    loss_average: Literal["sequence", "token", "max_length", "sample_sum"] = "token"
    """`token`: every token weighs the same (DAPO). `sequence`: every sample weighs the same (GRPO's paper).
    `max_length`: sum over tokens / max_new_tokens, mean over samples (Dr. GRPO). `sample_sum`: sum over tokens, mean
    over samples. For `process_reward`, which knows `token` and `sequence`, steps are the tokens."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence to the reference policy. Above 0 a scorer is started."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the divergence goes: a term of the loss, or taken off each token's reward."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators of a token's KL. In the loss k3 or k2 (k1's gradient is zero on average), in the reward
    usually k1."""
    kl_unbiased: bool = False
    """In the loss: weigh each token's divergence by its importance ratio, for an unbiased gradient off policy."""
    kl_target: float | None = Field(default=None, gt=0)
    """Adapt kl_coef so that a sample's KL (sum over its tokens) stays near this (Ziegler et al. 2019). Empty: fixed."""
    kl_horizon: int = Field(default=10_000, ge=1)
    """Samples over which kl_coef adapts by about a fifth."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of a bonus on the entropy of each trained token's distribution."""
    entropy_share: float | None = Field(default=None, gt=0, lt=1)
    """Learn only from this share of tokens, those of highest entropy (0.2 in its paper). Empty: from all."""
    preference_loss: Literal[
        "dpo",
        "robust",
        "hinge",
        "ipo",
        "exo",
        "nca",
        "sppo",
        "apo_zero",
        "apo_down",
        "discopop",
        "orpo",
        "simpo",
        "kto",
    ] = "dpo"
    """The loss on a pair: see rlft.algorithms.preference. On single completions (`algorithm.type` kto): `kto` or
    `apo_zero`."""
    preference_beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference; for `simpo` the scale of log-probs, for `orpo` the weight of
    the odds ratio."""
    preference_smoothing: float | None = Field(default=None, gt=0, lt=0.5)
    """For `dpo`, `robust`, `exo` and `simpo`: the share of pairs that are thought to be the wrong way round. Empty:
    none (exo: 0.001)."""
    preference_reference: bool = True
    """Compare log-probs with those of the model that training began with. Without, it is not even loaded: `cpo`, and
    `orpo` and `simpo` always."""
    preference_per_token: bool = False
    """Divide each completion's log-prob by its length. `ipo`, `orpo` and `simpo` always do."""
    preference_margin: float = Field(default=1.0, ge=0)
    """For `simpo`: by how much the chosen one's reward should be above the other's."""
    sft_coef: float = Field(default=0.0, ge=0)
    """Weight of the negative log-likelihood: for `sft` of the learned tokens, for pairs that of the chosen completions
    beside the loss on pairs, the mean over each one's tokens."""
    neftune_alpha: float = Field(default=0.0, ge=0)
    """For `sft`: noise on the embeddings while training, up to this / sqrt(tokens * width); usual: 5 to 15. 0: none."""
    good_weight: float = Field(default=1.0, gt=0)
    """For `kto`: weight of completions labelled good. Times their number it should be near bad_weight times theirs."""
    bad_weight: float = Field(default=1.0, gt=0)
    """For `kto`: weight of completions labelled bad."""
    centering: float = Field(default=0.0, ge=0)
    """For `reward`: pulls the sum of a pair's scores to 0; usual: 0.01."""
    gradient_surgery: Literal["none", "pcgrad"] = "none"
    """For `tasks`. `pcgrad`: what a task's gradient of the shared weights has against another's is taken out of it (Yu
    et al. 2020). Needs learner.zero_stage 0."""
    task_temperature: float | None = Field(default=None, gt=0)
    """For `tasks`: rows of a task with n rows come in proportion to n ** (1 / this); 1: to their numbers, large:
    equally often. Empty: in proportion to the tasks' shares."""
    reference_every: int = Field(default=0, ge=0)
    """Every so many steps the reference becomes what the policy is then (iterative DPO). 0: it stays what it was."""
    teacher_coef: float = Field(default=0.0, ge=0)
    """Weight of the teacher's signal beside that of the rewards. Above 0 a teacher is started."""
    teacher_signal: Literal["sampled", "reverse_kl", "forward_kl", "js"] = "sampled"
    """`sampled`: each token's advantage is what the teacher's log-prob of it is above the student's. The others are
    losses on the distribution: KL(student || teacher), KL(teacher || student), or the Jensen-Shannon divergence of the
    two, over the teacher's teacher_top_k likeliest tokens and all others as one."""
    teacher_top_k: int = Field(default=64, ge=1)
    """For distributions: how many of the teacher's tokens travel."""
    teacher_mix: float = Field(default=0.5, gt=0, lt=1)
    """For `js`: the teacher's share in the mixture of both."""
    teacher_temperature: float = Field(default=1.0, gt=0)
    """For `kd` and `sft`: temperature of both distributions; the distance counts times its square (Hinton et al.
    2015)."""
    skip_flat_groups: bool = True
    """Leave out groups whose rewards are all equal: their advantage is 0. The averages still count their tokens, so
    with kl_coef 0 the update is the same and only time is saved."""
    replace_flat_groups: int = Field(default=0, ge=0)
    """Such groups are dropped and others drawn in their place, at most so many in a step (DAPO's dynamic sampling).
    What is flat beyond that stays. 0: none."""
    num_epochs: int = Field(default=1, ge=1)
    """Passes over each step's samples."""
    num_minibatches: int = Field(default=1, ge=1)
    """Updates per pass; divides loop.prompts_per_step."""
    off_policy_correction: Literal["auto", "clip", "token", "sequence", "none"] = "auto"
    """For samples that other weights or another engine drew. `clip`: the sampler is the old policy of the clipped
    ratio, so that no token moves further than the clip from what drew it (PPO). The others let the learner before the
    step be the old policy and weigh each token by the truncated ratio of the learner's to the sampler's probability:
    the token's own (`token`) or its whole sample's (`sequence`: less biased, but the weights of long samples vary
    more). `auto`: `clip` when max_staleness is above 0, `token` when the generator's engine is not the learner's."""
    off_policy_cap: float = Field(default=2.0, gt=0)
    """Upper bound of that weight, a token's or a sample's. For `token` and `sequence`."""
    off_policy_mask: float | None = Field(default=None, gt=1)
    """Leave tokens out of the policy loss whose own ratio is above this or below 1 / this, for instance 5. The averages
    still count them. Works with every correction. Empty: none is left out."""
    off_policy_sample_mask: float | None = Field(default=None, gt=0)
    """Leave out samples with a negative advantage that the policy has moved away from by more than this, in mean
    log-prob a token (DeepSeek-V3.2). Empty: none."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """The keys of the algorithm that is named, under those that are given."""
        if not isinstance(given, dict):
            return given
        return {**PRESETS.get(str(given.get("type", "grpo")), {}), **given}

    def default_of(self, name: str, field: FieldInfo) -> Any:
        """See Section: the algorithm's own, where it has one."""
        return PRESETS.get(self.type, {}).get(name, super().default_of(name, field))
