"""What decides whether and as what a run goes back to HuggingFace: ids, sizes, names, parts; what is told before training."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf
from cases import Made
from families import CASES
from parity import assert_close, randomise, save
from tuned import TEXTS, tokenizer

import mmjax
from mmjax.adapt import Prefix, Prompt
from mmjax.convert import FAMILIES, load_classifier, save_hf
from mmjax.convert.export import head_outcomes, image_sizes, in_units, obstacle, prepare, text_tokenizer
from mmjax.convert.huggingface import build_model
from mmjax.convert.tokenizer import save_tokenizer
from mmjax.convert.towers import same_class
from mmjax.core.errors import UserError
from mmjax.data import Data, Number, Tokenizer
from mmjax.models import Multimodal, init_params
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification, MultiLabel, Regression
from mmjax.train import Experiment, Task
from mmjax.train.measured import Measured, begun, measured, units

SIZE = {"width": 16, "heads": 2, "depth": 1}
GPT2 = TextDecoder(vocab_size=64, max_length=12, context=(), norm_epsilon=1e-5, activation="gelu_tanh", **SIZE)


def vit(side=(8, 8), **head):
    image = ViT(image_size=(8, 8), patch=(4, 4), cls_token=True, **SIZE)
    model = Multimodal(encoders={"image": image}, heads={"classes": Classifier(2, "image", **{"pool": "cls", **head})})
    return model, {"image": side}


def imported(kind, **changes):
    """A small model of a family as HuggingFace has it."""
    _, model, _ = build_model({"model_type": kind, **changes})
    return model


def test_the_images_size_is_written():
    model, sizes = vit((12, 16))
    whole = prepare(model, None, sizes, {})
    assert whole.architecture == "ViTForImageClassification"
    assert FAMILIES["vit"].config(whole.model)["image_size"] == [12, 16]


def test_a_class_of_squares_refuses_another_shape():
    with pytest.raises(UserError, match="squares only"):
        prepare(imported("clip_vision_model"), None, {"image": (224, 448)}, {})


def test_only_encoders_with_a_table_have_a_size():
    shapes = {"train": {"image": [12, 16, 3], "text": [9]}}
    tasks = {"task": Task(Classification())}
    e = Experiment(model=vit()[0], data={"train": Data(None)}, tasks=tasks, steps=1)
    assert image_sizes(e, shapes) == {"image": (12, 16)}
    free = e.model.copy(encoders={"image": e.model.encoders["image"].copy(positions="sincos")})
    assert image_sizes(dataclasses.replace(e, model=free), shapes) == {}


@pytest.mark.parametrize(
    ("names", "labels"),
    [({"classes": ("oak", "yew")}, ["oak", "yew"]), ({"classes": None}, ["LABEL_0", "LABEL_1"]), ({}, ["a", "b"])],
)
def test_names_are_those_of_the_heads_classes(names, labels):
    """Those that it came with stay only where no task of the run trained the head."""
    model = vit()[0].copy(huggingface={"model_type": "vit", "id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}})
    written = FAMILIES["vit"].config(prepare(model, None, {}, names).model)
    assert list(written["id2label"].values()) == labels and list(written["label2id"]) == labels


def test_a_head_of_several_classes_an_example_says_so():
    """`transformers` takes the softmax of logits of which nothing else is said."""
    model, names = vit()[0].copy(huggingface={"model_type": "vit"}), {"classes": ("oak", "yew")}
    written = FAMILIES["vit"].config(prepare(model, None, {}, names, {"classes": "several"}).model)
    assert written["problem_type"] == "multi_label_classification"
    assert "problem_type" not in FAMILIES["vit"].config(prepare(model, None, {}, names, {"classes": "one"}).model)
    assert prepare(model, None, {}, {}, {"classes": "ordered"}) is None  # C - 1 logits would be taken for classes
    stale = model.copy(huggingface={"model_type": "vit", "problem_type": "multi_label_classification"})
    written = FAMILIES["vit"].config(prepare(stale, None, {}, names, {"classes": "one"}).model)
    assert written["problem_type"] == "single_label_classification"  # it was a head's that began anew
    tasks = {"task": Task(MultiLabel())}
    assert head_outcomes(Experiment(model=model, data={"train": Data(None)}, tasks=tasks, steps=1)) == {"classes": "several"}


def test_a_head_of_numbers_says_so_in_the_unit_of_the_data():
    model = vit()[0].copy(huggingface={"model_type": "vit"})
    whole = prepare(model, None, {}, {}, {}, {"classes": Measured(20.0, 4.0)})
    assert FAMILIES["vit"].config(whole.model)["problem_type"] == "regression"
    layer = {"kernel": np.float32([[1, 2]]), "bias": np.float32([0, 1])}
    found = in_units(whole, {"heads_classes": {"logits": layer, "norm": layer}, "other": layer})
    assert found["heads_classes"]["logits"]["kernel"].tolist() == [[4, 8]]
    assert found["heads_classes"]["logits"]["bias"].tolist() == [20, 24]
    assert found["heads_classes"]["norm"] is layer and found["other"] is layer and layer["bias"].tolist() == [0, 1]
    assert prepare(model, None, {}, {}, {}, {"classes": Measured(variance=True)}) is None
    gpt = imported("gpt2", architectures=["GPT2ForSequenceClassification"])
    with pytest.raises(UserError, match=r"GPT2ForSequenceClassification's head has no bias, which Number\(mean=20.0\) needs"):
        prepare(gpt, tokenizer(), {}, {}, {}, {"classes": Measured(20.0, 4.0)})


def test_what_is_taken_up_again_is_brought_into_the_unit_of_its_new_data():
    def made(unit, **objective):
        data = {"train": Data(None, columns={"price": Number(*unit)})}
        tasks = {"price": Task(Regression("classes", "price", **objective))}
        return Experiment(model=vit()[0], data=data, tasks=tasks, steps=1)

    path, rng = "heads_classes/logits/", np.random.default_rng(0)
    loaded = {f"{path}kernel": rng.normal(size=(4, 2)), f"{path}bias": rng.normal(size=2), "heads_other/logits/bias": 1.0}
    found, said = begun(made((20.0, 4.0)), made((5.0, 0.5)), loaded)
    x = rng.normal(size=4)
    number = 4 * (x @ loaded[f"{path}kernel"] + loaded[f"{path}bias"]) + 20
    np.testing.assert_allclose(0.5 * (x @ found[f"{path}kernel"] + found[f"{path}bias"]) + 5, number)
    assert found["heads_other/logits/bias"] == 1.0
    assert said == ["  heads_classes is brought from numbers with mean 20 and deviation 4 to mean 5 and deviation 0.5"]
    assert begun(made((5.0, 0.5)), made((5.0, 0.5)), loaded) == (loaded, [])
    exported = Experiment(model=vit()[0].copy(huggingface={"problem_type": "regression"}), data={}, tasks={}, steps=0)
    found, _ = begun(exported, made((20.0, 4.0)), loaded)
    number = x @ loaded[f"{path}kernel"] + loaded[f"{path}bias"]
    np.testing.assert_allclose(4 * (x @ found[f"{path}kernel"] + found[f"{path}bias"]) + 20, number)
    with pytest.raises(UserError, match=r"heads.classes says numbers with mean 0 and deviation 1 there, and here they"):
        begun(exported, made((20.0, 4.0)), {f"{path}kernel": loaded[f"{path}kernel"]})
    with pytest.raises(
        UserError, match=r"deviation 4, and their variance: say the same, or begin it anew \(init_fresh='heads_cl"
    ):
        begun(exported, made((20.0, 4.0), loss="gaussian_nll"), loaded)


def test_a_head_says_numbers_in_one_unit():
    data = {name: Data(None, columns={"price": Number(*unit)}) for name, unit in {"a": (20, 4), "b": (1000, 400)}.items()}
    tasks = {name: Task(Regression("classes", "price"), data=name) for name in data}
    e = Experiment(model=vit()[0], data=data, tasks=tasks, steps=1)
    with pytest.raises(
        UserError, match=r"tasks.b: it trains heads.classes on numbers with mean 1000 and deviation 400, and tas"
    ):
        measured(e)
    assert units(e) == {"price": ("a", (20, 4))}


def test_every_family_with_texts_gets_the_tokenizers_ids():
    for kind, family in FAMILIES.items():
        changes = {"pad_token_id": 0} if kind == "roberta" else {}
        for name in family.models:
            if kind == "vilt" and name == "ViltForImagesAndTextClassification":
                changes |= {"num_images": 2, "modality_type_vocab_size": 3}
            model = imported(kind, architectures=[name], **changes)
            text = any(hasattr(part, "vocab_size") for part in (*model.encoders.values(), *model.decoders.values()))
            whole = prepare(model, tokenizer(), {}, {})
            assert whole.architecture == name
            for group in family.texts if text else ():
                said = whole.model.huggingface[group] if group else whole.model.huggingface
                assert (said["bos_token_id"], said["eos_token_id"], said["pad_token_id"]) == (2, 3, 0), name
                assert not family.ends_with_sep or said["sep_token_id"] == 3


def stub(**ids):
    """What `prepare` reads of a tokenizer."""
    return types.SimpleNamespace(**{"bos_id": 5, "eos_id": 7, "pad_id": 0, **ids})


@pytest.mark.parametrize(
    ("kind", "name", "ids", "said"),
    [
        ("clip", "CLIPModel", {"eos_id": 2}, "looks for the largest id"),
        ("roberta", "RobertaModel", {}, "position_offset must be 1"),
        ("gpt2", "GPT2ForSequenceClassification", {"pad_id": 7}, "give it a pad_token"),
        ("llama", "LlamaForSequenceClassification", {"pad_id": 7}, "give it a pad_token"),
    ],
)
def test_ids_with_which_the_class_would_answer_otherwise_are_refused(kind, name, ids, said):
    with pytest.raises(UserError, match=said):
        prepare(imported(kind, architectures=[name]), stub(**ids), {}, {})


def test_several_ends_stay_where_the_tokenizers_is_among_them():
    whole = prepare(imported("llama", eos_token_id=[7, 9]), stub(), {}, {})
    assert whole.model.huggingface["eos_token_id"] == (7, 9)
    assert prepare(imported("llama", eos_token_id=[8, 9]), stub(), {}, {}).model.huggingface["eos_token_id"] == 7


def test_nothing_was_trained_nothing_is_changed():
    e = Experiment(model=vit()[0], data={}, tasks={}, steps=0)
    assert text_tokenizer(e, {"": tokenizer()}) is None


@pytest.mark.parametrize("kind", FAMILIES)
def test_no_null_that_transformers_refuses(kind):
    """A model of our own with each class's parts, what is "as the others" left so."""
    for name in FAMILIES[kind].models:
        if name == "ViltForImagesAndTextClassification":
            continue
        model = imported(kind, architectures=[name])
        for room in ("encoders", "decoders"):
            made = {
                n: p.copy(embed_dropout=None) if hasattr(p, "embed_dropout") else p for n, p in getattr(model, room).items()
            }
            made = {n: p.copy(mlp_bias=None) if hasattr(p, "mlp_bias") else p for n, p in made.items()}
            model = model.copy(**{room: made})
        found = same_class(model.copy(huggingface={}))
        assert found is not None, name
        config = FAMILIES[found[0].huggingface["model_type"]].config(found[0])
        read = hf.AutoConfig.for_model(config["model_type"]).__class__.from_dict(json.loads(json.dumps(config)))
        assert read.model_type == config["model_type"]


