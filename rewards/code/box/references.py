"""Objects that stay in their process, and what the other side holds of them."""

from __future__ import annotations

from typing import Any

from rewards.code.box.plain import NotPlain, is_lazy

MAX_KEPT = 100_000


class Kept:
    """The objects that the other side may name, by number."""

    def __init__(self) -> None:
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}  # by id: objects are kept, so no id comes twice

    def refer(self, value: Any) -> list[Any]:
        """What stands for `value` in plain data; the same each time."""
        if id(value) not in self._numbers:
            if len(self._objects) >= MAX_KEPT:
                raise NotPlain(f"more than {MAX_KEPT} objects that are no plain data")
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        how = "iterator" if is_lazy(value) else "callable" if callable(value) else "object"
        return ["R", self._numbers[id(value)], how, type(value).__name__[:80]]

    def __getitem__(self, number: Any) -> Any:
        """The object of that number. Raises NotPlain when there is none."""
        if type(number) is not int or not 0 <= number < len(self._objects):
            raise NotPlain("a reference to nothing")
        return self._objects[number]


def read_reference(data: list[Any]) -> tuple[int, str, str]:
    """Number, kind and type name of what `refer` wrote. Raises NotPlain for anything else."""
    if len(data) == 4 and data[0] == "R" and type(data[1]) is int and type(data[2]) is str and type(data[3]) is str:
        return data[1], data[2], data[3]
    raise NotPlain("no plain data")
