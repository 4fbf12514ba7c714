"""Measure on a machine with one NVIDIA GPU and no network, within a budget of seconds, the most useful parts first:

    BUDGET_S=560 python3 scripts/launch/gpu_session.py

`make gpu-kit` collects what the machine lacks. Only missing packages are installed; the JAX and PyTorch of the machine
stay. Each part stops at its bound, and the next part starts. Rerun the command to resume: finished parts are skipped,
stopped parts resume from their checkpoint, and failed parts start again. After every part its results are in $OUT
(default: runs/gpu/out), at most 8 files of 16 MiB. DRY_RUN=1 runs all parts on CPU, each cut to seconds.

This file imports only Python's own modules, because it installs the other packages. See docs/gpu.md.
"""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "gpu_kit"
WORK = Path("runs/gpu")
"""Folder of the session below ROOT, where all commands run."""
MOST_BYTES, MOST_ARCHIVES = (16 << 20) - 10_240, 8
"""Limits of the way back; the end of an archive takes up to 10,240 bytes."""
GRACE_S = 15
"""Seconds in which a stopped part saves its checkpoint."""
XLA_PLACES = "=== Source Location Trace"
"""Line after the message of an error of XLA."""
LEAST_S = 10
"""Seconds under which no part is started."""


class Command(NamedTuple):
    """A command of a part; it is skipped if the file that it creates exists."""

    words: Sequence[str]
    creates: str = ""
    lane: str = ""
    """Commands of one lane run in order, those of different lanes at the same time; "" if the part has one lane."""


class Part(NamedTuple):
    """A part of the session."""

    name: str
    bound_s: float
    commands: Sequence[Command]
    needs: Sequence[str] = ()
    """Files or folders without which the part is not started."""
    results: Sequence[str] = ()
    """Patterns of the files to bring back, below WORK; logs are brought back in any case."""


# ---- The parts ----

MOBILENET = f"{WORK}/kit/weights/mobilenet_v2_imagenet_features.safetensors"
MOBILENET_V1 = f"{WORK}/kit/weights/mobilenet_v1_vggface2.safetensors"
YUNET = f"{WORK}/kit/weights/yunet_n_wider_face.onnx"
CSV = f"{WORK}/fer2013.csv"
VOTES = f"{WORK}/kit/ferplus/fer2013new.csv"
RUN_FILES = ("config.json", "metrics.json", "metrics.jsonl", "report.html", "model.safetensors", "predictions/*.npz")
# fields of the dry run
DRY_RUN_BOUNDS = 5.0
"""Factor on the bounds on CPU."""
FAST_TUNING = "--xla_gpu_autotune_level=2"
MOBILENET_FLAGS = f"{FAST_TUNING} --xla_gpu_enable_triton_gemm=false"
"""Flags of XLA with which VGG-FER compiled in 17 instead of 28 s, and MobileNetV2 in 51 s instead of minutes."""
EPOCH_LOG = "--config.log_every_steps=448"
NO_WARMUP = "--config.optim.warmup_epochs=0.0"
SMALL_VGG = ("--config.model.widths=(4,4,4,4)", "--config.model.dense=(8,)", "--config.total_epochs=0.02", NO_WARMUP)
SMALL_MOBILENET = ("--config.model.input_size=(32,32)", "--config.total_epochs=0.002", NO_WARMUP)
SMALL_BLOCKS = (*SMALL_MOBILENET, "--config.model.widths=(8,8,8,8)", "--config.model.dense=(8,)")
SMALL_DETECTOR = (
    "--config.data.buckets=((64,64),)",
    "--config.data.eval_buckets=((96,128),(128,96))",
    "--config.data.max_boxes=8",
    "--config.batch_size=2",
    "--config.total_epochs=0.01",
    NO_WARMUP,
)


