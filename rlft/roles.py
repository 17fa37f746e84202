"""The roles that a training loop knows. Loops see only these Protocols: whether a role is an object in this
process or forty actors on a cluster is decided in `actors/launch.py`.

Calls block until their result is there. The two that may take long and should overlap with other work, `generate` and
`score`, start their work when called and hand it over piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlft.samples import Group, Prompt, SamplingParams, TopTokens, Totals

Metrics = dict[str, float]


class Generator(Protocol):
    """Draws samples. Serves only the weight version that it can prove it holds."""

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int
    ) -> Iterator[tuple[int, Group]]:
        """Start drawing `params.num_samples` samples for each prompt and yield (place in `prompts`, group) as groups
        finish. `seeds[i][j]` is the seed of sample j of prompt i. Several calls may be under way at once, each consumed
        by a thread of its own, and weights may be loaded meanwhile: the samples go on under the new ones from their
        next token, and `Sample.weight_versions` says which made each. `version` is the oldest that may draw: raises
        WeightSyncError, also half-way, when the generator is on no verified version or on an older one. A call that
        comes during a load waits for it."""
        ...

    def load(self, update: Any) -> bool:
        """Take over published weights (`rlft.engines.weights.WeightUpdate`) and verify every tensor; False when some
        cannot be read back (repacked or quantized), so that only a probe can tell whether they arrived. May be called
        from another thread while `generate` is under way: all tokens after it, each with its whole prefix, are under
        the new weights. A failure is a WeightSyncError and leaves the generator on no version; then calls of `generate`
        that are under way raise too, at their next token, and hand over no further group."""
        ...

    def probe(self, prompt: Prompt, seed: int, params: SamplingParams) -> dict[str, Group]:
        """One sample from each generator that plays this role, by name, under the weights that it serves now."""
        ...

    def sleep(self) -> None:
        """Give up GPU memory until the next `load`. Only while nothing is being drawn."""
        ...


class Rewarder(Protocol):
    """Gives rewards. A failure is a status on the sample, never a number."""

    def score(self, groups: Iterator[tuple[int, Group]]) -> Iterator[tuple[int, Group]]:
        """Yield each incoming group with `reward` and `reward_parts` filled in, in any order, as they are ready."""
        ...


class Scorer(Protocol):
    """Gives log-probs of tokens under a frozen model: the reference policy, or a teacher."""

    def logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """Log-prob of each trained token, f32 [T] for each sample of each group, 0 elsewhere."""
        ...

    def load(self, update: Any) -> None:
        """Become what the learner published: all weights, carried by the update."""
        ...

    def save(self, folder: Path) -> None:
        """Write its weights into `folder`."""
        ...

    def restore(self, folder: Path) -> None:
        """Go back to what `save` wrote there."""
        ...


class Teacher(Scorer, Protocol):
    """A stronger model, or one with other knowledge."""

    def top_tokens(self, groups: Sequence[Group], count: int) -> list[list[TopTokens]]:
        """Its `count` likeliest tokens in the place of each trained token, for each sample of each group."""
        ...


class Critic(Protocol):
    """Says what a sample will earn from each of its tokens on, and learns to."""

    def values(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """What is expected before each trained token is drawn, f32 [T] for each sample of each group, 0 elsewhere."""
        ...

    def update(self, groups: Sequence[Group], totals: Totals, step: int) -> Metrics:
        """One optimizer step towards the samples' `returns`, each token's loss divided by the number of tokens."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything that `restore` needs into `folder`."""
        ...

    def restore(self, folder: Path) -> None:
        """Go back exactly to what `save` wrote there."""
        ...


class Trained(Protocol):
    """Holds a model that learns from data: the policy, or a reward model."""

    def update(self, groups: Sequence[Group], totals: Totals, step: int) -> Metrics:
        """One optimizer step on these groups, the loss divided by `totals`. See Learner."""
        ...

    def save(self, folder: Path) -> None:
        """Write the Hugging Face model and everything that `restore` needs into `folder`."""
        ...

    def restore(self, folder: Path) -> None:
        """Go back exactly to what `save` wrote there."""
        ...


class Learner(Protocol):
    """Holds the policy that is trained."""

    def logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """Log-prob of each trained token under the current weights, shaped as in Scorer.logprobs."""
        ...

    def entropies(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """Entropy of the distribution that each trained token was drawn from, shaped as in Scorer.logprobs."""
        ...

    def update(self, groups: Sequence[Group], totals: Totals, step: int, kl_coef: float | None = None) -> Metrics:
        """One optimizer step on these groups, the loss divided by `totals`, with this weight of the KL divergence
        (without one, algorithm.kl_coef). `step` sets the learning rate, and is the version of the weights with which
        the step begins. An update whose loss or gradient is not finite is skipped and counted; RunError after too many
        in a row. RunError too, before the weights are touched, when the sampler's log-probs of tokens that these very
        weights made are further off than loop.mismatch_stop."""
        ...

    def publish(self, version: int, everything: bool = False, carried: bool = False) -> Any:
        """The trainable weights (or every weight) as a WeightUpdate, for `Generator.load`. `carried`: with its bytes,
        whatever way the generators take theirs."""
        ...

    def send(self, update: Any) -> None:
        """The other end of `Generator.load`, to be called beside it: sends the bytes of an update that does not carry
        them, and returns when the generators have them. Nothing to do for others."""
        ...

    def save(self, folder: Path) -> None:
        """Write the Hugging Face model and everything that `restore` needs into `folder`."""
        ...

    def restore(self, folder: Path) -> None:
        """Go back exactly to what `save` wrote there."""
        ...
