"""generator, rewards, scorer, teacher, learner and critic: the roles."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rlft.config.base import Actors, Section


class GeneratorConfig(Actors):
    """generator: draws the samples."""

    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """`vllm`: for real runs. `transformers`: the embedded engine. `auto`: vllm where the generators have GPUs and vLLM
    is installed, otherwise transformers."""
    engine_args: dict[str, Any] = {}
    """More arguments for vLLM's engine, under vLLM's names: `{gpu_memory_utilization: 0.8, max_model_len: 8192}`."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of training samples."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest completion, in tokens."""
    min_new_tokens: int = Field(default=0, ge=0)
    """The end-of-sequence token cannot come before so many tokens."""
    stop: list[str] = []
    """A completion ends after any of these strings."""
    stop_token_ids: list[Annotated[int, Field(ge=0)]] = []
    """A completion ends after any of these tokens, besides those that the model's own configuration names."""
    max_concurrent: int = Field(default=256, ge=1)
    """Samples decoded side by side in each generator. More is faster and takes more memory."""
    ignore_eos: bool = False
    """Draw exactly max_new_tokens tokens whatever the model says. For benchmarks."""


class RewardFunction(Section):
    """One reward function."""

    function: str
    """A built-in name, or `file.py:function`, or `package.module:function`."""
    name: str | None = None
    """Name in metrics; the function's own name when empty."""
    weight: float = 1.0
    """Factor in the sum of rewards."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that one call (the completions of one prompt) may take."""
    args: dict[str, Any] = {}
    """Extra keyword arguments for the function."""


class RewardsConfig(Actors):
    """rewards: the functions whose weighted sum is the reward."""

    functions: list[RewardFunction] = []
    """The reward functions."""
    max_failed_fraction: float = Field(default=0.2, ge=0, le=1)
    """The run stops when more than this part of a step's samples could not be scored."""


class ScorerConfig(Actors):
    """scorer: the frozen reference policy, started only where something is compared with it."""


class TeacherConfig(Actors):
    """teacher: the model that algorithm.teacher_coef above 0 learns from. It has the student's vocabulary."""

    path: str | None = None
    """A Hugging Face model: a folder, or a name on the Hub."""


class TrainedConfig(Section):
    """DeepSpeed ranks that train a model."""

    num_ranks: int = Field(default=1, ge=1)
    """Data-parallel DeepSpeed ranks."""
    cpus: float = Field(default=1.0, ge=0)
    """CPU cores that each rank reserves; also its number of threads (at least 1)."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that each rank reserves."""
    resources: dict[str, float] = {}
    """Custom Ray resources that each rank reserves."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """What DeepSpeed splits over the ranks: 1 optimizer state, 2 and gradients, 3 and weights. Empty: 0 for one float32
    rank, 2 otherwise."""
    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up, down to min_lr_ratio at the last step."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises linearly from 0."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the last step, as a part of lr. Only for linear and cosine."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay (not on norms and biases)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decay rates."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    tokens_per_micro_batch: int = Field(default=8192, ge=1)
    """Token budget of one forward and backward pass on a rank."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    max_skipped_updates: int = Field(default=5, ge=0)
    """Updates in a row that may be skipped for a non-finite loss or gradient before the run stops."""


class LearnerConfig(TrainedConfig):
    """learner: DeepSpeed ranks that train the policy."""

    tokens_per_logit_chunk: int = Field(default=2048, ge=1)
    """Logits are made for so many tokens at a time, so memory does not grow with batch x vocabulary."""


class CriticConfig(TrainedConfig):
    """critic: DeepSpeed ranks that train a value model, started only where algorithm.advantage is gae."""

    path: str | None = None
    """The model whose body it begins with. Empty: the policy's. The head begins with zeros."""
    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    value_clip: float | None = Field(default=0.2, gt=0)
    """In an update it may move so far from what it said before. Empty: as far as the gradient goes."""
    alone_steps: int = Field(default=0, ge=0)
    """First steps in which only the critic learns, so that the policy is not led by one that knows nothing."""
