"""Flags on specs: every kind of field, tables in mappings and tuples, and what a wrong flag is told."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.config import leaves
from mmjax.core.draft import set_fields
from mmjax.core.errors import UserError
from mmjax.core.flags import pairs
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.heads import TokenClassifier
from mmjax.train.config_file import load_config

HERE = __name__


@dataclasses.dataclass(frozen=True)
class Small:
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Large:
    size: int = 300
    names: tuple[str, ...] = ("a",)


@dataclasses.dataclass(frozen=True)
class Picky:
    """Needs `size`, and takes an even one alone."""

    size: int
    inner: Any = setting({"small": Small, "large": Large}, default=None)

    def __post_init__(self):
        if self.size % 2:
            raise UserError(f"size={self.size}: use an even number")
        if self.size > 99:
            raise ValueError("too large")


SIZES = {"small": Small, "large": Large, "picky": Picky}


@dataclasses.dataclass(frozen=True)
class Tabled:
    """Tables in a mapping and in a tuple, and a mapping of numbers."""

    named: Mapping[str, Any] = setting(SIZES, default_factory=lambda: {"one": Small(1), "v1.5": Small(2)})
    chain: tuple[Any, ...] = setting(SIZES, default=(Small(10), Large(names=("z",)), Small(20)))
    empty: tuple[Any, ...] = setting(SIZES, default=())
    only: Mapping[str, Any] = setting({"picky": Picky}, default_factory=dict)
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Everything:
    count: int = 1
    rate: float = 0.5
    name: str = "x"
    on: bool = False
    fill: float | None = None
    patch: tuple[int, int] = (2, 2)
    words: tuple[str, ...] = ()
    free: Any = 7
    part: Any = dataclasses.field(default_factory=Small, metadata={"table": {"small": Small, "large": Large}})
    maybe: Any = dataclasses.field(default=None, metadata={"table": {"small": Small, "large": Large}})
    parts: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"one": Small(1), "two": Small(2)})
    chain: tuple[Any, ...] = (Small(10), Large())


def model():
    text = TextTransformer(vocab_size=8, width=4, depth=1, heads=2)
    image = ViT(image_size=(4, 4), patch=(2, 2), width=4, depth=1, heads=2)
    head = TokenClassifier(classes=8, tied_to="text")
    return Multimodal(encoders={"image": image, "text": text}, heads={"masked_lm": head})


def override(spec, path, words):
    return set_fields(spec, [(path, words)])


def flagged(words, spec=None):
    return set_fields(Tabled() if spec is None else spec, pairs(words.split()))


def told(words, spec=None):
    with pytest.raises(UserError) as error:
        flagged(words, spec)
    assert "\n" not in str(error.value)
    return str(error.value)


def refused(path, *words, spec=None):
    with pytest.raises(UserError) as error:
        override(spec or Everything(), path, words)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("path", "words", "value"),
    [
        ("count", ["12"], 12),
        ("count", ["-1"], -1),
        ("rate", ["1e-8"], 1e-8),
        ("rate", ["2"], 2.0),
        ("name", ["gelu"], "gelu"),
        ("name", ["None"], "None"),
        ("name", ["true"], "true"),
        ("name", [""], ""),
        ("name", ["a photo of a {}."], "a photo of a {}."),
        ("on", ["true"], True),
        ("on", ["False"], False),
        ("fill", ["0.25"], 0.25),
        ("fill", ["none"], None),
        ("patch", ["4", "4"], (4, 4)),
        ("patch", ["4,4"], (4, 4)),
        ("patch", ["(4, 4)"], (4, 4)),
        ("words", ["a", "b c"], ("a", "b c")),
        ("words", ["a,b"], ("a", "b")),
        ("words", ["()"], ()),
        ("free", ["9"], 9),
        ("part.size", ["5"], 5),
        ("parts.two.size", ["5"], 5),
        ("chain.1.size", ["5"], 5),
    ],
)
def test_override_parses_words_by_the_declared_type(path, words, value):
    found = leaves(override(Everything(), path, words))[path]
    assert found == value
    assert type(found) is type(value)


def test_override_changes_one_field_and_leaves_the_original():
    spec = Everything()
    changed = override(spec, "parts.two.size", ["5"])
    assert spec.parts["two"].size == 2
    assert changed == dataclasses.replace(spec, parts={"one": Small(1), "two": Small(5)})


@pytest.mark.parametrize(
    ("path", "words", "said"),
    [
        ("count", ["1.5"], "--count 1.5: expected int, now 1"),
        ("count", ["1", "2"], "--count 1 2: expected int, now 1"),
        ("rate", ["fast"], "--rate fast: expected float, now 0.5"),
        ("on", ["maybe"], "--on maybe: expected bool, now False"),
        ("patch", ["4"], "--patch 4: expected tuple[int, int], now (2, 2)"),
        ("fill", ["red"], "--fill red: expected float | None, now None"),
    ],
)
def test_override_refuses_words_of_another_type(path, words, said):
    assert refused(path, *words) == said


@pytest.mark.parametrize(
    ("path", "near"),
    [("cuont", "'count'"), ("part.sise", "'part.size'"), ("parts.tow.size", "'parts.two.size'"), ("part.size.deep", "")],
)
def test_override_names_the_nearest_path(path, near):
    said = refused(path, "1")
    assert said.startswith(f"unknown field --{path}")
    assert near in said


def test_a_misspelt_field_deep_in_a_model_is_named():
    said = refused("encoders.image.dept", "3", spec=model())
    assert said == "unknown field --encoders.image.dept (did you mean 'encoders.image.depth'?)"


def test_an_entry_of_a_mapping_is_removed_by_none():
    assert list(override(Everything(), "parts.one", ["none"]).parts) == ["two"]


def test_an_entry_of_a_tuple_of_specs_is_set_replaced_and_removed():
    assert override(Everything(), "chain.0.size", ["4"]).chain == (Small(4), Large())
    assert override(Everything(), "chain.0", [f"{HERE}:Large"]).chain == (Large(size=10), Large())
    assert override(Everything(), "chain.0", ["none"]).chain == (Large(),)


def test_what_holds_specs_is_not_set_as_a_whole():
    assert refused("parts", "x") == "--parts holds --parts.one, --parts.two: set one of those, or --parts.NAME for a new one"
    assert refused("chain", "x") == "--chain holds --chain.0, --chain.1: set one of those, or --chain.2 for a new one"


def test_a_field_with_a_table_takes_its_names():
    assert override(Everything(), "part", ["large"]).part == Large(size=3)  # the field they share keeps its value
    assert override(Everything(), "maybe", ["small"]).maybe == Small()
    assert override(override(Everything(), "maybe", ["small"]), "maybe", ["none"]).maybe is None
    both = override(override(Everything(), "part", ["large"]), "part.size", ["4"])
    assert both.part == Large(size=4)
    said = refused("part", "lagre")
    assert said == "--part lagre: expected one of small, large, or package.module:Class (did you mean 'large'?)"


def test_a_users_own_dataclass_is_named_by_its_module():
    assert override(Everything(), "part", [f"{HERE}:Large"]).part == Large(size=3)
    assert override(Everything(), "parts.one", [f"{HERE}:Large"]).parts["one"].names == ("a",)


def test_a_class_that_cannot_be_made_from_a_flag_alone_says_what_it_needs():
    said = refused("part", "mmjax.objectives:MaskedLM")
    assert (
        said
        == "--part mmjax.objectives:MaskedLM: MaskedLM needs vocab_size, mask_id; add --part.vocab_size INT --part.mask_id INT"
    )


def printed(value):
    """The words a person would write for a value."""
    if isinstance(value, tuple):
        return [str(item) for item in value] or ["()"]
    return [str(value)]


def test_overriding_every_leaf_of_digits_by_its_printed_value_changes_nothing():
    experiment = load_config("digits")
    found = leaves(experiment)
    for path, value in found.items():
        if isinstance(value, (int, float, str, bool, tuple)):
            same = leaves(override(experiment, path, printed(value)))
            assert same == found, path
            assert type(same[path]) is type(value), path


@given(st.integers(1, 10**6), st.floats(0, 1), st.tuples(st.integers(1, 64), st.integers(1, 64)))
def test_flags_set_numbers_and_tuples_exactly(steps, rate, patch):
    changed = override(override(Everything(), "count", [str(steps)]), "rate", [str(rate)])
    changed = override(changed, "patch", [f"{patch[0]},{patch[1]}"])
    assert (changed.count, changed.rate, changed.patch) == (steps, rate, patch)
