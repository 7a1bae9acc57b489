"""Trained models, their pixels and their images: what accuracy is measured on.

Models and photos come from the folder INT8CALIB_SHARED, or ../shared. Where a model is missing it
is left out; where all are, the demo's networks and pictures take over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import int8calib
from benchmarks.networks import shared_folder
from int8calib.demo import (
    CAFFEMODEL,
    DETECTOR_CAFFEMODEL,
    DETECTOR_PROTOTXT,
    MEAN,
    NORM,
    PROTOTXT,
    draw,
    scenes,
)
from int8calib.images import Preprocess, open_source

Image = np.ndarray
PHOTOS, FACES = "images/imagenet_300", "images/faces"
UPSIDE = 260
"""Pixels of the shorter side of photos that plates and codes are drawn on."""


@dataclass(frozen=True)
class Case:
    """One model, how it wants its pixels, and its images.

    Attributes
    ----------
    name, proto, model
        How it is called, and its files.
    pixels
        Arguments of `Preprocess`, from which the options of commands are made too.
    images
        Files, in a fixed order.
    labels
        The class of each image, by path; empty for a network without classes.
    kind
        What it is for, as `int8calib evaluate --kind` names it.
    """

    name: str
    proto: Path
    model: Path
    pixels: Mapping[str, Any]
    images: tuple[Path, ...]
    labels: Mapping[Path, int] = field(default_factory=dict)
    kind: str = "classifier"

    @property
    def network(self) -> list[str]:
        """The options of a command that name the model."""
        return ["--proto", str(self.proto), "--model", str(self.model)]

    @property
    def words(self) -> list[str]:
        """The options of a command that say how pixels become inputs."""
        words = []
        for key, value in self.pixels.items():
            values = value if isinstance(value, tuple | list) else (value,)
            words += [f"--{key.replace('_', '-')}", *map(str, values)]
        return words

    def load(self) -> int8calib.Net:
        """The network in numpy."""
        return int8calib.load_caffe(self.proto, self.model)

    def blobs(self, images: Sequence[Path]) -> Iterator[tuple[str, np.ndarray]]:
        """The input's name and its blob (C, H, W), image by image."""
        ((name, shape),) = self.load().input_shapes.items()
        preprocess = Preprocess(tuple(shape[1:]), **self.pixels)
        source = open_source(list(images))
        for i in range(len(source)):
            yield name, preprocess(source.load(i, gray=preprocess.gray))


CLASSIFIERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "squeezenet_v1.1": ("squeezenet_v1.1.caffemodel", {"mean": (104, 117, 123)}),
    "squeezenet_v1.0": ("squeezenet_v1.0.caffemodel", {"mean": (104, 117, 123)}),
    "bons_imagenet_mod11l": (
        "MobilenetV2-mod11l-ImageNet_iter_850000.caffemodel",
        {"mean": (104, 117, 123), "norm": 0.017, "resize": "crop", "resize_to": 256},
    ),
}
OTHERS: Mapping[str, tuple[str, str, str, Mapping[str, Any]]] = {
    "yufacedet_v1": ("alt_newer.prototxt", "detector", "photos", {"mean": (104, 117, 123)}),
    "ultralight_rfb320": (
        "RFB-320.prototxt",
        "detector",
        "photos",
        {"mean": 127, "norm": 1 / 128, "channel_order": "rgb"},
    ),
    "hyperlpr_mininet_ssd": (
        "mininet_ssd_v1.prototxt",
        "detector",
        "plates",
        {"mean": 127.5, "norm": 0.007843},
    ),
    "wechat_detect": ("detect.prototxt", "detector", "codes", {"norm": 1 / 255}),
    "waifu2x_upconv_7_anime_style_art_rgb_scale20x": (
        "deploy_derived.prototxt",
        "image-to-image",
        "photos",
        {"norm": 1 / 255, "channel_order": "rgb"},
    ),
    "wechat_sr": ("sr.prototxt", "image-to-image", "photos", {"norm": 1 / 255}),
}
PRIORS = (("331", 8, (10, 16, 24)), ("377", 16, (32, 48)), ("417", 32, (64, 96)),
          ("447", 64, (128, 192, 256)))  # fmt: skip
