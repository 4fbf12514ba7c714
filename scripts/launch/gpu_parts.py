"""Parts of a GPU session: the commands of each, what they need and which files they bring back.

All commands run in the repository's folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from gpu_loop import Command, Part

WORK = Path("runs/gpu")
"""Folder of the session."""
YUNET = f"{WORK}/kit/weights/yunet_n_wider_face.onnx"
CSV = f"{WORK}/fer2013.csv"
VOTES = f"{WORK}/kit/ferplus/fer2013new.csv"
RUN_FILES = ("config.json", "metrics.json", "metrics.jsonl", "report.html", "model.safetensors", "predictions/*.npz")
FAST_TUNING = "--xla_gpu_autotune_level=2"
"""Flag of XLA with which VGG-FER compiled in 17 instead of 28 s."""
RARE_LOG = "--config.log_every_steps=448"
NO_WARMUP = "--config.optim.warmup_epochs=0.0"
NEW_LOGITS = "--config.init_excuse=('logits/.*',)"
GENTLE_HEAD = "--config.optim.multipliers=(('(dense.*|logits)/.*',0.1),)"
"""Field that gives dense layers, whose inputs are many positive features, a tenth of the learning rate."""
STUDENT = (
    "--config.dtype=bfloat16",
    "--config.total_epochs=60.0",
    "--config.optim.learning_rate=0.05",
    "--config.optim.warmup_epochs=2.0",
    GENTLE_HEAD,
    "--config.ema_decay=0.999",
)
"""Fields of a narrow network that is distilled on an accelerator instead of two CPU cores."""
STRONGER = ("--config.model.dropout=0.5", "--config.augment.rotation=15.0", "--config.augment.erase_probability=0.25")
ADAMW = ("--config.optim.name=adamw", "--config.optim.nesterov=False", "--config.optim.weight_decay=0.05")
SPEEDRUN_TRIALS = {
    "sgd_0.05_full_head": ("--config.optim.learning_rate=0.05",),
    "sgd_0.05": (GENTLE_HEAD, "--config.optim.learning_rate=0.05"),
    "sgd_0.1": (GENTLE_HEAD, "--config.optim.learning_rate=0.1"),
    "sgd_0.2": (GENTLE_HEAD, "--config.optim.learning_rate=0.2"),
    "adamw": (GENTLE_HEAD, *ADAMW, "--config.optim.learning_rate=0.003"),
    "adamw_regularized": (GENTLE_HEAD, *ADAMW, "--config.optim.learning_rate=0.003", *STRONGER),
}
"""Fields of each trial of the speedrun."""
MODEL_FILE = (
    "import sys; from affect_jax.data import find_dataset;"
    " from affect_jax.runs.model_file import load_trained, save_trained;"
    " trained = load_trained(sys.argv[1]); licence = find_dataset(trained.config.data.name).LICENCE;"
    " save_trained(trained, sys.argv[2], licence)"
)
"""Program that writes the weights of a run: RUN FILE."""
# fields of the dry run
SMALL_VGG = ("--config.model.widths=(4,4,4,4)", "--config.model.dense=(8,)", "--config.total_epochs=0.02", NO_WARMUP)
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
    trials, trial_results = f"{WORK}/speedrun", ["speedrun/*/*.json*", "speedrun_seeds/*/*/*.json*"]
    return [
        # name, bound in seconds, commands, what they need, files to bring back
        Part("data", 120, data(), [f"{kit}/fer2013"]),
        Part("runs", 480, runs(cut), [fer2013], run_results("fer*") + run_results("fer_student_seeds/*/*")),
        Part("speedrun", 130, [speedrun(cut)], [trials], trial_results),
        Part("benchmark", 120, benchmarks(cut), [], ["benchmark_*.json"]),
        Part("check", 120, check(cut), [], ["profile/**/*.pb"]),
        Part("deterministic", 60, deterministic(cut)),
        Part("detector", 150, detector(cut), [f"{kit}/widerface", YUNET], run_results("widerface_yunet*")),
    ]


def data() -> list[Command]:
    """Return the commands that prepare FER2013 and FER+."""
    return in_lane("data", [make_csv(), prepare("fer2013", CSV), prepare("ferplus", CSV, f"--votes={VOTES}")])


def runs(cut: bool) -> list[Command]:
    """Return the commands that train classifiers at full length, in lanes at the same time.

    Startup and compilation use the CPU, and training the GPU, so that together they take less time than one by one.
    Four wide networks are trained on FER2013 and two on FER+. Narrow networks, of the size of the bundled ones, are
    distilled from them, on FER+ with three seeds and on FER2013 with five. Six settings of the speedrun are tried.
    """
    fields = (*(SMALL_VGG if cut else ()), RARE_LOG, "--config.eval_every_epochs=4.0")
    seeds = range(2)
    ferplus = [classifier(f"ferplus_vgg_{n}", "ferplus_vgg", f"--config.seed={n}", *fields) for n in seeds]
    heads = (), (GENTLE_HEAD,)
    best = [classifier(f"fer_vgg_best_{n}", "fer_vgg_best", f"--config.seed={n}", *heads[n], *fields) for n in seeds]
    lanes = {
        "ferplus": [command for commands in ferplus for command in commands],
        "best": [command for commands in best for command in commands],
        "wide": wide_from_ferplus(fields),
        "ferplus_students": ferplus_students(cut, fields),
        "fer_students": fer_students(cut, fields),
    }
    trained = [command for lane, commands in lanes.items() for command in in_lane(lane, commands, FAST_TUNING)]
    trials = [command for lane, commands in speedrun_trials(cut).items() for command in in_lane(lane, commands)]
    return [*trained, *trials]


def wide_from_ferplus(fields: Sequence[str]) -> list[Command]:
    """Return the commands that continue the first network of FER+ on FER2013, with two settings."""
    teacher = weights_of("ferplus_vgg_0")
    fields = f"--config.init_from={teacher}", NEW_LOGITS, "--config.total_epochs=40.0", *fields
    low_rate = "--config.mixup_alpha=0.0", "--config.optim.learning_rate=0.02"
    commands = classifier("fer_wide", "fer_vgg_best", *low_rate, *fields)
    return after([teacher], [*commands, *classifier("fer_wide_mixup", "fer_vgg_best", *fields)])


def ferplus_students(cut: bool, fields: Sequence[str]) -> list[Command]:
    """Return the commands that distill the networks of FER+ into the most important channels of one of them."""
    teachers, pruned = [weights_of(f"ferplus_vgg_{n}") for n in range(2)], f"{WORK}/ferplus_vgg_pruned.safetensors"
    sizes = ("--widths=4,4,4,4", "--dense=8") if cut else ()
    commands = [script("prune", f"--model={teachers[0]}", f"--out={pruned}", *sizes)._replace(creates=pruned)]
    for seed in range(3):
        name = f"ferplus_student_{seed}"
        student = f"--config.init_from={pruned}", distilled_from(teachers), f"--config.seed={seed}", *STUDENT, *fields
        commands += classifier(name, "ferplus_vgg:narrow", *student)
    return after(teachers, commands)


def fer_students(cut: bool, fields: Sequence[str]) -> list[Command]:
    """Return the commands that distill the networks of FER2013 into narrow ones.

    The students start from the bundled network of FER+, with two settings. The better one on val has five seeds.
    """
    teachers = [weights_of(name) for name in ("fer_vgg_best_0", "fer_vgg_best_1", "fer_wide")]
    bundled = "--config.init_from=affect_jax/predict/weights/ferplus_vgg.safetensors", NEW_LOGITS
    start = ("--config.init_from=",) if cut else bundled  # the dry run has another size
    student = *start, distilled_from(teachers), *STUDENT
    commands = []
    for name, mixup in (("fer_student", 0.0), ("fer_student_mixup", 0.4)):
        commands += classifier(name, "fer_vgg_best:distilled", f"--config.mixup_alpha={mixup}", *student, *fields)
    commands.append(seeds_of_best("fer_student*", "fer_student_seeds", range(1, 2 if cut else 5)))
    return after(teachers, commands)


def speedrun_trials(cut: bool) -> dict[str, list[Command]]:
    """Return the commands that try settings of the speedrun, in two lanes. A setting that diverges fails."""
    lanes = {}
    for number, (name, fields) in enumerate(list(SPEEDRUN_TRIALS.items())[: 2 if cut else None]):
        small = (*SMALL_VGG[:2], "--config.total_epochs=0.1", NO_WARMUP) if cut else ()
        command = train(f"speedrun/{name}", "fer_speedrun:70", *fields, *small)
        lanes.setdefault(f"speedrun_{number % 2}", []).append(command._replace(may_fail=True))
    return lanes


def weights_of(run: str) -> str:
    """Return the path of the weights that `classifier` writes."""
    return f"{WORK}/{run}/model.safetensors"


def distilled_from(teachers: Sequence[str]) -> str:
    """Return the field of a config that names the teachers."""
    return f"--config.distillation.teachers={tuple(teachers)}"


def after(files: Sequence[str], commands: Sequence[Command]) -> list[Command]:
    """Return the commands, the first of which waits for the files."""
    return [commands[0]._replace(waits_for=files), *commands[1:]]


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
    """Return the commands that train a classifier and write its weights, whose file shows that both are done."""
    return [train(run, config, *fields)._replace(creates=weights_of(run)), model_file(run)]


def model_file(run: str) -> Command:
    """Return the command that writes the best weights of a run to its model.safetensors, as float16."""
    file = weights_of(run)
    return Command(["env", "JAX_PLATFORMS=cpu", sys.executable, "-c", MODEL_FILE, f"{WORK}/{run}", file], file)


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
    """Return the command that trains the trial of the speedrun that is best on val again, with five seeds."""
    return seeds_of_best("speedrun/*", "speedrun_seeds", range(1 if cut else 5))


def seeds_of_best(runs: str, out: str, seeds: Sequence[int]) -> Command:
    """Return the command that trains the best of these runs on val again, with other seeds."""
    numbers = ",".join(map(str, seeds))
    return script("launch/gpu_seeds", f"--runs={WORK}/{runs}", f"--out={WORK}/{out}", f"--seeds={numbers}")


def benchmarks(cut: bool) -> list[Command]:
    """Return the commands that compare VGG-FER with PyTorch, in bfloat16 and in float32.

    PyTorch gets half of the GPU's memory.
    """
    commands = []
    for dtype, batch_size in (("bfloat16", 512), ("float32", 64)):
        file = f"{WORK}/benchmark_fer_vgg_{dtype}_{batch_size}.json"
        options = "--config=configs/fer_vgg.py", "--compare=torch", "--works=step", f"--out={file}"
        fields = f"--config.dtype={dtype}", f"--config.batch_size={batch_size}", "--config.data.name=drawn_faces"
        command = script("benchmark", *options, *fields)
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