def session_parts(cut: bool) -> list[Part]:
    """Return all parts, the most useful first; `cut` makes each take seconds on CPU, for the dry run."""
    fer2013, kit = "data/fer2013", f"{WORK}/kit"
    return [
        # name, bound in seconds, commands, what they need, files to bring back
        Part("data", 120, [*data(), *in_lane("benchmark", benchmarks(cut))], [f"{kit}/fer2013"], ["benchmark_*.json"]),
        Part("runs", 260, runs(cut), [fer2013], run_results("fer*")),
        Part("distilled", 150, distilled(cut), [f"{WORK}/fer_vgg_best_0"], run_results("distilled*")),
        Part("speedrun", 130, [speedrun(cut)], [fer2013], ["speedrun/*/*/*.json*"]),
        Part("check", 120, check(cut), [], ["profile/**/*.pb"]),
        Part("deterministic", 60, deterministic(cut)),
        Part("detector", 150, detector(cut), [f"{kit}/widerface", YUNET], run_results("widerface_yunet*")),
    ]


def data() -> list[Command]:
    """Return the commands that prepare FER2013 and FER+."""
    return in_lane("data", [make_csv(), prepare("fer2013", CSV), prepare("ferplus", CSV, f"--votes={VOTES}")])


def runs(cut: bool) -> list[Command]:
    """Return the commands that train classifiers at full length, all at the same time.

    Startup and compilation use the CPU, and training the GPU, so that together they take less time than one by one.
    """
    vgg, mobilenet = (SMALL_VGG, SMALL_MOBILENET) if cut else ((), ())
    vgg, mobilenet = (*vgg, EPOCH_LOG, "--config.eval_every_epochs=4.0"), (*mobilenet, EPOCH_LOG)
    v1 = classifier("fer_mobilenet_v1", "fer_mobilenet_v1:long", f"--config.init_from={MOBILENET_V1}", *mobilenet)
    v2 = classifier("fer_finetune", "fer_finetune:long", f"--config.init_from={MOBILENET}", *mobilenet)
    published = [train("fer_vgg", "fer_vgg", *vgg), script("evaluate", f"--workdir={WORK}/fer_vgg", "--split=test")]
    best = [classifier(f"fer_vgg_best_{n}", "fer_vgg_best", f"--config.seed={n}", *vgg) for n in range(2)]
    return [
        *in_lane("vgg_best", [command for commands in best for command in commands]),
        *in_lane("vgg", published, FAST_TUNING),
        *in_lane("ferplus_vgg", classifier("ferplus_vgg", "ferplus_vgg", *vgg), FAST_TUNING),
        *in_lane("v2", v2, MOBILENET_FLAGS),
        *in_lane("v1", v1, MOBILENET_FLAGS),
    ]


def distilled(cut: bool) -> list[Command]:
    """Return the commands that distill small networks from these runs, stopped ones too, on FER2013 and on FER+."""

    def teachers(*runs: str) -> str:
        names = ",".join(f"'{WORK}/{run}'" for run in runs)
        return f"--config.distillation.teachers=({names},)"

    mobilenet = [f"--config.init_from={MOBILENET}", teachers("fer_vgg_best_0", "fer_mobilenet_v1")]
    pruned = f"{WORK}/ferplus_vgg_pruned.safetensors"
    sizes = ("--widths=4,4,4,4", "--dense=8") if cut else ()
    prune = script("prune", f"--model={WORK}/ferplus_vgg", f"--out={pruned}", *sizes)._replace(creates=pruned)
    narrow = [f"--config.init_from={pruned}", teachers("ferplus_vgg"), "--config.total_epochs=40.0"]
    if cut:
        mobilenet, narrow = [*mobilenet, *SMALL_MOBILENET], [*narrow, *SMALL_VGG]
    return [
        *in_lane("distilled", classifier("distilled", "fer_finetune:distilled", *mobilenet), MOBILENET_FLAGS),
        *in_lane("narrow", [prune, *classifier("distilled_ferplus", "ferplus_vgg:narrow", *narrow)], FAST_TUNING),
    ]


