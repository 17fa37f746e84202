"""`random` and `threading`, without what they do in every child of a fork.

`random` seeds itself anew there: programs that draw numbers would be judged by luck. `threading` forgets the threads of
the parent: the zygote has none. Together they were a twentieth of what a judgement cost. To be imported before anything
that imports them.
"""

from __future__ import annotations

import os

_register, os.register_at_fork = os.register_at_fork, lambda **hooks: None
try:
    import random
    import threading
finally:
    os.register_at_fork = _register

__all__ = ["random", "threading"]
