"""A run at work: its answers on new files are those of its own evaluation, from Python and from the command line."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tiny
import torch
import transformers
from PIL import Image

import mmjax
from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.data import Digits, Strings
from mmjax.evaluate import Captions, Report, ZeroShot
from mmjax.generate import Settings
from mmjax.models.forward import BoundForward
from mmjax.models.heads import Classifier
from mmjax.predict.answers import Input, listed
from mmjax.train import Checkpoint, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a classifier, a dual space and a captioner."""
    path = tmp_path_factory.mktemp("predict") / "run"
    tasks = tiny.tasks("classify", "contrastive", "caption")
    whole = tiny.model()
    model = whole.copy(fusions={"dual": whole.fusions["dual"]}, heads={"classes": Classifier(classes=10, input="image")})
    e = tiny.experiment(model=model, tasks=tasks, steps=20, evaluate={"report": Report()}, evaluate_every=0)
    train(dataclasses.replace(e, checkpoint=Checkpoint(every=20)), path)
    return path


@pytest.fixture(scope="module")
def ask(run):
    return mmjax.Predictor(run, batch_size=8)


@pytest.fixture(scope="module")
def digits():
    records = Digits("validation").build()
    return [records[i]["image"] for i in range(19)]


@pytest.fixture
def files(digits, tmp_path):
    """The same pictures as files of several kinds, one of them with a transparent layer, and one that is none."""
    for i, pixels in enumerate(digits[:5]):
        image = Image.fromarray(pixels)
        (image.convert("RGBA") if i == 1 else image).save(tmp_path / f"{i}.{('png', 'png', 'bmp', 'tiff', 'gif')[i]}")
    (tmp_path / "3x.png").write_bytes(b"no image")
    return tmp_path