def in_lane(lane: str, commands: Sequence[Command], xla_flags: str = "") -> list[Command]:
    """Return the commands in a lane, with flags of XLA."""
    flags = ["env", f"XLA_FLAGS={xla_flags}"] if xla_flags else []
    return [command._replace(words=[*flags, *command.words], lane=lane) for command in commands]


def script(name: str, *arguments: str) -> Command:
    """Return the command of a script."""
    return Command([sys.executable, f"scripts/{name}.py", *arguments])


def make_csv() -> Command:
    """Return the command that writes the fer2013.csv of the challenge from the sheets of the kit."""
    write = '"$0" "$1" "$2.partial" && mv "$2.partial" "$2"'
    return Command(["sh", "-c", write, sys.executable, f"{WORK}/kit/fer2013/make_csv.py", CSV], CSV)


def prepare(name: str, source: str, *arguments: str) -> Command:
    """Return the command that prepares a data set in data/, where it may be already."""
    return script("prepare_data", name, f"--source={source}", *arguments)._replace(creates=f"data/{name}")


def train(run: str, config: str, *fields: str) -> Command:
    """Return the command that trains a config, NAME or NAME:VARIANT, in WORK/run."""
    file, colon, variant = config.partition(":")
    return script("train", f"--config=configs/{file}.py{colon}{variant}", f"--workdir={WORK}/{run}", *fields)


def classifier(run: str, config: str, *fields: str) -> list[Command]:
    """Return the commands that train a classifier and write its weights."""
    return [train(run, config, *fields), model_file(run)]


def model_file(run: str) -> Command:
    """Return the command that writes the best weights of a run to its model.safetensors, as float16."""
    program = (
        "import sys; from affect_jax.data import find_dataset; from affect_jax.runs import model_file;"
        " trained = model_file.read(sys.argv[1]); licence = find_dataset(trained.config.data.name).LICENCE;"
        " model_file.write(trained, sys.argv[2], licence)"
    )
    file = f"{WORK}/{run}/model.safetensors"
    return Command(["env", "JAX_PLATFORMS=cpu", sys.executable, "-c", program, f"{WORK}/{run}", file], file)


def check(cut: bool) -> list[Command]:
    """Return the commands that show the GPU and run a step of every network, those that the session trains first."""
    profile = f"--profile={WORK}/profile"
    if cut:
        return [script("launch/gpu_check", profile, "--configs=fer_vgg:demo")]
    trained = "--configs=fer_vgg_best,fer_finetune:long,fer_mobilenet_v1:long,fer_mobilenet"
    others = "--configs=fer_vgg,widerface_yunet,widerface_rcnn,affectnet_resnet"
    return [
        Command(["sh", "-c", "nvidia-smi || true"]),
        script("launch/gpu_check", profile, "--dtypes=bfloat16", trained),
        script("launch/gpu_check", "--dtypes=float32,bfloat16", others),
    ]


def speedrun(cut: bool) -> Command:
    """Return the command that trains for 70 % of val with five seeds in one process."""
    program = (
        "import sys; from runpy import run_path; from affect_jax.process import prepare_process;"
        " from affect_jax.runs.training import train_and_evaluate; prepare_process();"
        " folder, epochs, *seeds = sys.argv[1:]; get_config = run_path('configs/fer_speedrun.py')['get_config']\n"
        "for seed in map(int, seeds):\n"
        "    config = get_config('70'); config.seed = seed\n"
        "    if float(epochs):\n"
        "        config.total_epochs, config.optim.warmup_epochs = float(epochs), 0.0\n"
        "        config.model.widths = (4, 4, 4, 4)\n"
        "    train_and_evaluate(config, f'{folder}/seed{seed}')"
    )
    seeds = ["0"] if cut else ["0", "1", "2", "3", "4"]
    return Command([sys.executable, "-c", program, f"{WORK}/speedrun/70", "0.02" if cut else "0", *seeds])


