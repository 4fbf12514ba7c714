"""The causes of a fast start: what is imported, traced and compiled, and what is done at the same time."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from run_script import ROOT

from affect_jax import process
from affect_jax.data import pipeline
from affect_jax.models.pretrained import Pretrained, load_pretrained, named_weights
from affect_jax.predict import programs
from affect_jax.predict.networks import Classifier, Detector
from affect_jax.predict.programs import Programs
from affect_jax.predict.reader import FaceReader
from affect_jax.runs.model_file import load_trained, save_trained
from affect_jax.tasks import build_task
from affect_jax.train.builders import build_variables
from affect_jax.train.loop import Trainer
from affect_jax.train.state import init_variables

SLOW = {"clu", "grain", "matplotlib", "optax", "orbax", "pycocotools", "scipy", "sklearn", "tensorboardX"}
SLOW |= {"tensorflow_datasets"}
PRINT_IMPORTS = """
import runpy, sys
sys.argv = [{script!r}, "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    print("\\n" + " ".join({{name.partition(".")[0] for name in sys.modules}}))
"""


@pytest.mark.parametrize("script", ["predict", "train", "evaluate"])
def test_script_imports_no_slow_package_before_it_needs_it(script):
    program = PRINT_IMPORTS.format(script=f"scripts/{script}.py")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(done.stdout.splitlines()[-1].split())
    assert "jax" in imported and imported & SLOW == set()


@pytest.fixture
def empty_cache(tmp_path):
    """Let JAX's cache folder be an empty one."""
    previous = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", previous)


def test_network_is_traced_only_if_the_cache_lacks_it(classifier, empty_cache, monkeypatch):
    face, num_traced, export = np.zeros((48, 48, 3), np.uint8), 0, programs.export.export

    def counted_export(predict):
        nonlocal num_traced
        num_traced += 1
        return export(predict)

    monkeypatch.setattr(programs.export, "export", counted_export)
    first, second = Classifier(classifier, 1)([face]), Classifier(classifier, 1)([face])
    np.testing.assert_array_equal(first, second)
    assert num_traced == 1

    config = classifier.config.copy_and_resolve_references()
    config.preprocess.mean = (0.25,)
    for changed in (classifier._replace(config=config), classifier):
        monkeypatch.setattr(programs, "code_and_versions", lambda: "another version of the code")
        assert (Classifier(changed, 1)([face]) == first).all() == (changed is classifier)
    assert num_traced == 3

    empty_cache.joinpath("a_file").touch()
    jax.config.update("jax_compilation_cache_dir", str(empty_cache / "a_file" / "folder"))
    np.testing.assert_array_equal(Classifier(classifier, 1)([face]), first)  # the cache cannot be written
    assert num_traced == 4


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:500], lambda content: bytes(900)])
def test_damaged_file_of_a_traced_network_is_written_again(classifier, empty_cache, damage):
    face = np.zeros((48, 48, 3), np.uint8)
    first = Classifier(classifier, 1)([face])
    (file,) = empty_cache.glob("*.stablehlo")
    content = file.read_bytes()
    file.write_bytes(damage(content))
    np.testing.assert_array_equal(Classifier(classifier, 1)([face]), first)
    assert file.read_bytes() == content


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-5]])
def test_damaged_program_in_the_cache_is_written_again(tmp_path, damage):
    program = [
        "import jax, sys",
        "from affect_jax.process import prepare_process",
        "prepare_process()",
        "print(jax.jit(lambda x: x + 1)(1), jax.jit(lambda x: x * 2)(3), jax.jit(jax.numpy.sin)(0.0))",
    ]

    def start():
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, env=environment
        )
        assert (done.stdout, done.stderr) == ("2 6 0.0\n", "")
        return {file.name: file.stat().st_size for file in tmp_path.glob("*-cache")}

    sizes = start()
    assert len(sizes) == 3
    for file in tmp_path.glob("*-cache"):
        file.write_bytes(damage(file.read_bytes()))
    assert start() == sizes


