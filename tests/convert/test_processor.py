"""Images and texts: the tensors of HuggingFace's own processor and tokenizer, from settings saved in a folder, both ways."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertTokenizer,
    CLIPImageProcessorPil,
    CLIPProcessor,
    CLIPTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)
from transformers.image_transforms import center_crop, get_resize_output_image_size
from transformers.models.vilt.image_processing_pil_vilt import get_resize_output_image_size as vilt_size

from mmjax.convert.processor import DEFAULTS, PROCESSORS, RESAMPLE, image_transforms, write_processor
from mmjax.core.errors import UserError
from mmjax.data import Caption, CenterCrop, ColourJitter, Flip, Normalise, Pretrained, RandomCrop, Resize, Rotate
from mmjax.data.images import read_image
from mmjax.data.transforms import PadSquare, ResizeShortest, ResizeWithin

rng = np.random.default_rng(0)
IMAGES = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in ((37, 23), (19, 41), (8, 9), (30, 30))]
VIT, CLIP, VILT, LLAVA = "ViTImageProcessor", "CLIPImageProcessor", "ViltImageProcessor", "LlavaImageProcessor"
CONVNEXT = "ConvNextImageProcessor"
STATISTICS = {"image_mean": [0.1, 0.5, 0.8], "image_std": [0.2, 0.25, 0.3]}


def save(folder, **fields):
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))


def apply(transforms, image):
    video = getattr(transforms[-1], "field", "image") == "video"  # whose processor does the same to each frame
    record = {"video": image[None]} if video else {"image": image}
    for transform in transforms:
        record = transform(record, np.random.default_rng(0), ())
    return record["video"][0] if video else record["image"]


def theirs(folder, image):
    """[H, W, 3] from the processor that HuggingFace opens the folder with."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    found = AutoImageProcessor.from_pretrained(folder, backend="pil")(image, return_tensors="np")["pixel_values"][0]
    return (found[0] if found.ndim == 4 else found).transpose(1, 2, 0)  # of a video its one frame


