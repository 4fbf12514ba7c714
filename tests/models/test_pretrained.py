"""Features with others' weights are held against those that reference/make_reference.py took from others' networks."""

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
from affect_jax.models.pretrained import check_options, load_pretrained, merge, named_weights
from affect_jax.models.resnet import ResNetBackbone

REFERENCE = Path(__file__).parent / "reference"
NAMES = json.loads((REFERENCE / "names.json").read_text())
FEATURES = np.load(REFERENCE / "features.npz")
IMAGENET = Path(__file__).parents[2] / "../shared/data/weights"

needs_imagenet_files = pytest.mark.skipif(
    not IMAGENET.is_dir(), reason="the ImageNet weights are not in ../shared/data/weights"
)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def ones(*shape):
    return np.ones(shape, np.float32)


def shapes_of(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images(), False))


def assert_features_equal(network, found, rtol=0.0):
    """All taps that the reference has of this network, within 1e-4 and `rtol` of the value."""
    wanted = {name.rpartition("/")[2]: FEATURES[name] for name in FEATURES if name.startswith(f"{network}/")}
    assert wanted and wanted.keys() <= found.keys()
    for tap, expected in wanted.items():
        ours = np.asarray(found[tap])
        ours = sample(ours) if ours.ndim == 4 else ours
        np.testing.assert_allclose(ours, expected, rtol, atol=1e-4, err_msg=tap)


