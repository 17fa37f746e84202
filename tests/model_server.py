"""A real model behind /v1/chat/completions: what `transformers serve` is, without the packages that it needs (uvicorn,
fastapi), which this project does not have. Templates, seeds, temperatures, stops, lengths and token counts are real."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.chat_server import Answer, ChatServer, Fault, chat_server, completion


@contextlib.contextmanager
def model_server(folder: Path) -> Iterator[ChatServer]:
    """Serves the Hugging Face model in `folder`, one request at a time, by transformers' `generate`."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    lock = threading.Lock()  # torch's random state is one for all threads

    def answer(body: dict[str, Any]) -> Answer:
        text: Any = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        num_prompt, window = prompt.shape[1], model.config.max_position_embeddings
        if num_prompt + body["max_tokens"] > window:
            return _error(400, f"{num_prompt} + {body['max_tokens']} tokens do not fit the window of {window}")
        sampling = {"do_sample": True, "temperature": body["temperature"], "top_k": 0} if body["temperature"] else {}
        with lock, torch.inference_mode():
            torch.manual_seed(body["seed"])
            out = model.generate(prompt, max_new_tokens=body["max_tokens"], **({"do_sample": False} | sampling))
        ids = out[0, num_prompt:].tolist()
        reason = "stop" if ids[-1] == tokenizer.eos_token_id else "length"
        usage = {"prompt_tokens": num_prompt, "completion_tokens": len(ids)}
        return completion(str(tokenizer.decode(ids, skip_special_tokens=True)), reason, usage=usage)

    with chat_server(answer) as server:
        yield server


def _error(status: int, message: str) -> Fault:
    return Fault(status, json.dumps({"error": {"message": message}}).encode())
