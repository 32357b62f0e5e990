"""Texts spoken by espeak-ng, in voices that are held apart by split: a recogniser is asked about some that it never heard."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError, nearest
from mmjax.data import splits
from mmjax.data.sound import Recording
from mmjax.data.sources.digits import NAMES
from mmjax.data.splits import SPLITS
from mmjax.data.types import BadRecordError, Record

PROGRAM = "espeak-ng"  # Debian's package, and Ubuntu's, has the same name
VOICES = (
    *(f"m{n}" for n in range(1, 9)),
    *(f"f{n}" for n in range(1, 6)),
    *("Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco"),
    *("Mario", "Michael", "Mike", "adam", "anika", "antonio", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward"),
    *("linda", "marcelo", "max", "michel", "miguel", "pablo", "paul", "pedro", "quincy", "rob", "robert", "shelby", "steph"),
    *("travis", "victor", "zac"),
)
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
LONGEST = 60.0  # seconds that a text may take to be spoken


@dataclasses.dataclass(frozen=True)
class Spoken:
    """Runs of words drawn from a list, spoken by `espeak-ng` in a voice of the split, with an accent, a pitch and a speed.

    What is said, and how, is a pure function of (split, seed, place); the sounds are those of the installed espeak-ng, whose
    versions differ a little. Each is spoken when it is first asked for and kept in `cache` as a WAV, so that it is spoken once.

    Attributes:
      split: "train", "validation" or "test": no voice of one is in another.
      count: how many.
      seed: of all that is drawn.
      cache: folder of the WAVs, made when missing.
      words: what texts are made of.
      length: (fewest, most) words of a text.
      voices: of espeak-ng's variants, `espeak-ng --voices=variant`; shared out over the splits by a hash of their names.
      accents: of espeak-ng's voices, `espeak-ng --voices=en`; each voice speaks with any of them.
      pitch: (lowest, highest), espeak-ng's -p, where 50 is the voice's own.
      speed: (slowest, fastest), espeak-ng's -s, in words a minute.
      fractions: shares of the voices, of train, validation and test.
    """

    split: str = "train"
    count: int = setting(everyday=True, least=1, default=10_000)
    seed: int = setting(least=0, default=0)
    cache: str = setting(everyday=True, path=True, default="spoken")
    words: tuple[str, ...] = NAMES
    length: tuple[int, int] = setting(least=1, default=(1, 4))
    voices: tuple[str, ...] = VOICES
    accents: tuple[str, ...] = ACCENTS
    pitch: tuple[int, int] = setting(least=0, most=99, default=(30, 70))
    speed: tuple[int, int] = setting(least=80, most=450, default=(130, 200))
    fractions: tuple[float, float, float] = setting(least=0, most=1, default=(0.7, 0.15, 0.15))

    def build(self) -> SpokenRecords:
        """Records of `audio`, `text` and `voice`.

        Raises:
          UserError: espeak-ng is not installed and a sound of the split is not in the cache yet; a voice or an accent that it
            does not have; an unknown split, one without a voice, a range that does not rise, no words.
        """
        splits.check_split("Spoken", self.split, SPLITS)
        splits.check_fractions("Spoken", self.fractions)
        check_ranges(self, "Spoken.")
        for field in ("length", "pitch", "speed"):
            low, high = getattr(self, field)
            if low > high:
                raise UserError(f"Spoken.{field}=({low}, {high}): give (low, high) with low <= high")
        for field in ("words", "voices", "accents"):
            if isinstance(own := getattr(self, field), str) or not own or not all(one.strip() for one in own):
                raise UserError(f"Spoken.{field}={own!r}: give a tuple of names, one at least")
        records = SpokenRecords(self, self.own_voices())
        if not records.voices:
            raise UserError(f"Spoken.split={self.split!r}: none of the {len(set(self.voices))} voices are in it; give more")
        if shutil.which(PROGRAM) is not None:
            _check_names("voices", self.voices, _known("variant"))
            _check_names("accents", self.accents, _known(""))
        elif not all(os.path.exists(records.file(n)) for n in range(len(records))):
            raise UserError(f"Spoken: {PROGRAM} is not installed, which speaks the texts: apt-get install {PROGRAM}")
        return records

    def own_voices(self) -> tuple[str, ...]:
        """Those of the split."""
        split = splits.share_out({"": dict.fromkeys(self.voices)}, self.fractions)
        return tuple(voice for voice in split if split[voice] == self.split)


@dataclasses.dataclass(frozen=True)
class Said:
    """A text and how it is spoken: see `Spoken`."""

    text: str
    accent: str
    voice: str
    pitch: int
    speed: int


@dataclasses.dataclass(frozen=True, eq=False)
class SpokenRecords:
    """The texts of one split, spoken when asked for.

    Attributes:
      spec: what they are.
      voices: of the split.
    """

    spec: Spoken
    voices: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.spec.count

    def __getitem__(self, index: int, /) -> Record:
        said, file = self.said(index), self.file(index)
        if not os.path.exists(file):
            _speak(said, file)
        return {"audio": Recording(file, f"{file} ({said.text})"), "text": said.text, "voice": said.voice}

    def said(self, index: int) -> Said:
        """What is spoken, and how."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        spec = self.spec
        rng = np.random.default_rng([spec.seed, zlib.crc32(spec.split.encode()), index % len(self)])
        words = rng.integers(len(spec.words), size=rng.integers(spec.length[0], spec.length[1] + 1))
        accent, voice = spec.accents[rng.integers(len(spec.accents))], self.voices[rng.integers(len(self.voices))]
        pitch, speed = (int(rng.integers(low, high + 1)) for low, high in (spec.pitch, spec.speed))
        return Said(" ".join(spec.words[n] for n in words), accent, voice, pitch, speed)

    def file(self, index: int) -> str:
        """Path of its WAV, whether it is there yet or not."""
        name = splits.fingerprint(map(str, dataclasses.astuple(self.said(index))))
        return os.path.join(self.spec.cache, f"{name}.wav")

    def described(self, index: int) -> tuple[str, int, tuple[str, ...]]:
        """See `types.Records`."""
        said = self.said(index)
        return f"{index}: {said}", -1, (said.text,)

    def texts(self) -> Iterator[str]:
        """Those of the split; and before them all words, so that of few texts a tokenizer learns as many letters."""
        yield " ".join(self.spec.words)
        yield from (self.said(index).text for index in range(len(self)))

    def fingerprint(self) -> str:
        told = {field.name: getattr(self.spec, field.name) for field in dataclasses.fields(self.spec) if field.name != "cache"}
        return splits.fingerprint([*self.voices, *(f"{name}={value}" for name, value in told.items())])


