"""The way in: `load` takes a run or a HuggingFace folder, `save_hf` writes one; and the two conversions of the command line."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.adapt import merged
from mmjax.convert import processor
from mmjax.convert.born import born, with_head
from mmjax.convert.export import Whole, class_names, head_outcomes, image_sizes, in_units, prepare, text_tokenizer
from mmjax.convert.families import FAMILIES
from mmjax.convert.family import explicit
from mmjax.convert.huggingface import (
    COMPANIONS,
    describe_model,
    family_of,
    read_model,
    write_model,
    written_variables,
)
from mmjax.convert.letters import save_letters, writes_letters
from mmjax.convert.sounds import as_long, write_extractor
from mmjax.convert.staging import staged_folder
from mmjax.convert.tokenizer import save_tokenizer, text_part, with_ids, write_generation
from mmjax.convert.towers import nearest_class, towers
from mmjax.core.config import CLASS, to_json
from mmjax.core.errors import UserError, within
from mmjax.core.trees import leaves_by_path, nested
from mmjax.core.types import Params
from mmjax.data import Audio, Tokenizer
from mmjax.models import Multimodal
from mmjax.models.forward import VARIABLES
from mmjax.models.resize import resize_positions, resized_model
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.rules import place
from mmjax.train import Experiment
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.measured import measured
from mmjax.train.run import AVERAGED, FINISHED, Run, environment
from mmjax.train.state import State, together

logger = logging.getLogger("mmjax")
CLASSIFY = ("ForImageClassification", "ForSequenceClassification", "ForAudioClassification")
EXTRACTS = ("BertForQuestionAnswering", "RobertaForQuestionAnswering")
COMPANION_FOLDER = "huggingface"  # in a run: the files that came with the weights


def load(path: str | Path, mesh: Mesh | jax.sharding.Mesh | None = None) -> tuple[Multimodal, Params]:
    """A run's best checkpoint, or a HuggingFace folder: the model and its float32 parameters.

    Args:
      mesh: the devices to split the parameters over, `Mesh(fsdp=4, tensor=2)` for instance, or one already built. Each
        parameter is read and goes to its place (`parallel.rules`) before the next, so a model may be larger than a device and
        than the host's memory. Default: all on the default device.

    Raises:
      UserError: neither is there; what of the HuggingFace model we cannot represent exactly, by the field's name; a mesh that
        these devices do not make.
    """
    run = run_at(path)
    built = mesh.build() if isinstance(mesh, Mesh) else mesh
    if run is not None:
        return load_run(run, built)
    model, params, _ = read_model(Path(path), None if built is None else functools.partial(place, built))
    return model, params


def load_model(path: str | Path) -> Multimodal:
    """The model alone, without its parameters: `model=load_model("runs/vit")` in a config."""
    run = run_at(path)
    return describe_model(Path(path)) if run is None else run.experiment().model


def load_classifier(path: str | Path, classes: int) -> Multimodal:
    """The model of a HuggingFace folder, or of a run, as HuggingFace's class that classifies its images, texts or sounds: with
    the head that `mmjax convert to-hf` can write. Without parameters; `heads_classes/*` starts anew. A run may have been
    trained from nothing: its encoder must be that of such a class.

    Usage:
      model = load_classifier("runs/clip", classes=3)  # the image tower and the mean of its patches: CLIPForImageClassification
      Experiment(model=model, init_from="runs/clip", init_fresh=("heads_classes/*",), ...)

    Raises:
      UserError: its family has no such class here; or no class has such an encoder, and in what the nearest differs.
    """
    return _headed(path, classes, CLASSIFY, "classifies")


def load_tagger(path: str | Path, classes: int) -> Multimodal:
    """The same as HuggingFace's class that says a class for each token of its texts: `heads_token_classes/*` starts anew.

    Usage:
      model = load_tagger("runs/bert", classes=9)  # BertForTokenClassification
      Experiment(model=model, init_from="runs/bert", init_fresh=("heads_token_classes/*",), ...)

    Raises:
      UserError: its family has no such class here; or no class has such an encoder, and in what the nearest differs.
    """
    return _headed(path, classes, ("ForTokenClassification",), "tags tokens")


def load_extractor(path: str | Path) -> Multimodal:
    """The same as HuggingFace's class that says of each token whether it begins or ends an answer: `heads_spans/*` starts anew.

    Usage:
      model = load_extractor("runs/bert")  # BertForQuestionAnswering
      Experiment(model=model, init_from="runs/bert", init_fresh=("heads_spans/*",), ...)

    Raises:
      UserError: its family has no such class here; or no class has such an encoder, and in what the nearest differs.
    """
    return _headed(path, 2, EXTRACTS, "finds answers in passages")


def _headed(path: str | Path, classes: int, ends: tuple[str, ...], does: str) -> Multimodal:
    """The model of a folder or a run as the first class whose name ends so."""
    model = load_model(path)
    with within(str(path)):
        return with_head(model, classes, ends, does)


def image_transforms(path: str | Path) -> tuple[Any, ...]:
    """The transforms of the image processor that came with a HuggingFace folder, or with the run that was made of one.

    Raises:
      UserError: there is none, or a step of it that we cannot do exactly.
    """
    run = run_at(path)
    return processor.image_transforms(Path(path) if run is None else run.path / COMPANION_FOLDER)


def save_hf(model: Multimodal, params: Params, path: str | Path, companions: str | Path | None = None) -> str:
    """Write a folder that `transformers` opens with `from_pretrained`, and return the name of its class. What adapts the model
    is merged into its parameters, and one of our own is written as the class that is exactly it.

    Args:
      companions: a folder whose tokenizer and image-processor files go with it.

    Raises:
      UserError: no HuggingFace class is this model, and in what the nearest differs; `path` holds files already.
    """
    model, params = born(model), _merged(model, params)
    if companions is None:
        return write_model(model, params, Path(path))
    return write_model(model, params, Path(path), functools.partial(copy_companions, Path(companions)))


def run_at(path: str | Path) -> Run | None:
    """The run at a path or at an address in a bucket; None where the config.json there is not an experiment's."""
    run = Run(path)
    try:
        return run if CLASS in json.loads((run.path / "config.json").read_text()) else None
    except (OSError, ValueError):
        return None


