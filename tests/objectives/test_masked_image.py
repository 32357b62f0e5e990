import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_forward import FakeForward, calls, fake_batch, fake_params, run

from mmjax.core.errors import UserError
from mmjax.core.random import example_uniform
from mmjax.objectives.masked_image import MaskedImage

KEY = jax.random.key(0)


def objective(**changes) -> MaskedImage:
    return MaskedImage(**{"patch": (1, 4), "mask_ratio": 0.5} | changes)  # the fake's image: 4 rows, each a patch


@pytest.mark.parametrize("norm_pixels", [False, True])
def test_the_loss_is_the_mean_squared_error_of_hidden_patches(norm_pixels):
    batch, spec, params = fake_batch(), objective(norm_pixels=norm_pixels), fake_params()
    loss = run(spec, batch, params)
    image = np.asarray(batch["image"], np.float64).reshape(8, 4, 12)
    noise = np.asarray(example_uniform(KEY, batch["index"], (4,)))
    seen, hidden = np.sort(noise.argsort(axis=1)[:, :2]), np.sort(noise.argsort(axis=1)[:, 2:])
    target = (image - image.mean(2, keepdims=True)) / np.sqrt(image.var(2, ddof=1, keepdims=True) + 1e-6)
    target = target if norm_pixels else image
    tokens = np.take_along_axis(image, seen[:, :, None], 1) @ np.asarray(params["encoders_image"], np.float64)
    painted = (tokens.mean(1) @ np.asarray(params["pixels"], np.float64)).reshape(8, 4, 12)
    errors = np.take_along_axis(((painted - target) ** 2).mean(2), hidden, 1)
    assert float(loss.count) == 8 * 2
    np.testing.assert_allclose(loss.sum, errors.sum(), rtol=1e-5)


def test_patches_are_read_row_by_row():
    image = np.arange(4 * 6 * 2, dtype=np.float32).reshape(1, 4, 6, 2)
    patches = objective(patch=(2, 3)).patches(image)
    assert patches.shape == (1, 4, 12)
    np.testing.assert_array_equal(patches[0, 1], image[0, :2, 3:].ravel())
    np.testing.assert_array_equal(patches[0, 2], image[0, 2:, :3].ravel())


def test_the_encoder_sees_what_is_not_hidden():
    batch = fake_batch()
    assert calls(objective(mask_ratio=0.75), batch) == [("encode image", (8, 4, 4, 3)), ("decode pixels", (8, 1, 4))]
    noise = np.asarray(example_uniform(KEY, batch["index"], (4,)))
    keep, hidden = objective(mask_ratio=0.4).choose(jnp.asarray(noise))  # 2.4 are left: 2
    np.testing.assert_array_equal(keep, noise.argsort(axis=1)[:, :2])
    np.testing.assert_array_equal(hidden.sum(1), 2)
    assert not np.any(np.take_along_axis(np.asarray(hidden), np.asarray(keep), 1))


