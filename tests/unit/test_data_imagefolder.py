"""A folder of photographs: its index, its boxes, its pixels, and files that do not decode."""

from __future__ import annotations

import builtins
import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from squall.data import sources
from squall.data.decode import Box, UndecodableError, decode, resize
from squall.data.fileops import parse_ops
from squall.data.folder import scan
from squall.data.imagefolder import ImageFolder
from squall.errors import InputError, MissingExtraError
from squall.rng import Stream, mix, mix_array, uniform

TRAIN = [{"random_resized_crop": 64}, {"horizontal_flip": 0.5}]
TEST = [{"resize": 72}, {"center_crop": 64}]


@pytest.fixture(scope="session")
def photos(real_data: Path) -> Path:
    return real_data / "caltech101-subset"


@pytest.fixture
def small(tmp_path: Path, photos: Path) -> Path:
    """Two classes of three photographs, the same for testing."""
    root = tmp_path / "sets" / "mine"
    for place in ("train", "val"):
        for name in ("laptop", "watch"):
            (root / place / name).mkdir(parents=True)
            for number in (1, 2, 3):
                source = photos / "train" / name / f"image_000{number}.jpg"
                (root / place / name / source.name).write_bytes(source.read_bytes())
    return root


# --- the index


def test_index_of_the_real_folder(photos: Path):
    train, test = sources.load("imagefolder", photos, "train"), sources.load("imagefolder", photos, "test")
    assert isinstance(train, sources.FolderIndex)
    assert isinstance(test, sources.FolderIndex)
    assert (len(train), len(test)) == (780, 260)
    assert train.classes == test.classes
    assert train.classes[:3] == ("Motorbikes", "airplanes", "bonsai")  # byte order: capitals first
    assert np.bincount(train.labels).tolist() == [60] * 13
    assert np.bincount(test.labels).tolist() == [20] * 13
    assert train.path(61) == photos / "train" / "airplanes" / "image_0002.jpg"
    assert train.labels[61] == 1
    sources.check("imagefolder", photos)


def test_paths_are_one_array_without_python_objects(photos: Path):
    index = scan(photos, "train")
    assert index.paths.dtype.kind == "S"
    assert index.labels.dtype == np.int64
    again = pickle.loads(pickle.dumps(index))
    assert [again.path(i) for i in (0, 779)] == [index.path(i) for i in (0, 779)]


def test_names_in_any_script_below_folders_and_hidden_files(small: Path):
    (small / "train" / "watch" / "more").mkdir()
    odd = small / "train" / "watch" / "more" / "Uhr Ä 時計.JPEG"
    shutil.copyfile(small / "train" / "watch" / "image_0001.jpg", odd)
    (small / "train" / "watch" / ".image_0009.jpg").write_bytes(b"")
    (small / "train" / "watch" / "Thumbs.db").write_bytes(b"")
    (small / "train" / ".cache").mkdir()
    index = scan(small, "train")
    assert len(index) == 7
    assert index.path(6) == odd


def test_test_folder_wins_over_val(small: Path):
    shutil.copytree(small / "val" / "watch", small / "test" / "watch")
    index = scan(small, "test")
    assert index.labels.tolist() == [1, 1, 1]  # numbered as in training
    assert index.path(0).parent == small / "test" / "watch"


def test_class_that_training_lacks_is_named(small: Path):
    (small / "val" / "laptop").rename(small / "val" / "laptops")
    with pytest.raises(InputError, match="mine/val has classes that train lacks") as error:
        scan(small, "test")
    assert dict(error.value.rows)["near"] == "laptop"


def test_folder_without_the_layout_says_what_is_needed(tmp_path: Path, small: Path):
    with pytest.raises(InputError, match="there is no folder"):
        sources.load("imagefolder", tmp_path / "none", "train")
    shutil.rmtree(small / "val")
    with pytest.raises(InputError, match="is not whole") as error:
        sources.check("imagefolder", small)
    assert dict(error.value.rows)["missing"] == "val/<class>/*.jpg (or test/)"
    for file in (small / "train" / "laptop").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="mine/train/laptop holds no images"):
        scan(small, "train")


