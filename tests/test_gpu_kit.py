"""The session for a GPU machine without a network, and its kit, on CPU and without a network."""

import io
import itertools
import os
import re
import shutil
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import cv2
import gpu_loop
import gpu_session as session
import numpy as np
import pytest
from absl import flags
from gpu_loop import Command, Part, run_parts
from gpu_parts import session_parts
from run_script import ROOT, load_script
from test_docs import check_script

from affect_jax.data import open_split
from affect_jax.data.widerface import Widerface

FAST = {"GRACE_S": 0.5, "LEAST_S": 0.1}


@pytest.fixture
def fast(monkeypatch):
    for name, value in FAST.items():
        monkeypatch.setattr(gpu_loop, name, value)


def python(program: str, creates: str = "") -> Command:
    return Command([sys.executable, "-Sc", program], creates)


def run(parts, folder: Path, budget_s: float = 60.0):
    results = [pattern for part in parts for pattern in part.results]
    return run_parts(parts, folder / "work", budget_s, dict(os.environ), folder / "out", results)


@pytest.mark.parametrize("cut", [False, True])
def test_commands_of_the_session_have_scripts_flags_and_fields_that_exist(cut, monkeypatch):
    monkeypatch.chdir(ROOT)
    for part in session_parts(cut):
        for words, *_ in part.commands:
            scripts = [number for number, word in enumerate(words) if word.startswith("scripts/")]
            for number in scripts:
                check_script(Path(words[number]), list(words[number + 1 :]))
            if words[:2] == [sys.executable, "-c"]:
                compile(words[2], part.name, "exec")


def test_parts_are_documented_in_order():
    parts = session_parts(cut=False)
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", (ROOT / "docs" / "gpu.md").read_text(), re.MULTILINE)
    assert rows == [(part.name, str(part.bound_s)) for part in parts]


def test_failed_and_absent_parts_are_named_and_the_others_run(fast, tmp_path, capsys):
    order = tmp_path / "order"
    write = f"import sys; open({str(order)!r}, 'a').write"
    fails = "import sys; sys.exit('the weights do not fit\\n=== Source Location Trace: ===\\nclient.cc:1')"
    parts = [
        Part("first", 5, [python(f"{write}('1')")]),
        Part("wrong", 5, [python(f"{write}('2')"), python(fails), python(f"{write}('x')")]),
        Part("without", 5, [python(f"{write}('x')")], needs=[str(tmp_path / "nowhere")]),
        Part("last", 5, [python(f"{write}('3')"), python(f"{write}('x')", creates=str(order))]),
    ]
    states = run(parts, tmp_path)
    assert order.read_text() == "123"
    assert [state["status"] for state in states.values()] == ["done", "failed", "absent", "done"]
    assert states["wrong"]["note"] == "exit status 1: the weights do not fit"
    assert str(tmp_path / "nowhere") in states["without"]["note"]
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in states)
    (tmp_path / "nowhere").touch()
    states = run(parts, tmp_path)  # failed and absent parts are tried again, finished parts are not
    assert order.read_text() == "1232x"
    assert states["without"]["status"] == "done"


def test_a_part_stops_at_its_bound_saves_and_resumes(fast, tmp_path):
    saves_when_stopped = (
        f"import signal, sys, pathlib; saved = pathlib.Path({str(tmp_path / 'checkpoint')!r})\n"
        "def save(number, frame): saved.write_text('step 7'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save); print('started', flush=True)\n"
        "saved.exists() or signal.pause()"
    )
    ignores_the_end = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: signal.pause()"
    parts = [
        Part("train", 2.0, [python(saves_when_stopped)]),
        Part("hang", 0.3, [python(ignores_the_end)]),
        Part("after", 5.0, [python("print('ran')")]),
    ]
    start = time.monotonic()
    states = run(parts, tmp_path, budget_s=6.0)
    assert time.monotonic() - start < 7.0
    assert (tmp_path / "checkpoint").read_text() == "step 7"
    # the second round finished the training
    assert {name: state["status"] for name, state in states.items()} == {
        "train": "done",
        "hang": "stopped",
        "after": "done",
    }
    log = (tmp_path / "work" / "train.log").read_text()
    run(parts[::2], tmp_path)
    assert (tmp_path / "work" / "train.log").read_text() == log


