"""From a configuration to the memory of each role's processes, whether they fit, and what would help.

Needs the model's configuration and nothing else of it. Lengths of samples are what the caller expects.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from rlft.batch import fed_tokens, plan_micro_batches
from rlft.config import Config
from rlft.config.derived import (
    compares,
    draws,
    generator_engine,
    learns_tasks,
    makes_reward_model,
    serving,
    shares_gpus,
    starts_scorer,
    uses_critic,
    uses_teacher,
    weight_transport,
    window,
    zero_stage,
)
from rlft.config.roles import TrainedConfig
from rlft.planning import roles
from rlft.planning.passes import Skeleton, skeleton
from rlft.planning.roles import Peak
from rlft.planning.shapes import expected_groups
from rlft.samples import Group


class Lengths(NamedTuple):
    """Tokens of an expected sample."""

    prompt: int
    completion: int


class Role(NamedTuple):
    """One process of a role."""

    name: str
    count: int  # processes like it
    gpus: float  # of each
    peak: Peak
    note: str = ""  # for people


class Planned(NamedTuple):
    """What a run needs."""

    roles: tuple[Role, ...]
    lengths: Lengths
    devices: tuple[tuple[str, int], ...]  # by device: the roles on it, together, in bytes


def expected_lengths(config: Config, sequence: int | None, model_window: int) -> Lengths:
    """`sequence` tokens in all, the window's at most; without it 512 behind which a completion comes, and from data
    2048."""
    longest = window(config, model_window)
    if draws(config):
        completion = min(config.generator.max_new_tokens, longest - 1)
        return Lengths(max(1, min(sequence or 512 + completion, longest) - completion), completion)
    whole = min(sequence or 2048, longest)
    return Lengths(1, max(1, whole - 1))


def plan(config: Config, sequence: int | None = None) -> Planned:
    """Of a complete configuration, whose `model.path` names a model (or model.tiny is set)."""
    model = transformers_config(config)
    lengths = expected_lengths(
        config, sequence, int(getattr(model.get_text_config(), "max_position_embeddings", 1 << 30))
    )
    found = tuple(_roles(config, model, lengths))
    return Planned(found, lengths, _devices(config, found))


def transformers_config(config: Config, path: str | None = None) -> Any:
    """The configuration of the model at `path`, by default the run's."""
    from transformers import AutoConfig

    from rlft.errors import UserError
    from rlft.models.load import cannot_load
    from rlft.models.tiny import tiny_config

    if path is None and config.model.tiny is not None:
        return tiny_config(config.model.tiny)
    name = path or str(config.model.path)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(cannot_load(name, error)) from error


def _roles(config: Config, model: Any, lengths: Lengths) -> Iterator[Role]:
    learner, critic, dtype = config.learner, config.critic, config.model.dtype
    groups = _groups(config, lengths)
    trained = skeleton(model, dtype, config.model.adapter, config.loop.steps)
    peak, note = trained_peak(
        config, learner, trained, groups, not (makes_reward_model(config) or learns_tasks(config))
    )
    if draws(config) and learner.gpus == 0:  # with GPUs what travels through memory is in the host's
        waiting = roles.sync_buffers(trained, weight_transport(config))
        peak = max(peak, roles.publishing_peak(peak, waiting), key=lambda p: p.total)
    yield Role("learner", learner.num_ranks, learner.gpus, peak, note)
    if uses_critic(config):
        bare = skeleton(transformers_config(config, critic.path), dtype, None)
        peak, note = trained_peak(config, critic, bare, groups, with_head=False)
        yield Role("critic", critic.num_ranks, critic.gpus, peak, note)
    if starts_scorer(config):
        peak = _scored(config, skeleton(model, dtype, None), groups)
        yield Role("scorer", config.scorer.num_actors, config.scorer.gpus, peak)
    if uses_teacher(config):
        bare = skeleton(transformers_config(config, config.teacher.path), dtype, None)
        yield Role("teacher", config.teacher.num_actors, config.teacher.gpus, _scored(config, bare, groups))
    if draws(config):
        yield _generator(config, model, lengths)


