"""A reward model: transformers' sequence classification model with one output, or several, fed in packs.

Knows nothing about losses or engines. A text's score is read at its last token, or at the end of each of its steps. In
a pack the state of a token is asked for by the place behind it, so every text ends with one more token that is never
fed (rlft.data.scores).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlft.batch import Pack
from rlft.config.model import ModelConfig
from rlft.errors import UserError
from rlft.models.adapters.attach import add_adapter
from rlft.models.adapters.own import is_own
from rlft.models.adapters.reading import read_peft
from rlft.models.load import cannot_load, read_config
from rlft.models.policy import check_packed, use_packed_attention
from rlft.models.quantization import dequantize, loading_arguments, read_quantization, settled

MARK = "rlft_reward_model"  # in a checkpoint: the algorithm.type that made it, so that none is taken for the other
_MARK_FILE = f"{MARK}.json"  # beside an adapter, whose folder has no configuration of a model
_TRAINED_IN = "trained_in"


class RewardModel(nn.Module):
    """For packs, as Policy."""

    def __init__(self, model: nn.Module) -> None:
        """`model`: a sequence classification model, perhaps with an adapter around it."""
        super().__init__()
        self.model = model
        classifier: Any = _inside(model)
        head = getattr(classifier, "score", None)
        if head is None:
            raise UserError(
                f"model.path: {type(classifier).__name__} has no layer named score, so it cannot be used as a reward "
                "model; expected a decoder (Qwen, Llama, Mistral, Gemma and others)"
            )
        plain = classifier.config._attn_implementation
        use_packed_attention(classifier)

        def alone(ids: Tensor) -> Tensor:
            return classifier.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]

        check_packed(classifier, plain, self.hidden, alone)

    def hidden(self, input_ids: Tensor, position_ids: Tensor, layout: Any) -> Tensor:
        """Last hidden states [N, hidden] of tokens [N]."""
        body: Any = _inside(self.model).base_model
        return body(
            input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False, layout=layout
        ).last_hidden_state[0]

    def forward(self, pack: Pack) -> Tensor:
        """The score in the state before each target, f32 [M]; [M, K] from a model of K > 1 outputs."""
        hidden = self.hidden(pack.input_ids, pack.position_ids, pack.layout)
        return _inside(self.model).score(hidden.index_select(0, pack.predict_from)).squeeze(-1).float()


def _inside(model: Any) -> Any:
    """The transformers model inside an adapter, or itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def load_reward_model(model: ModelConfig, device: torch.device | str = "cpu", seed: int = 0) -> RewardModel:
    """The reward model at `model.path`, in eval mode. From a causal language model its body, with a new head drawn from
    `seed`; from a reward model all of it. With its adapter around it if one is configured."""
    assert model.path is not None
    classifier, _ = load_classifier(model, device, seed)
    if model.adapter is not None:
        classifier = add_adapter(classifier, model.adapter, seed, task="SEQ_CLS")
    return RewardModel(classifier).eval()


def load_trained_reward_model(
    path: str, dtype: str, device: torch.device | str = "cpu", num_outputs: int = 1
) -> RewardModel:
    """The reward model at `path` to be asked, an adapter's folder among them. Raises UserError for a model without a
    head, whose scores would be random, or with one of another size than `num_outputs`.

    An adapter is not merged: a merge into 16 bits would round, and another model would score than was trained. `dtype`:
    of its weights. In float32 an adapter's base is first rounded to what it was trained in.
    """
    if is_own(path):
        raise UserError(f"reward model: {path} holds an adapter of a language model, which has no scores")
    first = _marks(path).get(_TRAINED_IN, dtype) if dtype == "float32" else dtype
    kind = ModelConfig.model_validate({"path": base_of(path), "dtype": first, "quantization": read_quantization(path)})
    classifier, missing = load_classifier(kind, device, num_outputs=num_outputs)
    classifier = dequantize(classifier)
    if is_adapter(path):
        classifier = read_peft(classifier, path)
    elif missing:
        raise UserError(
            f"reward model: {path} has no weights for {', '.join(sorted(missing))}: it is no reward model. Train one "
            "with algorithm.type reward or process_reward, and give its checkpoint."
        )
    return RewardModel(classifier.float() if dtype == "float32" else classifier).eval()


def mark(model: RewardModel, kind: str) -> None:
    """Have whatever saves the model's configuration write `kind` there, reward or process_reward."""
    setattr(_inside(model.model).config, MARK, kind)


def mark_adapter(folder: Path, kind: str, dtype: str) -> None:
    """The same for an adapter that was saved in `folder`, and the type that its base was trained in."""
    (folder / _MARK_FILE).write_text(json.dumps({MARK: kind, _TRAINED_IN: dtype}) + "\n")


def marked_as(path: str) -> str | None:
    """The algorithm.type that trained the reward model at `path`; None where nothing says so, as of others' models."""
    if is_adapter(path):
        return _marks(path).get(MARK)
    return getattr(read_config(path), MARK, None)


def _marks(path: str) -> dict[str, str]:
    """What mark_adapter left there; nothing where another has written the adapter."""
    file = Path(path, _MARK_FILE)
    return json.loads(file.read_text()) if file.is_file() else {}


def is_adapter(path: str) -> bool:
    """Whether the folder holds a PEFT adapter."""
    return Path(path, "adapter_config.json").is_file()


def base_of(path: str) -> str:
    """The model that an adapter's folder is for; other paths as they are."""
    if not is_adapter(path):
        return path
    return str(json.loads(Path(path, "adapter_config.json").read_text())["base_model_name_or_path"])


def load_classifier(
    model: ModelConfig, device: torch.device | str = "cpu", seed: int = 0, num_outputs: int = 1
) -> tuple[Any, set[str]]:
    """transformers' sequence classification model, without an adapter, and the names of weights that it does not find
    at `model.path`: a new head is drawn from `seed`."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    assert model.path is not None
    logging.disable_progress_bar()
    more, kind = loading_arguments(model, device), getattr(torch, model.dtype)
    state, level = torch.get_rng_state(), logging.get_verbosity()
    torch.manual_seed(seed)
    logging.set_verbosity_error()  # it would tell that the head is new, which may be the point
    try:
        classifier, info = AutoModelForSequenceClassification.from_pretrained(
            model.path, num_labels=num_outputs, dtype=kind, output_loading_info=True, **more
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(cannot_load(model.path, error)) from error
    finally:
        logging.set_verbosity(level)
        torch.set_rng_state(state)
    text = classifier.config.get_text_config()
    if text.pad_token_id is None:  # with one, it can score several texts at once
        text.pad_token_id = text.eos_token_id
    return settled(classifier, device), set(info["missing_keys"])