def test_empty_file_is_found_by_the_cheap_check(small: Path):
    (small / "val" / "watch" / "image_0002.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"mine/val/watch/image_0002\.jpg is empty"):
        sources.check("imagefolder", small)


# --- boxes


def test_evaluation_box_is_resize_then_centre_crop():
    ops = parse_ops([{"resize": 256}, {"center_crop": 224}])
    top, left, rows, columns = ops.box(300, 500, (0, 0, 0))
    unit = 300 / 256
    assert (rows, columns) == (224 * unit, 224 * unit)
    assert (top, left) == ((300 - rows) / 2, (500 - columns) / 2)
    assert parse_ops([{"resize": [64, 96]}]).box(300, 500, (0, 0, 0)) == Box(0, 0, 300, 500)


def test_drawn_boxes_lie_inside_and_keep_area_and_ratio():
    ops = parse_ops([{"random_resized_crop": 64, "scale": [0.25, 0.5]}])
    boxes = np.array([ops.box(300, 400, (0, 0, sample)) for sample in range(2000)])
    top, left, rows, columns = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + rows <= 300).all()
    assert (left + columns <= 400).all()
    area, ratio = rows * columns / 120_000, columns / rows
    assert area.min() > 0.245
    assert area.max() < 0.505
    assert ratio.min() > 0.74
    assert ratio.max() < 1.36
    # uniform in area and in the logarithm of the ratio
    assert abs(area.mean() - 0.375) < 4 * 0.25 / np.sqrt(12 * 2000)
    assert abs(np.log(ratio).mean()) < 4 * 2 * np.log(4 / 3) / np.sqrt(12 * 2000)
    # the corner is uniform over the room that is left
    assert abs((top / np.maximum(300 - rows, 1)).mean() - 0.5) < 0.03
    assert abs((left / np.maximum(400 - columns, 1)).mean() - 0.5) < 0.03


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1)])
def test_picture_of_extreme_shape_still_gives_a_box(height: int, width: int):
    ops = parse_ops([{"random_resized_crop": 64, "scale": [0.9, 1.0]}])
    for sample in range(50):
        top, left, rows, columns = ops.box(height, width, (0, 0, sample))
        assert 0 <= top <= height - rows
        assert 0 <= left <= width - columns
        assert rows > 0
        assert columns > 0


def test_boxes_and_flips_depend_on_seed_epoch_and_sample_only():
    ops = parse_ops(TRAIN)
    keys = [(seed, epoch, sample) for seed in (0, 1) for epoch in (0, 1) for sample in (0, 1)]
    boxes = [ops.box(300, 400, key) for key in keys]
    assert len(set(boxes)) == len(keys)
    assert [ops.box(300, 400, key) for key in reversed(keys)] == boxes[::-1]


def test_flips_are_those_of_the_batch_transform():
    ops = parse_ops(TRAIN)
    hashes = mix_array(mix(Stream.FLIP, 5, 3), np.arange(500))
    assert [ops.flipped((5, 3, sample)) for sample in range(500)] == (uniform(hashes) < 0.5).tolist()


def test_wrong_operations_are_all_named_at_once():
    with pytest.raises(InputError) as error:
        parse_ops(
            [{"random_resize_crop": 224}, {"horizontal_flip": 2}, {"resize": 64}, {"center_crop": 80, "padding": 4}]
        )
    text = error.value.text()
    assert error.value.headline.startswith("4 mistakes")
    for part in ("random_resized_crop", "a probability from 0 to 1", "larger than resize=64", "padding=4"):
        assert part in text


@pytest.mark.parametrize(
    ("ops", "rule"),
    [
        ([], "images of many sizes need random_resized_crop"),
        ([{"resize": 64}], "images of many sizes need random_resized_crop"),
        ([{"random_resized_crop": 0}], "an edge in pixels"),
        ([{"random_resized_crop": True}], "an edge in pixels"),
        ([{"random_resized_crop": 64}, {"random_resized_crop": 64}], "stands twice"),
        ([{"random_resized_crop": 64, "scale": [1.0, 0.5]}], "the smaller first"),
        ([{"resize": [80, 80]}, {"center_crop": 64}], "one number, the short side"),
    ],
)
def test_operations_that_give_no_one_size_are_refused(ops, rule: str):
    with pytest.raises(InputError, match=rule):
        parse_ops(ops)


# --- pixels


