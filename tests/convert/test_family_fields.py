"""Every field of every family's config is honoured as HuggingFace does, refused by name, or changes nothing there either."""

import numpy as np
import pytest
import torch
import transformers
from cases import Together
from checks import check_folder, differ, each, expected, plain
from families import CASES
from parity import check_table, save

from mmjax.convert import FAMILIES
from mmjax.convert.family import Honoured, Inert, Only
from mmjax.convert.huggingface import build_model
from mmjax.core.config import leaves


def fields(case, kind):
    """The names of a family's own fields of one kind."""
    own = {name: field for name, field in FAMILIES[case.model_type].table().items() if isinstance(field, kind)}
    return own.keys() if kind is Honoured else own.keys() & FAMILIES[case.model_type].fields.keys()


@pytest.mark.parametrize("case", each(*[(case, ()) for case in CASES.values()], twins=True))
def test_every_field_is_honoured_refused_or_inert(case):
    check_table(case.model_type, getattr(transformers, case.models[0].name).config_class())
    honoured = {name for _, changes in (*case.honoured, *case.training) for name in changes} | {*case.elsewhere}
    if case.inherits:
        parent, group = case.inherits
        honoured |= {name.removeprefix(f"{group}.") for name in fields(parent, Honoured) if name.startswith(group)}
    assert fields(case, Honoured) == honoured
    tried = {name for _, changes in case.inert for name in changes}
    assert fields(case, Inert) == tried - fields(case, Honoured) | {*case.untried}
    assert fields(case, Only) == case.refused.keys()


@pytest.mark.parametrize(
    ("case", "made", "field", "value"),
    each(
        *[
            (case, made, field, value, (made.name, field if index == 0 else f"{field}={value}"))
            for case in CASES.values()
            for index, (made, changes) in enumerate(case.honoured)
            for field, value in changes.items()
        ]
    ),
)
def test_each_honoured_field_is_ours(case, made, field, value, tmp_path):
    _, _, usual = expected(case, made)
    theirs = case.make(made.of({field: value}))
    batch = case.batch(theirs)
    with torch.no_grad():
        answers = plain(case.theirs(made, theirs, batch))
    assert differ(case, batch, answers, usual), "changes nothing in the HuggingFace model"
    check_folder(case, save(theirs, tmp_path / "hf"), batch, answers)


@pytest.mark.parametrize("case", each(*[(case, ()) for case in CASES.values() if case.inherits]))
def test_a_tower_alone_takes_each_field_as_the_nested_one_does(case):
    parent, group = case.inherits
    (_, changes), *_ = parent.honoured
    training = {name: value for _, rates in parent.training for name, (value, _) in rates.items()}
    tried = 0
    for path, value in {**changes, **training}.items():
        name = path.removeprefix(f"{group}.")
        if path == name or isinstance(value, Together):
            continue
        alone, nested = {"model_type": case.model_type, **case.sizes}, {"model_type": parent.model_type, **parent.sizes}
        before = [without_config(build_model(config)[1]) for config in (alone, nested)]
        nested = {**nested, group: {**nested[group], name: value}}
        after = [without_config(build_model(config)[1]) for config in ({**alone, name: value}, nested)]
        own, its = ({p: x for p, x in new.items() if old[p] != x} for old, new in zip(before, after, strict=True))
        assert own == {p: x for p, x in its.items() if p in own.keys() | before[0].keys()} and own, name
        tried += 1
    assert tried > 8


def without_config(model):
    return {path: value for path, value in leaves(model).items() if not path.startswith("huggingface")}


@pytest.mark.parametrize(
    ("case", "made", "rates"),
    each(*[(case, made, rates, (made.name,)) for case in CASES.values() for made, rates in case.training]),
)
def test_what_acts_in_training_alone(case, made, rates):
    """Each rate sets these leaves of our model and no other; HuggingFace's own model then draws at random."""
    off = made.of(dict.fromkeys(rates, 0.0))
    before = without_config(our_model(case, off))
    for field, (value, paths) in rates.items():
        changed = off.of({field: value})
        after = without_config(our_model(case, changed))
        assert {path: x for path, x in after.items() if before[path] != x} == dict.fromkeys(paths, value), field
        theirs, batch, usual = expected(case, changed)
        with torch.no_grad():
            assert differ(case, batch, plain(case.theirs(changed, theirs.train(), batch)), usual), field
        theirs.eval()


def our_model(case, made):
    theirs = case.make(made)
    return build_model({**theirs.config.to_dict(), "architectures": [made.name]})[1]


@pytest.mark.parametrize(
    ("case", "made", "changes"),
    each(*[(case, made, changes, (made.name,)) for case in CASES.values() for made, changes in case.inert]),
)
def test_inert_fields_change_nothing(case, made, changes):
    """In HuggingFace's own model."""
    usual, batch, answers = expected(case, made)
    for field, value in changes.items():
        theirs = case.make(made.of({field: value}))
        theirs.load_state_dict(usual.state_dict(), strict=False)
        with torch.no_grad():
            found = plain(case.theirs(made, theirs, batch))
        assert all(np.array_equal(found[name], x) for name, x in answers.items()), field