def has_tokenizer(folder: Path) -> bool:
    """Whether a HuggingFace folder brings a tokenizer."""
    return any(folder.glob("tokenizer*")) or any(folder.glob("vocab*"))


def from_hf(source: str | Path, target: str | Path) -> tuple[Multimodal, tuple[str, ...]]:
    """Make a run out of a HuggingFace folder: its checkpoint 0 is what `init_from` starts from.

    Returns:
      The model, and the names of tensors that its class has no use for.

    Raises:
      UserError: as `load`; `target` holds files already.
    """
    source, target = Path(source), Path(target)
    with staged_folder(target) as folder:
        model, params, unused = read_model(source)
        run = Run(folder)
        run.write_config(Experiment(model=model, data={}, tasks={}, steps=0))
        run.write_json("environment.json", environment())
        (folder / COMPANION_FOLDER).mkdir()
        copy_companions(source, folder / COMPANION_FOLDER)
        if has_tokenizer(source):
            run.keep_tokenizer(Tokenizer.load(source))
        save_params(run, params)
    return model, unused


def prepared(run: Run, model: Multimodal) -> Whole | None:
    """A run's model as the HuggingFace class that answers as it does, see `export.prepare`."""
    tokenizer, sizes = _texts_and_sizes(run)
    with within(run.name):
        e = run.experiment()
        return prepare(model, tokenizer, sizes, class_names(e, run.classes()), head_outcomes(e), measured(e))


def _texts_and_sizes(run: Run) -> tuple[Tokenizer | None, dict[str, tuple[int, int]]]:
    """The tokenizer of a run's texts, and the sizes of its images."""
    e = run.experiment()
    shapes = {name: about.get("shapes", {}) for name, about in run.about_data().items()}
    return text_tokenizer(e, run.tokenizers()), image_sizes(e, shapes)


def to_hf(source: str | Path, target: str | Path) -> dict[str, str]:
    """Write a run's best checkpoint as a HuggingFace folder.

    A model that is no HuggingFace class as a whole is written tower by tower, `target/image`, `target/text`.

    Returns:
      Folder below `target` ("." for itself) -> the name of its class; and under "left" what no class has a place for.

    Raises:
      UserError: as `save_hf`; or no part of the model is a HuggingFace class.
    """
    run = Run(source)
    e, tokenizer, sizes = run.experiment(), *_texts_and_sizes(run)
    data = e.asked_data()
    model, params = as_long(*load_run(run), None if data is None else data.columns.get("audio"))
    own: Params = _merged(model, params)
    ended = any((run.path / name).is_file() for name in (FINISHED, AVERAGED))
    if (step := run.saved_steps()[-1]) < e.steps and not ended:
        logger.warning("mmjax: %s has come to step %d of %d: this is an unfinished run's model", run.name, step, e.steps)
    whole = prepared(run, model)
    if whole is not None:
        firsts = {part.replace(".", "_", 1) for part in whole.left}
        own, left = _without(own, written_variables(whole.model, whole.architecture))
        own = {name: tree for name, tree in own.items() if name not in firsts}
        own = in_units(whole, dict(resize_positions(own, model, whole.model)[0]))
        companions = functools.partial(_write_companions, run, whole.model, whole.architecture, model)
        architecture = write_model(whole.model, own, Path(target), companions)
        beside = ", ".join([*whole.left, *left])
        return {".": architecture} | ({"left": beside} if beside else {})
    larger = resized_model(model, sizes)
    found, spare = towers(larger, resize_positions(own, model, larger)[0])
    if not found:
        raise UserError(
            f"{source}: neither the model nor any of its encoders is exactly a HuggingFace class{nearest_class(model)}"
        )
    with staged_folder(Path(target)) as folder:
        for modality, tower in found.items():
            alone = tower.model
            if tokenizer is not None and text_part(alone) is not None:
                alone = with_ids(family_of(alone), alone, tower.architecture, tokenizer)
            companions = functools.partial(_write_companions, run, alone, tower.architecture, model)
            write_model(alone, tower.params, folder / modality, companions)
    written = {path for tower in found.values() for path in written_variables(tower.model, tower.architecture)}
    left = _without(own, written)[1]
    return {modality: tower.architecture for modality, tower in found.items()} | {"left": ", ".join([*spare, *left])}


