"""The start and the end of scripts: Ctrl-C, closed pipes, --help, missing and wrong flags; progress bars."""

import ast
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from run_script import ROOT, fork

from affect_jax import command_line
from affect_jax.data import DATASETS, find_dataset

SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))
# A test run in the background of a shell ignores SIGINT, and its children inherit that.
RESTORE = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
PROGRAM = """
import multiprocessing, os, signal, sys
from affect_jax import command_line
command_line.exit_on_interrupt()

def work(queue):
    queue.put(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)

def main(argv):
{body}

if __name__ == "__main__":
    command_line.run(main)
"""


def run(tmp_path, body: str, **options) -> subprocess.CompletedProcess:
    """Run a script whose main function has this body."""
    script = tmp_path / "script.py"
    script.write_text(PROGRAM.format(body="\n".join(f"    {line}" for line in body.splitlines())))
    options = {"capture_output": True, "text": True, "preexec_fn": RESTORE, "cwd": ROOT, **options}
    return subprocess.run([sys.executable, script], **options)


@pytest.mark.parametrize("path", [*(ROOT / "scripts").glob("*.py"), ROOT / "affect_jax/predict/__main__.py"], ids=str)
def test_scripts_handle_interrupts_before_their_other_imports(path):
    _, first, second, *_ = ast.parse(Path(path).read_text()).body
    assert ast.unparse(first) == "from affect_jax import command_line"
    assert ast.unparse(second) == "command_line.exit_on_interrupt()"


def test_importing_the_command_line_imports_no_slow_package():
    program = "import sys, affect_jax.command_line; print([n for n in ('absl', 'numpy', 'jax') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_an_interrupt_ends_the_process_with_one_line_also_in_callbacks(tmp_path):
    done = run(
        tmp_path,
        """print('kept')
class Callback:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)  # Python would ignore a KeyboardInterrupt here
        sum(range(1000))
Callback()
signal.pause()""",
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "kept\n", "interrupted\n")


