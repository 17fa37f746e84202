"""What must hold between keys. Each case is a combination that must be refused, and the key that is named."""

import pytest
import yaml

from rlft.config import places
from rlft.config.algorithm import FROM_DATA, PRESETS
from rlft.config.checks import check_config, notes
from rlft.config.derived import mismatch_stop, mismatch_warn, off_policy_correction
from rlft.config.load import dump_config, load_config
from rlft.errors import UserError

BASE = {"model": {"tiny": {}}, "rewards": {"functions": [{"function": "exact_match"}]}}
MIXED = [{"path": __file__, "name": name} for name in "ab"]
SFT = {"model": {"tiny": {}}, "algorithm.type": "sft", "rewards.functions": []}

GPU = {"cluster.mode": "ray", "learner.gpus": 1}


def problems_of(changes, **given) -> str:
    try:
        load_config(BASE, changes, **given)
    except UserError as error:
        return str(error)
    return ""


def test_the_base_is_right():
    assert problems_of({}) == ""
    assert problems_of(SFT) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm.group_size": 1}, "algorithm.group_size: 1 sample has nothing"),
        ({"algorithm.num_minibatches": 5}, "algorithm.num_minibatches: 5 does not divide"),
        ({"model.tiny": None}, "model.path: no model"),
        ({"model.path": "Qwen/Qwen3-1.7B"}, "model.tiny: model.path is set too"),
        ({"model.tiny.hidden_size": 100}, "model.tiny.hidden_size: 100 is not divisible by num_heads 6"),
        ({"model.tiny.hidden_size": 18}, "heads of size 3"),
        ({"model.tiny.num_kv_heads": 4}, "model.tiny.num_kv_heads: 4 does not divide num_heads 6"),
        ({"generator.max_new_tokens": 512}, "generator.max_new_tokens: 512 leaves no room"),
        ({"rewards.functions": []}, "rewards.functions: no reward function"),
        ({"cluster.mode": "inline", "generator.num_actors": 2}, "generator.num_actors: 2, but cluster.mode inline"),
        ({"cluster.mode": "inline", "learner.num_ranks": 2}, "learner.num_ranks: 2, but cluster.mode inline"),
        ({"scorer.cpus": 2}, "scorer.cpus: has no effect, because algorithm.kl_coef is 0"),
        ({"cluster.address": "auto"}, "cluster.address: has no effect"),
        ({"learner.min_lr_ratio": 0.1}, "learner.min_lr_ratio: has no effect"),
        ({"evaluation.every": 5}, "evaluation.every: has no effect"),
        ({"algorithm.off_policy_correction": "none", "algorithm.off_policy_cap": 3}, "off_policy_cap: has no effect"),
        ({"loop.max_staleness": 1, "algorithm.off_policy_cap": 3}, "off_policy_cap: has no effect"),
        ({"algorithm.off_policy_mask": 1.0}, "algorithm.off_policy_mask: found 1.0"),
        ({"loop.mismatch_warn": 0.02}, "loop.mismatch_warn: 0.02 is never reached, because the run stops at 0.01"),
        ({"loop.mismatch_warn": 0.5, "model.dtype": "bfloat16"}, "loop.mismatch_warn: 0.5 is never reached"),
        ({"loop.mismatch_warn": 1.0, "loop.mismatch_stop": 0.9}, "because the run stops at 0.9 (loop.mismatch_stop)"),
        ({"data.completion_column": "answer"}, "data.completion_column: has no effect"),
        ({"learner.warmup_steps": 100}, "learner.warmup_steps: 100 never ends"),
        ({"evaluation.samples_per_prompt": 4}, "evaluation.samples_per_prompt: 4 samples at evaluation.temperature 0"),
        ({"generator.min_new_tokens": 300}, "generator.min_new_tokens: 300 is more than"),
        (
            {"generator.min_new_tokens": 3, "generator.engine": "vllm", "generator.temperature": 0.7},
            "generator.min_new_tokens: with engine vllm it needs generator.temperature 1, found 0.7",
        ),
        ({"cluster.layout": "colocated", "loop.max_staleness": 1}, "cluster.layout: colocated takes turns, but"),
        (
            {"cluster.layout": "colocated", "generator.num_actors": 2},
            "generator.num_actors: 2, but with cluster.layout",
        ),
        ({"loop.in_flight": False}, "loop.in_flight: has no effect, because loop.max_staleness is 0"),
        (
            {"generator.engine_args": {"a": 1}},
            "generator.engine_args: has no effect, because the generator's engine is",
        ),
        ({"generator.ignore_eos": True, "generator.stop": ["x"]}, "generator.ignore_eos: draws exactly"),
        ({"generator.ignore_eos": True, "generator.min_new_tokens": 2}, "generator.ignore_eos: draws exactly"),
        ({"generator.stop": ["x", ""]}, "generator.stop.1: is empty"),
        ({"model.dtype": "bfloat16", "learner.zero_stage": 0}, "learner.zero_stage: 0 keeps no float32"),
        ({"learner.betas": [0.9, 1.0]}, "learner.betas.1: found 1.0"),
        ({"learner.momentum": 0.9}, "learner.momentum: has no effect, because learner.optimizer is adamw, which has"),
        (
            {"learner.optimizer": "lion", "learner.eps": 1e-6},
            "learner.eps: has no effect, because learner.optimizer is",
        ),
        (
            {"learner.optimizer": "adafactor", "learner.betas": [0.9, 0.9]},
            "learner.betas: has no effect, because learner.optimizer is adafactor, which has none of betas, eps",
        ),
        (
            {"learner.optimizer": "muon", "learner.zero_stage": 2},
            "learner.optimizer: muon needs whole matrices, but learner.zero_stage 2 splits them; expected "
            "learner.zero_stage 0, or another optimizer",
        ),
        (
            {"learner.optimizer": "adafactor", "model.dtype": "bfloat16"},
            "bfloat16 would make learner.zero_stage 2; expected learner.zero_stage 0 with model.dtype float32",
        ),
        ({"learner.optimizer": "muon", "learner.num_ranks": 2}, "several ranks would make learner.zero_stage 2"),
        (
            {"algorithm.type": "ppo", "critic.optimizer": "muon", "critic.zero_stage": 1},
            "critic.optimizer: muon needs whole matrices, but critic.zero_stage 1 splits them",
        ),
        ({"algorithm.type": "ppo", "critic.optimizer": "lion", "critic.eps": 1e-6}, "critic.eps: has no effect"),
        ({"algorithm.type": "ppo", "critic.min_lr_ratio": 0.1}, "critic.min_lr_ratio: has no effect"),
        (
            GPU | {"learner.optimizer": "cpu_adam"},
            "learner.optimizer: cpu_adam steps in CPU memory, but learner.gpus is 1; set learner.offload optimizer",
        ),
        (
            GPU | {"learner.offload": "optimizer", "learner.optimizer": "adamw_8bit", "learner.zero_stage": 2},
            "learner.offload: optimizer, but learner.optimizer adamw_8bit stays on the GPU; expected adamw, adamw_",
        ),
        (
            GPU | {"learner.offload": "optimizer", "learner.optimizer": "muon"},
            "learner.offload: optimizer, but learner.optimizer muon stays on the GPU",
        ),
        (GPU | {"learner.offload": "optimizer"}, "offload: optimizer needs learner.zero_stage 1, 2 or 3, found 0"),
        (
            GPU | {"learner.offload": "optimizer_and_weights", "learner.zero_stage": 2},
            "learner.offload: optimizer_and_weights needs learner.zero_stage 3, found 2",
        ),
        ({"learner.offload": "optimizer"}, "learner.offload: has no effect, because learner.gpus is 0"),
        (
            {"learner.offload_activations": True},
            "learner.offload_activations: has no effect, because learner.gpus is 0",
        ),
        ({"learner.schedule": "inverse_sqrt", "learner.min_lr_ratio": 0.1}, "learner.min_lr_ratio: has no effect"),
        ({"learner.decay_steps": 3}, "learner.decay_steps: has no effect, because learner.schedule is not wsd"),
        (
            {"learner.schedule": "wsd", "learner.decay_steps": 8, "learner.warmup_steps": 5, "loop.steps": 10},
            "learner.decay_steps: 8 and learner.warmup_steps 5 are more than loop.steps 10",
        ),
        ({"run.name": "a/b"}, "cannot name a folder"),
        (
            {"algorithm.type": "rft", "algorithm.kl_coef": 0.1, "algorithm.kl_in": "reward"},
            "algorithm.kl_in: reward, but algorithm.advantage accepted does not look at the reward of single tokens",
        ),
        (
            {"algorithm.type": "online_dpo", "algorithm.preference_loss": "robust"},
            "algorithm.preference_smoothing: is empty, and then robust is dpo",
        ),
        (
            {"algorithm.type": "online_dpo", "algorithm.preference_loss": "ipo", "algorithm.preference_smoothing": 0.1},
            "algorithm.preference_smoothing: has no effect",
        ),
        ({"algorithm.type": "online_dpo", "algorithm.preference_loss": "bco"}, "algorithm.preference_loss: found"),
        ({"algorithm.type": "ppo", "algorithm.replace_flat_groups": 8}, "algorithm.replace_flat_groups: has no effect"),
        (
            {
                "algorithm.type": "distill",
                "teacher.path": "x",
                "algorithm.teacher_signal": "js",
                "algorithm.clip_low": 0.1,
            },
            "algorithm.clip_low: has no effect, because all advantages are 0",
        ),
        (
            {"algorithm.type": "rft", "algorithm.off_policy_sample_mask": 0.1},
            "algorithm.off_policy_sample_mask: has no effect",
        ),
        (
            {"generator.stop": ["x"], "generator.min_new_tokens": 2},
            "generator.min_new_tokens: with generator.stop it means another thing in each engine",
        ),
        (
            {"generator.engine": "vllm", "model.adapter": {"rank": 4, "target_modules": ["q_proj", "lm_head"]}},
            "model.adapter.target_modules: vLLM serves no adapter on lm_head",
        ),
        (
            {"generator.engine": "vllm", "model.adapter": {"type": "bottleneck"}},
            "model.adapter.type: bottleneck cannot be served by vLLM; expected generator.engine transformers",
        ),
        (
            {"model.adapter": {"type": "bottleneck", "rank": 4}},
            "model.adapter.rank: has no effect, because model.adapter.type is bottleneck, which has placement, bottle",
        ),
        (
            {"model.adapter": {"type": "delta_lora", "dropout": 0.1}},
            "model.adapter.dropout: has no effect, because model.adapter.type is delta_lora, which has",
        ),
        (
            {"model.adapter": {"type": "delta_lora", "delta_start": 50}, "loop.steps": 50},
            "model.adapter.delta_start: 50, but loop.steps is 50: the base weights would never move",
        ),
        (
            {"model.adapter": {"type": "delta_lora"}, "learner.num_ranks": 2},
            "delta_lora works with learner.zero_stage 0, but several ranks would make it 2",
        ),
        (
            {"model.adapter": {"type": "lora_drop", "sample_steps": 60}, "loop.steps": 50},
            "model.adapter.sample_steps: 60, but loop.steps is 50: nothing would be shared",
        ),
        (
            {"model.adapter": {"type": "lora_experts", "tasks": ["a"]}},
            "model.adapter.type: lora_experts tells tasks apart by the sources of data.mixture, which is empty",
        ),
        (
            {"model.adapter": {"type": "lora_experts"}, "data.mixture": MIXED},
            "model.adapter.tasks: empty; expected the names of the sources in data.mixture: a, b",
        ),
        (
            {"model.adapter": {"type": "lora_experts", "tasks": ["b", "a"], "num_experts": 3}, "data.mixture": MIXED},
            "model.adapter.num_experts: 3 does not divide model.adapter.rank 16",
        ),
        (
            {
                "model.adapter": {"type": "lora_experts", "tasks": ["b", "a"]},
                "data.mixture": MIXED,
                "evaluation.path": __file__,
            },
            "evaluation.source_column: empty, so nobody knows which task of lora_experts a held-out row is of",
        ),
        (
            {"model.adapter": {"type": "bitfit"}, "algorithm.type": "reward", "rewards.functions": []},
            "model.adapter.type: bitfit is not there for reward models",
        ),
        (
            {"algorithm.type": "gropo"},
            'algorithm.type: found "gropo", did you mean grpo? Expected one of grpo, dr_grpo',
        ),
        ({"algorithm.type": "dr-grpo"}, "did you mean dr_grpo?"),
        ({"algorithm.type": "rloo", "algorithm.group_size": 1}, "rloo needs at least 2"),
        ({"algorithm.advantage": "batch"}, "algorithm.advantage_scale: group, but algorithm.advantage batch knows no"),
        ({"algorithm.policy_loss": "preference"}, "preference with algorithm.advantage group: preference and pairs go"),
        ({"algorithm.policy_loss": "cispo"}, "algorithm.ratio_cap: is empty, but algorithm.policy_loss cispo"),
        ({"algorithm.ratio_cap": 1.1}, "algorithm.ratio_cap: 1.1 is not above 1 + algorithm.clip_high, 1.2"),
        (
            {"algorithm.type": "rft", "algorithm.off_policy_correction": "clip"},
            "algorithm.off_policy_correction: clip needs an importance ratio, and policy_loss reinforce has none",
        ),
        ({"algorithm.teacher_coef": 1.0}, "teacher.path: is empty, but algorithm.teacher_coef is above 0"),
        ({"algorithm.advantage": "none", "algorithm.advantage_scale": "none"}, "none learns from nothing"),
        (
            {"algorithm.type": "online_dpo", "algorithm.reference_every": 2, "model.adapter": {"rank": 4}},
            "algorithm.reference_every: with model.adapter the reference is the model without it",
        ),
        ({"algorithm.type": "ppo", "critic.alone_steps": 100}, "critic.alone_steps: 100 leaves the policy none"),
        ({"critic.lr": 1e-3}, "critic.lr: has no effect, because algorithm.advantage is not gae"),
        ({"algorithm.gae_lambda": 0.9}, "algorithm.gae_lambda: has no effect"),
        ({"algorithm.gamma": 0.9}, "algorithm.gamma: has no effect"),
        ({"teacher.path": "x"}, "teacher.path: has no effect, because algorithm.teacher_coef is 0"),
        ({"algorithm.kl_in": "reward"}, "algorithm.kl_in: has no effect, because algorithm.kl_coef is 0"),
        ({"algorithm.kl_coef": 0.1, "algorithm.kl_horizon": 5}, "algorithm.kl_horizon: has no effect"),
        ({"algorithm.preference_beta": 0.5}, "algorithm.preference_beta: has no effect"),
        ({"algorithm.type": "online_dpo", "algorithm.clip_low": 0.1}, "algorithm.clip_low: has no effect"),
        ({"algorithm.type": "reinforce", "algorithm.clip_low": 0.1}, "algorithm.clip_low: has no effect"),
        ({"algorithm.type": "sapo", "algorithm.clip_low": 0.1}, "algorithm.clip_low: has no effect"),
        ({"algorithm.type": "cispo", "algorithm.dual_clip": 3.0}, "algorithm.dual_clip: has no effect"),
        ({"algorithm.type": "sapo", "algorithm.ratio_cap": 3.0}, "algorithm.ratio_cap: has no effect"),
        ({"algorithm.type": "f.py:g", "algorithm.policy_loss": "cispo"}, "algorithm.policy_loss: has no effect"),
        ({"algorithm.turn_credit": True}, "algorithm.turn_credit: has no effect, because there is no environment"),
        ({"algorithm.type": "ppo", "algorithm.skip_flat_groups": False}, "algorithm.skip_flat_groups: has no effect"),
        ({"algorithm.accept_reward": 0.5}, "algorithm.accept_reward: has no effect"),
        ({"cluster.weight_transport": "ipc"}, "weight_transport: ipc needs learner and generators on the same GPUs"),
        (
            {"cluster.weight_transport": "collective", "cluster.mode": "inline"},
            "weight_transport: collective is between processes",
        ),
        (
            {"cluster.weight_transport": "collective", "model.adapter": {"rank": 4}},
            "weight_transport: collective brings whole weights, but model.adapter is set",
        ),
        ({"model.tiny": None, "model.path": "./nowhere"}, 'model.path: "./nowhere" does not exist'),
        ({"data.path": "nowhere.jsonl"}, 'data.path: "nowhere.jsonl" does not exist'),
        ({"evaluation.path": "~/nowhere"}, 'evaluation.path: "~/nowhere" does not exist'),
        ({"model.chat_template": "no.jinja"}, 'model.chat_template: "no.jinja" is no file'),
        ({"rewards.functions.0.function": "no.py:f"}, 'rewards.functions.0.function: the file "no.py" does not exist'),
        ({"environment": {"function": "no.py:C"}}, 'environment.function: the file "no.py" does not exist'),
        ({"environment": {"max_turns": 2}}, "environment.function: is required"),
        ({"environment": {"function": "calculator", "max_turns": 0}}, "environment.max_turns: found 0"),
        ({"environment": {"function": "calculator", "turns": 2}}, "environment.turns: unknown key"),
        (
            {"cluster.mode": "inline", "environment": {"function": "calculator", "num_actors": 2}},
            "environment.num_actors: 2, but cluster.mode inline",
        ),
    ],
)
def test_impossible_combinations(changes, said):
    assert said in problems_of(changes)


