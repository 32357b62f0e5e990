"""What a class is for, done twice: by `transformers` from the exported folder (a pipeline, or `generate`), and by the run."""

import numpy as np
import torch
import transformers
from tuned import TEXTS, names, pictures

PROMPTS = ["a good and", "bad", "a very"]  # begin what was trained on


def logits_of(run, texts=None, images=None):
    """What the run's head `classes` says, one row an input."""
    batch = {} if texts is None else run.text(texts)
    batch |= {} if images is None else {"image": run.pixels(images)}
    source = run.model.heads["classes"].input
    return run.say("classes", lambda forward: forward.head("classes", forward.tokens(source), "x"), batch)


def by_label(found, count):
    """[N, C] of a classification pipeline's lists of labels and scores, which are called as in the data."""
    rows = [{item["label"]: item["score"] for item in row} for row in found]
    return np.array([[row[name] for name in names(count)] for row in rows])


def classify_texts(run):
    ours = logits_of(run, TEXTS)
    pipe = transformers.pipeline("text-classification", model=str(run.folder))
    found = pipe(TEXTS, batch_size=3, top_k=None, function_to_apply="none")
    return ours, by_label(found, ours.shape[1])


def classify_images(run):
    ours = logits_of(run, images=pictures())
    pipe = transformers.pipeline("image-classification", model=str(run.folder), **processor_of(run))
    found = pipe(pictures(), batch_size=3, top_k=ours.shape[1], function_to_apply="none")
    return ours, by_label(found, ours.shape[1])


def processor_of(run):
    """Without torchvision, its PIL form is to be asked for."""
    return {"image_processor": transformers.AutoImageProcessor.from_pretrained(run.folder, backend="pil")}


def tag_tokens(run):
    """The most likely class of each token of each text, and how likely it is."""
    batch = run.text(TEXTS)
    logits = run.say("tags", lambda forward: forward.head("token_classes", forward.encode("text"), "x"), batch)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    special = np.isin(batch["text"], run.tokenizer.special_ids)
    pipe = transformers.pipeline("token-classification", model=str(run.folder), ignore_labels=[])
    found = [item for row in pipe(TEXTS, batch_size=3) for item in row]
    kept = shares[batch["text_mask"] & ~special]
    assert [int(item["entity"].removeprefix("LABEL_")) for item in found] == kept.argmax(-1).tolist()
    return kept.max(-1), np.array([item["score"] for item in found])


def fill_masks(run):
    texts = [text.replace("cats", "[MASK]").replace("long", "[MASK]", 1) for text in TEXTS]
    texts = [text if text.count("[MASK]") == 1 else text.replace("[MASK]", "cats", 1) for text in texts]
    batch = run.text(texts)
    logits = run.say("masked", lambda forward: forward.head("masked_lm", forward.encode("text"), "x"), batch)
    at = logits[batch["text"] == run.tokenizer.mask_id]
    shares = np.exp(at) / np.exp(at).sum(-1, keepdims=True)
    pipe = transformers.pipeline("fill-mask", model=str(run.folder), top_k=5)
    found = pipe(texts, batch_size=3)
    assert [[item["token"] for item in row] for row in found] == np.argsort(-at, -1)[:, :5].tolist()
    return -np.sort(-shares, -1)[:, :5], np.array([[item["score"] for item in row] for row in found])


def text_features(run):
    pipe = transformers.pipeline("feature-extraction", model=str(run.folder))
    found = pipe(TEXTS)
    batch = run.text(TEXTS)
    ours = run.say("text", lambda forward: forward.encode("text").embeddings, batch)
    return ours[batch["text_mask"]], np.concatenate([np.array(x)[0] for x in found])


def image_features(run):
    """Each token's; CLIP's image tower as HuggingFace has it normalises its pooled vector alone, so that is compared."""
    pooled = run.made.name == "CLIPVisionModel"

    def ask(forward):
        return forward.head("pooler", forward.encode("image"), "x") if pooled else forward.encode("image").embeddings

    ours = run.say("image", ask, {"image": run.pixels(pictures())})
    pipe = transformers.pipeline("image-feature-extraction", model=str(run.folder), **processor_of(run))
    return ours, np.array(pipe(pictures(), pool=pooled))[:, 0]


def match_captions(run):
    """The share of each caption; SigLIP's, whether each fits."""
    siglip = run.case.model_type == "siglip"

    def similarities(forward):
        scores = forward.scalar("dual", "scale") * (forward.embed("image", "dual") @ forward.embed("text", "dual").T)
        return scores + forward.scalar("dual", "bias") if siglip else scores

    scores = run.say("dual", similarities, run.text(TEXTS) | {"image": run.pixels(pictures())})
    ours = 1 / (1 + np.exp(-scores)) if siglip else np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    pipe = transformers.pipeline("zero-shot-image-classification", model=str(run.folder), **processor_of(run))
    found = pipe(pictures(), candidate_labels=TEXTS, hypothesis_template="{}")
    rows = [{item["label"]: item["score"] for item in row} for row in found]
    return ours, np.array([[row[text] for text in TEXTS] for row in rows])


