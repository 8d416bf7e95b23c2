"""What the benchmarks count and write. How fast anything is, no test can say."""

import json
import shutil
import socket
import threading
import time
from functools import partial
from pathlib import Path

import paddle
import pytest

from ppcls import build_model
from ppcls.benchmarks import engines as module
from ppcls.benchmarks.load import LOST, Load, request_of
from ppcls.benchmarks.serve import ServerProcess, Sizes
from ppcls.cli import benchmark
from ppcls.complexity import multiply_adds
from ppcls.errors import ConfigError, DataError, ExportError
from ppcls.inference.artifact import read_artifact
from ppcls.inference.engines import installed_engines
from ppcls.inference.timing import time_in_blocks

ROOT = Path(__file__).parent.parent

# Of convolutions and linear layers, exact. torchvision's `_ops` (in 1e9: 0.386, 1.827, 16.414) agree.
MULTIPLY_ADDS = {
    ("EfficientNetB0", 224): 385_814_752,
    ("EfficientNetB0_small", 224): 385_187_552,
    ("EfficientNetB3", 300): 1_827_141_392,
    ("ResNeXt101_32x8d_wsl", 224): 16_414_015_488,
}
SLOW = {
    ("EfficientNetB1", 240): 686_802_832,
    ("EfficientNetB2", 260): 993_561_872,
    ("EfficientNetB4", 380): 4_393_771_024,
    ("EfficientNetB5", 456): 10_266_384_752,
    ("EfficientNetB6", 528): 19_067_593_536,
    ("EfficientNetB7", 600): 37_745_884_192,
}


@pytest.mark.parametrize(
    ("name", "size"), [*MULTIPLY_ADDS, *(pytest.param(*key, marks=pytest.mark.slow) for key in SLOW)]
)
def test_multiply_adds_are_the_published_ones(name, size):
    with paddle.LazyGuard():
        model = build_model(name)
    for parameter in model.state_dict().values():  # what values they have makes no difference
        parameter.set_value(paddle.zeros(parameter.shape))
    model.train()
    assert multiply_adds(model, size, size) == (MULTIPLY_ADDS | SLOW)[name, size]
    assert model.training


def test_multiply_adds_of_layers_by_hand():
    from paddle import nn

    model = nn.Sequential(nn.Conv2D(3, 8, 3, padding=1), nn.Conv2D(8, 8, (1, 5), groups=4), nn.Flatten())
    model.add_sublayer("fc", nn.Linear(8 * 6 * 3, 5))
    # 8 x 6 x 7 outputs of 3 x 9 products, 8 x 6 x 3 outputs of 2 x 5, and 144 x 5
    assert multiply_adds(model, 6, 7) == 8 * 42 * 27 + 8 * 18 * 10 + 144 * 5
    assert not any(layer._forward_post_hooks for layer in model.sublayers())


@pytest.fixture
def options():
    given = ["data.preprocessing.resize_short=36", "data.preprocessing.crop_size=32"]
    given += ["model.num_classes=6", "data.class_names=null", "device=cpu", "data.batch_size=8"]
    config = str(ROOT / "configs" / "EfficientNetB0_small.yaml")
    return ["-c", config, *(part for option in given for part in ("-o", option))]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "time_in_blocks", partial(time_in_blocks, seconds=0.0, pause=0.0))
    monkeypatch.setattr(module, "float32_ceiling", partial(module.float32_ceiling, 0.01))


def test_engines_measures_each_and_writes_json(options, tmp_path, capsys):
    arguments = ["engines", *options, "--rounds", "2", "--json", str(tmp_path / "x.json")]
    assert benchmark.main(arguments) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "x.json").read_text())
    assert (figures["model"], figures["size"], figures["batch_size"]) == ("EfficientNetB0_small", 32, 1)
    assert figures["ceiling_gflops"] > 1 and figures["processor"] and "ppcls" in figures["versions"]
    names = set(figures["rows"])
    assert {"paddle", "paddle without oneDNN", "eager", "predictor, of a picture in memory"} < names
    assert sum(name.startswith("auto (") for name in names) == 1
    for name, row in figures["rows"].items():
        assert 0 < row["milliseconds"]["min"] <= row["milliseconds"]["median"] <= row["milliseconds"]["max"]
        seconds = row["milliseconds"]["median"] / 1000
        share = 2 * figures["multiply_adds"] / seconds / 1e9 / figures["ceiling_gflops"]
        assert row["share_of_ceiling"] == pytest.approx(share)
        assert name in printed
        if name in ("eager", "predictor, of a picture in memory"):
            assert row["difference"] is None
        else:
            assert row["difference"] < 1e-4


