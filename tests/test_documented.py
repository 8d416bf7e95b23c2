"""Every command and every Python block in the documents is run here, or HOW says why it is not.

A command is run as it is written, in a copy of the project with a few drawn images. Words in capitals stand
for files of that copy. If a command takes too long, the options of `append` shorten it.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import yaml
from helpers import HAS_BF16, code_without_ppcls, corrected_list

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "dataset/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs/models/EfficientNet_and_ResNeXt101_wsl.md",
]
PROGRAMS = r"(?:\w+=\S+ )*(?:(?:python3?|make|pip|visualdl|curl) \S|ppcls (?:--)?[a-z])"
SERVER = r"ppcls serve (?!--help)"


class Run(NamedTuple):
    """append: more options. after: commands to run before it. words: replace parts of it, before WORDS does.
    quick: run without --slow too. code: the exit code. beside: the command of the server that it asks, which
    is then at a free port in place of 8000."""

    append: str = ""
    after: tuple[str, ...] = ()
    words: dict[str, str] = {}
    quick: bool = False
    code: int = 0
    beside: str = ""


CHECK = Run("--check")
HELP = Run("--help")
PIP = "installs packages: make does it with the same extras"
FEW_ROUNDS = "--rounds 1 --no-eager"
FEW_STEPS = "--steps 1 -o data.batch_size=2"
NETWORK = "needs the network: published weights"
OTHERS = "of PaddleClas or timm, shown for comparison"

SPLIT_PHOTOS = "python -m ppcls.data split photos"
SPLIT_FOLDER = "python -m ppcls.data split FOLDER"
CLEAN = "ppcls data clean EfficientNetLite0 photos/train_list.txt photos/val_list.txt"
OWN_TRAIN = "ppcls train finetune -o model.name=EfficientNetLite0 -o model.num_classes="
PACK = "ppcls data pack LIST_OR_FOLDER DIR"
PACK_MIXED = "ppcls data pack photos DIR --shard-size 1GB --shuffle 0"
IMAGENET_ARCHIVES = "tests/test_prepare_imagenet.py runs it on small archives"
DIGITS = "python dataset/prepare_digits.py"
LITE0 = "configs/EfficientNetLite0.yaml"
EXPORT = "ppcls export EfficientNetLite0 --output lite0"
SERVE = "ppcls serve lite0"
LAUNCH = "python -m paddle.distributed.launch"
LAUNCH_2 = f"{LAUNCH} --nproc_per_node 2"
TRAIN = "python tools/train.py -c CONFIG --resume auto"
B0 = "python tools/eval.py -c configs/EfficientNetB0.yaml"
ENGINES = "python tools/benchmark.py engines -c configs/EfficientNetB0.yaml"
TRAIN_SPEED = "tools/benchmark.py train -c configs/EfficientNetB0.yaml --synthetic"
FINETUNE = "python tools/train.py -c configs/finetune.yaml -o model.num_classes=3"
WHOLE = "-o augment.center_crop=true -o augment.flip=0"
KERNELS = "python tools/benchmark.py train -c configs/EfficientNetB0.yaml --kernels paddle onednn"
BF16 = "python tools/benchmark.py train -c configs/EfficientNetB0.yaml --kernels onednn onednn-bf16"
SAME_STEPS = "-o data.batch_size=16 -o device=cpu -o optim.name=sgd -o train.ema_decay=null"
MORE_IMAGES = "-o data.eval_list=photos/train_list.txt"  # 9 are too few to calibrate
PHOTOS = {"output/photos": "RUN"}
IMAGENET = {"DIR": "dataset/ILSVRC2012", "FILE": "dataset/ILSVRC2012/val_list.txt"}

STEPS = code_without_ppcls()

WORDS = {
    "CONFIG": "small.yaml",
    "DIR": "lite0",
    "FILE": "output/small/checkpoints/best/model.safetensors",
    "EXPORT": "lite0",
    "FOLDER": "folder",
    "INPUT": "home/EfficientNetB0_pretrained.pdparams",
    "LIST": "dataset/ILSVRC2012/val_list.txt",
    "LIST_OR_FOLDER": "folder",
    "MODEL": "EfficientNetB0",
    "NEW": "output/new",
    "OUTPUT": "converted.safetensors",
    "PATH_TO_A_CLONE": ".",
    "ROOT": "dataset/ILSVRC2012",
    "RUN": "output/small",
}

HOW: dict[str, Run | str] = {
    # README.md
    "make quickstart": "a script of its own: two minutes, after the installation",
    "make test": "CI runs it",
    "make test VENV=.venv-paddle2 PADDLE=gpu": "CI runs it",
    "make lint": "CI runs it",
    "python3 -m venv .venv && . .venv/bin/activate": "the Makefile does it",
    "pip install -e '.[cpu,onnx,quickstart]'": PIP,
    "python tools/quickstart.py": "make quickstart runs it",
    "pip install -e '.[cpu,onnx,openvino,lite,test]'": PIP,
    "python -m pytest": "make test runs it",
    "pip install -e .": PIP,
    "pip install opencv-python-headless": PIP,
    "pip install -e '.[cpu]'": PIP,
    f"python tools/eval.py -c {LITE0}": Run(),
    B0.replace("B0", "B4"): Run("--check --engine eager -o data.batch_size=2"),
    "python tools/eval.py -c EfficientNetB44": Run(quick=True, code=2),
    "python tools/train.py -c configs/EfficientNetB0.yaml": CHECK,
    f"{LAUNCH_2} tools/train.py -c configs/EfficientNetB0.yaml": CHECK,
    SPLIT_PHOTOS: Run(quick=True),
    f"{FINETUNE} -o output_dir=output/photos": Run("--check", (SPLIT_PHOTOS,)),
    "python tools/eval.py -c output/photos": Run(after=(TRAIN,), words=PHOTOS),
    "python tools/infer.py -c output/photos -i cat.jpg": Run(after=(TRAIN,), words=PHOTOS),
    f"python tools/infer.py -c {LITE0} -i cat.jpg": Run(),
    f"python tools/infer.py -c {LITE0} -i photos --output x.csv": Run(),
    EXPORT: Run(),
    "ppcls infer lite0 -i photos --output x.csv": Run(after=(EXPORT,)),
    SERVE: Run(after=(EXPORT,)),
    **{
        f"ppcls {name}": HELP._replace(quick=name == "data")
        for name in ("train", "eval", "infer", "export", "serve", "convert", "benchmark", "data")
    },
    "ppcls compare": HELP,
    "ppcls export --int8": HELP._replace(words={" --int8": ""}),
    "import ppcls\n\n"
    "predictor = ppcls.load(\"EfficientNetLite0\")  # or a YAML file, a run's folder, an export's folder\n"
    'print(predictor("cat.jpg"))': Run(),
    "import ppcls\n\n"
    'model = ppcls.build_model("EfficientNetLite0")\n'
    'info = ppcls.load_weights(model, "pretrained")  # strict; returns source, hash, license, preprocessing\n'
    "model.eval()  # float32 [N, 3, H, W] -> logits [N, 1000]": Run(),
    "python tools/model_zoo.py": Run(),
    # CONTRIBUTING.md
    "python tools/options_page.py > docs/options.md": Run(quick=True),
    # dataset/README.md
    SPLIT_FOLDER: Run(quick=True),
    "python -m ppcls.data check FOLDER/train_list.txt FOLDER/val_list.txt": Run(
        after=(SPLIT_FOLDER,), quick=True
    ),
    DIGITS: Run(quick=True),
    # docs/deployment.md
    "ppcls infer lite0 -i cat.jpg": Run(after=(EXPORT,)),
    "ppcls eval lite0 -o data.eval_root=DIR -o data.eval_list=FILE": Run(after=(EXPORT,), words=IMAGENET),
    "ppcls export RUN": Run("--formats paddle --overwrite", (TRAIN,)),
    f"{EXPORT}_embeddings --embeddings": Run("--check"),
    f"{EXPORT}_small --fp16": Run("--check"),
    f"{EXPORT}_int8 --int8 FOLDER": "takes minutes: tests/test_int8.py does it with a small network",
    "ppcls benchmark engines lite0_int8 --rounds 12": Run(
        "--rounds 1", after=(EXPORT,), words={"lite0_int8": "lite0"}
    ),
    "ppcls benchmark engines EXPORT": Run("--rounds 1", (EXPORT,)),
    "ppcls infer lite0_int8 -i photos --precision fastest": Run(
        after=(EXPORT,), words={"lite0_int8": "lite0"}
    ),
    "ppcls eval DIR --engine openvino-int8": "needs an export with int8 forms",
    "pip install 'ppcls[int8]'": PIP,
    f"{EXPORT}_fixed --batch-size 1 --image-size 224": Run("--check"),
    "pip install 'ppcls[onnx]'": PIP,
    "pip install 'ppcls[cpu]'": PIP,
    "import ppcls\n\n"
    'predictor = ppcls.load("EfficientNetLite0")\n'
    'best = predictor("cat.jpg")  # labels, probabilities, class_ids, the likeliest first': Run(),
    "from pathlib import Path\n\nimport ppcls\n"
    "from ppcls.data.open import open_path\n"
    "from ppcls.evaluation.evaluate import evaluate\n\n"
    'predictor = ppcls.load("EfficientNetLite0")\n'
    "result = evaluate(predictor, open_path(Path(\"LIST\")))  # a list file with lines 'path label'\n"
    "print(result.top1, result.loss, result.count)": Run(),
    "import numpy as np\nimport ppcls\n\n"
    'predictor = ppcls.load("EfficientNetLite0")\n'
    'found = [item for item in predictor.stream("FOLDER", embeddings=True) if item.error is None]\n'
    'rows, query = np.stack([item.embedding for item in found]), predictor.embed("cat.jpg")\n'
    "likeness = rows @ query / (np.linalg.norm(rows, axis=1) * np.linalg.norm(query))  # cosine\n"
    "print(found[likeness.argmax()].file)": Run(),
    "import paddle\n\n"
    'model = paddle.hub.load("PATH_TO_A_CLONE", "EfficientNetB4", source="local", pretrained=True)': Run(),
    "python tools/infer.py --exported lite0 -i FOLDER --output classes.csv": Run(after=(EXPORT,)),
    f"python tools/infer.py -c {LITE0} -i FOLDER --embeddings rows.npy": Run(),
    f"python tools/infer.py -c {LITE0} -i FOLDER --embeddings rows.npy --output classes.csv": Run(),
    f"{LAUNCH_2} tools/infer.py --exported lite0 -i FOLDER --output classes.csv": Run(after=(EXPORT,)),
    STEPS: Run(after=(EXPORT,)),
    "pip install 'ppcls[serve]'": PIP,
    "pip install 'tritonclient[http]'": PIP,
    **{
        f"curl {rest}": Run("--fail", (EXPORT,), beside=SERVE)
        for rest in (
            "--data-binary @cat.jpg http://127.0.0.1:8000/predict",
            "http://127.0.0.1:8000/v2/models/lite0",
            "http://127.0.0.1:8000/metrics",
        )
    },
    "import numpy as np\nfrom tritonclient import http\n\n"
    'client = http.InferenceServerClient("127.0.0.1:8000")\n'
    'image = http.InferInput("image", [1], "BYTES")\n'
    'image.set_data_from_numpy(np.array([open("cat.jpg", "rb").read()], dtype=object))\n'
    'output = http.InferRequestedOutput("probabilities", class_count=3)\n'
    'print(client.infer("lite0", [image], outputs=[output]).as_numpy("probabilities"))  # value:class:name': (
        Run(after=(EXPORT,), beside=SERVE)
    ),
    "ppcls serve EfficientNetLite0 animals=output/photos --port 8080": Run(after=(TRAIN,), words=PHOTOS),
    f"{EXPORT}_triton --formats triton": Run("--check"),
    "python tools/benchmark.py serve lite0 -i FOLDER": Run(
        "--rounds 1 --seconds 1 --requests 100", (EXPORT,), {"-i FOLDER": "-i photos"}
    ),
    ENGINES: Run(FEW_ROUNDS),
    "python tools/benchmark.py end2end -c configs/EfficientNetB0.yaml -i FOLDER": Run(FEW_ROUNDS),
    # docs/migration.md
    "python tools/train.py -c ppcls/configs/ImageNet/EfficientNet/EfficientNetB0.yaml": OTHERS,
    f'{LAUNCH} --gpus="0,1,2,3" tools/train.py -c ...': OTHERS,
    f"{LAUNCH} tools/train.py -c ...": Run("--check", (SPLIT_PHOTOS,), {"...": "CONFIG"}),
    "python tools/eval.py -c ... -o Global.pretrained_model=FILE": OTHERS,
    "python tools/eval.py -c ... -o model.weights=FILE.pdparams": Run(
        "--check --engine eager", (), {"...": "configs/EfficientNetB0.yaml", "FILE.pdparams": "INPUT"}
    ),
    "python tools/eval.py -c ... -o Arch.pretrained=True": OTHERS,
    "python tools/eval.py -c ...": Run(words={"...": LITE0}),
    "python tools/train.py -c ... -o Arch.pretrained=True": OTHERS,
    "python tools/train.py -c ... -o train.start_from=pretrained": Run(
        "--check", words={"...": "configs/EfficientNetB0.yaml"}
    ),
    "python tools/infer.py -c ... -o Infer.infer_imgs=cat.jpg": OTHERS,
    "python tools/infer.py -c ... -i cat.jpg": Run(words={"...": LITE0}),
    "python tools/export_model.py -c ... -o Global.save_inference_dir=DIR": OTHERS,
    "python tools/export_model.py -c ... --output DIR": Run("--check", words={"...": LITE0, "DIR": "other"}),
    "python python/predict_cls.py -c configs/inference_cls.yaml": OTHERS,
    "python tools/infer.py --exported DIR -i FOLDER": Run(after=(EXPORT,)),
    "ppcls infer EfficientNetB0 -i cat.jpg": Run(),
    "python validate.py DIR --model NAME --pretrained": OTHERS,
    "python tools/eval.py -c ... -o model.variant=timm/NAME -o data.preprocessing=null "
    "-o data.eval_list=null -o data.eval_root=DIR": NETWORK,
    "python inference.py --data-dir DIR --model NAME": OTHERS,
    "python tools/infer.py -c ... -i DIR --output x.csv": Run(words={"...": LITE0, "DIR": "photos"}),
    "python onnx_export.py": OTHERS,
    "python tools/export_model.py": HELP,
    "python tools/benchmark.py engines": HELP,
    # docs/recipes.md
    FINETUNE: Run("--check", (SPLIT_PHOTOS,)),
    "python tools/train.py -c configs/ResNeXt101_32x8d_wsl_pretraining.yaml": Run(
        "--check -o data.train_root=photos -o data.eval_root=photos -o data.class_names=null "
        "-o model.num_classes=3 -o data.batch_size=2 -o data.allow_overlap=true"
    ),
    "python tools/train.py -c configs/ResNeXt101_32x8d_wsl.yaml -o train.reset_head=true "
    "-o train.start_from=output/ResNeXt101_32x8d_wsl_pretraining": "needs the pretraining's run",
    "python tools/benchmark.py train -c configs/ResNeXt101_32x8d_wsl_pretraining.yaml --synthetic --steps 4 "
    "-o data.batch_size=8 -o device=cpu -o data.class_names=null": Run(FEW_STEPS),
    "ppcls data pack list.txt DIR --shuffle 0": Run(
        words={"list.txt": "photos/train_list.txt", "DIR": "hashtags"}, after=(SPLIT_PHOTOS,)
    ),
    "ppcls data pack": HELP,
    "ppcls data check --against": HELP._replace(words={" --against": ""}),
    "python experiments/two_digits.py": Run("--seeds 0 --images 320", (DIGITS,)),
    "python experiments/finetune.py FOLDER": "trains twelve networks on photographs of ImageNet",
    f"python experiments/finetune.py FOLDER --size 96 --draws 2 {WHOLE}": "as the command above",
    f"{LAUNCH_2} tools/train.py -c configs/digits_efficientnet_recipe.yaml": Run("--check", (DIGITS,)),
    f"{LAUNCH_2} experiments/shallow_resnext.py -c experiments/shallow_resnext.yaml": Run(
        "--check", (DIGITS,)
    ),
    "python experiments/animals.py FOLDER": Run("--epochs 1", words={"FOLDER": "dataset/ILSVRC2012"}),
    "python experiments/unequal_digits.py": Run(after=(DIGITS,)),
    f"python {TRAIN_SPEED} -o data.batch_size=16 -o device=cpu": Run(FEW_STEPS),
    f"{KERNELS} {SAME_STEPS}": Run(f"{FEW_STEPS} --rounds 1"),
    f"{KERNELS} --beside-torch PYTHON {SAME_STEPS}": "needs torch and timm",
    f"{BF16} {SAME_STEPS}": Run(f"{FEW_STEPS} --rounds 1") if HAS_BF16 else "needs a processor with AMX",
    f"{LAUNCH_2} {TRAIN_SPEED} -o data.batch_size=8 -o device=cpu": Run(FEW_STEPS),
    "python tools/benchmark.py train -c configs/Fix_ResNeXt101_32x48d_wsl.yaml --synthetic --steps 2 "
    "-o data.batch_size=8 -o device=cpu": Run(
        FEW_STEPS, words={"Fix_ResNeXt101_32x48d_wsl": "ResNeXt101_32x8d_wsl"}
    ),
    "OMP_NUM_THREADS=1 python experiments/compare_paddleclas.py --rounds 5 --steps 1": "needs PaddleClas",
    # docs/troubleshooting.md
    "python -m ppcls.data check LIST": Run(quick=True),
    "pip uninstall -y opencv-python; pip install --force-reinstall opencv-python-headless": PIP,
    "pip install 'ppcls[lite]'": PIP,
    "pip install 'numpy<2'": PIP,
    # docs/usage.md
    "python -m ppcls.data check LIST ...": Run(words={" ...": ""}),
    "python tools/benchmark.py data LIST_OR_FOLDER": Run(),
    "visualdl --logdir DIR": "a server: it runs until it is stopped",
    "ppcls options optim": Run(quick=True),
    "ppcls options learning_rate": Run(quick=True),
    "ppcls options": Run(quick=True),
    "ppcls options WORD": Run(words={"WORD": "freeze"}),
    "python tools/options_page.py": Run(quick=True),
    "ppcls --version": Run(quick=True),
    "ppcls compare RUN report": Run(
        after=("python tools/eval.py -c RUN --calibrate --report report",),
        words={"RUN report": "report report"},
    ),
    "ppcls eval RUN": Run(after=(TRAIN,)),
    "ppcls infer RUN -i FOLDER": Run(after=(TRAIN,)),
    "ppcls infer EXPORT -i FOLDER": Run(after=(EXPORT,)),
    "ppcls benchmark engines RUN": Run(FEW_ROUNDS, (TRAIN,)),
    TRAIN: Run(after=(SPLIT_PHOTOS,)),
    "python tools/train.py -c RUN --resume auto": Run(after=(TRAIN,)),
    "python tools/train.py -c CONFIG --resume RUN/checkpoints/state-000001200.safetensors "
    "-o output_dir=NEW": Run(after=(TRAIN,), words={"000001200": "*"}),
    "python tools/train.py -c CONFIG -o augment.auto_augment=v0 --show-batch batch.png": Run(
        after=(SPLIT_PHOTOS,)
    ),
    "python tools/train.py -c CONFIG -o train.epochs=null -o train.images=100000 "
    "-o train.epoch_images=20000": Run("--check", (SPLIT_PHOTOS,)),
    f"{LAUNCH_2} tools/train.py -c configs/digits.yaml": Run("--check", (DIGITS,)),
    f"{LAUNCH_2} tools/eval.py -c RUN": Run("--engine eager", (TRAIN,)),
    f'{LAUNCH_2} "$(command -v ppcls)" train -c CONFIG': Run("--check", (SPLIT_PHOTOS,)),
    "python tools/benchmark.py train -c CONFIG [--synthetic] [--steps N] [--json FILE]": Run(
        after=(SPLIT_PHOTOS,), words={"[": "", "]": "", " N": " 1", "FILE": "speed.json"}
    ),
    "python tools/eval.py -c RUN --report report": Run(after=(TRAIN,)),
    "python tools/eval.py --exported DIR -o data.eval_root=ROOT -o data.eval_list=LIST --report report": Run(
        after=(EXPORT,)
    ),
    "python tools/eval.py -c RUN --calibrate --report report": Run(MORE_IMAGES, (TRAIN,)),
    "python tools/eval.py -c RUN --calibrate --max-error 0.05 --ood FOLDER": Run(MORE_IMAGES, (TRAIN,)),
    "ppcls eval RUN --calibrate": Run(MORE_IMAGES, (TRAIN,)),
    "ppcls export RUN --output sure --calibration calibration.json": Run(
        "--formats paddle --overwrite",
        ("ppcls eval RUN --calibrate",),
        {"calibration.json": "RUN/calibration.json"},
    ),
    "python tools/eval.py -c RUN --sizes 224 256 288 320": Run(after=(TRAIN,)),
    "python tools/infer.py -c RUN -i photos --explain why": Run(after=(TRAIN,)),
    CLEAN: Run("--engine eager", (SPLIT_PHOTOS,), code=1),
    "python experiments/wrong_labels.py": Run("--size 32 --seeds 1", (DIGITS,)),
    corrected_list(): Run(after=(CLEAN,)),
    "ppcls data check DATA --against EVAL": Run(
        after=(SPLIT_PHOTOS,),
        words={"DATA": "photos/val_list.txt", "EVAL": "photos/train_list.txt"},
        quick=True,
    ),
    "ppcls data clean": HELP,
    "ppcls data clean MODEL LIST ...": HELP._replace(words={"MODEL LIST ...": ""}),
    "pip install 'ppcls[clean]'": PIP,
    "ppcls eval RUN --report report": Run(after=(TRAIN,)),
    # docs/weights.md
    f"{B0} -o model.variant=lukemelas/aa -o data.preprocessing=null": NETWORK,
    "python tools/convert_weights.py INPUT OUTPUT -m MODEL [--to ppcls|paddleclas|torchvision|timm] "
    "[--variant TAG] [--raw]": Run(
        words={"[--to ppcls|paddleclas|torchvision|timm] [--variant TAG] [--raw]": "--to timm"}
    ),
    # docs/your_own_photos.md
    "pip install -e '.[cpu,lite,onnx,clean]'": PIP,
    "ppcls data split photos": Run(quick=True),
    "ppcls data check photos/train_list.txt photos/val_list.txt": Run(after=(SPLIT_PHOTOS,)),
    f"{OWN_TRAIN}3 -o output_dir=output/photos": Run("--check", (SPLIT_PHOTOS,)),
    "ppcls eval output/photos --report output/photos/report": Run(after=(TRAIN,), words=PHOTOS),
    "ppcls infer output/photos -i photos/cat --explain output/photos/explained": Run(
        after=(TRAIN,), words=PHOTOS
    ),
    f"{OWN_TRAIN}3 -o output_dir=output/balanced -o data.sampling=balanced "
    "-o train.best_by=balanced_accuracy": Run("--check", (SPLIT_PHOTOS,)),
    f"{OWN_TRAIN}3 -o output_dir=output/several -o train.loss=binary": Run("--check", (SPLIT_PHOTOS,)),
    f"{OWN_TRAIN}3 -o output_dir=output/whole {WHOLE}": Run("--check", (SPLIT_PHOTOS,)),
    f"{OWN_TRAIN}4 -o train.start_from=output/photos -o output_dir=output/four": Run(
        "--check", (TRAIN,), {"output/photos": "RUN", "EfficientNetLite0": "EfficientNetB0_small", "=4": "=3"}
    ),
    "ppcls export output/photos": Run("--overwrite", (TRAIN,), PHOTOS),
    "ppcls infer output/photos/exported -i photos/cat": Run(
        after=("ppcls export output/photos",), words=PHOTOS
    ),
    "import ppcls\n\n"
    'predictor = ppcls.load("output/photos")  # or the export\'s folder\n'
    'print(predictor("cat.jpg"))\n'
    'print(predictor.embed("cat.jpg").shape)  # of an export: if it was made with --embeddings': Run(
        after=(TRAIN,), words=PHOTOS
    ),
    # docs/shards.md
    "ppcls data pack LIST_OR_FOLDER DIR": Run(words={"DIR": "packed"}, quick=True),
    "ppcls data pack photos DIR --shard-size 1GB --shuffle 0": Run(words={"DIR": "mixed"}, quick=True),
    "ppcls data index 'DIR/train-{000000..000146}.tar'": Run(
        after=(PACK,), words={"DIR/train": "packed/shard", "000146": "000000"}, quick=True
    ),
    "ppcls data index 's3://bucket/train-{000000..000146}.tar' --output far.safetensors": NETWORK,
    "ppcls data check DIR --against EVAL": Run(
        after=(PACK, SPLIT_PHOTOS), words={"DIR": "packed", "EVAL": "photos/val_list.txt"}, quick=True
    ),
    "ppcls data check DIR": Run(after=(PACK,), words={"DIR": "packed"}, quick=True),
    "ppcls benchmark data FOLDER --beside DIR far.safetensors": Run(
        "--rounds 1 --batch-size 4 --resize-short 64 --crop-size 32",
        (PACK,),
        {"DIR far.safetensors": "packed"},
    ),
    "ppcls data check": HELP,
    "ppcls benchmark data": HELP,
    "ppcls train -c CONFIG -o data.train_list=null -o data.train_root=DIR": Run(
        "--check", (PACK_MIXED, SPLIT_PHOTOS), {"DIR": "mixed"}
    ),
    "ppcls eval -c CONFIG -o data.eval_list=far.safetensors": Run(
        "-o model.weights=FILE", (PACK_MIXED, TRAIN), {"far.safetensors": "mixed/index.safetensors"}
    ),
    "pip install 'ppcls[remote]'": PIP,
    "python dataset/prepare_imagenet.py ARCHIVES --to shards": IMAGENET_ARCHIVES,
    "python dataset/prepare_imagenet.py ARCHIVES --to files": IMAGENET_ARCHIVES,
    # docs/models
    B0: Run("--engine eager"),
    "python tools/model_zoo.py --measured output/EfficientNetB0": Run(after=(B0,)),
    f"{ENGINES} --json b0.json": Run(FEW_ROUNDS),
    "python tools/model_zoo.py --measured b0.json": Run(after=(f"{ENGINES} --json b0.json",)),
}


def documented(text):
    """The commands and Python blocks of a document, as they stand there."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for kind, block in blocks:
        if kind == "python":
            yield block.strip()
            continue
        for line in re.sub(r" *\\\n *", " ", block).splitlines():
            if found := re.search(rf"(?:^|: )({PROGRAMS}.*)", line):
                yield re.split(r" {3,}", found[1])[0]  # what it does is said behind it
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(rf"`({PROGRAMS}[^`]*)`", prose)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """A copy of the project, with drawn images where the documents have the reader's."""
    folder = tmp_path_factory.mktemp("documented")
    for path in ROOT.iterdir():
        if path.name in ("README.md", "README_ch.md", "hubconf.py"):
            shutil.copy(path, folder)
        elif path.name in ("configs", "docs", "experiments", "ppcls", "tools"):
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "home").mkdir()
    imagenet = folder / "dataset" / "ILSVRC2012"
    imagenet.mkdir(parents=True)
    shutil.copy(ROOT / "dataset/prepare_digits.py", folder / "dataset")
    random = np.random.RandomState(0)

    def draw(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = random.randint(0, 256, (6, 8, 3), np.uint8)
        cv2.imwrite(str(path), cv2.resize(blocks, (80, 60), interpolation=cv2.INTER_CUBIC))

    draw(folder / "cat.jpg")
    for number in range(78):  # of which a batch of 64 is for training
        draw(folder / "photos" / ("cat", "dog", "owl")[number % 3] / f"{number}.jpg")
    for number in range(12):
        draw(folder / "folder" / ("left", "right")[number % 2] / f"{number}.jpg")
    for kind, count in (("train", 64), ("val", 24)):
        names = [f"{kind}/{number}.JPEG" for number in range(count)]
        for name in names:
            draw(imagenet / name)
        lines = [f"{name} {number * 41 % 1000}\n" for number, name in enumerate(names)]
        (imagenet / f"{kind}_list.txt").write_text("".join(lines))
    preprocessing = {"resize_short": 36, "crop_size": 32, "interpolation": "bilinear", "antialias": False}
    preprocessing |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    data = {"class_names": "photos/class_names.txt", "batch_size": 4, "preprocessing": preprocessing}
    for part, name in (("train", "train"), ("eval", "val")):
        data |= {f"{part}_root": "photos", f"{part}_list": f"photos/{name}_list.txt"}
    tree = {"model": {"name": "EfficientNetB0_small", "num_classes": 3}, "data": data}
    tree |= {"train": {"epochs": 1}, "device": "cpu", "output_dir": "output/small"}
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    return folder


def publish(sandbox):
    """Put drawn weights into the cache, in PaddleClas's format and under its names."""
    from ppcls import build_model
    from ppcls.weights import metadata_of, write_weights
    from ppcls.weights.convert import convert

    own = sandbox / "own.safetensors"
    for name in ("EfficientNetB0", "EfficientNetB4"):
        model = build_model(name)
        write_weights(own, {k: v.numpy() for k, v in model.state_dict().items()}, metadata_of(model))
        convert(own, sandbox / "home" / f"{name}_pretrained.pdparams", name, "paddleclas")


def shell_line(command):
    """The line for bash that runs a command, with what its words stand for."""
    how = HOW[command]
    line = f"{command} {how.append}"
    for word, stands_for in how.words.items():
        line = line.replace(word, stands_for)
    line = re.sub(rf"\b(?:{'|'.join(WORDS)})\b", lambda found: WORDS[found[0]], line)
    if line.startswith(("import ", "from ")):
        line = f"python -c {shlex.quote(line)}"
    line = re.sub(r"^ppcls ", "python -m ppcls ", line)
    return re.sub(r"^python ", lambda _: f"{shlex.quote(sys.executable)} ", line)


def run_line(line, code, options):
    ended = subprocess.run(["bash", "-c", line], capture_output=True, timeout=500, check=False, **options)
    assert ended.returncode == code, f"{line}\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}"


@contextmanager
def server(line, options):
    """Run the command of a server at a free port, which is yielded when it is ready, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = options["cwd"] / "server.log"
    with log.open("w") as file:
        arguments = shlex.split(f"{line} --port {port}")
        process = subprocess.Popen(arguments, stdout=file, stderr=file, **options)
    end = time.monotonic() + 300
    while "\nready\n" not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    yield port
    process.terminate()
    assert process.wait(60) == 0, log.read_text()


@pytest.fixture(scope="module")
def call(sandbox):
    """A function that runs a command, after the commands that it needs; each runs once."""
    done = set()

    def run(command):
        if command in done:
            return
        how = HOW[command]
        for before in how.after:
            run(before)
        if "tritonclient" in command:
            pytest.importorskip("tritonclient.http")
        line = shell_line(command)
        has_weights = any((sandbox / "home").glob("*.pdparams"))
        if re.search("EfficientNetB|finetune", line) and not how.code and not has_weights:
            publish(sandbox)
        environment = {"PYTHONPATH": str(sandbox), "PPCLS_HOME": str(sandbox / "home")}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        options = {"cwd": sandbox, "env": os.environ | environment, "text": True}
        if re.match(SERVER, command):
            with server(line, options):
                pass
        elif how.beside:
            with server(shell_line(how.beside), options) as port:
                run_line(line.replace(":8000", f":{port}"), how.code, options)
        else:
            run_line(line, how.code, options)
        done.add(command)

    return run


def test_how_says_of_each_documented_command_how_it_is_run():
    shown = {
        command: str(path.relative_to(ROOT))
        for path in DOCUMENTS
        for command in documented(path.read_text(encoding="utf-8"))
    }
    missing = [f"{path}: {command}" for command, path in shown.items() if command not in HOW]
    assert not missing, "\n".join(["add to HOW in tests/test_documented.py how these are run:", *missing])
    gone = [command for command in HOW if command not in shown]
    assert not gone, "\n".join(["remove from HOW in tests/test_documented.py, no document has it:", *gone])


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, id=" ".join(command.split())[:90], marks=() if how.quick else pytest.mark.slow)
        for command, how in HOW.items()
        if isinstance(how, Run)
    ],
)
def test_the_command_runs(command, call):
    call(command)