def test_lanes_run_at_the_same_time_and_one_that_fails_leaves_the_others(fast, tmp_path):
    meet = (  # ends only if the other lane runs at the same time
        "import pathlib, sys, time; mine, other = map(pathlib.Path, sys.argv[1:]); mine.touch()\n"
        "while not other.exists(): time.sleep(0.01)"
    )
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    commands = [
        Command([sys.executable, "-Sc", meet, one, two], lane="one"),
        Command([sys.executable, "-Sc", "import sys; sys.exit('too large')"], lane="one"),
        Command([sys.executable, "-Sc", meet, two, one], lane="two"),
        Command([sys.executable, "-Sc", "print('last of two')"], lane="two"),
    ]
    states = run([Part("both", 30, commands)], tmp_path)
    assert states["both"]["status"] == "failed" and states["both"]["note"] == "one: exit status 1: too large"
    assert "last of two" in (tmp_path / "work" / "both_two.log").read_text()


def test_a_command_waits_for_the_files_of_another_lane_at_most_until_the_bound(fast, tmp_path):
    teacher, never = tmp_path / "teacher", tmp_path / "never"
    student = python(f"assert open({str(teacher)!r})")._replace(lane="student", waits_for=[str(teacher)])
    trains = python(f"import time; time.sleep(1); open({str(teacher)!r}, 'x')")._replace(lane="teacher")
    assert run([Part("both", 30, [student, trains])], tmp_path)["both"]["status"] == "done"
    waits = python("pass")._replace(lane="waits", waits_for=[str(never)])
    works = python("import signal; signal.pause()")._replace(lane="works")
    state = run([Part("long", 1.0, [waits, works])], tmp_path, budget_s=2.0)["long"]
    assert state["status"] == "stopped" and f"waits: waiting for {never}" in state["note"]


def test_a_lane_does_not_wait_for_what_no_other_lane_will_create(fast, tmp_path):
    commands = [
        Command([sys.executable, "-Sc", "import sys; sys.exit('too large')"], lane="teacher"),
        python("pass")._replace(lane="student", waits_for=[str(tmp_path / "teacher")]),
    ]
    start = time.monotonic()
    state = run([Part("both", 30, commands)], tmp_path)["both"]
    assert time.monotonic() - start < 10
    assert state["status"] == "failed"
    assert state["note"] == f"teacher: exit status 1: too large; student: no lane created {tmp_path / 'teacher'}"


def test_a_command_that_may_fail_does_not_end_its_lane(fast, tmp_path):
    commands = [python("import sys; sys.exit('diverged')")._replace(may_fail=True), python("print('tried')")]
    assert run([Part("trials", 30, commands)], tmp_path)["trials"]["status"] == "done"
    assert "tried" in (tmp_path / "work" / "trials.log").read_text()


def test_a_process_in_a_stopped_command_has_time_to_save(fast, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_loop, "GRACE_S", 10)
    saved = tmp_path / "saved"
    saves = (
        f"import pathlib, signal, sys, time; saved = pathlib.Path({str(saved)!r})\n"
        "def save(*_): time.sleep(1); saved.touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, save); time.sleep(60)"
    )
    wrapper = f"import subprocess, sys; subprocess.run([sys.executable, '-Sc', {saves!r}])"
    assert run([Part("wrapped", 2, [python(wrapper)])], tmp_path, budget_s=13)["wrapped"]["status"] == "stopped"
    assert saved.exists()


def test_the_budget_bounds_all_parts_together(fast, tmp_path):
    parts = [Part(str(number), 60, [python("import signal; signal.pause()")]) for number in range(3)]
    start = time.monotonic()
    states = run(parts, tmp_path, budget_s=2.0)
    assert time.monotonic() - start < 3.0
    assert [state["status"] for state in states.values()] == ["stopped", "not started", "not started"]


