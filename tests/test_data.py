import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blockpunch import data
from blockpunch.errors import DataError


def write_image(path: Path, width: int, height: int, colour=(255, 0, 0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)
    return path


def test_preprocess_normalises_each_channel_in_the_networks_order(tmp_path):
    path = write_image(tmp_path / "a.png", 40, 30, (255, 51, 0))
    plain = data.Preprocess(resize=24, crop=16)(path)
    assert plain.shape == (3, 16, 16) and plain.dtype == np.float32
    expected = (np.array([1.0, 0.2, 0.0]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(plain[:, 3, 5], expected, rtol=1e-5)
    turned = data.Preprocess(resize=24, crop=16, mean=(1, 2, 3), std=(1, 1, 2), scale=1.0, bgr=True)(path)
    np.testing.assert_allclose(turned[:, 0, 0], [0 - 1, 51 - 2, (255 - 3) / 2])


def test_preprocess_crops_the_centre(tmp_path):
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, 5:15] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    result = data.Preprocess(resize=None, crop=10, **data.PREPROCESS["bytes"])(tmp_path / "a.png")
    assert (result == 200).all()


def test_a_crop_larger_than_the_photo_is_refused(tmp_path):
    with pytest.raises(DataError, match="smaller than the crop"):
        data.Preprocess(resize=None, crop=64)(write_image(tmp_path / "a.png", 32, 90))


def test_named_recipes_and_unknown_ones():
    assert data.Preprocess.named("efficientnet-lite", 224).resize == 256
    zero = data.Preprocess.named("inception").normalise(np.zeros((1, 1, 3), np.uint8))
    np.testing.assert_allclose(zero.ravel(), -1)
    with pytest.raises(DataError, match="imagenet, inception"):
        data.Preprocess.named("mine")


def test_missing_empty_and_damaged(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        data.list_images(tmp_path / "none")
    with pytest.raises(DataError, match="no image in the folder"):
        data.list_images(tmp_path)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 this is not a photo")
    with pytest.raises(DataError, match=r"bad\.jpg.*not a readable image"):
        data.load_images(data.list_images(tmp_path), data.Preprocess())


def test_truncated_photo_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="not a readable image"):
        data.open_image(path)


def test_photos_of_different_sizes_need_a_crop(tmp_path):
    paths = [write_image(tmp_path / "a.png", 8, 8), write_image(tmp_path / "b.png", 8, 9)]
    with pytest.raises(DataError, match=r"b\.png.*\(3, 9, 8\)"):
        data.load_images(paths, data.Preprocess(resize=None, crop=None))


def test_a_limit_is_spread_over_the_classes(tmp_path):
    for name in ("ant", "bee", "cat"):
        for i in range(4):
            write_image(tmp_path / name / f"{i}.png", 4, 4)
    paths, labels, names = data.class_folders(tmp_path, limit=6)
    assert names == ["ant", "bee", "cat"] and labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [p.parent.name for p in paths] == ["ant", "ant", "bee", "bee", "cat", "cat"]
    with pytest.raises(DataError, match="leaves none"):
        data.list_images(tmp_path, limit=0)
    assert data.list_images(tmp_path)[0] == tmp_path / "ant" / "0.png"


@pytest.mark.parametrize(("row", "message"), [
    ("a.png,12", "label 12 is out of range"), ("a.png,-1", "out of range"), ("a.png,x", "is not file,label"),
    ("b.png,1", "does not exist"), ("a.png", "is not file,label")])
def test_bad_rows_name_their_line(tmp_path, row, message):
    write_image(tmp_path / "images" / "a.png", 4, 4)
    (tmp_path / "labels.csv").write_text(f"file,label\na.png,3\n{row}\n")
    with pytest.raises(DataError, match=rf"line 3.*{message}"):
        data.labelled_images(tmp_path, classes=10)


def test_labels_are_read(tmp_path):
    with pytest.raises(DataError, match=r"no labels\.csv"):
        data.labelled_images(tmp_path)
    write_image(tmp_path / "images" / "a.png", 4, 4)
    (tmp_path / "labels.csv").write_text("file,label\na.png,3\n\n")
    paths, labels = data.labelled_images(tmp_path, classes=10)
    assert paths == [tmp_path / "images" / "a.png"] and labels.tolist() == [3]


def cifar_batch(folder: Path, name: str, pixels, labels) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2))