def test_engines_takes_programs_of_other_projects(options, exported, tmp_path, capsys):
    arguments = [
        "engines",
        *options,
        "--rounds",
        "1",
        "--no-eager",
        "--engines",
        "paddle",
        "--batch-size",
        "2",
    ]
    arguments += ["--json", str(tmp_path / "x.json"), "--beside"]
    assert benchmark.main([*arguments, str(exported)]) == 0
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    auto = next(name for name in rows if name.startswith("auto ("))
    assert set(rows) == {"paddle", "paddle without oneDNN", f"paddle, {exported}", auto}
    assert all(row["difference"] is None for row in rows.values())
    with pytest.raises(ExportError, match="none.*inference.json"):
        benchmark.main([*arguments, str(tmp_path / "none")])


def test_end2end_measures_and_writes_json(options, exported, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ppcls.benchmarks.end2end.EAGER_SECONDS", 0.1)
    arguments = ["end2end", *options, "-i", str(pictures / "*.png"), "--repeat", "2", "--rounds", "1"]
    assert benchmark.main([*arguments, "--json", str(tmp_path / "x.json")]) == 0
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["files"] == 28 and figures["engine"] in ("onnxruntime", "openvino", "paddle")
    rates = figures["images_per_second"]
    assert set(rates) == {"engine alone", "end to end", "eager network, end to end"}
    share = rates["end to end"]["median"] / rates["engine alone"]["median"]
    assert figures["share_of_engine"] == pytest.approx(share)
    faster = rates["end to end"]["median"] / rates["eager network, end to end"]["median"]
    assert figures["times_the_eager_network"] == pytest.approx(faster)
    assert f"{share:.2f}" in capsys.readouterr().out


def test_end2end_does_what_its_errors_propose(options, pictures, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    arguments = ["end2end", *options, "-i", str(tmp_path), "--rounds", "1", "--no-eager"]
    with pytest.raises(DataError, match=r"text\.jpg.*-o data\.on_error=skip"):
        benchmark.main(arguments)
    with pytest.raises(DataError, match=r"None of the 1 .*text\.jpg"):
        benchmark.main([*arguments, "-o", "data.on_error=skip"])
    shutil.copy(pictures / "picture 00.png", tmp_path)
    assert benchmark.main([*arguments, "-o", "data.on_error=skip"]) == 0


class Answers:
    """A server of one request at a time, with a list of answers: a status and whether the connection stays;
    None: the connection breaks. It keeps the bodies."""

    def __init__(self, answers: list[tuple[int, bool] | None]) -> None:
        self.answers, self.bodies = list(answers), []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while self.answers:
            connection, _ = self.listener.accept()
            with connection, connection.makefile("rb") as file:
                while self.answers and file.readline():
                    while (line := file.readline()) not in (b"\r\n", b""):
                        if line.startswith(b"Content-Length: "):
                            length = int(line.split()[1])
                    self.bodies.append(file.read(length))
                    answer = self.answers.pop(0)
                    if answer is None:
                        break
                    status, stays = answer
                    more = "" if stays else "Connection: close\r\n"
                    head = f"HTTP/1.1 {status} X\r\n{more}content-length: 3\r\n\r\n"
                    connection.sendall(head.encode())
                    time.sleep(0.01)  # in two parts
                    connection.sendall(b"abc")
                    if not stays:
                        break


def test_the_load_generator_follows_its_plan():
    """Each request at its time, by connections that stay, end and break; the bodies in turn."""
    server = Answers([(200, True), (429, False), None, (200, True)])
    load = Load(server.address, [request_of("/x", body) for body in (b"first" * 100_000, b"second")])
    start = time.perf_counter()
    load.open([0.0, 0.2, 0.4, 0.6])
    load.close()
    planned, sent, answered, statuses = zip(*sorted(load.rows), strict=True)
    assert statuses == (200, 429, LOST, 200)
    assert 0 <= planned[0] - start < 0.1
    assert [moment - planned[0] for moment in planned] == pytest.approx([0.0, 0.2, 0.4, 0.6], abs=1e-6)
    assert all(p <= s < a for p, s, a in zip(planned, sent, answered, strict=True))
    assert server.bodies == [b"first" * 100_000, b"second"] * 2


def test_each_client_of_the_load_waits_for_its_answer():
    server = Answers([(200, True)] * 1000)
    load = Load(server.address, [request_of("/x", b"body")])
    load.closed(1, 0.2)
    load.close()
    rows = sorted(load.rows)
    assert 1 < len(rows) <= 20  # of 10 ms each at least
    assert all(first[2] <= second[1] for first, second in zip(rows, rows[1:], strict=False))


def test_serve_measures_a_server_and_writes_json(exported, pictures, tmp_path, capsys, monkeypatch):
    pytest.importorskip("starlette")
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # the server is not behind it
    arguments = ["serve", str(exported), "-i", str(pictures), "--engine", "onnxruntime", "--rounds", "1"]
    arguments += ["--seconds", "0.4", "--requests", "200", "--queue", "8", "--json", str(tmp_path / "x.json")]
    assert benchmark.main(arguments) == 0
    figures = json.loads((tmp_path / "x.json").read_text())
    rates, over = figures["images_per_second"], figures["overload"]
    share = rates["server"]["median"] / rates["stream"]["median"]
    assert figures["share_of_stream"]["median"] == pytest.approx(share) and share > 0.1
    assert over["planned_rate"] > over["capacity"] > 0
    assert over["share_of_capacity"] == pytest.approx(over["goodput"] / over["capacity"])
    assert set(over["statuses"]) == {"200", "429"} and sum(over["statuses"].values()) == 200
    assert over["accepted"]["p99"] > over["rejected"]["p50"] > 0
    assert over["memory"]["peak"] >= over["memory"]["start"] > 20
    assert 0 < over["loop_processor_share"] <= 1 and 0 < over["generator"]["processor_share"] <= 1
    assert over["generator"]["lag"]["p50"] >= 0 and figures["exit_code"] == 0
    assert f"{share:8.2f}" in capsys.readouterr().out


def test_a_server_that_does_not_start(tmp_path):
    pytest.importorskip("starlette")
    with pytest.raises(ExportError, match="did not start.*none"):
        ServerProcess([str(tmp_path / "none")], tmp_path / "log")


def test_the_engines_of_an_export_are_compared_with_the_first(exported, pictures, tmp_path, capsys):
    arguments = ["engines", str(exported), "--rounds", "1", "--json", str(tmp_path / "x.json")]
    assert benchmark.main(arguments) == 0
    figures, printed = json.loads((tmp_path / "x.json").read_text()), capsys.readouterr().out
    assert not {"ceiling_gflops", "multiply_adds"} & figures.keys()  # they are the network's
    names = installed_engines(read_artifact(exported))
    first, *others = names
    assert figures["reference"] == first and f"to {first}" in printed
    assert figures["rows"].keys() - names - {"paddle without oneDNN"} == {
        "predictor, of a picture in memory",
        next(name for name in figures["rows"] if name.startswith("auto (")),
    }
    assert all(figures["rows"][name]["difference"] < 1e-4 for name in others)
    assert all(row["share_of_ceiling"] is None for row in figures["rows"].values())
    arguments = ["end2end", str(exported), "-i", str(pictures), "--rounds", "1", *arguments[-2:]]
    assert benchmark.main(arguments) == 0
    figures = json.loads((tmp_path / "x.json").read_text())
    assert set(figures["images_per_second"]) == {"engine alone", "end to end"}


def test_training_is_not_measured_on_an_export(exported):
    with pytest.raises(ConfigError, match=f"{exported}.*the network itself"):
        benchmark.main(["train", "--synthetic", str(exported)])


@pytest.mark.parametrize("option", ["--rounds", "--batch-size"])
def test_numbers_that_cannot_be(options, option):
    with pytest.raises(ConfigError, match=f"{option}.*Received: 0"):
        benchmark.main(["engines", *options, option, "0"])
    with pytest.raises(ConfigError, match="--seconds.*Received: 0"):
        Sizes(rounds=1, seconds=0.0, requests=1, queue=8)


@pytest.mark.parametrize("command", [["engines", "--engines"], ["end2end", "-i", "x.png", "--engine"]])
def test_an_unknown_engine(options, command):
    with pytest.raises(ConfigError, match="Received: openvin;.*openvino"):
        benchmark.main([command[0], *options, *command[1:], "openvin"])


def test_benchmarks_leave_a_readable_export(options, own_cache):
    from ppcls.files import cache_dir

    folders = [path for path in (cache_dir() / "exported").iterdir() if path.is_dir()]
    assert folders and all(read_artifact(folder).model for folder in folders)