def assert_same(folder, transforms, images=IMAGES):
    for image in images:
        found = apply(transforms, image)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, theirs(folder, image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", DEFAULTS)
def test_a_silent_file_means_the_classs_own_settings(kind, tmp_path):
    save(tmp_path, image_processor_type=kind)
    assert_same(tmp_path, image_transforms(tmp_path), IMAGES[:2])


CASES = [
    (VIT, {"size": 16}),
    (VIT, {"size": {"height": 12, "width": 31}, **STATISTICS}),
    (VIT, {"size": [12, 31]}),
    *((VIT, {"size": 20, "resample": number}) for number in range(len(RESAMPLE))),
    (VIT, {"size": 16, "do_center_crop": True, "crop_size": {"height": 9, "width": 10}}),
    (VIT, {"do_resize": False, "do_center_crop": True, "crop_size": [20, 33]}),
    (VIT, {"do_resize": None}),
    (VIT, {"size": 16, "do_pad": True}),
    (VIT, {"size": 16, "do_pad": True, "pad_size": {"height": 16, "width": 16}}),
    (VIT, {"size": 16, "do_normalize": False}),
    (VIT, {"size": 16, "do_normalize": False, "rescale_factor": 1 / 127.5}),
    (VIT, {"size": 16, "rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1}),
    (VIT, {"size": 16, "do_rescale": False, "image_mean": 127.5, "image_std": [120, 130, 140]}),
    (VIT, {"size": 16, "do_convert_rgb": True, "an_unknown_field": 1}),
    ("DeiTImageProcessor", {"size": 24, "crop_size": 17, "resample": 3}),
    ("BitImageProcessor", {"size": {"shortest_edge": 24}, "crop_size": 16}),
    (CLIP, {"size": 16, "crop_size": 16}),
    (CLIP, {"size": {"shortest_edge": 15, "longest_edge": None}, "crop_size": {"height": 20, "width": 16}}),
    (CLIP, {"size": 16, "default_to_square": True, "do_center_crop": False}),
    (CLIP, {"size": 16, "do_center_crop": None}),
    ("SiglipImageProcessor", {"size": 16}),
    ("BlipImageProcessor", {"size": 16}),
    ("FlavaImageProcessor", {"size": 20, "crop_size": 16, "return_codebook_pixels": False}),
    (LLAVA, {"size": 16, "crop_size": 16, "do_pad": True, **STATISTICS}),
    (VILT, {"size": 40, "size_divisor": 8}),
    (VILT, {"size": {"shortest_edge": 24}, "size_divisor": 4, "do_center_crop": True, "crop_size": 9, "resample": 2}),
    (VILT, {"do_resize": False}),
    (CONVNEXT, {"size": 16, "crop_pct": 0.7, "resample": 2}),
    (CONVNEXT, {"size": {"shortest_edge": 30}, "do_center_crop": True, "crop_size": 9}),
    (CONVNEXT, {"size": {"shortest_edge": 385}, "crop_pct": 0.5}),
]


@pytest.mark.parametrize(("kind", "fields"), CASES, ids=lambda x: x if isinstance(x, str) else ", ".join(x))
def test_fields(kind, fields, tmp_path):
    save(tmp_path, image_processor_type=kind, **fields)
    assert_same(tmp_path, image_transforms(tmp_path))


def test_pixels_left_as_they_are_come_as_float(tmp_path):
    save(tmp_path, image_processor_type=VIT, do_resize=False, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(apply(image_transforms(tmp_path), IMAGES[0]), IMAGES[0].astype(np.float32))
    np.testing.assert_array_equal(theirs(tmp_path, IMAGES[0]), IMAGES[0])


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 24))
def test_sizes(rows, columns, shortest):
    image = np.zeros((rows, columns, 3), np.uint8)
    expected = get_resize_output_image_size(image, shortest, default_to_square=False, input_data_format="channels_last")
    assert apply([ResizeShortest(shortest, "nearest")], image).shape[:2] == expected
    expected = vilt_size(image, shortest, 2 * shortest, 3, input_data_format="channels_last")
    found = apply([ResizeWithin(shortest, 2 * shortest, 3, "nearest")], image).shape[:2]
    assert found == tuple(max(3, side) for side in expected)


@given(st.tuples(*[st.integers(1, 12)] * 4))
def test_crops(sizes):
    image = rng.integers(1, 256, (*sizes[:2], 3)).astype(np.uint8)
    found = apply([CenterCrop(sizes[2:], pad=True)], image)
    np.testing.assert_array_equal(found, center_crop(image, sizes[2:], input_data_format="channels_last"))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK"])
def test_files_of_other_colours(mode, tmp_path):
    save(tmp_path, image_processor_type=CLIP, size=16, crop_size=16)
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    Image.fromarray(IMAGES[0]).convert(mode).save(path)  # "LA" and "RGBA": nothing is transparent
    with Image.open(path) as image:
        assert image.mode == mode
        np.testing.assert_allclose(
            apply(image_transforms(tmp_path), read_image(path)), theirs(tmp_path, image), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"image_processor_type": "CLIPImageProcessorFast"},
        {"image_processor_type": "CLIPImageProcessorPil"},
        {"feature_extractor_type": "CLIPFeatureExtractor"},
        {},
    ],
)
def test_the_class_by_its_other_names(fields, tmp_path):
    save(tmp_path, size=16, crop_size=16, **fields)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert_same(tmp_path, image_transforms(tmp_path), IMAGES[:1])


