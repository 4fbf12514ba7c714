"""Features are compared with those of torchvision, timm and Keras, which reference/make_reference.py wrote."""

import json
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from reference.deterministic import images, random_weights, sample
from safetensors.flax import save_file as save_jax_file
from safetensors.numpy import save_file

from affect_jax.models import build_model
from affect_jax.models.mobilenet import MobileNetV2Backbone
from affect_jax.models.pretrained import check_options, load_pretrained, merge, named_weights, trained_with
from affect_jax.models.resnet import ResNetBackbone

REFERENCE = Path(__file__).parent / "reference"
NAMES = json.loads((REFERENCE / "names.json").read_text())
FEATURES = np.load(REFERENCE / "features.npz")


@pytest.fixture
def imagenet(shared_data) -> Path:
    """The folder of ImageNet weights; the test is skipped if it does not exist."""
    folder = shared_data / "weights"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent")
    return folder


def zeros(*shape):
    return np.zeros(shape, np.float32)


def ones(*shape):
    return np.ones(shape, np.float32)


def shapes_of(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images(), False))


def assert_features_equal(network, found, rtol=0.0):
    """Compare every feature map of this network in the reference: 1e-4, and `rtol` of the value."""
    expected_features = {name.rpartition("/")[2]: FEATURES[name] for name in FEATURES if name.startswith(f"{network}/")}
    assert expected_features and expected_features.keys() <= found.keys()
    for tap, expected in expected_features.items():
        ours = np.asarray(found[tap])
        ours = sample(ours) if ours.ndim == 4 else ours
        np.testing.assert_allclose(ours, expected, rtol, atol=1e-4, err_msg=tap)


def features_and_logits(model, pretrained):
    """Return {name: feature map} and "logits" of the images, with all weights from the file."""
    check_options(model, pretrained)
    variables = merge(shapes_of(model), pretrained.values)

    @jax.jit
    def apply(variables):
        def is_backbone(module, method):
            return module.name == "backbone"

        logits, state = model.apply(variables, images(), False, capture_intermediates=is_backbone)
        return {**state["intermediates"]["backbone"]["__call__"][0], "logits": logits}

    return apply(variables)


