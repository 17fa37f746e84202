"""Values that follow from the configuration and therefore are no keys of it."""

from __future__ import annotations

from importlib.util import find_spec

from rlft.config.adapters import KINDS
from rlft.config.algorithm import FROM_DATA, AlgorithmConfig, Correction
from rlft.config.optimizers import OPTIMIZERS
from rlft.config.roles import TrainedConfig
from rlft.config.schema import Config


def zero_stage(trained: TrainedConfig, dtype: str) -> int:
    """DeepSpeed's ZeRO stage: as configured, otherwise 0 for one float32 rank (least overhead) and 2 for the rest."""
    if trained.zero_stage is not None:
        return trained.zero_stage
    return 0 if trained.num_ranks == 1 and dtype == "float32" else 2


def off_policy_correction(config: Config) -> Correction:
    """What the loss does about the gap between the sampler's and the learner's distribution. Stale samples need a bound
    on how far a token may move from what drew it: weights alone do not keep the policy from running away. What imitates
    chosen samples, or compares two, does not ask who drew them."""
    choice, algorithm = config.algorithm.off_policy_correction, config.algorithm
    if choice != "auto":
        return choice
    if algorithm.policy_loss == "preference" or algorithm.advantage == "accepted":
        return "none"
    if config.loop.max_staleness > 0:
        return "clip" if has_ratio(algorithm) else "token"
    return "token" if generator_engine(config) != "transformers" else "none"


def has_ratio(algorithm: AlgorithmConfig) -> bool:
    """Whether the policy loss compares the policy with an older one."""
    return ":" in algorithm.type or algorithm.policy_loss not in ("reinforce", "preference")


def loss_average(algorithm: AlgorithmConfig) -> str:
    """How tokens are weighed; in losses on whole completions every sample weighs the same, and so every pair."""
    return "sequence" if compares(algorithm) or learns_from(algorithm) == "labels" else algorithm.loss_average


def learns_from(algorithm: AlgorithmConfig) -> str | None:
    """The kind of rows that it learns from: examples, pairs, labels or steps. None where samples are drawn."""
    return FROM_DATA[algorithm.type].rows if algorithm.type in FROM_DATA else None


def compares(algorithm: AlgorithmConfig) -> bool:
    """Whether the loss is one on pairs of samples."""
    return learns_from(algorithm) == "pairs" or (draws_samples(algorithm) and algorithm.policy_loss == "preference")


def makes_reward_model(config: Config) -> bool:
    """Whether what is trained gives a score and no text."""
    return config.algorithm.type in ("reward", "process_reward")


def learns_tasks(config: Config) -> bool:
    """Whether what is trained are heads, each for a task of its own."""
    return config.algorithm.type == "tasks"


def learner_kind(config: Config) -> str:
    """What the learner's ranks hold: `learner` (a policy), `reward_model` or `tasks`."""
    return "tasks" if learns_tasks(config) else "reward_model" if makes_reward_model(config) else "learner"


def flat_is_useless(algorithm: AlgorithmConfig) -> bool:
    """Whether a group whose rewards are all equal cannot teach anything: samples are compared with each other alone,
    and by nothing but their rewards."""
    in_reward = algorithm.kl_in == "reward" and algorithm.kl_coef > 0
    compared = algorithm.advantage in ("group", "leave_one_out", "pairs")  # not parts, which may cancel in the sum
    return compared and not (in_reward or algorithm.turn_credit or algorithm.teacher_coef or algorithm.entropy_coef)


def uses_reference(config: Config) -> bool:
    """Whether a scorer with the reference policy is started."""
    algorithm = config.algorithm
    if makes_reward_model(config) or learns_from(algorithm) == "examples":
        return False
    if learns_from(algorithm) == "labels":
        return True
    return algorithm.preference_reference if compares(algorithm) else algorithm.kl_coef > 0


def reference_in_learner(config: Config) -> bool:
    """Whether the reference is the learner's model with its adapter off, so that no scorer is needed."""
    adapter = config.model.adapter
    return adapter is not None and KINDS[adapter.type].reference and uses_reference(config)


def starts_scorer(config: Config) -> bool:
    """Whether the reference is a model of its own."""
    return uses_reference(config) and not reference_in_learner(config)


def uses_teacher(config: Config) -> bool:
    """Whether a teacher is started."""
    learns = learns_from(config.algorithm) in (None, "examples")
    return learns and config.algorithm.teacher_coef > 0


def uses_critic(config: Config) -> bool:
    """Whether a critic is started."""
    return draws(config) and config.algorithm.advantage == "gae"


def draws(config: Config) -> bool:
    """Whether the run learns from samples of its own."""
    return draws_samples(config.algorithm)


def draws_samples(algorithm: AlgorithmConfig) -> bool:
    """Whether it learns from samples of its own."""
    return algorithm.type not in FROM_DATA


def environment_weight(config: Config) -> float | None:
    """The factor of the environment's reward, None without one."""
    return None if config.environment is None else config.environment.reward_weight


def longest_completion(config: Config) -> int:
    """Tokens that the model may write in one sample, over all its turns."""
    turns = 1 if config.environment is None else config.environment.max_turns
    return turns * config.generator.max_new_tokens


