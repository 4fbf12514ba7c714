"""Parts of a GPU session: the commands of each, what they need and which files they bring back.

All commands run in the repository's folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from gpu_loop import Command, Part

WORK = Path("runs/gpu")
"""Folder of the session."""
MOBILENET = f"{WORK}/kit/weights/mobilenet_v2_imagenet_features.safetensors"
MOBILENET_V1 = f"{WORK}/kit/weights/mobilenet_v1_vggface2.safetensors"
YUNET = f"{WORK}/kit/weights/yunet_n_wider_face.onnx"
CSV = f"{WORK}/fer2013.csv"
VOTES = f"{WORK}/kit/ferplus/fer2013new.csv"
RUN_FILES = ("config.json", "metrics.json", "metrics.jsonl", "report.html", "model.safetensors", "predictions/*.npz")
FAST_TUNING = "--xla_gpu_autotune_level=2"
MOBILENET_FLAGS = f"{FAST_TUNING} --xla_gpu_enable_triton_gemm=false"
"""Flags of XLA with which VGG-FER compiled in 17 instead of 28 s, and MobileNetV2 in 51 s instead of minutes."""
EPOCH_LOG = "--config.log_every_steps=448"
NO_WARMUP = "--config.optim.warmup_epochs=0.0"
# fields of the dry run
SMALL_VGG = ("--config.model.widths=(4,4,4,4)", "--config.model.dense=(8,)", "--config.total_epochs=0.02", NO_WARMUP)
SMALL_MOBILENET = ("--config.model.input_size=(32,32)", "--config.total_epochs=0.002", NO_WARMUP)
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
        Part("data", 120, data(), [f"{kit}/fer2013"]),
        Part("runs", 260, runs(cut), [fer2013], run_results("fer*")),
        Part("continued", 150, continued(cut), [f"{WORK}/fer_vgg_best_0"], run_results("continued*")),
        Part("benchmark", 120, benchmarks(cut), [], ["benchmark_*.json"]),
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
    best = [classifier(f"fer_vgg_best_{n}", "fer_vgg_best", f"--config.seed={n}", *vgg) for n in range(2)]
    return [
        *in_lane("vgg_best", [command for commands in best for command in commands]),
        *in_lane("vgg", classifier("fer_vgg", "fer_vgg", *vgg), FAST_TUNING),
        *in_lane("ferplus_vgg", classifier("ferplus_vgg", "ferplus_vgg", *vgg), FAST_TUNING),
        *in_lane("v2", v2, MOBILENET_FLAGS),
        *in_lane("v1", v1, MOBILENET_FLAGS),
    ]


def continued(cut: bool) -> list[Command]:
    """Return the commands that continue from these runs, stopped ones too.

    Two small networks are distilled from them, on FER2013 and on FER+, and the network of FER+ is trained on FER2013.
    """

    def teachers(*runs: str) -> str:
        names = ",".join(f"'{WORK}/{run}'" for run in runs)
        return f"--config.distillation.teachers=({names},)"

    mobilenet = [f"--config.init_from={MOBILENET}", teachers("fer_vgg_best_0", "fer_mobilenet_v1")]
    pruned = f"{WORK}/ferplus_vgg_pruned.safetensors"
    sizes = ("--widths=4,4,4,4", "--dense=8") if cut else ()
    prune = script("prune", f"--model={WORK}/ferplus_vgg", f"--out={pruned}", *sizes)._replace(creates=pruned)
    narrow = [f"--config.init_from={pruned}", teachers("ferplus_vgg"), "--config.total_epochs=40.0"]
    wide = [f"--config.init_from={WORK}/ferplus_vgg", "--config.init_excuse=('logits/.*',)", "--config.mixup_alpha=0.0"]
    wide += ["--config.optim.learning_rate=0.02", "--config.total_epochs=40.0", EPOCH_LOG]
    if cut:
        mobilenet, narrow, wide = [*mobilenet, *SMALL_MOBILENET], [*narrow, *SMALL_VGG], [*wide, *SMALL_VGG]
    return [
        *in_lane("mobilenet", classifier("continued_mobilenet", "fer_finetune:distilled", *mobilenet), MOBILENET_FLAGS),
        *in_lane("narrow", [prune, *classifier("continued_ferplus", "ferplus_vgg:narrow", *narrow)], FAST_TUNING),
        *in_lane("wide", classifier("continued_wide", "fer_vgg_best", *wide), FAST_TUNING),
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
