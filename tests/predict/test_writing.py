"""A HuggingFace folder that writes: as its generation_config.json says, in conversations, piece by piece; and likelihoods."""

import json

import numpy as np
import pytest
import torch
import transformers
from parity import spread
from tokenizers import Tokenizer as Backend
from tokenizers import processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

import mmjax
from mmjax.core.errors import UserError
from mmjax.data import BPE
from mmjax.generate import generation_config

PROMPTS = ["hello there", "the cat sat on the mat, and", "a"]
TEMPLATE = """{% for m in messages %}{% if m['role'] == 'judge' %}{{ raise_exception('who is ' + m['role']) }}{% endif %}{{
m['role'] }}: {{ m['content'] }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """GPT-2's tokenizer writes nothing before a text and nothing after it, and so does this one."""
    folder = tmp_path_factory.mktemp("gpt2")
    trained = BPE(300).train([*PROMPTS, "how are you, my friend? fine.", "é ü"]).huggingface
    backend = Backend.from_str(trained.backend_tokenizer.to_str())
    backend.post_processor = processors.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
    model = spread(transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(tokenizer), **sizes, **ids)))
    model.save_pretrained(folder)
    return folder, model, tokenizer


@pytest.fixture(scope="module")
def ask(gpt2):
    return mmjax.Predictor(gpt2[0])