@pytest.mark.parametrize(
    "key_and_value",
    [
        ("generator.temperature", 0.7),
        ("environment.function", "calculator"),
        ("rewards.max_failed_fraction", 0.5),
        ("algorithm.group_size", 4),
        ("algorithm.kl_coef", 0.1),
        ("algorithm.clip_high", 0.28),
        ("algorithm.num_epochs", 2),
        ("evaluation.samples_per_prompt", 2),
        ("loop.max_staleness", 1),
        ("loop.probe_every", 3),
        ("loop.probe_tolerance", 0.1),
        ("loop.mismatch_warn", 0.001),
        ("loop.mismatch_stop", 0.1),
        ("algorithm.off_policy_correction", "sequence"),
        ("algorithm.off_policy_mask", 5.0),
        ("tracking.rollouts_every", 5),
    ],
)
def test_sft_refuses_what_it_would_ignore(key_and_value):
    key, value = key_and_value
    assert f"{key}: has no effect, because algorithm.type is sft" in problems_of(SFT | {key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm.clip_low": 0.1, "algorithm.clip_high": 0.28},  # as papers give them, though one update never clips
        {"algorithm.kl_coef": 0.1, "scorer.cpus": 2},
        {"cluster.mode": "ray", "cluster.address": "auto"},
        {"cluster.mode": "local", "cluster.threads": 2},
        {"learner.schedule": "cosine", "learner.min_lr_ratio": 0.1},
        {"learner.schedule": "wsd", "learner.min_lr_ratio": 0.1, "learner.decay_steps": 4},
        {"learner.optimizer": "muon", "learner.momentum": 0.9, "learner.betas": [0.9, 0.95], "learner.eps": 1e-6},
        {"learner.optimizer": "cpu_adam"},
        GPU | {"learner.optimizer": "cpu_adam", "learner.offload": "optimizer", "learner.zero_stage": 1},
        GPU | {"learner.offload": "optimizer_and_weights", "learner.zero_stage": 3},
        GPU | {"learner.offload_activations": True},
        {"learner.optimizer": "adafactor", "learner.num_ranks": 2, "learner.zero_stage": 0},
        {"data.path": "openai/gsm8k"},
        {"model.tiny": None, "model.path": "Qwen/Qwen3-1.7B"},
        {"scorer.cpus": 1.0, "evaluation.every": 0},  # set, but to the default
        {"model.dtype": "bfloat16"},
        {"algorithm.off_policy_mask": 5.0},
        {"algorithm.off_policy_mask": 5.0, "algorithm.off_policy_correction": "none"},
        {"algorithm.off_policy_cap": 3.0, "algorithm.off_policy_correction": "sequence"},
        {"loop.mismatch_warn": 0.2, "loop.mismatch_stop": 0.3},
        {"loop.mismatch_stop": 1e-6},  # below the warning's default: the stop comes first
        {"cluster.mode": "ray", "learner.gpus": 8},  # the cluster knows
        {"environment": {"function": "calculator"}},
        {"environment": {"function": "bracket_calculator", "max_turns": 3}, "rewards.functions": []},  # it rewards
    ],
)
def test_combinations_that_are_fine(changes):
    assert problems_of(changes) == ""