@pytest.mark.parametrize(("name", "status", "line"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_an_interruptible_block_cleans_up_after_a_signal(tmp_path, name, status, line):
    done = run(
        tmp_path,
        f"""with command_line.interruptible():
    try:
        os.kill(os.getpid(), signal.{name})
        signal.pause()
    finally:
        print('cleaned up')""",
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "cleaned up\n", f"{line}\n")


def test_an_interrupt_in_an_uninterrupted_block_is_raised_at_its_end():
    done = []
    with command_line.handling(signal.SIGINT, signal.default_int_handler):
        with pytest.raises(KeyboardInterrupt), command_line.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("all of the block")
        with command_line.uninterrupted():
            done.append("without an interrupt")
    assert done == ["all of the block", "without an interrupt"]


def test_workers_ignore_interrupts(tmp_path):
    done = run(
        tmp_path,
        """context = multiprocessing.get_context('spawn')
queue = context.Queue()
worker = context.Process(target=work, args=(queue,))
worker.start()
print(queue.get())
worker.join()""",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.parametrize("body", ["for number in range(100_000): print(number)", "print('one line')"])
def test_a_closed_pipe_ends_the_process_silently(tmp_path, body):
    process = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    process.wait()  # nothing reads the pipe
    done = run(tmp_path, body, capture_output=False, stdout=process.stdin, stderr=subprocess.PIPE)
    process.stdin.close()
    assert (done.returncode, done.stderr) == (141, "")


def test_an_array_larger_than_the_memory_is_an_error_without_traceback(tmp_path):
    done = run(tmp_path, "import jax.numpy as jnp\njnp.zeros((1 << 24, 1 << 24), jnp.int8).block_until_ready()")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("MemoryError: the device's memory is too small; use smaller batches")


@pytest.mark.parametrize(
    ("argument", "expanded"),
    [
        ("--out=~", "--out=/home/me"),
        ("--out=~/found", "--out=/home/me/found"),
        ("-config.init_from=~/w.h5", "-config.init_from=/home/me/w.h5"),
        ("--out=~found", "--out=~found"),
        ("~/photo.jpg", "~/photo.jpg"),
        ("--run=a = ~/b", "--run=a = ~/b"),
    ],
)
def test_a_flag_may_begin_with_the_home_folder(monkeypatch, argument, expanded):
    monkeypatch.setenv("HOME", "/home/me")
    assert command_line.HOME.sub(command_line.expand_home, argument) == expanded


def test_a_script_expands_the_home_folder_of_a_flag():
    assert f"{Path.home()}/no_such_run is not the folder of a run" in fork("evaluate", "--workdir=~/no_such_run").stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_exits_with_status_0(name):
    done = fork(name, "--help")
    assert done.returncode == 0 and "--helpfull" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("audit_data", (), "give one data set of affectnet, "),
        ("benchmark", (), "--config is missing: configs/NAME.py"),
        ("benchmark_predict", (), "--images is missing: A folder of images"),
        ("evaluate", (), "give a run as --workdir=FOLDER or a model file as --model=FILE, one of the two"),
        ("evaluate", ("--workdir=a", "--model=b"), "give a run as --workdir=FOLDER or a model file as --model=FILE"),
        ("export", ("--model=a",), "--out is missing: The new folder"),
        ("export", (), "--model is missing: A run's folder or a model file; --out is missing: The new folder"),
        ("predict", (), "name an input, for example photo.jpg, "),
        ("prepare_data", (), "give one data set of affectnet, "),
        ("prepare_data", ("fer2013",), "give the source: --source=PATH"),
        ("prune", ("--out=a.safetensors",), "--model is missing: A run's folder or a model file of VGG-FER"),
        ("report", (), "give the folders of runs, for example runs/fer_vgg runs/fer_mobilenet"),
        ("show_anchors", (), "--config is missing: configs/NAME.py"),
        ("show_augmentations", (), "--config is missing: configs/NAME.py, or configs/NAME.py:demo"),
        ("sweep", ("--workdir=a",), "--run is missing: NAME = configs/FILE.py and any further --config.FIELD=VALUE"),
        ("train", (), "--config is missing: configs/NAME.py, or configs/NAME.py:demo"),
    ],
)
def test_missing_arguments_are_named_in_one_line(name, arguments, message):
    done = fork(name, *arguments)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert done.stderr.endswith("; --help lists the flags\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/nope.py"], "No such file or directory: 'configs/nope.py'"),
        (["--config=README.md"], "README.md, line "),
        (["--config=configs/fer_vgg.py:nope"], "ValueError: unknown variant 'nope': the variants are demo"),
        (["--config=configs/fer_vgg.py", "--config.nofield=1"], "the config has no field 'nofield'"),
        (["--config=configs/fer_vgg.py", "--config.batch_size=x"], "--config.batch_size=x: invalid literal for int"),
        (["--nope"], "Unknown command line flag 'nope'"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message):
    done = fork("train", *arguments)
    assert done.returncode == 1 and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("; --help lists the flags\n")


def test_progress_bars_are_drawn_on_terminals_only():
    """tqdm(disable=None) draws nothing into files and pipes."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "affect_jax").rglob("*.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    bars = [ast.unparse(call) for call in calls if ast.unparse(call.func) == "tqdm"]
    assert bars and all("disable=None" in bar for bar in bars)


@pytest.mark.parametrize("error", [ValueError("wrong"), FileNotFoundError("absent"), ChildProcessError("failed")])
def test_errors_of_values_and_files_are_one_line(error):
    with pytest.raises(SystemExit, match=f"^{type(error).__name__}: {error}$"), command_line.one_line_errors():
        raise error


def test_too_small_memory_is_one_line():
    expected = r"^MemoryError: the memory is too small; .*\(4 GB\)$"
    with pytest.raises(SystemExit, match=expected), command_line.one_line_errors():
        raise MemoryError("4 GB")


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), command_line.one_line_errors():
        _ = 1 / 0


def test_the_help_of_prepare_data_names_every_data_set_that_needs_preparation():
    text = (ROOT / "scripts" / "prepare_data.py").read_text().partition("options")[0]
    names = {name for name in DATASETS if hasattr(find_dataset(name), "prepare")}
    assert set(re.findall(r"[a-z0-9_]+", text)) >= names