def test_every_model_type_has_the_class_that_huggingface_has(tmp_path):
    save(tmp_path)
    types = ("vit", "vit_mae", "deit", "dinov2", "clip", "siglip", "blip", "flava", "llava", "vilt")
    for model_type in (*types, "resnet", "convnext", "convnextv2", "videomae"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert type(AutoImageProcessor.from_pretrained(tmp_path, backend="pil")).__name__ == PROCESSORS[model_type] + "Pil"


def test_a_whole_processor_saved_by_transformers_5(tmp_path, tokenizers):
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size=12)
    CLIPProcessor(image_processor, tokenizers["clip"]).save_pretrained(tmp_path)
    assert "image_processor" in json.loads((tmp_path / "processor_config.json").read_text())
    assert_same(tmp_path, image_transforms(tmp_path))
    save(tmp_path, image_processor_type=VIT, size=5)  # the nested one comes first
    assert_same(tmp_path, image_transforms(tmp_path))
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')  # as transformers 4 wrote it
    assert apply(image_transforms(tmp_path), IMAGES[0]).shape == (5, 5, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image_processor_type": "Siglip2ImageProcessor"},
            "image_processor_type='Siglip2ImageProcessor' is not supported (did",
        ),
        ({"image_processor_type": None}, "no image_processor_type, and model_type=None in config.json is not one of vit, "),
        (
            {"size": {"longest_edge": 9}},
            'size={"longest_edge": 9} is not supported: give height and width, or shortest_edge alone',
        ),
        ({"size": {"shortest_edge": 9, "longest_edge": 12}}, 'size={"shortest_edge": 9, "longest_edge": 12} is not supported'),
        ({"size": 0}, "size=0 is not a size in whole pixels"),
        ({"size": None}, "size=null is not a size in whole pixels"),
        ({"resample": 6}, "resample=6 is not one of PIL's filters, 0 to 5"),
        ({"resample": None}, "resample=null is not one of"),
        ({"do_center_crop": True}, "crop_size=null is not a size"),
        (
            {"do_center_crop": True, "crop_size": {"shortest_edge": 9}},
            'crop_size={"shortest_edge": 9} is not supported: give height',
        ),
        ({"do_resize": "yes"}, 'do_resize="yes" is neither true nor false'),
        ({"rescale_factor": 0}, "rescale_factor=0 is not a positive number"),
        ({"image_mean": [0.5]}, "image_mean=[0.5] is not one number or three"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std=[0.5, 0, 0.5] is not positive"),
        ({"do_pad": True, "pad_size": 17, "size": 16}, "pad_size=17 is not supported: it is not the size"),
        ({"do_pad": True, "do_resize": False}, "do_pad=true is not supported where images keep sizes of their own"),
        (
            {"image_processor_type": VILT, "size": {"height": 9, "width": 9}},
            'size={"height": 9, "width": 9} is not supported by ViLT',
        ),
        (
            {"image_processor_type": LLAVA, "do_pad": True, "image_mean": [0.5, 0.5, 2]},
            "image_mean=[0.5, 0.5, 2] is no colour to",
        ),
        ({"image_processor_type": VILT, "size_divisor": 0}, "size_divisor=0 is not a whole number from 1 up"),
        ({"image_processor_type": CLIP, "use_square_size": True}, "use_square_size=true is not supported"),
        (
            {"image_processor_type": CONVNEXT, "size": {"height": 9, "width": 9}},
            'size={"height": 9, "width": 9} is not supported by ConvNeXt',
        ),
        ({"image_processor_type": CONVNEXT, "size": 9, "crop_pct": 0}, "crop_pct=0 is not a positive number"),
        ({"image_processor_type": CONVNEXT, "size": 9, "crop_pct": 10}, "crop_pct=10 leaves nothing of an image of 9"),
    ],
)
def test_what_cannot_be_followed_is_refused(fields, message, tmp_path):
    save(tmp_path, **{"image_processor_type": VIT, **fields})
    with pytest.raises(UserError) as raised:
        image_transforms(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}/preprocessor_config.json: {message}") and "\n" not in str(raised.value)


