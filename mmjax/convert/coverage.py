"""What of HuggingFace is covered, as a page: `python -m mmjax.convert.coverage > docs/huggingface.md`."""

from __future__ import annotations

from collections.abc import Mapping

from mmjax.convert.families import FAMILIES
from mmjax.convert.family import SHARED, ConfigField, Family, Honoured, Inert, Only

# HuggingFace class -> what gives the run's own answer there, as the tests run it: a pipeline's task, or `generate`.
HOW: dict[str, str] = {
    **dict.fromkeys(("BertModel", "RobertaModel", "GPT2Model", "LlamaModel", "CLIPTextModel"), "feature-extraction"),
    **dict.fromkeys(
        ("ViTModel", "DeiTModel", "Dinov2Model", "CLIPVisionModel", "SiglipVisionModel"), "image-feature-extraction"
    ),
    **dict.fromkeys(("BertForMaskedLM", "RobertaForMaskedLM"), "fill-mask"),
    **dict.fromkeys(
        (
            "BertForSequenceClassification",
            "RobertaForSequenceClassification",
            "GPT2ForSequenceClassification",
            "LlamaForSequenceClassification",
        ),
        "text-classification",
    ),
    **dict.fromkeys(
        ("BertForTokenClassification", "RobertaForTokenClassification", "GPT2ForTokenClassification"), "token-classification"
    ),
    **dict.fromkeys(
        (
            "ViTForImageClassification",
            "DeiTForImageClassification",
            "DeiTForImageClassificationWithTeacher",
            "Dinov2ForImageClassification",
            "ResNetForImageClassification",
            "ConvNextForImageClassification",
            "ConvNextV2ForImageClassification",
            "CLIPForImageClassification",
            "SiglipForImageClassification",
        ),
        "image-classification",
    ),
    **dict.fromkeys(("CLIPModel", "SiglipModel"), "zero-shot-image-classification"),
    **dict.fromkeys(("GPT2LMHeadModel", "LlamaForCausalLM"), "text-generation"),
    "BlipForConditionalGeneration": "image-text-to-text",
    "BlipForQuestionAnswering": "generate (an answer)",
    "LlavaForConditionalGeneration": "image-text-to-text",
    **dict.fromkeys(
        ("WhisperForConditionalGeneration", "Wav2Vec2ForCTC", "HubertForCTC"),
        "automatic-speech-recognition",
    ),
    **dict.fromkeys(
        (
            "WhisperForAudioClassification",
            "Wav2Vec2ForSequenceClassification",
            "HubertForSequenceClassification",
            "ASTForAudioClassification",
        ),
        "audio-classification",
    ),
    "VideoMAEForVideoClassification": "video-classification",
    **dict.fromkeys(
        ("T5ForConditionalGeneration", "MT5ForConditionalGeneration", "BartForConditionalGeneration"),
        "generate (a text of a text)",
    ),
}

HEAD = """# HuggingFace models

Made by `python -m mmjax.convert.coverage` from the converters' own tables; a test keeps it so.

Each class below converts both ways: the same logits to float32 rounding, the same bits after a round trip. A field of its
config.json is *honoured* (the model holds it), *refused* (only the values named can be represented, another stops the import)
or *inert* (it changes nothing that a forward pass computes).

| `model_type` | classes |
|---|---|
"""

JOBS_HEAD = """## What is proven of an export

`pytest -m 'slow or not slow' tests/convert/test_handed_over.py` trains a run of each class, exports it by `mmjax convert to-hf`
and opens the folder with `transformers` alone: its tokenizer (texts of several lengths, padded in a batch), its processor, its
ids, the names of its classes. The answers are the run's own to 1e-5 of the largest, and what is generated greedily is the same
tokens: from a run trained from nothing with a tokenizer of its own, from one that started from an imported checkpoint, and,
where there are images, from one that did so on images of another size. Every class is called so
(`test_a_class_answers_as_the_run_does`); where `transformers` has a pipeline for it, or it generates, that is run too
(`test_its_pipeline_or_generation_gives_the_runs_own_answer`). Those that listen are in `tests/convert/test_whisper.py` and
`tests/convert/test_wav2vec2.py`, one of each kind; those that watch in `tests/convert/test_videomae.py`.

| class | also run as |
|---|---|
"""


def page() -> str:
    """The page, as Markdown."""
    rows = [f"| `{name}` | {', '.join(f'`{model}`' for model in family.models)} |" for name, family in FAMILIES.items()]
    return HEAD + "\n".join(rows) + "\n\n" + _jobs() + "\n".join(_fields(family) for family in FAMILIES.values()) + _shared()


def _jobs() -> str:
    """The table of what each class is handed over for."""
    lines = [JOBS_HEAD.rstrip()]
    for family in FAMILIES.values():
        for name in family.models:
            how = HOW.get(name, "")
            said = f"`{how}`" if how and " " not in how else how or "its class, called"
            lines.append(f"| `{name}` | {said} |")
    return "\n".join(lines) + "\n\n"


def _fields(family: Family) -> str:
    lines = [f"## {family.model_type}", ""]
    honoured = [f"`{name}`" for name, field in family.table().items() if isinstance(field, Honoured)]
    lines += ["Honoured: " + ", ".join(honoured) + ".", ""]
    refused = [f"`{name}` but for {_values(field)}" for name, field in family.fields.items() if isinstance(field, Only)]
    if refused:
        lines += ["Refused: " + "; ".join(refused) + ".", ""]
    return "\n".join(lines + _inert(family.fields))


def _shared() -> str:
    return "\n".join(["## In every family", "", *_inert(SHARED)])


def _inert(fields: Mapping[str, ConfigField]) -> list[str]:
    inert = [f"`{name}` ({field.reason})" for name, field in fields.items() if isinstance(field, Inert)]
    return ["Inert: " + "; ".join(inert) + ".", ""] if inert else []


def _values(field: Only) -> str:
    return " or ".join(f"`{value!r}`" for value in field.values)


if __name__ == "__main__":
    print(page(), end="")
