"""Numbers and scores of a run on the lines of a manifest: those of its heads, in the unit of its data."""

import json

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

import mmjax
from mmjax.cli import main
from mmjax.convert.api import save_params
from mmjax.core.errors import UserError
from mmjax.data import Data, Grouped, Manifest, Normalise, Number, WordPiece
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.forward import BoundForward
from mmjax.models.fusion import Concatenate
from mmjax.models.heads import Classifier
from mmjax.models.multimodal import init_params
from mmjax.objectives import Ranking, Regression
from mmjax.train import Task
from mmjax.train.run import Run

QUERIES, TITLES = ("a red hat", "a blue hat", "a cap"), ("of wool", "", "of straw, large")


@pytest.fixture(scope="module")
def place(tmp_path_factory, quick_compiles):
    """A run that nobody has trained, of heads that say a score, a price and how sure they are; and three lines for it."""
    root = tmp_path_factory.mktemp("numbers")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    lines = []
    for number, (query, title) in enumerate(zip(QUERIES, TITLES, strict=True)):
        Image.fromarray(pixels[number]).save(root / f"{number}.png")
        lines.append({"image": f"{number}.png", "query": query, "title": title, "id": 1, "price": 3.5 * number})
    (root / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {"query": "id", "price": "price", "relevance": "price"}
    source = Manifest(str(root / "lines.jsonl"), "all", text_field="query", pair_field="title", fields=fields)
    data = Data(
        Grouped(source, rows=4),
        (Normalise((0.3,) * 3, (0.35,) * 3),),
        columns={"price": Number(mean=20.0, deviation=4.0)},
        batch_size=4,
        max_length=tiny.LENGTH,
    )
    e = tiny.experiment(
        model=Multimodal(
            encoders={"image": tiny.vit(), "text": TextTransformer(**tiny.TEXT, **tiny.SIZE, segments=2)},
            fusions={"both": Concatenate(width=16)},
            heads={
                "score": Classifier(classes=1, input="both"),
                "price": Classifier(classes=1, input="both"),
                "sure": Classifier(classes=2, input="both"),
                "looks": Classifier(classes=1, input="image"),
            },
        ),
        data={"train": data},
        tasks={
            "score": Task(Ranking()),
            "price": Task(Regression("price", "price")),
            "sure": Task(Regression("sure", "price", loss="gaussian_nll")),
            "looks": Task(Regression("looks", "price")),
        },
        evaluate={},
    )
    run = Run(root / "run")
    run.path.mkdir()
    run.write_config(e)
    run.keep_tokenizer(WordPiece(60).train([*QUERIES, *TITLES]))
    save_params(run, init_params(e.model, jax.random.key(1)))
    return root


def test_numbers_have_the_unit_of_the_data_and_a_second_text_is_read(place):
    ask = mmjax.Predictor(place / "run")
    images = [place / f"{number}.png" for number in range(3)]
    found = ask.numbers(images, QUERIES, TITLES)
    tokens = ask.work.tokenizer.encode(QUERIES, tiny.LENGTH, TITLES)
    batch = {"image": np.stack([ask.work.pixels(image) for image in images]), "text": tokens["ids"]}
    batch |= {"text_mask": tokens["mask"], "text_segments": tokens["segments"]}
    forward = BoundForward(ask.model, ask.work.params, batch)
    heads = {name: np.asarray(forward.head(name), np.float64) for name in ("score", "price", "sure")}
    for n, row in enumerate(found):
        mean, log_variance = heads["sure"][n]
        sure = {"sure": 20 + 4 * mean, "sure_deviation": 4 * np.exp(log_variance / 2)}
        assert row == pytest.approx({"score": heads["score"][n, 0], "price": 20 + 4 * heads["price"][n, 0], **sure}, rel=1e-4)
    assert ask.numbers(images, QUERIES)[0] != pytest.approx(found[0])
    assert [*ask.numbers(images)[0]] == ["looks"]
    with pytest.raises(UserError, match="no head says a number of text; the model has encoders image, text"):
        ask.numbers(texts=QUERIES)
    with pytest.raises(UserError, match="3 texts and 2 pairs"):
        ask.numbers(images, QUERIES, TITLES[:2])


def test_the_command_reads_the_texts_of_a_line_by_the_names_of_the_run(place, capsys):
    found = mmjax.Predictor(place / "run").numbers([place / f"{number}.png" for number in range(3)], QUERIES, TITLES)
    assert main(["predict", str(place / "run"), str(place / "lines.jsonl")]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one.pop("text") for one in said] == list(QUERIES)
    assert [one.pop("text_pair", "") for one in said] == list(TITLES)
    assert [one.pop("image") for one in said] == [str(place / f"{number}.png") for number in range(3)]
    for one, own in zip(said, found, strict=True):
        assert one == pytest.approx(own, rel=1e-5)
    asked = ["predict", str(place / "run"), str(place / "1.png")]
    assert main(asked) == 2
    assert "the run reads a text beside each image, 'query', and it stands in no manifest" in capsys.readouterr().err
    assert main([*asked, "--question", "a cap"]) == 0 and "score" in json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def written(tmp_path_factory, quick_compiles):
    """Of texts and of images: a run that nobody has trained, whose head `classes` says numbers, and what is handed over."""
    found = {}
    for kind in ("text", "image"):
        root = tmp_path_factory.mktemp(kind)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{number}.png")
        lines = [{"image": f"{n}.png", "text": text, "price": 3.5 * n} for n, text in enumerate(QUERIES)]
        own = [{key: line[key] for key in (kind, "price")} for line in lines]
        (root / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
        source = Manifest(str(root / "lines.jsonl"), "all", fields={"price": "price"})
        transforms = (Normalise((0.3,) * 3, (0.35,) * 3),) if kind == "image" else ()
        columns = {"price": Number(mean=20.0, deviation=4.0)}
        text = {**tiny.TEXT, **tiny.SIZE, "norm_placement": "post", "embed_norm": True, "segments": 2}
        image = ViT(image_size=(8, 8), patch=(4, 4), cls_token=True, **tiny.SIZE)
        encoder = image if kind == "image" else TextTransformer(**text)
        width = {} if kind == "image" else {"hidden_width": tiny.SIZE["width"]}
        head = Classifier(classes=1, input=kind, pool="cls", **width)
        e = tiny.experiment(
            model=Multimodal(encoders={kind: encoder}, heads={"classes": head}),
            data={"train": Data(source, transforms, columns, batch_size=3, max_length=tiny.LENGTH)},
            tasks={"price": Task(Regression("classes", "price"))},
            evaluate={},
        )
        run = Run(root / "run")
        run.path.mkdir()
        run.write_config(e)
        run.keep_tokenizer(WordPiece(60).train(QUERIES))
        params = init_params(e.model, jax.random.key(1))
        params["heads_classes"]["logits"]["kernel"] = jax.numpy.asarray(np.random.default_rng(5).normal(size=(16, 1)) / 4)
        save_params(run, params)
        assert main(["convert", "to-hf", str(run.path), str(root / "hf")]) == 0
        found[kind] = root
    return found


@pytest.mark.parametrize("kind", ["text", "image"])
def test_what_is_handed_over_says_the_same_numbers_in_the_same_unit(written, kind):
    """A pipeline takes a lone logit for one of yes and no unless config.json says that it is a number."""
    transformers = pytest.importorskip("transformers")
    root = written[kind]
    given = {"texts": list(QUERIES)} if kind == "text" else {"images": [str(root / f"{n}.png") for n in range(3)]}
    ask, again = mmjax.Predictor(root / "run"), mmjax.Predictor(root / "hf")
    ours = [one["classes"] for one in ask.numbers(**given)]
    assert np.std(ours) > 0.1 and abs(np.mean(ours) - 20) < 8
    assert not ask.classifies() and not again.classifies()
    how = (
        {}
        if kind == "text"
        else {"image_processor": transformers.AutoImageProcessor.from_pretrained(root / "hf", backend="pil")}
    )
    pipe = transformers.pipeline(f"{kind}-classification", model=str(root / "hf"), device="cpu", **how)
    theirs = [one[0]["score"] if isinstance(one, list) else one["score"] for one in pipe(*given.values())]
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)
    np.testing.assert_allclose([one["classes"] for one in again.numbers(**given)], ours, rtol=1e-5)


def test_a_lone_class_of_which_nothing_is_said_is_there_or_not(written):
    """As the pipeline has it: rerankers are such."""
    transformers = pytest.importorskip("transformers")
    folder = written["text"] / "hf"
    about = json.loads((folder / "config.json").read_text())
    del about["problem_type"]
    bare = written["text"] / "bare"
    bare.mkdir()
    for file in folder.iterdir():
        (bare / file.name).write_bytes(json.dumps(about).encode() if file.name == "config.json" else file.read_bytes())
    params = mmjax.Predictor(bare).work.params["heads_classes"]["logits"]
    assert params["bias"].item() == pytest.approx(20)
    theirs = transformers.pipeline("text-classification", model=str(bare), device="cpu")(list(QUERIES))
    ours = mmjax.Predictor(bare).classify(texts=list(QUERIES))
    np.testing.assert_allclose([one[0]["score"] for one in ours], [one["score"] for one in theirs], rtol=1e-6)
