import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import pytest

from mmjax.core.config import check_ranges, differences, from_json, leaves, load_class, replace, setting, to_json
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.heads import TokenClassifier
from mmjax.train.config_file import apply_flags, load_config, shipped_configs

HERE = __name__


@dataclasses.dataclass(frozen=True)
class Small:
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Large:
    size: int = 300
    names: tuple[str, ...] = ("a",)


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


def test_leaves_are_listed_by_dotted_path_in_order():
    found = leaves(Everything())
    assert list(found)[:3] == ["count", "rate", "name"]
    assert found["part.size"] == 3
    assert found["parts.two.size"] == 2
    assert found["chain.1.names"] == ("a",)
    assert found["maybe"] is None
    assert "part" not in found


def test_leaves_of_a_linen_module_are_its_own_fields():
    found = leaves(model())
    assert found["encoders.image.patch"] == (2, 2)
    assert not any(path.split(".")[-1] in ("parent", "name") for path in found)


@dataclasses.dataclass(frozen=True)
class Ranged:
    share: float = setting(least=0, below=1, default=0.5)
    count: int = setting(least=1, default=1)
    sizes: tuple[int, ...] = setting(least=1, most=9, default=(1, 2))
    rate: float = setting(above=0, below=math.inf, default=1.0)
    maybe: float | None = setting(least=0, default=None)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("share", 1.0, "use a number from 0 and below 1"),
        ("share", -0.1, "use a number from 0 and below 1"),
        ("share", math.nan, "use a number from 0 and below 1"),
        ("count", 0, "use a number from 1"),
        ("sizes", (3, 10), "use a number from 1 and up to 9"),
        ("rate", 0, "use a finite number above 0"),
        ("rate", math.inf, "use a finite number above 0"),
        ("maybe", -1, "use a number from 0"),
    ],
)
def test_a_number_out_of_the_range_of_its_field(field, value, said):
    spec = {"parts": {"a": (Ranged(), Ranged(**{field: value}))}}
    with pytest.raises(UserError) as error:
        check_ranges(spec)
    assert str(error.value) == f"parts.a.1.{field}={value}: {said}"


def test_numbers_within_their_ranges():
    check_ranges(Ranged())
    check_ranges(Ranged(share=0, count=1, sizes=(1, 9), rate=1e-9, maybe=0.0))


@pytest.mark.parametrize("name", shipped_configs())
def test_the_numbers_of_a_shipped_config_are_in_range(name):
    check_ranges(load_config(name))


def test_load_class_explains_what_it_cannot_find():
    with pytest.raises(UserError, match=r"f no_such_module:X: cannot import 'no_such_module'"):
        load_class("no_such_module:X", "f")
    with pytest.raises(UserError, match=rf"'{HERE}' has no 'Lareg' \(did you mean 'Large'\?\)"):
        load_class(f"{HERE}:Lareg", "f")
    with pytest.raises(UserError, match="a spec must be a dataclass"):
        load_class("fractions:Fraction", "f")
    assert load_class("mmjax.models.encoders.vit:ViT", "f") is ViT


def test_json_round_trip_of_every_kind_of_field():
    spec = replace(Everything(fill=0.5, words=("a", "b")), "part", Large())
    data = json.loads(json.dumps(to_json(spec)))
    assert data["_class"] == f"{HERE}:Everything"
    assert data["part"] == {"_class": f"{HERE}:Large", "size": 300, "names": ["a"]}
    assert from_json(data) == spec


def test_json_of_a_linen_module_builds_it_again():
    back = from_json(json.loads(json.dumps(to_json(model()))))
    assert isinstance(back.encoders["image"], ViT)
    assert leaves(back) == leaves(model())


def test_from_json_fills_defaults_and_names_unknown_fields():
    assert from_json({"_class": f"{HERE}:Small"}) == Small()
    with pytest.raises(UserError, match=r"config\.part\.sise: Small has no such field \(did you mean 'size'\?\)"):
        from_json({"_class": f"{HERE}:Everything", "part": {"_class": f"{HERE}:Small", "sise": 2}})


@pytest.mark.parametrize("value", [jnp.float32, len, {1, 2}])
def test_to_json_refuses_what_json_cannot_hold(value):
    with pytest.raises(UserError, match=r"cannot be written to config\.json"):
        to_json(Everything(free=value))


def test_differences_lists_changed_added_and_removed_leaves():
    new = Everything(count=2, part=Large(), parts={"one": Small(1)}, chain=(Small(11), Large()))
    assert differences(Everything(), new) == [
        "chain.0.size: 10 -> 11",
        "count: 1 -> 2",
        f"part._class: '{HERE}:Small' -> '{HERE}:Large'",
        "part.names: 'absent' -> ['a']",
        "part.size: 3 -> 300",
        f"parts.two._class: '{HERE}:Small' -> 'absent'",
        "parts.two.size: 2 -> 'absent'",
    ]
    assert differences(Everything(), Everything()) == []


def test_differences_ignores_whole_names_only():
    assert differences(Everything(), Everything(count=2, part=Small(9)), ignore=("part",)) == ["count: 1 -> 2"]
    assert differences(Everything(), Everything(parts={"one": Small(9), "two": Small(2)}), ignore=("part",)) == [
        "parts.one.size: 1 -> 9"
    ]


# The shipped configs, which hold every kind of spec there is.


@pytest.mark.parametrize("name", shipped_configs())
def test_the_leaves_of_a_shipped_config_survive_json(name):
    experiment = load_config(name)
    back = from_json(json.loads(json.dumps(to_json(experiment))))
    assert leaves(back) == leaves(experiment)
    assert differences(experiment, back) == []


def test_parts_shared_by_name_stay_shared_after_a_flag_and_after_json():
    experiment = load_config("digits")
    changed = apply_flags(experiment, ["--model.encoders.text.width", "32", "--steps=7"])
    assert len(leaves(changed)) == len(leaves(experiment))
    assert changed.model.heads["masked_lm"].tied_to == "text"
    assert differences(experiment, changed) == ["model.encoders.text.width: 64 -> 32", "steps: 1200 -> 7"]