def generator_engine(config: Config) -> str:
    """The engine that `generator.engine` asks for; `auto` is vLLM where generators have GPUs and it is installed."""
    if config.generator.engine != "auto":
        return config.generator.engine
    return "vllm" if config.generator.gpus > 0 and find_spec("vllm") is not None else "transformers"


def serving(config: Config) -> str:
    """What generators are sent after the first time: `full` weights, the `adapter`, or the weights that it changes,
    `merged`, where vLLM does not know this kind of adapter."""
    adapter = config.model.adapter
    if adapter is None:
        return "full"
    return "merged" if generator_engine(config) == "vllm" and KINDS[adapter.type].served == "merged" else "adapter"


def adapter_budget_end(config: Config) -> int:
    """For adalora: the step from which ranks are no longer taken away."""
    adapter = config.model.adapter
    assert adapter is not None
    return adapter.budget_end or max(1, config.loop.steps * 2 // 3)


def window(config: Config, model_window: int) -> int:
    """Longest sequence, prompt and completion, in tokens: the model's, or less where vLLM is told so."""
    given = config.generator.engine_args.get("max_model_len") if generator_engine(config) == "vllm" else None
    return min(model_window, given) if isinstance(given, int) and given > 0 else model_window


def in_flight(config: Config) -> bool:
    """Whether new weights reach samples that are being drawn, and steps learn from what finishes first."""
    return config.loop.in_flight and config.loop.max_staleness > 0


def shares_gpus(config: Config) -> bool:
    """Whether generators and learner use the same GPUs in turn; in one process they cannot but."""
    return config.cluster.layout == "colocated" or config.cluster.mode == "inline"


def weight_transport(config: Config) -> str:
    """How weights get from the learner to the generators: `memory`, `collective` or `ipc` (rlft.engines.transport)."""
    choice = config.cluster.weight_transport
    if choice != "auto":
        return choice
    on_gpus = config.learner.gpus > 0 and config.generator.gpus > 0
    if config.model.adapter is not None or not on_gpus:
        return "memory"  # an adapter is small, and vLLM takes it from a folder
    if shares_gpus(config):
        return (
            "memory" if zero_stage(config.learner, config.model.dtype) == 3 else "ipc"
        )  # sharded, there are no whole tensors to map
    return "collective" if config.learner.gpus >= 1 and config.generator.gpus >= 1 else "memory"


def steps_ahead(config: Config) -> int:
    """Steps' worth of rollouts that are under way besides the one that is waited for. In flight half of the staleness
    is left for groups that take long: with all of it used up, every step would have to wait for its slowest."""
    return (config.loop.max_staleness + 1) // 2 if in_flight(config) else config.loop.max_staleness


def learning_rate(learner: TrainedConfig, steps: int, step: int) -> float:
    """Learning rate of 0-based `step`: linear warm-up from 0, then learner.schedule's course. What falls reaches
    min_lr_ratio * lr at the last step."""
    import math

    warmup = learner.warmup_steps
    if step < warmup:
        return learner.lr * (step + 1) / (warmup + 1)
    if learner.schedule == "constant":
        return learner.lr
    if learner.schedule == "inverse_sqrt":  # Vaswani et al. 2017, arXiv:1706.03762, with lr at the end of the warm-up
        return learner.lr * math.sqrt((warmup + 1) / (step + 1))
    done = (step - warmup) / max(1, steps - 1 - warmup)
    if learner.schedule == "wsd":  # warmup-stable-decay, Hu et al. 2024, arXiv:2404.06395
        falling = min(1.0, (steps - 1 - step) / decay_steps(learner, steps)) if steps > 1 else 1.0
    elif learner.schedule == "linear":
        falling = 1 - done
    else:
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return learner.lr * (learner.min_lr_ratio + (1 - learner.min_lr_ratio) * max(0.0, falling))


def decay_steps(learner: TrainedConfig, steps: int) -> int:
    """For wsd: the last steps, in which the learning rate falls."""
    return learner.decay_steps or max(1, steps // 5)


def moment_betas(trained: TrainedConfig) -> tuple[float, float]:
    """As set, or what the optimizer's authors take."""
    return trained.betas or OPTIMIZERS[trained.optimizer].betas


def probe_tolerance(config: Config) -> float:
    """Largest difference of a log-prob between generator and learner in the probe."""
    return config.loop.probe_tolerance or (1e-3 if config.model.dtype == "float32" else 0.5)


def mismatch_warn(config: Config) -> float:
    """Mean difference of a step's log-probs between generator and learner, same weights, from which a run warns."""
    return config.loop.mismatch_warn or (1e-4 if _computes_exactly(config) else 0.05)


def mismatch_stop(config: Config) -> float:
    """The same, from which a run stops."""
    return config.loop.mismatch_stop or (1e-2 if _computes_exactly(config) else 0.5)


def _computes_exactly(config: Config) -> bool:
    """Whether generator and learner should differ by float32's rounding only. An adapter's dropout is the learner's."""
    dropout = config.model.adapter.dropout if config.model.adapter else 0.0
    return config.model.dtype == "float32" and dropout == 0
