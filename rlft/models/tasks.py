"""One decoder with a head for each of several tasks, fed in packs.

Heads are those of transformers' models for these tasks (AutoModelFor...), so that each can be saved as one. Knows
nothing about losses or engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rlft.batch import Pack
from rlft.config.model import ModelConfig
from rlft.config.tasks import TaskConfig
from rlft.errors import UserError
from rlft.models.adapters.attach import add_adapter
from rlft.models.adapters.reading import read_peft
from rlft.models.load import cannot_load
from rlft.models.policy import check_packed, use_packed_attention
from rlft.models.quantization import dequantize, loading_arguments, read_quantization, settled
from rlft.models.reward import base_of
from rlft.models.reward import is_adapter as is_adapter_folder
from rlft.samples import Group

SHARED = "shared"  # name of the adapter of all tasks that have none of their own
_CLASSES = {  # transformers' auto class by kind, and what peft calls such a task
    "sequence_classification": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "token_classification": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "question_answering": ("AutoModelForQuestionAnswering", "QUESTION_ANS"),
}


class TaskPart(NamedTuple):
    """The rows of one task in a pack."""

    places: Tensor  # int64 [M], which of the pack's targets it reads
    sizes: list[int]  # places of each row
    labels: Tensor  # the rows' TaskLabels.values, one behind the other; of questions int64 [R, 2], of numbers f32 [R]


def task_parts(groups: Sequence[Group], tasks: Sequence[TaskConfig], device: torch.device) -> list[TaskPart | None]:
    """For each task its part of make_pack(groups), None where it has no row there."""
    samples = [sample for group in groups for sample in group.samples]
    begins = np.cumsum([0, *(sample.num_trained for sample in samples)])
    parts = list[TaskPart | None]()
    for task in tasks:
        mine = [i for i, s in enumerate(samples) if s.labels is not None and s.labels.task == task.name]
        if not mine:
            parts.append(None)
            continue
        places = np.concatenate([np.arange(begins[i], begins[i + 1]) for i in mine])
        values: list[Any] = [samples[i].labels.values for i in mine]  # type: ignore[union-attr]
        labels = np.stack(values) if task.kind == "question_answering" else np.concatenate(values)
        sizes = [samples[i].num_trained for i in mine]
        parts.append(TaskPart(torch.from_numpy(places).to(device), sizes, torch.from_numpy(labels).to(device)))
    return parts


class Head(NamedTuple):
    """What a task's transformers model has on top of its body."""

    name: str  # of the layer: score, classifier, qa_outputs
    prefix: str  # of the body's weights in it: model
    architecture: str  # Qwen3ForTokenClassification
    peft_type: str  # TOKEN_CLS
    bias: bool
    config: Any  # its transformers configuration, labels among it


class MultiTaskModel(nn.Module):
    """For packs, as Policy."""

    def __init__(self, body: nn.Module, tasks: Sequence[TaskConfig], seed: int) -> None:
        """`body`: a transformers model without a head, perhaps with adapters around it. Heads are drawn from `seed`."""
        super().__init__()
        self.body, self.tasks = body, tuple(tasks)
        inside = inner(body)
        self.described = [describe_head(inside.config, task) for task in tasks]
        self.heads = nn.ModuleList(_new_heads(inside, tasks, self.described, seed))
        plain = inside.config._attn_implementation
        use_packed_attention(inside)

        def alone(ids: Tensor) -> Tensor:
            return inside(input_ids=ids[None], use_cache=False).last_hidden_state[0]

        check_packed(inside, plain, self.hidden, alone)

    def hidden(self, input_ids: Tensor, position_ids: Tensor, layout: Any) -> Tensor:
        """Last hidden states [N, hidden] of tokens [N]."""
        output = inner(self.body)(
            input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False, layout=layout
        )
        return output.last_hidden_state[0]

    def forward(self, pack: Pack, parts: Sequence[TaskPart | None]) -> list[Tensor]:
        """Each task's logits in its places, f32 [M, C]; [0, C] where it has none. All heads take part in every pass, so
        that each weight has a gradient on every rank."""
        states = self.hidden(pack.input_ids, pack.position_ids, pack.layout).index_select(0, pack.predict_from)
        places = [states.new_zeros(0, dtype=torch.int64) if part is None else part.places for part in parts]
        return [head(states.index_select(0, at)).float() for head, at in zip(self.heads, places, strict=True)]

    def use_adapter(self, name: str) -> None:
        """Let the passes that follow go through this adapter. All keep training."""
        body: Any = self.body
        body.set_adapter(name)
        for parameter_name, parameter in body.named_parameters():
            parameter.requires_grad_(is_adapter(parameter_name))

    def own_parameters(self) -> set[str]:
        """Names of the parameters that only one task has: heads and adapters of their own."""
        own = {adapter_of(task) for task in self.tasks} - {SHARED}
        named = [name for name, _ in self.named_parameters()]
        return {n for n in named if n.startswith("heads.") or any(f".{adapter}." in n for adapter in own)}


def inner(body: Any) -> Any:
    """The transformers model inside adapters, or itself."""
    return body.get_base_model() if hasattr(body, "peft_config") else body


