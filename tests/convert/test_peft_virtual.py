"""Prompts and prefixes beside peft's, both ways: in answers, gradients, a step, and in what is written after them."""

import copy
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers
from cases import given
from checks import check_answers, each, said
from families import CASES
from parity import compiled, randomise, save
from peft_cases import opened, ours, read, strict, written
from safetensors.numpy import load_file
from test_families import OPTIMIZERS
from virtual_cases import KINDS, PAIRS, N, Real, answers_of, batch_of, task_of, theirs, ways

from mmjax.adapt import Prefix, Prompt, trained_patterns
from mmjax.cli import main
from mmjax.convert import load
from mmjax.convert.huggingface import family_of
from mmjax.convert.peft.to_peft import adapter_of, file_tensors, write_adapter
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.generate import Rules, decode, settings_of
from mmjax.train.frozen import fingerprint
from mmjax.train.trained import trained_of


def of(*names):
    return [p for p in PAIRS if p[1].name in names]


def rows(pairs):
    return each(*[(*p, (p[1].name, p[2], said(p[1].changes))) for p in pairs])


def quick(pairs):
    """Of each family, task and kind the first; other classes, which are other heads on the same tower, where there is time."""
    first = {(case.model_type, task_of(made.name), kind): made for case, made, kind in reversed(pairs)}
    slow = [first[case.model_type, task_of(made.name), kind] is not made for case, made, kind in pairs]
    return [
        pytest.param(*p.values, id=p.id, marks=pytest.mark.slow if late else ())
        for p, late in zip(rows(pairs), slow, strict=True)
    ]