def theirs(model, tokenizer, prompt, **settings):
    given = tokenizer(prompt, return_tensors="pt") if isinstance(prompt, str) else {"input_ids": torch.tensor([prompt])}
    given = {name: x for name, x in given.items() if name != "token_type_ids"}
    return model.generate(**given, do_sample=False, **settings)[0, given["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2}, {"num_beams": 3}])
def test_prompts_of_several_lengths_are_read_as_transformers_reads_them(settings, gpt2, ask):
    _, model, tokenizer = gpt2
    found = ask.generate(PROMPTS, details=True, max_new_tokens=9, **settings)
    assert [one.ids for one in found] == [theirs(model, tokenizer, p, max_new_tokens=9, **settings) for p in PROMPTS]
    assert [one.text for one in found] == ask.generate(PROMPTS, max_new_tokens=9, **settings)


def test_pieces_are_the_text(ask):
    (whole,) = ask.generate(PROMPTS[1], max_new_tokens=12, repetition_penalty=1.7)
    pieces = list(ask.generate(PROMPTS[1], max_new_tokens=12, repetition_penalty=1.7, stream=True))
    assert len(pieces) > 1 and "".join(pieces) == whole
    drawn = {"do_sample": True, "seed": 3, "max_new_tokens": 12}
    assert "".join(ask.generate(PROMPTS[0], stream=True, **drawn)) == ask.generate(PROMPTS[0], **drawn)[0]


def test_a_stream_ends_where_the_text_ends(ask):
    (whole,) = ask.generate(PROMPTS[1], details=True, max_new_tokens=12, repetition_penalty=1.7)
    end = (whole.ids[4],)
    (text,) = ask.generate(PROMPTS[1], details=True, max_new_tokens=12, repetition_penalty=1.7, eos_token_id=end)
    assert len(text.ids) == whole.ids.index(end[0]) + 1
    pieces = ask.generate(PROMPTS[1], max_new_tokens=12, repetition_penalty=1.7, eos_token_id=end, stream=True)
    assert "".join(pieces) == text.text


def test_scores_are_the_likelihoods_of_pytorch(gpt2, ask):
    _, model, tokenizer = gpt2
    after = [", my friend", " how are you?", " cat"]
    for prompt, own, found in zip(PROMPTS, after, ask.score(PROMPTS, after), strict=True):
        ids = tokenizer(prompt + own)["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        likely = torch.log_softmax(logits, -1)
        wanted = sum(likely[n - 1, ids[n]].item() for n in range(start, len(ids)))
        assert found["log_likelihood"] == pytest.approx(wanted, rel=1e-5) and found["tokens"] == len(ids) - start
        assert found["greedy"] == all(logits[n - 1].argmax() == ids[n] for n in range(start, len(ids)))
    text = ask.generate(PROMPTS[0], max_new_tokens=4, details=True)[0]
    (score,) = ask.score(PROMPTS[0], text.text)
    if ask.work.prompt(PROMPTS[0] + text.text) == ask.work.prompt(PROMPTS[0]) + text.ids:
        assert score["greedy"] and score["log_likelihood"] == pytest.approx(text.score, rel=1e-5)


def test_a_conversation_is_put_into_words_by_the_template(gpt2, ask):
    _, model, tokenizer = gpt2
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the cat"}, {"role": "user", "content": "a"}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    wanted = tokenizer.decode(theirs(model, tokenizer, ids, max_new_tokens=6), skip_special_tokens=True)
    assert ask.chat(talk, max_new_tokens=6) == wanted
    assert ask.chat([talk, talk[:1]], max_new_tokens=6)[0] == wanted
    assert "".join(ask.chat(talk, max_new_tokens=6, stream=True)) == wanted


def test_the_settings_of_a_checkpoint_are_those_of_its_file(gpt2, tmp_path, caplog):
    folder, model, tokenizer = gpt2
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    said = json.loads((tmp_path / "generation_config.json").read_text())
    end = theirs(model, tokenizer, PROMPTS[1], max_new_tokens=9, repetition_penalty=1.7)[5]
    said |= {"max_new_tokens": 9, "repetition_penalty": 1.7, "eos_token_id": [end], "num_beam_groups": 1, "typical_p": 0.9}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    ask, loaded = mmjax.Predictor(tmp_path), transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    (found,) = ask.generate(PROMPTS[1], details=True)
    loaded.generation_config.typical_p = None
    assert found.ids == theirs(loaded, tokenizer, PROMPTS[1]) and found.ids[-1] == end
    assert "asks for what is not done here: typical_p=0.9" in caplog.text and "num_beam_groups" not in caplog.text
    (other,) = ask.generate(PROMPTS[1], details=True, max_new_tokens=2)
    assert other.ids == found.ids[:2]
    (tmp_path / "generation_config.json").write_text("[1]")
    with pytest.raises(UserError, match="it holds list, not an object"):
        mmjax.Predictor(tmp_path)


def test_what_every_field_of_their_config_becomes():
    """Each is a setting here, says nothing of what is written, or is told."""
    said = dict.fromkeys(transformers.GenerationConfig().to_dict(), "x") | {"max_length": 30, "_from_model_config": True}
    own, rest = generation_config.settings(said)
    assert not {*own} & {*rest} and {"top_k", "num_beams", "stop_strings"} <= {*own}
    assert {"max_length", "typical_p", "guidance_scale"} <= {*rest} and "use_cache" not in rest
    assert generation_config.settings(transformers.GenerationConfig().to_dict())[1] == {}


def test_blip_begins_by_itself(tmp_path):
    """A caption without a prompt, and one that goes on with words, are those of `transformers`, of which the first token is
    the config's and not the tokenizer's."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "the", "cat", "dog", "on", "mat", "red", "be"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = {**tower, "vocab_size": 18, "max_position_embeddings": 32, "encoder_hidden_size": 32, "bos_token_id": 16}
    config = transformers.BlipConfig(
        text_config={**text, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
    )
    hf = spread(transformers.BlipForConditionalGeneration(config))
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    processor = transformers.BlipImageProcessor(size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    ask = mmjax.Predictor(tmp_path)
    assert ask.work.prompt(None) == [16] and ask.work.prompt("a photo of") == [16, 5, 6, 7]
    (found,) = ask.generate(images=image, details=True, max_new_tokens=6)
    alone = hf.generate(pixel_values=pixels, max_new_tokens=6, do_sample=False)[0].tolist()
    assert alone[0] == 16 and found.ids == alone[len(alone) - len(found.ids) :]
    given = tokenizer("a photo of", return_tensors="pt")
    (found,) = ask.generate("a photo of", image, details=True, max_new_tokens=6)
    ids, mask = given["input_ids"], given["attention_mask"]
    whole = hf.generate(pixel_values=pixels, input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)[0].tolist()
    assert found.ids == whole[4:]


@pytest.mark.parametrize(
    ("ask_for", "said"),
    [
        (lambda ask: ask.generate(PROMPTS, stream=True), "3 prompts, 1 texts each, details=False; stream the one text"),
        (lambda ask: next(ask.generate("a", num_beams=2, stream=True)), "beams are no text before all is written"),
        (lambda ask: ask.chat([{"role": "judge", "content": "a"}]), "refuses these messages: who is judge"),
        (lambda ask: ask.score("a", ["b", "c"]), "1 prompts and 2 continuations"),
        (lambda ask: ask.score("a", ""), "a continuation of no tokens"),
        (lambda ask: ask.score("a", " cat" * 80), "longer than decoders."),
        (lambda ask: ask.generate("a", images="x.png"), "looks at no image"),
        (lambda ask: ask.generate("a cat" * 80), "do not fit into"),
        (lambda ask: ask.classify(texts="a"), "no head classifies"),
    ],
)
def test_what_cannot_be_written_is_one_line(ask_for, said, ask):
    with pytest.raises(UserError) as caught:
        ask_for(ask)
    assert said in str(caught.value)


def test_a_question_is_read_without_the_padding_that_blip_would_attend_to(tmp_path):
    """Questions of several lengths in one call, each what `transformers` answers to it alone."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "how", "many", "dogs", "are", "there", "is", "it", "red"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = {**tower, "vocab_size": 20, "max_position_embeddings": 512, "encoder_hidden_size": 32, "bos_token_id": 16}
    tower["initializer_range"] = text["initializer_range"] = 0.3
    config = transformers.BlipConfig(
        text_config={**text, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
    )
    torch.manual_seed(1)
    hf = transformers.BlipForQuestionAnswering(config).eval()
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    processor = transformers.BlipImageProcessor(size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path)
    images = list(np.random.default_rng(1).integers(0, 255, (4, 16, 16, 3), np.uint8))
    asked = ["how many dogs are there", "red", "is it red", "is it"]
    ask = mmjax.Predictor(tmp_path)
    found = ask.generate(asked, images, details=True, max_new_tokens=6)
    for image, question, one in zip(images, asked, found, strict=True):
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        given = tokenizer(question, return_tensors="pt")
        ids, mask = given["input_ids"], given["attention_mask"]
        out = hf.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=6, do_sample=False)
        assert out[0, -len(one.ids) :].tolist() == one.ids
        likely = hf.generate(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pixels,
            max_new_tokens=6,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        ).logits
        wanted = sum(torch.log_softmax(x[0].double(), -1)[token].item() for x, token in zip(likely, one.ids, strict=True))
        assert one.score == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(UserError, match="max_new_tokens=512 do not fit into"):
        ask.generate(asked, images, max_new_tokens=512)


def test_an_end_in_a_prompt_is_part_of_it(gpt2, ask):
    _, model, tokenizer = gpt2
    text = "hello[SEP] a[SEP]"
    assert ask.generate(text, details=True, max_new_tokens=5)[0].ids == theirs(model, tokenizer, text, max_new_tokens=5)


def test_after_nothing_is_after_the_first_token(gpt2, ask):
    _, model, tokenizer = gpt2
    (found,) = ask.score("", "hello there")
    ids = [tokenizer.bos_token_id, *tokenizer("hello there")["input_ids"]]
    with torch.no_grad():
        likely = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    wanted = sum(likely[n - 1, ids[n]].item() for n in range(1, len(ids)))
    assert found["tokens"] == len(ids) - 1 and found["log_likelihood"] == pytest.approx(wanted, rel=1e-5)


def test_a_stop_string_may_begin_in_the_prompt(gpt2, ask):
    """And one that is whole in the prompt ends nothing."""
    _, model, tokenizer = gpt2
    (whole,) = ask.generate("the cat", max_new_tokens=8, repetition_penalty=1.7)
    for text in ("at" + whole[:2], "t" + whole[0], "cat"):
        given = {"max_new_tokens": 8, "repetition_penalty": 1.7, "stop_strings": [text]}
        out = model.generate(**tokenizer("the cat", return_tensors="pt"), do_sample=False, tokenizer=tokenizer, **given)
        ids = out[0, len(tokenizer("the cat")["input_ids"]) :].tolist()
        (found,) = ask.generate("the cat", details=True, max_new_tokens=8, repetition_penalty=1.7, stop_strings=[text])
        assert found.ids == ids


def test_an_end_that_only_config_json_says(gpt2, tmp_path):
    folder, model, tokenizer = gpt2
    for file in folder.iterdir():
        if file.name != "generation_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    said = json.loads((tmp_path / "config.json").read_text())
    end = theirs(model, tokenizer, PROMPTS[1], max_new_tokens=9)[0]
    (tmp_path / "config.json").write_text(json.dumps(said | {"eos_token_id": end}))
    assert mmjax.Predictor(tmp_path).generate(PROMPTS[1], details=True, max_new_tokens=9)[0].ids == [end]


def test_one_conversation_in_a_list_is_a_list(ask):
    talk = [{"role": "user", "content": "hello"}]
    assert isinstance(ask.chat([talk], max_new_tokens=2), list) and isinstance(ask.chat(talk, max_new_tokens=2), str)


def test_no_more_is_written_than_there_is_room_for(ask):
    (found,) = ask.generate("a" * 50, details=True)
    assert len(ask.work.prompt("a" * 50)) + len(found.ids) <= 64
    with pytest.raises(UserError, match="do not fit into"):
        ask.generate(max_new_tokens=64)


def test_nothing_said_is_the_default_of_transformers(gpt2, ask):
    settings = {
        "stop_strings": None,
        "bad_words_ids": None,
        "early_stopping": None,
        "temperature": None,
        "max_new_tokens": None,
    }
    assert ask.generate("a", **settings) == ask.generate("a", max_new_tokens=20)
    assert ask.generate("a", eos_token_id={5, 9}, max_new_tokens=np.int64(3)) == ask.generate(
        "a", eos_token_id=[9, 5], max_new_tokens=3
    )
    assert generation_config.settings({"temperature": 0.0, "do_sample": False})[0] == {"do_sample": False}


def test_the_least_length_gives_way_to_the_least_of_new_tokens(gpt2, ask):
    _, model, tokenizer = gpt2
    end = theirs(model, tokenizer, "a", max_new_tokens=9)[3]
    given = {"min_length": 8, "min_new_tokens": 1, "eos_token_id": end, "max_new_tokens": 9}
    assert ask.generate("a", details=True, **given)[0].ids == theirs(model, tokenizer, "a", **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_new_tokens": "5"}, "max_new_tokens='5': use a whole number"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5: use a whole number"),
        ({"temperature": "hot"}, "temperature='hot': use a number"),
        ({"do_sample": "yes"}, "do_sample='yes': use True or False"),
        ({"suppress_tokens": 7.5}, "suppress_tokens=7.5: use a list"),
        ({"suppress_tokens": [9999]}, "suppress_tokens: there is no token 9999"),
        ({"eos_token_id": -1}, "there is no token -1"),
        ({"forced_bos_token_id": 9999}, "forced_bos_token_id: there is no token 9999"),
        ({"bad_words_ids": [5]}, "bad_words_ids=5: use a list"),
        ({"bad_words_ids": [[9999]]}, "bad_words_ids: there is no token 9999"),
        ({"stop_strings": [1]}, "stop_strings=1: use a string"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"prompts": []}, "a list of no inputs"),
        ({"prompts": 5}, "a text is a string; found int 5"),
        ({"prompts": [None]}, "a text is a string; found NoneType"),
        ({"prompts": "caf\udce9"}, "a text holds what is no character"),
        ({"prompts": [[5, 9999]]}, "a prompt holds token 9999"),
        ({"stream": True, "details": True}, "without details"),
    ],
)
def test_what_is_no_setting_or_no_prompt_is_one_line(given, said, ask):
    with pytest.raises(UserError) as caught:
        ask.generate(**{"prompts": "a", "max_new_tokens": 3, **given})
    assert said in str(caught.value)


@pytest.mark.parametrize("messages", [None, [], "hello", {"role": "user"}])
def test_what_is_no_conversation_is_one_line(messages, ask):
    with pytest.raises(UserError):
        ask.chat(messages)
