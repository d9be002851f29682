"""Errors in a study are reported before its first step, with the place in its file, and nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rnascl_cli.core.errors import UserError, pluralise
from rnascl_cli.data import load_data
from rnascl_cli.recipes.data_spec import images_of
from rnascl_cli.recipes.settings import DataSettings
from rnascl_cli.recipes.study import read_study
from rnascl_cli.stages.study.plan import plan_study
from rnascl_cli.stages.study.runner import StudyRecord
from tests.cli.test_imports import in_a_fresh_python
from tests.command import done, files, refused

pytestmark = pytest.mark.unit

VALID = """
title = "t"
spaces = ["S3"]
reference = "plain"
[settings]
[settings.data]
spec = "digits"
[[arm]]
name = "plain"
search = { paradigm = "standard" }
finetune = ["trades"]
[[arm]]
name = "taught"
finetune = []
[[arm]]
name = "other"
network_of = "taught"
finetune = []
[[finetuning]]
name = "trades"
[[measurement]]
name = "pgd"
"""
TAUGHT = ("--teacher", "t.safetensors")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_teacher: Path) -> Path:
    """A working folder with a teacher and a valid study."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_teacher, "t.safetensors")
    Path("s.toml").write_text(VALID, encoding="utf-8")
    return tmp_path


def change(old: str, new: str) -> None:
    """Insert a line after one line of the valid study."""
    assert VALID.count(f"{old}\n") == 1
    Path("s.toml").write_text(VALID.replace(f"{old}\n", f"{old}\n{new}\n"), encoding="utf-8")


def error_line(*options: str) -> str:
    """Return the error line of ``study``, and check that nothing is written."""
    before = files(Path())
    line = refused("study", "s.toml", "--out", "out", *options)
    assert files(Path()) == before
    assert line.startswith("rnascl: study s.toml: ")
    return line.removeprefix("rnascl: study s.toml: ")