def features_and_logits(model, pretrained):
    """{tap: feature map} and "logits" of the images, every weight taken from the file."""
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
def test_features_equal_those_of_the_network_that_named_the_weights(network, name, options, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(random_weights(NAMES[network]), file)
    model = build_model(name, num_classes=10, **options)
    # random weights lead to values of up to 35
    assert_features_equal(network, features_and_logits(model, load_pretrained(file)), rtol=1e-5)


@pytest.mark.parametrize("depthwise", ["depthwise_kernel:0", "kernel"])
def test_features_equal_those_of_keras_applications_mobilenet(depthwise, tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    weights = random_weights(NAMES["keras/mobilenet_v2"])
    file = tmp_path / "mobilenet_v2.h5"
    with h5py.File(file, "w") as h5:
        # Keras 2 saves weights alone, with ":0" behind their names; Keras 3 a whole model
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


@needs_imagenet_files
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
def test_features_with_the_imagenet_files_equal_torchs(network, file, backbone):
    pretrained = load_pretrained(IMAGENET / f"{file}.safetensors")
    check_options(backbone, pretrained)
    shapes = {collection: {"backbone": tree} for collection, tree in shapes_of(backbone).items()}
    merged = merge(shapes, pretrained.values)
    variables = {collection: tree["backbone"] for collection, tree in merged.items()}
    assert_features_equal(network, jax.jit(lambda v: backbone.apply(v, images(), False))(variables))


@needs_imagenet_files
def test_a_network_with_other_options_than_the_file_wants_is_refused():
    pretrained = load_pretrained(IMAGENET / "resnet50_imagenet_conv1_to_layer3.safetensors")
    with pytest.raises(ValueError, match=r"bn_epsilon is 1e-05 but was 1.001e-05") as error:
        check_options(build_model("resnet50", num_classes=7), pretrained)
    assert "stride_in_1x1 is False but was True" in str(error.value)


def test_float16_weights_of_timms_and_torchvisions_resnet_fill_ours_as_float32(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({name: np.ones(shape, np.float16) for name, shape in NAMES["torchvision/resnet34"].items()}, file)
    model = build_model("resnet34", num_classes=1000)
    merged = merge(shapes_of(model), load_pretrained(file).values)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {np.dtype(np.float32)}


def test_bfloat16_weights_are_read_as_float32(tmp_path):
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


def test_one_error_lists_what_is_missing_extra_and_misshapen():
    weights = {"backbone/conv/kernel": ones(3, 3), "backbone/se/kernel": ones(5), "classifier/kernel": ones(4, 8)}
    with pytest.raises(ValueError, match=r"model\.pth: 3 do not fit") as error:
        merge(VARIABLES, weights, source="model.pth")
    listed = str(error.value).splitlines()[1:]
    assert listed == [
        "  extra: backbone/se/kernel (5,)",
        "  misshapen: classifier/kernel is (4, 8), the network's is (4, 7)",
        "  missing: backbone/bn/mean (3,)",
    ]


def test_only_a_regex_that_matches_the_whole_name_excuses():
    weights = FITTING | {"classifier/kernel": ones(4, 1000), "backbone/se/kernel": ones(5)}
    with pytest.raises(ValueError, match="classifier/kernel") as error:
        merge(VARIABLES, weights, excuse=("classifier", "backbone/se/.*"))
    assert "backbone/se" not in str(error.value)
    merged = named_weights(merge(VARIABLES, weights, excuse=("classifier/.*", ".*/se/.*")))
    assert merged.keys() == FITTING.keys()
    np.testing.assert_array_equal(merged["classifier/kernel"], VARIABLES["params"]["classifier"]["kernel"])
    np.testing.assert_array_equal(merged["backbone/conv/kernel"], 1)


def test_an_excuse_for_everything_is_no_load():
    with pytest.raises(ValueError, match="not one weight is left to load"):
        merge(VARIABLES, {"other/kernel": ones(3)}, excuse=(".*",))


def test_what_a_naming_does_not_know_is_extra_under_its_own_name(tmp_path):
    file = tmp_path / "model.safetensors"
    weights = random_weights(NAMES["torchvision/mobilenet_v2"])
    save_file(weights | {"features.18.se.weight": ones(3)}, file)
    model = build_model("mobilenet_v2", num_classes=10, width_multiplier=0.35)
    with pytest.raises(ValueError, match=r"1 do not fit the network\n  extra: features.18.se.weight \(3,\)"):
        merge(shapes_of(model), load_pretrained(file).values)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere.safetensors", "no file 'nowhere.safetensors'; a file on the hub is hf://"),
        ("https://a.org/b.pth", "unknown kind of reference 'https://a.org/b.pth'; known are"),
        ("hf://org/file-without-repository", "unknown kind of reference"),
    ],
)
def test_a_reference_that_is_none_is_explained(reference, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained(reference)


def test_a_file_that_holds_no_weights_we_know_is_named(tmp_path):
    files = {name: tmp_path / name for name in ("notes.txt", "broken.safetensors", "other.safetensors")}
    files["notes.txt"].write_text("no weights")
    files["broken.safetensors"].write_bytes(b"\x10\0\0\0\0\0\0\0{")
    save_file({"patch_embed.weight": ones(3)}, files["other.safetensors"])
    for name, message in [
        ("notes.txt", "ends in .safetensors, .pth, .pt, .h5, not '.txt'"),
        ("broken.safetensors", "not a whole safetensors file"),
        ("other.safetensors", r"not a naming that we know .*begins with \['patch_embed.weight'\]"),
    ]:
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            load_pretrained(files[name])


def fake_hub(monkeypatch, download):
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))


def test_timm_models_come_through_the_hubs_cache_with_their_own_preprocessing(tmp_path, monkeypatch):
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


def test_no_network_and_no_hub_package_are_explained(monkeypatch):
    def download(repository, name, revision):
        raise FileNotFoundError("cannot find the requested files in the local cache")

    fake_hub(monkeypatch, download)
    with pytest.raises(ValueError, match=r"w.safetensors of org/repo is neither in huggingface_hub's cache .*network"):
        load_pretrained("hf://org/repo/w.safetensors")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        load_pretrained("hf://org/repo/w.safetensors")


@pytest.mark.parametrize(("suffix", "package"), [(".pth", "torch"), (".h5", "h5py")])
def test_a_format_whose_package_is_absent_says_what_to_install(suffix, package, tmp_path, monkeypatch):
    file = tmp_path / f"model{suffix}"
    file.touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        load_pretrained(file)
