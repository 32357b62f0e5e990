"""Which keys lie over which image."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.spatial import KINDS, image_of, over

NAMES = st.from_regex(r"[a-z]{1,6}(_[a-z]{1,6})?", fullmatch=True)


def test_each_kind_is_found_alone_and_with_a_name_and_in_the_order_of_the_keys():
    keys = ["image_points_left", "image", "image_mask", "image_map_depth", "label", "image_boxes"]
    found = over("image", keys)
    assert found == {"image_points_left": "points", "image_mask": "mask", "image_map_depth": "map", "image_boxes": "boxes"}
    assert list(found) == ["image_points_left", "image_mask", "image_map_depth", "image_boxes"]


@pytest.mark.parametrize("key", ["image_id", "image_maps", "image_masked", "image_keep", "map", "mask", "image_", "other_map"])
def test_what_only_looks_like_it_does_not_lie_over_an_image(key):
    assert over("image", [key]) == {}
    assert image_of(key, ["image"]) is None


def test_an_image_is_told_from_another_whose_name_ends_in_its_own():
    images = ["image", "left_image"]
    assert image_of("left_image_map", images) == "left_image"
    assert image_of("image_map", images) == "image"
    assert image_of("image", images) is None
    assert over("image", ["left_image_map"]) == {}


@given(image=NAMES, kind=st.sampled_from(KINDS), name=st.none() | NAMES)
def test_both_ways_agree_on_any_names(image, kind, name):
    key = f"{image}_{kind}" + (f"_{name}" if name else "")
    assert over(image, [key, image, "label"]) == {key: kind}
    assert image_of(key, [image]) == image
