"""The code of a run: what is kept, found again where the config is gone, and never mistaken for another version."""

import pickle
import sys
import types

import cloudpickle
import pytest
import tiny

from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.train import kept_code, loop
from mmjax.train.config_file import load_config
from mmjax.train.kept_code import collect
from mmjax.train.run import Run

CONFIG = """
import dataclasses
import tiny
from gentle_objective import Gentle
from gentle_package.noise import Louder
from mmjax.data import Digits
from mmjax.train import Task

@dataclasses.dataclass(frozen=True)
class MyDigits(Digits):
    size: int = {size}

def experiment():
    made = tiny.experiment(tasks={{"classify": Task(Gentle())}})
    louder = (Louder(0.1), *made.data["train"].transforms)
    train = dataclasses.replace(made.data["train"], source=MyDigits("train"), transforms=louder)
    return dataclasses.replace(made, data={{**made.data, "train": train}})
"""
OBJECTIVE = """
import dataclasses
from mmjax.objectives import Classification

@dataclasses.dataclass(frozen=True)
class Gentle(Classification):
    label_smoothing: float = {smoothing}

    def lazily(self):
        import gentle_late
        return gentle_late.VALUE
"""
PACKAGE = {"__init__.py": "", "noise.py": "from .deep import Noise as Louder\n", "deep.py": "from mmjax.data import Noise\n"}
OWN = ("mmjax_config_mine", "gentle_objective", "gentle_package", "gentle_late")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Each test is as a process of its own to the modules of the config."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0].split("__of_")[0] in OWN]:
            del sys.modules[name]

    forget()
    yield forget
    forget()


def write(home, size=5, smoothing=0.25):
    home.mkdir(exist_ok=True)
    (home / "mine.py").write_text(CONFIG.format(size=size))
    (home / "gentle_objective.py").write_text(OBJECTIVE.format(smoothing=smoothing))
    (home / "gentle_late.py").write_text("VALUE = 7\n")
    (home / "not_imported.py").write_text("raise ValueError\n")
    (home / "gentle_package").mkdir(exist_ok=True)
    for name, text in PACKAGE.items():
        (home / "gentle_package" / name).write_text(text)
    return home / "mine.py"


def opened(home, run, **values):
    made = load_config(str(write(home, **values)))
    said = []
    Run(run).open(made, said.append)
    return made, said


def test_it_is_kept_and_found_where_the_config_is_gone(tmp_path, forgotten):
    made, said = opened(tmp_path / "home", tmp_path / "run")
    written = to_json(made)
    names = sorted(kept_code.kept(tmp_path / "run"))
    assert names == [
        "gentle_objective.py",
        "gentle_package/__init__.py",
        "gentle_package/deep.py",
        "gentle_package/noise.py",
        "mmjax_config_mine.py",
    ]
    assert said == []
    (tmp_path / "home").rename(tmp_path / "gone")
    forgotten()
    found = Run(tmp_path / "run").experiment()
    assert to_json(found) == written
    assert (found.data["train"].source.size, found.tasks["classify"].objective.label_smoothing) == (5, 0.25)
    assert pickle.loads(cloudpickle.dumps(found.data["train"].source)).size == 5
    again = Run(tmp_path / "again")
    again.open(found)  # a run that starts from this one keeps it too
    assert sorted(kept_code.kept(tmp_path / "again")) == names


def test_nothing_is_kept_of_what_is_installed(tmp_path):
    assert collect(load_config("digits")) == ({}, [])
    Run(tmp_path).open(tiny.experiment())
    assert not (tmp_path / "code").exists()


def test_a_run_is_read_beside_a_later_version_of_its_config(tmp_path):
    opened(tmp_path / "home", tmp_path / "run")
    later, _ = opened(tmp_path / "home", tmp_path / "later", size=6, smoothing=0.5)
    assert later.data["train"].source.size == 6
    for _ in range(2):
        first = Run(tmp_path / "run").experiment()
        second = Run(tmp_path / "later").experiment()
        assert (first.data["train"].source.size, first.tasks["classify"].objective.label_smoothing) == (5, 0.25)
        assert (second.data["train"].source.size, second.tasks["classify"].objective.label_smoothing) == (6, 0.5)
    assert type(second.data["train"].source) is type(later.data["train"].source)
    assert sys.modules["gentle_objective"].Gentle is type(later.tasks["classify"].objective)
    with pytest.raises(UserError, match=r"MyDigits comes from a run that keeps another .*mine\.py than the one loaded here"):
        Run(tmp_path / "mixed").open(first)