"""Of ultralight_rfb320: a blob of each grid, its step, and the sides of its priors, in pixels.

Source: vision/ssd/config/fd_config.py of Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB, whose
programs decode boxes behind the network."""


def classifiers(folder: Path, names: Sequence[str] = ()) -> list[Case]:
    """The classifiers named that are there, else the demo's; `folder` for what is drawn."""
    shared = shared_folder()
    photos = sorted((shared / PHOTOS).glob("*.jpg"))
    listed = shared / "images" / "imagenet_300_labels.txt"
    cases = []
    for name in names or CLASSIFIERS:
        file, pixels = CLASSIFIERS[name]
        place = shared / "models" / name
        if photos and (place / file).is_file():
            known = dict(line.split() for line in listed.read_text().splitlines())
            labels = {path: int(known[path.name]) for path in photos}
            proto = place / "deploy.prototxt"
            cases.append(Case(name, proto, place / file, pixels, tuple(photos), labels))
    return cases or [_demo(folder)]


def _demo(folder: Path) -> Case:
    place = folder / "shapes"
    if not place.is_dir():
        draw.write_images(place, 300, 3)
    images = tuple(sorted(place.rglob("*.png")))
    classes = sorted({path.parent.name for path in images})
    labels = {path: classes.index(path.parent.name) for path in images}
    return Case("demo", PROTOTXT, CAFFEMODEL, {"mean": MEAN, "norm": NORM}, images, labels)


def detectors(folder: Path, names: Sequence[str] = ()) -> list[Case]:
    """Detectors and networks that make images, those named that are there, else the demo's."""
    models = shared_folder() / "models"
    cases = []
    for name in names or OTHERS:
        file, kind, which, pixels = OTHERS[name]
        place = models / name
        found = sorted(place.glob("*.caffemodel"))
        images = _images(folder, which)
        if not found or not images:
            continue
        proto = place / file
        if name == "ultralight_rfb320":
            proto = _with_boxes(folder, proto)
        cases.append(Case(name, proto, found[0], pixels, images, kind=kind))
    return cases or [_demo_detector(folder)]


def _demo_detector(folder: Path) -> Case:
    place = folder / "scenes"
    if not place.is_dir():
        scenes.write_scenes(place, 200, 3)
    images = tuple(sorted(place.glob("*.png")))
    pixels = {"mean": MEAN, "norm": NORM}
    return Case(
        "demo detector", DETECTOR_PROTOTXT, DETECTOR_CAFFEMODEL, pixels, images, kind="detector"
    )


def _with_boxes(folder: Path, proto: Path) -> Path:
    """A prototxt of ultralight_rfb320 that decodes its boxes itself."""
    text = proto.read_text()
    names = []
    for blob, step, sides in PRIORS:
        names.append(f"prior{blob}")
        sizes = " ".join(f"min_size: {side}" for side in sides)
        text += (
            f'layer {{ name: "prior{blob}" type: "PriorBox" bottom: "{blob}" bottom: "input" top: '
            f'"prior{blob}" prior_box_param {{ {sizes} clip: false step: {step} offset: 0.5 '
            "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 } }\n"
        )
    bottoms = " ".join(f'bottom: "{name}"' for name in names)
    text += (
        f'layer {{ name: "priors" type: "Concat" {bottoms} top: "priors" '
        "concat_param { axis: 2 } }\n"
    )
    for name in ("boxes", "scores"):
        flat = f"{name}_flat"
        text += f'layer {{ name: "{flat}" type: "Flatten" bottom: "{name}" top: "{flat}" }}\n'
    text += (
        'layer { name: "detections" type: "DetectionOutput" bottom: "boxes_flat" '
        'bottom: "scores_flat" bottom: "priors" top: "detections" detection_output_param { '
        "num_classes: 2 share_location: true background_label_id: 0 code_type: CENTER_SIZE "
        "nms_param { nms_threshold: 0.3 top_k: 200 } keep_top_k: 100 confidence_threshold: 0.05 "
        "} }\n"
    )
    made = folder / "ultralight_rfb320.prototxt"
    made.write_text(text)
    return made


