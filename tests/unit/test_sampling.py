"""Drawing tokens: the right probabilities, and a sample that depends on its seed alone."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.models.sampling import draw, uniforms

SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6)


def u(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_token_is_read_off_the_cumulative_distribution():
    # probabilities 0.2, 0.5, 0.3: borders at 0.2 and 0.7
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).expand(5, 3)
    tokens, logprobs = draw(logits, u(0.01, 0.19, 0.21, 0.69, 0.71), temperature=1.0)
    assert tokens.tolist() == [0, 0, 1, 1, 2]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.2, 0.2, 0.5, 0.5, 0.3]))


def test_temperature_divides_the_logits_and_the_logprob_says_so():
    # at temperature 0.5 probabilities 1/3, 2/3 become 1/9 : 4/9 = 0.2, 0.8
    logits = torch.log(torch.tensor([[1 / 3, 2 / 3]])).expand(2, 2)
    tokens, logprobs = draw(logits, u(0.199, 0.201), temperature=0.5)
    assert tokens.tolist() == [0, 1]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.2, 0.8]))


def test_temperature_zero_takes_the_likeliest_with_its_logprob_at_one():
    logits = torch.log(torch.tensor([[0.3, 0.6, 0.1], [0.5, 0.2, 0.3]]))
    tokens, logprobs = draw(logits, u(0.999, 0.999), temperature=0)
    assert tokens.tolist() == [1, 0]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.6, 0.5]))


def test_banned_tokens_are_never_drawn_and_keep_their_share():
    # 0.2, 0.5, 0.3 without the middle: 0.4 and 0.6 of the draws, but log-probs stay those of the policy
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).expand(5, 3)
    banned = torch.tensor([1])
    tokens, logprobs = draw(logits, u(1e-17, 0.39, 0.41, 0.9, 1 - 1e-16), 1.0, banned)
    assert tokens.tolist() == [0, 0, 2, 2, 2]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.2, 0.2, 0.3, 0.3, 0.3]))
    tokens, logprobs = draw(logits[:1], u(0.5), 0, banned)
    assert tokens.tolist() == [2]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.3]))


def test_the_ends_of_the_interval_never_give_an_impossible_token():
    impossible = float("-inf")
    logits = torch.tensor([[impossible, 0.0, 0.0, impossible]]).expand(2, 4)
    tokens, logprobs = draw(logits, u(2.0**-54, 1 - 2.0**-53), 1.0)
    assert tokens.tolist() == [1, 2]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.5, 0.5]))


def test_frequencies_match_probabilities():
    """Chi-square over 20,000 seeds with 5 degrees of freedom: 27.9 is passed by chance once in 25,000."""
    probabilities = np.array([0.05, 0.4, 0.1, 0.25, 0.15, 0.05])
    num = 20_000
    for t in (0, 7):  # independent tokens of a sample
        numbers = torch.from_numpy(uniforms(np.arange(num, dtype=np.uint64), t, 1)[:, 0])
        logits = torch.log(torch.tensor(probabilities)).expand(num, 6)
        counts = np.bincount(draw(logits, numbers, 1.0)[0].numpy(), minlength=6)
        expected = num * probabilities
        assert ((counts - expected) ** 2 / expected).sum() < 27.9


def test_neighbouring_tokens_and_seeds_are_independent():
    """In a 4 x 4 table of quarter against quarter (15 degrees of freedom; 45 is passed by chance once in 10,000)."""
    num = 20_000
    x = uniforms(np.arange(num, dtype=np.uint64), 0, 2)
    for a, b in ((x[:, 0], x[:, 1]), (x[:-1, 0], x[1:, 0])):
        table, *_ = np.histogram2d(a, b, bins=4, range=[[0, 1], [0, 1]])
        expected = len(a) / 16
        assert ((table - expected) ** 2 / expected).sum() < 45


@given(seeds=SEEDS, start=st.integers(0, 300), count=st.integers(1, 20), split=st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_numbers_do_not_depend_on_how_they_are_asked_for(seeds, start, count, split):
    array = np.array(seeds, dtype=np.uint64)
    whole = uniforms(array, start, count)
    split = min(split, count)
    parts = [uniforms(array, start, split), uniforms(array, start + split, count - split)]
    np.testing.assert_array_equal(whole, np.concatenate(parts, 1))
    for i, seed in enumerate(seeds):
        np.testing.assert_array_equal(whole[i : i + 1], uniforms(np.array([seed], dtype=np.uint64), start, count))
    assert (whole > 0).all()
    assert (whole < 1).all()


def test_known_numbers():
    """splitmix64 of seed 0 begins with 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4 (Vigna's reference): the same numbers on
    every machine and in every version, or a resumed run would be another run."""
    top = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    expected = [((z >> 11) + 0.5) / 2**53 for z in top]
    np.testing.assert_allclose(uniforms(np.zeros(1, np.uint64), 0, 2)[0], expected, rtol=0, atol=1e-16)


def test_same_row_alone_or_in_a_batch():
    torch.manual_seed(0)
    logits, numbers = torch.randn(32, 50) * 3, torch.rand(32, dtype=torch.float64)
    banned = torch.tensor([3, 4])
    for temperature in (0.0, 0.7, 1.0):
        tokens, logprobs = draw(logits, numbers, temperature, banned)
        for i in range(32):
            one, its_logprob = draw(logits[i : i + 1], numbers[i : i + 1], temperature, banned)
            assert one.item() == tokens[i].item()
            torch.testing.assert_close(its_logprob[0], logprobs[i], rtol=0, atol=1e-6)
