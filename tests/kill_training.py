"""Kill a real training run at random moments, resume it with --resume auto each time, and compare the end
with an uninterrupted run's, bit for bit.

    python tests/kill_training.py --kills 50 --ranks 2

SIGKILL goes to the process, with several ranks to the launcher or to one of them; SIGTERM and SIGINT to the
process or the launcher. --shards near packs the pictures into shards; far reads these from a server.
"""

import argparse
import contextlib
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from helpers import ROOT, draw_classes
from safetensors.numpy import load_file

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def prepare(folder):
    """16 drawn pictures of three classes, and a config that needs all that a state holds."""
    draw_classes(folder / "pictures", 16, 32, 32)
    (folder / "eval.txt").write_text("a/0.png 0\nb/1.png 1\nc/2.png 2\na/3.png 0\n")
    root, half = str(folder / "pictures"), [0.5, 0.5, 0.5]
    tree = {
        "model": {"name": "EfficientNetB0_small", "num_classes": 3, "bn_momentum": 0.5},
        "data": {"train_root": root, "eval_root": root, "batch_size": 2, "num_workers": 1},
        "augment": {"mixup": 0.2},
        "train": {"epochs": 3, "ema_decay": 0.9, "accumulate": 2, "checkpoint_steps": 2},
        "optim": {"lr": 0.1},
        "device": "cpu",
    }
    sizes = {"resize_short": 64, "crop_size": 64, "interpolation": "bilinear", "antialias": False}
    tree["data"]["preprocessing"] = sizes | {"mean": half, "std": half}
    tree["data"] |= {"eval_list": str(folder / "eval.txt"), "allow_overlap": True}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def put_into_shards(folder, stack, is_far):
    """Pack the pictures into shards of a few, and let the config name them; far: at a server, range_server,
    one of whose answers breaks off now and then."""
    shards, root = folder / "shards", folder / "pictures"
    if not shards.exists():
        command = [sys.executable, "-m", "ppcls.data", "pack", str(root), str(shards), "--shard-size", "9kB"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    place = shards
    if is_far:
        command = [sys.executable, str(ROOT / "tests/range_server.py"), str(shards), "0.005"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        stack.callback(server.kill)
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        place = folder / "far.safetensors"
        names = [f"{url}/{path.name}" for path in sorted(shards.glob("*.tar"))]
        command = [sys.executable, "-m", "ppcls.data", "index", *names, "--output", str(place)]
        classes = ["--class-names", str(folder / "classes.txt")]
        (folder / "classes.txt").write_text("a\nb\nc\n")
        subprocess.run([*command, *classes], check=True, cwd=ROOT, stderr=subprocess.DEVNULL)
        (shards / "faults.json").write_text('{"cut": 5}')
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    tree["data"] |= {"train_list": str(place)} if is_far else {"train_root": str(place)}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def start(folder, output, ranks, log):
    """tools/train.py, on one rank or under the launcher, in a process group of its own."""
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), "--log_dir", f"{output}-log"]
    command = [sys.executable, *(launch if ranks > 1 else []), str(ROOT / "tools/train.py")]
    command += ["-c", str(folder / "config.yaml"), "-o", f"output_dir={output}", "--resume", "auto"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
    )


def ranks_of(launcher):
    """The processes that a launcher has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == launcher:
                found.append(int(path.parent.name))
    return sorted(found)


def wait_for_ranks(pids, output, seconds=60):
    """Until those processes have ended and the folder is free; raises TimeoutError."""
    limit = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > limit:
            raise TimeoutError(f"ranks {pids} have outlived their launcher by {seconds} s")
        time.sleep(0.1)
    lock = output / "run.lock"
    if lock.exists():
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def measure(folder, output, ranks, log):
    """The reference: seconds until the run wrote its config, and until its end."""
    begin = time.monotonic()
    process = start(folder, output, ranks, log)
    while not (output / "train.yaml").exists() and process.poll() is None:
        time.sleep(0.05)
    ready = time.monotonic() - begin
    if process.wait(timeout=300):
        raise SystemExit(f"the uninterrupted run failed with {process.returncode}: see {log.name}")
    return ready, time.monotonic() - begin


def kill_once(process, number, delay, ranks, draw):
    """Send the signal after so long, and wait for the end. Returns the ranks there were, and whether the run
    had ended by itself."""
    try:
        process.wait(timeout=delay)
        return [], True
    except subprocess.TimeoutExpired:
        pass
    pids = ranks_of(process.pid) if ranks > 1 else []
    target = process.pid
    if number == signal.SIGKILL and pids and draw.random() < 0.5:
        target = draw.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(target, number)
    process.wait(timeout=60)  # a failed rank ends the job within 30 s
    return pids, False


def files_of(output):
    """What must be the same: weights, and the lines of metrics.jsonl but for what a clock says."""
    arrays = {}
    for name in ("last", "best"):
        path = output / "checkpoints" / name / "model.safetensors"
        arrays |= {f"{name}/{key}": array for key, array in load_file(path).items()}
    state = sorted((output / "checkpoints").glob("state-*.safetensors"))[-1]
    arrays |= {f"state/{key}": array for key, array in load_file(state).items() if key != "ranks"}
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    clocks = ("images_per_second", "data_wait", "eval_images_per_second")
    return arrays, [{k: v for k, v in line.items() if k not in clocks} for line in lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", choices=("near", "far"))
    parser.add_argument("--folder", type=Path, help="kept; by default one that is deleted")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(folder.absolute())
        if args.shards:
            put_into_shards(folder.absolute(), stack, args.shards == "far")
        run(folder.absolute(), args)


def run(folder, args):
    draw = random.Random(args.seed)
    whole = folder / "whole"
    kills, rounds = 0, 0
    with (folder / "runs.log").open("w") as log:
        ready, end = measure(folder, whole, args.ranks, log)
        print(f"uninterrupted: {ready:.1f} s to its start, {end:.1f} s in all", flush=True)
        expected, expected_lines = files_of(whole)
        while kills < args.kills:
            rounds += 1
            output = folder / f"killed{rounds}"
            is_over = False
            while not is_over and kills < args.kills:
                number, delay = SIGNALS[kills % 3], ready + draw.uniform(-0.3, 0.45) * (end - ready)
                process = start(folder, output, args.ranks, log)
                pids, is_over = kill_once(process, number, delay, args.ranks, draw)
                if not is_over:
                    kills += 1
                    wait_for_ranks(pids, output)
                    states = [path.name[6:15] for path in sorted(output.glob("checkpoints/state-*"))]
                    print(
                        f"{kills}: {number.name} after {delay:.1f} s, exit code {process.returncode}; "
                        f"states {', '.join(states)}",
                        flush=True,
                    )
            process = start(folder, output, args.ranks, log)
            if process.wait(timeout=300):
                raise SystemExit(f"the last resume failed with {process.returncode}: see {folder}/runs.log")
            found, lines = files_of(output)
            differ = [key for key in expected if (expected[key] != found[key]).any()]
            if differ or found.keys() != expected.keys() or lines != expected_lines:
                raise SystemExit(f"{output} differs from the uninterrupted run: {differ[:5]}, {lines}")
            print(f"run {rounds}: {len(found)} tensors and {len(lines)} lines equal", flush=True)


if __name__ == "__main__":
    main()
