"""A small Whisper as HuggingFace has it: random weights, a tokenizer of several languages, an extractor of one second."""

import json

import numpy as np
import soundfile
import torch
import transformers
from parity import randomise
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

RATE, SECONDS = 16_000, 1
TEXTS = ["one low tone", "two tones", "a high one", "no tone at all"]
LANGUAGES = ("en", "zh", "de")
SIZES = {
    "d_model": 32,
    "num_mel_bins": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "max_source_positions": 50 * SECONDS,
    "max_target_positions": 24,
}


def tokenizer(languages=(), times=False):
    """Bytes and a few merges, with Whisper's tokens around a text, and times up to the extractor's seconds."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    )
    names = ["<|startoftranscript|>", *(f"<|{one}|>" for one in languages), "<|translate|>", "<|transcribe|>"]
    names += ["<|startofprev|>", "<|notimestamps|>"]
    own.add_special_tokens([AddedToken(name, special=True) for name in names])
    if times:
        own.add_tokens([AddedToken(f"<|{n * 0.02:.2f}|>", normalized=False) for n in range(50 * SECONDS + 1)])
    begin = ["<|startoftranscript|>", *(["<|en|>", "<|transcribe|>"] if languages else []), "<|notimestamps|>"]
    around = [(name, own.token_to_id(name)) for name in (*begin, "<|endoftext|>")]
    own.post_processor = processors.TemplateProcessing(single=" ".join([*begin, "$A", "<|endoftext|>"]), special_tokens=around)
    end = "<|endoftext|>"
    return transformers.WhisperTokenizerFast(
        tokenizer_object=own, bos_token=end, eos_token=end, unk_token=end, pad_token=end, model_max_length=24
    )


def save(folder, languages=(), kind="WhisperForConditionalGeneration", seed=0, times=False, **changes):
    """The model, saved with all that goes with it."""
    words = tokenizer(languages, times)
    ids = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("startoftranscript", "notimestamps", "endoftext")}
    end, start = ids["endoftext"], ids["startoftranscript"]
    said = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    torch.manual_seed(seed)
    config = transformers.WhisperConfig(vocab_size=len(words), **{**SIZES, **said, **changes})
    model = randomise(getattr(transformers, kind)(config))
    if hasattr(model, "generation_config") and model.generation_config is not None:
        own = {"no_timestamps_token_id": ids["notimestamps"], "is_multilingual": bool(languages), "return_timestamps": False}
        own |= {"max_length": 12, "suppress_tokens": [7, 9], "begin_suppress_tokens": [end]}
        if times:
            own |= {"max_length": 24, "max_initial_timestamp_index": 10}
            own["prev_sot_token_id"] = words.convert_tokens_to_ids("<|startofprev|>")
        if languages:
            own["lang_to_id"] = {f"<|{one}|>": words.convert_tokens_to_ids(f"<|{one}|>") for one in languages}
            own["task_to_id"] = {one: words.convert_tokens_to_ids(f"<|{one}|>") for one in ("translate", "transcribe")}
        else:
            own["forced_decoder_ids"] = [[1, ids["notimestamps"]]]
        model.generation_config = transformers.GenerationConfig(**said, **own)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(feature_size=16, sampling_rate=RATE, chunk_length=SECONDS)
    extractor.save_pretrained(folder)
    return model.eval(), words, extractor


def sound(number):
    """Tones and noise, of a length of its own, none longer than a second."""
    rng = np.random.default_rng(number)
    time = np.arange(int(RATE * (0.5 + 0.08 * number))) / RATE
    found = 0.4 * np.sin(2 * np.pi * 200 * (number + 1) * time) + 0.05 * rng.normal(size=time.shape)
    return found.astype(np.float32)


def write(folder, count=4):
    """WAV files of a float each sample, and a manifest of them with texts and classes."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(count):
        soundfile.write(folder / f"{number}.wav", sound(number), RATE, subtype="FLOAT")
        about = {"text": TEXTS[number % 4], "label": "low" if number % 2 else "high", "split": "train"}
        lines.append({"audio": f"{number}.wav", **about})
    (folder / "sounds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return [str(folder / f"{number}.wav") for number in range(count)]