def test_a_run_that_goes_on_says_what_of_its_code_has_changed(tmp_path):
    opened(tmp_path / "home", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "2").mkdir(parents=True)
    made, said = opened(tmp_path / "home", tmp_path / "run")
    assert said == []
    made, said = opened(tmp_path / "home", tmp_path / "run", smoothing=0.75)
    Run(tmp_path / "run").check(made)
    assert said == [
        f"the code has changed since this run began: gentle_objective.py; what it was is in {tmp_path / 'run' / 'code.0'}"
    ]
    assert "0.25" in (tmp_path / "run" / "code.0" / "gentle_objective.py").read_text()
    assert "0.75" in (tmp_path / "run" / "code" / "gentle_objective.py").read_text()


def test_what_cannot_be_found_again_is_refused_or_said(tmp_path, monkeypatch):
    made = tiny.experiment()

    class Inner(type(made.optimizer)):
        pass

    with pytest.raises(UserError, match=r"^optimizer: .*Inner is defined inside a function, so a run could not find it again"):
        Run(tmp_path).open(tiny.experiment(optimizer=Inner()))
    notebook = types.ModuleType("__main__")
    exec(
        "class Shown(base):\n    __qualname__ = 'Shown'",
        {"base": type(made.optimizer), "__name__": "__main__"},
        notebook.__dict__,
    )
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    said = []
    Run(tmp_path).open(tiny.experiment(optimizer=notebook.Shown()), said.append)
    assert said == ["optimizer: Shown is defined in this session alone, so no other can read the run; put it in a file"]
    assert type(Run(tmp_path).experiment().optimizer) is notebook.Shown


def test_a_script_stands_under_the_name_of_its_file(tmp_path, monkeypatch):
    base = "import dataclasses\nfrom mmjax.train import SGD\n\n@dataclasses.dataclass(frozen=True)\nclass Own(SGD): ...\n"
    script = tmp_path / "gentle_late.py"
    script.write_text(base + "if __name__ == '__main__':\n    raise ValueError\n")
    with monkeypatch.context() as patch:
        main = types.ModuleType("__main__")
        main.__file__ = str(script)
        patch.setitem(sys.modules, "__main__", main)
        exec(base, main.__dict__)
        made = tiny.experiment(optimizer=main.Own())
        assert to_json(made)["optimizer"]["_class"] == "gentle_late:Own"
        assert type(from_json(to_json(made)).optimizer) is main.Own
        Run(tmp_path / "run").open(made)
    assert type(Run(tmp_path / "run").experiment().optimizer).__name__ == "Own"


def test_a_script_that_trains_when_it_is_imported_does_not_train_again(tmp_path, monkeypatch, forgotten):
    opened(tmp_path / "home", tmp_path / "run")
    code = tmp_path / "run" / "code" / "mmjax_config_mine.py"
    code.write_text(code.read_text() + "\nfrom mmjax.train import train\ntrain(experiment(), 'again')\n")
    forgotten()
    monkeypatch.setattr(loop, "Run", None)
    with pytest.raises(UserError, match=r"the code of this run trains when it is imported.*under if __name__ == '__main__':"):
        Run(tmp_path / "run").experiment()


def test_code_that_raises_is_one_line(tmp_path, forgotten):
    opened(tmp_path / "home", tmp_path / "run")
    (tmp_path / "run" / "code" / "gentle_objective.py").write_text("1 / 0\n")
    forgotten()
    with pytest.raises(UserError, match=r"cannot import 'mmjax_config_mine' \(ZeroDivisionError: division by zero\)"):
        Run(tmp_path / "run").experiment()
    assert "mmjax_config_mine" not in sys.modules and kept_code.LOADING == []
