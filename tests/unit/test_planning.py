"""The memory plan: numbers by hand, and passes without tensors against the same passes with them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config

from rlft import cli
from rlft.config.adapters import AdapterConfig
from rlft.config.model import QuantizationConfig
from rlft.models.adapters.attach import add_adapter
from rlft.planning.live import LiveBytes, fused_attention
from rlft.planning.passes import Skeleton, scoring_pass, skeleton, update_pass
from rlft.planning.roles import cache_per_token, generator_peak, quantized
from rlft.planning.shapes import expected_groups
from rlft.planning.states import Training, gathered, moments, resting
from rlft.samples import count_totals
from tests.running import GRPO, write_config

# ---- bytes that are alive ----


def test_bytes_of_two_layers_by_hand() -> None:
    """x [4, 8] -> a [4, 16] -> relu r [4, 16] -> y [4, 2], float32."""
    x, upstream = torch.zeros(4, 8), torch.zeros(4, 2)
    first, second = (torch.zeros(*s, requires_grad=True) for s in ((8, 16), (16, 2)))
    with LiveBytes("cpu") as live:
        live.part = "forward"
        y = torch.relu(x @ first) @ second
        assert live.total == 4 * (4 * 16 + 4 * 2), "r is kept for both, a is gone, x was there before"
        assert live.peak == 4 * (4 * 16 + 4 * 16), "a and r together"
        live.part = "backward"
        y.backward(upstream)
        del y
        assert live.now["backward"] == 4 * (8 * 16 + 16 * 2), "the two gradients"
        assert live.now["forward"] == 0


def test_fused_attention_keeps_no_matrix_of_scores() -> None:
    """4 rows, 8 heads, 64 tokens of size 16: the result, and one number for each row and head."""
    q = torch.empty(4, 8, 64, 16, device="meta", requires_grad=True)
    k = torch.empty(4, 2, 64, 16, device="meta", requires_grad=True)
    with LiveBytes() as live:
        out = fused_attention(q, k, k, is_causal=True, enable_gqa=True)
        assert live.total == 4 * (4 * 8 * 64 * 16 + 4 * 8 * 64)
        out.sum().backward()
    assert q.grad is not None and k.grad is not None and k.grad.shape == k.shape


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", [None, "lora", "dora", "vera", "adalora", "ia3", "bottleneck", "prompt", "prefix"])
@pytest.mark.parametrize("chunk", [1000, 16])
def test_a_pass_without_tensors_is_the_pass_with_them(
    tiny_folder: Path, kind: str | None, checkpointing: bool, chunk: int
):
    """The same peak, and the same parts of it, when the model and its pack are real."""
    config = AutoConfig.from_pretrained(tiny_folder)
    adapter = None if kind is None else AdapterConfig.model_validate({"type": kind, "rank": 4, "num_tokens": 3})
    groups = expected_groups(2, 3, 5, 9)
    found = []
    for real in (False, True):
        bare = skeleton(config, "float32", adapter)
        if real:
            lm: Any = AutoModelForCausalLM.from_pretrained(tiny_folder)
            bare = Skeleton(lm if adapter is None else add_adapter(lm, adapter, seed=0), config, adapter)
        live = update_pass(bare, [[group] for group in groups], count_totals(groups, 9), checkpointing, chunk)
        found.append((live.peak, dict(live.at_peak), live.total, bare.num_bytes()))
    planned, real = found
    assert planned[0] == pytest.approx(real[0], rel=0.02)
    assert planned[3] == real[3], "weights"
    for part in ("activations", "logits", "gradients"):
        assert planned[1].get(part, 0) == pytest.approx(real[1].get(part, 0), abs=0.03 * real[0])


def test_checkpointing_chunks_and_adapters_save() -> None:
    config = _qwen(4)
    groups = expected_groups(1, 4, 8, 24)

    def peak(checkpointing: bool = False, chunk: int = 1000, adapter: AdapterConfig | None = None) -> LiveBytes:
        bare = skeleton(config, "float32", adapter)
        return update_pass(bare, [groups], count_totals(groups, 24), checkpointing, chunk)

    whole = peak()
    assert peak(checkpointing=True).peak < 0.7 * whole.peak
    assert peak(chunk=16).at_peak["logits"] < 0.3 * whole.at_peak["logits"]
    assert peak(adapter=AdapterConfig(rank=4)).peak < whole.peak
    assert scoring_pass(skeleton(config, "float32", None), groups, 1000).peak < whole.peak


def _qwen(layers: int) -> Any:
    return Qwen3Config(
        vocab_size=500, hidden_size=64, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip


# ---- what training keeps ----


def test_states_by_hand() -> None:
    """Two groups: matrices of 600 and 300 elements, and norms of 100. Frozen: 4000 bytes."""
    groups = ((600, 300), (100,))
    plain = Training(groups, frozen=4000, width=4, stage=0, ranks=1, foreach=False)
    assert resting(plain) == Counter({"weights": 8000, "optimizer": 8000, "master weights": 0})
    assert moments(plain)["reduce"] == Counter({"gradients": 4000, "buffers": 4000})
    assert moments(plain)["step"] == Counter({"gradients": 4000, "buffers": 8 * 600}), "two copies of the largest"
    assert moments(plain._replace(foreach=True))["step"]["buffers"] == 4 * 1000
    split = plain._replace(stage=2, ranks=4, width=2)  # bfloat16
    assert resting(split) == Counter({"weights": 6000, "optimizer": 2000, "master weights": 1000})
    assert moments(split)["reduce"] == Counter({"gradients": 2000, "buffers": 2000})
    # the step of the first group: 225 elements of each rank in float32, and AdamW's two; the other's 25 gradients wait
    assert moments(split)["step"] == Counter({"gradients": 25 * 2, "buffers": 3 * 4 * 225})
    whole = plain._replace(stage=3, ranks=4)
    assert resting(whole)["weights"] == 2000
    assert gathered(whole) == 8000, "all of so small a model"
    assert gathered(plain) == 0


def test_what_kinds_of_adapters_keep_and_make_by_hand() -> None:
    """Of 1000 elements, AdaLoRA three more numbers each; for a step its gradients, or Delta-LoRA itself as it was."""
    plain = Training(((600, 300), (100,)), frozen=4000, width=4, stage=0, ranks=1, foreach=False, adapter="lora")
    assert resting(plain._replace(adapter="adalora")) - resting(plain) == Counter({"adapter's schedule": 12000})
    for kind in ("adalora", "delta_lora"):
        more = moments(plain._replace(adapter=kind))["step"] - moments(plain)["step"]
        assert more == Counter({"buffers": 4000})


def test_optimizers_offloading_and_quantized_bases_by_hand() -> None:
    plain = Training(((600, 300), (100,)), frozen=4000, width=2, stage=2, ranks=2, foreach=True)
    assert resting(plain)["optimizer"] == 8 * 500
    assert resting(plain._replace(optimizer="adamw_8bit"))["optimizer"] == 2 * 500
    assert resting(plain._replace(offload="optimizer")) == Counter({"weights": 6000})
    assert set(moments(plain._replace(offload="optimizer"))) == {"reduce"}
    # a layer has q 64x64, k and v 64x32, o 64x64, and three of 64x160
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
    bare = skeleton(_qwen(2), "bfloat16", None)
    saved, largest = quantized(bare, QuantizationConfig(type="int8"))
    assert (saved, largest) == (weights * (2 - 1), 64 * 160 * 2)
    assert quantized(bare, QuantizationConfig(double=False))[0] == weights * 2 - weights * 4.5 / 8


# ---- generators ----


def test_cache_by_hand() -> None:
    """2 layers x 2 (keys, values) x 2 heads x 16 x 4 bytes."""
    assert cache_per_token(_qwen(2), 4) == 512
    bare = skeleton(_qwen(2), "float32", None)
    # 8 rows of 10 + 200 tokens: room for 74, then 112, 169, 254, which is the last; the old and the new at once
    peak = generator_peak(bare, prompts=2, samples=4, prompt=10, completion=200, on_gpu=True)
    assert peak.parts["KV cache"] == 8 * 512 * (169 + 254)
    # elsewhere only what is copied is touched
    assert generator_peak(bare, 2, 4, 10, 200).parts["KV cache"] == 8 * 512 * (169 + 169)
    # short ones never grow: what counts besides are 8 rows of 500 logits, their log-probs, and float64 sums
    short = generator_peak(bare, prompts=2, samples=4, prompt=10, completion=20)
    assert short.parts == Counter({"weights": bare.num_bytes(), "KV cache": 8 * 512 * 29, "logits": 8 * 500 * 16})


# ---- the command ----


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "train.jsonl").write_text('{"prompt": "12=", "answer": "12"}\n')
    (tmp_path / "my_rewards.py").write_text("def share_of_digits(completions, **columns):\n    return [0.0]\n")
    return write_config(tmp_path, "x", GRPO)


def test_the_command(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", config]) == 0
    out = capsys.readouterr().out
    assert "learner + scorer + generator" in out and "ZeRO 0" in out and "fits in" in out
    assert cli.main(["plan", config, "--json", "--sequence-tokens", "40"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lengths"] == {"prompt": 32, "completion": 8}
    assert [role["name"] for role in found["roles"]] == ["learner", "scorer", "generator"]
    assert all(role["total"] == sum(role["bytes"].values()) for role in found["roles"])
    assert found["advice"] == [] and all(device["fits"] for device in found["devices"])
    assert not (tmp_path / "runs").exists(), "nothing is made"


def test_what_to_change(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = ["plan", config, "--gpu-memory", "0.002", "--cluster.mode", "local", "--learner.gpus", "1"]
    words += ["--algorithm.kl_coef", "0", "--json"]
    assert cli.main(words) == cli.cli_plan.DOES_NOT_FIT
    found = json.loads(capsys.readouterr().out)
    assert not found["devices"][0]["fits"]
    assert found["advice"] and found["advice"][-1]["fits"]
    more = [f"--{change['key']}={json.dumps(change['value'])}" for change in found["advice"]]
    assert cli.main([*words, *more]) == 0, "the advice holds"


def test_bad_input(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for words, expected in (
        (["--gpu-memory", "-1"], "--gpu-memory"),
        (["--model.tiny", "null", "--model.path", "./nothing"], "does not exist"),
        (["--learner.zero_stagee", "2"], "learner.zero_stage"),
    ):
        assert cli.main(["plan", config, *words]) == 2
        assert expected in capsys.readouterr().err
