"""What was decoded of late, within a limit of bytes: the least recently used goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Recent:
    """A cache that threads share; what two of them ask for at once is made once. Pickled it is empty: each process has its own.

    Attributes:
      limit: bytes at most; a single value that is larger is held until the next one comes.
      size: bytes held now.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._making: dict[Hashable, threading.Lock] = {}

    def __reduce__(self) -> tuple[type[Recent], tuple[int]]:
        return Recent, (self.limit,)

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """The value of a key, held or made now. `make` gives it and its bytes; what it raises is raised here."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._held:  # another thread has made it meanwhile
                    return self._held[key][0]
            try:
                value, size = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                self._put(key, value, size)
        return value

    def forget(self, which: Callable[[Any], bool]) -> None:
        """Let go of the values of some keys."""
        with self._lock:
            for key in [key for key in self._held if which(key)]:
                self.size -= self._held.pop(key)[1]

    def _put(self, key: Hashable, value: Any, size: int) -> None:
        self.size += size - self._held.pop(key, (None, 0))[1]
        self._held[key] = value, size
        while self.size > self.limit and len(self._held) > 1:
            self.size -= self._held.popitem(last=False)[1][1]
