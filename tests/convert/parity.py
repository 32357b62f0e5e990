"""What every family's test does: a random HuggingFace model beside ours, in outputs, gradients, bits and config fields."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from safetensors.numpy import load_file

from mmjax.convert import FAMILIES, load, save_hf
from mmjax.convert.family import SHARED
from mmjax.core.config import leaves
from mmjax.core.types import Params
from mmjax.models import Multimodal
from mmjax.models.forward import VARIABLES, BoundForward


def randomise(model: torch.nn.Module, sd: float = 0.2, seed: int = 0) -> torch.nn.Module:
    """Weights of standard deviation 0.2 (scales around 1), so that a wrong epsilon or activation shows. In eval mode."""
    generator = torch.Generator().manual_seed(seed)
    norms = re.compile(r"lambda1$|norm\w*\.weight$|layrnorm\.weight$|LayerNorm\.weight$|ln_\w+\.weight$|layernorm\w*\.weight$")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * sd + (1.0 if norms.search(name) else 0.0))
        for name, b in model.named_buffers():  # of batch normalisation
            if name.endswith("running_mean"):
                b.copy_(torch.randn(b.shape, generator=generator) * sd)
            elif name.endswith("running_var"):
                b.copy_(torch.rand(b.shape, generator=generator) + 0.5)
            elif name.endswith("num_batches_tracked"):
                b.fill_(7)
    return model.eval()


def save(model: Any, folder: Path, **kwargs: Any) -> Path:
    """`save_pretrained` into a folder."""
    model.save_pretrained(folder, **kwargs)
    return folder


def bound(model: Multimodal, params: Params, batch: Mapping[str, Any]) -> BoundForward:
    """The forward pass in float32, with dropout off, on a batch of numpy or torch arrays."""
    arrays = {k: v if isinstance(v, jax.Array) else jnp.asarray(np.asarray(v)) for k, v in batch.items()}
    return BoundForward(model.copy(dtype="float32"), params, arrays)


def assert_close(ours: Any, theirs: Any, rtol: float = 2e-5, where: Any = None) -> None:
    """Largest difference over largest value; `where` is a mask of what counts."""
    a = np.asarray(ours, np.float64)
    b = np.asarray(theirs.detach() if isinstance(theirs, torch.Tensor) else theirs, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    if where is not None:
        keep = np.broadcast_to(np.asarray(where).astype(bool).reshape(where.shape + (1,) * (a.ndim - where.ndim)), a.shape)
        a, b = a[keep], b[keep]
    error = np.abs(a - b).max() / np.abs(b).max()
    assert error <= rtol, f"relative difference {error:.2e}"


def hidden_states(model: Multimodal, params: Params, method: str, *args: Any, kind: str = "Block", **kwargs: Any) -> list[Any]:
    """[L] outputs [B, T, D] of each layer of each stack that `model.<method>(*args)` runs, stacks one after another."""
    keep = lambda module, name: type(module).__name__ == kind and name == "__call__"  # noqa: E731

    def run(params: Params) -> Any:
        return model.copy(dtype="float32").apply(
            {"params": params}, *args, method=method, capture_intermediates=keep, mutable=["intermediates"], **kwargs
        )[1]

    stacks = jax.tree.leaves(compiled(run)(params)["intermediates"])
    return [layer for stack in stacks for layer in stack]


def round_trip(hf: Any, folder: Path) -> tuple[Multimodal, Params]:
    """HuggingFace -> ours -> HuggingFace: the same names and bits, and `from_pretrained` finds nothing missing or too many.
    Returns ours."""
    source = save(hf, folder / "source")
    model, params = load(source)
    name = save_hf(model, params, folder / "back")
    assert name == type(hf).__name__
    before, after = load_file(source / "model.safetensors"), load_file(folder / "back" / "model.safetensors")
    assert before.keys() == after.keys(), sorted(before.keys() ^ after.keys())
    for key, value in before.items():
        assert value.dtype == after[key].dtype and value.shape == after[key].shape, key
        assert value.tobytes() == after[key].tobytes(), key
    loaded, info = type(hf).from_pretrained(folder / "back", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    for key, value in hf.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    ours, theirs = json.loads((folder / "back" / "config.json").read_text()), loaded.config.to_diff_dict()
    assert ours["model_type"] == theirs["model_type"]
    return model, params


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` for what runs once: compiled in a third of the time, and several times faster than op by op. Within another
    trace, which has options of its own, it is `f` itself."""
    fast = jax.jit(f, compiler_options={"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1})

    def run(*args: Any) -> Any:
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args))
        return (f if traced else fast)(*args)

    return run