def benchmarks(cut: bool) -> list[Command]:
    """Return the commands that compare two networks with PyTorch, which gets half of the GPU's memory."""
    commands = []
    for config, dtype, batch_size in (
        ("fer_vgg", "bfloat16", 512),
        ("fer_vgg", "float32", 64),
    ):
        file = f"{WORK}/benchmark_{config}_{dtype}_{batch_size}.json"
        fields = f"--config.dtype={dtype}", f"--config.batch_size={batch_size}", "--config.data.name=drawn_faces"
        works = "--works=step"
        command = script(
            "benchmark", f"--config=configs/{config}.py", "--compare=torch", works, f"--out={file}", *fields
        )
        commands.append(Command(["env", "XLA_PYTHON_CLIENT_MEM_FRACTION=0.5", *command.words], file))
    if cut:  # without torch.compile, which takes minutes on CPU
        quick = [*SMALL_VGG[:2], "--config.batch_size=8", "--rounds=1"]
        return [commands[0]._replace(words=["env", "TORCHDYNAMO_DISABLE=1", *commands[0].words, *quick])]
    return commands


def detector(cut: bool) -> list[Command]:
    """Return the commands that train the small detector, first its second stage, then both."""
    fields = SMALL_DETECTOR if cut else ()
    run, whole = "widerface_yunet", "widerface_yunet_whole"
    return [
        prepare("widerface", f"{WORK}/kit/widerface"),
        train(run, "widerface_yunet", f"--config.init_from={YUNET}", *fields),
        train(whole, "widerface_yunet:whole", f"--config.init_from={WORK}/{run}", *fields),
        script("evaluate", f"--workdir={WORK}/{whole}", "--dark"),
        model_file(whole),
    ]


def deterministic(cut: bool) -> list[Command]:
    """Return the commands that train twice with one seed and compare the probabilities bit by bit."""
    compare = (
        "import sys, numpy; a, b = (numpy.load(f'{run}/predictions/val.npz')['probs'] for run in sys.argv[1:]);"
        " sys.exit(None if (a == b).all() else f'they differ by up to {abs(a - b).max()}')"
    )
    fields = ["--config.total_epochs=0.1", NO_WARMUP] if cut else []
    runs = [f"{WORK}/deterministic_{letter}" for letter in "ab"]
    trainings = [train(Path(run).name, "fer_vgg:demo", "--deterministic", *fields) for run in runs]
    return [*trainings, Command([sys.executable, "-c", compare, *runs])]


def run_results(run: str) -> list[str]:
    """Return the patterns of the files of a run to bring back."""
    return [f"{run}/{name}" for name in RUN_FILES]


# ---- The loop ----


def run_parts(
    parts: Sequence[Part], work: Path, out: Path, budget_s: float, environment: dict[str, str]
) -> dict[str, dict]:
    """Run the parts within the budget, in order; return the state of each: "status", "seconds" and "note".

    Further rounds resume the stopped parts, each with its bound again. The states are kept in WORK/parts.json.
    """
    end = time.monotonic() + budget_s
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    file = work / "parts.json"
    states = json.loads(file.read_text()) if file.exists() else {}
    for part in parts:
        states.setdefault(part.name, {"status": "not started", "seconds": 0.0, "note": ""})
    waiting, has_run = list(parts), True
    while has_run:
        waiting, has_run = [part for part in waiting if states[part.name]["status"] != "done"], False
        for part in list(waiting):
            start, state = time.monotonic(), states[part.name]
            left = end - start - GRACE_S
            if left < LEAST_S:
                return states
            status, note = run_part(part, work / f"{part.name}.log", min(part.bound_s, left), environment)
            state.update(status=status, note=note, seconds=round(state["seconds"] + time.monotonic() - start, 1))
            print(describe(part.name, state), flush=True)
            file.write_text(json.dumps(states, indent=1))
            results = [pattern for part in parts for pattern in part.results]
            bring_back(out, "session", work, ["parts.json", "*.log", *results])
            has_run |= status in ("done", "stopped")
            if status == "failed":
                waiting.remove(part)
    return states


