"""Flags on specs: every kind of field, tables in mappings and tuples, and what a wrong flag is told."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.config import leaves, setting
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


def test_braces_empty_a_mapping_whatever_it_holds():
    held = set_fields(Tabled(), pairs(["--rates.a", "2", "--rates.b", "3"]))
    assert set_fields(held, pairs(["--rates", "{}"])).rates == {}
    assert set_fields(held, pairs(["--rates.c", "4", "--rates", "{}"])).rates == {"c": 4.0}  # a whole before its parts
    assert set_fields(held, pairs(["--named", "{}", "--named.two", "small"])).named == {"two": Small()}
    assert set_fields(Tabled(), pairs(["--rates", "{}"])) == Tabled()
    with pytest.raises(UserError, match=r"--rates.a, --rates.b: set one of those, .* or --rates {} for none"):
        set_fields(held, pairs(["--rates", "none"]))


def test_what_holds_specs_is_not_set_as_a_whole():
    more = "set one of those, or --parts.NAME for a new one, or --parts {} for none"
    assert refused("parts", "x") == f"--parts holds --parts.one, --parts.two: {more}"
    assert refused("chain", "x") == "--chain holds --chain.0, --chain.1: set one of those, or --chain.2 for a new one"
    assert refused("parts.one", "x").startswith("--parts.one holds --parts.one.size: set one of those")


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


# Tables where things stand in mappings and tuples.


def test_a_word_of_the_table_is_understood_in_a_mapping_and_in_a_tuple():
    assert flagged("--named.one large").named["one"] == Large(size=1)
    assert flagged("--chain.1 small").chain[1] == Small(size=300)
    assert flagged(f"--named.one {HERE}:Large").named["one"] == Large(size=1)


@pytest.mark.parametrize("path", ["named.one", "named.new", "chain.0", "chain.3", "empty.0"])
def test_a_wrong_word_lists_those_of_the_table(path):
    said = told(f"--{path} lagre")
    assert said == f"--{path} lagre: expected one of small, large, picky, or package.module:Class (did you mean 'large'?)"


def test_entries_are_added_to_mappings_and_tuples():
    assert flagged("--named.new large").named == {"one": Small(1), "v1.5": Small(2), "new": Large()}
    assert flagged("--chain.3 large").chain[3] == Large()
    assert flagged("--empty.0 small --empty.1 large").empty == (Small(), Large())
    assert flagged("--rates.a/* 0.5 --rates.b 2").rates == {"a/*": 0.5, "b": 2.0}
    assert told("--chain.5 small") == "--chain.5: chain has 3 entries, so the next is --chain.3"
    assert told("--rates.a fast") == "--rates.a fast: expected float"


def test_a_name_with_a_dot_in_it_is_found():
    assert flagged("--named.v1.5.size 7").named["v1.5"] == Small(7)


def test_a_new_entry_gets_what_its_class_needs_from_flags_in_any_order():
    expected = Picky(4, Large(names=("b",)))
    for words in (
        "--named.new picky --named.new.size 4 --named.new.inner large --named.new.inner.names b",
        "--named.new.inner.names b --named.new.size 4 --named.new.inner large --named.new picky",
    ):
        assert flagged(words).named["new"] == expected
    assert told("--named.new picky") == "--named.new picky: Picky needs size; add --named.new.size INT"


def test_where_a_table_has_one_class_its_word_may_be_left_out():
    assert flagged("--only.new.size 4").only == {"new": Picky(4)}
    spec = flagged("--only.first.size 4")
    assert told("--only.frist.inner small", spec).startswith(
        "unknown field --only.frist.inner (did you mean 'only.first.inner'?)"
    )


def test_an_entry_that_is_not_there_is_named_first():
    said = told("--named.neu.size 3")
    assert said.startswith("unknown field --named.neu.size (did you mean 'named.one.size'?)")
    assert said.endswith("; a new named.neu is named as well, --named.neu with one of small, large, picky")


def test_a_new_name_that_looks_like_another_is_said(caplog):
    with caplog.at_level("INFO", "mmjax"):
        flagged("--named.onee small")
        assert caplog.messages == ["--named.onee adds 'onee' beside 'one'"]
        flagged("--named.other small")
    assert len(caplog.messages) == 1


def test_numbers_of_a_tuple_are_those_before_any_was_removed():
    assert flagged("--chain.0 none --chain.1 none").chain == (Small(20),)
    assert flagged("--chain.0 none --chain.2.size 3 --chain.3 large").chain == (Large(names=("z",)), Small(3), Large())
    assert told("--chain.0 none --chain.0.size 3") == "--chain.0.size: --chain.0 none has removed what it is of"


def test_a_tuple_is_set_whole_and_entries_of_the_same_class_keep_their_values():
    assert flagged("--chain large small picky --chain.2.size 4").chain == (Large(names=("z",)), Small(10), Picky(4))
    assert flagged("--chain small,small,small").chain == (Small(10), Small(20), Small())
    assert flagged("--chain ()").chain == ()
    assert told("--chain small lagre").endswith("(did you mean 'large'?)")


def test_of_two_flags_for_one_field_the_last_counts():
    assert flagged("--named.one.size 3 --named.one.size 4").named["one"] == Small(4)
    assert flagged("--named.one large --named.one small").named["one"] == Small(1)
    assert list(flagged("--named.one none --named.one large").named) == ["one", "v1.5"]


def test_specs_are_made_once_all_flags_are_read():
    """So flags that are right only together may stand in any order."""
    assert flagged("--named.p picky --named.p.size 3 --named.p.size 4").named["p"] == Picky(4)


def test_what_a_class_refuses_is_said_with_the_path():
    assert told("--named.p picky --named.p.size 3") == "named.p: size=3: use an even number"
    assert told("--named.p picky --named.p.size 100") == "named.p: Picky takes no such values (too large)"


def test_what_no_flag_touches_is_the_same_object():
    spec = Tabled()
    assert flagged("--named.one.size 3", spec).chain is spec.chain


@pytest.mark.parametrize("path", ["", ".", "named.", ".named", "named..size", "named.one.", "größe", "chain.x.size"])
def test_a_path_that_is_none_is_one_line(path):
    with pytest.raises(UserError, match="unknown field"):
        set_fields(Tabled(), [(path, ["3"])])


@pytest.mark.parametrize("word", [":Foo", "a:", ".a:b", "a:b:c", "a b:c"])
def test_what_is_no_name_of_a_class_is_one_line(word):
    with pytest.raises(UserError, match=r"--named\.one"):
        set_fields(Tabled(), [("named.one", [word])])


def test_a_module_that_fails_when_imported_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "failing_module.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = told("--named.one failing_module:X")
    assert said == "--named.one failing_module:X: cannot import 'failing_module' (RuntimeError: broken)"


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ("--model.encoders.image text", "TextTransformer"),
        ("--model.decoders.other text", "TextDecoder"),
        ("--model.heads.match token_classifier", "TokenClassifier"),
        ("--model.fusions.dual concatenate", "Concatenate"),
        ("--model.augment.image image", "ImageAugment"),
        ("--evaluate.prompted retrieval", "Retrieval"),
        ("--evaluate.loss perplexity --evaluate.loss.objective causal_lm", "Perplexity"),
        ("--data.train.source folder --data.train.source.path x", "Folder"),
        ("--data.train.transforms.0 flip", "Flip"),
        ("--tasks.new.objective triplet", "Triplet"),
        ("--tokenizer bpe", "BPE"),
        ("--weighting pcgrad", "PCGrad"),
        ("--optimizer lion", "Lion"),
    ],
)
def test_every_table_of_the_package_is_reached(flag, kind):
    made = set_fields(load_config("digits"), pairs(flag.split()))
    there = made
    for name in flag.split()[0].removeprefix("--").split("."):
        there = (
            there[int(name)]
            if isinstance(there, tuple)
            else there[name]
            if isinstance(there, Mapping)
            else getattr(there, name)
        )
    assert type(there).__name__ == kind
