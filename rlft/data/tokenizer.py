"""Loads a tokenizer so that the rest of the system can rely on it: it has an end, a pad token and, if asked for, the
chat template from a file. Knows nothing about models or data."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rlft.data.reading import near_names
from rlft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_tokenizer(folder_or_name: str | os.PathLike[str], chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder or Hub name. `chat_template` is a Jinja file used instead of its own.

    Padding is on the left; a tokenizer without a pad token pads with its end-of-sequence token. Raises UserError when
    the folder, its tokenizer files or the template are not there or cannot be read.
    """
    name = str(folder_or_name)
    template = _read_template(chat_template) if chat_template is not None else None
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any((folder / file).exists() for file in TOKENIZER_FILES):
            raise UserError(
                f"model.path: {name} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}). Copy the tokenizer files "
                "of the base model into that folder."
            )
        name = str(folder)
    elif folder.exists():
        raise UserError(f"model.path: {name} is a file. Expected a Hugging Face model folder or a name on the Hub.")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model.path: {name} does not exist. {near_names(name)}")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    loader = PreTrainedTokenizerFast if _is_generic(folder) else AutoTokenizer
    try:
        tokenizer = cast("PreTrainedTokenizerBase", loader.from_pretrained(name))
    except Exception as error:  # OSError for names and networks, anything for damaged files
        what = f"{type(error).__name__}: {str(error).strip()[:500]}"
        where = (
            "a damaged tokenizer?" if folder.is_dir() else f"no such folder here, nor on the Hub. {near_names(name)}"
        )
        raise UserError(f"model.path: the tokenizer of {name} cannot be loaded ({where}): {what}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.path: the tokenizer of {name} has no end-of-sequence token, so no completion could end. "
            "Set eos_token in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def with_chat_template(tokenizer: PreTrainedTokenizerBase, path: str) -> PreTrainedTokenizerBase:
    """The same tokenizer with another chat template, from a Jinja file. Raises UserError when that cannot be read."""
    other = copy.copy(tokenizer)
    other.chat_template = _read_template(path)
    return other


def end_tokens(folder_or_name: str, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends a completion: the tokenizer's, and those of the model's generation config."""
    from transformers import AutoConfig, GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(folder_or_name)
    except OSError:  # a model without one: transformers makes it of the model's own configuration
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder_or_name))
    end = generation.eos_token_id
    ids = end if isinstance(end, list) else [end]
    return {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}


def _is_generic(folder: Path) -> bool:
    """Whether the folder says that its tokenizer.json is the whole tokenizer. AutoTokenizer does not take that word for
    some architectures (Qwen2 among them) and builds that family's own tokenizer from the vocabulary instead, which then
    reads text differently from what the model was made with."""
    file = folder / "tokenizer_config.json"
    if not file.is_file() or not (folder / "tokenizer.json").is_file():
        return False
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False  # AutoTokenizer will say what is wrong with it
    generic = ("PreTrainedTokenizerFast", "TokenizersBackend")
    return isinstance(settings, dict) and settings.get("tokenizer_class") in generic and "auto_map" not in settings


def _read_template(path: str) -> str:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"model.chat_template: {path} is not a file. {near_names(path)}")
    text = file.read_text(encoding="utf-8")
    from jinja2 import Environment, TemplateSyntaxError

    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", text)  # transformers' own tags, which Jinja does not know
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except TemplateSyntaxError as error:
        raise UserError(f"model.chat_template: {path}, line {error.lineno}: {error.message}.") from None
    return text
