"""What we hand over does the other side's job: each class, opened by `transformers` from its folder, answers as the run.

Texts go through the folder's tokenizer, padded in a batch, images through its processor; ours through the run's own. `HOW` in
`mmjax.convert.coverage` says which pipeline or generation a class is proven with.
"""

import dataclasses
import functools

import numpy as np
import pytest
import torch
import transformers
from checks import counting, plain
from families import CASES
from handed import WAYS, hand_over
from jobs import JOBS
from parity import assert_close, explain
from tuned import TEXTS, pictures, reads_texts, room

from mmjax.convert.coverage import HOW

# Handed over by `test_whisper.py`, `test_wav2vec2.py` and `test_videomae.py`.
HEARD = ("whisper", "wav2vec2", "hubert", "audio-spectrogram-transformer", "videomae")
CLASSES = {made.name: (case, made) for case in CASES.values() if case.model_type not in HEARD for made in reversed(case.models)}
TEXT_ONLY = ("bert", "roberta", "gpt2", "llama", "clip_text_model", "siglip_text_model", "t5", "mt5", "bart")
IMAGES = [name for name, (case, _) in CLASSES.items() if case.model_type not in TEXT_ONLY]
ROWS = [(name, way) for name in CLASSES for way in WAYS if way != "resized" or name in IMAGES]
KEPT = ("answer", "answer_mask", "target", "target_mask", "image_keep")  # of a case's own batch
RTOL = 1e-5


@pytest.fixture(scope="module")
def handed(tmp_path_factory):
    """What was handed over, by class and way; made once."""

    @functools.cache
    def make(name, way):
        case, made = CLASSES[name]
        return hand_over(case, made, way, tmp_path_factory.mktemp(f"{name}-{way}"))

    return make


def batches(run, theirs):
    """The batch of three texts and images as the run makes it, and as the folder's tokenizer and processor do."""
    ours, out = {}, {}
    model = run.model
    if reads_texts(model):
        ours |= run.text(TEXTS)
        exported = transformers.AutoTokenizer.from_pretrained(run.folder)
        exported.padding_side = "right"
        padding = "max_length" if room(model) == 64 else True
        found = exported([run.before + text for text in TEXTS], padding=padding, return_tensors="np")
        assert set(found) <= {"input_ids", "attention_mask", "token_type_ids"}
        real = found["attention_mask"].astype(bool) if "attention_mask" in found else np.ones(found["input_ids"].shape, bool)
        out |= {"text": found["input_ids"].astype(np.int32), "text_mask": real}
    if "image" in model.encoders:
        ours["image"] = run.pixels(pictures())
        processor = transformers.AutoImageProcessor.from_pretrained(run.folder, backend="pil")
        out["image"] = np.moveaxis(processor(pictures(), return_tensors="np")["pixel_values"], 1, -1)
        encoder = model.encoders["image"]
        for batch in (ours, out):
            if getattr(encoder, "images", 1) > 1:
                batch["image"] = np.stack([batch["image"], batch["image"][::-1]], 1)
            if run.case.model_type == "flava":
                rows, columns = (side // patch for side, patch in zip(run.size, encoder.patch, strict=True))
                # Its case counts the tokens of its own texts; those of others are proven to be the folder's above.
                own = run.case.batch(theirs)
                batch |= {key: own[key] for key in ("text", "text_mask", "text_segments", "text_hidden") if key in own}
                batch["image_segments"] = (np.arange(rows * columns)[None] % 3 == np.array([[0], [1], [2]])).astype(np.int32)
    return ours, out


def quick(names):
    """The rows of these classes; a run of each pipeline and generation, and the other rows only where there is time."""
    first = {(next(name for name in HOW if HOW[name] == how), "own") for how in HOW.values()}
    rows = [row for row in ROWS if row[0] in names]
    return [pytest.param(*row, marks=[] if row in first else [pytest.mark.slow]) for row in rows]


@pytest.mark.parametrize(("name", "way"), quick(CLASSES))
def test_a_class_answers_as_the_run_does(name, way, handed):
    run = handed(name, way)
    theirs = run.theirs()
    case = dataclasses.replace(run.case, silent=(*run.case.silent, "interpolate_pos_encoding"))
    ours, out = batches(run, theirs)
    extra = {key: x for key, x in case.batch(theirs).items() if key in KEPT}
    if way == "resized":
        extra.pop("image_keep", None)
    with torch.no_grad():
        wanted = plain(case.theirs(run.made, theirs, out | extra))
    found = counting(case, ours | extra, case.ours(run.model, run.params, ours | extra, tuple(wanted)))
    for answer, value in counting(case, out | extra, wanted).items():
        with explain(answer):
            assert_close(found[answer], value, rtol=RTOL)


@pytest.mark.parametrize(("name", "way"), quick(HOW))
def test_its_pipeline_or_generation_gives_the_runs_own_answer(name, way, handed):
    ours, theirs = JOBS[HOW[name]](handed(name, way))
    if isinstance(ours, list):
        assert ours == theirs
    else:
        assert_close(ours, theirs, rtol=RTOL)
