"""What a source only names and a column says how to read: sounds and videos, of which a part is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from mmjax.core.errors import UserError, within
from mmjax.data.audio import Audio, Hear
from mmjax.data.clip import Clip
from mmjax.data.sound import Recording
from mmjax.data.types import Record
from mmjax.data.video import Video, Watch

READ = {Audio: Hear, Video: Watch}
NAMES = {
    Recording: ("sound", "rate and length", "Audio(rate=16000, seconds=10.0)"),
    Clip: ("video", "frames", "Video(frames=16)"),
}


class Read(Protocol):
    """Reads one key of a record, before all transforms; `random` is whether it draws while training."""

    key: str

    @property
    def random(self) -> bool: ...

    def whole(self, record: Record) -> Any:
        """What was read of a record, as if it were not yet: in memory."""
        ...

    def __call__(self, record: Record, rng: np.random.Generator | None, where: str) -> Record: ...


def reading(columns: Mapping[str, Any]) -> tuple[Read, ...]:
    """What reads the sounds and videos that columns name. Raises `UserError` for a column whose settings are none."""
    found = [READ[type(spec)](key, spec) for key, spec in columns.items() if type(spec) in READ]
    for one in found:
        with within(f"columns.{one.key}"):
            one.spec.check()
    return tuple(found)


def held(record: Record) -> int:
    """Bytes of sounds and videos that are not read yet."""
    return sum(value.nbytes for value in record.values() if isinstance(value, Recording | Clip))


def refuse_unread(key: str, value: Any) -> None:
    """Raises `UserError` for a sound or a video that no column reads."""
    if type(value) in NAMES:
        kind, wanted, column = NAMES[type(value)]
        raise UserError(
            f"columns: {key!r} is a {kind}, and no column says its {wanted}: add {key!r}: {column}"
            f", or leave it out ({key}_field='' of the source)"
        )