@pytest.mark.parametrize(
    ("network", "name", "options"),
    [
        ("torchvision/mobilenet_v2", "mobilenet_v2", {"width_multiplier": 0.35}),
        ("timm/mobilenet_v2", "mobilenet_v2", {"width_multiplier": 0.35}),
        ("torchvision/resnet18", "resnet18", {}),
        ("torchvision/resnet50", "resnet50", {}),
    ],
)
def test_features_equal_torchvisions_and_timms(network, name, options, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(random_weights(NAMES[network]), file)
    model = build_model(name, num_classes=10, **options)
    # with random weights, values are up to 35
    assert_features_equal(network, features_and_logits(model, load_pretrained(file)), rtol=1e-5)


@pytest.mark.parametrize("depthwise", ["depthwise_kernel:0", "kernel"])
def test_features_equal_keras_mobilenet(depthwise, tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    weights = random_weights(NAMES["keras/mobilenet_v2"])
    file = tmp_path / "mobilenet_v2.h5"
    with h5py.File(file, "w") as h5:
        # Keras 2 saves the weights only, with ":0" after their names; Keras 3 saves a whole model
        root = h5 if depthwise.endswith(":0") else h5.create_group("model_weights")
        for name, value in weights.items():
            layer, weight = name.split("/")
            if depthwise.endswith(":0"):
                weight = depthwise if layer.endswith("depthwise") else f"{weight}:0"
            root[f"{layer}/{layer}/{weight}"] = value
    pretrained = load_pretrained(file)
    assert pretrained.preprocess.mean == pretrained.preprocess.std == (0.5, 0.5, 0.5)
    model = build_model("mobilenet_v2", num_classes=10, width_multiplier=0.35, padding="SAME", bn_epsilon=1e-3)
    assert_features_equal("keras/mobilenet_v2", features_and_logits(model, pretrained))


def test_torch_files_hold_the_same_weights_as_safetensors(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weights = random_weights(NAMES["torchvision/mobilenet_v2"])
    save_file(weights, tmp_path / "model.safetensors")
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    state["features.0.1.num_batches_tracked"] = torch.tensor(3)
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    expected = load_pretrained(tmp_path / "model.safetensors").values
    found = load_pretrained(tmp_path / "model.pth").values
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    ("network", "file", "backbone"),
    [
        ("imagenet/mobilenet_v2", "mobilenet_v2_imagenet_features", MobileNetV2Backbone()),
        (
            "imagenet/resnet50",
            "resnet50_imagenet_conv1_to_layer3",
            ResNetBackbone(50, last="C4", stride_in_1x1=True, bn_epsilon=1.001e-5),
        ),
    ],
)
def test_features_with_imagenet_files_equal_torchvisions(network, file, backbone, imagenet):
    pretrained = load_pretrained(imagenet / f"{file}.safetensors")
    check_options(backbone, pretrained)
    shapes = {collection: {"backbone": tree} for collection, tree in shapes_of(backbone).items()}
    merged = merge(shapes, pretrained.values)
    variables = {collection: tree["backbone"] for collection, tree in merged.items()}
    assert_features_equal(network, jax.jit(lambda v: backbone.apply(v, images(), False))(variables))


def test_network_with_other_fields_than_the_weights_is_refused(imagenet):
    pretrained = load_pretrained(imagenet / "resnet50_imagenet_conv1_to_layer3.safetensors")
    with pytest.raises(ValueError, match=r"bn_epsilon is 1e-05, must be 1.001e-05") as error:
        check_options(build_model("resnet50", num_classes=7), pretrained)
    assert "stride_in_1x1 is False, must be True" in str(error.value)


def test_weights_of_another_run_need_the_fields_that_its_config_leaves_at_their_defaults():
    config = {"model": {"name": "mobilenet_v2"}, "preprocess": {"mean": [0.5], "std": [0.5]}}
    pretrained = trained_with(config, ["face"], {}, "runs/other")
    check_options(build_model("mobilenet_v2", num_classes=7), pretrained)
    keras = build_model("mobilenet_v2", num_classes=7, padding="SAME", bn_epsilon=1e-3)
    with pytest.raises(ValueError, match=r"runs/other needs .* padding is SAME, must be .*; bn_epsilon is 0.001"):
        check_options(keras, pretrained)


def test_float16_weights_of_resnet_are_loaded_as_float32(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({name: np.ones(shape, np.float16) for name, shape in NAMES["torchvision/resnet34"].items()}, file)
    model = build_model("resnet34", num_classes=1000)
    merged = merge(shapes_of(model), load_pretrained(file).values)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {np.dtype(np.float32)}


def test_bfloat16_weights_are_loaded_as_float32(tmp_path):
    file = tmp_path / "model.safetensors"
    weight = jax.numpy.arange(9.0).reshape(1, 1, 3, 3)
    save_jax_file({"conv_stem.weight": weight.astype(jax.numpy.bfloat16)}, file)
    kernel = load_pretrained(file).values["backbone/stem/conv/kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel[:, :, 0, 0], weight[0, 0])


VARIABLES = {
    "params": {"backbone": {"conv": {"kernel": zeros(3, 3)}}, "classifier": {"kernel": zeros(4, 7)}},
    "batch_stats": {"backbone": {"bn": {"mean": zeros(3)}}},
}
FITTING = {"backbone/conv/kernel": ones(3, 3), "backbone/bn/mean": ones(3), "classifier/kernel": ones(4, 7)}


def test_fitting_weights_replace_every_value():
    merged = merge(VARIABLES, FITTING)
    assert jax.tree.structure(merged) == jax.tree.structure(VARIABLES)
    assert all(np.all(value == 1) for value in jax.tree.leaves(merged))


def test_one_error_lists_missing_extra_and_wrongly_shaped_weights():
    weights = {"backbone/conv/kernel": ones(3, 3), "backbone/se/kernel": ones(5), "classifier/kernel": ones(4, 8)}
    with pytest.raises(ValueError, match=r"model\.pth: 3 weights do not fit") as error:
        merge(VARIABLES, weights, source="model.pth")
    listed = str(error.value).splitlines()[1:]
    assert listed == [
        "  extra: backbone/se/kernel (5,)",
        "  missing: backbone/bn/mean (3,)",
        "  wrong shape: classifier/kernel is (4, 8), the network's is (4, 7)",
    ]


def test_regex_that_matches_the_whole_name_excuses():
    weights = FITTING | {"classifier/kernel": ones(4, 1000), "backbone/se/kernel": ones(5)}
    with pytest.raises(ValueError, match="wrong shape: classifier/kernel") as error:
        merge(VARIABLES, weights, excuse=("backbone/se/.*",))
    assert "backbone/se" not in str(error.value)
    with pytest.raises(ValueError, match="init_excuse has regexes that match no name"):
        merge(VARIABLES, weights, excuse=("classifier", "backbone/se/.*"))
    merged = named_weights(merge(VARIABLES, weights, excuse=("classifier/.*", ".*/se/.*")))
    assert merged.keys() == FITTING.keys()
    np.testing.assert_array_equal(merged["classifier/kernel"], VARIABLES["params"]["classifier"]["kernel"])
    np.testing.assert_array_equal(merged["backbone/conv/kernel"], 1)


def test_excuse_of_every_weight_is_refused():
    with pytest.raises(ValueError, match="excuses every weight"):
        merge(VARIABLES, {"other/kernel": ones(3)}, excuse=(".*",))


def test_weight_with_an_unknown_name_is_extra(tmp_path):
    file = tmp_path / "model.safetensors"
    weights = random_weights(NAMES["torchvision/mobilenet_v2"])
    save_file(weights | {"features.18.se.weight": ones(3)}, file)
    model = build_model("mobilenet_v2", num_classes=10, width_multiplier=0.35)
    with pytest.raises(ValueError, match=r"1 weights do not fit the network\n  extra: features.18.se.weight \(3,\)"):
        merge(shapes_of(model), load_pretrained(file).values)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere.safetensors", "no file 'nowhere.safetensors'; for the hub, use hf://"),
        ("https://a.org/b.pth", "unknown kind of reference 'https://a.org/b.pth'; use a local file"),
        ("hf://org/file-without-repository", "unknown kind of reference"),
    ],
)
def test_wrong_reference_is_explained(reference, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained(reference)


def test_file_with_other_content_is_refused(tmp_path):
    files = {name: tmp_path / name for name in ("notes.txt", "broken.safetensors", "other.safetensors")}
    files["notes.txt"].write_text("no weights")
    files["broken.safetensors"].write_bytes(b"\x10\0\0\0\0\0\0\0{")
    save_file({"patch_embed.weight": ones(3)}, files["other.safetensors"])
    for name, message in [
        ("notes.txt", "end in .safetensors, .pth, .pt, .h5, .onnx, not in '.txt'"),
        ("broken.safetensors", "not a complete safetensors file"),
        ("other.safetensors", r"unknown names of weights \['patch_embed.weight'\]"),
    ]:
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            load_pretrained(files[name])


def fake_hub(monkeypatch, download):
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))


def test_timm_model_is_loaded_from_the_hub_with_its_preprocessing(tmp_path, monkeypatch):
    asked = []

    def download(repository, name, revision):
        asked.append((repository, name, revision))
        return str(tmp_path / name)

    fake_hub(monkeypatch, download)
    save_file(random_weights(NAMES["timm/mobilenet_v2"]), tmp_path / "model.safetensors")
    config = {"architecture": "mobilenetv2_035", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    pretrained = load_pretrained("hf-hub:timm/mobilenetv2_035.in1k@v2")
    assert pretrained.preprocess.mean == (0.1, 0.2, 0.3) and pretrained.preprocess.std == (0.4, 0.5, 0.6)
    by_file = load_pretrained("hf://timm/mobilenetv2_035.in1k/model.safetensors")
    assert by_file.preprocess.mean == (0.485, 0.456, 0.406)
    assert asked == [
        ("timm/mobilenetv2_035.in1k", "config.json", "v2"),
        ("timm/mobilenetv2_035.in1k", "model.safetensors", "v2"),
        ("timm/mobilenetv2_035.in1k", "model.safetensors", None),
    ]
    assert named_weights(shapes_of(build_model("mobilenet_v2", num_classes=10, width_multiplier=0.35))).keys() == (
        pretrained.values.keys()
    )


def test_missing_network_and_missing_hub_package_are_explained(monkeypatch):
    def download(repository, name, revision):
        raise FileNotFoundError("cannot find the requested files in the local cache")

    fake_hub(monkeypatch, download)
    with pytest.raises(ValueError, match=r"w.safetensors of org/repo is neither in huggingface_hub's cache .*network"):
        load_pretrained("hf://org/repo/w.safetensors")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        load_pretrained("hf://org/repo/w.safetensors")


@pytest.mark.parametrize(("suffix", "package"), [(".pth", "torch"), (".h5", "h5py")])
def test_missing_package_of_a_file_format_is_named(suffix, package, tmp_path, monkeypatch):
    file = tmp_path / f"model{suffix}"
    file.touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        load_pretrained(file)