def check_gradient(
    hf: torch.nn.Module, their_loss: torch.Tensor, model: Multimodal, params: Params, our_loss: Callable[[Params], jax.Array]
) -> Params:
    """Both gradients of one loss, tensor by tensor: the difference is within 1e-4 of the global norm. Returns ours."""
    hf.zero_grad()
    their_loss.backward()
    own = {name: tree for name, tree in params.items() if name != VARIABLES}
    kept = {name: tree for name, tree in params.items() if name == VARIABLES}
    value, gradient = compiled(jax.value_and_grad(lambda own: our_loss({**own, **kept})))(own)
    gradient = {**gradient, **kept}
    assert_close(value, their_loss)
    theirs = {name: p.grad.numpy() for name, p in hf.named_parameters() if p.grad is not None}
    ours = hf_named(model, gradient, hf)
    assert theirs.keys() <= ours.keys(), sorted(theirs.keys() - ours.keys())
    total = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in theirs.values()))
    wrong = {n: float(np.abs(ours[n]).max()) for n in ours.keys() - theirs.keys() if np.abs(ours[n]).max() > 0}
    assert not wrong, f"gradients that PyTorch has not: {wrong}"
    difference = np.sqrt(sum(float(((ours[n] - g).astype(np.float64) ** 2).sum()) for n, g in theirs.items()))
    assert difference <= 1e-4 * total, f"{difference / total:.2e} of the global norm"
    return gradient


def hf_named(model: Multimodal, tree: Params, hf: torch.nn.Module) -> dict[str, np.ndarray]:
    """A tree like the parameters under the names of `hf.named_parameters()`, found by loading it into a copy of the model."""
    with tempfile.TemporaryDirectory() as folder:
        save_hf(model, tree, Path(folder) / "tree")
        copy = type(hf).from_pretrained(Path(folder) / "tree")
    return {name: p.detach().numpy() for name, p in copy.named_parameters()}


def check_table(model_type: str, config: Any) -> None:
    """Every field of the HuggingFace config is in the family's table."""
    table, known = FAMILIES[model_type].table(), config.to_dict()
    groups = {name for name, value in known.items() if isinstance(value, dict) and name.endswith("_config")}
    fields = (known.keys() - groups) | {f"{group}.{name}" for group in groups for name in known[group]}
    missing = {name for name in fields - table.keys() if name.split(".")[-1] not in {*SHARED, "_name_or_path"}}
    assert not missing, f"fields of the config that the table does not have: {sorted(missing)}"


@contextlib.contextmanager
def explain(what: str) -> Any:
    """Say what was being compared when it fails."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None


def map_completely(
    model_type: str, architecture: str, config: Mapping[str, Any], listed: Mapping[str, tuple[int, ...]]
) -> None:
    """A public checkpoint's tensor names and shapes: each is used or known to carry nothing, none is missing, shapes agree."""
    from mmjax.convert.huggingface import build_model, match_names
    from mmjax.core.trees import leaves_by_path
    from mmjax.models.forward import whole_shapes

    family, model, _ = build_model({**config, "model_type": model_type, "architectures": [architecture]})
    rows = family.rows(model, architecture)
    expected = [name for row in rows for name in (*row.names(), *row.copies)]
    files, unused = match_names(family, expected, tuple(listed), family.unread(model, architecture))
    assert not unused, unused
    shapes = {path: leaf.shape for path, leaf in leaves_by_path(whole_shapes(model)).items()}
    for row in rows:
        own = [shapes[path][1:] if row.depth else shapes[path] for path in row.ours]
        for name in row.names():
            assert name in files, f"{name} is not in the list"
            assert tuple(listed[files[name]]) == row.their_shape(own), name


def part(
    compute: Callable[..., Any], model: Multimodal, params: Params, names: tuple[str, ...], *args: Any, name: str = ""
) -> Any:
    """`compute(model, params, *args)`, which reads these parts alone (`encoders.image`), compiled once for all models that
    have them alike: what a config field does not touch is not compiled again. `name`, where given, comes before `args`."""
    spec = {path: value for path, value in leaves(model).items() if path.startswith(names)}
    key, first = (compute, name, repr(spec)), (name,) if name else ()
    if key not in PARTS:
        PARTS[key] = compiled(lambda params, *args: compute(model, params, *first, *args))
    own = {name: tree for name, tree in params.items() if name == VARIABLES or name.replace("_", ".", 1).startswith(names)}
    return PARTS[key](own, *args)


PARTS: dict[Any, Callable[..., Any]] = {}


def spread(model):
    """Random parameters so large that no two tokens are nearly as likely."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn_like(p) * (0.3 if p.ndim > 1 else 0.2)
    return model.eval()