def test_a_complete_dump_has_no_key_without_effect(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(load_config(BASE)))
    assert load_config(path) == load_config(BASE)


def test_rewards_and_data_may_come_from_python():
    assert problems_of({"rewards.functions": []}, has_rewards=True) == ""
    assert "data.path: nothing to train on" in problems_of({}, need_data=True)
    assert problems_of({}, need_data=True, has_dataset=True) == ""
    assert "would be ignored" in problems_of({"data.path": "openai/gsm8k"}, has_dataset=True)


def test_an_empty_data_path_is_a_note():
    config = load_config(BASE)
    assert check_config(config) == []
    assert "data.path is empty" in notes(config)[0]


def test_paging_without_a_gpu_is_a_note():
    config = load_config(BASE, {"learner.optimizer": "paged_adamw_8bit"})
    assert "learner.optimizer paged_adamw_8bit: learner.gpus is 0" in notes(config)[1]
    assert len(notes(load_config(BASE, GPU | {"learner.optimizer": "paged_adamw_8bit"}))) == 1


def test_evaluating_needs_a_file_and_where_samples_are_drawn_rewards(tmp_path):
    """Without rewards a run that learns from data is measured on rows."""
    assert "rewards.functions: no reward function" in problems_of({"rewards.functions": []}, purpose="evaluate")
    message = problems_of(SFT, purpose="evaluate")
    assert "rewards.functions" not in message
    assert "evaluation.path: nothing to evaluate on" in message
    file = tmp_path / "test.jsonl"
    file.write_text("{}\n")
    changes = SFT | {"rewards.functions": [{"function": "exact_match"}], "evaluation.path": str(file)}
    assert problems_of(changes, purpose="evaluate") == ""