def _speak(said: Said, file: str) -> None:
    """Write a WAV, whole or not at all. Raises `BadRecordError` where espeak-ng does not."""
    folder = Path(file).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(".part", dir=folder)
    except OSError as error:
        raise UserError(f"Spoken.cache={str(folder)!r}: it cannot be written ({error.strerror})") from None
    os.close(handle)
    words = [PROGRAM, "-v", f"{said.accent}+{said.voice}", "-p", str(said.pitch), "-s", str(said.speed), "-w", part, "--stdin"]
    try:
        done = subprocess.run(words, input=said.text.encode(), capture_output=True, timeout=LONGEST, check=False)
        if done.returncode or not os.path.getsize(part):
            reason = " ".join(done.stderr.decode(errors="replace").split())
            raise BadRecordError(file, f"{PROGRAM} did not speak it ({reason or 'without a reason'})")
        os.replace(part, file)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadRecordError(file, f"{PROGRAM} did not speak it ({type(error).__name__})") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def _check_names(field: str, names: tuple[str, ...], known: frozenset[str]) -> None:
    """Raises UserError for a name that espeak-ng does not have: for a variant it would speak in another voice, silently."""
    for name in names:
        if name not in known:
            raise UserError(
                f"Spoken.{field} has {name!r}{nearest(name, sorted(known))}: the installed {PROGRAM} has no such voice"
            )


@functools.cache
def _known(kind: str) -> frozenset[str]:
    """The voices that espeak-ng has: of `variant` the names of their files, of "" the languages."""
    try:
        done = subprocess.run([PROGRAM, f"--voices={kind}".rstrip("=")], capture_output=True, timeout=LONGEST, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"Spoken: {PROGRAM} does not say its voices ({type(error).__name__})") from None
    rows = done.stdout.decode(errors="replace").splitlines()[1:]
    if kind:
        return frozenset(found[1] for row in rows if (found := re.search(r"!v/(.*?)(?:\s{2,}|\s*$)", row)))
    return frozenset(row.split()[1] for row in rows if len(row.split()) > 1)
