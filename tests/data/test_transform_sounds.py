import dataclasses

import numpy as np
import pytest
from sounds import encoded, tone

from mmjax.core.errors import UserError
from mmjax.data import Audio, Data, Gain, Shift, SoundNoise, Speed
from mmjax.data.sound import Heard
from mmjax.data.transforms import TRANSFORMS

RATE = 8_000
X = tone(0.5, RATE, 500.0, 0.25)


def changed(transform, x=X, seed=0, key="audio"):
    record = {key: x, f"{key}_heard": Heard(RATE, len(x) / RATE), "label": 3}
    found = transform(record, np.random.default_rng(seed), None)
    assert found[key].dtype == np.float32 and found["label"] == 3 and record[key] is x
    return found[key]


@pytest.mark.parametrize("ratio", [-10.0, 0.0, 20.0])
def test_noise_is_as_loud_as_was_asked(ratio):
    noise = changed(SoundNoise((ratio, ratio))) - X
    assert 10 * np.log10(np.mean(X.astype(float) ** 2) / np.mean(noise.astype(float) ** 2)) == pytest.approx(ratio, abs=1e-3)
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.06, "white"
    assert not changed(SoundNoise((ratio, ratio)), np.zeros(100, np.float32)).any(), "silence stays silent"
    np.testing.assert_array_equal(changed(SoundNoise(probability=0.0)), X)


def test_noise_of_files(tmp_path):
    pytest.importorskip("soundfile", reason="noise is read by it: pip install 'mmjax[audio]'")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "hum.wav").write_bytes(encoded(tone(0.1, RATE, 50.0), RATE))
    noise = changed(SoundNoise((0.0, 0.0), str(tmp_path))) - X
    np.testing.assert_allclose(noise[:800], noise[800:1600], atol=1e-6)
    assert np.argmax(np.abs(np.fft.rfft(noise))) == 25 and np.mean(noise**2) == pytest.approx(np.mean(X**2), rel=1e-3)
    for folder, said in ((tmp_path / "none", "no such folder"), (tmp_path / "empty", "no sounds in it")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=rf"SoundNoise\.noises='.*': {said}"):
            changed(SoundNoise(noises=str(folder)))


def test_gain_is_of_decibels():
    np.testing.assert_allclose(changed(Gain((20.0, 20.0))), 10 * X, rtol=1e-6)
    levels = [20 * np.log10(changed(Gain((-6.0, 6.0)), seed=n)[1] / X[1]) for n in range(40)]
    assert -6 < min(levels) < -4 and 4 < max(levels) < 6


def test_shift_moves_and_keeps_the_length():
    x = np.arange(1, 101, dtype=np.float32)
    seen = set()
    for seed in range(60):
        moved = changed(Shift(5 / RATE), x, seed)
        by = int(np.flatnonzero(moved == x[50])[0]) - 50
        want = np.concatenate([np.zeros(max(0, by)), x, np.zeros(max(0, -by))])[max(0, -by) :][:100]
        np.testing.assert_array_equal(moved, want)
        seen.add(by)
    assert seen == set(range(-5, 6))
    assert len(changed(Shift(5.0), x[:1])) == 1


def test_speed_changes_the_pitch_and_the_length():
    pytest.importorskip("soxr", reason="sounds are resampled by it: pip install 'mmjax[audio]'")
    faster = changed(Speed((1.25,)))
    assert len(faster) == 3_200
    np.testing.assert_allclose(faster[200:-200], tone(0.5, RATE, 625.0, 0.25)[200:3_000], atol=1e-3)
    np.testing.assert_array_equal(changed(Speed((1.0,))), X)


@pytest.mark.parametrize("name", ["sound_noise", "gain", "shift", "speed"])
def test_another_field_and_one_that_is_no_sound(name):
    own = {"factors": (1.0,)} if name == "speed" else {}
    changed(TRANSFORMS[name](field="speech", **own), key="speech")
    for record in ({}, {"audio": X}, {"audio": "a.wav", "audio_heard": Heard(RATE, 1.0)}):
        with pytest.raises(UserError, match=r"^transforms: \w+ needs a sound 'audio', which a column reads: columns"):
            TRANSFORMS[name](**own)(record, np.random.default_rng(0), None)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SoundNoise((20.0, 5.0)), "SoundNoise.ratio=(20.0, 5.0): give (low, high) with low <= high"),
        (lambda: Gain((-500.0, 0.0)), "Gain.decibels=(-500.0, 0.0): use a number from -120 and up to 60"),
        (lambda: Speed(()), "Speed.factors=(): give one or more"),
        (lambda: Speed((0.0,)), "Speed.factors=(0.0,): use a number from 0.25 and up to 4"),
        (lambda: Shift(0.0), "Shift.seconds=0.0: use a number above 0"),
    ],
)
def test_numbers_that_are_none(make, said):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(said)


@dataclasses.dataclass(frozen=True)
class Tones:
    classes = ()

    def build(self):
        return self

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"audio": {"array": tone(1.0, RATE, 200.0 + index), "sampling_rate": RATE}}

    def fingerprint(self):
        return "x"


def test_batches_are_a_function_of_the_step():
    pytest.importorskip("soxr", reason="sounds are resampled by it: pip install 'mmjax[audio]'")
    transforms = (Speed((0.5, 2.0)), SoundNoise(), Gain(), Shift(0.01))
    data = Data(Tones(), transforms, {"audio": Audio(RATE, 0.1)}, batch_size=4, threads=0)
    dataset = data.build(None, 7)
    batch = dataset.batch(3)
    assert batch["audio"].shape == (4, 800) and {400, 800} == set(batch["audio_mask"].sum(1).tolist())
    np.testing.assert_array_equal(data.build(None, 7).batch(3)["audio"], batch["audio"])
    np.testing.assert_array_equal(dataset.batch(3, rows=[2])["audio"], batch["audio"][2:3])
    assert not np.array_equal(dataset.batch(4)["audio"], batch["audio"])
    assert not batch["audio"][~batch["audio_mask"]].any()