def test_cifar_batches_are_read(tmp_path, rng):
    folder = tmp_path / "cifar-10-batches-py"
    pixels = rng.integers(0, 255, (6, 3072), np.uint8)
    cifar_batch(folder, "test_batch", pixels, [0, 1, 2, 3, 9, 9])
    images, labels = data.cifar10(tmp_path, "test")
    np.testing.assert_array_equal(images[4].ravel(), pixels[4])
    assert images.shape == (6, 3, 32, 32) and labels.tolist() == [0, 1, 2, 3, 9, 9]
    with pytest.raises(DataError, match="data_batch_1"):
        data.cifar10(tmp_path, "train")
    cifar_batch(folder, "test_batch", pixels, [0, 1, 2, 3, 9, 10])
    with pytest.raises(DataError, match="do not fit"):
        data.cifar10(folder, "test")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    cifar_batch(tmp_path, "test_batch", Evil(), [1])
    with pytest.raises(DataError, match="not a CIFAR-10 batch"):
        data.cifar10(tmp_path, "test")
    assert not (tmp_path / "ran").exists()


def test_yolo_boxes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("3 0.5 0.5 0.25 1\n\n0 0.1 0.2 0.1 0.1\n")
    np.testing.assert_allclose(data.yolo_boxes(path, classes=4)[0], [3, 0.5, 0.5, 0.25, 1])
    with pytest.raises(DataError, match="class is out of range"):
        data.yolo_boxes(path, classes=3)
    path.write_text("0 1.5 0.5 0.25 1\n")
    with pytest.raises(DataError, match="outside the photo"):
        data.yolo_boxes(path)
    path.write_text("0 1.5\n")
    with pytest.raises(DataError, match="not a list of YOLO boxes"):
        data.yolo_boxes(path)
    path.write_text("")
    assert data.yolo_boxes(path).shape == (0, 5)


def test_coco_boxes(tmp_path):
    path = tmp_path / "instances.json"
    content = {"images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 50},
                          {"id": 9, "file_name": "b.jpg", "width": 10, "height": 10}],
               "categories": [{"id": 18}, {"id": 3}],
               "annotations": [{"image_id": 7, "category_id": 18, "bbox": [10, 20, 20, 10]}]}
    path.write_text(json.dumps(content))
    boxes = data.coco_boxes(path)
    np.testing.assert_allclose(boxes["a.jpg"], [[1, 0.2, 0.5, 0.2, 0.2]])
    assert boxes["b.jpg"].shape == (0, 5)
    content["annotations"][0]["image_id"] = 8
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="not COCO annotations"):
        data.coco_boxes(path)


def test_data_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOCKPUNCH_DATA", str(tmp_path))
    assert data.data_root() == tmp_path
    monkeypatch.setenv("BLOCKPUNCH_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match="BLOCKPUNCH_DATA"):
        data.data_root()


def test_sample_photos_make_many_different_patches():
    photos = data.sample_photos()
    assert len(photos) >= 8
    crops = data.patches(photos[:3], 6, 48, seed=1)
    assert crops.shape == (6, 48, 48, 3) and crops.dtype == np.uint8
    assert crops.std(axis=(1, 2, 3)).min() > 5, "a real photo is not flat"
    assert (crops[0] != crops[3]).any()
    np.testing.assert_array_equal(crops, data.patches(photos[:3], 6, 48, seed=1))


def test_shared_validation_list(datasets):
    paths, labels = data.labelled_images(datasets / "imagenet_val", classes=1000, limit=20)
    assert len(paths) == 20 and len(set(labels.tolist())) > 10
    assert data.Preprocess.named("imagenet")(paths[0]).shape == (3, 224, 224)
