"""Runs and peft's folders from the command line: what is handed over works there, and comes back; mistakes are one line."""

import copy
import dataclasses
import json
import re
import shutil

import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from peft_cases import opened, strict
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import mmjax
from mmjax.adapt import IA3, BitFit, LoRA
from mmjax.cli import main
from mmjax.convert import load_classifier
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.data import Data, Digits, Normalise, Resize
from mmjax.models.forward import BoundForward
from mmjax.objectives import Classification
from mmjax.train import AdamW, Checkpoint, Experiment, Log, Task, train

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 8, "width": 8},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
ADAPT = {"all-linear": LoRA(r=4, alpha=8)}


def data(split):
    return Data(Digits(split), (Resize((8, 8)), Normalise((0.5,) * 3, (0.5,) * 3)), batch_size=24, threads=0)


def experiment(base, **changes):
    chosen = Experiment(
        model=load_classifier(base, 10),
        data={split: data(split) for split in ("train", "test")},
        tasks={"classes": Task(Classification())},
        init_from=str(base),
        init_fresh=("heads_classes/*",),
        adapt=ADAPT,
        optimizer=AdamW(learning_rate=1e-2, train=("heads_classes/*",)),
        steps=30,
        checkpoint=Checkpoint(every=30),
        log=Log(tensorboard=False, progress=False),
    )
    return dataclasses.replace(chosen, **changes)


