"""Every shipped config and example: it loads, survives JSON, has its published size, and trains two steps once it is shrunk."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mmjax.convert.api import save_params
from mmjax.core.config import from_json, leaves, to_json
from mmjax.core.trees import count
from mmjax.data import Spoken
from mmjax.data.sound import wav
from mmjax.data.sources.spoken import SpokenRecords
from mmjax.models.multimodal import init_params, param_shapes
from mmjax.parallel.mesh import Mesh
from mmjax.train import train
from mmjax.train.config_file import apply_flags, load_config, shipped_configs
from mmjax.train.run import Run
from mmjax.train.setup import set_up
from mmjax.train.step import make_step

EXAMPLES = {path.stem: path for path in sorted((Path(__file__).parents[1] / "examples").glob("*.py"))}
MAKES = EXAMPLES.pop("make_data")
CONFIGS = shipped_configs() | EXAMPLES

# Any field of these names that is not 0 is made this small, wherever it is in the config.
SMALL = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 32, "batch_size": 8, "workers": 0, "threads": 0, "warmup_steps": 1}
ALWAYS = "--steps 2 --evaluate_every 2 --log.every 1 --log.progress false --log.tensorboard false"

# What else a config needs here; {photos} and {captions} are a folder of class folders and a manifest,
# {stamps} some of the stamps' folders; {inspection} and the like are what examples/make_data.py makes.
FLAGS = {
    "blip_base": "--data.train.source.path {captions} --data.validation.source.path {captions}",
    "captioner": "--data.train.source.count 64 --data.validation.source.count 8 --data.test.source.count 8",
    "digits": "",
    "digits_finetune": "--init_from=",
    "digits_lora": "--init_from=",
    "distil_digits": "--teachers.teacher.path {teacher}",
    "few_shot": "--data.train.source.source.path {stamps} --data.test.source.source.path {stamps} --tokenizer bpe "
    "--tokenizer.vocab_size 300 --init_from=",
    "folder": " ".join(f"--data.{split}.source.path {{photos}}" for split in ("train", "validation", "test")),
    "inspection": " ".join(f"--data.{split}.source.path {{inspection}}" for split in ("train", "validation", "test")),
    "labels": "--data.train.source.path {told} --data.validation.source.path {told}",
    "llama_lora": "--init_from= --tokenizer wordpiece --data.train.source.path {texts} --data.validation.source.path {texts} "
    "--data.train.max_length 32 --data.validation.max_length 32",  # 2,048 tokens of 32,000 words are 2 GB, several times
    "ranking": " ".join(f"--data.{split}.source.source.path {{ranking}}" for split in ("train", "validation", "test")),
    "relations": "--data.train.source.path {told} --data.validation.source.path {told}",
    "report": " ".join(f"--data.{split}.source.path {{report}}" for split in ("train", "validation", "test")),
    "scenes_vqa": "--data.train.source.count 64 --data.validation.source.count 8 --data.test.source.count 8",
    "siglip_b16": "--data.train.source.path {captions} --data.validation.source.path {captions}",
    "spans": "--data.train.source.path {asked} --data.validation.source.path {asked}",
    "speech": " ".join(
        f"--data.{split}.source.count 16 --data.{split}.source.cache {{spoken}}" for split in ("train", "validation", "test")
    ),
    "stamps": "--data.train.source.source.path {stamps} --data.validation.source.source.path {stamps}",
    "translate": "--data.train.source.count 64 --data.validation.source.count 8 --data.test.source.count 8",
    "text_pretraining": "--data.train.source.count 64 --data.validation.source.count 8",
    "video": "--data.train.source.count 64 --data.validation.source.count 8 --data.test.source.count 8",
    "video_pretraining": "--data.train.source.count 64 --data.validation.source.count 8",
    "texts": "--data.train.source.path {told} --data.validation.source.path {told} --model.heads.classes.classes 5",
}
# The published model's parameters, as transformers counts them: google/siglip-base-patch16-224.
HELD_OUT = load_config("few_shot").data["test"].source.only
PUBLISHED = {"siglip_b16": 203_155_970}
TEXTS = (
    "labels",
    "relations",
    "spans",
    "text_pretraining",
    "texts",
)  # trained in tests of their own: tests/predict/test_pairs.py, test_spans.py
# Three objectives and more, and what is much like another: ten seconds and more to compile, so by default only traced.
LONG = (
    *TEXTS,
    "blip_base",
    "digits",
    "inspection",
    "report",
    "scenes_vqa",
    "speech",
    "text_pretraining",
    "video",
    "video_pretraining",
)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Forty photographs of two classes, a manifest with a caption for each, and one of the captions alone; and the stamps'
    folders by name, ten to each."""
    root = tmp_path_factory.mktemp("photos")
    pixels, lines = np.random.default_rng(0), []
    for number in range(40):
        kind = ("cat", "dog")[number % 2]
        path = root / "photos" / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
        lines.append({"image": f"photos/{kind}/{number}.png", "text": f"{kind} number {number} sits on the mat"})
    manifest = root / "captions.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = root / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": line["text"]}) + "\n" for line in lines))
    for number in range(80):
        kind = (*HELD_OUT, "food/nuts")[number % 8]
        path = root / "stamps" / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"A {kind} that is number {number}.\n")
    for name in EXAMPLES:
        make_data(name, root / name, count=60)
    return {
        **{name: root / name / "lines.jsonl" for name in EXAMPLES},
        "photos": root / "photos",
        "captions": manifest,
        "texts": texts,
        **told(root),
        "stamps": root / "stamps",
        "teacher": a_teacher(root / "teacher"),
        "spoken": kept_sounds(root / "spoken"),
    }