def test_what_goes_beside_the_class_is_left_and_named():
    start = imported("clip", architectures=["CLIPForImageClassification"])
    both = imported("clip")
    whole = prepare(start.copy(encoders={**both.encoders, **start.encoders}, fusions=both.fusions), tokenizer(), {}, {})
    assert (whole.architecture, whole.left) == ("CLIPForImageClassification", ("encoders.text", "fusions.dual"))


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "clip", "siglip", "bert", "roberta", "gpt2", "llama"])
def test_a_classifier_of_each_family_goes_back(kind, monkeypatch):
    model = imported(kind, **({"architectures": ["CLIPModel"]} if kind == "clip" else {}))
    monkeypatch.setattr("mmjax.convert.api.load_model", lambda path: model)
    classifier = load_classifier("anywhere", 3)
    assert classifier.heads["classes"].classes == 3
    ids = None if kind in ("vit", "deit", "dinov2", "clip", "siglip") else tokenizer()
    changes = {"pad_token_id": 0} if kind == "roberta" else {}
    if changes:
        text = classifier.encoders["text"].copy(position_offset=1)
        classifier = classifier.copy(encoders={"text": text})
    assert prepare(classifier, ids, {}, {}).architecture.endswith(("ForImageClassification", "ForSequenceClassification"))


