"""The learning rate at given updates, by formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.train import AdamW
from mmjax.train.schedules import SCHEDULES, schedule


def rates(counts, **settings):
    rate = schedule(**{"peak": 0.02, "steps": 110, "warmup": 10, "end_factor": 0.1} | settings)
    with jax.numpy_dtype_promotion("standard"):
        return np.array([float(jax.jit(rate)(jnp.int32(count))) for count in counts])


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_to_its_peak(name):
    np.testing.assert_allclose(rates([0, 1, 5, 10], name=name), [0, 0.002, 0.01, 0.02], rtol=1e-6)


def test_wsd_is_level_and_then_goes_down_in_a_line():
    found = rates([10, 50, 87, 88, 99, 110, 500], name="wsd", decay_fraction=0.2)
    np.testing.assert_allclose(found, 0.02 * np.array([1, 1, 1, 1, 0.55, 0.1, 0.1]), rtol=1e-5)


def test_wsd_without_a_decay_is_level_and_with_nothing_else_is_a_line():
    np.testing.assert_allclose(rates([10, 110], name="wsd", decay_fraction=0.0), 0.02, rtol=1e-6)
    counts = [10, 37, 60, 110]
    np.testing.assert_allclose(rates(counts, name="wsd", decay_fraction=1.0), rates(counts, name="linear"), rtol=1e-6)


def test_inverse_sqrt_does_not_depend_on_the_length_of_the_run_and_has_a_floor():
    counts = [10, 40, 90, 1000, 10**6]
    by_formula = 0.02 * np.sqrt(10 / np.array(counts))
    for steps in (50, 110):
        found = rates(counts, name="inverse_sqrt", steps=steps, end_factor=0.0)
        np.testing.assert_allclose(found, by_formula, rtol=1e-5)
    np.testing.assert_allclose(rates(counts, name="inverse_sqrt"), np.maximum(by_formula, 0.002), rtol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_peak_of_zero_is_zero(name):
    assert (rates([0, 5, 50, 110], name=name, peak=0.0) == 0).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"schedule": "cosin"}, r"optimizer\.schedule='cosin': use one of .*\(did you mean 'cosine'\?\)"),
        ({"schedule": "inverse_sqrt"}, r"optimizer\.warmup_steps=0: schedule=inverse_sqrt"),
        ({"decay_fraction": 1.5}, r"optimizer\.decay_fraction=1\.5: use a number from 0 and up to 1"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        AdamW(**settings)


def test_an_optimizer_hands_on_its_fields():
    optimizer = AdamW(learning_rate=0.02, schedule="wsd", warmup_steps=10, end_factor=0.5, decay_fraction=0.4)
    with jax.numpy_dtype_promotion("standard"):
        found = [float(optimizer.rate(100)(jnp.int32(count))) for count in (5, 60, 80, 100)]
    np.testing.assert_allclose(found, [0.01, 0.02, 0.015, 0.01], rtol=1e-5)
