"""Reading an adapter that peft wrote, as the learner held it, and what peft says of AdaLoRA that is not so."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlft.errors import UserError

_SETTINGS = "adapter_config.json"


def read_peft(base: Any, folder: str | Path) -> Any:
    """The adapter in `folder` around `base`, in the type of `base`'s weights (peft would make 16 bits into 32), in eval
    mode. Raises UserError where it does not fit."""
    from peft import PeftModel

    settings = json.loads(Path(folder, _SETTINGS).read_text(encoding="utf-8"))
    with no_false_alarm(settings.get("peft_type")):
        try:
            return PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False).eval()
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            raise UserError(
                f"{folder}: its adapter does not fit the model at {base.config._name_or_path}, whose layers have other "
                f"sizes. Give the model that it was trained on ({str(error).splitlines()[1].strip()[:200]})"
            ) from None


@contextmanager
def no_false_alarm(*kinds: str | None) -> Iterator[None]:
    """Without peft's warnings of an AdaLoRA that is as it should be: its rank_pattern names weights, and peft looks for
    modules of such names, as other kinds have them; and layers may have lost all of their ranks, which peft takes for
    weights that were not gathered."""
    with warnings.catch_warnings():
        if "ADALORA" in kinds:
            warnings.filterwarnings("ignore", "The following rank_pattern keys did not match", RuntimeWarning)
            warnings.filterwarnings("ignore", r"Adapter '.*': \d+ LoRA tensor\(s\) have invalid shape", UserWarning)
        yield
