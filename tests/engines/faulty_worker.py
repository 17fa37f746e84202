"""What can go wrong while vLLM takes over weights, planted inside its workers: the real one, with a fault on order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

from torch import Tensor

from rlft.engines.vllm import worker
from rlft.engines.vllm.worker import WeightReceiver
from rlft.engines.weights import TensorEntry, WeightUpdate


class FaultyReceiver(WeightReceiver):
    """Does at the next load what it is told by `rlft_plant`."""

    rlft_fault: tuple[str, str] = ("", "")
    rlft_repacks = False

    def rlft_plant(self, fault: str, name: str = "") -> None:
        """`skip` or `transpose` the tensor `name`, `half`: stop after half of the tensors, `die` there; `repack`: act
        as with a model whose weights cannot be read back (until `""` is planted)."""
        self.rlft_fault = (fault, name)
        self.rlft_repacks = fault == "repack"

    def rlft_reads_back(self) -> bool:
        """See WeightReceiver."""
        return not self.rlft_repacks and super().rlft_reads_back()

    def _rlft_published(self, update: WeightUpdate) -> Iterator[tuple[TensorEntry, Tensor]]:
        fault, name = self.rlft_fault
        self.rlft_fault = ("", "")
        worker.copy_part = _dishonest(fault, name)
        half = len(update.entries) // 2
        for i, item in enumerate(super()._rlft_published(update)):
            if i == half and fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if i == half and fault == "half":
                return
            yield item


def _dishonest(fault: str, name: str) -> Callable[[TensorEntry, Tensor, Tensor], None]:
    def copy_part(entry: TensorEntry, part: Tensor, target: Tensor) -> None:
        if entry.name == name and fault == "skip":
            return
        target.copy_(part.T if entry.name == name and fault == "transpose" else part)

    return copy_part
