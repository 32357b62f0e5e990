"""Answers in passages from data to `transformers`: trained, evaluated, found, and handed over with the same answers.

The question-answering pipeline is no more in transformers 5: what is compared are the logits of
`AutoModelForQuestionAnswering` and that pipeline's search, which the one for documents still has.
"""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from transformers.pipelines.document_question_answering import select_starts_ends

import mmjax
from mmjax.cli import main
from mmjax.convert import load_extractor
from mmjax.core.errors import UserError
from mmjax.data import BPE, Data, Span, Squad, WordPiece
from mmjax.data.passages import Layout
from mmjax.evaluate import SpanAnswers
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.heads import TokenClassifier
from mmjax.objectives import ExtractSpan
from mmjax.parallel.mesh import Mesh
from mmjax.train import AdamW, Experiment, Log, Task, train

SIZE = {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64}
PEOPLE, PLACES = ("Anna", "Otto", "Mia", "Ida"), ("Rome", "Oslo", "New York", "Bad Ems")
LENGTH = 20
SPAN = Span(stride=4, max_question=5)


def squad():
    """80 questions, a third of which have no answer."""
    rng, paragraphs = np.random.default_rng(0), []
    for n in range(80):
        who, where = PEOPLE[rng.integers(4)], PLACES[rng.integers(4)]
        context = f"{'It was so . ' * int(rng.integers(4))}{who} lives in {where} ."
        asked = (("Who ?", who), ("Where ?", where), ("When ?", ""))[n % 3]
        answers = [{"text": asked[1], "answer_start": context.index(asked[1])}] if asked[1] else []
        qas = [{"id": str(n), "question": asked[0], "answers": answers, "is_impossible": not answers}]
        paragraphs.append({"context": context, "qas": qas})
    return {"data": [{"paragraphs": paragraphs}]}