def test_no_settings(tmp_path):
    for text, message in ((None, "no preprocessor_config.json"), ("{", "json: not JSON ("), ("[]", "json: not a JSON object")):
        if text is not None:
            (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(UserError) as raised:
            image_transforms(tmp_path)
        assert message in str(raised.value) and "\n" not in str(raised.value)


WATCHED = {"field": "video"}
NORMALISE = Normalise((0.1, 0.5, 0.8), (0.2, 0.25, 0.3))
WRITTEN = [
    *((model_type, (Resize((12, 17), "bilinear"), NORMALISE)) for model_type in PROCESSORS),
    ("vit", (Normalise(),)),
    ("vit", (ResizeShortest(16, "lanczos"), CenterCrop((12, 16)), NORMALISE)),
    ("clip", (ResizeShortest(16), CenterCrop((16, 16)), NORMALISE)),
    ("clip", (CenterCrop((33, 20), pad=True), Normalise())),
    ("dinov2", (Resize((20, 20), "nearest"), CenterCrop((16, 15)), NORMALISE)),
    ("llava", (PadSquare((25, 127, 204)), ResizeShortest(16), CenterCrop((16, 16)), NORMALISE)),
    ("vilt", (ResizeWithin(24, 39, 8), NORMALISE)),
    ("resnet", (ResizeShortest(20, "bilinear"), CenterCrop((16, 12)), NORMALISE)),
    (
        "videomae",
        (ResizeShortest(16, "bilinear", field="video"), CenterCrop((12, 16), field="video"), Normalise(field="video")),
    ),
    ("siglip", (Flip(1.0), Resize((16, 16)), ColourJitter(1.0), Rotate(90), NORMALISE, Caption())),
]


@pytest.mark.parametrize(("model_type", "transforms"), WRITTEN, ids=lambda x: x if isinstance(x, str) else len(x))
def test_what_is_written_does_the_same(model_type, transforms, tmp_path):
    write_processor(tmp_path, transforms, model_type)
    fixed = [transform for transform in transforms if getattr(transform, "random", True) is False]
    assert_same(tmp_path, fixed)
    assert_same(tmp_path, image_transforms(tmp_path))


def test_a_random_crop_is_written_as_what_it_makes_of_the_whole_image(tmp_path):
    write_processor(tmp_path, (RandomCrop((16, 12), resample="bilinear"), Flip(), NORMALISE), "vit")
    assert_same(tmp_path, [Resize((16, 12), "bilinear"), NORMALISE])


def test_a_model_without_images_has_no_file(tmp_path):
    write_processor(tmp_path, (), "bert")
    assert not list(tmp_path.iterdir())


class Sepia:
    """A transform of the user's own."""

    random = False


@pytest.mark.parametrize(
    ("model_type", "transforms", "message"),
    [
        ("clap", (Normalise(),), "model_type='clap' has no image processor here (did you mean 'clip'?)"),
        ("vit", (Resize((4, 4)),), "transforms: there is no Normalise"),
        ("vit", (), "transforms: there is no Normalise"),
        ("vit", (CenterCrop((9, 9)), Resize((4, 4)), Normalise()), "transforms: Resize after CenterCrop cannot be written"),
        ("vit", (Resize((9, 9)), RandomCrop((4, 4)), Normalise()), "transforms: Resize after Resize cannot be written"),
        ("vit", (PadSquare(), Normalise()), "transforms: PadSquare cannot be written for ViTImageProcessor"),
        ("clip", (ResizeWithin(4, 6), Normalise()), "transforms: ResizeWithin cannot be written for CLIPImageProcessor"),
        ("vilt", (ResizeWithin(24, 39), CenterCrop((9, 9)), Normalise()), "transforms: CenterCrop cannot be written for Vilt"),
        ("vilt", (ResizeWithin(24, 40), Normalise()), "ResizeWithin.longest=40: ViLT's processor has 39 for shortest=24"),
        (
            "llava",
            (PadSquare(), Normalise()),
            "PadSquare.fill=(0, 0, 0): HuggingFace pads with its image_mean; give fill=(127,",
        ),
        ("vit", (Sepia(), Normalise()), "transforms: Sepia cannot be written as a HuggingFace image processor"),
    ],
)
def test_what_cannot_be_written_is_refused(model_type, transforms, message, tmp_path):
    with pytest.raises(UserError) as raised:
        write_processor(tmp_path, transforms, model_type)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


CAPTIONS = [f"a photo of the number {n}, in pencil!" for n in ("zero", "one", "two", "three", "four", "five", "six", "seven")]
TEXTS = ["the number one, in pencil", "", "Zéro 日 <b> 12", 4 * CAPTIONS[1], "  two   spaces\nnew "]
PAIRS = ["eight", "", "nine nine nine", 9 * "ten ", "x"]


def learn(model, trainer, words, special, **options):
    """The vocabulary, and the merges where it has some, learnt from CAPTIONS."""
    backend = Backend(model)
    backend.pre_tokenizer = words
    backend.train_from_iterator(CAPTIONS, trainer(vocab_size=400, special_tokens=special, show_progress=False, **options))
    found = json.loads(backend.to_str())["model"]
    return {"vocab": found["vocab"], **({"merges": [tuple(pair) for pair in found["merges"]]} if "merges" in found else {})}


def byte_bpe(special, **options):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return learn(models.BPE(), trainers.BpeTrainer, words, special, initial_alphabet=letters, **options)


def unigram():
    """As SigLIP's: lower case, an end that also pads, and no beginning."""
    backend = Backend(models.Unigram())
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CAPTIONS, trainer)
    ends = [("</s>", 1)]
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizers():
    bert = learn(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer,
        pre_tokenizers.BertPreTokenizer(),
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    )
    llama = learn(models.BPE(), trainers.BpeTrainer, pre_tokenizers.Metaspace(), ["<unk>", "<s>", "</s>", "<pad>"])
    return {
        "bert": BertTokenizer(**bert),
        "roberta": RobertaTokenizer(**byte_bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])),
        "gpt2": GPT2Tokenizer(**byte_bpe(["<|endoftext|>"]), pad_token="<|endoftext|>"),
        "clip": CLIPTokenizer(**byte_bpe(["<|startoftext|>", "<|endoftext|>"], end_of_word_suffix="</w>")),
        "siglip": unigram(),
        "llama": LlamaTokenizer(**llama, pad_token="<pad>"),
    }