def _merged(model: Multimodal, params: Params) -> Params:
    """The parameters without adapters, with what modules keep beside them."""
    own = merged(model, {name: tree for name, tree in params.items() if name != VARIABLES})
    return {**own, VARIABLES: params[VARIABLES]} if VARIABLES in params else own


def _without(params: Params, written: Collection[str]) -> tuple[Params, list[str]]:
    """The parameters with those of the variables that are written; and of the others the collections, `variables.NAME`."""
    leaves = leaves_by_path(params)
    left = [path for path in leaves if path.startswith(f"{VARIABLES}/") and path not in written]
    names = dict.fromkeys(".".join(path.split("/")[:2]) for path in left)
    return nested({path: leaf for path, leaf in leaves.items() if path not in left}), list(names)


def load_run(run: Run, mesh: jax.sharding.Mesh | None = None) -> tuple[Multimodal, Params]:
    """A run's model and the parameters of its best checkpoint; those that its modules keep under `VARIABLES`."""
    experiment = run.experiment()
    if not run.has_checkpoint():
        raise UserError(f"{run.name}: the run has no checkpoint yet")
    checkpoints = Checkpoints(run.checkpoints, experiment.checkpoint, read_only=True)
    step = checkpoints.best_step()
    assert step is not None
    params, _ = checkpoints.params(step, mesh)
    checkpoints.close()
    return experiment.model, params if mesh is not None else jax.tree.map(jnp.asarray, params)


def copy_companions(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        if COMPANIONS.match(file.name):
            shutil.copyfile(file, target / file.name)


def generation_folder(run: Run, model: Multimodal) -> Path:
    """Where a run has the generation_config.json that came with its weights: of a Whisper's also the run that it began from."""
    own, began = run.path / COMPANION_FOLDER, run.experiment().init_from
    kind = FAMILIES.get(model.huggingface.get("model_type", ""))
    if own.is_dir() or not began or kind is None or not kind.starts_apart or (before := run_at(began)) is None:
        return own
    return before.path / COMPANION_FOLDER


def _write_companions(run: Run, model: Multimodal, architecture: str, whole: Multimodal, folder: Path) -> None:
    """The tokenizer and the image processor: those of the run's own data, else those that came with its weights.

    Args:
      model: what is written, `architecture` its class; `whole` the run's own model.
    """
    came_with, e = run.path / COMPANION_FOLDER, run.experiment()
    if came_with.is_dir():
        copy_companions(came_with, folder)
    family, tokenizer = family_of(model), text_tokenizer(e, run.tokenizers())
    if (said := generation_folder(run, model) / "generation_config.json").is_file():
        shutil.copyfile(said, folder / said.name)
    if tokenizer is not None and text_part(model) is not None:
        save_tokenizer(folder, tokenizer, family, architecture, whole)
        write_generation(folder, architecture, family.config(explicit(model)), family, tokenizer)
    elif tokenizer is not None and writes_letters(model):
        save_letters(folder, tokenizer)
    data = e.asked_data()
    pictures = next((one for one in ("image", "video") if one in model.encoders), "")
    if data is not None and pictures:
        own = [step for step in data.transforms if pictures == "image" or getattr(step, "field", "") == pictures]
        for name in ("preprocessor_config.json", "processor_config.json"):
            (folder / name).unlink(missing_ok=True)
        processor.write_processor(folder, own, model.huggingface["model_type"])
        if tokenizer is not None:
            processor.write_splicing(folder, model, tokenizer)
    sound = None if data is None else data.columns.get("audio")
    if isinstance(sound, Audio) and "audio" in model.encoders:
        write_extractor(folder, sound, model)


def save_params(run: Run, params: Params) -> None:
    """Checkpoint 0 of a run that has its config.json: parameters, with which nothing was trained yet."""
    none: dict[str, Any] = {}
    watch = {"mean": jnp.zeros((), jnp.float32), "good": jnp.zeros((), jnp.int32)}
    own = {name: tree for name, tree in params.items() if name != VARIABLES}
    kept = together(params.get(VARIABLES, {}), {})
    state = State(jnp.zeros((), jnp.int32), own, none, none, none, jnp.asarray(np.zeros(2, np.uint32)), watch, kept)
    checkpoints = Checkpoints(run.checkpoints, run.experiment().checkpoint)
    checkpoints.save(0, state, {}, to_json(run.experiment()))
    checkpoints.wait()
    checkpoints.close()
