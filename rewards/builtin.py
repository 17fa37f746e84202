"""The table of built-in rewards: name, function, one line for people. A new reward is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rewards.code.reward import code_reward
from rewards.exact import exact_match
from rewards.format import boxed_format, finished, format_regex, has_answer, json_schema, tags
from rewards.judge import judge
from rewards.math import math_reward
from rewards.procedural import reasoning_gym_reward
from rewards.process_reward_model import process_reward_model
from rewards.reward_model import reward_model
from rewards.shape import group_length, language, length, overlong, repetition


@dataclass(frozen=True, slots=True)
class Builtin:
    """A reward function that a config can name, and what it is for."""

    function: Callable[..., Any]
    description: str


BUILTIN: dict[str, Builtin] = {
    "exact_match": Builtin(exact_match, "the completion is the column `answer` and the model ended it itself"),
    "math": Builtin(math_reward, "the final answer is the one in the data: as text, number, list, interval or formula"),
    "reasoning_gym": Builtin(
        reasoning_gym_reward, "the score of reasoning-gym for rows made by data.path reasoning_gym:TASK, 0 to 1"
    ),
    "code": Builtin(code_reward, "the program in the completion passes the tests of its row, in a sandbox"),
    "has_answer": Builtin(has_answer, "the completion marks an answer: \\boxed{}, #### or 'the answer is'"),
    "boxed_format": Builtin(boxed_format, "the completion has something in \\boxed{}"),
    "format_regex": Builtin(format_regex, "the regular expression args.pattern is found in the completion"),
    "finished": Builtin(finished, "the model ended the completion itself"),
    "tags": Builtin(tags, "the completion is <think>...</think><answer>...</answer>, or args.tags, and nothing else"),
    "json_schema": Builtin(json_schema, "the completion is JSON that args.schema accepts"),
    "length": Builtin(length, "1 for a length of args.target give or take args.tolerance, falling to 0"),
    "group_length": Builtin(group_length, "short answers of a group before long ones, if they are right (Kimi k1.5)"),
    "language": Builtin(language, "the share of letters that are of args.scripts, like [latin]"),
    "overlong": Builtin(overlong, "0, falling to -1 over the last args.buffer tokens before args.max_length"),
    "judge": Builtin(judge, "how good another model behind args.endpoint finds the completion, from 0 to 1"),
    "reward_model": Builtin(reward_model, "the score of the reward model at args.path"),
    "process_reward_model": Builtin(
        process_reward_model, "the scores of a completion's steps by the process reward model at args.path, reduced"
    ),
    "repetition": Builtin(repetition, "minus the share of runs of args.size tokens that were said before"),
}