NAMED = {f"{table} {name}": f'name = "{name}"' for table, name in (("finetuning", "trades"), ("measurement", "pgd"))}
OWN, THEIRS, TUNED, ATTACKED = 'name = "taught"', 'network_of = "taught"', *NAMED.values()
PLAIN = 'search = { paradigm = "standard" }'
CASES: dict[str, tuple[str, str, str]] = {
    "no such space": ('title = "t"', "", "'spaces': unknown search space 'S4'; did you mean"),
    "no such recipe": ('title = "t"', 'recipe = "smoke/tinny"', "'recipe': --recipe: no file 'smoke/tinny'"),
    "space of the settings": ("[settings]", 'space = "S5"', "recipe key 'space': is S5, and 'spaces' has S3"),
    "data": ("[settings]", "", "recipe key 'data.spec': --data folder: a folder is needed"),
    "budget": (
        OWN,
        'search = { max_macs = "1M" }',
        "arm 'taught': recipe key 'search.max_macs': 1,000,000 MACs are fewer than the 4,743,304",
    ),
    "budget of params": (
        OWN,
        'search = { max_params = "1k" }',
        "arm 'taught': recipe key 'search.max_params': 1,000 params are fewer than",
    ),
    "front": (
        OWN,
        'search = { max_macs = "4.75M", pareto = 90 }',
        "arm 'taught': recipe key 'search.pareto': --pareto 90: space S3 has no network in",
    ),
    "tutor map": (
        OWN,
        'tutors = "randon"',
        "arm 'taught': 'tutors': --tutors randon: no such file or tutor map; did you mean 'random'?",
    ),
    "tutor file": (THEIRS, 'tutors = "map.json"', "arm 'other': 'tutors': --tutors map.json: no such file"),
    "tutor file of a long name": (THEIRS, f'tutors = "{"x" * 300}"', "arm 'other': 'tutors': xxx"),
    "tutors of a search without": (
        PLAIN,
        'tutors = "random"',
        "arm 'plain': 'tutors': --tutors random: the arm's own is a search with paradigm 'standard'",
    ),
    "tutors of another's search without": (
        'name = "other"',
        "",
        "arm 'other': 'tutors': --tutors random: that of arm 'plain' is a search with paradigm 'standard'",
    ),
    "paradigm of a search without tutors": (
        PLAIN,
        'train = { paradigm = "icc" }',
        "arm 'plain': recipe key 'train.paradigm': paradigm 'icc' needs a tutor map",
    ),
    "paradigm of a fine-tuning": (
        TUNED,
        'settings = { paradigm = "rnas-cl" }',
        "finetuning 'trades' of arm 'plain': recipe key 'adv_finetune.paradigm': paradigm 'rnas-cl' needs a tutor map",
    ),
    "layers of other tutors": (
        OWN,
        'train = { attention.source = "norm" }',
        "arm 'taught': recipe key 'train.attention.source': the teacher: its norm layers are not those of the tutor "
        "map",
    ),
    "baseline and paradigm": (
        OWN,
        'train = { paradigm = "kl", distill = { name = "at" } }',
        "arm 'taught': --distill at: replaces the paradigm's teacher terms; leave out either it (recipe key "
        "train.distill)",
    ),
    "baseline and method": (
        THEIRS,
        'train = { robust.method = "trades", distill = { name = "at" } }',
        "arm 'other': --distill at: trains on clean images, as published; leave out --method trades (recipe key "
        "train.robust)",
    ),
    "no such baseline": (
        OWN,
        'train = { distill = { name = "kdd" } }',
        "arm 'taught': train.distill.name kdd: one of kd, at, sp, vid, rkd, crd, pkt",
    ),
    "no such baseline, of all": (
        "[settings]",
        'train = { distill = { name = "kdd" } }',
        "settings: train.distill.name kdd: one of kd, at, sp, vid, rkd, crd, pkt",
    ),
    "no such key": (OWN, "train = { epoch = 3 }", "arm 'taught': unknown recipe key 'train.epoch'; did you mean"),
    "key of many parts": (OWN, f"train.{'.'.join('a' * 3000)} = 1", "no recipe key has so many parts"),
    "epoch chosen on nothing": (
        'spec = "digits"',
        "holdout = 0\n[settings.train.select]",
        "arm 'plain': data.holdout: recipe key 'train.select' selects the epoch on held-out training images",
    ),
    "no such attack": (
        ATTACKED,
        'settings = { attacks = ["pgdx"] }',
        "measurement 'pgd': recipe key 'attack.attacks': unknown attack 'pgdx'; did you mean 'pgd20'?",
    ),
    "no attack": (ATTACKED, "settings = { attacks = [] }", "measurement 'pgd': recipe key 'attack.attacks': name at"),
    "eps": (ATTACKED, 'settings = { eps = ["8"] }', "measurement 'pgd': recipe key 'attack.eps': 8 is above 1"),
    "attack of another norm": (
        ATTACKED,
        'settings = { norm = "L2", attacks = ["cw"] }',
        "measurement 'pgd': recipe key 'attack.attacks' cw: exists for --norm Linf only",
    ),
    "audit of another protocol": (
        ATTACKED,
        'audit = true\nsettings = { protocol = "paper-code", attacks = ["fgsm"] }',
        "measurement 'pgd': 'audit': works on pixels",
    ),
}
REPLACED = {
    "no such space": ('spaces = ["S3"]', 'spaces = ["S4"]'),
    "data": ('spec = "digits"', 'spec = "folder"'),
    "tutors of another's search without": (THEIRS, 'network_of = "plain"\ntutors = "random"'),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_settings_are_refused_before_the_first_step(world: Path, case: str) -> None:
    old, new, said = CASES[case]
    if case in REPLACED:
        Path("s.toml").write_text(VALID.replace(*REPLACED[case]), encoding="utf-8")
    else:
        change(old, new)
    assert said in error_line(*TAUGHT)
    assert said in error_line(*TAUGHT, "--plan")


def test_a_valid_study_is_planned(world: Path) -> None:
    assert done("study", "s.toml", *TAUGHT, "--plan").out.count("rnascl search") == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (OWN, "", "arm 'taught', table 'search': --teacher: paradigm 'rnas-cl' needs a teacher"),
        (OWN, 'search = { paradigm = "kl" }', "arm 'taught', table 'search': --teacher: paradigm 'kl' needs a teacher"),
        (
            OWN,
            'search = { paradigm = "standard", robust.method = "rslad" }',
            "arm 'taught', table 'search': --teacher: method 'rslad' learns from a teacher's logits",
        ),
        (
            OWN,
            'search = { paradigm = "standard" }\ntrain = { paradigm = "kl" }',
            "arm 'taught', table 'train': --teacher: paradigm 'kl' needs a teacher",
        ),
        (
            OWN,
            'search = { paradigm = "standard" }\ntrain = { distill.name = "at" }',
            "arm 'taught', table 'train': --distill at: needs a teacher",
        ),
        (
            TUNED,
            'settings = { robust.method = "ard" }\n[settings.search]\nparadigm = "standard"',
            "finetuning 'trades' of arm 'plain': --teacher: method 'ard' learns from a teacher's logits",
        ),
    ],
)
def test_a_teacher_that_a_step_needs_must_be_named(world: Path, old: str, new: str, said: str) -> None:
    change(old, new)
    assert said in error_line()
    planned = done("study", "s.toml", "--plan")
    assert said in " ".join(planned.err.split())
    assert "rnascl search" in planned.out


def test_the_settings_may_name_the_teacher(world: Path) -> None:
    change("[settings]", 'teacher = "t.safetensors"')
    done("study", "s.toml", "--plan")
    Path("t.safetensors").unlink()
    assert error_line().startswith("--teacher t.safetensors: no such file")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--data", "folder:nowhere", *TAUGHT), "--data: no folder nowhere; name one with train/ and test/ in it"),
        (("--data", "folder:images", *TAUGHT), "images has no test/ or val/ folder"),
        (("--data", f"folder:{'x' * 300}", *TAUGHT), "File name too long"),
        (("--teacher", "no.safetensors"), "--teacher no.safetensors: no such file"),
        (("--teacher", "r18"), "--teacher r18: not in the teacher cache"),
        (("--teacher", "r81"), "no cached teacher 'r81'; did you mean"),
    ],
)
def test_images_and_teacher_must_exist_except_for_a_plan(world: Path, options: tuple[str, ...], said: str) -> None:
    (world / "images" / "train").mkdir(parents=True)
    assert said in error_line(*options)
    done("study", "s.toml", "--plan", *options)