def run_part(part: Part, log: Path, bound_s: float, environment: dict[str, str]) -> tuple[str, str]:
    """Run the commands of a part for at most `bound_s` seconds; return its status and a note.

    The status is "done", "stopped", "failed" with the exit status and the last line of the output, or "absent" with
    what is missing. Each lane of the part has a log; that of LANE is NAME_LANE.log instead of NAME.log.
    """
    if missing := [name for name in part.needs if not (ROOT / name).exists()]:
        return "absent", f"no {', '.join(missing)}"
    lanes: dict[str, list[Command]] = {}
    for command in part.commands:
        lanes.setdefault(command.lane, []).append(command)
    if len(lanes) > 1:  # they share the memory of the GPU
        environment = environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

    running: set[subprocess.Popen] = set()

    def run(lane: str) -> tuple[str, str]:
        file = log.with_stem(f"{log.stem}_{lane}") if lane else log
        status, note = run_lane(lanes[lane], file, bound_s, environment, running)
        return status, f"{lane}: {note}" if lane and note else note

    with ThreadPoolExecutor(len(lanes)) as pool:
        try:
            ended = list(pool.map(run, lanes))
        except BaseException:  # a signal ends the session: without their processes the threads end too
            for process in running.copy():
                os.killpg(process.pid, signal.SIGKILL)
            raise
    status = next(status for status in ("failed", "stopped", "done") if status in dict(ended))
    return status, "; ".join(note for _, note in ended if note)


def run_lane(
    commands: Sequence[Command],
    log: Path,
    bound_s: float,
    environment: dict[str, str],
    running: set[subprocess.Popen],
) -> tuple[str, str]:
    """Run commands in order for at most `bound_s` seconds; return the status and a note, as run_part does.

    The process that runs is in the set `running`.
    """
    end = time.monotonic() + bound_s
    with log.open("a") as output:
        for command in commands:
            if command.creates and (ROOT / command.creates).exists():
                continue
            print(f"$ {' '.join(command.words)}", file=output, flush=True)
            code = run_bounded(command.words, output, end - time.monotonic(), environment, running)
            if code is None:
                return "stopped", f"after {bound_s:.0f} s"
            if code:
                return "failed", f"exit status {code}: {last_line(log)}"
    return "done", ""


