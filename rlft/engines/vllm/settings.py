"""From our configuration to vLLM's: its environment, its engine arguments, its sampling parameters."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rlft.config import Config
from rlft.config.adapters import VLLM_RANKS, AdapterConfig
from rlft.config.derived import serving, shares_gpus
from rlft.errors import UserError
from rlft.models.load import check_language_model, window
from rlft.samples import SamplingParams

WORKER = "rlft.engines.vllm.worker.WeightReceiver"  # mixed into vLLM's worker class; tests put a faulty one here
OURS = {  # engine arguments that follow from other keys or that correctness hangs on
    "model", "tokenizer", "skip_tokenizer_init", "dtype", "seed", "max_num_seqs", "tensor_parallel_size",
    "distributed_executor_backend", "logprobs_mode", "max_logprobs", "generation_config", "worker_extension_cls",
    "enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras", "enable_sleep_mode", "disable_log_stats",
}  # fmt: skip
_REPLICAS = ("data_parallel", "pipeline_parallel")  # what begins so: engines or stages that weights would not reach


def set_environment(device: str, threads: int | None = None) -> None:
    """What vLLM reads from the environment, unless the user has set it. Before vLLM is imported. `threads`:
    cluster.threads, which wins."""
    values = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
    if device == "cpu":
        # Cores are shared with other actors, so threads are not tied to any; compiling takes longer than it saves.
        values |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCH_COMPILE_DISABLE": "1"}
        # One thread: two on busy cores are slower. One process beside this one and not two: starts in half the time.
        values |= {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    else:  # a fork cannot use CUDA once this process has asked whether there is a GPU, which vLLM does not notice
        values["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    for name, value in values.items():
        os.environ.setdefault(name, value)
    if threads is not None and device == "cpu":
        os.environ["OMP_NUM_THREADS"] = str(threads)


@contextmanager
def without_main_file() -> Iterator[None]:
    """For the time in which vLLM starts its processes: Python runs a parent's script again in each, which would train
    there too where a driver script has no `if __name__ == "__main__"`. They need nothing from it."""
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    if "__file__" in kept:
        del main.__file__
    main.__spec__ = None
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)


def engine_arguments(config: Config, device: str, num_gpus: float) -> dict[str, Any]:
    """Keyword arguments of vLLM's AsyncEngineArgs. Raises UserError for generator.engine_args that it does not know or
    that are ours to set, and for a model that gives no text."""
    generator, model = config.generator, config.model
    check_language_model(str(model.path))
    parallel = max(1, int(num_gpus))
    arguments: dict[str, Any] = {
        "model": model.path,
        "skip_tokenizer_init": not generator.stop,  # only stop strings need the text
        "dtype": model.dtype,
        "seed": config.run.seed,
        "max_num_seqs": generator.max_concurrent,
        "tensor_parallel_size": parallel,
        "distributed_executor_backend": "uni" if parallel == 1 else "mp",
        # Log-probs are the policy's at the sampling temperature. At 1 the raw ones are, and they are right even where
        # min_new_tokens bans the end; the processed ones count what is banned as impossible.
        "logprobs_mode": "raw_logprobs" if generator.temperature == 1 else "processed_logprobs",
        "max_logprobs": 1,
        "generation_config": "vllm",
        "worker_extension_cls": WORKER,
        "disable_log_stats": True,
        "enable_sleep_mode": shares_gpus(config) and device != "cpu",
        "enforce_eager": device == "cpu",
        "enable_prefix_caching": True,
    }
    if device != "cpu" and shares_gpus(config):
        arguments["gpu_memory_utilization"] = 0.4  # the learner's weights and optimizer stay beside it
    if device == "cpu":  # there a prompt cut into chunks fails with seeds ("CPU Generator does not use offset")
        arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, window(str(model.path)))}
        arguments["block_size"] = 32  # the least; of 128, the default there, few prompts would fill one to be shared
    if model.adapter is not None and serving(config) == "adapter":
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(model.adapter)}
    return arguments | _users(generator.engine_args, device)


def _users(given: Mapping[str, Any], device: str) -> dict[str, Any]:
    import dataclasses

    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name in given:
        if name in OURS:
            raise UserError(f"generator.engine_args.{name}: rlft sets it from other keys; take it out")
        if name.startswith(_REPLICAS):
            raise UserError(
                f"generator.engine_args.{name}: new weights are loaded into and proved in one engine with all layers; "
                "for more engines use generator.num_actors, for larger models generator.gpus (tensor parallel)"
            )
        if name == "kv_cache_memory_bytes" and device == "cpu":
            raise UserError(
                f"generator.engine_args.{name}: without effect on CPUs, where vLLM takes the GiB of its cache from the "
                "environment variable VLLM_CPU_KVCACHE_SPACE (1 where you set none); set that instead"
            )
        if name not in known:
            import difflib

            near = ", ".join(difflib.get_close_matches(name, known, 3)) or "see AsyncEngineArgs of vLLM"
            raise UserError(f"generator.engine_args.{name}: this vLLM has no such engine argument; near: {near}")
    return dict(given)


def _lora_rank(adapter: AdapterConfig) -> int:
    fitting = [rank for rank in VLLM_RANKS if rank >= adapter.rank]
    if not fitting:
        raise UserError(f"model.adapter.rank: {adapter.rank} is more than vLLM serves; at most {VLLM_RANKS[-1]}")
    return fitting[0]


def request_params(params: SamplingParams, seed: int, num_done: int, end: Sequence[int]) -> Any:
    """vLLM's sampling parameters for what is left of a sample of which `num_done` tokens are drawn. Nothing but
    temperature shapes the distribution, so that the learner can reproduce it."""
    from vllm.sampling_params import RequestOutputKind
    from vllm.sampling_params import SamplingParams as VllmParams

    return VllmParams(
        n=1,
        temperature=params.temperature,
        top_p=1.0,
        top_k=0,
        seed=seed,
        max_tokens=params.max_new_tokens - num_done,
        min_tokens=max(0, params.min_new_tokens - num_done),
        stop=list(params.stop) or None,
        stop_token_ids=[] if params.ignore_eos else sorted({*end, *params.stop_token_ids}),
        ignore_eos=params.ignore_eos,
        logprobs=0,  # of the drawn token alone
        flat_logprobs=True,
        detokenize=bool(params.stop),
        skip_special_tokens=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