@pytest.mark.parametrize(("case", "made", "kind"), quick(PAIRS))
def test_peft_opens_what_we_write_and_we_what_it_writes(case, made, kind, tmp_path):
    hf = case.make(made)
    batch = batch_of(case, hf)
    model, base = load(save(hf, tmp_path / "hf"))
    params, trained = ours(model, base, ways(kind, model))
    own = opened(hf, written(model, params, trained, tmp_path / "ours"))
    with torch.no_grad():
        before = answers_of(case, made, hf, hf, batch)
        answers = answers_of(case, made, own, hf, batch)
    assert max(float((answers[k] - before[k]).abs().max()) for k in answers) > 1e-2
    check_answers(Real(case), model, params, batch, answers)
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["num_virtual_tokens"] == N and config["task_type"] == task_of(made.name)
    own = theirs(hf, kind, tmp_path / "theirs")
    with torch.no_grad():
        answers = answers_of(case, made, own, hf, batch)
    params, adapt, beside = read(model, base, tmp_path / "theirs")
    check_answers(Real(case), model, params, batch, answers)
    assert [(type(m).__name__.lower(), m.n) for m in adapt.values()] == [(kind, N)]
    heads = {"SEQ_CLS": True, "TOKEN_CLS": True}.get(task_of(made.name), False)
    assert bool(beside) == heads and all(path.startswith("heads_") for path in beside)
    # The config of peft's own says the same, but for what begins it and for names of versions.
    wanted = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    same = ("peft_type", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules", "num_virtual_tokens")
    assert {name: config[name] for name in same} == {name: wanted[name] for name in same}


LANGUAGE = ("GPT2LMHeadModel", "LlamaForCausalLM")
LEARNING = [*of("BertForSequenceClassification", "BertForMaskedLM", "RobertaForSequenceClassification"), *of(*LANGUAGE)]
LEARNING = list({(p[1].name, p[2]): p for p in reversed(LEARNING)}.values())  # the plain one of each


@pytest.mark.parametrize(("case", "made", "kind"), rows(LEARNING))
def test_gradients_and_a_step(case, made, kind, tmp_path):
    hf = case.make(made)
    batch = batch_of(case, hf)
    model, base = load(save(hf, tmp_path / "hf"))
    own = theirs(hf, kind, tmp_path / "theirs")
    params, adapt, beside = read(model, base, tmp_path / "theirs")
    begun = trained_of((*trained_patterns(model, adapt), *beside), (), params)
    own.double()
    answers, rng = answers_of(case, made, own, hf, batch), np.random.default_rng(0)
    weights = {name: rng.normal(size=tuple(x.shape)).astype(np.float32) for name, x in answers.items()}
    for name, x in answers.items():
        where = case.real(name, batch, x.shape[1])
        if where is not None:
            weights[name] = (weights[name].T * where.T).T
    sum((answers[n] * torch.tensor(w)).sum() for n, w in weights.items()).backward()

    def our_loss(leaves):
        found = Real(case).ours(model, begun.bind(leaves, params), batch, tuple(weights))
        return sum((found[n] * w).sum() for n, w in weights.items())

    architecture, mine = family_of(model).architecture(model), begun.of(params)
    gradient = compiled(jax.grad(our_loss))(mine)
    paths = set(leaves_by_path(mine))

    def named(tree):
        return file_tensors(family_of(model), architecture, adapter_of(model, architecture, begun.put(params, tree), paths))

    def their_name(name):
        return "prompt_embeddings" if name.startswith("prompt_encoder") else name.replace(".modules_to_save.default", "")

    expected = {their_name(name): p for name, p in own.named_parameters() if p.requires_grad}
    assert expected.keys() == named(gradient).keys()
    for name, p in expected.items():
        wrong = np.abs(named(gradient)[name] - p.grad.numpy()).max() / np.abs(p.grad.numpy()).max()
        assert wrong <= 1e-5, f"the gradient of {name} differs by {wrong:.1e} of its largest"
    optimizer, torchs = OPTIMIZERS["adamw"]
    torchs(list(expected.values())).step()

    def step(gradient, mine):
        with jax.numpy_dtype_promotion("standard"):
            tx = optimizer.build(mine, 1)
            return optax.apply_updates(mine, tx.update(gradient, tx.init(mine), mine)[0])

    after = named(compiled(step)(gradient, mine))
    for name, p in expected.items():
        wrong = np.abs(after[name] - p.detach().numpy()).max() / np.abs(p.detach().numpy()).max()
        assert wrong <= 1e-5, f"{name} differs by {wrong:.1e} after a step"


V, NEW = 97, 8
LENGTHS = (7, 4)
MASK = np.arange(7)[None] >= np.array([[0], [3]])
IDS = np.where(MASK, np.random.default_rng(0).integers(3, V, MASK.shape), 0).astype(np.int32)
TEXT = {"vocab_size": V, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
SIZES = {
    "GPT2LMHeadModel": {**TEXT, "tie_word_embeddings": False, "n_positions": 40, "n_embd": 48, "n_layer": 3, "n_head": 4},
    "LlamaForCausalLM": {
        **TEXT,
        "max_position_embeddings": 40,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "tie_word_embeddings": False,
    },
}


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    @functools.cache
    def make(name):
        cls = getattr(transformers, name)
        hf = randomise(cls(cls.config_class(**SIZES[name])))
        return (hf, *load(save(hf, tmp_path_factory.mktemp(name))))

    return make


def by_forward(own, row):
    """Greedy, by peft's own forward pass of the whole text for each token."""
    for _ in range(NEW):
        with torch.no_grad():
            logits = own(input_ids=row, attention_mask=torch.ones_like(row)).logits[:, -1]
        row = torch.cat([row, logits.argmax(-1)[:, None]], 1)
    return row[0, -NEW:].tolist()


def by_beams(hf, own, kind, row, beams):
    """What `generate` of the model itself writes after peft's embeddings, or after peft's cache."""
    asked = {"max_new_tokens": NEW, "do_sample": False, "num_beams": beams}
    if kind == "prompt":
        x = torch.cat([own.get_prompt(batch_size=1), hf.get_input_embeddings()(row)], 1)
        out = hf.generate(inputs_embeds=x, attention_mask=torch.ones(x.shape[:2]), **asked)[0].tolist()
    else:
        whole = torch.cat([torch.zeros_like(row[:, :1]).expand(1, N), row], 1)  # ids of what is in the cache are not read
        asked["past_key_values"] = own.get_prompt(batch_size=beams)
        out = hf.generate(whole, attention_mask=torch.ones_like(whole), **asked)[0, whole.shape[1] :].tolist()
    return out + [0] * (NEW - len(out))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SIZES)
def test_what_is_written_is_what_pefts_model_writes(name, kind, writers, tmp_path):
    """Greedy and by beams, a padded batch beside each row alone.

    peft 0.21's own `generate` gives other texts than its forward pass with transformers 5.24, which calls the cache by a name
    that it does not look for; with 4.57.6 it gives these.
    """
    hf, model, base = writers(name)
    own = theirs(hf, kind, tmp_path / "theirs", loud=4.0)
    params, _, _ = read(model, base, tmp_path / "theirs")
    batch = {"batch": {}, "ids_BT": jnp.asarray(IDS), "mask_BT": jnp.asarray(MASK)}
    for beams in (1, 3):
        rules = Rules(settings_of({"max_new_tokens": NEW, "num_beams": beams}), (), 0)
        write = jax.jit(functools.partial(decode, model, decoder="caption", rules=rules))
        found, plain = (np.asarray(write(p, **batch).ids).tolist() for p in (params, base))
        assert found[0] != plain[0] and found[1] != plain[1]
        for n, length in enumerate(LENGTHS):
            row = torch.tensor(IDS[n, 7 - length :])[None].long()
            with strict():
                assert found[n] == (by_forward(own, row) if beams == 1 else by_beams(hf, own, kind, row, beams))


FAILING = ("CLIPTextModel", "SiglipTextModel", "BlipForConditionalGeneration", "FlavaForPreTraining")


def failing():
    known = [(case, made, kind) for case in CASES.values() for made in case.models if made.name in FAILING for kind in KINDS]
    known += [
        (CASES[family], made, "prefix")
        for family in ("bert", "roberta", "gpt2", "llama")
        for made in CASES[family].models
        if task_of(made.name) in ("SEQ_CLS", "TOKEN_CLS")
    ]
    known += [(CASES["llava"], made, "prompt") for made in CASES["llava"].models if made.name == "LlavaModel"]
    known += [(CASES["vilt"], made, "prefix") for made in CASES["vilt"].models if made.name == "ViltForMaskedLM"]
    return list({(p[1].name, p[2]): p for p in known}.values())


@pytest.mark.parametrize(("case", "made", "kind"), rows(failing()))
def test_peft_has_no_place_for_what_fails_there(case, made, kind, tmp_path):
    """What we refuse is what peft itself cannot run; it says so in its own way."""
    hf = case.make(made)
    with strict(), pytest.raises((ValueError, TypeError, RuntimeError, IndexError)):
        model = peft.get_peft_model(copy.deepcopy(hf), KINDS[kind](task_type=task_of(made.name), num_virtual_tokens=N)).eval()
        model(**{name: x for name, x in given(hf, case.batch(hf), case.silent).items() if name != "token_type_ids"})
    model, base = load(save(hf, tmp_path / "hf"))
    try:
        params, trained = ours(model, base, ways(kind, model))
    except UserError as error:  # a text without layers of its own
        assert "matches no kernel that Prefix" in str(error)
        return
    with pytest.raises(UserError, match=r"peft has no place for it: .*(fails there|past_key_values)"):
        written(model, params, trained, tmp_path / "ours")


def bert(tmp_path, name="BertForSequenceClassification"):
    made = next(made for made in CASES["bert"].models if made.name == name)
    return load(save(CASES["bert"].make(made), tmp_path / "hf"))


@pytest.mark.parametrize(
    ("adapt", "beside", "said"),
    [
        ({"*/words/table": Prompt(n=2, after=1)}, (), "stands after 1 of a text's tokens, and peft's before all"),
        ({"*/words/table": Prompt(n=2)}, ("*/words/table",), "is trained beside its prompt"),
        ({"*": Prefix(n=2)}, (), "its classifiers take no prefix"),
        ({"encoders_text/words/table": Prompt(n=2), "encoders_text/*": Prefix(n=2)}, (), "are several, and a folder holds one"),
    ],
)
def test_what_peft_has_no_place_for_is_one_line(adapt, beside, said, tmp_path):
    model, base = bert(tmp_path)
    params, trained = ours(model, base, adapt, beside)
    with pytest.raises(UserError) as error:
        written(model, params, trained, tmp_path / "ours")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_whole_modules_go_with_a_prompt(tmp_path):
    """The pooler of a classifier, and norms: all of a module of which something is trained."""
    case = CASES["bert"]
    made = next(made for made in case.models if made.name == "BertForSequenceClassification")
    hf = case.make(made)
    model, base = load(save(hf, tmp_path / "hf"))
    params, trained = ours(model, base, ways("prompt", model), ("heads_classes/*", "*/embed_norm/scale"))
    own = opened(hf, written(model, params, trained, tmp_path / "ours"))
    batch = batch_of(case, hf)
    with torch.no_grad():
        answers = answers_of(case, made, own, hf, batch)
    check_answers(Real(case), model, params, batch, answers)
    again, adapt, beside = read(model, base, tmp_path / "ours")
    check_answers(Real(case), model, again, batch, answers)
    assert set(adapt) == {"encoders_text/words/table"}
    assert {"heads_classes/project/kernel", "encoders_text/embed_norm/scale"} <= set(beside)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_transformer_submodules": 2}, "num_transformer_submodules=2 is not supported here"),
        (
            {"peft_type": "PREFIX_TUNING"},
            "prompt_embeddings has shape (3, 24), and encoders_text/stack/layers/attention/k/kernel",
        ),
        ({"peft_type": "CPT"}, "peft_type='CPT' is not supported here"),
    ],
)
def test_another_folder_is_one_line(changes, said, tmp_path):
    model, base = bert(tmp_path)
    theirs(CASES["bert"].make(CASES["bert"].models[3]), "prompt", tmp_path / "theirs")
    file = tmp_path / "theirs" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError) as error:
        read(model, base, tmp_path / "theirs")
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["BertForSequenceClassification", "RobertaForSequenceClassification", "GPT2ForTokenClassification"]
)
def test_a_bare_base_takes_the_head_and_what_comes_back_is_what_was_handed_over(name, tmp_path):
    """From the command line, as a run and as a folder again."""
    case, made = next((case, made) for case, made, _ in PAIRS if made.name == name)
    hf = case.make(made)
    bare = hf.base_model
    if name.startswith("Roberta"):  # with a pooler, which the class of whole texts has not
        bare = transformers.RobertaModel(hf.config).eval()
        bare.load_state_dict(hf.roberta.state_dict(), strict=False)
    save(bare, tmp_path / "bare")
    own = theirs(hf, "prompt", tmp_path / "peft")
    assert main(["convert", "from-peft", str(tmp_path / "bare"), str(tmp_path / "peft"), str(tmp_path / "run")]) == 0
    batch = batch_of(case, hf)
    with torch.no_grad():
        answers = answers_of(case, made, own, hf, batch)
    model, params = load(tmp_path / "run")
    check_answers(Real(case), model, params, batch, answers)
    assert main(["convert", "to-peft", str(tmp_path / "run"), str(tmp_path / "again")]) == 0
    first, second = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("peft", "again"))
    assert first.keys() == second.keys() and all((first[key] == second[key]).all() for key in first)


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=N, encoder_hidden_size=16),
        peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=N, prefix_projection=True, encoder_hidden_size=16, token_dim=24
        ),
    ],
    ids=["p-tuning", "projected prefix"],
)
def test_what_pefts_networks_have_made_is_read(config, tmp_path):
    """The file holds what they give, so that they are not needed any more."""
    case = CASES["gpt2"]
    made = next(made for made in case.models if made.name == "GPT2LMHeadModel")
    hf = case.make(made)
    torch.manual_seed(0)
    with strict():
        own = peft.get_peft_model(copy.deepcopy(hf), config).eval()
        own.save_pretrained(tmp_path / "peft")
    model, base = load(save(hf, tmp_path / "hf"))
    params, adapt, _ = read(model, base, tmp_path / "peft")
    batch = batch_of(case, hf)
    with torch.no_grad():
        answers = answers_of(case, made, own, hf, batch)
    check_answers(Real(case), model, params, batch, answers)
    assert [method.n for method in adapt.values()] == [N]


def test_a_prompt_of_another_base_is_told(tmp_path, capsys):
    """By the mark of the word table that it was made over."""
    case = CASES["gpt2"]
    hf = case.make(case.models[1])
    model, base = load(save(hf, tmp_path / "hf"))
    params, trained = ours(model, base, ways("prompt", model))
    whole = adapter_of(model, "GPT2LMHeadModel", params, trained)
    table = {"decoders_caption": {"words": {"table": base["decoders_caption"]["words"]["table"]}}}
    write_adapter(tmp_path / "adapter", model, "GPT2LMHeadModel", whole, "", {"base": fingerprint(table)})
    assert main(["convert", "from-peft", str(tmp_path / "hf"), str(tmp_path / "adapter"), str(tmp_path / "run")]) == 0
    with torch.no_grad():
        hf.transformer.wte.weight.add_(0.1)
    save(hf, tmp_path / "other")
    capsys.readouterr()
    assert main(["convert", "from-peft", str(tmp_path / "other"), str(tmp_path / "adapter"), str(tmp_path / "run2")]) == 2
    assert "it was made over a base whose kernels are not these" in capsys.readouterr().err