def test_what_will_not_go_back_is_told_before_training():
    clip = imported("clip")
    model = clip.copy(heads={"classes": Classifier(2, "image", "cls")})
    e = Experiment(model=model, data={}, tasks={}, steps=1)
    setup = types.SimpleNamespace(experiment=e, datasets={}, tokenizers={}, classes={})
    [line] = obstacle(setup)
    assert "to-hf will refuse" in line and "load_classifier" in line
    assert obstacle(types.SimpleNamespace(**{**vars(setup), "experiment": dataclasses.replace(e, model=clip)})) == []
    own = dataclasses.replace(e, model=model.copy(huggingface={}))
    assert obstacle(types.SimpleNamespace(**{**vars(setup), "experiment": own})) == []


@pytest.mark.parametrize(
    ("adapt", "said"),
    [
        ({"decoders_caption/words/*": Prompt(n=2)}, ""),
        ({"decoders_caption/*": Prefix(n=2)}, ""),
        ({"decoders_caption/*": Prefix(n=2), "decoders_caption/words/*": Prompt(n=2)}, "are several, and a folder holds one"),
    ],
)
def test_a_prompt_that_peft_has_no_place_for_is_said_before_training(adapt, said):
    model = same_class(Multimodal(encoders={}, decoders={"caption": GPT2}))[0]
    e = Experiment(model=model, data={}, tasks={}, steps=1, adapt=adapt)
    found = obstacle(types.SimpleNamespace(experiment=e, datasets={}, tokenizers={}, classes={}))
    assert (said in found[0] and "to-peft will refuse what adapts this model" in found[0]) if said else found == []