def run_bounded(
    words: Sequence[str], output, bound_s: float, environment: dict[str, str], running: set[subprocess.Popen]
) -> int | None:
    """Run a command and its children; return its exit status, or None if it was stopped at the bound.

    A stopped command gets SIGTERM, and SIGKILL GRACE_S seconds later.
    """
    try:
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        print(error, file=output, flush=True)
        return 127
    running.add(process)
    try:
        return process.wait(max(bound_s, 0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        return None
    finally:
        with suppress(ProcessLookupError):  # also children that outlive the command
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        running.remove(process)


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, without progress bars and places in XLA's source."""
    text = log.read_text(errors="replace").replace("\r", "\n")
    end = text.rfind(XLA_PLACES)
    lines = [line.strip() for line in text[: end if end >= 0 else None].splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def describe(name: str, state: dict) -> str:
    """Return the line of a part in the table."""
    return f"{name:18} {state['status']:12} {state['seconds']:7.1f} s  {state['note']}".rstrip()


def bring_back(out: Path, name: str, work: Path, patterns: Sequence[str]) -> None:
    """Write the files that match to archives NAME_0.tar.gz, NAME_1.tar.gz and so on of at most MOST_BYTES.

    Small files come first. Files that are too large, or for which MOST_ARCHIVES are too few, are named.
    """
    files = {file for pattern in patterns for file in work.glob(pattern) if file.is_file()}
    archives, size = [[]], 0
    for file in sorted(files, key=lambda file: (file.stat().st_size, file)):
        bytes_of_file = file.stat().st_size + 1024  # before compression, which hardly shrinks weights
        is_full = size + bytes_of_file > MOST_BYTES
        if bytes_of_file > MOST_BYTES or (is_full and len(archives) == MOST_ARCHIVES):
            print(f"{name} lacks {file.relative_to(work)}: too large for the way back", flush=True)
            continue
        if is_full:
            archives.append([])
            size = 0
        archives[-1].append(file)
        size += bytes_of_file
    for number, files in enumerate(archives):
        temporary = work / f"{name}_{number}.tar.gz"
        with tarfile.open(temporary, "w:gz") as tar:
            for file in files:
                tar.add(file, file.relative_to(work))
        shutil.move(temporary, out / temporary.name)


# ---- The kit ----


def gather_kit(kit: Path, target: Path) -> list[str]:
    """Copy the pieces of the kit that have arrived completely to `target`; return a line for each piece.

    Transfers bring the folders call1, call2, ...; the manifest in call1 lists all files. What arrived earlier stays.
    """
    manifest = kit / "call1" / "manifest.json"
    if not manifest.exists():
        return [f"{kit.name} has no call1/manifest.json: only what is installed and prepared here is used"]
    found = {
        file.relative_to(call).as_posix(): file
        for call in kit.glob("call*")
        for file in call.rglob("*")
        if file.is_file()
    }
    listed = json.loads(manifest.read_text())["files"]
    lines = []
    for piece in dict.fromkeys(name.split("/")[0] for name in listed):
        names = [name for name in listed if name.startswith(f"{piece}/")]
        here = [name for name in names if name in found and found[name].stat().st_size == listed[name]]
        lines.append(f"{piece}: {len(here)} of {len(names)} files")
        if len(here) == len(names) and not (target / piece).exists():
            partial = target / f"{piece}.partial"
            for name in names:
                copy = partial / name.partition("/")[2]
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found[name], copy)
            partial.rename(target / piece)
    return lines


def install_wheels(folder: Path, site: Path) -> str:
    """Install the wheels of packages that this Python lacks into `site`, without a network; return a line."""
    wheels = [wheel for wheel in sorted(folder.glob("*.whl")) if not is_installed(wheel.name.split("-")[0])]
    if site.exists() or not wheels:
        return f"{site}: {'installed before' if site.exists() else 'no wheels to install'}"
    partial = site.with_name(f"{site.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
    subprocess.run([sys.executable, *install, f"--target={partial}", *map(str, wheels)], check=True)
    partial.rename(site)
    return f"{site}: installed {', '.join(wheel.name.split('-')[0] for wheel in wheels)}"


def is_installed(name: str) -> bool:
    """Return True if this Python has the package, whatever its version."""
    try:
        importlib.metadata.version(re.sub(r"[-_.]+", "-", name))
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    end = time.monotonic() + float(os.environ.get("BUDGET_S", "660"))
    dry_run = os.environ.get("DRY_RUN", "0") != "0"
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    os.chdir(ROOT)
    print("\n".join(gather_kit(KIT, WORK / "kit")), flush=True)
    for piece in ("wheels", "video"):
        print(install_wheels(WORK / "kit" / piece, WORK / f"site_{piece}"), flush=True)
    paths = [ROOT, ROOT / WORK / "site_wheels", ROOT / WORK / "site_video", os.environ.get("PYTHONPATH")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / WORK / "xla"),
        "JAX_TRACEBACK_FILTERING": "off",  # the last line of the output is then the error
        "JAX_PLATFORMS": "cuda,cpu",
    }
    if dry_run:
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles faster
    parts = [part for part in session_parts(dry_run) if part.name in sys.argv[1:] or not sys.argv[1:]]
    if dry_run:
        parts = [part._replace(bound_s=DRY_RUN_BOUNDS * part.bound_s) for part in parts]
    out = Path(os.environ.get("OUT", WORK / "out"))
    states = run_parts(parts, WORK, out, end - time.monotonic(), environment)
    print("\n".join(["", *(describe(part.name, states[part.name]) for part in parts)]))
    sys.exit(any(state["status"] == "failed" for state in states.values()))


if __name__ == "__main__":
    main()
