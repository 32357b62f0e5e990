"""The model card that goes with an exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.core.trees import count
from mmjax.models import Multimodal, param_shapes

TAGS = {
    "ForImageClassification": "image-classification",
    "ForMaskedLM": "fill-mask",
    "LMHeadModel": "text-generation",
    "ForCausalLM": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
    "RobertaForQuestionAnswering": "question-answering",
}


def model_card(architecture: str, config: Mapping[str, Any], model: Multimodal) -> str:
    """README.md with the header that the hub reads."""
    task = next((tag for end, tag in TAGS.items() if architecture.endswith(end)), None)
    header = ["library_name: transformers", "tags: [mmjax]"] + ([f"pipeline_tag: {task}"] if task else [])
    names = config.get("id2label") or {}
    lines = [
        "---",
        *header,
        "---",
        "",
        f"# {architecture}",
        "",
        f"A `{config['model_type']}` model of {count(param_shapes(model)):,} parameters, trained or converted with mmjax.",
        "",
        "```python",
        f"from transformers import {architecture}",
        "",
        f'model = {architecture}.from_pretrained("path/to/this/folder")',
        "```",
    ]
    if names:
        lines += ["", "Classes: " + ", ".join(str(names[key]) for key in names) + "."]
    return "\n".join(lines) + "\n"


def base_lines(architecture: str, base: str, labels: Sequence[str], problem: str, dtype: str) -> tuple[list[str], list[str]]:
    """What a card says of the base; and the code that loads it, with as many classes as the adapter's head has.

    Args:
      problem: the `problem_type` by which pipelines know what the logits are; "" where they need not be told.
    """
    said = []
    if dtype != "float32":
        said = ["", f"It was trained over the base kept in {dtype}: over the whole of it answers differ by what that rounded."]
    if not labels or not architecture.endswith("Classification"):
        return said, [f'base = {architecture}.from_pretrained("{base or "path/to/the/base"}")']
    named = [
        f"labels = {list(labels)!r}",
        "names = {i: name for i, name in enumerate(labels)}",
        "of = {'num_labels': len(labels), 'id2label': names, 'label2id': {name: i for i, name in names.items()}}",
        *([f"of['problem_type'] = {problem!r}"] if problem else []),
    ]
    return said, [*named, f'base = {architecture}.from_pretrained("{base or "path/to/the/base"}", **of)']


def adapter_card(
    architecture: str, config: Mapping[str, Any], base: str, labels: Sequence[str], problem: str, dtype: str
) -> str:
    """README.md of a peft folder."""
    said, load = base_lines(architecture, base, labels, problem, dtype)
    header = ["library_name: peft", f"tags: [mmjax, {config['peft_type'].lower()}]"] + ([f"base_model: {base}"] if base else [])
    lines = [
        "---",
        *header,
        "---",
        "",
        f"# An adapter of {architecture}",
        "",
        f"{config['peft_type']}" + (f" of rank {config['r']}" if "r" in config else "") + ", trained or converted with mmjax.",
        *said,
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {architecture}",
        "",
        *load,
        'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def bottleneck_card(
    architecture: str, base: str, head: bool, name: str, labels: Sequence[str], problem: str, dtype: str
) -> str:
    """README.md of a folder of the adapters library."""
    said, load = base_lines(architecture, base, labels, problem, dtype)
    lines = [
        "---",
        "library_name: adapter-transformers",
        "tags: [mmjax, adapters]" + (f"\nbase_model: {base}" if base else ""),
        "---",
        "",
        f"# Bottleneck adapters of {architecture}",
        "",
        "Trained or converted with mmjax" + (", with the head that was trained beside them." if head else "."),
        *said,
        "",
        "```python",
        "import adapters",
        f"from transformers import {architecture}",
        "",
        *load,
        "adapters.init(base)",
        'base.load_adapter("path/to/this/folder", use_safetensors=True)',
        f'base.set_active_adapters("{name}")',
        "```",
    ]
    return "\n".join(lines) + "\n"
