"""What vLLM says of a sequence, with nothing of rlft around it: python -m tests.vllm_scores MODEL TYPE IDS [ADAPTER]

For a process of its own. Prints RESULT and the log-probs of all tokens of IDS (a JSON list) but the first.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rlft.engines.vllm.settings import set_environment


def main(model: str, dtype: str, words: str, adapter: str | None = None) -> None:
    """See above."""
    set_environment("cpu", threads=1)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    lora: dict[str, Any] = {} if adapter is None else {"enable_lora": True, "max_lora_rank": 8}
    llm = LLM(model, dtype=dtype, enforce_eager=True, max_model_len=64, skip_tokenizer_init=True, **lora)
    ids = json.loads(words)
    request = None if adapter is None else LoRARequest("exported", 1, adapter)
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    (output,) = llm.generate([{"prompt_token_ids": ids}], params, lora_request=request, use_tqdm=False)
    assert output.prompt_logprobs is not None
    found = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True) if entry]
    print("RESULT", json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
