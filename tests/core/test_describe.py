"""The help: words of fields from docstrings, one line a flag, what a short help keeps."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

import pytest

from mmjax.core.config import setting, spec_fields
from mmjax.core.describe import SHORT, field_words, fields, first_sentence, options, page
from mmjax.core.draft import set_fields
from mmjax.core.flags import pairs
from mmjax.data import SOURCES, TOKENIZERS, TRANSFORMS, Data
from mmjax.evaluate import EVALUATORS
from mmjax.models import Multimodal
from mmjax.models.decoders import DECODERS
from mmjax.models.encoders import ENCODERS
from mmjax.models.fusion import FUSIONS
from mmjax.models.heads import HEADS
from mmjax.nn.augment import AUGMENTATIONS
from mmjax.nn.spectrogram import SPECTROGRAMS
from mmjax.objectives import OBJECTIVES
from mmjax.objectives.mixing import MIXES
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.multihost import Join
from mmjax.plan.command import Options
from mmjax.train import OPTIMIZERS, Checkpoint, Experiment, Log, Task
from mmjax.train.config_file import load_config, shipped_configs
from mmjax.train.hooks import HOOKS
from mmjax.train.weighting import WEIGHTINGS

TABLES = (ENCODERS, DECODERS, FUSIONS, HEADS, AUGMENTATIONS, EVALUATORS, SOURCES, TRANSFORMS, TOKENIZERS, OBJECTIVES)
LISTED = [cls for table in (*TABLES, WEIGHTINGS, OPTIMIZERS, HOOKS, MIXES, SPECTROGRAMS) for cls in table.values()]
SINGLE = [Experiment, Task, Data, Mesh, Checkpoint, Log, Multimodal, Join, Options]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
      size, depth: how large. There is
        more to say.
      name: of it, e.g. `x`; "" for none
        at all.

    Raises:
      nothing: at all.
    """

    size: int = setting(everyday=True, default=3)
    depth: int = 2
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Other(Part):
    """Another.

    Attributes:
      more: of it.
    """

    more: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Whole:
    """All of it.

    Attributes:
      parts: what it is made of.
      best: the best of them.
      rates: name -> rate.
      seed: of everything.
    """

    parts: Mapping[str, Any] = setting({"part": Part, "other": Other}, default_factory=lambda: {"a": Part(), "b": Other(4)})
    best: Any = setting({"part": Part, "other": Other}, everyday=True, default=None)
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seed: int = setting(everyday=True, default=0)


def test_words_are_the_first_sentence_of_the_docstring_in_one_line():
    assert [field_words(Part, name) for name in ("size", "depth", "name")] == ["how large"] * 2 + [
        'of it, e.g. `x`; "" for none at all'
    ]
    assert [field_words(Other, name) for name in ("size", "more", "absent")] == ["how large", "of it", ""]
    assert first_sentence("`a` at 0.5 of all.  And more.") == "`a` at 0.5 of all"


@pytest.mark.parametrize("cls", [*LISTED, *SINGLE], ids=lambda cls: cls.__name__)
def test_every_field_of_the_package_has_words(cls):
    missing = [name for name in spec_fields(cls) if not field_words(cls, name)]
    assert not missing
    assert not [name for name in spec_fields(cls) if field_words(cls, name).startswith(("see ", "D, L"))]


def test_every_flag_is_a_line():
    groups = fields(Whole())
    assert list(groups) == ["run", "parts: what it is made of", "rates: name -> rate"]
    lines = {line.path: line for lines in groups.values() for line in lines}
    assert lines["parts.b"].value == "other" and lines["parts.b"].words == "one of part, other"
    assert lines["parts.NAME"].words == "a new one: one of part, other; what it is made of"
    assert lines["best"].value == "none" and lines["best"].words == "one of part, other; the best of them"
    assert lines["rates.NAME"].value == "FLOAT"
    assert (lines["parts.b.more"].value, lines["parts.a.name"].value, lines["seed"].value) == ("()", "''", "0")


def test_a_short_help_has_the_everyday_flags_and_those_of_several_entries_once():
    many = Whole({"a": Part(), "b": Part(4), **{f"c{i}": Part() for i in range(20)}})
    said = page("usage: x", [], fields(many), everything=False).splitlines()
    assert len(said) <= SHORT
    sizes = [line for line in said if ".size" in line]
    assert len(sizes) == 1 and "--parts.a.size 3" in sizes[0] and "(also b 4, c0, c1" in sizes[0]
    assert not any(".depth" in line for line in said)
    assert said[-1] == f"--help all lists every flag, {sum(map(len, fields(many).values()))} in all"
    whole = page("usage: x", [], fields(many), everything=True)
    assert all(f"--parts.c{i}.depth 2" in whole for i in range(20))


def test_a_help_that_is_short_anyway_is_whole():
    said = page("usage: x", [], fields(Whole()), everything=False)
    assert "--parts.a.depth 2" in said and "--help all" not in said


def test_a_commands_own_options():
    lines = {line.path: line for line in options(Join)}
    assert lines["coordinator"].value == "HOST:PORT" and lines["processes"].value == "INT"
    assert lines["join_timeout"].value == "300.0" and lines["peer_timeout"].words
    assert "words" not in {line.path for line in options(Options)}


@pytest.mark.parametrize("name", shipped_configs())
def test_the_help_of_a_shipped_config(name):
    groups = fields(load_config(name))
    said = page("usage: x\n\nabout", options(Join), groups, everything=False).splitlines()
    assert len(said) <= SHORT
    for flag in (
        "steps",
        "seed",
        "evaluate_every",
        "init_from",
        "data.train.batch_size",
        "optimizer.learning_rate",
        "mesh.fsdp",
    ):
        assert any(line.startswith(f"  --{flag} ") for line in said), flag
    assert all(line.words for lines in groups.values() for line in lines if not line.path.startswith("model.huggingface"))


def test_every_line_of_the_help_is_a_flag_that_sets_what_is_there():
    experiment = load_config("digits")
    flags = [
        f"--{line.path} {line.value}" for lines in fields(experiment).values() for line in lines if line.path[-4:] != "NAME"
    ]
    flags = [flag for flag in flags if not flag.endswith(" ")]  # a new entry of a tuple
    assert len(flags) > 250
    assert set_fields(experiment, pairs(shlex.split(" ".join(flags)))) == experiment
