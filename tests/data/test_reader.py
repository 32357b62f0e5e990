"""The reader alone: partners that cannot be read, and the search for unreadable records."""

import dataclasses
import pickle
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import BadRecordError, Data, Flip, Folder, Normalise, RandomCrop
from mmjax.data.lacking import Lacking
from mmjax.data.order import Draws, Order
from mmjax.data.reader import Partners, Reader, spaced


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Records of their own index, some of which cannot be read; it is its own source."""

    size: int
    bad: tuple[int, ...] = ()
    classes: tuple[str, ...] = ("a",)

    def build(self):
        return self

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.bad:
            raise BadRecordError(f"{index}.jpg", "truncated")
        return {"value": index}

    def texts(self):
        return iter(("text",))

    def fingerprint(self):
        return "numbers"


@dataclasses.dataclass(frozen=True)
class Mix:
    """Adds the value of a record that is drawn."""

    def __call__(self, record, rng, records):
        return {**record, "other": records[int(rng.integers(len(records)))]["value"], "drawn": float(rng.random())}


def batches(bad, steps=60, **fields):
    dataset = Data(Numbers(100, bad), (Mix(),), batch_size=8, threads=0, bad_record_limit=0.5, **fields).build(None, 0)
    return [dataset.batch(step) for step in range(steps)], dataset


def test_an_unreadable_partner_is_replaced_and_moves_nothing_else():
    clean, _ = batches(())
    found, dataset = batches((3,))
    assert dataset.bad == {"3.jpg": "truncated"}
    met = 0
    for before, after in zip(clean, found, strict=True):
        same = (before["value"] != 3) & (before["other"] != 3)
        for key in ("value", "other", "drawn"):
            np.testing.assert_array_equal(after[key][same], before[key][same])
        partner = (before["value"] != 3) & (before["other"] == 3)
        np.testing.assert_array_equal(after["value"][partner], before["value"][partner])
        np.testing.assert_array_equal(after["drawn"][partner], before["drawn"][partner])
        assert 3 not in after["other"] and 3 not in after["value"]
        met += partner.sum()
    assert met
    again, _ = batches((3,))
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one["other"], other["other"])


def test_a_record_whose_partner_is_replaced_stays_valid():
    dataset = Data(Numbers(100, (3,)), (Mix(),), batch_size=100, threads=0, bad_record_limit=0.5).build(None, 0)
    reader = dataset._reader
    for index in range(100):
        reader.record(index, index, Draws(0, "pass"))
    with dataset.epoch() as epoch:
        batch = next(epoch)
    assert batch["valid"].sum() == 99 and not batch["valid"][3]


def test_partners_are_the_records_otherwise():
    records = Numbers(10, (3,))
    partners = Partners(records, Order(10, 0, True), {}, 0, Lacking({}))
    assert (len(partners), partners.classes, partners.bad, partners.fingerprint()) == (10, ("a",), (3,), "numbers")
    assert list(partners.texts()) == ["text"] and partners[4] == {"value": 4}
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = partners.nothing_of_the_kind
    with pytest.raises(IndexError):
        _ = Partners([], Order(1, 0, True), {}, 0, Lacking({}))[0]
    assert pickle.loads(pickle.dumps(Reader(records, (Mix(),), Order(10, 0, True)))).records == records


def test_partners_that_can_none_be_read():
    with pytest.raises(UserError, match=r"64 records drawn in a row cannot be read; the first: 5.jpg \(truncated\)"):
        Partners(Numbers(10, tuple(range(10))), Order(10, 0, True), {}, 0, Lacking({}))[5]


def test_unreadable_records_are_found_in_their_order():
    reader = Reader(Numbers(1000, (999, 7, 500)), (Mix(),), Order(1000, 0, True))
    wanted = {f"{index}.jpg": "truncated" for index in (7, 500, 999)}
    assert list(reader.unreadable(1000).items()) == list(wanted.items())
    assert reader.unreadable(2) == {"999.jpg": "truncated"}


def test_evenly_spaced():
    assert spaced(3, 3) == [0, 1, 2] and spaced(10, 5) == [1, 3, 5, 7, 9] and spaced(10, 1) == [9]
    for size in (7, 100, 101):
        found = spaced(size, 6)
        gaps = np.diff(found)
        assert len(found) == 6 and found[-1] == size - 1 and gaps.max() - gaps.min() <= 1 and found[0] >= 0


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Large arrays and small ones, of which `odd` has a shape of its own."""

    odd: int = -1
    kept: Any = None
    random: ClassVar[bool] = False

    def __call__(self, record, rng, records):
        height = 200 if record["value"] == self.odd else 140
        large = np.full((height, 150), record["value"], np.float32)
        self.kept.append(large)
        return {**record, "large": large, "small": np.full(3, record["value"], np.float32), "copy": large[:, :140]}


