"""TFDS through ArrayRecord, on a small builder written here; TensorFlow must stay out."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import TFDS, BadRecordError


def png(level):
    file = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), level, np.uint8)).save(file, "PNG")
    file.seek(0)
    return file


class TinyPets(tfds.core.GeneratorBasedBuilder):
    """Six examples to train on, two to test on."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "deep": tfds.features.Tensor(shape=(2, 2), dtype=np.uint16),
            "kind": tfds.features.Scalar(np.int64),
            "grey": tfds.features.Tensor(shape=(4, 3, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "caption": tfds.features.Text(),
            "captions": tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64}),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, download):
        return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            captions = [{"text": f"é {i} {j}", "id": j} for j in range(2)]
            grey = np.full((4, 3, 1), i, np.uint8)
            deep = np.full((2, 2), 1000 * i, np.uint16)
            more = {"caption": f"caption {i}", "captions": captions, "deep": deep, "kind": i % 3 - 2}
            yield i, {"image": png(i), "grey": grey, "label": i % 2, **more}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    builder = TinyPets(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return builder


def test_images_and_labels_from_a_prepared_directory(prepared):
    records = TFDS(str(prepared.data_dir)).build()
    assert records.classes == ("cat", "dog") and len(records) == 6 and list(records.texts()) == []
    levels = []
    for i in range(6):
        record = records[i]
        level = int(record["image"][0, 0, 0])
        levels.append(level)
        assert record["image"].shape == (6, 5, 3) and record["image"].dtype == np.uint8
        assert record["label"] == record["group"] == level % 2 and record["name"] == records.classes[level % 2]
    assert sorted(levels) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(records))[2]["image"], records[2]["image"])


def test_by_name_with_captions_and_slices(prepared):
    spec = TFDS("tiny_pets", data_dir=str(Path(prepared.data_dir).parent.parent), split="train[:4]", text_field="caption")
    records = spec.build()
    assert len(records) == 4
    record = records[0]
    assert record["text"] == f"caption {record['image'][0, 0, 0]}" and "group" not in record
    assert list(records.texts()) == [records[i]["text"] for i in range(4)]
    assert records.fingerprint() != TFDS(spec.name, spec.data_dir, "train[1:5]", text_field="caption").build().fingerprint()


def test_nested_captions_and_plain_arrays(prepared):
    records = TFDS(str(prepared.data_dir), "test", image_field="grey", label_field=None, text_field="captions/text").build()
    record = records[0]
    level = record["image"][0, 0, 0]
    assert record["image"].shape == (4, 3, 3) and record["text"] == (f"é {level} 0", f"é {level} 1")
    assert "label" not in record and records.classes == ()


def test_deep_arrays_windows_and_limits(prepared):
    records = TFDS(str(prepared.data_dir), image_field="deep", window=(0, 5100)).build()
    assert sorted(int(records[i]["image"][0, 0, 0]) for i in range(6)) == [0, 50, 100, 150, 200, 250]
    assert records[0]["image"].shape == (2, 2, 3)
    for field, count in (("deep", 4), ("image", 30)):
        with pytest.raises(BadRecordError, match=f"are {count} pixels, and max_pixels=3"):
            TFDS(str(prepared.data_dir), image_field=field, max_pixels=3).build()[0]
    with pytest.raises(UserError, match=r"TFDS\.window="):
        TFDS(str(prepared.data_dir), window=(1, 1)).build()


def test_a_negative_label_is_no_class(prepared):
    records = TFDS(str(prepared.data_dir), label_field="kind").build()
    found = [records[i] for i in range(6)]
    assert sorted(record["label"] for record in found) == [-1, -1, -1, -1, 0, 0]
    unlabelled = [record["group"] for record in found if record["label"] < 0]
    assert len(set(unlabelled)) == 4 and 0 not in unlabelled and max(unlabelled) < 2**31


def test_mistakes(prepared, tmp_path):
    here = str(prepared.data_dir)
    cases = [
        (TFDS(here, split="tset"), "TFDS.split='tset' is not a split (did you mean 'test'?): one of 'train', 'test'"),
        (TFDS(here, text_field="captoin"), "TFDS.text_field='captoin' is not a feature of"),
        (
            TFDS("tiny_pest"),
            "TFDS.name='tiny_pest': no dataset of that name, no prepared directory (did you mean 'tiny_pets'?)",
        ),
        (TFDS("tiny_pets", data_dir=str(tmp_path)), "not prepared in"),
        (TFDS(here, image_field=None), "neither an image nor a text_field"),
    ]
    for spec, message in cases:
        with pytest.raises(UserError) as raised:
            spec.build()
        assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_misspelt_dataset_is_answered_with_the_nearest_alone():
    with pytest.raises(UserError) as raised:
        TFDS("mnsit").build()
    assert str(raised.value).endswith("no prepared directory (did you mean 'mnist'?)")


def test_tensorflow_is_never_imported(prepared):
    program = f"""
import sys
from mmjax.data import TFDS
assert "tensorflow_datasets" not in sys.modules
records = TFDS({str(prepared.data_dir)!r}, text_field="caption").build()
assert records[0]["image"].shape == (6, 5, 3) and len(list(records.texts())) == 6
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
