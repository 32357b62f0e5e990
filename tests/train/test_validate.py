"""The pass before the first step: what it finds, what it tells, and what it leaves alone."""

import dataclasses
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import Data, Folder, Normalise, Resize
from mmjax.evaluate import Report, ZeroShot
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.fusion import Cross, Dual
from mmjax.models.heads import Classifier
from mmjax.nn.augment import ImageAugment
from mmjax.parallel.mesh import use_mesh
from mmjax.train.asked import live_inputs
from mmjax.train.dry import asks
from mmjax.train.run import Run
from mmjax.train.setup import set_up
from mmjax.train.validate import unread_parts, validated

MESH = tiny.ONE.build(jax.devices()[:1])


def looked_at(made):
    with use_mesh(MESH):
        return validated(set_up(made, Run("nowhere"), MESH))


def notes(made):
    return "\n".join(looked_at(made).notes)


def with_parts(model=None, **rooms):
    """`tiny.experiment` with more parts in its model."""
    model = model or tiny.small_model()
    return tiny.experiment(model=model.copy(**{room: {**getattr(model, room), **more} for room, more in rooms.items()}))


# What is read.


def test_an_input_is_live_where_a_result_depends_on_it_through_calls_and_loops_too():
    def program(used, dead, inside, looped, shown):
        jax.debug.print("{}", shown)
        spare = dead * 2.0
        inside = jax.jit(lambda x: x + 1.0)(inside)
        total, _ = jax.lax.scan(lambda carry, x: (carry + x, None), used, looped)
        del spare
        return total + inside

    traced = jax.make_jaxpr(program)(1.0, 2.0, 3.0, jnp.ones(4), 5.0)
    assert live_inputs(traced.jaxpr) == [True, False, True, True, True]
    assert live_inputs(jax.make_jaxpr(lambda x, y: (x, 3.0))(1.0, 2.0).jaxpr) == [True, False]


def test_a_part_is_unread_where_none_of_its_parameters_is_read():
    model = tiny.small_model()
    paths = ["encoders_image/a/kernel", "encoders_image/b", "heads_classes/logits/kernel", "fusions_dual/scale_logit"]
    assert unread_parts(model, paths, ["encoders_image/b"]) == ["fusions.dual", "heads.classes"]
    assert unread_parts(model, paths, paths) == []
    assert unread_parts(model, [], []) == []  # a part without parameters is not missed


def test_spare_parts_are_told_and_what_is_read_in_passing_is_not_spare():
    through = {"dual": Dual(width=16, project=(), through={"text": "cross"}), "cross": Cross(**tiny.SIZE)}
    assert "no task reads" not in notes(with_parts(fusions=through))
    spare = with_parts(
        heads={"spare": Classifier(classes=3)},
        decoders={"caption": TextDecoder(**tiny.TEXT, **tiny.SIZE)},
        fusions={"cross": Cross(**tiny.SIZE)},
    )
    said = "no task reads fusions.cross, decoders.caption, heads.spare: nothing trains what is initialised there"
    assert said in notes(spare)


# What is told.


def folder(home, splits, sizes=(8, 8), names=("ant", "bee"), each=4):
    rng = np.random.default_rng(0)
    for split in splits:
        for name in names:
            for i in range(each):
                file = home / split / name / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (*sizes, 3)).astype(np.uint8)).save(file)
    return home


def pictures(home, classes=2, **changes):
    data = {
        split: Data(Folder(str(home), split), (Resize((8, 8)), Normalise()), batch_size=4, threads=0)
        for split in ("train", "validation")
    }
    model = Multimodal(encoders={"image": tiny.vit()}, heads={"classes": Classifier(classes=classes)})
    settings = {"model": model, "data": data, "tasks": tiny.tasks("classify"), "tokenizer": None, "evaluate": {"r": Report()}}
    return tiny.experiment(**{**settings, **changes})


def test_the_table_says_what_each_data_holds_and_for_whom(tmp_path):
    setup = looked_at(pictures(folder(tmp_path, ("train", "validation"))))
    lines = "\n".join(setup.notes)
    assert "data.train: 8 records (image 8x8x3, label, " in lines and "label: 2 classes); trains classify" in lines
    assert "evaluates r" in lines and "heads.classes: 2 classes, ant first and bee last" in lines
    assert setup.classes == {"classes": ("ant", "bee")}


def test_another_size_where_it_is_evaluated_is_told(tmp_path):
    made = pictures(folder(tmp_path, ("train", "validation")))
    other = dataclasses.replace(made.data["validation"], transforms=(Resize((12, 8)), Normalise()))
    said = notes(dataclasses.replace(made, data={**made.data, "validation": other}))
    assert "data.validation: its image is 12x8x3, and that of data.train is 8x8x3" in said
    assert "its image is" not in notes(made)


@dataclasses.dataclass(frozen=True)
class Tagged:
    """Puts a part into each record that no encoder takes."""

    random = False
    key: str = "image_weather"

    def __call__(self, record, rng, records):
        return {**record, self.key: np.ones(2, np.float32)}


def test_a_part_that_no_encoder_takes_is_told_unless_it_lies_over_the_image(tmp_path):
    made = pictures(folder(tmp_path, ("train", "validation")))

    def tagged(key):
        train = dataclasses.replace(made.data["train"], transforms=(*made.data["train"].transforms, Tagged(key)))
        return notes(dataclasses.replace(made, data={**made.data, "train": train}))

    said = "data.train: nothing reads image_weather; encoders.image takes image, image_added, image_keep, image_mask"
    assert said in tagged("image_weather")
    for key in ("image_boxes_far", "weather"):
        assert "nothing reads" not in tagged(key), key