def told(root):
    """Texts with a class, with several, with two places and in pairs; and questions about passages."""
    rows = []
    for number in range(40):
        text = f"{('red', 'blue', 'green')[number % 3]} number {number} sits on the mat"
        about = {"label": "abcde"[number % 5], "labels": [text.split()[0]], "split": ("train", "validation")[number % 2]}
        rows.append({"text": text, "head": [0, 3], "tail": [len(text) - 3, len(text)], **about})
    (root / "told.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    qas = [{"question": "what?", "answers": [{"text": "mat", "answer_start": 7}]}, {"question": "why?", "answers": []}]
    asked = {"data": [{"paragraphs": [{"context": "on the mat", "qas": qas}] * 4}]}
    (root / "asked.json").write_text(json.dumps(asked))
    return {"told": root / "told.jsonl", "asked": root / "asked.json"}


def kept_sounds(folder):
    """What espeak-ng, which need not be here, would have spoken."""
    folder.mkdir()
    for split in ("train", "validation", "test"):
        spec = Spoken(split, 16, cache=str(folder))
        records = SpokenRecords(spec, spec.own_voices())
        for number in range(16):
            Path(records.file(number)).write_bytes(wav(np.sin(np.arange(4000) / (9 + number)), 8000))
    return folder


def make_data(name, folder, count):
    """Run examples/make_data.py."""
    spec = importlib.util.spec_from_file_location("make_data", MAKES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make_data.py", name, str(folder), "--count", str(count)])
        module.main()


def a_teacher(folder):
    """A run that knows the digits as nobody has trained it to."""
    made = load_config("digits_finetune")
    run = Run(folder)
    folder.mkdir()
    run.write_config(made)
    save_params(run, init_params(made.model, jax.random.key(0)))
    return folder


@pytest.fixture
def quick(monkeypatch):
    """One device, and no optimization passes: two steps are compiled, and hardly run."""
    build = Mesh.build
    monkeypatch.setattr(Mesh, "build", lambda self, devices=None: build(self, devices or jax.devices()[:1]))
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def load(name):
    return load_config(str(EXAMPLES.get(name, name)))


def shrunk(name, places):
    made = load(name)
    words = ALWAYS.split()
    for path, value in leaves(made).items():
        field = path.rsplit(".", 1)[-1]
        if field in SMALL and value:
            words += [f"--{path}", str(SMALL[field])]
    small = apply_flags(made, words + FLAGS[name].format(**places).split())
    # A tokenizer of its own, where the run that it starts from is not at hand.
    kept, before = ({path for path in leaves(e) if not path.startswith("tokenizer")} for e in (small, made))
    assert kept == before
    return small


def test_the_table_knows_every_config():
    assert FLAGS.keys() == CONFIGS.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_short_and_says_its_command(name):
    text = CONFIGS[name].read_text()
    assert len(text.splitlines()) < 80
    said = f"examples/{name}.py" if name in EXAMPLES else name
    assert f"mmjax train {said}" in text.split('"""')[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_json_round_trip_and_full_size(name):
    made = load(name)
    made.check()
    read = from_json(json.loads(json.dumps(to_json(made))))
    assert leaves(read) == leaves(made)
    shapes = param_shapes(made.model)
    assert jax.tree.map(lambda x: x.shape, param_shapes(read.model)) == jax.tree.map(lambda x: x.shape, shapes)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(shapes))
    if name in PUBLISHED:
        assert count(shapes) == PUBLISHED[name]


@pytest.mark.parametrize("name", LONG)
def test_the_step_of_the_shrunk_config_is_traced(name, places, quick):
    """Every part that the tasks ask for is there, and fits the batches."""
    made = shrunk(name, places)
    setup = set_up(made, Run("nowhere"), made.mesh.build())
    tx, rate = made.updating.build(setup.abstract.params, made.steps), made.optimizer.rate(made.steps)
    step = make_step(made.model, made.tasks, made.weighting, made.updating, tx, rate)
    specs = {data: setup.datasets[data].spec().items() for data in made.task_data()}
    batches = {data: {k: jax.ShapeDtypeStruct(*value) for k, value in spec} for data, spec in specs.items()}
    state, figures = jax.eval_shape(step, setup.abstract, batches)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), setup.abstract)
    assert {f"loss/{task}" for task in made.tasks} < figures.keys()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in CONFIGS])