def experiment(folder, model, tokenizer, steps):
    (folder / "squad.json").write_text(json.dumps(squad()))
    data = Data(Squad(str(folder / "squad.json")), (), {"answers": SPAN}, batch_size=16, max_length=LENGTH, threads=0)
    return Experiment(
        model=model,
        tokenizer=tokenizer,
        data={"train": data, "validation": data},
        tasks={"answers": Task(ExtractSpan(), data="train")},
        evaluate={"answers": SpanAnswers(impossible=True)},
        optimizer=AdamW(learning_rate=1e-2, schedule="constant", warmup_steps=0),
        steps=steps,
        log=Log(every=steps, tensorboard=False, progress=False),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    text = TextTransformer(vocab_size=90, max_length=LENGTH, norm_placement="post", embed_norm=True, segments=2, **SIZE)
    model = Multimodal(encoders={"text": text}, heads={"spans": TokenClassifier(classes=2, transform=False)})
    build = Mesh.build
    with pytest.MonkeyPatch.context() as patch:  # one device, and no passes of optimization: two thirds less to compile
        patch.setattr(Mesh, "build", lambda self, devices=None: build(self, devices or jax.devices()[:1]))
        jax.config.update("jax_disable_most_optimizations", True)
        metrics = train(experiment(folder, model, WordPiece(90, lowercase=False), 100), folder / "run")
    jax.config.update("jax_disable_most_optimizations", False)
    return folder / "run", metrics


PAIRS = [
    ("Who ?", "Anna lives in New York ."),
    ("Where ?", "It was so . It was so . It was so . Ida lives in Bad Ems ."),
    ("When ?", "Otto lives in Rome ."),
]


def theirs(folder, question, context, top_k, impossible, longest=15, stride=SPAN.stride):
    """What the pipeline of transformers 4 answers: its preprocessing, AutoModelForQuestionAnswering, its search."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    found = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=LENGTH,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    answers, none = {}, 1e6
    for window, ids in enumerate(found["input_ids"]):
        given = {key: torch.tensor([found[key][window]]) for key in tokenizer.model_input_names}
        with torch.no_grad():
            out = model(**given)
        of = found.sequence_ids(window)
        hidden = np.array([[part != 1 for part in of]]).astype(int)
        hidden[0, ids.index(tokenizer.cls_token_id)] = 0
        logits = out.start_logits.numpy(), out.end_logits.numpy()
        *spans, none = select_starts_ends(*logits, hidden[0], np.ones(len(ids), int), none, 100, impossible, longest)
        encoding = found.encodings[window]
        for start, end, score in zip(*spans, strict=True):
            if score == 0:  # of [CLS], which that search leaves in
                continue
            words = [encoding.word_to_chars(encoding.token_to_word(int(token)), 1) for token in (start, end)]
            place = (words[0][0], words[1][1])
            answers[place] = max(float(score), answers.get(place, 0.0))
    rows = [(score, *place) for place, score in answers.items()] + [(none, 0, 0)] * impossible
    return [
        {"answer": context[start:end], "score": score, "start": start, "end": end}
        for score, start, end in sorted(rows, key=lambda row: -row[0])[:top_k]
    ]


def assert_same(ours, theirs):
    assert [{**one, "score": 0} for one in ours] == [{**one, "score": 0} for one in theirs]
    assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in theirs], rel=1e-4)


def test_it_learns_and_is_evaluated(run):
    _, metrics = run
    assert metrics["answers/questions"] == 80 and metrics["answers/f1"] > 0.9 and metrics["answers/unanswered/f1"] > 0.9


def test_answers_by_the_command(run, tmp_path, capsys):
    folder = str(run[0])
    assert main(["predict", folder, PAIRS[0][1], "--text", "--question", PAIRS[0][0], "--top_k", "2"]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["text"] == PAIRS[0][1] and len(line["answers"]) == 2
    assert {**line["answers"][0], "score": 0} == {"answer": "Anna", "score": 0, "start": 0, "end": 4}
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"text": context, "question": question}) + "\n" for question, context in PAIRS))
    assert main(["predict", folder, str(file), "--text", "--top_k", "1"]) == 0
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [line["answers"][0]["answer"] for line in lines] == ["Anna", "Bad Ems", ""]
    assert [line["question"] for line in lines] == [question for question, _ in PAIRS]
    assert main(["predict", folder, "Anna", "--text"]) == 2
    assert "it finds answers in passages: give --question" in capsys.readouterr().err


def test_transformers_finds_the_same_in_what_is_handed_over(run, tmp_path):
    folder = tmp_path / "hf"
    assert main(["convert", "to-hf", str(run[0]), str(folder)]) == 0
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForQuestionAnswering"]
    assert "pipeline_tag: question-answering" in (folder / "README.md").read_text()
    ask = mmjax.Predictor(run[0])
    questions, contexts = zip(*PAIRS, strict=True)
    for impossible in (True, False):
        found = ask.extract(list(questions), list(contexts), top_k=4, impossible=impossible)
        assert [len(own) for own in found] == [4, 4, 4]
        for own, pair in zip(found, PAIRS, strict=True):
            assert_same(own, theirs(folder, *pair, 4, impossible))
    again = mmjax.Predictor(folder)
    assert again.extracts() and not again.classifies() and not again.tags()
    assert again.extract("Who ?", PAIRS[0][1])[0][0]["answer"] == "Anna"


def test_a_roberta_of_transformers_answers_as_it_does_there(tmp_path):
    own = BPE(300).train([" ".join(PEOPLE + PLACES), " lives in . It was so Who? Where? When?"])
    own.huggingface.backend_tokenizer.model.save(str(tmp_path))
    files = {"vocab": str(tmp_path / "vocab.json"), "merges": str(tmp_path / "merges.txt")}
    special = {"bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[PAD]", "mask_token": "[MASK]"}
    tokenizer = transformers.RobertaTokenizerFast(**files, **special, cls_token="[CLS]", sep_token="[SEP]")
    tokenizer.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    widths = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ids = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": LENGTH + tokenizer.pad_token_id + 1,
    }
    config = transformers.RobertaConfig(**widths, **ids)
    transformers.RobertaForQuestionAnswering(config).save_pretrained(tmp_path / "base")
    ask = mmjax.Predictor(tmp_path / "base")
    assert ask.work.windows() == (Layout(LENGTH, 6, 5), True)
    for question, context in PAIRS[:2]:
        (found,) = ask.extract(question, context, top_k=3, impossible=True)
        assert_same(found, theirs(tmp_path / "base", question, context, 3, True, stride=6))
    assert main(["convert", "from-hf", str(tmp_path / "base"), str(tmp_path / "start")]) == 0
    assert load_extractor(tmp_path / "start").heads["spans"].classes == 2


def test_mistakes_are_named(run, tmp_path, caplog):
    ask = mmjax.Predictor(run[0])
    with pytest.raises(UserError, match=r"2 questions and 1 passages: give as many of both"):
        ask.extract(["a", "b"], "c")
    with pytest.raises(UserError, match="give a question and a passage"):
        ask.extract(" ", "c")
    with pytest.raises(UserError, match="max_answer_length=0: use a whole number from 1 up"):
        ask.extract("a", "c", max_answer_length=0)
    with pytest.raises(UserError, match="head='x': heads that find answers in passages are spans"):
        ask.extract("a", "c", head="x")
    with pytest.raises(UserError, match="heads that tag are none"):
        ask.entities("a")
    ask.extract("Who Who Who Who Who Who ?", "Anna")
    assert "1 of 1 questions were cut to 5 tokens" in caplog.text