def test_a_named_teacher_must_exist_even_if_unused(world: Path) -> None:
    change("[settings]", 'search = { paradigm = "standard" }')
    done("study", "s.toml", "--plan")
    assert error_line("--teacher", "no.safetensors").startswith("--teacher no.safetensors: no such file")


@pytest.mark.pipeline
@pytest.mark.slow
def test_a_finished_study_is_tabulated_without_its_images(world: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, "images")
    study = 'title = "t"\nspaces = ["S3"]\nreference = "a"\n[[arm]]\nname = "a"\nsearch.paradigm = "standard"\n'
    small = "[settings]\nsearch = { epochs = 1, batch_size = 12 }\ntrain = { epochs = 1, batch_size = 12 }\n"
    Path("s.toml").write_text(study.replace("[[arm]]", f"{small}[[arm]]"), encoding="utf-8")
    command = ("study", "s.toml", "--data", "folder:images", "--out", "out")
    done(*command)
    shutil.rmtree("images")
    assert "1 student; wrote out/study.md" in done(*command).err
    shutil.rmtree("out/s3/seed0/a/train")
    assert "no folder images" in refused(*command)


def test_selected_steps_without_teacher_need_no_teacher_file(world: Path) -> None:
    change('spec = "digits"', "limit_train = 40\n[settings.search]\nepochs = 1\nbatch_size = 16")
    command = ("study", "s.toml", "--teacher", "gone.safetensors", "--out", "out", "--only", "*/plain/search")
    done(*command)
    assert (world / "out/s3/seed0/plain/search/search.json").is_file()


def test_results_are_kept_if_the_teacher_file_is_gone(world: Path) -> None:
    plan = plan_study(read_study(Path("s.toml")), teacher="t.safetensors")
    search = next(step for step in plan.steps if "--teacher" in step.arguments)
    out = world / "out"
    (out / search.name).mkdir(parents=True)
    record = StudyRecord(out, plan)
    record.add(search)
    (out / search.result).write_text("{}", encoding="utf-8")
    Path("t.safetensors").unlink()
    assert StudyRecord(out, plan).kept(plan) == ({search.name}, set())
    (out / search.result).unlink()
    (out / search.name / "checkpoint.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="made with other settings"):  # it could not go on
        StudyRecord(out, plan).kept(plan)


def test_an_unknown_user_in_a_path(world: Path) -> None:
    done("study", "s.toml", *TAUGHT, "--data", "folder:~nobody-here/x", "--plan")
    assert "--data: ~nobody-here/x: no such user" in error_line(*TAUGHT, "--data", "folder:~nobody-here/x")
    assert "--teacher: ~nobody-here/t.safetensors: no such user" in error_line(
        "--teacher", "~nobody-here/t.safetensors"
    )


def test_a_plan_of_an_imagenet_recipe_needs_no_images(world: Path) -> None:
    Path("s.toml").write_text(
        'title = "t"\nspaces = ["I"]\nreference = "a"\nrecipe = "imagenet100/rnas-cl-i-r18"\n[[arm]]\nname = "a"\n',
        encoding="utf-8",
    )
    done("study", "s.toml", "--plan")
    assert "--data imagenet100: a folder is needed" in error_line(*TAUGHT)


def test_an_unknown_data_set_names_the_option(world: Path) -> None:
    assert error_line(*TAUGHT, "--data", "foo").startswith("--data foo: unknown data set")


@pytest.mark.parametrize("spec", ["digits", "folder:images"])
def test_size_and_classes_are_known_without_reading_images(world: Path, tiny_folder: Path, spec: str) -> None:
    shutil.copytree(tiny_folder, "images")
    data = load_data(DataSettings(spec=spec), seed=0)
    assert images_of(spec) == (data.num_classes, data.input_size)


def test_a_budget_is_checked_for_the_folder_given(world: Path, tiny_folder: Path) -> None:
    change(OWN, 'search = { max_macs = "1M" }')
    shutil.copytree(tiny_folder, "images")
    assert "recipe key 'search.max_macs': 1,000,000 MACs" in error_line(*TAUGHT, "--data", "folder:images")
    shutil.rmtree("images")
    done("study", "s.toml", *TAUGHT, "--data", "folder:images", "--plan")


def test_pluralise() -> None:
    assert [pluralise(number, "student") for number in (0, 1, 2)] == ["0 students", "1 student", "2 students"]


@pytest.mark.pipeline
def test_planning_imports_nothing_heavy() -> None:
    call = ["study", "smoke", "--teacher", "t", "--plan"]
    assert in_a_fresh_python(f"from rnascl_cli.cli.app import run; assert run({call}) == 0") == []
    call = ["study", "smoke", "--teacher", "nowhere"]
    assert in_a_fresh_python(f"from rnascl_cli.cli.app import run; assert run({call}) == 2") == []
