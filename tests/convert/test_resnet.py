"""ResNet's running statistics beside its parameters: in a tower, as a teacher, and what cannot be kept."""

import jax
import numpy as np
import pytest
from families.resnet import BASIC, CLASSES, RESNET
from parity import save
from safetensors.numpy import load_file, save_file

from mmjax.convert import load, save_hf
from mmjax.convert.teaching import teacher
from mmjax.convert.towers import towers
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.parallel.mesh import Mesh

KEPT = "variables/statistics/encoders_image/stem/norm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(RESNET.make(CLASSES.of(BASIC)), tmp_path_factory.mktemp("resnet") / "hf")


def test_a_tower_takes_its_statistics_with_it(folder, tmp_path):
    model, params = load(folder)
    whole = model.copy(heads={}, huggingface={})
    found, left = towers(whole, params)
    assert found["image"].architecture == "ResNetModel" and left == []
    save_hf(found["image"].model, found["image"].params, tmp_path / "image")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "image" / "model.safetensors")
    assert {f"resnet.{name}" for name in after} == {name for name in before if not name.startswith("classifier")}
    for name, x in after.items():
        assert x.dtype == before[f"resnet.{name}"].dtype
        np.testing.assert_array_equal(x, before[f"resnet.{name}"])


def test_another_norm_or_inner_activation_cannot_be_written(folder, tmp_path):
    model, params = load(folder)
    for field, value in (("norm", "group"), ("inner_activation", "gelu"), ("norm_epsilon", 1e-3)):
        other = model.copy(encoders={"image": model.encoders["image"].copy(**{field: value})})
        with pytest.raises(UserError, match=rf"model.encoders.image.{field}={value!r} has no place in ResNetFor"):
            save_hf(other, params, tmp_path / "back")


def test_as_a_teacher_it_is_kept_narrow_and_its_statistics_are_not(folder):
    known = teacher(str(folder))
    mesh = Mesh(data=1).build(jax.devices()[:1])
    found = leaves_by_path(known.read(mesh, "bfloat16", ("encoders_image", "heads_classes")))
    expected = leaves_by_path(known.shapes("bfloat16"))
    assert {path: (x.shape, x.dtype) for path, x in found.items()} == {p: (x.shape, x.dtype) for p, x in expected.items()}
    assert found[f"{KEPT}/mean"].dtype == np.float32 and found[f"{KEPT}/batches"] == 7


@pytest.mark.parametrize(("value", "said"), [(np.int64(2**31), r"2147483648 \(int64\)"), (np.float32(7), r"7.0 \(float32\)")])
def test_a_count_that_cannot_be_kept_is_refused(value, said, folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors["resnet.embedder.embedder.normalization.num_batches_tracked"] = np.asarray(value)
    (tmp_path / "config.json").symlink_to(folder / "config.json")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"a count of {said} cannot be kept: it must be a whole number below 2147483648"):
        load(tmp_path)
