"""Gradients of several tasks made into one that harms none of them more than it must.

Knows nothing about models: a gradient is a vector. Shape letters: K tasks, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pcgrad(gradients_KP: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """The sum [P] of the tasks' gradients, of each of which was taken out what points against another (Yu et al. 2020,
    arXiv:2001.06782, algorithm 1):

        for each i, for j in orders[i]:  if g_i . h_j < 0:  g_i <- g_i - (g_i . h_j) / |h_j|^2 h_j

    where h_j is j's gradient as it was. `orders[i]`: the other tasks, in the order in which they are looked at. A
    gradient of zeros changes nothing.
    """
    total = torch.zeros_like(gradients_KP[0])
    squares = [_dot(h, h) for h in gradients_KP]
    for i, order in enumerate(orders):
        mine = gradients_KP[i]
        for j in order:
            along = _dot(mine, gradients_KP[j])
            if along < 0:
                mine = mine - (along / squares[j]) * gradients_KP[j]
        total = total + mine
    return total


def conflicts(gradients_KP: Tensor) -> tuple[int, int]:
    """How many pairs of tasks have gradients that point against each other, and how many pairs there are."""
    count = len(gradients_KP)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    return sum(_dot(gradients_KP[i], gradients_KP[j]) < 0 for i, j in pairs), len(pairs)


def surgery_orders(seed: int, step: int, num_tasks: int) -> list[list[int]]:
    """For each task the others in random order: a function of seed and step, and of the number of tasks. Made by
    sorting Philox's raw output, which is the same with every version of numpy."""
    raw = np.random.Philox(key=np.array([seed, step], dtype=np.uint64)).random_raw(num_tasks * num_tasks)
    keys = raw.reshape(num_tasks, num_tasks)
    return [[int(j) for j in np.argsort(keys[i], kind="stable") if j != i] for i in range(num_tasks)]


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.double(), b.double()))