def test_files_that_cannot_be_read_are_told_and_too_many_are_refused(tmp_path):
    made = pictures(folder(tmp_path, ("train", "validation")))
    broken = tmp_path / "validation" / "bee" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    few = {name: dataclasses.replace(data, bad_record_limit=0.2) for name, data in made.data.items()}
    said = notes(dataclasses.replace(made, data=few))
    assert f"data.validation: 1 of 8 records looked at cannot be read, the first: {broken}" in said
    none = {name: dataclasses.replace(data, bad_record_limit=0.1) for name, data in made.data.items()}
    with pytest.raises(UserError, match=r"data.validation: 1 of 8 records .*bad_record_limit=0.1 allows a share of 0.1"):
        looked_at(dataclasses.replace(made, data=none))


def test_a_head_of_other_classes_than_its_data_is_refused_with_both(tmp_path):
    with pytest.raises(UserError, match=r"tasks.classify: model.heads.classes.classes=3, and data.train has 2 classes"):
        looked_at(pictures(folder(tmp_path, ("train", "validation")), classes=3, evaluate={}))


# Evaluators on zeros.


@dataclasses.dataclass(frozen=True)
class Asks:
    """Asks for the sum of the image, logs and warns of what it was given, and does with it what it is told to."""

    do: str = "nothing"
    key: str = "image"
    data: str = "validation"

    def __call__(self, evaluation, params):
        def total(forward, batch, rng):
            return jnp.sum(batch[self.key]) + jnp.sum(forward.encode("image").embeddings)

        found = evaluation.sums("asks", self.data, params, total, needs=(self.key,))
        for name in ("mmjax", "mmjax.mine", "mine"):
            logging.getLogger(name).info("the sum is %s", found)
        warnings.warn("it is nought", RuntimeWarning, stacklevel=1)
        if self.do == "divide":
            return {"share": 1 / found}
        if self.do == "refuse":
            raise UserError("nothing was found")
        return {"sum": found, "log": float(np.log(found))}


@pytest.mark.parametrize("do", ["nothing", "divide", "refuse"])
def test_what_an_evaluator_makes_of_zeros_ends_nothing_and_is_not_heard(do, caplog):
    with caplog.at_level(logging.INFO):
        looked_at(tiny.experiment(evaluate={"asks": Asks(do)}))
    assert "the sum is" not in caplog.text
    with caplog.at_level(logging.INFO):
        logging.getLogger("mmjax").info("heard again")
    assert "heard again" in caplog.text


def test_what_is_lost_of_prompts_is_heard_all_the_same(caplog):
    prompts = ZeroShot(("a photo of the digit {} and so on and on and on and on and on and on and on",))
    with caplog.at_level(logging.WARNING):
        looked_at(tiny.experiment(evaluate={"prompted": prompts}))
    assert f"are longer than {tiny.LENGTH} tokens and were cut" in caplog.text


def test_an_evaluator_that_reads_a_key_that_is_not_there_ends_it():
    with pytest.raises(UserError, match=r"^evaluate\.asks: .*has no 'depth'"):
        looked_at(tiny.experiment(evaluate={"asks": Asks(key="depth")}))


def test_an_evaluator_that_hides_its_mistake_does_not_hide_it_from_the_pass():
    @dataclasses.dataclass(frozen=True)
    class Hides(Asks):
        def __call__(self, evaluation, params):
            try:
                super().__call__(evaluation, params)
            except UserError:
                raise RuntimeError("something") from None

    with pytest.raises(UserError, match=r"^evaluate\.hides: .*has no 'depth'"):
        looked_at(tiny.experiment(evaluate={"hides": Hides(key="depth")}))


def test_nothing_is_compiled(caplog):
    with use_mesh(MESH):
        setup = set_up(tiny.experiment(evaluate={"report": Report(), "asks": Asks()}), Run("nowhere"), MESH)
        with caplog.at_level(logging.WARNING), jax.log_compiles(True):
            validated(setup)
            before = [record.message for record in caplog.records if "Compiling" in record.message]
            jax.jit(lambda x: x * 3.5 + 1)(np.float32(2))
            after = [record.message for record in caplog.records if "Compiling" in record.message]
    assert before == [] and len(after) == 1


@dataclasses.dataclass(frozen=True)
class Script:
    """An evaluator that reads nothing."""

    data: str = "validation"

    def __call__(self, evaluation, params):
        return {"score": 1.0}


def test_an_evaluator_that_reads_nothing_is_not_called_before_the_first_step():
    assert not asks(Script()) and not asks(lambda evaluation, params: {})
    assert asks(Report()) and asks(lambda evaluation, params: (lambda: evaluation)())


def test_the_device_mirrors_whatever_a_text_says_and_that_is_said():
    def made(**augment):
        return tiny.experiment(model=tiny.small_model().clone(augment={"image": ImageAugment(**augment)}), evaluate={})

    said = "model.augment.image.flip=0.5 also mirrors images of data.train whose texts say left or right"
    assert said in notes(made(flip=0.5)) and "mirrors" not in notes(made(noise=0.1))