def read_archive(folder: Path) -> dict[str, bytes]:
    """Return the files in the pieces of an archive, in order."""
    pieces = sorted(folder.glob("session.tar.*"))
    assert all(piece.stat().st_size <= gpu_loop.PIECE_BYTES for piece in pieces)
    with tarfile.open(fileobj=io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}


def test_results_are_at_once_in_an_archive_and_the_next_session_brings_back_what_had_no_room(
    fast, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(gpu_loop, "PIECE_BYTES", 1 << 16)
    (tmp_path / "work" / "big").mkdir(parents=True)
    rng = np.random.default_rng(0)
    contents = {f"big/{name}": rng.bytes(size) for name, size in {"weights": 100_000, "more": 160_000, "c": 9}.items()}
    for name, content in contents.items():
        (tmp_path / "work" / name).write_bytes(content)
    finished = f"assert 'session.tar.1' in __import__('os').listdir({str(tmp_path / 'out')!r})"
    parts = [Part("big", 5, [python("pass")], results=["big/*"]), Part("next", 5, [python(finished)])]
    assert run(parts, tmp_path)["next"]["status"] == "done"
    assert "no room for big/more: the next session brings it back" in capsys.readouterr().out
    found = read_archive(tmp_path / "out")
    assert {"states/big.json", "states/next.json", "big.log", "next.log"} < found.keys()
    assert {name: found[name] for name in found if name.startswith("big/")} == {
        name: contents[name] for name in ("big/c", "big/weights")
    }
    shutil.rmtree(tmp_path / "out")
    run([*parts, Part("last", 5, [python("print(1)")])], tmp_path)
    found = read_archive(tmp_path / "out")
    assert found.keys() == {"big/more", "states/last.json", "last.log"} and found["big/more"] == contents["big/more"]


def test_session_without_seconds_starts_nothing_and_lists_every_part(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(session, "KIT", tmp_path / "kit")
    monkeypatch.setattr(session, "WORK", tmp_path / "work")
    monkeypatch.setattr(session.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(sys, "argv", ["gpu_session.py"])
    monkeypatch.setenv("BUDGET_S", "0")
    monkeypatch.setenv("DRY_RUN", "1")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    with pytest.raises(SystemExit) as ended:
        session.main()
    printed = capsys.readouterr().out
    assert not ended.value.code
    assert "kit has no call1/manifest.json" in printed
    assert re.findall(r"^(\w+) +not started", printed, re.MULTILINE) == [p.name for p in session_parts(cut=True)]


def test_a_part_that_does_not_exist_is_an_error_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", "dta"])
    with pytest.raises(SystemExit) as ended:
        session.main()
    assert ended.value.code == 2
    assert "no part dta; choose from data, runs, speedrun" in capsys.readouterr().err


def write_wheel(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    information = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "where = 'kit'\n")
        wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")


def test_missing_packages_are_installed_offline_and_those_of_the_machine_stay(tmp_path):
    write_wheel(tmp_path / "wheels", "numpy")
    write_wheel(tmp_path / "wheels", "only_in_the_kit")
    line = session.install_wheels(tmp_path / "wheels", tmp_path / "site")
    assert line.endswith("installed only_in_the_kit")
    assert {path.name for path in (tmp_path / "site").glob("*.py")} == {"only_in_the_kit.py"}


@pytest.fixture
def load():
    """The function load_script; the flags of the script are removed after the test."""
    before = set(flags.FLAGS)
    yield load_script
    flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)
    flags.FLAGS.mark_as_parsed()


@pytest.fixture
def kit(load):
    return load("launch/gpu_kit")


def test_pieces_are_split_into_calls_and_used_once_all_their_files_have_arrived(kit, tmp_path):
    rng = np.random.default_rng(0)
    contents = {f"{piece}/sub/{n}": rng.bytes(40_000) for piece in ("wheels", "fer2013") for n in range(4)}
    for name, content in contents.items():
        (tmp_path / "kit" / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "kit" / "all" / name).write_bytes(content)
    calls = kit.split_into_calls(tmp_path / "kit" / "all", ["wheels", "fer2013"], tmp_path / "kit", 130_000)
    assert [call.name for call in calls] == ["call1", "call2", "call3"]
    assert all(kit.size_of(call) <= 130_000 for call in calls)
    late = tmp_path / "late"
    calls[2].rename(late)
    assert session.gather_kit(tmp_path / "kit", tmp_path / "there") == ["wheels: 4 of 4 files", "fer2013: 2 of 4 files"]
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["wheels"]
    late.rename(calls[2])
    session.gather_kit(tmp_path / "kit", tmp_path / "there")
    assert {name: (tmp_path / "there" / name).read_bytes() for name in contents} == contents


def test_absent_pieces_are_named(kit, tmp_path):
    for collect, reason in (
        (lambda: kit.copy_files([], tmp_path / "a"), "no path was given"),
        (lambda: kit.copy_files(kit.sheets_of("/nowhere"), tmp_path / "a"), "/nowhere/make_csv.py"),
        (lambda: kit.shrink_widerface("", tmp_path / "a", 640, 1e6), "no path was given"),
        (lambda: kit.move_files(tmp_path, "av-*.whl", tmp_path / "a"), "no av-"),
    ):
        with pytest.raises((ValueError, OSError), match=reason):
            collect()


def test_part_of_wider_face_is_reduced_with_its_boxes_and_can_be_prepared(kit, tmp_path):
    """The boxes are drawn in the images, so that their place in the reduced images shows in the pixels."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 6), ("val", 2)):
        lines = []
        for index in range(number):
            name = f"0--Parade/{split}_{index}.jpg"
            file = tmp_path / "wider" / f"WIDER_{split}" / "images" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            x, y, w, h = rng.integers(100, 300, 4)
            image = np.zeros((600, 800, 3), np.uint8)
            image[y : y + h, x : x + w] = 255
            cv2.imwrite(str(file), image)
            lines += [name, "1", f"{x} {y} {w} {h} 0 0 0 0 0 0 "]
            if index == 1:
                lines[-2:] = ["0", "0 0 0 0 0 0 0 0 0 0 "]
        (tmp_path / "wider" / "wider_face_split").mkdir(exist_ok=True)
        (tmp_path / "wider" / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt").write_text("\n".join(lines))
    kit.shrink_widerface(str(tmp_path / "wider"), tmp_path / "small", 200, 12_000)
    assert 0 < kit.size_of(tmp_path / "small") <= 12_000 + 1000
    Widerface.prepare(tmp_path / "data", source=tmp_path / "small")
    train, val = (open_split("widerface", split, tmp_path / "data") for split in ("train", "val"))
    assert len(val) == 2 and 0 < len(train) < 6
    for split in (train, val):
        for index in range(len(split)):
            example = split.read_image(index)
            assert example["image"].shape == (150, 200, 3)
            if not len(split.boxes(index)):
                continue
            rows, columns = np.nonzero(example["image"][..., 0] > 127)
            found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_allclose(split.boxes(index)[0], found, atol=1)


def test_networks_that_fail_are_named_and_the_others_are_checked(load, monkeypatch, capsys):
    check = load("launch/gpu_check")
    monkeypatch.setattr(check, "prepare_process", lambda: None)
    last_steps = {"at_once": 0, "later": check.NUM_STEPS, "never": 10**6}

    def compile_step(name: str, dtype: str):
        if name == "compiling":
            raise RuntimeError("out of memory")
        steps = itertools.count()

        def work() -> None:
            if next(steps) >= last_steps[name]:
                raise RuntimeError("not finite")

        return work, 0.5

    monkeypatch.setattr(check, "compile_step", compile_step)
    flags.FLAGS.configs, flags.FLAGS.dtypes = ["compiling", *last_steps], ["float32"]
    with pytest.raises(SystemExit, match="3 of 4 failed"):
        check.main(["gpu_check.py"])
    lines = capsys.readouterr().out.splitlines()
    assert "compiling float32: RuntimeError: out of memory" in lines
    assert {"at_once float32: RuntimeError: not finite", "later float32: RuntimeError: not finite"} <= set(lines)
    assert re.fullmatch(r"never float32: \d+\.\d+ ms a step", lines[-1])
