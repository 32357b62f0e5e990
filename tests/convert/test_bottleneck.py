"""Runs and folders of the `adapters` library from the command line; that library itself is in `test_bottleneck_library.py`."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
import torch
import transformers
from safetensors.numpy import load_file, save_file
from test_peft_runs import SIZES, a_base, experiment, shares

import mmjax
from mmjax.adapt import Bottleneck, LoRA
from mmjax.cli import main
from mmjax.convert import load_classifier
from mmjax.convert.bottleneck.from_adapters import over_base
from mmjax.convert.bottleneck.layout import TENSORS
from mmjax.convert.bottleneck.to_adapters import adapter_of, factor_of, to_adapters
from mmjax.convert.export import obstacle
from mmjax.convert.weights import metadata_of
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.data import Data, Manifest, WordPiece
from mmjax.train import AdamW, train
from mmjax.train.setup import set_up

ADAPT = {
    "encoders_image/*/mlp/*": Bottleneck(r=3, normed=True),
    "encoders_image/*/attention/*[1:]": Bottleneck(r=5, normed=True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A HuggingFace folder of a ViT, a run of it, one with bottlenecks, and what that hands over."""
    place = tmp_path_factory.mktemp("bottlenecks")
    with pytest.MonkeyPatch.context() as patch:
        tiny.single_device(patch)
        base = a_base(place)
        train(experiment(base, adapt=ADAPT, steps=12), place / "run")
        train(experiment(base, adapt={"all-linear": LoRA(r=2)}, steps=1), place / "lora")
    assert main(["convert", "to-adapters", str(place / "run"), str(place / "ours"), "--base", str(place / "hf")]) == 0
    return place


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3)).astype(np.uint8)


def test_what_comes_back_answers_as_the_run_and_goes_out_bit_for_bit(folder, pixels, tmp_path):
    for number, base in enumerate(("base", "hf")):
        back, again = tmp_path / f"run{number}", tmp_path / f"again{number}"
        assert main(["convert", "from-adapters", str(folder / base), str(folder / "ours"), str(back)]) == 0
        assert shares(back, pixels) == shares(folder / "run", pixels)
        assert main(["convert", "to-adapters", str(back), str(again), "--base", str(folder / "hf")]) == 0
        for name in ("adapter_config.json", "head_config.json"):
            assert (again / name).read_bytes() == (folder / "ours" / name).read_bytes(), name
        for name in ("adapter.safetensors", "model_head.safetensors"):
            one, two = (load_file(where / name) for where in (again, folder / "ours"))
            assert one.keys() == two.keys() and all((one[key] == two[key]).all() for key in one)
        assert metadata_of(again / TENSORS[0]) == metadata_of(folder / "ours" / TENSORS[0])
    ask = mmjax.Adapters(folder / "base", {"one": folder / "run", "two": folder / "ours"})
    assert list(ask) == ["one", "two"] and len(ask) == 2
    assert ask["one"].classify(list(pixels), top_k=0) == ask["two"].classify(list(pixels), top_k=0)
    both = ask.rows(["one", "two", "two", "one"]).classify(list(pixels), top_k=0)  # a run beside a folder
    for row, alone in zip(both, ask["one"].classify(list(pixels), top_k=0), strict=True):
        assert [one["label"] for one in row] == [one["label"] for one in alone]
        np.testing.assert_allclose([one["score"] for one in row], [one["score"] for one in alone], atol=1e-6)