@pytest.mark.parametrize("cache_mb", [0, 256])
def test_large_arrays_are_laid_where_the_batch_has_them_and_shared_with_nobody(cache_mb):
    kept = []
    dataset = Data(Numbers(10, (3,)), (Arrays(kept=kept),), batch_size=4, bad_record_limit=0.5, cache_mb=cache_mb).build(
        None, 0
    )
    first, again = dataset.batch(1), dataset.batch(1)
    for key in ("large", "small", "copy"):
        expected = np.broadcast_to(first["value"].reshape(-1, *[1] * (first[key].ndim - 1)), first[key].shape)
        np.testing.assert_array_equal(first[key], expected)
        assert not np.shares_memory(first[key], again[key])
        assert not any(np.shares_memory(first[key], array) for array in kept)
    assert first["large"].flags.c_contiguous and first["large"].base is None
    assert dataset.batch(0, rows=[1, 3])["large"].shape == (2, 140, 150)


def test_a_large_array_of_another_shape_is_named():
    dataset = Data(Numbers(10), (Arrays(4, []),), batch_size=10, shuffle=False).build(None, 0)
    with pytest.raises(UserError, match="large: a record's is 200x150 float32, the first record's 140x150"):
        dataset.batch(0)


@dataclasses.dataclass(frozen=True)
class Views:
    """Arrays that are views of one of the user's own, in another order of dims, of one row, or of another byte order."""

    whole: np.ndarray
    how: str

    def __call__(self, record, rng, records):
        own = self.whole[record["value"]]
        return {
            **record,
            "x": {"turned": own.T, "one": np.broadcast_to(own[:1], own.shape), "big": own.astype(">f4")}[self.how],
        }


@pytest.mark.parametrize("side", [3, 200])
@pytest.mark.parametrize("how", ["turned", "one", "big"])
def test_views_of_the_users_array_are_copied_as_they_are_seen(how, side):
    whole = np.random.default_rng(0).normal(size=(4, side, side)).astype(np.float32)
    dataset = Data(Numbers(4), (Views(whole, how),), batch_size=4, shuffle=False).build(None, 0)
    expected = {"turned": whole.transpose(0, 2, 1), "one": np.broadcast_to(whole[:, :1], whole.shape), "big": whole}[how]
    for batch in (dataset.batch(0), next(iter(dataset.epoch()))):
        np.testing.assert_array_equal(batch["x"], expected)
        assert batch["x"].dtype.isnative and not np.shares_memory(batch["x"], whole)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Of noise; the third is no picture any more."""

    odd: bool = False
    classes: tuple[str, ...] = ()

    def build(self):
        return self

    def __len__(self):
        return 6

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, (160, 150, 3), np.uint8)
        return {"image": image[:, : 150 - 10 * (self.odd and index == 2)]}

    def texts(self):
        return iter(())

    def fingerprint(self):
        return "pictures"


@pytest.mark.parametrize("size", [(160, 150), (8, 9)])  # large, and as small as is stacked at the end
def test_the_last_transform_writes_where_the_batch_has_it(size):
    transforms = (RandomCrop(size, scale=(1.0, 1.0)), Flip(), Normalise((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    dataset = Data(Pictures(), transforms, batch_size=4, threads=0).build(None, 0)
    batch = dataset.batch(3)
    indices, places = dataset._reader.order.indices(12, 16), range(12, 16)
    for row, (index, place) in enumerate(zip(indices, places, strict=True)):  # each by itself, in an array of its own
        alone, _ = dataset._reader.record(index, place, dataset._reader.order.draws())
        np.testing.assert_array_equal(batch["image"][row], alone["image"])
    assert batch["image"].dtype == np.float32


def test_a_picture_of_another_size_is_named_where_the_last_transform_writes_too():
    dataset = Data(Pictures(odd=True), (Flip(), Normalise()), batch_size=6, threads=0).build(None, 0)
    with pytest.raises(UserError, match="image"):
        dataset.batch(0)


class Darker(Normalise):
    """A user's, made of ours."""

    def __call__(self, record, rng, records):
        return {"image": super().__call__(record, rng, records)["image"] - 3}


class Corner(RandomCrop):
    """Another."""

    def __call__(self, record, rng, records):
        return {"image": np.array(record["image"][:8, :9])}


def test_a_transform_made_of_ours_does_what_it_says(tmp_path):
    ours = Data(Pictures(), (Flip(0.0), Normalise()), batch_size=4, threads=0).build(None, 0).batch(0)["image"]
    theirs = Data(Pictures(), (Flip(0.0), Darker()), batch_size=4, threads=0).build(None, 0).batch(0)["image"]
    np.testing.assert_array_equal(theirs, ours - 3)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for number in range(8):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{number}.png")
    data = Data(Folder(str(tmp_path), "all"), (Corner((8, 9)), Normalise()), batch_size=4, threads=0)
    np.testing.assert_allclose(data.build(None, 0).batch(0)["image"][0], pixels[:8, :9] / 127.5 - 1, atol=1e-6)
