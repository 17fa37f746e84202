"""What every section of the configuration is made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """A section of the configuration: unknown keys are errors, values are not changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def default_of(self, name: str, field: FieldInfo) -> Any:
        """What a key is where nobody sets it."""
        return field.get_default(call_default_factory=True)


class Actors(Section):
    """How many actors play a role and what each of them takes from the cluster. In inline mode there are no actors:
    only `gpus` counts there (above 0: the role runs on the GPU)."""

    num_actors: int = Field(default=1, ge=1)
    """Actors that share the role's work."""
    cpus: float = Field(default=1.0, ge=0)
    """CPU cores that each actor reserves; also its number of threads (at least 1)."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that each actor reserves."""
    resources: dict[str, float] = {}
    """Custom Ray resources that each actor reserves, for instance to choose a kind of node."""