def test_every_array_is_written_or_refused(tmp_path):
    model = same_class(Multimodal(encoders={}, decoders={"caption": GPT2}))[0]
    params = {**init_params(model, jax.random.key(0)), "adapters": {"x": jnp.ones(3)}}
    with pytest.raises(UserError, match="adapters"):
        save_hf(model, params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "end"), [("GPT2ForSequenceClassification", True), ("GPT2LMHeadModel", False)])
def test_a_tokenizer_that_writes_nothing_by_itself_writes_what_the_run_reads(name, end, tmp_path):
    """GPT-2's way: our `encode` adds the first and the last token, the exported files then do."""
    bare = tokenizer().huggingface.__class__.from_pretrained(_without_template(tmp_path / "bare"))
    ours = Tokenizer(bare)
    assert ours.begins and ours.ends
    model = imported("gpt2", architectures=[name], vocab_size=64, n_positions=16)
    save_tokenizer(tmp_path, ours, FAMILIES["gpt2"], name, model)
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path)
    wanted = ours.encode(TEXTS, 16)
    for n, found in enumerate(theirs(TEXTS)["input_ids"]):
        ids = wanted["ids"][n][wanted["mask"][n]].tolist()
        assert found == (ids if end else ids[:-1])
    assert theirs.model_max_length == 16 and theirs.padding_side == ("right" if end else "left")
    assert set(theirs(TEXTS, padding=True)) == {"input_ids", "attention_mask"}


def _without_template(folder):
    """Our tokenizer's files, without what writes [CLS] and [SEP]."""
    tokenizer().save(folder)
    said = json.loads((folder / "tokenizer.json").read_text())
    said["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(said))
    return folder


def test_blips_temperature_is_named_where_it_was_trained(tmp_path, caplog):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = hf.BlipConfig(text_config={**small, "vocab_size": 31}, vision_config={**small, "image_size": 8, "patch_size": 4})
    model, params = mmjax.load(save(randomise(hf.BlipForImageTextRetrieval(config)), tmp_path / "hf"))
    save_hf(model, params, tmp_path / "same")
    assert not [r for r in caplog.records if r.name == "mmjax"]
    dual = {**params["fusions_dual"], "scale_logit": np.float32(1.0)}
    save_hf(model, {**params, "fusions_dual": dual}, tmp_path / "trained")
    assert "fusions_dual/scale_logit" in caplog.text


def test_a_clip_text_encoder_of_our_own_needs_a_tokenizer():
    text = TextTransformer(vocab_size=64, max_length=12, causal=True, norm_epsilon=1e-5, activation="quick_gelu", **SIZE)
    model = Multimodal(encoders={"text": text}, heads={"pooler": Classifier(0, "text", "last", bias=False)})
    with pytest.raises(UserError, match="finds the end of a text by its id"):
        prepare(model, None, {}, {})
    assert prepare(model, tokenizer(), {}, {}).model.huggingface["eos_token_id"] == 3


def test_a_dual_of_our_own_goes_out_with_the_scale_that_it_uses(tmp_path):
    """Its bound and its initial values are no part of CLIP's class; a scale above the bound is written as the bound."""
    made = Made("CLIPModel", {"dual": "logits_per_image"})
    case = CASES["clip"]
    model, params = mmjax.load(save(case.make(made), tmp_path / "hf"))
    dual = model.fusions["dual"].copy(scale_init=1 / 0.07, bias_init=1.0, max_scale=2.0)
    params = {**params, "fusions_dual": {**params["fusions_dual"], "scale_logit": np.float32(3.0)}}
    ours = model.copy(fusions={"dual": dual})
    assert mmjax.save_hf(ours, params, tmp_path / "out") == "CLIPModel"
    theirs = hf.CLIPModel.from_pretrained(tmp_path / "out").eval()
    batch = case.batch(theirs)
    with torch.no_grad():
        wanted = case.theirs(made, theirs, batch)
    assert theirs.logit_scale.item() == pytest.approx(np.log(2.0))
    assert_close(case.ours(ours, params, batch, ("dual",))["dual"], wanted["dual"])
