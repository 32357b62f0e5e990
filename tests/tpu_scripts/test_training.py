"""train, logs and watch: the same command on every worker, and on from where it was when the machines are taken away."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAIN = ["train", "digits", "--steps", "10", "--workdir", "gs://b/mmjax"]
REFUSED = "ssh: connect to host 10.0.0.2 port 22: Connection refused\nERROR: exited with return code [255]."


@pytest.fixture
def pod(cloud):
    """Two slices of two workers, set up."""
    cloud.variables["SLICES"] = "2"
    cloud.run("create.sh")
    cloud.run("setup.sh")
    return cloud


def settles(cloud, words: str, command: str = "train.sh --progress", **variables: str) -> None:
    """What the workers do becomes `words`."""
    for _ in range(50):
        if (found := cloud.run(command, **variables).stdout.strip()) == words:
            return
        time.sleep(0.05)
    raise AssertionError(f"{found!r}, not {words!r}")


def test_every_worker_runs_the_same_command_once(pod):
    assert pod.run("train.sh --progress").stdout == "idle\n"
    pod.run("train.sh --env 'GREETING=a \"b\" $c' digits --steps 10", MMJAX="0")
    settles(pod, "0")
    for worker in ("mmjax-0.0", "mmjax-0.1", "mmjax-1.0", "mmjax-1.1"):
        (start,) = pod.starts(worker)
        assert start["words"] == TRAIN
        assert start["greeting"] == 'a "b" $c'
        assert start["folder"] == str(pod.root / "homes" / worker / "mmjax_run")
    commands = {call[-4] for call in pod.called("nohup")}
    assert len(commands) == 1


def test_awkward_words_arrive_as_they_are(pod):
    pod.run("""train.sh digits --workdir '/a b/$HOME' --names "it's" '*' '' '"q"' 'two\nlines'""")
    settles(pod, "0")
    assert pod.starts("mmjax-0.0")[0]["words"] == [
        "train",
        "digits",
        "--workdir",
        "/a b/$HOME",
        "--names",
        "it's",
        "*",
        "",
        '"q"',
        "two\nlines",
    ]


def test_no_word_is_evaluated_again(pod):
    pod.folder = pod.root / "here"
    pod.write({"x=y": "", "--steps=3": ""})
    words = [
        "x=~/y:~/z",
        "~",
        "--steps=*",
        "$(touch touched)",
        "`touch touched`",
        "a --workdir b",
        "\\",
        "a\\nb",
        "!!",
        "#",
        "{a,b}",
    ]
    words += ["é\u2028\x01\t", "&& touch touched", ";", "'\"'", "-n", "--", "%s%n", "a\n", "a\n\nb"]
    greeting = "~/a:~/b * $(touch touched) `x` \\ 'é' \"#"
    pod.run(shlex.join(["train.sh", "--env", f"GREETING={greeting}", "digits", *words]), ENVIRONMENT="OTHER=1")
    settles(pod, "0")
    for worker in ("mmjax-0.0", "mmjax-1.1"):
        (start,) = pod.starts(worker)
        assert start["words"] == ["train", "digits", *words, "--workdir", "gs://b/mmjax"]
        assert start["greeting"] == greeting
    assert pod.run(shlex.join(["train.sh", "--progress", "digits", *words])).stdout == "0\n"
    assert not list(pod.root.rglob("touched"))


CODE = {
    "mine.py": "import helper\nfrom lib import deep\ndef experiment():\n    from . import late\n    return helper.X + deep.Y",
    "helper.py": "import other\nX = other.X",
    "other.py": "X = 'a'",
    "late.py": "",
    "lib/__init__.py": "",
    "lib/deep.py": "from . import shared\nY = shared.Y",
    "lib/shared.py": "Y = 'b'",
}
BESIDE = {"unused.py": "", "labels.csv": "", "photos/a.png": "", ".secret.py": ""}


def test_a_config_that_is_a_file_here_is_copied(pod):
    (pod.root / "mine.py").write_text("# an experiment\n")
    (said,) = pod.run(f"train.sh {pod.root / 'mine.py'} --steps 10").stderr.splitlines()
    assert said == f"train.sh: started: mmjax train {pod.root / 'mine.py'} --steps 10 --workdir gs://b/mmjax"
    settles(pod, "0")
    assert pod.starts("mmjax-1.1")[0]["words"][:2] == ["train", "mine.py"]
    assert (pod.root / "homes" / "mmjax-1.1" / "mmjax_run" / "mine.py").read_text() == "# an experiment\n"


@pytest.mark.parametrize("name", ["-d/it's $(x) *.py", "a:b/x y/größe.py"])
def test_what_a_config_imports_is_copied_with_it(pod, name):
    pod.folder = pod.root / "here"
    folder = Path(name).parent
    config = Path(name).name
    pod.write({str(folder / (config if file == "mine.py" else file)): text for file, text in (CODE | BESIDE).items()})
    given = name if name[0] != "-" else f"./{name}"
    said = pod.run(shlex.join(["train.sh", given])).stderr.splitlines()
    assert said[0].startswith(f"train.sh: with {given} go helper.py lib/__init__.py lib/deep.py lib/shared.py ")
    settles(pod, "0", shlex.join(["train.sh", "--progress", given]))
    for worker in ("mmjax-0.0", "mmjax-0.1", "mmjax-1.0", "mmjax-1.1"):
        (start,) = pod.starts(worker)
        assert start["words"][:2] == ["train", config]
        code = Path(start["folder"])
        own = {"command", "ready", "log", "pid", "status", "code"}
        found = {
            str(path.relative_to(code)): path.read_text() for path in code.rglob("*") if path.name not in own and path.is_file()
        }
        assert found == {config if file == "mine.py" else file: text for file, text in CODE.items()}
    # It runs there as here, but for what only a package may say.
    (code / config).write_text((code / config).read_text().replace("from . import late", "import late"))
    run = f"import runpy, sys; sys.path.insert(0, {str(code)!r}); print(runpy.run_path({str(code / config)!r})['experiment']())"
    assert subprocess.run([sys.executable, "-S", "-c", run], capture_output=True, text=True, check=True).stdout == "ab\n"


def test_what_went_before_is_gone(pod):
    pod.write(CODE | {"second.py": "import late"})
    pod.run("train.sh mine.py")
    settles(pod, "0")
    pod.run("train.sh second.py")
    settles(pod, "0", "train.sh --progress second.py")
    code = pod.root / "homes" / "mmjax-0.0" / "mmjax_run"
    assert sorted(path.name for path in code.rglob("*.py")) == ["late.py", "second.py"]
    pod.run("train.sh digits")
    settles(pod, "0", "train.sh --progress digits")
    assert list(code.rglob("*.py")) == []


def test_of_a_shipped_config_nothing_is_copied(pod):
    pod.write({"digits": "", "digits.py": "import helper", "helper.py": "", "digits_finetune": ""})
    pod.run("train.sh digits")
    settles(pod, "0")
    assert pod.starts("mmjax-0.0")[0]["words"][1] == "digits"
    assert not pod.called("mmjax_code")
    # As mmjax does: a name without .py is the shipped one.
    assert "helper.py" in pod.run("train.sh --dry-run digits.py").stdout


def test_a_class_that_a_flag_names_is_copied_too(pod):
    pod.write({"ours/__init__.py": "", "ours/module.py": "import helper", "helper.py": ""})
    words = "--tasks.contrastive.objective ours.module:Theirs"
    assert "with digits go ours/__init__.py ours/module.py helper.py" in pod.run(f"train.sh digits {words}").stderr
    settles(pod, "0")
    (start,) = pod.starts("mmjax-0.0")
    assert start["words"] == ["train", "digits", *words.split(), "--workdir", "gs://b/mmjax"]
    assert Path(start["folder"], "ours", "module.py").read_text() == "import helper"
    assert Path(start["folder"], "helper.py").is_file()


@pytest.mark.parametrize(
    ("script", "files", "line"),
    [
        ("train.sh", {"mine.py": "import fast", "fast.so": ""}, "fast.so is compiled for this machine and will not be copied"),
        ("train.sh --dry-run", {"mine.py": "import a", "a.py": "from .. import b"}, "a.py line 1 imports from above"),
        ("watch.sh", {"mine.py": "import a", "a.py": "def"}, "a.py line 1: invalid syntax"),
        ("train.sh", {"mine.py": "import log", "log/__init__.py": ""}, "it comes with 'log', and the machines keep something"),
        ("watch.sh --dry-run", {}, "config mine.py: no such file here"),
        ("gke.sh train", {"mine.py": "import fast", "fast.pyd": ""}, "fast.pyd is compiled"),
        ("slurm.sh train", {}, "config mine.py: no such file here"),
    ],
)
def test_what_cannot_be_copied_ends_it_before_anything_is_done(cloud, script, files, line):
    cloud.write(files)
    done = cloud.run(f"{script} --topology v5e:4x4 mine.py", status=2)
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"{script.split()[0]}: config mine.py: ")
    assert line in said
    assert (cloud.calls, done.stdout) == ([], "")


def test_what_is_here_and_not_copied_is_said(cloud):
    cloud.write(CODE | BESIDE | {"mine.py": "import lib\nA = 'labels.csv'", "lib/words.txt": ""})
    assert cloud.run("train.sh --dry-run mine.py").stderr.splitlines() == [
        "train.sh: mine.py names labels.csv: here, and not copied; keep data in the bucket or on the machines",
        "train.sh: of packages only Python files are copied, not lib/words.txt",
        "train.sh: with mine.py go lib/__init__.py lib/deep.py lib/shared.py",
    ]


def test_without_python_a_config_goes_alone_or_not_at_all(pod):
    (pod.bin / "python3").unlink()
    pod.write(
        {"alone.py": "import os, unheard\n# import helper\n", "mine.py": CODE["mine.py"], "helper.py": "", "lib/a.py": ""}
    )
    pod.run("train.sh alone.py")
    settles(pod, "0")
    assert pod.starts("mmjax-0.0")[0]["words"][1] == "alone.py"
    said = pod.run("train.sh mine.py", status=2).stderr
    assert "config mine.py: it may import" in said and "helper.py, and without python3 on PATH nobody can tell" in said


def test_a_second_training_is_refused_and_stop_tells_every_worker(pod):
    pod.run("train.sh digits --steps 10", MMJAX="forever")
    settles(pod, "running")
    assert pod.run("train.sh --progress digits --steps 11").stdout == "other\n"
    assert "mmjax trains here already" in pod.run("train.sh digits", status=1).stderr
    assert "mmjax trains here" in pod.run("setup.sh", status=1).stderr
    pod.run("train.sh --stop")
    # mmjax itself ends with 0 when it is stopped: its shell is what tells that from done.
    assert pod.run("train.sh --progress digits --steps 10").stdout == "143\n"
    assert pod.run("train.sh --progress digits --steps 11").stdout == "idle\n"


def test_training_needs_setup_and_a_place(cloud):
    cloud.run("create.sh")
    assert "mmjax is not installed here: setup.sh" in cloud.run("train.sh digits", status=1).stderr
    assert "no place for the run: --bucket NAME" in cloud.run("train.sh digits", status=2, BUCKET="").stderr
    assert "which config?" in cloud.run("train.sh", status=2).stderr


def test_logs_of_one_worker_or_of_all(pod):
    pod.run("train.sh digits")
    settles(pod, "0")
    assert pod.run("logs.sh --no-follow").stdout == "mmjax trains\n"
    assert pod.called("tail")[-1][5:] == [
        "mmjax-0",
        "--worker=0",
        "--command=tail -n 100  ~/mmjax_run/log",
        "--project=p",
        "--zone=z",
        "--quiet",
    ]
    pod.run("logs.sh --no-follow --slice 1 --worker 1")
    assert pod.called("tail")[-1][5:7] == ["mmjax-1", "--worker=1"]
    lines = pod.run("logs.sh --no-follow --worker all").stdout.splitlines()
    assert len(lines) == 4
    assert all(line.endswith(": mmjax trains") for line in lines)
    assert "there are 2, counted from 0" in pod.run("logs.sh --slice 2", status=2).stderr


def test_watch_makes_sets_up_trains_and_deletes(cloud):
    done = cloud.run("watch.sh --then-delete digits --steps 10", QUEUE="WAITING_FOR_RESOURCES ACTIVE")
    verbs = [verb for verb in cloud.verbs() if verb != "ssh"]
    assert verbs == ["create", "scp", "delete"]
    assert [start["words"] for start in cloud.starts()] == [TRAIN]
    assert "watch.sh: the training is done" in done.stderr
    assert "costs until" in cloud.run("watch.sh digits --steps 10").stderr


def test_watch_survives_preemption_with_the_same_command_and_code(cloud):
    cloud.write(CODE)
    taken = {"on": "mmjax: running", "skip": 2, "preempt": True}
    edited = cloud.root / "helper.py"
    done = cloud.run("watch.sh --slices 2 --spot mine.py --steps 10", rules=[taken], MMJAX="forever 0", EDIT=str(edited))
    scp = ["scp"] * 4
    assert [verb for verb in cloud.verbs() if verb != "ssh"] == ["create", *scp, "delete", "create", *scp]
    first, second = cloud.called("queued-resources create")
    assert first == second
    assert cloud.called("delete")[0][-1] == "--force"
    assert edited.read_text() == "edited"
    for worker in ("mmjax-0.0", "mmjax-0.1", "mmjax-1.0", "mmjax-1.1"):
        assert [start["words"] for start in cloud.starts(worker)] == [["train", "mine.py", *TRAIN[2:]]] * 2
        assert (cloud.root / "homes" / worker / "mmjax_run" / "helper.py").read_text() == CODE["helper.py"]
    assert "mmjax: PREEMPTED" in done.stderr
    assert done.stderr.count(": with mine.py go ") == 1


@pytest.mark.parametrize("step", ["scp", "pip install", "nohup"])
def test_watch_survives_preemption_before_the_training(cloud, step):
    cloud.run("watch.sh digits --steps 10", rules=[{"on": step, "preempt": True, "stderr": REFUSED, "status": 255}])
    assert [verb for verb in cloud.verbs() if verb in ("create", "delete")] == ["create", "delete", "create"]
    assert [start["words"] for start in cloud.starts()] == [TRAIN]


def test_watch_goes_on_from_what_it_finds(cloud):
    cloud.run("create.sh")
    cloud.run("setup.sh")
    cloud.run("train.sh other")
    settles(cloud, "0")
    cloud.run("watch.sh digits --steps 10")
    assert cloud.verbs().count("create") == 1
    assert cloud.verbs().count("scp") == 1
    assert [start["words"][1] for start in cloud.starts()] == ["other", "digits"]
    # All that it wants is there and done: nothing is begun again.
    cloud.run("watch.sh digits --steps 10")
    assert len(cloud.starts()) == 2


def test_watch_leaves_another_training_alone(cloud):
    cloud.run("create.sh")
    cloud.run("setup.sh")
    cloud.run("train.sh other", MMJAX="forever")
    done = cloud.run("watch.sh digits", status=2)
    assert "another training runs there: train.sh --stop ends it" in done.stderr


def test_watch_recreates_a_request_that_is_stuck_or_failed(cloud):
    suspending = "ERROR: (gcloud) FAILED_PRECONDITION: the request is SUSPENDING"
    refused = [{"on": " delete ", "stderr": suspending, "status": 1}]
    done = cloud.run("watch.sh --provision-polls 3 --retries 3 digits", 1, refused, QUEUE="PROVISIONING")
    assert done.stderr.count("stuck in PROVISIONING after 3 looks") == 3
    assert [verb for verb in cloud.verbs() if verb != "ssh"] == ["create", "delete", "delete", "create"]
    assert "3 requests in a row came to nothing" in done.stderr
    cloud.run("delete.sh")
    done = cloud.run("watch.sh --retries 2 digits", 1, QUEUE="FAILED", FAILED_BECAUSE="internal error")
    assert done.stderr.count("the request failed: internal error") == 2


def test_watch_starts_a_failed_training_again_but_not_for_ever(cloud):
    cloud.run("watch.sh digits --steps 10", MMJAX="1 1 0")
    assert [start["words"] for start in cloud.starts()] == [TRAIN] * 3
    done = cloud.run("watch.sh --restarts 2 digits --steps 11", status=1, MMJAX="1")
    assert "the training failed 3 times on machines that are well" in done.stderr
    assert "mmjax is kept and costs until delete.sh" in done.stderr


def test_watch_stops_at_a_command_that_mmjax_refuses(cloud):
    done = cloud.run("watch.sh digits --step 10", status=2, MMJAX="2")
    assert "mmjax refuses the command" in done.stderr
    assert "mmjax trains" in done.stdout
    assert len(cloud.starts()) == 1


def test_watch_stops_what_is_left_of_a_training_that_lost_a_worker(cloud):
    cloud.run("create.sh")
    cloud.run("setup.sh")
    cloud.run("train.sh digits --steps 10", MMJAX="forever")
    settles(cloud, "running")
    home = cloud.root / "homes" / "mmjax.1" / "mmjax_run"
    (home / "pid").write_text("999999999\n")  # as after a machine that was started anew
    done = cloud.run("watch.sh digits --steps 10", MMJAX="forever 0")
    assert "workers: lost running" in done.stderr
    assert [start["words"] for start in cloud.starts("mmjax.0")] == [TRAIN] * 2


def test_watch_stops_at_a_quota(cloud):
    quota = "ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone z."
    done = cloud.run("watch.sh digits", 2, [{"on": " create ", "stderr": quota, "status": 1}])
    assert "the quota TPUV6EPerProjectPerZoneForTPUAPI is too small" in done.stderr