def _groups(config: Config, lengths: Lengths) -> list[Group]:
    """Of one update. Two samples to each prompt where pairs are compared, one where rows are looked at alone."""
    prompts, (prompt, completion), adapter = config.loop.prompts_per_step, lengths, config.model.adapter
    source = adapter.tasks[0] if adapter is not None and adapter.tasks else ""
    if draws(config):
        prompts = max(1, prompts // config.algorithm.num_minibatches)
        return expected_groups(prompts, config.algorithm.group_size, prompt, completion, source)
    return expected_groups(prompts, 2 if compares(config.algorithm) else 1, prompt, completion, source)


def trained_peak(
    config: Config, settings: TrainedConfig, bare: Skeleton, groups: list[Group], with_head: bool
) -> tuple[Peak, str]:
    """Of a rank of the learner, or of the critic, and what is told of it. `bare`: with the adapter, not quantized."""
    stage, ranks = zero_stage(settings, config.model.dtype), settings.num_ranks
    adapter = config.model.adapter if settings is config.learner else None
    saved, again, base = 0, 0, config.model.quantization if settings is config.learner else None
    if base is not None:
        saved, again = roles.quantized(skeleton(bare.config, config.model.dtype, None), base)
    training = roles.training_of(bare, stage, settings, "" if adapter is None else adapter.type, saved)
    micro_batches = plan_micro_batches(groups, ranks, settings.tokens_per_micro_batch, compares(config.algorithm))[0]
    chunk, entropy = config.learner.tokens_per_logit_chunk, with_head and config.algorithm.entropy_coef > 0
    peak = roles.learner_peak(bare, training, micro_batches, settings, chunk, with_head, entropy, again)
    most = max(sum(map(fed_tokens, part)) for part in micro_batches)
    trains = f"ZeRO {stage}, {training.trained:,} parameters train"
    if settings.offload_activations:
        trains += " (offload_activations is not counted: less on the GPU)"
    return peak, f"{trains}, {len(micro_batches)} micro-batches a rank, of up to {most:,} tokens"


def _scored(config: Config, bare: Skeleton, groups: list[Group]) -> Peak:
    parts = plan_micro_batches(groups, 1, config.learner.tokens_per_micro_batch)[0]
    largest = max(parts, key=lambda part: sum(map(fed_tokens, part)))
    return roles.scorer_peak(bare, largest, config.learner.tokens_per_logit_chunk)


def _generator(config: Config, model: Any, lengths: Lengths) -> Role:
    settings, adapter, samples = config.generator, config.model.adapter, config.algorithm.group_size
    rows = min(settings.max_concurrent, config.loop.prompts_per_step * samples)
    if generator_engine(config) == "transformers":
        bare = skeleton(model, config.model.dtype, adapter, config.loop.steps)
        prompts = max(1, rows // samples)
        peak = roles.generator_peak(bare, prompts, samples, *lengths, on_gpu=settings.gpus > 0)
        note = f"transformers, {prompts * samples} samples side by side"
    else:
        served = adapter if serving(config) == "adapter" else None
        bare = skeleton(model, config.model.dtype, served, config.loop.steps)
        peak = roles.vllm_peak(bare, max(1, int(settings.gpus)), rows, samples, *lengths)
        note = f"vLLM, with a cache for {rows} samples; it takes what it is given, and with less it takes longer"
    return Role("generator", settings.num_actors, settings.gpus, peak, note)


def _devices(config: Config, found: tuple[Role, ...]) -> tuple[tuple[str, int], ...]:
    """Roles that share a device, together: all of them inline or without GPUs, learner and generators colocated."""
    together = list[list[Role]]()
    for role in found:
        shared = shares_gpus(config) and role.gpus > 0
        place = next((p for p in together if shared and p[0].gpus > 0), None)
        if config.cluster.mode == "inline":
            place = together[0] if together else None
        if place is None:
            together.append([role])
        else:
            place.append(role)
    return tuple((" + ".join(r.name for r in place), sum(r.peak.total for r in place)) for place in together)
