"""Write golden/checkpoints/*: files as training scripts of other projects save them, by torch itself.

Two steps, as no environment needs both frameworks:

    PYTHONPATH=. python tests/golden/make_checkpoints.py --arrays /tmp/mini.npz   # this project's environment
    pip install torch==2.13.0 numpy
    python tests/golden/make_checkpoints.py /tmp/mini.npz
"""

import argparse
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FOLDER = HERE / "checkpoints"


def write_arrays(path: Path) -> None:
    """Draw the network's weights, "raw" and "average", with the names and the layouts of two projects."""
    sys.path.insert(0, str(FOLDER))
    from mini import CLASSES, MINI, draw

    from ppcls.architectures import MODELS, build_model
    from ppcls.weights.keymaps import TRANSPOSED, key_map

    MODELS["Mini"] = MINI
    shapes = {key: tuple(p.shape) for key, p in build_model("Mini", CLASSES).state_dict().items()}
    arrays = {}
    for source in ("timm", "torchvision"):
        names = key_map(source, "Mini", shapes)
        for kind in ("raw", "average"):
            for key, shape in shapes.items():
                array = draw(kind, key, shape)
                arrays[f"{source}/{kind}/{names[key]}"] = array.T if key in TRANSPOSED else array
    np.savez(path, **arrays)


def write_files(path: Path) -> None:
    import torch
    from torch import nn
    from torch.optim.swa_utils import AveragedModel

    arrays = np.load(path)

    class Network(nn.Module):
        """A module with parameters and buffers of these names. It computes nothing."""

        def fill(self, values):
            for name, array in values.items():
                *places, leaf = name.split(".")
                module = self
                for place in places:
                    if not hasattr(module, place):
                        module.add_module(place, nn.Module())
                    module = getattr(module, place)
                tensor = torch.from_numpy(np.ascontiguousarray(array))
                if leaf.startswith("running_"):
                    module.register_buffer(leaf, tensor)
                    module.register_buffer("num_batches_tracked", torch.tensor(7))
                else:
                    module.register_parameter(leaf, nn.Parameter(tensor))
            return self

    def network(source="timm", kind="raw"):
        start = f"{source}/{kind}/"
        return Network().fill(
            {key.removeprefix(start): arrays[key] for key in arrays if key.startswith(start)}
        )

    def average(source, updates):
        averaged = AveragedModel(network(source), use_buffers=True)
        for _ in range(updates):
            averaged.update_parameters(network(source, "average"))
            averaged.avg_fn = lambda old, new, count: new
        averaged.module.load_state_dict(network(source, "average").state_dict())
        return averaged

    def optimizer(model):
        sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for parameter in list(model.parameters())[:2]:
            parameter.grad = torch.ones_like(parameter)
        sgd.step(lambda: None)
        return sgd.state_dict()

    def save(name, value, **options):
        torch.save(value, FOLDER / name, **options)

    raw, mean = network().state_dict(), network(kind="average").state_dict()
    args = argparse.Namespace(
        model="tf_efficientnet_b0", output=Path("out"), device=torch.device("cpu"), lr=[0.1]
    )
    timm = {"epoch": 3, "arch": "tf_efficientnet_b0", "optimizer": optimizer(network()), "version": 2}
    timm |= {"args": args, "metric": np.float64(0.5), "state_dict": raw, "state_dict_ema": mean}
    save("timm.pth.tar", timm)
    save("timm.stream.pth.tar", timm, _use_new_zipfile_serialization=False)
    parameters = OrderedDict((key, value) for key, value in mean.items() if "running" not in key)
    save("ema_incomplete.pth", {"state_dict": raw, "ema": parameters})

    vision = {"model": network("torchvision").state_dict(), "optimizer": optimizer(network("torchvision"))}
    vision |= {
        "lr_scheduler": {"last_epoch": 3},
        "epoch": 3,
        "args": argparse.Namespace(model="efficientnet_b0"),
    }
    save("torchvision.pth", vision | {"model_ema": average("torchvision", 5).state_dict()})
    save("torchvision_ema_unused.pth", vision | {"model_ema": average("torchvision", 0).state_dict()})
    save("averaged_model.pth", average("timm", 3).state_dict())

    # Lightning's classes, which torch writes by their names alone
    for module in (
        "lightning",
        "lightning.fabric",
        "lightning.fabric.utilities",
        "lightning.fabric.utilities.data",
    ):
        sys.modules[module] = types.ModuleType(module)
    attributes = type("AttributeDict", (dict,), {"__module__": "lightning.fabric.utilities.data"})
    sys.modules["lightning.fabric.utilities.data"].AttributeDict = attributes
    state = {f"model.{key}": value for key, value in raw.items()}
    state["criterion.weight"] = torch.ones(3)
    lightning = {"epoch": 1, "global_step": 20, "pytorch-lightning_version": "2.5.1", "state_dict": state}
    lightning |= {
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [optimizer(network())],
    }
    lightning |= {"hparams_name": "kwargs", "hyper_parameters": attributes(lr=0.1, model_name="x")}
    save("lightning.ckpt", lightning)

    wrapped = {"net": {f"module._orig_mod.{key}": value for key, value in raw.items()}}
    wrapped |= {
        "acc": np.float32(91.5),
        "classes": {"cat", "dog"},
        "seen": frozenset({1}),
        "dtype": torch.float16,
    }
    wrapped |= {"history": defaultdict(list, loss=[1.0]), "matrix": {(0, 1): 3}, "rng": torch.get_rng_state()}
    wrapped |= {"numpy": np.random.RandomState(0), "when": np.datetime64("2024-01-01"), "path": Path("/data")}
    save("wrapped.pth", wrapped)
    both = {"student": raw, "teacher": {f"backbone.{key}": value for key, value in mean.items()}}
    save("two_networks.pth", both)
    head = {"classifier.weight", "classifier.bias"}
    bare = {key: value for key, value in raw.items() if key not in head}
    save("no_head.pth", {"model_state_dict": bare})
    mlp = {"classifier.0.weight": torch.ones(5, 8), "classifier.0.bias": torch.ones(5)}
    save("mlp_head.pth", {"model_state_dict": bare | mlp})

    sys.modules["train"] = types.ModuleType("train")
    sys.modules["train"].Network = Network
    Network.__module__, Network.__qualname__ = "train", "Network"
    save("whole_model.pth", network())
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(FOLDER / "script.pt"))


if __name__ == "__main__":
    if sys.argv[1] == "--arrays":
        write_arrays(Path(sys.argv[2]))
    else:
        write_files(Path(sys.argv[1]))