def test_two_steps_of_the_shrunk_config(name, places, quick, tmp_path):
    made = shrunk(name, places)
    metrics = train(made, tmp_path)
    assert metrics and all(np.isfinite(value) for value in metrics.values())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2]
    for task in made.tasks:
        assert np.isfinite([line[f"loss/{task}"] for line in lines[:2]]).all()
    assert {metric.split("/")[0] for metric in metrics} == set(made.evaluate)


def test_a_file_and_chinese_words_come_in_by_the_flags_that_text_pretraining_shows():
    said = CONFIGS["text_pretraining"].read_text().split('"""')[1].replace("\\\\\n", "")
    file, words = re.findall(r"--data\.train[^`\n]+", said)
    made = apply_flags(load("text_pretraining"), [*file.split(), *words.split()])
    assert {type(made.data[split].source).__name__ for split in made.data} == {"Manifest"}
    assert [(own.source.split, own.columns["text"].words) for own in made.data.values()] == [
        ("train", "jieba"),
        ("validation", "jieba"),
    ]


def test_what_is_held_out_is_what_few_shot_learns():
    assert load_config("stamps").data["train"].source.but == HELD_OUT
    towers, few = load_config("stamps").model, load_config("few_shot").model
    assert leaves(towers) == leaves(few), "it starts from these"


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_lines_that_an_example_shows_are_of_the_kind_that_is_made(name, places):
    """Two of them stand in its text, and have the fields of the file."""
    shown = [
        json.loads(line) for line in re.findall(r"^    (\{.*\})$", EXAMPLES[name].read_text().split('"""')[1], re.MULTILINE)
    ]
    made = [json.loads(line) for line in places[name].read_text().splitlines()]
    assert len(shown) == 2 and len({line["split"] for line in made}) == 3
    for line in shown:
        assert {key: type(value) for key, value in line.items()} == {key: type(made[0][key]) for key in line}
        assert made[0].keys() - line.keys() <= {"split"}
