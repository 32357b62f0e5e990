"""Long sounds and times: the tokens of `transformers.generate`, on a small Whisper of random weights that hears one second."""

import numpy as np
import pytest
import torch

pytest.importorskip("soundfile", reason="what reads sounds is not installed")
import soundfile
import speech

import mmjax
from mmjax.core.errors import UserError
from mmjax.data.sound import hear, recording
from mmjax.predict.long_sounds import Passage, window_features
from mmjax.predict.made import listened

RATE = speech.RATE


def sound(seconds, seed):
    """Tones that change every quarter of a second, and noise."""
    rng = np.random.default_rng(seed)
    count = int(seconds * RATE)
    pitch = np.repeat(rng.uniform(100, 3000, count // 4000 + 1), 4000)[:count]
    loud = np.repeat(rng.uniform(0.02, 0.5, count // 4000 + 1), 4000)[:count]
    return (loud * np.sin(2 * np.pi * np.cumsum(pitch) / RATE) + 0.01 * rng.normal(size=count)).astype(np.float32)


@pytest.fixture(scope="module")
def whispers(tmp_path_factory):
    """How many languages -> (ours, theirs, what makes features)."""
    found = {}
    for languages in ((), ("en", "de")):
        folder = tmp_path_factory.mktemp("whisper")
        model, _, extractor = speech.save(folder, languages, seed=5, times=True)
        found[len(languages)] = mmjax.Predictor(folder, batch_size=1), model, extractor
    return found


def theirs(model, extractor, wave, **settings):
    long = len(wave) > RATE * speech.SECONDS
    how = {"truncation": False, "padding": "longest"} if long else {}
    inputs = extractor(wave, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **how)
    with torch.no_grad():
        found = model.generate(
            inputs.input_features,
            attention_mask=inputs.attention_mask,
            return_timestamps=True,
            return_segments=True,
            **settings,
        )
    return found["sequences"][0].tolist(), [(float(one["start"]), float(one["end"])) for one in found["segments"][0]]


HOW = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "told": {"condition_on_prev_tokens": True},
    "anew": {
        "condition_on_prev_tokens": True,
        "temperature": (0.0, 0.8),
        "top_k": 1,  # of which a draw is certain
        "logprob_threshold": -2.65,
        "compression_ratio_threshold": 1.9,
    },
    "silence": {"logprob_threshold": -2.5, "no_speech_threshold": 0.00125, "temperature": (0.0,)},
}
WAVES = [sound(3.37, 0), sound(0.7, 1), sound(4.1, 3)]


def asked(ask, waves, **settings):
    return ask.generate(sounds=[{"array": wave, "sampling_rate": RATE} for wave in waves], details=True, **settings)


@pytest.mark.parametrize(("languages", "name"), [(0, name) for name in HOW] + [(2, "silence")])
def test_tokens_and_times_are_those_of_transformers(whispers, languages, name):
    ask, model, extractor = whispers[languages]
    how = HOW[name] | ({"task": "transcribe"} if languages else {})
    wanted = [theirs(model, extractor, wave, **how) for wave in WAVES]
    found = asked(ask, WAVES, timestamps=True, **how)
    assert [one.ids for one in found] == [ids for ids, _ in wanted]
    for one, (_, segments) in zip(found, wanted, strict=True):
        np.testing.assert_allclose([(own.start, own.end) for own in one.segments], segments, atol=0.021)
    plain = asked(ask, WAVES[:1], timestamps=True)[0].ids
    assert (found[0].ids == plain) == (name == "greedy")  # each way is another


def test_a_short_sound_has_no_times_where_none_are_asked_for_and_a_long_one_is_heard_to_its_end(whispers):
    ask = whispers[0][0]
    both, short, timed = asked(ask, WAVES[:2]), asked(ask, WAVES[1:2])[0], asked(ask, WAVES[:2], timestamps=True)
    together = asked(
        mmjax.Predictor(ask.work, batch_size=2), WAVES, timestamps=True
    )  # two at a time, the third when one is over
    assert [one.ids for one in together[:2]] == [one.ids for one in timed]
    begin = ask.work.clock.untimed + 1
    assert both[0].ids == timed[0].ids and both[0].segments == timed[0].segments and both[0].segments[-1].end > 3
    assert both[1] == short and not short.segments
    assert timed[1].segments and max(timed[1].ids) >= begin
    assert ask.generate(sounds={"array": WAVES[0], "sampling_rate": RATE}) == [timed[0].text]
    assert "<|" not in timed[0].text and timed[0].text == ask.work.tokenizer.decode([t for t in timed[0].ids if t < begin])
    # Thresholds are of short sounds too: one that is left out has no text.
    assert asked(ask, WAVES[1:2], logprob_threshold=-0.01, no_speech_threshold=0.0)[0].ids == []


def test_what_is_not_done_is_said(whispers, tmp_path):
    ask = whispers[0][0]
    for settings, line in (
        ({"stream": True}, "stream=True: a sound longer than a window, and one with times, is written window by window"),
        ({"num_return_sequences": 2, "num_beams": 2}, "num_return_sequences=2: a sound longer"),
        ({"no_speech_threshold": 0.5}, "no_speech_threshold=0.5 is looked at where logprob_threshold is missed: give that too"),
        ({"temperature": (0.0, 0.5)}, r"temperature=\(0.0, 0.5\): nothing says when the next is tried"),
        ({"temperature": (-1.0,)}, "use numbers from 0 up"),
        ({"temperature": "warm"}, "temperature='warm': use a number, or several"),
        ({"logprob_threshold": "no"}, "logprob_threshold='no': use a number"),
        ({"condition_on_prev_tokens": 1}, "condition_on_prev_tokens=1: use True or False"),
        ({"max_new_tokens": 24}, r"max_new_tokens=24 and the 2 tokens .* do not fit into decoders.caption.max_length=24"),
        ({"do_sample": True, "num_beams": 2}, "do_sample=True and num_beams=2: windows"),
        ({"language": "en"}, "its texts all begin alike; leave these out"),
        ({"wrong": 1}, "generation has no such setting"),
    ):
        with pytest.raises(UserError, match=line):
            asked(ask, WAVES[:1], timestamps=True, **settings)
    speech.save(tmp_path / "timeless")
    with pytest.raises(UserError, match=r"timestamps=True: it writes no times: its vocabulary has no <\|0.00\|>"):
        asked(mmjax.Predictor(tmp_path / "timeless"), WAVES[1:2], timestamps=True)
    with pytest.raises(UserError, match="a sound audio: it has samples that are no finite numbers"):
        asked(ask, [np.concatenate([WAVES[0], np.full(9, np.nan, np.float32)])])


def test_windows_are_those_of_the_features_of_the_whole(whispers, tmp_path):
    """Also of a file at another rate, which is read in parts."""
    ask, _, extractor = whispers[0]
    wave = sound(2.53, 7)
    wave[RATE:] *= 1e-4  # what is far below the loudest of the whole is as quiet as it may be
    soundfile.write(tmp_path / "high.wav", np.repeat(wave, 3), 3 * RATE, subtype="FLOAT")
    sounds = [{"array": wave, "sampling_rate": RATE}, str(tmp_path / "high.wav")]
    whole = [hear(recording(one, "sound"), RATE, 60.0)[0] for one in sounds]
    for given, own in zip(sounds, whole, strict=True):
        wanted = extractor(own, sampling_rate=RATE, truncation=False, padding="longest").input_features[0].T
        passage = Passage(listened(ask.work, given), 0, ask.model.encoders["audio"].spectrogram, 100)
        passage.open(ask.work, ask._rows)
        assert passage.frames == len(wanted) == 253
        for seek in (0, 30, 200):
            passage.seek = seek
            found = window_features([passage], ask._rows)
            left = min(100, 253 - seek)
            np.testing.assert_allclose(found["audio"][0, :left], wanted[seek : seek + left], atol=2e-5)
            assert not found["audio"][0, left:].any() and found["audio_mask"].sum() == left == passage.left
        passage.close()