def test_resized_pixels_are_those_of_pillow():
    rng = np.random.default_rng(0)
    smooth = np.array(Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((160, 120)))
    for part, size in (
        (Box(10, 20, 90, 100), (40, 30)),
        (Box(0, 0, 120, 160), (64, 64)),
        (Box(5, 5, 20, 20), (50, 50)),
    ):
        top, left, rows, columns = (int(v) for v in part)
        cut = Image.fromarray(smooth[top : top + rows, left : left + columns])
        expected = np.array(cut.resize(size[::-1], Image.Resampling.BILINEAR))
        assert np.abs(resize(smooth, part, size).astype(int) - expected).max() <= 1


def test_box_of_the_right_size_is_cut_without_change():
    picture = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    assert np.array_equal(resize(picture, Box(4, 6, 10, 12), (10, 12)), picture[4:14, 6:18])


def test_evaluation_pixels_are_those_of_the_full_picture_to_half_a_pixel(photos: Path):
    data = ImageFolder(scan(photos, "test"), TEST)
    differences = []
    for number in range(0, 260, 20):
        image, label = data[number]
        assert image.shape == (64, 64, 3) == data.shape
        assert image.dtype == np.uint8
        assert label == number // 20
        with Image.open(data.index.path(number)) as opened:
            full = opened.convert("RGB")
        unit = min(full.size) / 72  # a pixel of the result, in pixels of the file
        left, top = full.width / 2 - 32 * unit, full.height / 2 - 32 * unit
        for shift in (0, 2):  # two pixels beside the place, to know how much a wrong place would show
            box = (left - shift * unit, top, left + (64 - shift) * unit, top + 64 * unit)
            box = (max(box[0], 0), max(box[1], 0), min(box[2], full.width), min(box[3], full.height))
            expected = full.resize((64, 64), Image.Resampling.BILINEAR, box=box)
            differences.append(np.abs(image - np.array(expected, dtype=float)).mean())
    right, wrong = np.mean(differences[::2]), np.mean(differences[1::2])
    assert right < 5  # of 255
    assert wrong > 2 * right


def test_scaled_decoding_shows_the_same_picture_as_full_decoding(photos: Path):
    path = photos / "large" / "image_0246.jpg"
    full = simplejpeg.decode_jpeg(path.read_bytes(), "RGB")
    part = Box(100, 60, 700, 500)
    scaled = decode(path, (96, 96), lambda _height, _width: part)
    assert np.abs(scaled.astype(int) - resize(full, part, (96, 96))).mean() < 4


def test_only_as_many_pixels_are_decoded_as_the_box_needs(photos: Path, monkeypatch: pytest.MonkeyPatch):
    decoded = []
    real = simplejpeg.decode_jpeg

    def spy(*args, **kwargs):
        decoded.append(real(*args, **kwargs))
        return decoded[-1]

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    path = photos / "large" / "image_0246.jpg"
    height, width, *_ = simplejpeg.decode_jpeg_header(path.read_bytes())
    decode(path, (96, 96), lambda h, w: Box(0, 0, h, w))
    decode(path, (96, 96), lambda _h, _w: Box(0, 0, 150, 150))
    decode(path, (96, 96), lambda _h, _w: Box(0, 0, 20, 20))
    small, middle, full = (picture.shape for picture in decoded)
    assert min(small[:2]) >= 96
    assert max(small[0] / height, small[1] / width) < 0.26
    assert 96 / 150 <= middle[0] / height < 0.76
    assert full[:2] == (height, width)  # never larger than the file


def test_grey_photographs_get_three_equal_channels(photos: Path):
    index = scan(photos, "train")
    car = int(np.flatnonzero(index.labels == index.classes.index("car_side"))[0])
    image, _ = ImageFolder(index, TRAIN).read(car, 0, 0)
    assert image.std() > 5
    assert np.array_equal(image[..., 0], image[..., 1])
    assert np.array_equal(image[..., 0], image[..., 2])


def test_sample_is_the_same_whenever_it_is_read(photos: Path):
    index = scan(photos, "train")
    one, other = ImageFolder(index, TRAIN), ImageFolder(index, TRAIN)
    keys = [(3, 0), (3, 1), (700, 0)]
    images = [one.read(i, epoch, seed=9)[0] for i, epoch in keys]
    again = [other.read(i, epoch, seed=9)[0] for i, epoch in reversed(keys)]
    assert all(np.array_equal(a, b) for a, b in zip(images, reversed(again), strict=True))
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(one.read(3, 0, 8)[0], images[0])
    assert np.array_equal(one[3][0], one.read(3, 0, 0)[0])
    with pytest.raises(IndexError):
        one[780]