def test_classes_are_those_of_the_evaluation(ask, digits):
    evaluation = tiny.data("validation").build(ask.work.tokenizer, 0, "validation")
    batch = {"image": np.stack([evaluation.batch(0)["image"][0]])}  # of the shape that the model reads
    assert batch["image"].shape[1:] == ask.work.pixels(digits[0]).shape
    pixels = np.stack([ask.work.pixels(x) for x in digits])
    logits = np.asarray(BoundForward(ask.model, ask.work.params, {"image": pixels}).head("classes"), np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = ask.classify(digits, top_k=0)
    names = ask.work.classes["classes"]
    assert len(found) == len(digits) and len(names) == 10
    for row, share in zip(found, shares, strict=True):
        assert [names.index(one["label"]) for one in row] == np.argsort(-share, kind="stable").tolist()
        np.testing.assert_allclose([one["score"] for one in row], -np.sort(-share), rtol=1e-4)


def test_the_evaluator_finds_the_same(run, ask):
    records = Digits("test").build()  # what the finished run was evaluated on
    whole = [records[i] for i in range(len(records))]
    said = ask.classify([record["image"] for record in whole], top_k=1)
    names = ask.work.classes["classes"]
    right = np.mean([row[0]["label"] == names[record["label"]] for row, record in zip(said, whole, strict=True)])
    metrics = json.loads((run / "finished.json").read_text())["metrics"]
    assert right == pytest.approx(metrics["report/accuracy"], abs=1e-12)


def test_a_picture_is_the_same_however_it_comes(ask, digits, files):
    pixels, image = digits[1], Image.fromarray(digits[1])
    ways = ask.classify([pixels, image, image.convert("RGBA"), files / "1.png", str(files / "1.png")])
    assert all(way == ways[0] for way in ways)


def test_vectors_and_names_that_no_head_knows(ask, digits):
    images, texts = ask.embed_image(digits[:3]), ask.embed_text(["the number one.", "the number two."])
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(ask.similarity(digits[:3], ["the number one.", "the number two."]), images @ texts.T, rtol=1e-6)
    (row, *_) = ask.classify(digits[:3], classes=("one", "two"), template="the number {}.", top_k=0)
    scale = float(BoundForward(ask.model, ask.work.params, {}).scalar("dual", "scale"))
    likely = np.exp(scale * (images @ texts.T)[0])
    wanted = dict(zip(("one", "two"), likely / likely.sum(), strict=True))
    assert {one["label"]: one["score"] for one in row} == pytest.approx(wanted, rel=1e-4)


def test_prompts_are_those_of_the_runs_own_evaluator(tmp_path, digits):
    """Several templates: each class is the mean of their vectors, and what is said of test pictures is what `ZeroShot` says."""
    run = tmp_path / "run"
    metrics = train(
        tiny.experiment(steps=20, checkpoint=Checkpoint(every=20), evaluate={"prompted": ZeroShot(tiny.TEMPLATES)}), run
    )
    records, ask = Digits("test").build(), mmjax.Predictor(run)
    whole = [records[i] for i in range(len(records))]
    images = [record["image"] for record in whole]
    said = ask.classify(images, classes=records.classes, top_k=1)
    told = [json.loads(row) for row in (run / "predictions.jsonl").read_text().splitlines()]
    assert [row[0]["label"] for row in said] == [row["predicted"] for row in told]
    assert np.mean([row["predicted"] == row["label"] for row in told]) == pytest.approx(metrics["prompted/accuracy"])
    asked, embed = [], ask.embed_text
    ask.embed_text = lambda texts: asked.append(len(texts)) or embed(texts)
    for n in range(3):  # of pictures that come one after the other, the texts are read once
        assert ask.classify(images[n], classes=("six", "two"))
    assert asked == [2 * len(tiny.TEMPLATES)]
    one = ask.classify(images[:9], classes=records.classes, template="the number {}.")
    assert one != ask.classify(images[:9], classes=records.classes)
    assert ask.classify(images[:9], classes=("a {b}", "{}")) is not None
    with pytest.raises(UserError, match=r"lacks the \{\} where the class name goes"):
        ask.classify(images[0], classes=("one", "two"), template="a photo")


def test_captions_are_the_likeliest_words(ask, digits):
    """Against the forward without a cache, one token at a time."""
    tokenizer, found = ask.work.tokenizer, ask.generate(images=digits[:3], max_new_tokens=6)
    for image, text in zip(digits, found, strict=False):
        ids = [tokenizer.bos_id]
        while len(ids) < 7 and tokenizer.eos_id not in ids[1:]:
            batch = {"image": ask.work.pixels(image)[None], "text": np.array([ids], np.int32)}
            forward = BoundForward(ask.model, ask.work.params, batch | {"text_mask": np.ones((1, len(ids)), bool)})
            logits = forward.decode("caption", forward.batch, {"image": forward.tokens("image")})
            ids.append(int(np.argmax(logits[0, -1])))
        assert tokenizer.decode(ids) == text


def test_the_command_answers_each_input_and_says_which_it_cannot_read(run, files, capsys):
    out = files / "out.jsonl"
    assert main(["predict", str(run), str(files), "--top_k", "1", "--out", str(out)]) == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["image"].rsplit("/")[-1] for row in rows] == ["0.png", "1.png", "2.bmp", "3.tiff", "3x.png", "4.gif"]
    assert "error" in rows[4] and all(len(row["classes"]) == 1 for row in rows if "error" not in row)
    assert main(["predict", str(run), str(files / "0.png"), "--out", str(out)]) == 2
    assert "the file is there already" in capsys.readouterr().err
    assert main(["predict", str(run), str(files / "0.png"), "--top_k", "1"]) == 0
    (alone,) = json.loads(capsys.readouterr().out)["classes"]
    (among,) = rows[0]["classes"]
    assert alone["label"] == among["label"] and alone["score"] == pytest.approx(among["score"], rel=1e-5)


