"""The vLLM generator: an async engine on a thread of its own, that takes new weights while samples are being drawn.

A sample under way when weights arrive is not dropped: vLLM hands back what it has of it, and it goes on from there
under the new weights, with everything that was cached under the old ones computed anew. Because no weights change while
a request is with vLLM, the version on a token is exact. Knows nothing about Ray, rewards or learners; speaks
`rlft.roles.Generator`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import queue
import threading
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from rlft.config import Config
from rlft.config.adapters import lora_scale
from rlft.config.derived import serving, shares_gpus
from rlft.data.tokenizer import end_tokens, load_tokenizer
from rlft.engines.transport import ChannelSeat
from rlft.engines.vllm import handover, settings
from rlft.engines.vllm.own_log import OwnLog
from rlft.engines.weights import WeightUpdate
from rlft.errors import RunError, UserError, WeightSyncError
from rlft.samples import Group, Prompt, Sample, SamplingParams, continuation_seed

T = TypeVar("T")
_ADAPTER_MARKS = (".lora_A.", ".lora_B.")


@dataclass
class _Row:
    """A sample while it is drawn."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish_reason: str = ""


class VllmGenerator:
    """See rlft.roles.Generator."""

    def __init__(self, config: Config, device: str = "cpu", num_gpus: float = 0.0, name: str = "generator") -> None:
        """Start vLLM with the model's own weights; it serves nothing until the first `load`. `name` stands in error
        messages. `num_gpus`: tensor-parallel workers."""
        assert config.model.path is not None
        self._name, self._config, self._log = name, config, OwnLog()
        self._tokenizer = load_tokenizer(config.model.path, config.model.chat_template)
        self._end = sorted(end_tokens(config.model.path, self._tokenizer))
        self._timeout_s = config.cluster.stage_timeout_s
        self.version: int | None = None  # None: not provably on any version
        self._trainable: set[str] | None = None  # what every update after the first complete one must bring
        self._sleeps, self._asleep = shares_gpus(config) and device != "cpu", False
        self._adapter: Any = None  # vLLM's request for the adapter that is served
        self._numbers = itertools.count(1)
        self._requests: set[str] = set()  # with vLLM now
        self._engine: Any = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        settings.set_environment(device, config.cluster.threads)
        arguments = settings.engine_arguments(config, device, num_gpus)
        self._engine = self._wait(self._start(arguments), config.cluster.start_timeout_s, "starting vLLM")
        workers = self._wait(self._engine.collective_rpc("rlft_reads_back"), self._timeout_s, "asking vLLM's workers")
        self._reads_back, self._num_workers = all(workers), len(workers)
        if not self._reads_back and device == "cpu":
            self.close()
            raise UserError(
                f"generator.engine: on a CPU vLLM cannot take new weights into {config.model.path}: it repacks "
                "experts, quantized and state-space layers, and its own reload leaves them wrong. Use "
                "generator.engine transformers."
            )

    async def _start(self, arguments: dict[str, Any]) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._open = asyncio.Event()  # closed while weights change
        self._open.set()
        self._loading = asyncio.Lock()
        self._idle = asyncio.Event()  # no request is with vLLM
        self._idle.set()
        with settings.without_main_file():
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

    def close(self) -> None:
        """Stop vLLM's processes."""
        engine, self._engine = self._engine, None
        if engine is None:
            return

        async def shut_down() -> None:  # on the engine's own thread, where nothing of it can run meanwhile
            engine.shutdown()

        asyncio.run_coroutine_threadsafe(shut_down(), self._loop).result(timeout=30)  # s: it kills after a few
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _wait(self, work: Coroutine[Any, Any, T], timeout_s: float, what: str) -> T:
        """Run on the engine's thread and wait, with a bound."""
        future = asyncio.run_coroutine_threadsafe(self._while_alive(work), self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise RunError(f"{self._name}: {what} took longer than {timeout_s:.0f} s") from None
        except BaseException as error:
            raise self._explained(error, what) from error

    async def _while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; an error when vLLM's process dies meanwhile, which vLLM itself may not notice."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=0.5))[0]:
                if self._engine is not None and self._engine.errored:
                    raise self._engine.dead_error
            return task.result()
        finally:
            task.cancel()

    # Drawing samples

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int
    ) -> Iterator[tuple[int, Group]]:
        """See rlft.roles.Generator. Begins at once, not at the first `next`."""
        results: queue.Queue[tuple[int, Group] | BaseException] = queue.Queue()
        work = self._draw_all(prompts, seeds, params, version, results)
        task = asyncio.run_coroutine_threadsafe(work, self._loop)
        return self._results(results, len(prompts), task)

    def _results(self, results: queue.Queue[Any], count: int, task: Any) -> Iterator[tuple[int, Group]]:
        try:
            for _ in range(count):
                try:
                    result = results.get(timeout=self._timeout_s)
                except queue.Empty:
                    raise RunError(f"{self._name}: no sample was finished for {self._timeout_s:.0f} s") from None
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            task.cancel()  # when the consumer leaves early; otherwise it is done

    async def _draw_all(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int,
        results: queue.Queue[Any],
    ) -> None:  # fmt: skip
        async def draw_group(place: int) -> None:
            rows = await asyncio.gather(*(self._draw(prompts[place], seed, params, version) for seed in seeds[place]))
            results.put((place, self._group(prompts[place], seeds[place], rows)))

        try:
            async with asyncio.TaskGroup() as group:
                for place in range(len(prompts)):
                    group.create_task(draw_group(place))
        except BaseExceptionGroup as errors:
            results.put(self._explained(errors.exceptions[0], "drawing samples"))

    async def _draw(self, prompt: Prompt, seed: int, params: SamplingParams, version: int) -> _Row:
        """One sample, in as many requests as there were weights while it was drawn."""
        row = _Row()
        while not row.finish_reason:
            await self._open.wait()
            if self.version is None or self.version < version:
                raise WeightSyncError(
                    f"{self._name} was asked for samples of weight version {version} but is on "
                    f"{'no verified version' if self.version is None else f'version {self.version}'}"
                )
            mine = self.version
            part_seed = continuation_seed(seed, len(row.tokens))
            wanted = settings.request_params(params, part_seed, len(row.tokens), self._end)
            output = await self._request([*prompt.token_ids.tolist(), *row.tokens], wanted)
            completion = output.outputs[0]
            row.tokens += completion.token_ids
            row.logprobs += completion.logprobs.logprobs[: len(completion.token_ids)]
            row.versions += [mine] * len(completion.token_ids)
            if completion.finish_reason != "abort":
                row.finish_reason = completion.finish_reason
            elif len(row.tokens) >= params.max_new_tokens:
                row.finish_reason = "length"
            self._cut_at_stop(row, params)
        return row

    async def _request(self, token_ids: list[int], wanted: Any, adapter: Any = None) -> Any:
        """vLLM's final answer to one request."""
        from vllm.inputs import TokensPrompt

        number, answer = str(next(self._numbers)), None
        self._requests.add(number)  # before anything is awaited: `_drain` must see it
        self._idle.clear()
        try:
            prompt = TokensPrompt(prompt_token_ids=token_ids)
            adapter = adapter or self._adapter
            async for output in self._engine.generate(prompt, wanted, request_id=number, lora_request=adapter):
                answer = output
        finally:
            self._requests.discard(number)
            if not self._requests:
                self._idle.set()
        return answer

    def _cut_at_stop(self, row: _Row, params: SamplingParams) -> None:
        """End a sample that was drawn in parts where a stop string spans them: vLLM looks at one part at a time."""
        if not params.stop or len(set(row.versions)) < 2:
            return

        def stopped(count: int) -> bool:
            text = self._tokenizer.decode(row.tokens[:count], skip_special_tokens=False)
            return any(stop in text for stop in params.stop)

        if not stopped(len(row.tokens)):
            return
        low, high = 0, len(row.tokens)  # not yet there, there already
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if stopped(middle) else (middle, high)
        del row.tokens[high:], row.logprobs[high:], row.versions[high:]
        row.finish_reason = "stop"

    def _group(self, prompt: Prompt, seeds: Sequence[int], rows: Sequence[_Row]) -> Group:
        texts = self._tokenizer.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return Group(prompt, tuple(_sample(prompt, *each) for each in zip(seeds, rows, texts, strict=True)))

    def probe(self, prompt: Prompt, seed: int, params: SamplingParams) -> dict[str, Group]:
        """See rlft.roles.Generator."""
        ((_, group),) = self.generate([prompt], [[seed]], params, self.version or 0)
        return {self._name: group}

    # Taking over weights

    def sleep(self) -> None:
        """See rlft.roles.Generator. Weights that the next update will bring are dropped, others go to the CPU's memory;
        without a GPU there is nothing to give up."""
        if self._sleeps:
            level = 2 if serving(self._config) == "full" else 1
            self._wait(self._engine.sleep(level=level), self._timeout_s, "going to sleep")
            self._asleep = True

    def num_receivers(self) -> int:
        """See rlft.engines.build.Engine."""
        return self._num_workers

    def join(self, seat: ChannelSeat) -> None:
        """See rlft.engines.build.Engine."""
        where = (seat.host, seat.port, seat.rank, seat.size, seat.timeout_s)
        joining = self._engine.collective_rpc("rlft_join", args=where)
        self._wait(joining, self._timeout_s, "joining the broadcast of weights")

    def load(self, update: WeightUpdate) -> bool:
        """See rlft.roles.Generator."""
        self._wait(self._load(update), self._timeout_s, f"loading weight version {update.version}")
        return self._reads_back

    async def _load(self, update: WeightUpdate) -> None:
        async with self._loading:
            self._open.clear()
            self.version = None
            try:
                self._check_names(update)
                await self._engine.pause_generation(mode="abort", clear_cache=True)
                await self._drain()
                if self._asleep:
                    await self._engine.wake_up(tags=["weights"])
                adapter = await self._take_over(update)
                if self._asleep:
                    await self._engine.wake_up(tags=["kv_cache"])
                    self._asleep = False
                await self._engine.resume_generation()
                await self._check_cache(update.version, adapter)
                self._adapter, self.version = adapter, update.version
            finally:
                self._open.set()  # whoever waits goes on, or learns that there is no verified version

    async def _drain(self) -> None:
        """Wait until no request is with vLLM. One that was on its way to it when it paused would wait there and be
        answered by other weights than it is counted for, so it is taken back too."""
        for _ in range(100):  # one round is enough; more only when a request is still being handed over
            if not self._requests:
                return
            await self._engine.abort(list(self._requests))
            try:
                await asyncio.wait_for(self._idle.wait(), timeout=1.0)
            except TimeoutError:
                continue
        raise RunError(f"{self._name}: {len(self._requests)} requests could not be taken back from vLLM")

    def _check_names(self, update: WeightUpdate) -> None:
        """An update brings every weight, or exactly those that train after all were there once."""
        if update.complete:
            self._trainable = None
            return
        if self._trainable is None:
            raise WeightSyncError(
                f"{self._name}: weight version {update.version} brings only what trains, but the other weights here "
                "were never compared with the learner's"
            )
        names = {entry.name for entry in update.entries}
        for kind, odd in (("lacks", self._trainable - names), ("brings unknown", names - self._trainable)):
            if odd:
                some = ", ".join(sorted(odd)[:3])
                raise WeightSyncError(
                    f"{self._name}: weight version {update.version} {kind} {len(odd)} tensors: {some}"
                )

    async def _take_over(self, update: WeightUpdate) -> Any:
        """Load and verify; gives the adapter to serve, if the model has one."""
        plain = [e for e in update.entries if not any(mark in e.name for mark in _ADAPTER_MARKS)]
        adapter = {e.name: e.name.replace(".default.", ".") for e in update.entries if e not in plain}
        request = self._adapter
        with handover.shared_folder(update.num_bytes) as folder:
            if plain:
                named = [_renamed(e) for e in plain]
                handover.write_update(folder, update, named)
                self._insist(update, await self._engine.collective_rpc("rlft_load", args=(str(folder),)))
            if adapter:
                request = await self._take_over_adapter(update, adapter, folder / "adapter")
        if update.complete:
            self._trainable = set(update.trainable)
        return request

    async def _take_over_adapter(self, update: WeightUpdate, names: dict[str, str], folder: Any) -> Any:
        """A name, number and path that were never used before: under a known one vLLM would keep the old adapter."""
        from vllm.lora.request import LoRARequest

        settings_ = self._config.model.adapter
        assert settings_ is not None
        handover.write_adapter(folder, update, names, settings_)
        number = next(self._numbers)
        request = LoRARequest(f"version-{update.version}-{number}", number, str(folder))
        if self._adapter is not None:
            await self._engine.remove_lora(self._adapter.lora_int_id)
        await self._engine.add_lora(request)
        scale = lora_scale(settings_)
        checks = await self._engine.collective_rpc("rlft_check_adapter", args=(number, str(folder), scale))
        self._insist(update, checks)
        return request

    def _insist(self, update: WeightUpdate, answers: Sequence[list[str]]) -> None:
        """Raise WeightSyncError for what any worker found wrong."""
        problems = list(dict.fromkeys(problem for answer in answers for problem in answer))
        if problems:
            more = f" ({len(problems)} problems in all)" if len(problems) > 1 else ""
            raise WeightSyncError(
                f"{self._name}: weight version {update.version}: {problems[0]}{more}. The generator serves nothing "
                "until a load is verified."
            )

    async def _check_cache(self, version: int, adapter: Any) -> None:
        """The same tokens are sent after each load. If vLLM answers from its cache, the cache holds what older weights
        computed."""
        cache, model = self._engine.vllm_config.cache_config, self._engine.vllm_config.model_config
        length = min(cache.block_size + 1, model.max_model_len - 1)  # one block, which is what can be cached
        wanted = settings.request_params(SamplingParams(num_samples=1, max_new_tokens=1), 0, 0, self._end)
        output = await self._request([self._end[0] if self._end else 0] * length, wanted, adapter)
        if output.num_cached_tokens:
            raise WeightSyncError(
                f"{self._name}: weight version {version}: vLLM's prefix cache was not cleared: "
                f"{output.num_cached_tokens} of {length} tokens of a prompt came from what older weights computed"
            )

    def _explained(self, error: BaseException, doing: str) -> BaseException:
        """vLLM's errors with the generator's name; ours as they are."""
        if isinstance(error, RunError | UserError):
            return error
        own = self._log.last_error()
        return RunError(f"{self._name}: vLLM failed while {doing}: {type(error).__name__}: {error}{own}")


def _renamed(entry: Any) -> Any:
    """Named as in the plain model: peft puts its own names around it."""
    import dataclasses

    name = entry.name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    return dataclasses.replace(entry, name=name)


def _sample(prompt: Prompt, seed: int, row: _Row, text: str) -> Sample:
    start, length = len(prompt.token_ids), len(prompt.token_ids) + len(row.tokens)
    logprobs, versions = np.zeros(length, dtype=np.float32), np.full(length, -1, dtype=np.int32)
    logprobs[start:], versions[start:] = row.logprobs, row.versions
    return Sample(
        token_ids=np.concatenate([prompt.token_ids, np.array(row.tokens, dtype=np.int32)]),
        loss_mask=np.arange(length) >= start,
        logprobs=logprobs,
        weight_versions=versions,
        finish_reason="stop" if row.finish_reason == "stop" else "length",
        seed=seed,
        text=text,
    )