def a_base(place):
    """A HuggingFace folder of a ViT, and a run of it."""
    torch.manual_seed(0)
    transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)).save_pretrained(place / "hf")
    (place / "hf" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    assert main(["convert", "from-hf", str(place / "hf"), str(place / "base")]) == 0
    return place / "base"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A HuggingFace folder of a ViT and a run of it, an adapted run, and the peft folder of that."""
    place = tmp_path_factory.mktemp("peft")
    with pytest.MonkeyPatch.context() as patch:
        tiny.single_device(patch)
        train(experiment(a_base(place)), place / "run")
    assert main(["convert", "to-peft", str(place / "run"), str(place / "peft"), "--base", str(place / "hf")]) == 0
    return place


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3)).astype(np.uint8)


def shares(path, pixels):
    """Of each picture the likelihoods of the classes by name."""
    return [{one["label"]: one["score"] for one in row} for row in mmjax.Predictor(path).classify(list(pixels), top_k=0)]


def test_peft_gives_the_runs_own_answers(folder, pixels):
    base = transformers.ViTForImageClassification.from_pretrained(folder / "hf", num_labels=10)
    model = opened(base, folder / "peft")
    x = torch.tensor((pixels.transpose(0, 3, 1, 2) / np.float32(255) - 0.5) / 0.5)
    with torch.no_grad():
        theirs = model(pixel_values=x.float()).logits.softmax(-1).numpy()
    names = mmjax.Predictor(folder / "run").work.classes["classes"]
    for row, own in zip(shares(folder / "run", pixels), theirs, strict=True):
        np.testing.assert_allclose([row[name] for name in names], own, atol=2e-6)
    config = json.loads((folder / "peft" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder / "hf") and config["r"] == 4 and config["lora_alpha"] == 8
    assert (folder / "peft" / "adapter_model.safetensors").stat().st_size < 0.8 * (
        folder / "hf" / "model.safetensors"
    ).stat().st_size
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "peft" / "README.md").read_text(), re.DOTALL)
    named: dict = {}
    with strict():
        exec(code.replace("path/to/this/folder", str(folder / "peft")), named)  # as its reader pastes it
    with torch.no_grad():
        pasted = named["model"].eval()(pixel_values=x.float()).logits.softmax(-1).numpy()
    np.testing.assert_allclose(pasted, theirs, atol=1e-6)
    assert [named["base"].config.id2label[i] for i in range(10)] == list(names)


def test_what_comes_back_is_what_was_handed_over(folder, pixels, tmp_path):
    """Over the base, which has no such head, and over a class that has one; as a run and as a HuggingFace folder."""
    for number, base in enumerate(("base", "hf")):
        assert main(["convert", "from-peft", str(folder / base), str(folder / "peft"), str(tmp_path / f"run{number}")]) == 0
        assert shares(tmp_path / f"run{number}", pixels) == shares(folder / "run", pixels)
    own, back = (mmjax.load(path)[1] for path in (folder / "run", tmp_path / "run0"))
    tiny.assert_identical(tiny.host(own), tiny.host(back))
    assert main(["convert", "to-peft", str(tmp_path / "run0"), str(tmp_path / "again")]) == 0
    first, second = (load_file(path / "adapter_model.safetensors") for path in (folder / "peft", tmp_path / "again"))
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def test_a_folder_of_pefts_answers_over_a_base_that_is_held_once(folder, pixels):
    ask = mmjax.Adapters(folder / "base", {"run": folder / "run", "peft": folder / "peft"})
    base, own = leaves_by_path(mmjax.load(folder / "base")[1]), leaves_by_path(ask["peft"].work.params)
    shared = [path for path in own if own[path] is leaves_by_path(ask["run"].work.params)[path]]
    assert set(shared) == set(base) - {path for path in base if path.startswith("heads_")} != set()
    for name in ask.names:
        assert ask[name].classify(list(pixels), top_k=0) == mmjax.Predictor(folder / "run").classify(list(pixels), top_k=0)


def test_merged_it_is_a_whole_model_with_the_same_answers(folder, pixels, tmp_path):
    assert main(["convert", "to-hf", str(folder / "run"), str(tmp_path / "whole")]) == 0
    with strict():
        transformers.ViTForImageClassification.from_pretrained(tmp_path / "whole")
    for row, own in zip(shares(tmp_path / "whole", pixels), shares(folder / "run", pixels), strict=True):
        np.testing.assert_allclose([row[name] for name in own], list(own.values()), atol=2e-6)


def test_training_goes_on_from_what_peft_trained(folder, tmp_path):
    """A head that peft trained beside its adapter comes along, under the same names."""
    hf = transformers.ViTForImageClassification.from_pretrained(folder / "hf", num_labels=10)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    with strict():
        model = peft.get_peft_model(copy.deepcopy(hf), config)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape))
    model.save_pretrained(tmp_path / "theirs")
    assert main(["convert", "from-peft", str(folder / "base"), str(tmp_path / "theirs"), str(tmp_path / "run")]) == 0
    adapt = {"*/attention/[qv]/kernel": LoRA(r=2)}
    train(experiment(tmp_path / "run", init_fresh=(), adapt=adapt, steps=2, checkpoint=Checkpoint(every=2)), tmp_path / "on")
    before, after = (leaves_by_path(mmjax.load(tmp_path / name)[1]) for name in ("run", "on"))
    changed = {path for path in before if not (np.asarray(before[path]) == np.asarray(after[path])).all()}
    assert before.keys() == after.keys() and {path.split("/")[-1] for path in changed} <= {"lora_a", "lora_b", "kernel", "bias"}
    assert all("lora" in path or path.startswith("heads_classes") for path in changed)


def test_a_base_of_other_classes_takes_the_adapters_own(folder, pixels, tmp_path):
    """As `from_pretrained(base, num_labels=10, ignore_mismatched_sizes=True)` does for peft's users."""
    hf = transformers.ViTForImageClassification.from_pretrained(folder / "hf", num_labels=3)
    hf.save_pretrained(tmp_path / "three")
    shutil.copyfile(folder / "hf" / "preprocessor_config.json", tmp_path / "three" / "preprocessor_config.json")
    assert main(["convert", "from-peft", str(tmp_path / "three"), str(folder / "peft"), str(tmp_path / "run")]) == 0
    assert shares(tmp_path / "run", pixels) == shares(folder / "run", pixels)


def test_a_classifier_of_texts_over_its_bare_base(tmp_path):
    """peft's SEQ_CLS brings the classifier; the pooler, which is part of our head, is the base's own."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=40, num_labels=3, max_position_embeddings=16, **SIZES)
    hf = transformers.BertForSequenceClassification(config).eval()
    hf.bert.save_pretrained(tmp_path / "hf")
    with strict():
        lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
        model = peft.get_peft_model(copy.deepcopy(hf), lora).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape))
    model.save_pretrained(tmp_path / "peft")
    assert main(["convert", "from-peft", str(tmp_path / "hf"), str(tmp_path / "peft"), str(tmp_path / "run")]) == 0
    ours, params = mmjax.load(tmp_path / "run")
    ids = np.arange(5, 25).reshape(2, 10).astype(np.int32)
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(ids).long()).logits.numpy()
    np.testing.assert_allclose(BoundForward(ours, params, {"text": ids}).head("classes"), theirs, atol=2e-5)


def test_what_nobody_else_has_is_no_adapters_base(folder, tmp_path, capsys):
    """A run that adapts its own random beginning; and one over another adapter says over what."""
    train(experiment(folder / "base", init_from="", init_fresh=(), steps=1), tmp_path / "random")
    train(experiment(folder / "run", adapt={"*/mlp/*": LoRA(r=2)}, steps=1), tmp_path / "second")
    capsys.readouterr()
    assert main(["convert", "to-peft", str(tmp_path / "random"), str(tmp_path / "new")]) == 2
    assert "its own random beginning" in capsys.readouterr().err
    assert main(["convert", "to-peft", str(tmp_path / "second"), str(tmp_path / "new")]) == 0
    assert "over the model of" in (said := capsys.readouterr().out) and "merged in (to-hf writes it)" in said


def mistaken(folder, tmp_path, **changes):
    """A copy of the peft folder with other fields of its config or other tensors."""
    place = tmp_path / "mistaken"
    shutil.copytree(folder / "peft", place)
    config = json.loads((place / "adapter_config.json").read_text())
    tensors = load_file(place / "adapter_model.safetensors")
    for name, value in changes.items():
        if name == "tensors":
            tensors = value(tensors)
        else:
            config[name] = value
    (place / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, place / "adapter_model.safetensors", {"format": "pt"})
    return place


def wider(tensors):
    return {name: np.pad(x, ((0, 0), (0, 1))) if "lora_A" in name and x.ndim == 2 else x for name, x in tensors.items()}


def strange(tensors):
    return tensors | {"base_model.model.vit.layers.7.attention.q_proj.lora_A.weight": np.zeros((4, 24), np.float32)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA' is not supported here; use one of LORA, IA3, LN_TUNING"),
        ({"lora_bias": True}, "lora_bias=True is not supported here; it must be False"),
        ({"r": 3}, "has rank 4, and adapter_config.json says r=3"),
        ({"tensors": wider}, "for a kernel of 25 by 24, and the base's is 24 by 24: it belongs to another base"),
        ({"tensors": strange}, "is of module 'vit.layers.7.attention.q_proj', which the base has not"),
        ({"tensors": lambda t: t | {"base_model.model.vit.lora_C.weight": np.zeros(2, np.float32)}}, "which the base has not"),
        ({"tensors": lambda t: t | {"base_model.model.vit.gate": np.zeros(2, np.float32)}}, "is none that this method has"),
        ({"tensors": lambda t: {n: x for n, x in t.items() if "classifier.b" not in n}}, "it has no heads_classes/logits/bias"),
    ],
)
def test_a_folder_of_another_base_or_method_is_one_line(changes, said, folder, tmp_path, capsys):
    place = mistaken(folder, tmp_path, **changes)
    assert main(["convert", "from-peft", str(folder / "base"), str(place), str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_an_adapter_of_other_kernels_is_told_by_their_mark(folder, tmp_path, capsys):
    """Of the same shapes, so that nothing else would tell."""
    torch.manual_seed(1)
    transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)).save_pretrained(tmp_path / "other")
    assert main(["convert", "from-peft", str(tmp_path / "other"), str(folder / "peft"), str(tmp_path / "run")]) == 2
    assert "it was made over a base whose kernels are not these" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["to-peft", "base", "new"], "nothing adapts this run's model (its config has no adapt)"),
        (["to-peft", "run", "peft"], "already holds files"),
        (["to-peft", "run"], "convert takes two folders"),
        (["from-peft", "base", "peft"], "convert takes three folders"),
        (["from-peft", "base", "hf", "new"], "has no adapter_config.json: it is no folder of peft's"),
    ],
)
def test_mistaken_words_are_one_line(words, said, folder, tmp_path, capsys):
    named = [words[0], *[str(tmp_path / word if word == "new" else folder / word) for word in words[1:]]]
    assert main(["convert", *named]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"adapt": {"*/mlp/*": LoRA(), "*/attention/[kv]/*": IA3()}},
            "adapt has LoRA and IA3, and a peft folder holds one method",
        ),
        ({"adapt": {"*/mlp/up/*": LoRA(dora=True), "*/mlp/down/*": LoRA()}}, "LoRA with dora and without"),
        ({"adapt": {"*/mlp/up/*": LoRA(), "*/mlp/*": BitFit()}}, "peft trains all of a model's or none"),
        ({"optimizer": AdamW(train=("heads_*", "*/cls"))}, "outside any module, and it is trained"),
    ],
)
def test_what_peft_has_no_place_for_is_one_line(changes, said, folder, tmp_path, capsys):
    train(experiment(folder / "base", **{"steps": 1, **changes}), tmp_path / "run")
    capsys.readouterr()
    assert main(["convert", "to-peft", str(tmp_path / "run"), str(tmp_path / "peft")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "whole")]) == 0


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_an_adapter_trained_over_a_narrow_base_knows_the_wide_one(dtype, folder, pixels, tmp_path, capsys):
    """Whole, it gives the run's own answers; over the base as everyone has it, those but for what was rounded."""
    train(experiment(folder / "base", frozen_dtype=dtype), tmp_path / "run")
    assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "whole")]) == 0
    assert main(["convert", "to-peft", str(tmp_path / "run"), str(tmp_path / "peft")]) == 0
    assert f"kept in {dtype}" in capsys.readouterr().out
    assert main(["convert", "from-peft", str(folder / "base"), str(tmp_path / "peft"), str(tmp_path / "back")]) == 0
    own, whole, back = (shares(tmp_path / name, pixels) for name in ("run", "whole", "back"))
    for mine, merged, other in zip(own, whole, back, strict=True):
        np.testing.assert_allclose([merged[name] for name in mine], list(mine.values()), atol=2e-6)
        np.testing.assert_allclose([other[name] for name in mine], list(mine.values()), atol=0.03)
    with pytest.raises(UserError, match=rf"is kept in {dtype}, and an adapter's folder lies over a whole one"):
        mmjax.Adapters(tmp_path / "run", {"peft": tmp_path / "peft"})
    torch.manual_seed(1)
    transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)).save_pretrained(tmp_path / "other")
    assert main(["convert", "from-peft", str(tmp_path / "other"), str(tmp_path / "peft"), str(tmp_path / "not")]) == 2
    assert "it was made over a base whose kernels are not these" in capsys.readouterr().err


def test_what_the_logits_are_goes_with_the_adapter(folder, tmp_path):
    """By it pipelines tell a number from a class; the base does not know."""
    shutil.copytree(folder / "peft", tmp_path / "peft")
    file = tmp_path / "peft" / "adapter_model.safetensors"
    with safe_open(str(file), "np") as opened:
        about, tensors = opened.metadata(), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    assert about["problem_type"] == ""
    save_file(tensors, file, about | {"problem_type": "regression"})
    assert main(["convert", "from-peft", str(folder / "base"), str(tmp_path / "peft"), str(tmp_path / "run")]) == 0
    assert mmjax.load(tmp_path / "run")[0].huggingface["problem_type"] == "regression"
    assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["problem_type"] == "regression"