def _images(folder: Path, which: str) -> tuple[Path, ...]:
    """Photos, or photos with number plates or QR codes drawn on them."""
    shared = shared_folder()
    photos = [*sorted((shared / FACES).glob("*.jpg")), *sorted((shared / PHOTOS).glob("*.jpg"))]
    if which == "photos" or not photos:
        return tuple(photos)
    place = folder / which
    if len(list(place.glob("*.png"))) != len(photos):
        place.mkdir(parents=True, exist_ok=True)
        rng = np.random.Generator(np.random.PCG64(7))
        for path in photos:
            drawn = _drawn_on(cv2.imread(str(path)), which, rng)
            cv2.imwrite(str(place / f"{path.stem}.png"), drawn)
    return tuple(sorted(place.glob("*.png")))


def _drawn_on(photo: Image, which: str, rng: np.random.Generator) -> Image:
    """A photo with one to three plates or codes, turned and seen from the side a little."""
    scale = UPSIDE / min(photo.shape[:2])
    photo = cv2.resize(photo, None, fx=scale, fy=scale)
    height, width = photo.shape[:2]
    for _ in range(int(rng.integers(1, 4))):
        patch = _plate(rng) if which == "plates" else _code(rng)
        side = rng.uniform(0.25, 0.45) * (width if which == "plates" else height)
        high = side * patch.shape[0] / patch.shape[1]
        left, top = rng.uniform(0, width - side), rng.uniform(0, max(height - high, 1))
        corners = np.array([[0, 0], [side, 0], [side, high], [0, high]]) + np.array([left, top])
        corners += rng.normal(0, 0.03 * high, (4, 2))
        ends = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * patch.shape[1::-1]
        warp = cv2.getPerspectiveTransform(ends.astype(np.float32), corners.astype(np.float32))
        size = (width, height)
        inside = cv2.warpPerspective(np.full(patch.shape[:2], 255, np.uint8), warp, size)
        moved = cv2.warpPerspective(patch, warp, size)
        photo = np.where(inside[..., None] > 127, moved, photo)
    blurred: Image = cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.3, 1.0))
    return blurred


def _plate(rng: np.random.Generator) -> Image:
    """A blue plate of 440 x 140 mm with white signs, as Chinese cars have."""
    plate = np.full((140, 440, 3), (160, 60, 10), np.uint8)
    cv2.rectangle(plate, (5, 5), (434, 134), (240, 240, 240), 3)
    signs = "".join(rng.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"), 6))
    # The first sign is Chinese, which OpenCV's fonts lack: strokes stand for it.
    for _ in range(7):
        ends = rng.integers((15, 30), (60, 110), (2, 2))
        cv2.line(plate, tuple(map(int, ends[0])), tuple(map(int, ends[1])), (240, 240, 240), 7)
    for i, sign in enumerate(signs):
        at = (70 + 60 * i + (12 if i else 0), 108)
        cv2.putText(plate, sign, at, cv2.FONT_HERSHEY_DUPLEX, 2.8, (240, 240, 240), 8)
    return plate


def _code(rng: np.random.Generator) -> Image:
    """A QR code of some digits with its white margin."""
    text = "".join(map(str, rng.integers(0, 10, int(rng.integers(5, 30)))))
    code = cv2.QRCodeEncoder.create().encode(text)
    code = cv2.copyMakeBorder(code, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=255)
    large = cv2.resize(code, None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.cvtColor(large, cv2.COLOR_GRAY2BGR))
