"""RandAugment and TrivialAugment against torchvision's PIL path, written out here by its calls of Pillow."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from pytorch import torch
from test_transform_spatial import assert_places_are_where_the_blob_is, assert_planes_are_where_the_colours_are, painted, scenes

from mmjax.core.errors import UserError
from mmjax.data import Data, Digits, Normalise, RandAugment, TrivialAugment
from mmjax.data.transforms.automatic import OPERATIONS, STRENGTHS, operate, strength

SIZE = (33, 46)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
SIGNED = (*GEOMETRIC, "brightness", "colour", "contrast", "sharpness")
RAND = {
    **dict.fromkeys(("shear_x", "shear_y"), 0.3),
    "translate_x": 150.0 / 331.0 * SIZE[1],
    "translate_y": 150.0 / 331.0 * SIZE[0],
    "rotate": 30.0,
    **dict.fromkeys(("brightness", "colour", "contrast", "sharpness"), 0.9),
}
WIDE = {
    **dict.fromkeys(("shear_x", "shear_y"), 0.99),
    **dict.fromkeys(("translate_x", "translate_y"), 32.0),
    "rotate": 135.0,
    **dict.fromkeys(("brightness", "colour", "contrast", "sharpness"), 0.99),
}


def magnitudes(wide):
    """Operation -> what torchvision's `_augmentation_space` gives it, in the terms of `_apply_op`."""
    found = {name: torch.linspace(0.0, most, STRENGTHS) for name, most in (WIDE if wide else RAND).items()}
    bits = 6 if wide else 4
    posterize = 8 - (torch.arange(STRENGTHS) / ((STRENGTHS - 1) / bits)).round().int()
    none = dict.fromkeys(("identity", "autocontrast", "equalize"), torch.zeros(STRENGTHS))
    return found | none | {"posterize": posterize, "solarize": torch.linspace(255.0, 0.0, STRENGTHS)}


def affine(image, translate, shear, center, resample, fill):
    """torchvision's `_get_inverse_affine_matrix` for angle 0 and scale 1, and `F_pil.affine`."""
    sx, sy = math.radians(shear[0]), math.radians(shear[1])
    (cx, cy), (tx, ty) = center, translate
    a, c = math.cos(-sy) / math.cos(sy), math.sin(-sy) / math.cos(sy)
    b = -math.cos(-sy) * math.tan(sx) / math.cos(sy) - math.sin(0.0)
    d = -math.sin(-sy) * math.tan(sx) / math.cos(sy) + math.cos(0.0)
    matrix = [d, -b, 0.0, -c, a, 0.0]
    matrix[2] += matrix[0] * (-cx - tx) + matrix[1] * (-cy - ty) + cx
    matrix[5] += matrix[3] * (-cx - tx) + matrix[4] * (-cy - ty) + cy
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)


