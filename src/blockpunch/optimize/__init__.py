"""The main job: plan, prune, recover, compile, measure and report, in a folder in which it can be resumed."""

from blockpunch.optimize.event import Event
from blockpunch.optimize.job import UNIFORM, Job, Settings, rerender
from blockpunch.optimize.mapping import exact_on_images, search_on_images
from blockpunch.optimize.photos import (
    Photos,
    batches,
    check_batches,
    one_shot_photos,
    photo_batches,
    split_photos,
    training_pixels,
)
from blockpunch.optimize.source import ModuleSource, OnnxSource, Source

__all__ = ["UNIFORM", "Event", "Job", "ModuleSource", "OnnxSource", "Photos", "Settings", "Source", "batches",
           "check_batches", "exact_on_images", "one_shot_photos", "photo_batches", "rerender", "search_on_images",
           "split_photos", "training_pixels"]