def test_cache_that_cannot_be_created_is_one_line(empty_cache, capsys):
    (empty_cache / "file").touch()
    jax.config.update("jax_compilation_cache_dir", str(empty_cache / "file" / "xla"))
    process.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    printed = capsys.readouterr().err
    assert "xla (Not a directory); set JAX_COMPILATION_CACHE_DIR to a folder" in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"JAX_PLATFORMS": "gpux"}, "RuntimeError: Unable to initialize backend 'gpux': "),
        ({"JAX_ENABLE_X64": "1"}, "JAX_ENABLE_X64 is switched off: the networks compute in 32 bits"),
    ],
)
def test_unsuitable_settings_of_jax_are_named_in_one_line(variables, line):
    program = "from affect_jax import command_line, process\nimport jax\nwith command_line.one_line_errors():\n"
    program += "    process.prepare_process(); print(jax.devices(), jax.numpy.zeros(1).dtype)"
    command, environment = [sys.executable, "-c", program], {**os.environ, **variables}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert done.returncode == ("JAX_PLATFORMS" in variables) and ("float32" in done.stdout) != done.returncode


def test_cuda_without_a_gpu_is_an_error_that_names_the_variable(monkeypatch):
    previous = jax.config.jax_platforms
    monkeypatch.setattr(process, "NVIDIA_DEVICES", ())
    try:
        jax.config.update("jax_platforms", "cuda")
        with pytest.raises(ValueError, match="JAX_PLATFORMS=cuda, but no NVIDIA GPU is visible"):
            process.prepare_process()
    finally:
        jax.config.update("jax_platforms", previous)


@contextmanager
def counted_programs():
    """Yield a list that grows by one item for each program that is compiled or loaded from the cache."""
    programs = []

    def listen(event: str, seconds: float, **details) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(details)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_model_file_is_read_without_compiling(classifier, tmp_path):
    save_trained(classifier, tmp_path / "model.safetensors", "")
    with counted_programs() as programs:
        load_trained(tmp_path / "model.safetensors")
    assert programs == []


def test_only_variables_that_the_pretrained_weights_lack_are_drawn(classifier, tmp_path):
    save_trained(classifier, tmp_path / "model.safetensors", "")
    config = classifier.config.copy_and_resolve_references()
    config.init_from = "model.safetensors"
    task = build_task(config)
    model, inputs, key = task.build_network(classifier.data), task.network_inputs(classifier.data), jax.random.key(1)
    pretrained = load_pretrained(tmp_path / "model.safetensors")
    with counted_programs() as programs:
        build_variables(config, model, key, inputs, pretrained)
    assert programs == []

    config.init_excuse = ("logits/.*",)
    body = {name: value for name, value in pretrained.values.items() if not name.startswith("logits/")}
    pretrained = Pretrained("model", body, pretrained.preprocess, pretrained.model_options)
    found = named_weights(build_variables(config, model, key, inputs, pretrained))
    drawn = named_weights(init_variables(model, key, inputs))
    assert found.keys() == drawn.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, body.get(name, drawn[name]), err_msg=name)


def test_detector_and_classifier_are_compiled_at_the_same_time(classifier, detector, monkeypatch):
    both, compile_one = threading.Barrier(2, timeout=60), Programs._compile

    def compile_when_both_have_begun(self, *arguments):
        both.wait()
        return compile_one(self, *arguments)

    monkeypatch.setattr(Programs, "_compile", compile_when_both_have_begun)
    read_faces = FaceReader(Classifier(classifier, 1), Detector(detector, 1, 0.5), 1, 0.1, 0.0, 1.0)
    image = np.random.default_rng(0).integers(0, 256, (200, 250, 3), np.uint8)
    (faces,), (again,) = read_faces([image]), read_faces([image])  # nothing is compiled for the second image
    assert faces == again


def test_training_split_is_read_while_the_step_is_compiled(tiny_config, plain_convolutions, monkeypatch):
    compiled, read_all = threading.Event(), pipeline.read_all

    def read_after_compilation(split, name):
        if name == "train":
            assert compiled.wait(timeout=300)
        return read_all(split, name)

    monkeypatch.setattr(pipeline, "read_all", read_after_compilation)
    tiny_config.data.input = "resident"
    trainer = Trainer(tiny_config, build_task(tiny_config))
    trainer.dispatch(SimpleNamespace(say=lambda line: compiled.set() if line.startswith("compiled") else None))
    trainer.close()
    assert trainer.step == 1
