"""Attention over tokens laid out without padding, for Hugging Face decoders that go through its attention interface.

A pack is one long row of tokens: first the trunks (prompts, or whole sequences), then the branches (completions), each
of which continues one trunk. A trunk that several branches share is computed once. Everything but attention sees only
real tokens; attention itself works on rows padded to the longest. Some adapters put virtual tokens before every trunk.

Knows nothing about losses, samples or engines. Shape letters: N tokens of the pack, S trunks, C branches, L length of a
padded row, P virtual tokens, H query heads, K key/value heads, D size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

ATTENTION = "rlft"  # name under which transformers finds `attend`


def fused(
    query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None = None, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """torch's scaled_dot_product_attention, with keys and values repeated for the query heads that share them where
    else no fused kernel of this GPU would do: torch would keep a matrix of scores [H, L, L] of every layer. Seen on an
    H100 in float32."""
    if enable_gqa and query.is_cuda:
        asked = torch.backends.cuda.SDPAParams(query, key, value, attn_mask, 0.0, is_causal, True)
        able = torch.backends.cuda.can_use_flash_attention(asked) or torch.backends.cuda.can_use_cudnn_attention(asked)
        if not able:
            times, enable_gqa = query.shape[1] // key.shape[1], False
            key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )


class Ahead(NamedTuple):
    """What stands before every trunk, in the places 0 .. P - 1: tokens of which only embeddings are given, that go
    through the model as others do, or the keys and values that each layer would make of tokens."""

    count: int  # P
    embeddings: Tensor | None = None  # [P, hidden]
    keys_values: Sequence[tuple[Tensor, Tensor]] | None = None  # of each layer [K, P, D]


class Layout(Protocol):
    """Which token may look at which: passed to the model as `layout=` and asked by every attention layer."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
    ) -> Tensor:
        """query [B, H, N, D], key and value [B, K, N, D] -> [B, N, H, D]."""
        ...


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in each layer. Refuses what it would otherwise get silently wrong."""
    odd = [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]
    if odd or dropout:
        what = ", ".join(odd) or "dropout"
        raise ValueError(f"{type(module).__name__} needs attention with {what}, which packed attention does not have")
    if layout is None or attention_mask is not None:
        raise ValueError("a model with rlft's packed attention is called with layout= and without attention_mask")
    return layout.attend(int(module.layer_idx), query, key, value, scaling, sliding_window), None  # type: ignore[arg-type]


class _Rows:
    """Tokens start .. start + sum(lengths) of a pack, seen as rows padded to the longest."""

    def __init__(self, start: int, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = torch.tensor(lengths, dtype=torch.int64, device=device)
        self.num, self.width = len(lengths), max(lengths)
        self.tokens = slice(start, start + sum(lengths))
        self.uniform = min(lengths) == self.width
        if not self.uniform:
            column = torch.arange(self.width, device=device)
            first = self.lengths.cumsum(0) - self.lengths
            self._gather = (first[:, None] + column.clamp(max=self.width)).clamp(max=sum(lengths) - 1).flatten()
            self._valid = (column < self.lengths[:, None]).flatten().nonzero().squeeze(1)

    def pad(self, x: Tensor) -> Tensor:
        """[N, ...] -> [rows, L, ...]; what stands in the padding is arbitrary but finite."""
        x = x[self.tokens]
        if not self.uniform:
            x = x.index_select(0, self._gather)
        return x.unflatten(0, (self.num, self.width))

    def unpad(self, x: Tensor) -> Tensor:
        """[rows, L, ...] -> [tokens of these rows, ...]"""
        x = x.flatten(0, 1)
        return x if self.uniform else x.index_select(0, self._valid)


class PackedLayout:
    """Causal attention within each trunk, and from each branch to its trunk and to itself."""

    kernel = staticmethod(fused)  # another where nothing is computed (rlft.planning)

    def __init__(
        self,
        trunk_lengths: Sequence[int],
        branch_lengths: Sequence[int] = (),
        branch_trunks: Sequence[int] = (),
        device: torch.device | str = "cpu",
        ahead: Ahead | None = None,
    ) -> None:
        """`branch_trunks[c]` is the trunk that branch c continues. All lengths are at least 1, and those of real
        tokens: with embeddings `ahead`, the trunks' rows begin with these."""
        device = torch.device(device)
        self._sizes, self.ahead = (trunk_lengths, branch_lengths, branch_trunks), ahead
        num_fed = 0 if ahead is None or ahead.embeddings is None else ahead.count
        self._first = 0 if ahead is None else ahead.count - num_fed  # the place where a trunk's row begins
        rows = [num_fed + length for length in trunk_lengths]
        self.trunks = _Rows(0, rows, device)
        self.branches = _Rows(sum(rows), branch_lengths, device) if branch_lengths else None
        self._trunk_of = torch.tensor(branch_trunks, dtype=torch.int64, device=device)
        self._masks: dict[tuple[str, int | None, torch.dtype], Tensor] = {}
        self._longest = self._first + max(rows) + max(branch_lengths, default=0)

    def behind(self, ahead: Ahead | None) -> PackedLayout:
        """The same pack with this before every trunk."""
        if ahead is None:
            return self
        made = PackedLayout(*self._sizes, self._trunk_of.device, ahead)
        made.kernel = self.kernel  # type: ignore[method-assign]
        return made

    @property
    def lengths(self) -> Tensor:
        """int64 [S]: places of each trunk, with what stands before it."""
        return self._first + self.trunks.lengths

    @property
    def width(self) -> int:
        """Of the longest."""
        return self._first + self.trunks.width

    def fed(self) -> tuple[Tensor, Tensor]:
        """With embeddings ahead: for each place that is fed to the model, which of [virtual tokens, tokens of the pack]
        stands there, int64 [N + S * P]; and the places of the tokens of the pack, int64 [N]."""
        assert self.ahead is not None
        count, (trunks, branches, _), device = self.ahead.count, self._sizes, self._trunk_of.device
        lengths, trunk = torch.tensor(trunks, device=device), torch.arange(len(trunks), device=device)
        of_trunks = (1 + trunk).repeat_interleave(lengths, output_size=sum(trunks))
        begun = torch.cat([of_trunks, of_trunks.new_full((sum(branches),), len(trunks))])  # trunks, at each token
        token, virtual = torch.arange(len(begun), device=device), torch.arange(count, device=device)
        places = token + count * begun
        source = places.new_empty(len(token) + count * len(trunks))
        source[places] = count + token
        first = lengths.cumsum(0) - lengths + count * trunk  # place of each row's beginning
        source[(first[:, None] + virtual).flatten()] = virtual.repeat(len(trunks))
        return source, places

    def position_ids(self) -> Tensor:
        """int64 [places that are fed]: a trunk counts from 0, or from behind keys and values ahead of it; a branch goes
        on where its trunk ended."""
        device = self._trunk_of.device
        places = torch.arange(self._first, self.width, device=device)
        rows = self.trunks.unpad(places.expand(self.trunks.num, -1))
        if self.branches is None:
            return rows
        first = self.lengths[self._trunk_of][:, None]
        return torch.cat([rows, self.branches.unpad(first + torch.arange(self.branches.width, device=device))])

    def sequence_lengths(self) -> Tensor:
        """int64 [N]: how long the sequence is that each token is part of; for a trunk with branches, the trunk's."""
        rows = self.trunks.lengths.repeat_interleave(self.trunks.lengths)
        if self.branches is None:
            return rows
        whole = self.trunks.lengths[self._trunk_of] + self.branches.lengths
        return torch.cat([rows, whole.repeat_interleave(self.branches.lengths)])

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
    ) -> Tensor:
        """See Layout.attend; B is 1."""
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [N, heads, D]
        if window is not None and window >= self._longest:
            window = None
        qs, ks, vs = (self.trunks.pad(x).transpose(1, 2) for x in (q, k, v))  # [S, heads, L, D]
        if self.ahead is not None and self.ahead.keys_values is not None:
            ks, vs = (_joined(x, y) for x, y in zip(self.ahead.keys_values[layer], (ks, vs), strict=True))
        self.keep(layer, ks, vs)
        mask = None if window is None and self._first == 0 else self._trunk_mask(window, q.dtype)
        out = self.kernel(
            qs, ks, vs, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=qs.shape[1] != ks.shape[1]
        )
        out = self.trunks.unpad(out.transpose(1, 2))
        if self.branches is not None:
            qb, kb, vb = (self.branches.pad(x).transpose(1, 2) for x in (q, k, v))
            kb = torch.cat([ks.index_select(0, self._trunk_of), kb], 2)
            vb = torch.cat([vs.index_select(0, self._trunk_of), vb], 2)
            branch = self.kernel(
                qb, kb, vb, attn_mask=self._branch_mask(window, q.dtype), scale=scale,
                enable_gqa=qb.shape[1] != kb.shape[1],
            )  # fmt: skip
            out = torch.cat([out, self.branches.unpad(branch.transpose(1, 2))])
        return out.unsqueeze(0)

    def keep(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Called with the trunks' keys and values [S, K, L, D] of each layer, those ahead before them; a cache may keep
        them."""

    def _trunk_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[L, P + L], or [L, L] without keys ahead"""
        key = ("trunk", window, dtype)
        if key not in self._masks:
            at = torch.arange(self.width, device=self._trunk_of.device)
            self._masks[key] = _additive(_visible(at[self._first :, None], at, window), dtype)
        return self._masks[key]

    def _branch_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[C or 1, 1, L of branches, P + L of trunks + L of branches]"""
        key = ("branch", window, dtype)
        if key not in self._masks:
            assert self.branches is not None
            device = self._trunk_of.device
            trunk_at, branch_at = (torch.arange(n, device=device) for n in (self.width, self.branches.width))
            length = self.lengths[self._trunk_of][:, None]  # [C, 1]
            if self.trunks.uniform:
                length = length[:1]
            here = length + branch_at  # position of each branch token
            there = torch.cat([trunk_at.expand(len(length), -1), here], 1)
            real = torch.cat([trunk_at < length, torch.ones_like(here, dtype=torch.bool)], 1)
            visible = _visible(here[:, :, None], there[:, None, :], window) & real[:, None, :]
            self._masks[key] = _additive(visible, dtype)[:, None]
        return self._masks[key]


def _joined(ahead: Tensor, rows: Tensor) -> Tensor:
    """[K, P, D] and [S, K, L, D] -> [S, K, P + L, D]"""
    return torch.cat([ahead.to(rows.dtype).expand(len(rows), -1, -1, -1), rows], 2)


def _visible(query_at: Tensor, key_at: Tensor, window: int | None) -> Tensor:
    visible = key_at <= query_at
    return visible if window is None else visible & (query_at - key_at < window)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


class PrefillLayout(PackedLayout):
    """A pack of trunks whose keys and values are kept, to be decoded from."""

    def __init__(
        self, trunk_lengths: Sequence[int], device: torch.device | str = "cpu", ahead: Ahead | None = None
    ) -> None:
        super().__init__(trunk_lengths, device=device, ahead=ahead)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Remember the layer's keys and values, [S, K, L, D], with those of what stands ahead."""
        self.kept[layer] = (key, value)

    @classmethod
    def joined(cls, parts: Sequence[PrefillLayout]) -> PrefillLayout:
        """The trunks of all parts, and what each part has kept; the parts are left empty. What stood ahead of a trunk
        is now a part of it."""
        if len(parts) == 1:
            return parts[0]
        lengths = torch.cat([part.lengths for part in parts])
        whole = cls(lengths.tolist(), lengths.device)
        for layer in list(parts[0].kept):
            keys, values = zip(*(part.kept.pop(layer) for part in parts), strict=True)
            whole.kept[layer] = (_stacked(keys, whole.width), _stacked(values, whole.width))
        return whole


def _stacked(parts: Sequence[Tensor], width: int) -> Tensor:
    """Keys or values [S, K, L, D] of several passes as one, each row padded to `width`."""
    return torch.cat([F.pad(x, (0, 0, 0, width - x.shape[2])) for x in parts])


class DecodeLayout:
    """One new token per row, over the keys and values so far. Rows start as copies of the trunks of a prefill and can
    be dropped as they finish. Room for keys and values grows by half whenever it is used up, never token by token."""

    def __init__(self, prefill: PrefillLayout, copies: int, room: int) -> None:
        """Each trunk is copied `copies` times, with room for `room` new tokens to begin with."""
        self._length = prefill.width  # columns in use
        self.positions = prefill.lengths.repeat_interleave(copies)  # int64 [B], of the next token
        column = torch.arange(self._length, device=self.positions.device)
        real = column < self.positions[:, None]
        self._real = None if bool(real.all()) else real  # bool [B, columns]; None: no padding anywhere
        self._kept = {
            layer: tuple(self._grown(x.repeat_interleave(copies, 0), room) for x in pair)
            for layer, pair in prefill.kept.items()
        }
        self._mask: Tensor | None = None

    @staticmethod
    def _grown(x: Tensor, room: int) -> Tensor:
        bigger = x.new_empty(*x.shape[:2], x.shape[2] + room, x.shape[3])
        bigger[:, :, : x.shape[2]] = x
        return bigger

    def advance(self) -> Tensor:
        """Make room for one token in every row; returns their positions, int64 [B]."""
        at = self.positions
        self.positions = at + 1
        self._length += 1
        capacity = next(iter(self._kept.values()))[0].shape[2]
        if self._length > capacity:
            self._kept = {n: tuple(self._grown(x, capacity // 2 + 1) for x in kv) for n, kv in self._kept.items()}
        if self._real is not None:
            self._real = F.pad(self._real, (0, 1), value=True)
            self._mask = _additive(self._real, next(iter(self._kept.values()))[0].dtype)[:, None, None, :]
        return at

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only (int64)."""
        self.positions = self.positions[rows]
        self._kept = {n: tuple(x.index_select(0, rows) for x in kv) for n, kv in self._kept.items()}
        if self._real is not None:
            self._real = self._real[rows]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
    ) -> Tensor:
        """See Layout.attend; N is 1."""
        keys, values = self._kept[layer]
        keys[:, :, self._length - 1] = key[:, :, 0]
        values[:, :, self._length - 1] = value[:, :, 0]
        keys, values = keys[:, :, : self._length], values[:, :, : self._length]
        mask = self._mask
        if window is not None and window < self._length:
            mask = self._window_mask(window, keys.dtype)
        # The heads that share keys stand as rows of one head, which every kernel takes without a copy of the keys.
        rows = query.reshape(len(query), keys.shape[1], -1, query.shape[-1])
        out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
        return out.reshape(query.shape).transpose(1, 2)

    def _window_mask(self, window: int, dtype: torch.dtype) -> Tensor:
        """A row's keys stand in order, but padding of its trunk may lie between: count only real ones."""
        real = self._real
        if real is None:
            real = torch.ones(len(self.positions), self._length, dtype=torch.bool, device=self.positions.device)
        at = real.cumsum(1) - 1
        return _additive(real & (at[:, -1:] - at < window), dtype)[:, None, None, :]