def is_adapter(name: str) -> bool:
    """Whether a parameter of a body with adapters is an adapter's."""
    return ".lora_" in name


def adapter_of(task: TaskConfig) -> str:
    """The name of the task's adapter."""
    return SHARED if task.adapter == SHARED else f"own_{task.name}"


def num_outputs(task: TaskConfig) -> int:
    """Outputs of its head."""
    if task.kind == "question_answering":
        return 2
    return 1 if task.problem == "number" else len(task.labels)


def load_tasks_model(
    model: ModelConfig, tasks: Sequence[TaskConfig], device: torch.device | str = "cpu", seed: int = 0
) -> MultiTaskModel:
    """The body of the model at `model.path` with new heads, in eval mode, and its adapters around it if one is
    configured."""
    assert model.path is not None
    body = _load_body(model, device)
    if model.adapter is not None:
        names = list(dict.fromkeys(adapter_of(task) for task in tasks))
        body = add_adapter(body, model.adapter, seed, task="FEATURE_EXTRACTION", names=names)
    whole = MultiTaskModel(body, tasks, seed)
    whole.heads.to(device=device, dtype=getattr(torch, model.dtype))
    if model.adapter is not None:
        whole.use_adapter(adapter_of(tasks[0]))
    return whole.eval()


def _load_body(model: ModelConfig, device: torch.device | str = "cpu") -> Any:
    from transformers import AutoModel
    from transformers.utils import logging

    assert model.path is not None
    logging.disable_progress_bar()
    more, kind = loading_arguments(model, device), getattr(torch, model.dtype)
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it would tell that the output layer is left out, which is meant
    try:
        body = AutoModel.from_pretrained(model.path, dtype=kind, **more)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(cannot_load(model.path, error)) from error
    finally:
        logging.set_verbosity(level)
    return settled(body, device)


def describe_head(config: Any, task: TaskConfig) -> Head:
    """The head that transformers' model for such a task would have. Raises UserError when there is no such model."""
    import transformers

    own = type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})
    if task.kind != "question_answering":
        names = task.labels or ["number"]
        own.id2label, own.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    if task.kind == "sequence_classification":
        own.problem_type = {
            "one_label": "single_label_classification", "many_labels": "multi_label_classification",
            "number": "regression",
        }[task.problem]  # fmt: skip
    text = own.get_text_config()
    if text.pad_token_id is None:  # with one, it can look at several texts at once
        text.pad_token_id = text.eos_token_id
    auto, peft_type = _CLASSES[task.kind]
    try:
        with torch.device("meta"):
            whole = getattr(transformers, auto).from_config(own)
    except ValueError as error:
        raise UserError(f"tasks: model.path is a {type(config).__name__}, for which there is no {auto}") from error
    heads = [name for name, child in whole.named_children() if isinstance(child, nn.Linear)]
    if len(heads) != 1:
        raise UserError(f"tasks: {type(whole).__name__} has not one linear layer as its head but {len(heads)}")
    own.architectures = [type(whole).__name__]
    bias = getattr(whole, heads[0]).bias is not None
    return Head(heads[0], whole.base_model_prefix, type(whole).__name__, peft_type, bias, own)


def _new_heads(body: Any, tasks: Sequence[TaskConfig], described: Sequence[Head], seed: int) -> list[nn.Linear]:
    """Drawn as transformers does; each from the seed and its own place."""
    text = body.config.get_text_config()
    heads = []
    for place, (task, head) in enumerate(zip(tasks, described, strict=True)):
        layer = nn.Linear(text.hidden_size, num_outputs(task), bias=head.bias)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
        nn.init.normal_(layer.weight, std=getattr(text, "initializer_range", 0.02), generator=generator)
        if head.bias:
            nn.init.zeros_(layer.bias)
        heads.append(layer)
    return heads


def load_task_model(folder: str | Path, dtype: torch.dtype | None = None) -> Any:
    """The transformers model of one task, in eval mode, from a checkpoint's tasks/<name>; an adapter is merged into its
    base, so that save_pretrained leaves a model that needs neither. The sum is made in float32 and rounded once: to
    `dtype`, or to the type that was trained in."""
    model = load_adapted_task_model(folder)
    kind = dtype or model.dtype
    if is_adapter_folder(str(folder)):
        model = model.float().merge_and_unload()
    for parameter in model.parameters():  # and no buffers: positions are not rounded
        parameter.data = parameter.data.to(kind)
    return model.eval()


def load_adapted_task_model(folder: str | Path) -> Any:
    """The same with the adapter around it, not merged: as it was trained.

    With full weights AutoModelFor... does the same. On a base it may not: for several families transformers calls the
    body otherwise in a model for questions than in the language model, and then leaves it random.
    """
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(folder)
    kind: Any = getattr(transformers, config.architectures[0])
    if not is_adapter_folder(str(folder)):
        return kind.from_pretrained(folder).eval()
    dtype = str(config.dtype or torch.float32).removeprefix("torch.")
    base = {"path": base_of(str(folder)), "dtype": dtype, "quantization": read_quantization(folder)}
    body = dequantize(_load_body(ModelConfig.model_validate(base)))
    whole = kind(config).to(body.dtype)
    setattr(whole, whole.base_model_prefix, body)
    return read_peft(whole, folder)
