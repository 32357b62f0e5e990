"""Vectors of inputs in the space that a run's modalities share: the command `mmjax embed`, and what is nearest in its file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, setting, to_json
from mmjax.core.errors import UserError, nearest
from mmjax.core.flags import take
from mmjax.core.trees import leaves_by_path
from mmjax.models.forward import VARIABLES
from mmjax.predict.command import progress
from mmjax.predict.index import Index, new_index


@dataclasses.dataclass(frozen=True)
class Options:
    """Of `mmjax embed`.

    Attributes:
      out: a new .npz file for `vectors`, `names` and `about`.
      text: the inputs are texts.
      batch_size: inputs that are computed at once.
    """

    out: str = setting(everyday=True, metavar="FILE", default="")
    text: bool = setting(everyday=True, default=False)
    batch_size: int = setting(least=1, default=32)


def run(words: list[str], usage: str, say: Callable[[str], None]) -> int:
    """Write the vectors of what the words of a command name; returns the exit status, 1 where an input could not be read.

    Raises:
      UserError: mistaken words; a run without a shared space; a file that is there already.
    """
    own = take(words, Options)
    check_ranges(own, "--")
    if wrong := [word for word in words if word.startswith("--")]:
        known = [f"--{field.name}" for field in dataclasses.fields(Options)]
        raise UserError(f"embed has no {wrong[0]}{nearest(wrong[0], known)}: {usage}")
    if len(words) < 2 or not own.out:
        raise UserError(f"embed takes a run, what to embed, and --out: {usage}")
    from mmjax.predict.answers import check_run, each, listed
    from mmjax.predict.predictor import Predictor

    failed = 0
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(new_index(own.out))
        kind = check_run(words[0], own.text)
        inputs = listed(words[1:], kind)
        tick = stack.enter_context(progress(len(inputs), own.out))
        ask = Predictor(words[0], own.batch_size)
        new.about = identity(ask, kind)
        for answer in each(ask, inputs, kind, lambda _, some: [{"vector": row} for row in vectors(ask, kind, some)]):
            tick()
            if "error" in answer:
                print(f"mmjax: left out: {answer[kind]}: {answer['error']}", file=sys.stderr)
                failed += 1
            else:
                new.add(answer[kind], answer["vector"])
    if new.names:
        say(f"{own.out}: {len(new.names)} vectors of {new.width} numbers, in the space of fusions.{new.about['space']}")
    else:
        print(f"mmjax: nothing could be read, so there is no {own.out}", file=sys.stderr)
    return 1 if failed else 0


def vectors(ask: Any, kind: str, some: Sequence[Any]) -> np.ndarray:
    """[N, E] float32 of unit length, of images, sounds, videos or texts. Raises `UserError` for NaN, near to nothing."""
    embed = {"image": ask.embed_image, "audio": ask.embed_audio, "video": ask.embed_video}.get(kind, ask.embed_text)
    found: np.ndarray = embed(list(some))
    if not np.isfinite(found).all():
        raise UserError(f"{ask.work.path}: among the vectors of {len(some)} {kind}s one holds NaN or infinity")
    return found


def identity(ask: Any, modality: str) -> dict[str, Any]:
    """What tells the space of a modality's vectors from others: `run`, `space`, and a `fingerprint` of all that makes them.

    That is SHA-256 over the specs and the parameters of the fusion and of the encoders whose modalities it holds.
    """
    work, space = ask.work, ask.space(modality)
    model, digest = work.model, hashlib.sha256()
    fusions = [space, *sorted(set(getattr(model.fusions[space], "through", {}).values()))]
    encoders = sorted(
        {name for one in fusions for name in (*model.fusions[one].modalities, *getattr(model.fusions[one], "pool", ()))}
    )
    for room, names in (("encoders", encoders), ("fusions", fusions)):
        for name in names:
            spec = json.dumps(to_json(getattr(model, room)[name]), sort_keys=True)
            digest.update(f"{room}.{name} {spec}".encode())
            for tree in (work.params, *work.params.get(VARIABLES, {}).values()):
                for path, leaf in sorted(leaves_by_path(tree.get(f"{room}_{name}", {})).items()):
                    x = np.ascontiguousarray(leaf)
                    digest.update(f"{path} {x.dtype} {x.shape}".encode())
                    digest.update(x.view(np.uint8).data)
    return {"run": work.path, "space": space, "modality": modality, "fingerprint": digest.hexdigest()}


def neighbours(ask: Any, index: Index, inputs: Sequence[Any], kind: str, top_k: int) -> Iterator[dict[str, Any]]:
    """The nearest of an index to each input: names and cosines.

    Raises:
      UserError: an index of another run, or of another space.
    """
    from mmjax.predict.answers import each

    check_same(index, identity(ask, kind))

    def said(_: list[Any], some: list[Any]) -> list[dict[str, Any]]:
        rows_QK, cosines_QK = index.nearest(vectors(ask, kind, some), top_k)
        return [
            {"nearest": [{"name": str(index.names[n]), "cosine": float(c)} for n, c in zip(*pair, strict=True)]}
            for pair in zip(rows_QK, cosines_QK, strict=True)
        ]

    yield from each(ask, inputs, kind, said)


def check_same(index: Index, own: dict[str, Any]) -> None:
    """Raises `UserError` where the vectors of an index do not lie in this space."""
    about = index.about
    if about.get("fingerprint") == own["fingerprint"]:
        return
    if about.get("run") == own["run"] and about.get("space") == own["space"]:
        what = f"of {own['run']} as it was before its parameters changed"
    else:
        what = f"of {about.get('run')}, fusions.{about.get('space')}, and these of {own['run']}, fusions.{own['space']}"
    raise UserError(f"--index {index.path}: its vectors are {what}; make one of this run by mmjax embed")
