"""Whole records in examples: whatever a record holds comes back equal, also its types."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from mmjax.data import BadRecordError
from mmjax.data.files.tf_example import example_bytes, parse_example
from mmjax.data.sources.prepared import Kept, Prepared, example_of, unreadable_of

PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters())),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(st.text(), inner, max_size=2)
    ),
    max_leaves=4,
)
ARRAYS = arrays.arrays(
    st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_]),
    arrays.array_shapes(min_dims=0, min_side=0),
)
IMAGES = arrays.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(3)))
RECORDS = st.dictionaries(st.text(max_size=5).filter(lambda key: key != "mmjax"), st.one_of(PLAIN, ARRAYS, IMAGES), max_size=4)


def back(values):
    return Kept()(parse_example(example_bytes(values)), "here")


def alike(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    return type(a) is type(b) and (a == b or (a != a and b != b))


@given(RECORDS)
def test_a_record_comes_back_equal(record):
    values, image = example_of(record)
    assert alike(record, back(values)) and image in ("", "png")
    assert example_bytes(values) == example_bytes(example_of(record)[0])


def test_scalars_of_numpy_and_surrogates_come_back():
    record = {
        "a": np.float32(0.1),
        "b": np.int64(3),
        "text": "half \ud800",
        "words": ("\udc00", ""),
        "one": ("x",),
        "big": 2**70,
    }
    found = back(example_of(record)[0])
    assert found == record and all(type(found[key]) is type(record[key]) for key in record)


def test_a_file_is_kept_only_where_it_tells_the_same_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    files = {}
    for kind in ("PNG", "JPEG"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        files[kind] = file.getvalue()
    values, image = example_of({"image": pixels, "thermal": pixels}, files["PNG"])
    assert image == "file" and values["image"] == files["PNG"]
    for other in (files["JPEG"], b"broken", None):
        values, image = example_of({"image": pixels}, other)
        assert image == "png" and np.array_equal(back(values)["image"], pixels)


def test_one_that_could_not_be_read_cannot_be_read_here():
    values = unreadable_of(BadRecordError("a/b.png", "not an image"), 2, ("one", "two"))
    with pytest.raises(BadRecordError) as raised:
        back(values)
    assert (raised.value.path, raised.value.reason) == ("a/b.png", "not an image")
    told = Kept().only({"label", "text", "text_pair"})(parse_example(example_bytes(values)), "here")
    assert told == {"label": 2, "text": ("one", "two")}


@pytest.mark.parametrize(
    "values",
    [{"text": "a"}, {"mmjax": "{}"}, {"mmjax": "["}, {"mmjax": '{"keys": {"x": "array"}}'}]
    + [{"mmjax": f'{{"keys": {{"x": "{kind}"}}}}', "x": b"\xff"} for kind in ("array", "text", "image", "int", "tuple")],
)
def test_what_is_no_such_record_is_unreadable(values):
    with pytest.raises(BadRecordError):
        back(values)


@given(st.integers(1, 500), st.integers(1, 40))
def test_shards_hold_each_record_once_and_in_order(size, shards):
    about = Prepared("f", "{}", size, shards, ())
    places = [place for shard in range(shards) for place in about.places(shard)]
    assert places == list(range(size))
    sizes = {len(about.places(shard)) for shard in range(shards)}
    assert max(sizes) - min(sizes) <= 1
    assert [about.name(shard) for shard in range(shards)] == sorted(about.name(shard) for shard in range(shards))