def test_a_missing_data_file_names_those_near_it(tmp_path):
    (tmp_path / "train_300.jsonl").write_text("{}\n")
    assert f"Near it: {tmp_path}/train_300.jsonl" in problems_of({"data.path": f"{tmp_path}/train_30.jsonl"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "none"),
        ({"loop.max_staleness": 1}, "clip"),
        ({"loop.max_staleness": 1, "generator.engine": "vllm"}, "clip"),
        ({"loop.max_staleness": 1, "algorithm.off_policy_correction": "token"}, "token"),
        ({"generator.engine": "vllm"}, "token"),
        ({"algorithm.off_policy_correction": "sequence"}, "sequence"),
        ({"algorithm.off_policy_correction": "token"}, "token"),
        ({"algorithm.off_policy_correction": "none", "loop.max_staleness": 1}, "none"),
    ],
)
def test_the_correction_that_a_run_makes(changes, expected):
    assert off_policy_correction(load_config(BASE, changes)) == expected


@pytest.mark.parametrize(
    ("changes", "warn", "stop"),
    [
        ({}, 1e-4, 1e-2),
        ({"model.dtype": "bfloat16"}, 0.05, 0.5),
        ({"model.adapter": {"rank": 4}}, 1e-4, 1e-2),
        ({"model.adapter": {"rank": 4, "dropout": 0.1}}, 0.05, 0.5),  # the learner drops, the generator does not
        ({"loop.mismatch_warn": 0.2, "loop.mismatch_stop": 0.3}, 0.2, 0.3),
    ],
)
def test_limits_of_the_mismatch(changes, warn, stop):
    config = load_config(BASE, changes)
    assert (mismatch_warn(config), mismatch_stop(config)) == (warn, stop)


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(places, "count_gpus", lambda: 2)
    asked = {"learner.num_ranks": 2, "learner.gpus": 1, "generator.gpus": 1}
    message = problems_of(asked)
    assert "this machine has 2 GPUs, the roles ask for 3 (learner 2, generator 1)" in message
    assert problems_of(asked | {"learner.num_ranks": 1}) == ""
    assert problems_of({"learner.gpus": 1, "scorer.gpus": 1, "algorithm.kl_coef": 0.1}) == ""


