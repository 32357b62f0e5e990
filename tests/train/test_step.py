"""The training step: accumulation, what is shared, what is frozen, and steps that must not be taken."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmjax.core.flops import count_flops
from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Loss, Tokens
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer
from mmjax.models.forward import BoundForward
from mmjax.models.heads import Classifier, TokenClassifier
from mmjax.models.multimodal import param_shapes
from mmjax.nn.augment import ImageAugment
from mmjax.nn.linear import Linear
from mmjax.objectives import CausalLM
from mmjax.train import SGD, Task
from mmjax.train.state import init_state
from mmjax.train.step import WARM, make_step, moving_average, task_losses

RAW = {"schedule": "constant", "clip_norm": 0.0}


@pytest.fixture(scope="module")
def careful():
    """An experiment that freezes, averages and skips bad steps: its setup, step, first state and first batch."""
    optimizer = SGD(
        learning_rate=0.1,
        weight_decay=0.1,
        ema=0.9,
        freeze=("encoders_text/*", "encoders_image/*[:1]"),
        spike_factor=3.0,
        on_bad_step="skip",
        **RAW,
    )
    setup, step = tiny.prepared(tiny.experiment(model=tiny.small_model(depth=2), optimizer=optimizer))
    return setup, step, tiny.host(setup.init()), setup.datasets["train"].batch(0)


def take(careful, state=None, batch=None):
    """One step from the host: (state before, state after, figures), all on the host."""
    setup, step, start, first = careful
    before = start if state is None else state
    layout = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract)
    placed = jax.tree.map(lambda x, s: jax.device_put(np.array(x), s), before, layout)
    after, figures = step(placed, {"train": setup.place(batch or first)})
    return before, tiny.host(after), tiny.host(figures)


def test_a_good_step_moves_what_is_trained_and_nothing_that_is_frozen(careful):
    before, after, figures = take(careful)
    assert figures["bad_step"] == 0 and after.step == 1
    old, new = leaves_by_path(before.params), leaves_by_path(after.params)
    for path in old:
        if path.startswith("encoders_text/"):
            np.testing.assert_array_equal(new[path], old[path])
        elif "/layers/" in path:
            np.testing.assert_array_equal(new[path][:1], old[path][:1])
            assert (new[path][1:] != old[path][1:]).any() or path.endswith("attention/k/bias"), path
        elif not path.endswith("bias_logit"):
            assert (new[path] != old[path]).any(), path


def test_a_frozen_encoder_has_no_gradient(careful):
    """The norm of the gradient is that of the trained parameters alone, so clipping does not see what is frozen."""
    setup, _, start, batch = careful
    e = setup.experiment

    def loss(params):
        losses = task_losses(e.model, e.tasks, params, {"train": batch}, jax.random.key(0))
        return sum(value.sum / value.count for value in losses.values())

    gradients = leaves_by_path(jax.jit(jax.grad(loss))(start.params))
    own = {path: g[1:] if "encoders_image" in path and "/layers/" in path else g for path, g in gradients.items()}
    trained = [np.sum(np.square(g)) for path, g in own.items() if not path.startswith("encoders_text/")]
    assert any(np.any(g) for path, g in gradients.items() if path.startswith("encoders_text/"))
    _, _, figures = take(careful)
    assert figures["gradient_norm"] == pytest.approx(np.sqrt(sum(trained)), rel=1e-5)


def test_the_moving_average_by_formula(careful):
    """The mean of what the steps have made, weighted by powers of the decay; of the trained parameters alone."""
    trained = careful[0].trained()
    before, after, _ = take(careful)
    tiny.assert_identical(before.ema, trained.of(before.params))
    for ema, own in zip(*map(jax.tree.leaves, (after.ema, trained.of(after.params))), strict=True):
        np.testing.assert_allclose(
            ema, own, rtol=2e-7, atol=0
        )  # XLA may make the sum anew inside of the mean, and round otherwise
    _, later, _ = take(careful, after)
    trees = (trained.of(after.params), later.ema, trained.of(later.params))
    for p1, e2, p2 in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(e2, (0.9 * p1 + p2) / 1.9, rtol=1e-5, atol=1e-7)
    _, skipped, _ = take(careful, later, {**careful[3], "image": np.full_like(careful[3]["image"], np.nan)})
    tiny.assert_identical(skipped.ema, later.ema)


@pytest.mark.parametrize("decay", [0.5, 0.999, 0.99999])
def test_the_moving_average_is_a_mean_of_all_updates(decay):
    drawn = np.random.default_rng(0).normal(size=60)
    ema = jnp.float32(1000.0)  # of no weight
    update = jax.jit(moving_average)
    for n, value in enumerate(drawn):
        ema = update(ema, jnp.float32(value), jnp.float32(decay), jnp.int32(n))
    weights = decay ** np.arange(60)[::-1]
    np.testing.assert_allclose(ema, np.sum(weights * drawn) / np.sum(weights), atol=2e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_the_step_number_alone(careful, value):
    image = careful[3]["image"].copy()
    image[3, 2, 1, 0] = value
    before, after, figures = take(careful, batch={**careful[3], "image": image})
    assert figures["bad_step"] == 1 and not np.isfinite(figures["loss"])
    assert after.step == before.step + 1
    tiny.assert_identical(dataclasses.replace(after, step=before.step), before)
    _, good, _ = take(careful, after)
    assert good.watch["good"] == 1  # the schedule counts updates that were applied


@dataclasses.dataclass(frozen=True)
class Cornered:
    """A loss of 0, the root of 0, whose derivative is 0 * inf."""

    def __call__(self, forward, batch, rng):
        return Loss(jnp.sum(jnp.sqrt(0.0 * jnp.square(forward.head("classes")))), jnp.float32(1.0), {})


def test_a_step_whose_gradient_alone_is_not_finite_is_bad_too():
    optimizer = SGD(learning_rate=0.1, ema=0.9, on_bad_step="skip", **RAW)
    setup, step = tiny.prepared(tiny.experiment(optimizer=optimizer, tasks={"corner": Task(Cornered())}, evaluate={}))
    before, after, figures = take((setup, step, tiny.host(setup.init()), setup.datasets["train"].batch(0)))
    assert np.isfinite(figures["loss"]) and not np.isfinite(figures["gradient_norm"])
    assert figures["bad_step"] == 1
    tiny.assert_identical(dataclasses.replace(after, step=before.step), before)


def test_a_spike_is_skipped_once_the_mean_is_known(careful):
    _, _, figures = take(careful)
    start = careful[2]

    def watched(mean, good):
        return dataclasses.replace(start, watch={"mean": np.float32(mean), "good": np.int32(good)})

    loss = figures["loss"]
    spiking, early, calm = watched(loss / 3.1, WARM), watched(loss / 3.1, WARM - 1), watched(loss / 2.9, WARM)
    before, after, figures = take(careful, spiking)
    assert figures["bad_step"] == 1
    tiny.assert_identical(dataclasses.replace(after, step=before.step), before)
    for state in (early, calm):
        _, after, figures = take(careful, state)
        assert figures["bad_step"] == 0
        assert after.watch["mean"] == pytest.approx(0.98 * state.watch["mean"] + 0.02 * loss, rel=1e-5)


def three_tasks(accumulate: int):
    """Masked and causal language models and a classifier: counts that differ from row to row, masks, and device noise."""
    model = Multimodal(
        encoders={"image": tiny.vit(depth=0), "text": TextTransformer(**tiny.TEXT, **tiny.SIZE)},
        decoders={"caption": TextDecoder(**tiny.TEXT, **(tiny.SIZE | {"depth": 0}), context=())},
        heads={
            "masked_lm": TokenClassifier(classes=tiny.WORDS, input="text", tied_to="text"),
            "classes": Classifier(classes=10, input="image"),
        },
        augment={"image": ImageAugment(noise=0.1)},
    )
    masked = dataclasses.replace(tiny.OBJECTIVES["masked_lm"], fusion="")
    tasks = {"masked_lm": Task(masked), "caption": Task(CausalLM(context=()), weight=0.5), **tiny.tasks("classify")}
    optimizer = SGD(learning_rate=0.3, accumulate=accumulate, **RAW)
    return tiny.experiment(model=model, tasks=tasks, optimizer=optimizer, evaluate={})


def test_accumulation_equals_the_large_batch():
    results = []
    for accumulate in (1, 4):
        setup, step = tiny.prepared(three_tasks(accumulate))
        state, figures = step(setup.init(), {"train": setup.place(setup.datasets["train"].batch(0))})
        results.append((tiny.host(state.params), tiny.host(figures)))
    (whole, one), (parts, four) = results
    for path, leaf in leaves_by_path(whole).items():
        np.testing.assert_allclose(leaves_by_path(parts)[path], leaf, rtol=0, atol=1e-6, err_msg=path)
    assert one.keys() == four.keys()
    for name in one:
        np.testing.assert_allclose(four[name], one[name], rtol=2e-6, atol=1e-6, err_msg=name)


def test_a_language_model_without_encoders_learns():
    model = Multimodal(encoders={}, decoders={"caption": TextDecoder(context=(), **tiny.TEXT, **tiny.SIZE)})
    setup, step = tiny.prepared(tiny.experiment(model=model, tasks={"words": Task(CausalLM(context=()))}, evaluate={}))
    state, losses = setup.init(), []
    for index in range(4):
        state, figures = step(state, {"train": setup.place(setup.datasets["train"].batch(index))})
        losses.append(float(figures["loss/words"]))
    assert losses[-1] < losses[0] == pytest.approx(np.log(tiny.WORDS), rel=0.05)


def flops_of(made, *names):
    """(FLOPs of the losses of some tasks, FLOPs of the image encoder), counted in the jaxpr."""
    params, batch = param_shapes(made.model), tiny.host(made.data["train"].build(tokenizer(made), 0).batch(0))
    losses = functools.partial(task_losses, made.model, {name: made.tasks[name] for name in names})
    encoder = count_flops(lambda p, b: BoundForward(made.model, p, b).encode("image").embeddings, params, batch)
    return count_flops(losses, params, {"train": batch}, jax.random.key(0)), encoder


@functools.cache
def tokenizer_of_digits():
    made = tiny.four()
    return made.tokenizer.train(made.data["train"].texts())


def tokenizer(made):
    return tokenizer_of_digits() if made.tokenizer else None


def test_each_modality_is_encoded_once():
    """What two objectives ask for is counted once: apart they cost one image encoder more than together."""
    made = tiny.four()
    contrastive, encoder = flops_of(made, "contrastive")
    caption, _ = flops_of(made, "caption")
    both, _ = flops_of(made, "contrastive", "caption")
    assert encoder > 0
    assert contrastive + caption - both == encoder


def test_each_modality_is_encoded_once_in_the_compiled_program():
    """XLA does not merge repeated encoders by itself, so this fails when a second one is traced."""
    made = tiny.experiment(model=tiny.small_model(unroll=True))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), param_shapes(made.model))
    batches = {"train": made.data["train"].build(tokenizer(made), 0).batch(0)}

    def compiled(*names):
        losses = functools.partial(task_losses, made.model, {name: made.tasks[name] for name in names})
        return jax.jit(losses).lower(params, batches, jax.random.key(0)).compile().cost_analysis()["flops"]

    _, encoder = flops_of(made, "classify")
    alone, both = compiled("contrastive"), compiled("contrastive", "classify")
    assert alone > encoder
    assert 0 < both - alone < 0.1 * encoder


# Variables: what no gradient makes.


class Keeping(nn.Module):
    """[B, n] -> one token; keeps the mean of what it was given last, and a whole number of it."""

    @nn.compact
    def __call__(self, x):
        mean = self.variable("seen", "mean", jnp.zeros, ())
        first = self.variable("seen", "first", lambda: jnp.zeros((), jnp.int32))
        if self.has_rng("dropout"):
            mean.value, first.value = x.mean() + 0.5 * mean.value, x[0, 0].astype(jnp.int32)
        return Tokens(Linear(4, name="project")(x)[:, None], jnp.ones((x.shape[0], 1), bool))

    def example(self):
        return jnp.zeros((1, 3))


@dataclasses.dataclass(frozen=True)
class InTurn:
    """Writes down the first number of each batch it is called with, in their order: the newest first, of five."""

    head: str = "classes"

    def init_variables(self, params, batch):
        return {"line": jnp.full(5, -1.0), "steps": jnp.zeros((), jnp.int32)}

    def __call__(self, forward, batch, rng, variables):
        line = jnp.concatenate([batch["sensor"][:1, 0], variables["line"][:-1]])
        values = jnp.sum(jnp.square(forward.head(self.head)))
        return Loss(values, jnp.float32(len(batch["sensor"])), variables={**variables, "line": line})

    def after_step(self, variables, params):
        return {**variables, "steps": variables["steps"] + 1}


@functools.cache
def keeping_step(parts, streams):
    """A jitted step over so many streams, each with a task of its own, and the first state."""
    model = Multimodal(encoders={"sensor": Keeping()}, heads={"classes": Classifier(classes=2, input="sensor")})
    tasks = {name: Task(InTurn(), data=name) for name in streams}
    optimizer = SGD(learning_rate=0.1, accumulate=parts, on_bad_step="skip", **RAW)
    weighting = tiny.experiment().weighting
    batches = {name: {} for name in tasks}
    objectives = {name: task.objective for name, task in tasks.items()}
    weights = dict.fromkeys(tasks, 1.0)
    state = init_state(model, optimizer, 5, weighting, weights, np.uint32(0), 1, objectives, batches)
    step = make_step(model, tasks, weighting, optimizer, optimizer.build(state.params, 5), optimizer.rate(5))
    return jax.jit(step), state


def sensor(*firsts):
    """A batch whose rows are these numbers thrice."""
    rows = np.repeat(np.array(firsts, np.float32)[:, None], 3, axis=1)
    return {"sensor": rows, "index": np.arange(len(firsts), dtype=np.int32)}


def kept_of(state):
    own = tiny.host(state.variables["model"])["seen"]["encoders_sensor"]
    return float(own["mean"]), int(own["first"])


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_modules_variables_are_averaged_over_micro_batches_and_whole_numbers_are_the_last(parts):
    step, state = keeping_step(parts, ("a",))
    after, _ = step(state, {"a": sensor(1, 2, 3, 4)})
    # Row i goes to micro-batch i mod parts, so the last one begins with row parts - 1.
    assert kept_of(state) == (0.0, 0) and kept_of(after) == (2.5, parts)
    again, _ = step(after, {"a": sensor(5, 6, 7, 8)})
    assert kept_of(again) == (6.5 + 0.5 * 2.5, parts + 4)


@pytest.mark.parametrize("parts", [1, 2])
def test_modules_variables_are_averaged_over_streams(parts):
    step, state = keeping_step(parts, ("a", "b"))
    after, _ = step(state, {"a": sensor(1, 2, 3, 4), "b": sensor(11, 12, 13, 14)})
    assert kept_of(after) == (7.5, 10 + parts)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_objectives_variables_go_from_micro_batch_to_micro_batch_and_then_after_the_step_once(parts):
    step, state = keeping_step(parts, ("a",))
    after, _ = step(state, {"a": sensor(1, 2, 3, 4)})
    line = [float(i) for i in range(parts, 0, -1)] + [-1.0] * (5 - parts)
    own = tiny.host(after.variables["tasks"]["a"])
    assert own["line"].tolist() == line and own["steps"] == 1


@pytest.mark.parametrize("parts", [1, 2])
def test_a_bad_step_leaves_variables_alone(parts):
    step, state = keeping_step(parts, ("a",))
    good, _ = step(state, {"a": sensor(1, 2, 3, 4)})
    bad, figures = step(good, {"a": sensor(1, 2, np.nan, 4)})
    assert figures["bad_step"] == 1 and bad.step == good.step + 1
    tiny.assert_identical(tiny.host(bad.variables), tiny.host(good.variables))
    assert kept_of(step(bad, {"a": sensor(5, 6, 7, 8)})[0])[0] == 6.5 + 0.5 * 2.5