def test_flip_mirrors_the_unflipped_picture(photos: Path):
    index = scan(photos, "train")
    plain = ImageFolder(index, TRAIN[:1]).read(5, 0, 0)[0]
    mirrored = ImageFolder(index, [*TRAIN[:1], {"horizontal_flip": 1}]).read(5, 0, 0)[0]
    assert np.array_equal(mirrored, plain[:, ::-1])
    assert mirrored.flags.c_contiguous


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "palette", "CMYK"])
def test_other_formats_are_read_by_pillow(small: Path, form: str):
    path = next((small / "train" / "laptop").iterdir())
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    changed = {"palette": picture.convert("P"), "CMYK": picture.convert("CMYK")}.get(form, picture)
    out = io.BytesIO()
    changed.save(out, {"palette": "PNG", "CMYK": "JPEG"}.get(form, form))
    odd = path.with_suffix(".jpg")  # a wrong suffix is no matter: the first bytes decide
    odd.write_bytes(out.getvalue())
    got = decode(odd, (48, 48), lambda height, width: Box(0, 0, height, width))
    expected = resize(np.array(picture), Box(0, 0, picture.height, picture.width), (48, 48))
    assert np.abs(got.astype(int) - expected).mean() < 12


# --- files that do not decode


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[: len(data) // 2], "empty": b"", "text": b"<html>404</html>", "start": data[:40]}[kind]
    )


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "start"])
def test_image_that_does_not_decode_is_an_error_that_names_it(small: Path, kind: str):
    damage(small / "train" / "watch" / "image_0002.jpg", kind)
    data = ImageFolder(scan(small, "train"), TRAIN)
    with pytest.raises(InputError, match=r"mine/train/watch/image_0002\.jpg does not decode") as error:
        data.read(4, 0, 0)
    rows = dict(error.value.rows)
    assert rows["found"].endswith(f"(in {small.parent})")
    assert 'data.on_error="skip"' in rows["to do"]


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "start"])
def test_skip_leaves_out_what_does_not_decode_and_nothing_else(small: Path, kind: str):
    damage(small / "train" / "watch" / "image_0002.jpg", kind)
    data = ImageFolder(scan(small, "train"), TRAIN, "skip")
    assert [data.read(i, 0, 0) is None for i in range(6)] == [False, False, False, False, True, False]


def test_file_that_went_away_does_not_decode(small: Path):
    data = ImageFolder(scan(small, "train"), TRAIN)
    data.index.path(0).unlink()
    with pytest.raises(InputError, match="does not decode") as error:
        data[0]
    assert "No such file" in error.value.text()


def test_missing_pillow_is_said_with_its_pip_line_and_never_skipped(small: Path, monkeypatch: pytest.MonkeyPatch):
    path = small / "train" / "watch" / "image_0002.jpg"
    with Image.open(path) as opened:
        opened.save(path.with_suffix(".png"))
    path.unlink()
    real = builtins.__import__

    def without_pillow(name, *args, **kwargs):
        if name == "PIL" or name.startswith("PIL."):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    data = ImageFolder(scan(small, "train"), TRAIN, "skip")
    assert data.read(3, 0, 0) is not None  # a JPEG needs no Pillow
    with pytest.raises(MissingExtraError) as error:
        data.read(4, 0, 0)
    assert "pip install 'squall-train[images]'" in error.value.text()


def test_text_under_the_name_of_a_jpeg_needs_no_pillow_to_be_refused(small: Path, monkeypatch: pytest.MonkeyPatch):
    path = small / "train" / "watch" / "image_0002.jpg"
    damage(path, "text")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(UndecodableError, match="does not begin as a JPEG does"):
        decode(path, (8, 8), lambda height, width: Box(0, 0, height, width))


def test_unknown_policy_is_refused(small: Path):
    with pytest.raises(InputError, match="on_error=ignore"):
        ImageFolder(scan(small, "train"), TRAIN, "ignore")  # type: ignore[arg-type]
