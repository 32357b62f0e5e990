"""The bridge from end to end: the command line both ways, fine-tuning in between, dtypes, and what is refused."""

import json

import numpy as np
import pytest
import torch
import transformers as hf
from parity import assert_close, bound, randomise, save
from safetensors.numpy import load_file

import mmjax
from mmjax.cli import main
from mmjax.convert import load_model
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.data import Data, Manifest
from mmjax.objectives import Classification
from mmjax.train import AdamW, Checkpoint, Experiment, Log, Task, train

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}
IDS = np.array([[2, 9, 8, 7, 3], [2, 5, 6, 3, 0]])


@pytest.fixture
def tokenizer(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "very"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    return hf.BertTokenizerFast(str(tmp_path / "vocab.txt"))


def folder_of(name, path, dtype=torch.float32, **changes):
    model = randomise(getattr(hf, name)(hf.BertConfig(**{**SIZES, **changes}))).to(dtype)
    return model, save(model, path)


def test_python_load_and_save(tmp_path):
    theirs, folder = folder_of("BertForSequenceClassification", tmp_path / "hf", num_labels=3)
    model, params = mmjax.load(folder)
    assert load_model(folder) == model
    assert mmjax.save_hf(model, params, tmp_path / "back") == "BertForSequenceClassification"
    back = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "back")
    assert_close(back(torch.tensor(IDS)).logits.detach(), theirs(torch.tensor(IDS)).logits, rtol=0)
    card = (tmp_path / "back" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "BertForSequenceClassification.from_pretrained" in card


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_of_the_weights_comes_back(dtype, tmp_path):
    _, folder = folder_of("BertModel", tmp_path / "hf", dtype)
    model, params = mmjax.load(folder)
    assert {str(leaf.dtype) for leaf in leaves_by_path(params).values()} == {"float32"}
    mmjax.save_hf(model, params, tmp_path / "back")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert all(after[name].dtype == value.dtype and after[name].tobytes() == value.tobytes() for name, value in before.items())
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_command_line_there_and_back(tmp_path, tokenizer, capsys):
    theirs, folder = folder_of("BertForMaskedLM", tmp_path / "hf")
    tokenizer.save_pretrained(folder)
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "run")]) == 0
    assert "BertForMaskedLM" in capsys.readouterr().out
    model, params = mmjax.load(tmp_path / "run")
    forward = bound(model, params, {"text": IDS.astype(np.int32)})
    assert_close(forward.head("masked_lm", forward.encode("text"), key="x"), theirs(torch.tensor(IDS)).logits)
    assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert all(after[name].tobytes() == value.tobytes() for name, value in before.items())
    pipe = hf.pipeline("fill-mask", model=str(tmp_path / "back"), tokenizer=str(tmp_path / "back"))
    assert len(pipe("a very [MASK] film")) == 5


def test_fine_tune_in_between(tmp_path, tokenizer):
    """HuggingFace -> a new head, three steps -> HuggingFace -> a pipeline that names the classes."""
    _, folder = folder_of("BertForSequenceClassification", tmp_path / "hf", vocab_size=10)
    tokenizer.save_pretrained(folder)
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "bert")]) == 0
    rows = [{"text": f"a {'very ' * (i % 3)}{word} film", "label": word} for i in range(12) for word in ("good", "bad", "very")]
    (tmp_path / "films.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Manifest(str(tmp_path / "films.jsonl"))
    model = load_model(tmp_path / "bert")
    head = model.heads["classes"].copy(classes=3)
    experiment = Experiment(
        model=model.copy(heads={"classes": head}),
        data={"train": Data(source, batch_size=8, max_length=12)},
        tasks={"classes": Task(Classification(modality="text"))},
        init_from=str(tmp_path / "bert"),
        init_fresh=("heads_classes/logits/*",),
        optimizer=AdamW(learning_rate=1e-3),
        steps=3,
        checkpoint=Checkpoint(every=3),
        log=Log(every=1, tensorboard=False, progress=False),
    )
    train(experiment, tmp_path / "tuned")
    assert main(["convert", "to-hf", str(tmp_path / "tuned"), str(tmp_path / "back")]) == 0
    pipe = hf.pipeline("text-classification", model=str(tmp_path / "back"), tokenizer=str(tmp_path / "back"))
    assert pipe("a very good film")[0]["label"] in ("good", "bad", "very")
    tuned, before = (load_file(path / "model.safetensors") for path in (tmp_path / "back", folder))
    assert tuned["classifier.weight"].shape == (3, 16) and not np.array_equal(
        *(t["bert.pooler.dense.bias"] for t in (tuned, before))
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda f: change(f, model_type="bret"), "model_type='bret' is not supported (did you mean 'bert'?)"),
        (lambda f: change(f, hidden_size=32), "config.json makes it"),
        (lambda f: change(f, num_hidden_layers=3), "tensor 'bert.encoder.layer.2"),
        (
            lambda f: change(f, position_embedding_type="relative_key"),
            "position_embedding_type='relative_key' is not supported",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda f: cut(f / "model.safetensors"), "model.safetensors"),
    ],
)
def test_a_bad_folder_is_one_line_and_leaves_nothing(spoil, said, tmp_path, capsys):
    _, folder = folder_of("BertForMaskedLM", tmp_path / "hf")
    spoil(folder)
    before = sorted(tmp_path.iterdir())
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if "Writing model" not in line]
    assert len(lines) == 1 and lines[0].startswith("mmjax: ") and said in lines[0], lines
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_folder_that_holds_a_model_is_refused(tmp_path, capsys):
    _, folder = folder_of("BertModel", tmp_path / "hf")
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "run")]) == 0
    for words in (["from-hf", str(folder), str(tmp_path / "run")], ["to-hf", str(tmp_path / "run"), str(folder)]):
        assert main(["convert", *words]) == 2
        assert "already holds files" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, use",
    [
        ([], "convert from-hf HF_DIR RUN"),
        (["from-hf"], "convert from-hf HF_DIR RUN"),
        (["form-hf", "a", "b"], "convert from-hf HF_DIR RUN"),
        (["to-hf", "a"], "convert to-hf RUN HF_DIR"),
    ],
)
def test_mistaken_words(words, use, capsys):
    assert main(["convert", *words]) == 2
    assert use in capsys.readouterr().err


def test_a_model_that_no_class_has_is_refused_by_its_field(tmp_path):
    _, folder = folder_of("BertForMaskedLM", tmp_path / "hf")
    model, params = mmjax.load(folder)
    changed = model.copy(encoders={"text": model.encoders["text"].copy(norm_placement="pre", final_norm=False)})
    with pytest.raises(UserError, match=r"model.encoders.text.norm_placement='pre' has no place in BertForMaskedLM"):
        mmjax.save_hf(changed, params, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def change(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])
