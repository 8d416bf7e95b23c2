"""Write scikit-learn's 1,797 handwritten digits as image files, with lists, into dataset/digits.

python dataset/prepare_digits.py

The digits are 8 x 8 pixels with values from 0 to 16, from the UCI repository's "Optical Recognition of
Handwritten Digits". 360 of them are held out, drawn with a fixed seed.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parent / "digits"
HELD_OUT = 360
SEED = 0
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    (FOLDER / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = f"images/{index:04d}.png"
        cv2.imwrite(str(FOLDER / path), image)
        lines.append(f"{path} {label}\n")
    order = np.random.RandomState(SEED).permutation(len(lines))
    parts = {"val_list.txt": order[:HELD_OUT], "train_list.txt": order[HELD_OUT:]}
    for name, part in parts.items():
        (FOLDER / name).write_text("".join(lines[index] for index in sorted(part)), encoding="utf-8")
    (FOLDER / "class_names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    print(f"{len(lines) - HELD_OUT} digits to train on and {HELD_OUT} held out, in {FOLDER}")


if __name__ == "__main__":
    main()