def test_what_is_written_is_what_the_library_reads(folder):
    said = json.loads((folder / "ours" / "adapter_config.json").read_text())
    config, tensors = said["config"], load_file(folder / "ours" / "adapter.safetensors")
    assert (said["name"], said["model_class"], said["hidden_size"]) == ("mmjax", "ViTForImageClassification", 24)
    assert said["model_name"] == str(folder / "hf") and said["version"] == "adapters.1.3.0"
    assert config["mh_adapter"] and config["output_adapter"] and config["original_ln_before"]
    assert config["non_linearity"] == "relu" and config["leave_out"] == []
    widths = [int(24 // config["reduction_factor"][str(n)]) for n in range(3)]
    assert widths == [3, 5, 5]  # a layer has one width
    first = "vit.encoder.layer.0.{}.adapters.mmjax.adapter_up.weight"
    assert not tensors[first.format("attention_adapters")].any()  # which had none there
    assert tensors[first.format("output.output_adapters")].shape == (24, 3)
    assert len(tensors) == 3 * 2 * 4
    head = json.loads((folder / "ours" / "head_config.json").read_text())
    assert head["num_labels"] == 10 and head["label2id"]["three"] == 3 and head["config"] is None
    assert load_file(folder / "ours" / "model_head.safetensors").keys() == {"classifier.weight", "classifier.bias"}
    assert 'load_adapter("path/to/this/folder", use_safetensors=True)' in (folder / "ours" / "README.md").read_text()


@pytest.mark.parametrize("size", [16, 24, 48, 768, 1000, 4096])
def test_every_width_has_a_factor_of_which_the_library_makes_it(size):
    for width in range(1, min(size, 200) + 1):
        assert int(size // factor_of(size, width)) == width


def changed(folder, target, config=(), tensors=None, head=None):
    """A copy with other fields of the adapter's config, other tensors, another head."""
    shutil.copytree(folder / "ours", target)
    file = target / "adapter_config.json"
    said = json.loads(file.read_text())
    said["config"] = said["config"] | dict(config)
    file.write_text(json.dumps(said))
    if tensors is not None:
        whole = load_file(target / "adapter.safetensors")
        save_file(tensors(whole), target / "adapter.safetensors")
    if head is not None:
        about = json.loads((target / "head_config.json").read_text())
        (target / "head_config.json").write_text(json.dumps(about | head))
    return target


UP = "vit.encoder.layer.1.output.output_adapters.adapters.mmjax.adapter_up.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {"is_parallel": True}}, r"is_parallel=True is not supported here; it must be False"),
        ({"config": {"scaling": "learned"}}, r"scaling='learned' is not supported here; it must be 1.0"),
        ({"config": {"dropout": 0.1}}, r"dropout=0.1 is not supported here; it acts when training alone: set it to 0.0"),
        (
            {"config": {"non_linearity": "leakyrelu"}},
            r"non_linearity='leakyrelu' is not supported here; use one of relu, swish",
        ),
        ({"config": {"architecture": "lora"}}, r"'lora' is no bottleneck"),
        ({"tensors": lambda x: {k: v for k, v in x.items() if k != UP}}, r"it has no tensor 'vit.*layer.1.*adapter_up.weight'"),
        ({"tensors": lambda x: {k: v for k, v in x.items() if "layer.2." not in k}}, r"it has no tensor 'vit.*layer.2"),
        (
            {"config": {"mh_adapter": False}},
            r"tensor 'vit.*attention_adapters.*has no place here by what its adapter_config.json",
        ),
        ({"config": {"leave_out": [1]}}, r"tensor 'vit.*layer.1.*has no place here by what its adapter_config.json says"),
        (
            {"tensors": lambda x: x | {UP.replace("layer.1", "layer.9"): x[UP]}},
            r"tensor 'vit.encoder.layer.9.*has no place here",
        ),
        ({"tensors": lambda x: x | {UP: x[UP][:20].copy()}}, r"has a up of \(5, 20\), and this base's layer takes \(5, 24\)"),
        ({"config": {"non_linearity": None}}, r"non_linearity=None and leave_out=.*: they are a name and a list of layers"),
        ({"tensors": lambda x: x | {UP: x[UP] * np.nan}}, r"adapter_up.weight' has numbers that are not finite"),
        (
            {"tensors": lambda x: x | {UP: x[UP].astype(np.int8)}},
            r"adapter_up.weight' is of int8, and an adapter's are of a float",
        ),
        (
            {"tensors": lambda x: {k.replace("mmjax", "other"): v for k, v in x.items()}},
            r"names the adapter 'mmjax', and it has",
        ),
        ({"head": {"label2id": {"a": 0, "b": 0}}}, r"label2id=.*: its head has 10 classes, 0 to 9, one name each"),
        ({"head": {"label2id": ["a"]}}, r"label2id=.*: its head has 10 classes"),
        ({"head": {"model_class": None}}, r"a head of None, which is not supported here"),
        ({"head": {"model_class": "ViTAdapterModel"}}, r"a head of ViTAdapterModel, which is not supported here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_folder_says_that_is_not_done_here_is_named(change, said, folder, tmp_path, capsys):
    source = changed(folder, tmp_path / "source", **change)
    assert main(["convert", "from-adapters", str(folder / "base"), str(source), str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=said):
        over_base(source, *mmjax.load(folder / "base"))
    error = capsys.readouterr().err
    assert error.startswith("mmjax: ") and error.count("\n") == 1


def test_bert_keeps_its_pooler_and_only_the_head_is_trained_beside(tmp_path, capsys):
    """As `BertForSequenceClassification.from_pretrained` of a BertModel's folder does, and the library needs."""
    config = transformers.BertConfig(vocab_size=60, max_position_embeddings=16, **SIZES)
    torch.manual_seed(0)
    bert = transformers.BertModel(config)
    bert.save_pretrained(tmp_path / "hf")
    WordPiece(60).train(["good cats", "bad dogs"]).huggingface.save_pretrained(tmp_path / "hf")
    assert main(["convert", "from-hf", str(tmp_path / "hf"), str(tmp_path / "base")]) == 0
    rows = [{"text": text, "label": text.split()[0], "split": "train"} for text in ("good cats", "bad dogs") * 8]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Manifest(str(tmp_path / "rows.jsonl"), "train", label_field="label")
    texts = {"train": Data(source, batch_size=8, max_length=8, threads=0)}
    made = experiment(tmp_path / "base", data=texts, adapt={"encoders_text/*": Bottleneck(r=3)}, steps=1)
    made = dataclasses.replace(made, model=load_classifier(tmp_path / "base", 2), init_fresh=())
    with pytest.MonkeyPatch.context() as patch:
        tiny.single_device(patch)
        train(dataclasses.replace(made, optimizer=AdamW(train=("heads_classes/logits/*",))), tmp_path / "run")
        assert "heads_classes begins with heads_pooler" in capsys.readouterr().err
        whole = dataclasses.replace(made, optimizer=AdamW(train=("heads_classes/*",)))
        (said,) = obstacle(set_up(whole, None, tiny.ONE.build(jax.devices()[:1])))
        assert said.startswith("convert to-adapters will refuse what adapts this model: BertForSequenceClassification: heads_")
        train(whole, tmp_path / "whole")
    pooler = mmjax.load(tmp_path / "run")[1]["heads_classes"]["project"]
    np.testing.assert_array_equal(np.asarray(pooler["kernel"]).T, bert.pooler.dense.weight.detach().numpy())
    assert main(["convert", "to-adapters", str(tmp_path / "run"), str(tmp_path / "ours")]) == 0
    assert load_file(tmp_path / "ours" / "model_head.safetensors").keys() == {"classifier.weight", "classifier.bias"}
    assert main(["convert", "to-adapters", str(tmp_path / "whole"), str(tmp_path / "no")]) == 2
    assert "keeps beside them a head alone" in capsys.readouterr().err


def test_broken_files_and_half_a_head_are_one_line(folder, tmp_path, capsys):
    for name, how, said in (
        ("head_config.json", lambda file: file.write_bytes(b"{\xff"), "head_config.json: not JSON"),
        ("head_config.json", lambda file: file.unlink(), "it has a head and no head_config.json"),
        ("adapter_config.json", lambda file: file.write_bytes(b"\xff"), "adapter_config.json: not JSON"),
        ("model_head.safetensors", lambda file: file.unlink(), "has neither model_head.safetensors nor pytorch_model_head.bin"),
        ("adapter.safetensors", lambda file: file.write_bytes(file.read_bytes()[:200]), "adapter.safetensors"),
    ):
        shutil.rmtree(tmp_path / "source", ignore_errors=True)
        how(changed(folder, tmp_path / "source") / name)
        assert main(["convert", "from-adapters", str(folder / "base"), str(tmp_path / "source"), str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
        assert not (tmp_path / "run").exists()


def test_a_folder_of_before_the_library_had_versions_says_gelu_for_what_is_gelu_new_now(folder, tmp_path):
    file = changed(folder, tmp_path / "source", {"non_linearity": "gelu"}) / "adapter_config.json"
    said = json.loads(file.read_text())
    for whole, act in ((said, "gelu"), ({key: x for key, x in said.items() if key != "version"}, "gelu_tanh")):
        file.write_text(json.dumps(whole))
        _, _, adapt, _ = over_base(tmp_path / "source", *mmjax.load(folder / "base"))
        assert {method.activation for method in adapt.values()} == {act}


def test_layers_that_were_not_adapted_do_not_begin_dead(folder, tmp_path):
    """Loaded with zeros on both sides they would never learn; what is trained of them is not left behind."""
    more = {
        "encoders_image/*/mlp/*": Bottleneck(r=3, normed=True),
        "encoders_image/*/attention/*": Bottleneck(r=5, normed=True),
    }
    first = experiment(folder / "run", adapt=ADAPT, steps=1, init_fresh=(), optimizer=AdamW(learning_rate=0.0))
    with pytest.MonkeyPatch.context() as patch:
        tiny.single_device(patch)
        train(first, tmp_path / "same")
        with pytest.raises(UserError, match=r"bottleneck_down has other layers or widths there than adapt gives here"):
            train(dataclasses.replace(first, adapt=more), tmp_path / "more")
        other = {key: dataclasses.replace(method, activation="silu") for key, method in ADAPT.items()}
        with pytest.raises(UserError, match=r"has a bottleneck of another activation there, or normed otherwise"):
            train(dataclasses.replace(first, adapt=other), tmp_path / "other")
    model, params = mmjax.load(tmp_path / "same")
    out = params["encoders_image"]["stack"]["layers"]["attention"]["out"]
    out["bottleneck_up_bias"] = out["bottleneck_up_bias"].at[0].set(0.5)  # of a layer that had none
    _, tensors = adapter_of(model, "ViTForImageClassification", params)
    assert (tensors["vit.encoder.layer.0.attention_adapters.adapters.mmjax.adapter_up.bias"] == 0.5).all()


def test_a_head_over_a_pooler_that_nobody_has_is_refused(tmp_path, folder):
    config = transformers.BertConfig(vocab_size=60, max_position_embeddings=16, **SIZES)
    torch.manual_seed(0)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "hf")
    source = tmp_path / "source"
    source.mkdir()
    said = json.loads((folder / "ours" / "adapter_config.json").read_text())
    said["config"] |= {"reduction_factor": 8.0, "mh_adapter": False}
    (source / "adapter_config.json").write_text(json.dumps(said))
    (source / "head_config.json").write_text(json.dumps({"model_class": "BertForSequenceClassification"}))
    ones = {
        "adapter_down.0.weight": (3, 24),
        "adapter_down.0.bias": (3,),
        "adapter_up.weight": (24, 3),
        "adapter_up.bias": (24,),
    }
    names = {
        f"bert.encoder.layer.{n}.output.adapters.mmjax.{k}": np.ones(v, np.float32) for n in range(3) for k, v in ones.items()
    }
    save_file(names, source / "adapter.safetensors")
    head = {"classifier.weight": np.ones((3, 24), np.float32), "classifier.bias": np.ones(3, np.float32)}
    save_file(head, source / "model_head.safetensors")
    with pytest.raises(UserError, match=r"neither it nor the base has heads_classes/project/bias"):
        over_base(source, *mmjax.load(tmp_path / "hf"))


def test_what_goes_elsewhere_says_where(folder, tmp_path, capsys):
    peft = tmp_path / "peft"
    assert main(["convert", "to-peft", str(folder / "lora"), str(peft)]) == 0
    for words, said in (
        (["to-peft", folder / "run", tmp_path / "a"], "peft has no bottlenecks; mmjax convert to-adapters"),
        (["to-hf", folder / "run", tmp_path / "a"], "what a bottleneck adds has no place"),
        (["to-adapters", folder / "lora", tmp_path / "a"], "holds bottlenecks alone: the others are for mmjax convert to-peft"),
        (["from-peft", folder / "base", folder / "ours", tmp_path / "a"], "mmjax convert from-adapters"),
        (["from-adapters", folder / "base", peft, tmp_path / "a"], "it is peft's, for mmjax convert from-peft"),
        (["from-adapters", folder / "base", tmp_path, tmp_path / "a"], "is no folder of the adapters library"),
        (["from-adapters", folder / "lora", folder / "ours", tmp_path / "a"], "the base is adapted itself (encoders_image/"),
        (["from-peft", folder / "run", peft, tmp_path / "a"], "the base is adapted itself (encoders_image/"),
    ):
        assert main(["convert", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
        assert not (tmp_path / "a").exists()


def test_another_base_and_what_the_library_has_no_place_for_are_named(folder, tmp_path):
    torch.manual_seed(1)
    transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"it was made over a base whose kernels are not these"):
        over_base(folder / "ours", *mmjax.load(tmp_path / "other"))
    text = transformers.ViltConfig(image_size=8, patch_size=4, vocab_size=40, max_position_embeddings=12, **SIZES)
    transformers.ViltModel(text).save_pretrained(tmp_path / "vilt")
    with pytest.raises(UserError, match=r"ViltModel: no bottleneck of it goes to the adapters library"):
        over_base(folder / "ours", *mmjax.load(tmp_path / "vilt"))


def test_one_kind_in_a_folder_and_a_head_alone_beside_it(folder, tmp_path):
    run = tmp_path / "run"
    mixed = {"encoders_image/*/mlp/*": Bottleneck(r=2), "encoders_image/*/attention/*": Bottleneck(r=2, normed=True)}
    whole = AdamW(learning_rate=1e-2, train=("heads_classes/*", "*final_norm/*"))
    with pytest.MonkeyPatch.context() as patch:
        tiny.single_device(patch)
        train(experiment(folder / "base", adapt={"encoders_image/*": Bottleneck(r=2)}, steps=1, optimizer=whole), run)
        train(experiment(folder / "base", adapt=mixed, steps=1), tmp_path / "mixed")
    with pytest.raises(UserError, match=r"final_norm/bias is trained beside the bottlenecks.*a head alone"):
        to_adapters(run, tmp_path / "a")
    model, params = mmjax.load(tmp_path / "mixed")
    with pytest.raises(UserError, match=r"bottlenecks that differ in activation or normed"):
        adapter_of(model, "ViTForImageClassification", params)
    assert any(path.endswith("bottleneck_up") for path in leaves_by_path(params))