def test_inline_roles_share_one_gpu(monkeypatch):
    asked = {"cluster.mode": "inline", "learner.gpus": 1, "generator.gpus": 1}
    monkeypatch.setattr(places, "count_gpus", lambda: 1)
    assert problems_of(asked) == ""
    monkeypatch.setattr(places, "count_gpus", lambda: 0)
    assert "this machine has 0 GPUs, asked for by learner.gpus, generator.gpus" in problems_of(asked)


def test_gpus_are_not_counted_unless_asked_for(monkeypatch):
    def count():
        raise AssertionError("torch would have been imported")

    monkeypatch.setattr(places, "count_gpus", count)
    assert problems_of({}) == ""


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_an_algorithm_sets_its_keys_and_what_is_given_wins(name):
    changes = {"algorithm.type": name} | ({"rewards.functions": []} if name in FROM_DATA else {})
    if name in ("distill", "kd"):
        changes["teacher.path"] = "some/teacher"
    if name == "tasks":
        changes["tasks"] = [{"name": "t", "kind": "sequence_classification", "path": "some/rows"}]
    config = load_config(BASE, changes)
    for key, value in PRESETS[name].items():
        assert getattr(config.algorithm, key) == value
    assert load_config(yaml.safe_load(dump_config(config))) == config, "a complete dump is the same configuration"
    if name not in (*FROM_DATA, "online_dpo"):
        given = load_config(BASE, changes | {"algorithm.loss_average": "max_length"})
        assert given.algorithm.loss_average == "max_length"


def test_defaults_of_an_algorithm_are_no_changes():
    """Keys that the algorithm itself sets are not refused for having no effect."""
    for name in ("ppo", "rloo", "reinforce_pp"):  # kl_in: reward, with kl_coef 0
        assert problems_of({"algorithm.type": name}) == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "none"),
        ({"generator.engine": "vllm"}, "token"),
        ({"loop.max_staleness": 2}, "clip"),
        ({"algorithm.type": "reinforce", "loop.max_staleness": 2}, "token"),
        ({"algorithm.type": "rft", "loop.max_staleness": 2}, "none"),
        ({"algorithm.type": "online_dpo", "loop.max_staleness": 2}, "none"),
    ],
)
def test_what_is_done_about_the_sampler(changes, expected):
    assert off_policy_correction(load_config(BASE, changes)) == expected