def greedily(run, decoder, ids, key="text", **given):
    """The ids that follow, one at a time, until the tokenizer's end or eight of them: our forward, and nothing else of ours."""
    ids, new = list(ids), []
    while len(new) < 8 and run.tokenizer.eos_id not in new:
        row = np.array([ids + [0] * (60 - len(ids))], np.int32)
        batch = {key: row, f"{key}_mask": np.arange(60)[None] < len(ids)}
        logits = run.say(decoder, lambda forward: next_logits(run, decoder, key, forward), batch | given)
        new.append(int(np.argmax(logits[0, len(ids) - 1])))
        ids.append(new[-1])
    return new


def next_logits(run, decoder, key, forward):
    writes, names = run.model.decoders[decoder].writes, run.model.decoders[decoder].context
    own = {writes: forward.batch[key], f"{writes}_mask": forward.batch[f"{key}_mask"]}
    return forward.decode(decoder, own, {name: forward.tokens(name) for name in names} or None)


def upto_end(run, ids):
    """What was generated, the padding after its end left out."""
    ids = [int(i) for i in ids]
    return ids[: ids.index(run.tokenizer.eos_id) + 1] if run.tokenizer.eos_id in ids else ids


def continue_texts(run):
    """A batch of prompts of several lengths, padded on the left."""
    prompts = run.text(PROMPTS)
    ours = [greedily(run, "caption", row[mask]) for row, mask in zip(prompts["text"], prompts["text_mask"], strict=True)]
    pipe = transformers.pipeline("text-generation", model=str(run.folder))
    found = pipe(PROMPTS, batch_size=3, max_new_tokens=8, do_sample=False, return_tensors=True)
    starts = prompts["text_mask"].sum(1)
    theirs = [
        upto_end(run, [i for i in row[0]["generated_token_ids"] if i != run.tokenizer.pad_id][start:])
        for row, start in zip(found, starts, strict=True)
    ]
    return ours, theirs


def talk_of_images(run):
    """A text about an image: LLaVA after a batch of prompts, BLIP after one at a time and after none."""
    return talk_after_places(run) if run.before else caption_images(run)


def processor(run):
    return transformers.AutoProcessor.from_pretrained(run.folder, backend="pil")


def talk(run, **given):
    """What the pipeline says: rows of ids."""
    pipe = transformers.pipeline("image-text-to-text", model=str(run.folder), processor=processor(run))
    found = pipe(**given, max_new_tokens=8, do_sample=False, return_tensors=True)
    return [item["generated_token_ids"].tolist() for item in found]


def talk_after_places(run):
    prompts = run.text(PROMPTS)
    rows = zip(prompts["text"], prompts["text_mask"], run.pixels(pictures()), strict=True)
    ours = [greedily(run, "caption", row[mask], image=x[None]) for row, mask, x in rows]
    place = run.tokenizer.huggingface.convert_ids_to_tokens(run.model.decoders["caption"].place)
    found = talk(run, images=[[image] for image in pictures()], text=[place + text for text in PROMPTS])
    return ours, [upto_end(run, row[prompts["text"].shape[1] :]) for row in found]


def caption_images(run):
    """Each text without its end is a prompt; padding after it would be one too, so they are asked one by one."""
    model, pixels, prompts = run.theirs(), run.pixels(pictures()), run.text(PROMPTS)
    starts = [row[mask][:-1].tolist() for row, mask in zip(prompts["text"], prompts["text_mask"], strict=True)]
    prompted = [start + greedily(run, "caption", start, image=x[None]) for start, x in zip(starts, pixels, strict=True)]
    ours = [greedily(run, "caption", [run.tokenizer.bos_id], image=x[None]) for x in pixels]
    found = model.generate(pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)), max_new_tokens=8, do_sample=False)
    theirs = [upto_end(run, row[1:]) for row in found]
    for image, text in zip(pictures(), PROMPTS, strict=True):
        theirs += [upto_end(run, row) for row in talk(run, images=image, text=text)]
    return ours + prompted, theirs


def answer_questions(run):
    model, pixels, asked = run.theirs(), run.pixels(pictures()), run.text(TEXTS[:1] * 3)
    rows = zip(pixels, asked["text"], asked["text_mask"], strict=True)
    ours = [
        greedily(run, "answer", [run.tokenizer.bos_id], "answer", image=x[None], text=ids[None], text_mask=mask[None])
        for x, ids, mask in rows
    ]
    found = model.generate(
        input_ids=torch.tensor(asked["text"]).long(),
        attention_mask=torch.tensor(asked["text_mask"]).long(),
        pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)),
        max_new_tokens=8,
        do_sample=False,
    )
    return ours, [upto_end(run, row[1:]) for row in found]


def write_texts(run):
    """What is written of a batch of texts of several lengths."""
    model, asked = run.theirs(), run.text(TEXTS)
    rows = zip(asked["text"], asked["text_mask"], strict=True)
    start = run.model.decoders["target"].start_token
    ours = [greedily(run, "target", [start], "target", text=ids[None], text_mask=mask[None]) for ids, mask in rows]
    ids, mask = (torch.tensor(asked[key].astype(np.int64)) for key in ("text", "text_mask"))
    found = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    return ours, [upto_end(run, row[1:]) for row in found]


JOBS = {
    "text-classification": classify_texts,
    "image-classification": classify_images,
    "token-classification": tag_tokens,
    "fill-mask": fill_masks,
    "feature-extraction": text_features,
    "image-feature-extraction": image_features,
    "zero-shot-image-classification": match_captions,
    "text-generation": continue_texts,
    "image-text-to-text": talk_of_images,
    "generate (an answer)": answer_questions,
    "generate (a text of a text)": write_texts,
}
