"""The table and the picture at the end of a run."""

import json

import cv2

from ppcls.training.curves import draw_curves, epoch_table, read_epochs, summarise

EPOCHS = [
    {"epoch": 1, "train_loss": 2.25, "eval_loss": 2.0, "eval_top1": 0.25, "lr": 0.02},
    {"epoch": 2, "train_loss": 1.5, "eval_loss": 1.0, "eval_top1": 0.75, "lr": 0.01},
    {"epoch": 3, "train_loss": 1.25, "eval_loss": 1.125, "eval_top1": 0.75, "lr": 1e-5},
]
EPOCHS = [line | {"images_per_second": 56.78} for line in EPOCHS]
WITH_INTERVALS = [line | {"eval_top1_interval": [0.125, line["eval_top1"] + 0.125]} for line in EPOCHS]


def write(folder, lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_table_has_a_line_an_epoch_and_a_star_at_the_best():
    heading, *rows = epoch_table(EPOCHS).splitlines()  # as an earlier version wrote them
    assert heading.split() == ["epoch", "train", "loss", "eval", "loss", "top-1", "95%", "lr", "images/s"]
    assert rows[0].split() == ["1", "2.2500", "2.0000", "0.2500", "0.02", "56.8"]
    assert rows[1].split() == ["2", "1.5000", "1.0000", "0.7500", "0.01", "56.8", "*"]
    assert rows[2].split() == ["3", "1.2500", "1.1250", "0.7500", "1e-05", "56.8"]


def test_the_interval_of_top1_stands_beside_it(tmp_path):
    heading, *rows = epoch_table(WITH_INTERVALS).splitlines()
    assert rows[0].split()[3:7] == ["0.2500", "0.1250", "to", "0.3750"]
    assert heading.index("95%") + 3 == rows[0].index("0.3750") + 6
    for name, lines in (("with", WITH_INTERVALS), ("without", EPOCHS)):
        draw_curves({"": lines}, tmp_path / f"{name}.svg")
    areas = [(tmp_path / f"{name}.svg").read_text().count("FillBetween") for name in ("with", "without")]
    assert areas[0] > areas[1] == 0


def test_another_measure_has_a_column_and_the_star(tmp_path):
    lines = [line | {"eval_macro_f1": value} for line, value in zip(EPOCHS, (0.5, 0.25, 0.5), strict=True)]
    heading, *rows = epoch_table(lines, "macro_f1").splitlines()
    assert heading.split()[5:9] == ["top-1", "95%", "macro", "F1"]
    assert rows[0].split() == ["1", "2.2500", "2.0000", "0.2500", "0.5000", "0.02", "56.8"]
    assert [row.endswith("*") for row in rows] == [False, False, True]  # of equal ones the lower loss
    draw_curves({"": lines}, tmp_path / "curves.svg", "macro_f1")
    assert "<!-- macro F1 -->" in (tmp_path / "curves.svg").read_text()


def test_large_losses_widen_their_column():
    heading, *rows = epoch_table([EPOCHS[0] | {"train_loss": 1e6, "eval_loss": 1e9}, EPOCHS[1]]).splitlines()
    assert rows[0].split() == ["1", "1000000.0000", "1000000000.0000", "0.2500", "0.02", "56.8"]
    ends = [[i for i, c in enumerate(row, 1) if c != " " and row[i : i + 1] in ("", " ")] for row in rows]
    assert ends[0] == ends[1][:6]  # the star of the best epoch stands behind the columns


def test_of_an_epoch_that_was_run_again_the_last_counts(tmp_path):
    write(tmp_path, [*EPOCHS[:2], EPOCHS[1] | {"eval_top1": 0.5}, EPOCHS[2]])
    assert [(line["epoch"], line["eval_top1"]) for line in read_epochs(tmp_path / "metrics.jsonl")] == [
        (1, 0.25),
        (2, 0.5),
        (3, 0.75),
    ]


def test_the_picture_shows_the_run(tmp_path):
    write(tmp_path, EPOCHS)
    assert summarise(tmp_path) == epoch_table(EPOCHS)
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture.shape == (340, 1100, 3)
    is_blue = (abs(picture.astype(int) - (180, 119, 31)) < 12).all(2)  # the first of matplotlib's colours
    for third in range(3):
        assert is_blue[:, third * 366 : (third + 1) * 366].sum() > 100


def test_several_runs_in_one_picture(tmp_path):
    draw_curves({"tuned": EPOCHS, "fresh": EPOCHS[:2]}, tmp_path / "both.svg")
    text = (tmp_path / "both.svg").read_text()
    assert text.count("<!-- tuned, evaluation -->") == 1 and "<!-- fresh, training -->" in text
