"""Somebody who goes through the README with an empty folder: its code blocks, and what running one of them does.

What is printed for a shell is run by bash in a folder that holds nothing but what the text names. `mmjax` is a stand-in there:
it hands its words, folder and variables to this process, which calls the real command line with fewer steps of a smaller model,
so that JAX is started once and not thirteen times. `pip` and `pytest` are stand-ins that check what they are asked for.
"""

import ast
import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmjax.plan.command
import mmjax.predict.adapters  # before what it builds on is replaced
import mmjax.train
import mmjax.train.session
from mmjax.cli import main
from mmjax.core.config import leaves
from mmjax.train import Experiment
from mmjax.train.config_file import apply_flags, load_config, shipped_configs

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TORCH = importlib.util.find_spec("torch") is not None
NOT_RUN = {  # start of a command -> why its words are parsed and no more
    "train siglip_b16": "wants 32 devices and a data set of image-text pairs",
    "plan siglip_b16": "libtpu compiles a step of SigLIP-B/16: minutes, a search a quarter of an hour",
}
FEWER = {"folder": "--steps 20"}  # with the real mmjax: config -> flags; a ViT-S from scratch takes half an hour here
NEEDS_TORCH = ("To and from HuggingFace",)  # sections
# With the stand-in, any field of these names of a shipped config is made this small.
SMALL = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 32}
STAND_IN = f"""#!{sys.executable} -IS
import json, os, socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(os.environ["STAND_IN"])
peer.sendall(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
peer.shutdown(socket.SHUT_WR)
status, out, err = json.loads(peer.makefile().read())
print(out, end="")
print(err, end="", file=sys.stderr)
sys.exit(status)
"""
REAL = """#!/usr/bin/env bash
case "$*" in {not_run}) exit 0 ;; {fewer} esac
exec {mmjax} "$@"
"""
THEIRS = """import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from mmjax.core.types import Loss


@dataclasses.dataclass(frozen=True)
class TheirObjective:
    needs: ClassVar[tuple[str, ...]] = ("image", "text")

    def __call__(self, forward, batch, rng):
        image_BE, text_BE = (forward.embed(modality, "dual") for modality in self.needs)
        count = jnp.sum(batch["valid"].astype(jnp.float32)) if "valid" in batch else jnp.float32(image_BE.shape[0])
        distance = jnp.sum(jnp.square(image_BE - text_BE))
        return Loss(distance, count, {"distance": (distance, count)})
"""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its number, language and text, the section it is in, and the paragraph before it."""

    number: int
    language: str
    text: str
    section: str
    before: str

    @property
    def file(self) -> str:
        """The name under which a reader saves it; "" for what is run as it is."""
        names = re.findall(r"`(\w+\.py)`", self.before)
        return names[-1] if self.language == "python" and names and "def experiment" in self.text else ""


def blocks(page: str) -> list[Block]:
    found, section, last, lines = [], "", 0, page.splitlines(keepends=True)
    opened = None
    for number, line in enumerate(lines):
        if opened is not None:
            if line.strip() == "```":
                before = "".join(lines[last:opened]).strip()
                text = "".join(lines[opened + 1 : number])
                found.append(Block(len(found) + 1, lines[opened].strip()[3:], text, section, before.split("\n\n")[-1]))
                opened, last = None, number + 1
        elif line.startswith("```"):
            opened = number
        elif line.startswith("#"):
            section = line.strip("# \n")
    assert opened is None, "a block is not closed"
    return found


BLOCKS = blocks(README.read_text())


class ParsedError(Exception):
    """The words were understood; raised where a command would begin its work."""


def parse(words: list[str]) -> Experiment | None:
    """What the real command line makes of the words of a command that is not run; fails where it refuses them."""
    seen: list[Experiment] = []

    def begin(experiment: Any = None, *_: Any, **__: Any) -> None:
        if isinstance(experiment, Experiment):
            experiment.check()
            seen.append(experiment)
        raise ParsedError

    places = ["mmjax.train.train", "mmjax.train.evaluate.evaluate_run", "mmjax.train.data_command.inspect_data"]
    places += ["mmjax.train.data_command.write"]
    places += ["mmjax.convert.api.from_hf", "mmjax.convert.api.to_hf", "mmjax.plan.command.worker"]
    places += ["mmjax.convert.peft.to_peft.to_peft", "mmjax.convert.peft.from_peft.from_peft"]
    places += [f"mmjax.convert.bottleneck.{way}_adapters.{way}_adapters" for way in ("to", "from")]
    places += [
        f"mmjax.predict.{place}" for place in ("answers.check_run", "answers.listed", "predictor.Predictor", "index.Index")
    ]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        for place in places:
            patch.setattr(place, begin)
        try:
            status = main(words)
        except ParsedError:
            return seen[0] if seen else None
    assert status == 0, f"mmjax {shlex.join(words)}: {err.getvalue()}"
    return None


@dataclasses.dataclass(frozen=True)
class Ran:
    """A command that has been run: its words, what it said, and the experiment as its flags left it."""

    tool: str
    words: list[str]
    out: str
    err: str
    experiment: Experiment | None


class Reader:
    """Somebody who goes through the README with an empty folder."""

    def __init__(self, root: Path, real: bool):
        self.real = real
        self.folder, self.bin, self.packages = root / "here", root / "bin", root / "packages"
        for folder in (self.folder, self.bin, self.packages / "their_package"):
            folder.mkdir(parents=True)
        self.ran: list[Ran] = []
        self.ended: dict[int, Any] = {}
        (self.packages / "their_package" / "module.py").write_text(THEIRS)
        self._files()
        names = ("pip", "pytest") if real else ("pip", "pytest", "mmjax")
        for name in names:
            self._tool(name, STAND_IN)
        if real:
            mmjax = Path(sysconfig.get_path("scripts"), "mmjax")
            assert mmjax.is_file(), f"{mmjax}: pip install -e . puts it there"
            not_run = "|".join(f"{shlex.quote(start)}*" for start in NOT_RUN)
            fewer = " ".join(f'"train {name}"*) set -- "$@" {flags} ;;' for name, flags in FEWER.items())
            self._tool("mmjax", REAL.format(not_run=not_run, fewer=fewer, mmjax=shlex.quote(str(mmjax))))

    def read(self, block: Block) -> Any:
        """What running a block gives, after all those before it; raises what it raised."""
        for other in BLOCKS[: block.number]:
            if other.number not in self.ended and (TORCH or other.section not in NEEDS_TORCH):
                try:
                    self.ended[other.number] = self.run(other)
                except Exception as error:
                    self.ended[other.number] = error
        if isinstance(self.ended[block.number], Exception):
            raise self.ended[block.number]
        return self.ended[block.number]

    def run(self, block: Block) -> Any:
        if block.language == "sh":
            return self.shell(block.text)
        if block.language == "python" and block.file:
            assert (self.folder / block.file).read_text() == block.text
            assert any(block.file in ran.words for ran in self.ran), f"nothing runs {block.file}"
            return None
        if block.language == "python":
            return self.python(block.text)
        if block.language == "diff":
            return differences(block.text)
        raise AssertionError(f"a block of language {block.language!r}: say here how it is tried\n{block.text}")

    def shell(self, text: str) -> str:
        """The text run by bash, as one script that ends at its first error."""
        kept = ("LANG", "LC_ALL", "TMPDIR", "JAX_PLATFORMS", "HF_HUB_OFFLINE")
        variables = {name: os.environ[name] for name in kept if name in os.environ}
        variables |= {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.folder.parent)}
        if self.real:
            variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(self.packages)])
        said = self.folder.parent / "said"
        with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as server, said.open("w+") as out:
            variables["STAND_IN"] = f"{place}/stand_in"  # a path must be short here
            server.bind(variables["STAND_IN"])
            server.listen()
            server.settimeout(0.02)
            command = [shutil.which("bash"), "-euo", "pipefail", "-c", text]
            bash = subprocess.Popen(command, cwd=self.folder, env=variables, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
            while bash.poll() is None:
                with contextlib.suppress(TimeoutError):
                    peer, _ = server.accept()
                    with peer, peer.makefile("rw") as words:
                        json.dump(self._answer(variables, *json.loads(words.read())), words)
            out.seek(0)
            text_out = out.read()
        assert bash.returncode == 0, f"{text}\nended with {bash.returncode}:\n{text_out}"
        return text_out

    def python(self, text: str) -> Any:
        """The value of its last expression, as at a prompt."""
        *statements, last = ast.parse(text).body
        names: dict[str, Any] = {"__name__": "__main__"}
        with self._place(self.folder, {}), pytest.MonkeyPatch.context() as patch:
            if not self.real:
                patch.setattr(
                    mmjax.train.session, "load_config", lambda name: smaller(load_config(name), name in shipped_configs())
                )
            exec(compile(ast.Module(statements, []), "<README>", "exec"), names)
            if isinstance(last, ast.Expr):
                return eval(compile(ast.Expression(last.value), "<README>", "eval"), names)
            exec(compile(ast.Module([last], []), "<README>", "exec"), names)
        return None

    def _answer(self, base: dict[str, str], tool: str, words: list[str], folder: str, variables: dict[str, str]) -> Any:
        """(exit status, standard output, standard error) of a stand-in."""
        out, err, seen = io.StringIO(), io.StringIO(), []
        changed = {
            name: value for name, value in variables.items() if base.get(name) != value and name not in ("_", "SHLVL", "PWD")
        }
        try:
            with self._place(Path(folder), changed), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = {"mmjax": self._mmjax, "pip": pip, "pytest": pytest_itself}[tool](words, seen)
        except AssertionError as error:
            return 1, "", str(error)
        self.ran.append(Ran(tool, words, out.getvalue(), err.getvalue(), seen[0] if seen else None))
        return status, out.getvalue(), err.getvalue()

    def _mmjax(self, words: list[str], seen: list[Experiment]) -> int:
        if shlex.join(words).startswith(tuple(NOT_RUN)):
            seen.append(parse(words))
            return 0
        train = mmjax.train.train

        def fewer(experiment: Experiment, *others: Any) -> Any:
            seen.append(experiment)
            return train(smaller(experiment, words[1] in shipped_configs()), *others)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mmjax.train, "train", fewer)
            return main(words)

    @contextlib.contextmanager
    def _place(self, folder: Path, variables: dict[str, str]):
        """This process as one that was started there; afterwards it knows nothing of it."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.syspath_prepend(str(self.packages))  # where their package is installed
            modules = set(sys.modules)
            yield
            for name in set(sys.modules) - modules:
                if name.startswith(("mmjax_config_", "their_package")):
                    del sys.modules[name]

    def _tool(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def _files(self) -> None:
        """What the text names: photographs, a HuggingFace folder, and the files that are printed."""
        pixels = np.random.default_rng(0)
        for place in ("photos", "my/photos"):
            for number in range(45):
                path = self.folder / place / ("ant", "bee", "cat")[number % 3] / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
        Image.open(self.folder / "photos" / "ant" / "0.png").save(self.folder / "a_photo.jpg")
        for block in BLOCKS:
            if block.file:
                (self.folder / block.file).write_text(block.text)
        if TORCH:
            import transformers as hf

            size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
            model = hf.ViTForImageClassification(hf.ViTConfig(image_size=16, patch_size=8, **size))
            model.save_pretrained(self.folder / "path/to/vit-base-patch16-224")
            hf.ViTImageProcessorPil(size=16).save_pretrained(self.folder / "path/to/vit-base-patch16-224")


def smaller(experiment: Experiment, shipped: bool) -> Experiment:
    """The same experiment in seconds: four steps, and of a shipped config a narrow model without its three slowest tasks."""
    flags = "--steps 4 --evaluate_every 4 --checkpoint.every 4 --log.progress false"
    if not shipped:
        return apply_flags(experiment, flags.split())
    tasks = {name: task for name, task in experiment.tasks.items() if name not in ("matching", "masked_lm", "caption")}
    if len(tasks) < len(experiment.tasks):
        fusions = {name: fusion for name, fusion in experiment.model.fusions.items() if name != "cross"}
        experiment = dataclasses.replace(
            experiment, tasks=tasks, model=experiment.model.copy(fusions=fusions, heads={}, decoders={})
        )
    for path, value in leaves(experiment.model).items():
        if value and path.rpartition(".")[2] in SMALL:
            flags += f" --model.{path} {SMALL[path.rpartition('.')[2]]}"
    return apply_flags(experiment, f"{flags} --data.train.batch_size 8".split())


def pip(words: list[str], _: Any) -> int:
    """Checks what would be installed: this checkout, with extras that it has."""
    asked = re.fullmatch(r"install -e \.(?:\[([\w,]+)\])?", " ".join(words))
    assert asked, f"pip {shlex.join(words)}: the stand-in knows pip install -e '.[extra]'"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    unknown = set(filter(None, (asked[1] or "").split(","))) - set(extras)
    assert not unknown, f"pip {shlex.join(words)}: pyproject.toml has no extra {unknown}, but {list(extras)}"
    return 0


def pytest_itself(words: list[str], _: Any) -> int:
    """This is the run that it asks for."""
    assert words == [], f"pytest {shlex.join(words)}: the stand-in knows pytest alone"
    return 0


def differences(text: str) -> int:
    """How many files a diff changes; fails where one does not read as the diff leaves it."""
    parts = re.split(r"^--- .*\n\+\+\+ b/(.*)\n", text, flags=re.MULTILINE)
    assert parts[0] == "" and len(parts) > 2, "no diff"
    for name, hunks in zip(parts[1::2], parts[2::2], strict=True):
        after, place = (ROOT / name).read_text(), 0
        for hunk in re.split(r"^@@ .*\n", hunks, flags=re.MULTILINE)[1:]:
            left = "".join(line[1:] or "\n" for line in hunk.splitlines(keepends=True) if not line.startswith("-"))
            assert left in after[place:], f"{name} does not hold, there where the README's diff has it:\n{left}"
            place = after.index(left, place) + len(left)
        if "--- /dev/null\n+++ b/" + name in text:
            assert left == after, f"{name} is more than the README's diff makes"
    return len(parts) // 2