@pytest.mark.parametrize(
    ("ask_for", "said"),
    [
        (lambda ask: ask.generate(images=None), "looks at an image, and there is none"),
        (lambda ask: ask.generate(prompts=["one", "two"], images=np.zeros((8, 8, 3), np.uint8)), "1 images and 2 prompts"),
        (lambda ask: ask.generate(prompts="the number " * 9, images=np.zeros((8, 8, 3), np.uint8)), "do not fit into"),
        (lambda ask: ask.classify(np.zeros((8, 8))), "an image is a path, a PIL image or uint8 [H, W, 3]"),
        (lambda ask: ask.classify(np.zeros((9, 8, 3), np.uint8)), "an image of 9 x 8 pixels after the run's transforms"),
        (lambda ask: ask.classify(), "give images, texts, sounds or videos, or several of them"),
        (lambda ask: ask.classify(texts="one"), "heads.classes reads an image; it was given text"),
        (lambda ask: ask.classify(np.zeros((8, 8, 3), np.uint8), head="tags"), "head='tags': the heads are"),
        (lambda ask: ask.generate(decoder="pixels"), "decoder='pixels': the decoders that write texts are caption"),
    ],
)
def test_what_cannot_be_answered_is_one_line(ask_for, said, ask):
    with pytest.raises(UserError) as caught:
        ask_for(ask)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "predict takes a run and what to answer"),
        (["run"], "predict takes a run and what to answer"),
        (["run", "x.png", "--texts"], "predict has no --texts (did you mean '--text'?)"),
        (["run", "hello", "--pair", "why"], "--pair is the second of two texts: give --text"),
        (["no_such_run", "x.png"], "no_such_run: there is no run, and no HuggingFace folder"),
        (["no_such_run", "no_such_manifest.jsonl"], "no_such_run: there is no run"),
    ],
)
def test_mistaken_words_are_one_line(words, said, capsys):
    assert main(["predict", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_a_draw_depends_on_the_number_of_the_input_and_not_on_the_batch(run, ask, digits):
    draw = {"images": digits[:11], "do_sample": True, "max_new_tokens": 5, "seed": 3}
    found = ask.generate(**draw)
    assert mmjax.Predictor(run, batch_size=3).generate(**draw) == found
    assert ask.generate(**{**draw, "images": digits[9:11]}, numbers=[9, 10]) == found[9:]
    assert len(set(ask.generate(images=[digits[0]] * 11, do_sample=True, top_k=0, temperature=3.0))) > 1


def test_a_prompt_is_gone_on_with(ask, digits):
    """The prompt without its end, read by the forward without a cache."""
    tokenizer = ask.work.tokenizer
    (found,) = ask.generate(prompts="the number", images=digits[:1], max_new_tokens=2)
    ids = tokenizer.encode(["the number"], 12)["ids"][0]
    ids = ids[: list(ids).index(tokenizer.eos_id)].tolist()
    assert ask.work.prompt("the number") == ids
    start = len(ids)
    while len(ids) < start + 2 and tokenizer.eos_id not in ids[start:]:
        batch = {"image": ask.work.pixels(digits[0])[None], "text": np.array([ids], np.int32)}
        forward = BoundForward(ask.model, ask.work.params, batch | {"text_mask": np.ones((1, len(ids)), bool)})
        logits = forward.decode("caption", forward.batch, {"image": forward.tokens("image")})
        ids.append(int(np.argmax(logits[0, -1])))
    assert tokenizer.decode(ids[start:]) == found


def test_several_texts_of_an_image_a_stop_string_and_a_rule_of_ones_own(ask, digits):
    asked = {"images": digits[:3], "max_new_tokens": 6}
    several = ask.generate(num_beams=3, num_return_sequences=2, **asked)
    assert [len(own) for own in several] == [2, 2, 2] and all(first != second for first, second in several)
    assert [own[0] for own in several] == ask.generate(num_beams=3, **asked)
    (whole,) = ask.generate(images=digits[0], max_new_tokens=6)
    word = whole.split()[1]
    assert ask.generate(images=digits[0], max_new_tokens=6, stop_strings=word) == [whole[: whole.index(word) + len(word)]]
    never = ask.work.tokenizer.huggingface.convert_tokens_to_ids(word)
    (other,) = ask.generate(logits_processor=lambda x, written: x.at[:, never].set(-1e9), images=digits[0], max_new_tokens=6)
    assert word not in other.split() and other


def test_pieces_of_tokens_make_up_the_text(ask):
    tokenizer = ask.work.tokenizer
    ids = tokenizer.encode(["a photo of the number seven"], 20)
    row = [int(i) for i in ids["ids"][0][ids["mask"][0]]]
    assert b"".join(tokenizer.pieces(500)[i] for i in row).decode().strip() == tokenizer.decode(row).strip()


def test_a_manifest_names_images_and_a_question_of_each(run, files, tmp_path, capsys):
    table = tmp_path / "asked.jsonl"
    table.write_text("".join(json.dumps({"image": f"{n}.png"}) + "\n" for n in (1, 0)))
    assert main(["predict", str(run), str(table), "--top_k", "1"]) == 0
    assert [json.loads(row)["image"] for row in capsys.readouterr().out.splitlines()] == [
        str(files / f"{n}.png") for n in (1, 0)
    ]
    (tmp_path / "texts.csv").write_text("text\nthe number\na photo of\n")
    found = [one.given for one in listed([str(tmp_path / "texts.csv"), "is it in no.csv"], "text")]
    assert found == ["the number", "a photo of", "is it in no.csv"]
    (tmp_path / "new.txt").write_text("a text\n")
    for name, said in (("no.csv", "no.csv'?: no such file"), (str(tmp_path / "new.txt"), "with --text a file is a manifest")):
        with pytest.raises(UserError, match=said):
            listed([name], "text")
    (tmp_path / "q.csv").write_text("image,question\n0.png,what is it?\n1.png,\n")
    asked = listed([str(tmp_path / "q.csv")], "image")
    assert asked == [Input(str(files / "0.png"), "what is it?"), Input(str(files / "1.png"))]
    assert main(["predict", str(run), str(tmp_path / "q.csv")]) == 2
    assert "1.png: it has no question, and others have" in capsys.readouterr().err
    (tmp_path / "bad.csv").write_text("picture,label\n0.png,1\n")
    assert main(["predict", str(run), str(tmp_path / "bad.csv")]) == 2
    assert "bad.csv:2: its 'image' is None, no string; the line has picture, label" in capsys.readouterr().err


def test_classes_stand_in_a_file_too(run, files, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\n\n")
    words = ["predict", str(run), str(files / "0.png"), "--top_k", "0", "--template", "the number {}."]
    assert main([*words, "--classes", str(names)]) == 0
    there = capsys.readouterr().out
    assert main([*words, "--classes", "one, two"]) == 0
    assert capsys.readouterr().out == there
    for wrong, said in (("one,one", "name each once"), (" , ", "it names none")):
        assert main([*words, "--classes", wrong]) == 2
        assert said in capsys.readouterr().err


def test_labels_that_do_not_exclude_each_other_are_each_likely_by_itself(tmp_path, digits):
    """A checkpoint of `problem_type="multi_label_classification"` against the pipeline of `transformers`."""
    names = {0: "a", 1: "b", 2: "c"}
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(
        **sizes, image_size=8, patch_size=4, id2label=names, label2id={v: k for k, v in names.items()}
    )
    config.problem_type = "multi_label_classification"
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    pipe, ask = transformers.pipeline("image-classification", model=str(tmp_path)), mmjax.Predictor(tmp_path)
    (found,) = ask.classify(digits[0], top_k=0)
    wanted = {one["label"]: one["score"] for one in pipe(Image.fromarray(digits[0]), top_k=3)}
    assert {one["label"]: one["score"] for one in found} == pytest.approx(wanted, rel=1e-5)
    middle = sorted(wanted.values())[1]
    assert len(ask.classify(digits[0], top_k=0, threshold=middle - 1e-6)[0]) == 2
    assert ask.classify(digits[0], threshold=1.0) == [[]]


def test_a_threshold_is_of_labels_that_do_not_exclude_each_other(run, files, capsys):
    assert main(["predict", str(run), str(files / "0.png"), "--threshold", "0.5"]) == 2
    assert "exclude each other; use top_k" in capsys.readouterr().err


def test_answers_come_in_order_however_many_are_read_ahead(run, files, tmp_path, capsys):
    """More than the batches that are read ahead, the unreadable ones among them."""
    good = ("0.png", "1.png", "2.bmp", "3.tiff", "4.gif")
    rows = [{"image": good[n % 5] if n % 7 else "3x.png"} for n in range(40)]
    table = tmp_path / "many.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["predict", str(run), str(table), "--top_k", "1", "--batch_size", "4"]) == 1
    found = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [one["image"].rsplit("/")[-1] for one in found] == [row["image"] for row in rows]
    assert [n for n, one in enumerate(found) if "error" in one] == list(range(0, 40, 7))
    alike = {one["image"]: one["classes"][0]["label"] for one in found if "classes" in one}
    assert all(one["classes"][0]["label"] == alike[one["image"]] for one in found if "classes" in one)


def test_a_question_is_cut_at_what_reads_it_and_not_at_what_writes_the_answer(ask):
    short = {"caption": ask.model.decoders["caption"].copy(max_length=5)}
    assert dataclasses.replace(ask.work, model=ask.model.copy(decoders=short)).length() == ask.work.length() == 12


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa", "RGBA", "LA", "L", "P", "1", "F", "I", "PA"])
def test_a_picture_of_any_mode_is_read(mode, ask, digits):
    image = Image.fromarray(digits[1])
    image = (
        image.convert("LA").convert("PA")
        if mode == "PA"
        else image.convert({"RGBa": "RGBA", "F": "L", "I": "L"}.get(mode, mode))
    )
    image = image.convert(mode)
    assert ask.work.pixels(image).shape == ask.work.pixels(digits[1]).shape
    if mode in ("CMYK", "RGBX", "RGBa", "RGBA"):
        np.testing.assert_array_equal(ask.work.pixels(image), ask.work.pixels(digits[1]))


def test_a_picture_that_is_turned_is_turned_from_both_sides(ask, digits, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(digits[1]).save(tmp_path / "turned.png", exif=exif)
    turned = ask.work.pixels(tmp_path / "turned.png")
    np.testing.assert_array_equal(ask.work.pixels(Image.open(tmp_path / "turned.png")), turned)
    assert (turned != ask.work.pixels(digits[1])).any()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--top_k", "-1"], "--top_k=-1"),
        (["--threshold", "5"], "--threshold=5"),
        (["--classes", "a,b", "--template", "{x}"], "lacks the {} where the class name goes"),
        (["--out", "no_such_folder/x.jsonl"], "--out no_such_folder/x.jsonl: it cannot be written"),
    ],
)
def test_options_that_mean_nothing_are_one_line(words, said, run, files, capsys):
    assert main(["predict", str(run), str(files / "0.png"), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_many_classes_and_empty_manifests(run, files, tmp_path, capsys):
    assert main(["predict", str(run), str(files / "0.png"), "--classes", ",".join(map(str, range(1000, 1070)))]) == 0
    (tmp_path / "empty.csv").write_text("image\n")
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path / "empty.csv")]) == 2
    assert "empty.csv: it has no lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ask_for", "said"),
    [
        (lambda ask: ask.classify([]), "a list of no inputs"),
        (lambda ask: ask.classify("no_such.png"), "no such file"),
        (lambda ask: ask.classify(np.zeros((8, 8, 3), np.uint8), classes="red"), "give a list of names"),
        (lambda ask: ask.classify(np.zeros((8, 8, 3), np.uint8), top_k=-1), "top_k=-1"),
        (lambda ask: ask.embed_text(5), "a text is a string; found int 5"),
        (lambda ask: mmjax.Predictor(ask.work.path, batch_size="x"), "batch_size='x'"),
    ],
)
def test_what_is_no_input_is_one_line(ask_for, said, ask):
    with pytest.raises(UserError) as caught:
        ask_for(ask)
    assert said in str(caught.value)


