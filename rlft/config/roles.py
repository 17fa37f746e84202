"""generator, rewards, scorer, teacher, learner and critic: the roles."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rlft.config.base import Actors, Section
from rlft.config.optimizers import LayerRate, OptimizerName


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
    """A built-in name, or `file.py:function`, or `package.module:function`, or the address of a reward server."""
    name: str | None = None
    """Name in metrics; the function's own name when empty."""
    weight: float = 1.0
    """Factor in the sum of rewards."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that one call (the completions of one prompt) may take."""
    floor: float | None = None
    """What is less counts as so much. Metrics and rollouts keep the function's own value."""
    cap: float | None = None
    """What is more counts as so much."""
    gate: float | None = None
    """The functions behind it in the list are asked only about completions to which this one gives at least so much;
    for others they count 0."""
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
    lr_by_layer: list[LayerRate] = []
    """Other learning rates for parameters by name. The first that matches counts; it multiplies with layer_decay, and
    with the rates that an adapter or a task brings."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each layer's learning rate is so many times that of the layer above it. The embeddings are below all layers; what
    comes behind the last layer has lr itself."""
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd"] = "constant"
    """Course of the learning rate after warm-up. `linear` and `cosine`: down to min_lr_ratio at the last step.
    `inverse_sqrt`: with one over the root of the step. `wsd`: constant, and in the last decay_steps linear down."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises linearly from 0."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the last step, as a part of lr. Only for linear, cosine and wsd."""
    decay_steps: int | None = Field(default=None, ge=1)
    """For wsd: so many last steps in which the learning rate falls. Empty: a fifth of loop.steps."""
    optimizer: OptimizerName = "adamw"
    """What steps. docs/training.md says what each can do, keeps in memory and needs for a learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (not on norms and biases)."""
    betas: tuple[float, float] | None = None
    """Moment decay rates of AdamW and lion. Empty: 0.9 and 0.999, for lion 0.9 and 0.99."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """For muon: decay rate of its momentum. What muon leaves to AdamW has betas and eps."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    tokens_per_micro_batch: int = Field(default=8192, ge=1)
    """Token budget of one forward and backward pass on a rank."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    offload: Literal["none", "optimizer", "optimizer_and_weights"] = "none"
    """What of a rank on a GPU is kept in CPU memory (ZeRO-Offload, arXiv:2101.06840). `optimizer`: its state, where it
    also steps. `optimizer_and_weights`: with zero_stage 3 the weights too."""
    offload_activations: bool = False
    """Keep what the backward pass needs in CPU memory until then; with gradient_checkpointing each layer's input."""
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
