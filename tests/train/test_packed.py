"""A run whose rows hold several texts, from the command line; what such rows cannot be had of is refused at the start."""

import json
import re

import numpy as np
import pytest
import tiny

from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.train.config_file import apply_flags, load_config
from mmjax.train.run import Run

pytestmark = pytest.mark.usefixtures("quick_compiles")

CONFIG = """
from pathlib import Path
from mmjax.data import BPE, Data, Manifest
from mmjax.evaluate import Perplexity
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer
from mmjax.models.heads import Classifier
from mmjax.objectives import CausalLM, Classification, MaskedLM
from mmjax.train import Experiment, Task

def experiment():
    size = dict(vocab_size=300, max_length=12, width=16, depth=1, heads=2)
    texts = lambda split: Data(Manifest(str(Path(__file__).parent / "texts.jsonl"), split), batch_size=4, max_length=12)
    lm = CausalLM("lm", context=())
    return Experiment(
        model=Multimodal(
            encoders={"text": TextTransformer(**size)},
            decoders={"lm": TextDecoder(**size, context=())},
            heads={"classes": Classifier(2, "text")},
        ),
        tokenizer=BPE(300),
        data={"train": texts("train"), "validation": texts("validation")},
        tasks={"lm": Task(lm, data="train")} | EXTRA,
        evaluate={"words": Perplexity(lm, "validation")},
        steps=3,
    )
"""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    tiny.single_device(monkeypatch)


@pytest.fixture
def config(tmp_path):
    lines = [{"text": " ".join(["red", "blue", "green"][: 1 + n % 3] * (1 + n % 2)), "label": "ab"[n % 2]} for n in range(60)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def write(extra="{}"):
        (tmp_path / "config.py").write_text(CONFIG.replace("EXTRA", extra))
        return str(tmp_path / "config.py")

    return write


def test_a_run_is_packed_by_a_flag_and_evaluated_a_text_a_row(config, tmp_path, capsys):
    words = ["train", config(), "--workdir", str(tmp_path / "run"), "--data.train.packing", "packed"]
    assert main([*words, "--data.train.packing.texts", "4"]) in (0, None)
    said = "".join(capsys.readouterr())
    told = re.search(r"data.train: ([\d,]+) texts packed into rows: ([\d.]+)% is padding", said)
    assert int(told[1]) > 3 * 4 and float(told[2]) < 50
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["words/perplexity"] for line in metrics if "words/perplexity" in line]).all()
    _check_the_plan_is_kept(tmp_path, words[1], ["--data.train.packing", "packed", "--data.train.packing.texts", "4"])


def _check_the_plan_is_kept(folder, config, flags):
    """How many texts fill a window was drawn once: when the run goes on from data that have changed it is the same."""
    run = Run(folder / "run")
    drawn = run.experiment().data["train"].packing.examples
    made, tokenizer = apply_flags(load_config(config), flags), run.tokenizer()
    assert drawn == made.data["train"].build(tokenizer, 0).window_examples and not made.data["train"].packing.examples
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": "red blue " * 2, "label": "a"}) + "\n" for _ in range(60)))
    assert made.data["train"].build(tokenizer, 0).window_examples < drawn
    again = run.continued(made)
    assert again.data["train"].build(tokenizer, 0).window_examples == drawn
    run.check(again)
    other = apply_flags(made, ["--data.train.packing.examples", str(drawn + 1)])
    assert run.continued(other) == other
    with pytest.raises(UserError, match=f"data.train.packing.examples: {drawn} -> {drawn + 1}"):
        run.check(other)


def test_a_loss_of_examples_is_refused_by_its_task(config, tmp_path, capsys):
    more = '{"sentiment": Task(Classification("classes"), data="train")}'
    words = ["train", config(more), "--workdir", str(tmp_path / "run")]
    assert main([*words, "--data.train.packing", "packed"]) == 2
    said = capsys.readouterr().err
    assert "tasks.sentiment needs 'label' in the batch" in said and "data.packing puts several texts" in said
    assert said.count("\n") == 1


def test_a_text_longer_than_the_table_of_positions_is_refused(config, tmp_path, capsys):
    words = ["train", config(), "--workdir", str(tmp_path / "run"), "--data.train.packing", "packed"]
    assert main([*words, "--data.train.max_length", "16"]) == 2
    assert "data.train.max_length=16: model." in capsys.readouterr().err


def test_a_table_that_has_changed_is_told_and_another_tokenizer_is_refused(config, tmp_path, capsys):
    words = ["train", config(), "--workdir", str(tmp_path / "run"), "--steps", "1"]
    assert main(words) in (0, None)
    table = tmp_path / "texts.jsonl"
    table.write_text(table.read_text().replace("red", "pink"))
    capsys.readouterr()
    assert main([*words[:-1], "2"]) in (0, None)
    assert "data.train has changed since this run was last open: 20 records" in "".join(capsys.readouterr())
    other = ["train", config(), "--workdir", str(tmp_path / "other"), "--init_from", str(tmp_path / "run")]
    assert main([*other, "--tokenizer.vocab_size", "280"]) == 2
    assert "its table of words is that of its own tokenizer" in capsys.readouterr().err


def test_whole_words_without_their_numbers_name_the_column(config, tmp_path, capsys):
    more = '{"mlm": Task(MaskedLM(vocab_size=300, mask_id=3, whole_words=True), data="train")}'
    words = ["train", config(more), "--workdir", str(tmp_path / "run"), "--data.train.packing", "packed"]
    assert main(words) == 2
    assert "columns={'text': Text(words=...)} adds it" in capsys.readouterr().err