def theirs(image, name, magnitude, resample=Image.Resampling.NEAREST, fill=(0, 0, 0)):
    """torchvision's `_apply_op`."""
    middle = [image.width * 0.5, image.height * 0.5]
    angle = math.degrees(math.atan(magnitude))
    if name == "shear_x":
        return affine(image, [0, 0], [angle, 0.0], [0, 0], resample, fill)
    if name == "shear_y":
        return affine(image, [0, 0], [0.0, angle], [0, 0], resample, fill)
    if name == "translate_x":
        return affine(image, [int(magnitude), 0], [0.0, 0.0], middle, resample, fill)
    if name == "translate_y":
        return affine(image, [0, int(magnitude)], [0.0, 0.0], middle, resample, fill)
    if name == "rotate":
        return image.rotate(magnitude, resample, fillcolor=fill)
    if name in ("posterize", "solarize"):
        return ImageOps.posterize(image, int(magnitude)) if name == "posterize" else ImageOps.solarize(image, magnitude)
    enhance = {"brightness": "Brightness", "colour": "Color", "contrast": "Contrast", "sharpness": "Sharpness"}
    if name in enhance:
        return getattr(ImageEnhance, enhance[name])(image).enhance(1.0 + magnitude)
    return {"identity": lambda x: x, "autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize}[name](image)


@pytest.mark.parametrize("wide", [False, True], ids=["rand", "trivial"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_at_every_strength_is_torchvisions(name, wide):
    low = (IMAGE // 3 + 40).astype(np.uint8)  # so that there is contrast to be stretched
    there = magnitudes(wide)[name].tolist()
    for step in range(STRENGTHS):
        for sign in (1, -1) if name in SIGNED else (1,):
            amount = magnitude = sign * strength(name, step, wide, SIZE)
            if name in ("posterize", "solarize"):
                magnitude = {"posterize": 8, "solarize": 255}[name] - amount
            np.testing.assert_allclose(magnitude, sign * there[step], rtol=3e-7)  # torch's own are float32
            for pixels in (IMAGE, low):
                found = operate({"image": pixels}, "it", "image", name, amount, "nearest", (1, 2, 3))["image"]
                expected = theirs(Image.fromarray(pixels), name, magnitude, fill=(1, 2, 3))
                np.testing.assert_array_equal(found, np.asarray(expected), err_msg=f"{step} {amount}")


def test_a_square_turned_by_a_quarter_and_another_filter():
    square = Image.fromarray(IMAGE[:32, :32])
    for name, amount, resample in (("rotate", 90.0, "nearest"), ("rotate", -33.0, "bilinear"), ("shear_x", 0.4, "bicubic")):
        found = operate({"image": IMAGE[:32, :32]}, "it", "image", name, amount, resample, (0, 0, 0))["image"]
        how = getattr(Image.Resampling, resample.upper())
        np.testing.assert_array_equal(found, np.asarray(theirs(square, name, amount, how)))


def test_values_by_their_formulas():
    def changed(name, amount):
        return operate({"image": IMAGE}, "it", "image", name, amount, "nearest", (0, 0, 0))["image"].astype(int)

    x = IMAGE.astype(int)
    np.testing.assert_array_equal(changed("posterize", 3.0), x // 8 * 8)
    np.testing.assert_array_equal(changed("solarize", 100.0), np.where(x < 155, x, 255 - x))
    assert np.abs(changed("brightness", -0.25) - x * 0.75).max() <= 1
    luma = x @ [0.299, 0.587, 0.114]
    assert np.abs(changed("colour", -0.5) - (x + luma[..., None]) / 2).max() <= 1.5
    assert np.abs(changed("contrast", -0.5) - (x + luma.mean()) / 2).max() <= 1.5


STRONG = {"shear_x": 0.99, "shear_y": 0.99, "translate_x": 9, "translate_y": 9, "rotate": 135}


@pytest.mark.parametrize("name", GEOMETRIC)
@settings(max_examples=30, deadline=None)
@given(scene=scenes(), share=st.floats(-1, 1))
def test_what_lies_over_an_image_moves_with_its_pixels(name, scene, share):
    height, width, (top, left, high, wide) = scene
    amount = share * STRONG[name]
    record = painted(height, width, scene[2])
    after = operate(record, "it", "image", name, amount, "nearest", (0, 0, 0))
    told = assert_planes_are_where_the_colours_are(after)  # pixel by pixel, what comes from outside included
    if name.startswith("translate"):
        assert_places_are_where_the_blob_is(told, after)
    x, y = left + wide / 2, top + high / 2
    if name == "rotate":
        cos, sin = math.cos(math.radians(amount)), math.sin(math.radians(amount))
        x, y = x - width / 2, y - height / 2
        x, y = cos * x + sin * y + width / 2, cos * y - sin * x + height / 2
        half_x, half_y = (abs(cos) * wide + abs(sin) * high) / 2, (abs(sin) * wide + abs(cos) * high) / 2
    else:
        shear_x, shear_y = (amount * (name == way) for way in ("shear_x", "shear_y"))
        shift_x, shift_y = (math.trunc(amount) * (name == way) for way in ("translate_x", "translate_y"))
        half_x, half_y = (wide + abs(shear_x) * high) / 2, (high + abs(shear_y) * wide) / 2
        x, y = x - shear_x * y + shift_x, y - shear_y * x + shift_y
    box = np.clip([x - half_x, y - half_y, x + half_x, y + half_y], 0, [width, height, width, height])
    if min(box[2:] - box[:2]) > 1e-3:
        np.testing.assert_allclose(after["image_boxes"][0], box, atol=1e-4)
    inside = min(x, y, width - x, height - y)
    if abs(inside) > 1e-3:
        np.testing.assert_allclose(after["image_points"][1], [x, y] if inside > 0 else [-1, -1], atol=1e-4)
    assert (after["image_boxes"][1] == -1).all() and (after["image_points"][0] == -1).all()


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in GEOMETRIC])
def test_colours_are_changed_in_the_image_alone(name):
    record = painted(9, 8, (1, 1, 3, 3))
    after = operate(record, "it", "image", name, 0.5, "nearest", (0, 0, 0))
    assert all(after[key] is record[key] for key in record if key != "image") and after.keys() == record.keys()


def test_operations_signs_and_strengths_are_drawn_evenly(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "mmjax.data.transforms.automatic.operate", lambda record, *rest: drawn.append((rest[2], rest[3])) or record
    )
    rng = np.random.default_rng(0)
    for _ in range(2000):
        RandAugment(3, 30)({"image": IMAGE}, rng, ())
    names = [name for name, _ in drawn]
    assert len(drawn) == 6000 and all(350 < names.count(name) < 510 for name in OPERATIONS)
    turns = [amount for name, amount in drawn if name == "rotate"]
    assert set(turns) == {30.0, -30.0} and abs(sum(turns)) / 30 < 80
    drawn.clear()
    for _ in range(6000):
        TrivialAugment(("shear_x",))({"image": IMAGE}, rng, ())
    amounts = np.array([amount for _, amount in drawn])
    counts = np.bincount(np.rint(np.abs(amounts) / 0.99 * 30).astype(int), minlength=31)
    assert counts.min() > 130 and counts.max() < 260 and 0.46 < (amounts[amounts != 0] > 0).mean() < 0.54


def test_a_large_turn_does_not_make_a_text_false():
    turn = TrivialAugment(("rotate",))
    seeds = range(60)
    plain, held = ([turn({"image": IMAGE, "text": text}, np.random.default_rng(s), ())["image"] for s in seeds]
                   for text in ("a cat", "a cat above a mat"))  # fmt: skip
    moved = [not np.array_equal(image, IMAGE) for image in plain]
    alike = [np.array_equal(a, b) for a, b in zip(plain, held, strict=True)]
    assert sum(moved) > 50 and 10 < sum(alike) < 32, "turns of up to 45 degrees of 135 are the same"
    assert all(same or np.array_equal(image, IMAGE) for same, image in zip(alike, held, strict=True))


def test_in_a_pipeline_and_after_normalise():
    changes = (RandAugment(2, 9), TrivialAugment())
    batch = Data(Digits(), (*changes, Normalise()), batch_size=4, threads=0).build(None, 0).batch(0)
    assert batch["image"].shape == (4, 8, 8, 3)
    with pytest.raises(UserError, match=r"RandAugment needs a uint8 image, not float32: put it before Normalise"):
        Data(Digits(), (Normalise(), *changes)).build(None, 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandAugment(count=0), "RandAugment.count=0: use a number from 1"),
        (lambda: RandAugment(magnitude=31), "RandAugment.magnitude=31: use a number from 0 and up to 30"),
        (lambda: RandAugment(operations=()), r"RandAugment.operations=\(\): give a tuple of one or more of identity, shear_x"),
        (lambda: RandAugment(operations=("sheer_x",)), r"'sheer_x' is none \(did you mean 'shear_x'\?\)"),
        (
            lambda: TrivialAugment(resample="lanczos"),
            "TrivialAugment.resample='lanczos': use one of nearest, bilinear",
        ),
        (lambda: TrivialAugment(fill=(0, 0, 256)), r"TrivialAugment.fill=\(0, 0, 256\): give three whole numbers"),
        (lambda: TrivialAugment(placed="left"), "TrivialAugment.placed='left': give a tuple of words"),
    ],
)
def test_mistakes(build, message):
    with pytest.raises(UserError, match=message):
        build()