def test_what_is_painted_is_what_the_encoder_is_shown():
    """Of an augmented image, the augmented pixels."""

    class Brighter(FakeForward):
        def view(self, modality):
            return super().view(modality) + 1.0

    batch, spec, params = fake_batch(), objective(norm_pixels=False), fake_params()
    noise = example_uniform(KEY, batch["index"], (4,))
    loss, painted = spec.paint(Brighter(batch, params), noise)
    errors = np.square(np.asarray(painted) - np.asarray(batch["image"]).reshape(8, 4, 12) - 1.0).mean(2)
    np.testing.assert_allclose(loss.sum, errors[np.asarray(spec.choose(noise)[1])].sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch": (3, 4)}, r"masked_image.patch=\(3, 4\) does not divide an image of 4 x 4 pixels"),
        ({"mask_ratio": 0.8}, "masked_image.mask_ratio=0.8: of 4 patches none would be left to see"),
        ({"patch": (2, 4)}, r"masked_image.patch=\(2, 4\): an image has \(2, 24\) patches x pixels, pixels has \(4, 12\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        calls(objective(**changes), fake_batch())


SHARES = [(0.9, 10, 1), (0.8, 5, 1), (0.9, 100, 10), (0.75, 10, 2), (0.7, 10, 3), (1e-9, 4, 3)]


@pytest.mark.parametrize(("ratio", "count", "kept"), SHARES)
def test_a_share_is_not_lost_to_rounding(ratio, count, kept):
    assert jax.eval_shape(lambda noise: objective(mask_ratio=ratio).choose(noise)[0], jnp.zeros((1, count))).shape == (1, kept)


class Painter:
    """A forward of videos whose decoder paints zeros, and which remembers what the encoder was shown."""

    train = True

    def __init__(self, batch):
        self.batch, self.keep = batch, None

    def view(self, key):
        return self.batch[key]

    def encode(self, modality, inputs=None, key=""):
        self.keep = inputs[f"{modality}_keep"]
        return

    def decode(self, decoder, inputs, context=None, key=""):
        image = inputs["video"]
        return jnp.zeros(video_objective().patches(image).shape)


def video_objective(**changes) -> MaskedImage:
    return MaskedImage(**{"patch": (2, 2), "tubelet": 2, "mask_ratio": 0.5, "modality": "video"} | changes)


VIDEO = np.random.default_rng(0).normal(size=(3, 6, 4, 4, 3)).astype(np.float32)


def test_of_a_video_tubes_are_hidden_and_frames_that_are_not_its_own_do_not_count():
    spec = video_objective(norm_pixels=False)
    mask = np.arange(6)[None] < np.array([[6], [4], [3]])
    batch = {"video": jnp.asarray(VIDEO), "video_mask": jnp.asarray(mask), "index": jnp.arange(3)}
    forward = Painter(batch)
    loss = spec(forward, batch, KEY)
    noise = np.asarray(example_uniform(KEY, batch["index"], (4,)))
    order = noise.argsort(axis=1)
    np.testing.assert_array_equal(forward.keep, np.concatenate([order[:, :2] + 4 * time for time in range(3)], axis=1))
    total, count = 0.0, 0
    for row, hidden in enumerate(order[:, 2:]):
        for time in range(3):
            if mask[row, 2 * time : 2 * time + 2].all():
                for place in hidden:
                    top, left = 2 * (place // 2), 2 * (place % 2)
                    own = VIDEO[row, 2 * time : 2 * time + 2, top : top + 2, left : left + 2]
                    total, count = total + (own.astype(np.float64) ** 2).mean(), count + 1
    assert float(loss.count) == count == 2 * (3 + 2 + 1)
    np.testing.assert_allclose(loss.sum, total, rtol=1e-5)
    free = video_objective(tubes=False)
    free(forward, batch, KEY)
    np.testing.assert_array_equal(forward.keep, np.asarray(example_uniform(KEY, batch["index"], (12,))).argsort(1)[:, :6])


def test_each_colour_of_a_patch_is_normalised_by_itself():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    found = np.asarray(video_objective(norm_channels=True, mean=mean, std=std).target(jnp.asarray(VIDEO)), np.float64)
    x = VIDEO.astype(np.float64) * std + mean
    own = x[:, 2:4, :2, 2:].reshape(3, 8, 3)  # the second tubelet's second patch
    wanted = (own - own.mean(1, keepdims=True)) / (own.std(1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(found[:, 4 + 1], wanted.reshape(3, -1), atol=1e-5)
    plain = np.asarray(video_objective(norm_pixels=False, mean=mean, std=std).target(jnp.asarray(VIDEO)))
    np.testing.assert_allclose(plain[:, 5], x[:, 2:4, :2, 2:].reshape(3, -1), atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (lambda: video_objective(tubelet=4), r"masked_image.tubelet=4 does not divide a video of 6 frames"),
        (lambda: video_objective(tubelet=0), r"masked_image.tubelet=0: video is \(3, 6, 4, 4, 3\), and a video has frames"),
        (lambda: video_objective(tubelet=-1), r"masked_image.tubelet=-1: use the frames of a patch of a video"),
        (lambda: video_objective(mean=(0.1,)), r"masked_image.mean=\(0.1,\) and std=\(\): give one for each colour in both"),
        (lambda: video_objective(mean=(0.1,), std=(0.2,)), r"masked_image.std=\(0.2,\): video has 3 colours"),
    ],
)
def test_what_no_video_can_be_is_refused(spec, said):
    with pytest.raises(UserError, match=said):
        spec().target(jnp.asarray(VIDEO))