def test_what_a_command_draws_does_not_depend_on_its_batches(run, files, tmp_path, capsys):
    """A run whose weights came with `do_sample`: the same picture many times, in batches of two sizes."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "huggingface").mkdir()
    (copy / "huggingface" / "generation_config.json").write_text('{"do_sample": true, "top_k": 0, "temperature": 3.0}')
    table = tmp_path / "same.jsonl"
    table.write_text((json.dumps({"image": str(files / "0.png")}) + "\n") * 7)
    said = []
    for size in ("2", "7"):
        assert main(["predict", str(copy), str(table), "--decoder", "caption", "--batch_size", size]) == 0
        said.append([json.loads(row)["caption"] for row in capsys.readouterr().out.splitlines()])
    assert said[0] == said[1] and len(set(said[0])) > 3


def test_texts_are_written_as_the_runs_own_evaluator_writes_them(tmp_path, digits, capsys):
    """Beams, lengths and penalties of `Captions` are those of `predict` too, what is cut is said, and a captioner that was
    never asked a question answers none."""
    run = tmp_path / "run"
    whole = tiny.model()
    model = whole.copy(fusions={}, heads={})
    settings = Settings(max_new_tokens=4, num_beams=2, repetition_penalty=1.5)
    captions = Captions(scores=("exact_match",), settings=settings)
    columns = {"references": Strings(of="text")}
    data = {split: tiny.data(split, columns=columns) for split in ("train", "validation", "test")}
    e = tiny.experiment(model=model, data=data, tasks=tiny.tasks("caption"), steps=20, evaluate={"captions": captions})
    train(dataclasses.replace(e, evaluate_every=0, checkpoint=Checkpoint(every=20)), run)
    told = [json.loads(row)["text"] for row in (run / "predictions.jsonl").read_text().splitlines()]
    records = Digits("test").build()
    for i in range(12):
        Image.fromarray(records[i]["image"]).save(tmp_path / f"{i:02d}.png")
    files = [str(tmp_path / f"{i:02d}.png") for i in range(12)]
    assert main(["predict", str(run), *files]) == 0
    said = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [one["caption"] for one in said] == told[:12]
    assert mmjax.Predictor(run).generate(images=files, num_beams=1) != told[:12] or len(set(told[:12])) == 1
    ended = [one.ended for one in mmjax.Predictor(run).generate(images=files, details=True)]
    assert [not one.get("cut", False) for one in said] == ended
    assert main(["predict", str(run), files[0], "--question", "what is it?"]) == 2
    assert "decoders.caption was given no questions when it was trained" in capsys.readouterr().err


def test_how_many_inputs_could_not_be_read_is_said(run, files, tmp_path, capsys):
    out = str(tmp_path / "out.jsonl")
    assert main(["predict", str(run), str(files / "0.png"), str(files / "3x.png"), "--out", out]) == 1
    assert f"1 of 2 inputs could not be read: they have an error in {out}" in capsys.readouterr().err


def test_what_only_compares_asks_for_classes(tmp_path, files, capsys):
    run = tmp_path / "run"
    whole = tiny.model()
    model = whole.copy(fusions={"dual": whole.fusions["dual"]}, heads={}, decoders={})
    train(tiny.experiment(model=model, tasks=tiny.tasks("contrastive"), steps=2, checkpoint=Checkpoint(every=2)), run)
    capsys.readouterr()
    assert main(["predict", str(run), str(files / "0.png")]) == 2
    assert "compares images with texts: say by --classes what to choose from" in capsys.readouterr().err