@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["single", "pairs"])
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "clip", "siglip", "llama"])
def test_tokens(name, pairs, tokenizers, tmp_path):
    tokenizers[name].save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs.padding_side = "right"  # Llama's own is left; ours is always right, so that token 0 has position 0
    ours = Pretrained(str(tmp_path)).train(())
    begins, ends = list(ours.begins), list(ours.ends)  # that theirs leaves out
    assert bool(begins) == bool(ends) == (name in ("gpt2", "llama"))
    lengths = np.array([len(ids) for ids in theirs(TEXTS, pairs)["input_ids"]])
    for length in (6, 13, 200):
        room = length - len(begins + ends)
        options = {"padding": "max_length", "truncation": True, "max_length": room, "return_token_type_ids": True}
        expected = theirs(TEXTS, pairs, **options, return_tensors="np")
        found = ours.encode(TEXTS, length, pairs)
        if not begins:
            for key, their_key in (("ids", "input_ids"), ("mask", "attention_mask"), ("segments", "token_type_ids")):
                np.testing.assert_array_equal(found[key], expected[their_key], err_msg=key)
        for n in range(len(TEXTS)):
            ids, kinds = (
                expected[key][n][expected["attention_mask"][n] == 1].tolist() for key in ("input_ids", "token_type_ids")
            )
            real = found["mask"][n]
            assert found["ids"][n][real].tolist() == begins + ids + ends and (found["ids"][n][~real] == ours.pad_id).all()
            inner = slice(len(begins), len(begins) + len(ids))
            assert found["segments"][n][inner].tolist() == kinds and not found["segments"][n][~real].any()
        np.testing.assert_array_equal(found["truncated"], lengths > room)
    assert lengths.max() > 13


def test_left_padding_moves_the_tokens_and_changes_none(tokenizers, tmp_path):
    tokenizers["llama"].save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.padding_side == "left"
    expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=13, return_tensors="np")
    ours = Pretrained(str(tmp_path)).train(())
    found = ours.encode(TEXTS, 15)
    for n in range(len(TEXTS)):
        real = expected["input_ids"][n][expected["attention_mask"][n].astype(bool)].tolist()
        assert found["ids"][n][found["mask"][n]].tolist() == [ours.bos_id, *real, ours.eos_id]


def test_without_a_pad_token_the_end_pads(tokenizers, tmp_path):
    GPT2Tokenizer(**byte_bpe(["<|endoftext|>"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not have a padding token"):
        AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding="max_length", max_length=13)
    found, padded = Pretrained(str(tmp_path)).train(()).encode(TEXTS, 13), Pretrained(str(tmp_path))
    tokenizers["gpt2"].save_pretrained(tmp_path)  # the same, with the end as its pad token
    np.testing.assert_array_equal(found["ids"], padded.train(()).encode(TEXTS, 13)["ids"])
