"""What is measured: prototxts become models with generated weights; images become list files.

Where the folder of networks is missing the built-in demo network and drawn pictures take over,
so that every command runs anywhere.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import int8calib
from int8calib.demo import CAFFEMODEL, MEAN, NORM, PROTOTXT, draw

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = (
    "squeezenet_v1.1",
    "mobilenet_v1",
    "mobilenet_v2",
    "googlenet_v1",
    "resnet18",
    "resnet50",
    "mobilenet_v1_ssd300",
)
DEMO = "demo"
DRAWN = 60
"""Pictures drawn where there are no photos; longer lists repeat them."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Network:
    """One model on disk, and the preprocessing its calibration uses."""

    name: str
    proto: Path
    model: Path
    mean: tuple[float, ...]
    norm: float

    def load(self) -> int8calib.Net:
        """The network, ready to run."""
        return int8calib.load_caffe(self.proto, self.model)


@dataclass(frozen=True)
class Material:
    """All that is measured on: networks, image files, and the folder for what is made."""

    networks: tuple[Network, ...]
    images: tuple[Path, ...]
    folder: Path

    def one(self, *names: str) -> Network:
        """The first of `names` that there is, else the first network."""
        known = {network.name: network for network in self.networks}
        return next((known[name] for name in names if name in known), self.networks[0])

    def image_list(self, count: int) -> Path:
        """A list file of `count` images, repeated from the start where there are fewer."""
        path = self.folder / f"images_{len(self.images)}_{count}.txt"
        lines = islice(cycle(map(str, self.images)), count)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def shared_folder() -> Path:
    """The folder that may hold networks and photos (`INT8CALIB_SHARED`, else beside the repo)."""
    return Path(os.environ.get("INT8CALIB_SHARED") or ROOT.parent / "shared")


def gather(folder: Path, names: Sequence[str], say: Say) -> Material:
    """The networks of `names` and the images; made in `folder`, and used again later."""
    folder.mkdir(parents=True, exist_ok=True)
    prototxts = shared_folder() / "networks"
    networks = []
    for name in names:
        source = prototxts / f"{name}.prototxt"
        if name != DEMO and source.is_file():
            networks.append(_generated(folder, name, source.read_text(encoding="utf-8"), say))
        elif name != DEMO:
            say(f"{name}: there is no {source}")
    if not networks or DEMO in names:
        networks.append(Network(DEMO, PROTOTXT, CAFFEMODEL, MEAN, NORM))
    return Material(tuple(networks), _images(folder, say), folder)


def _generated(folder: Path, name: str, text: str, say: Say) -> Network:
    """A model with generated weights; made anew where prototxt or generator have changed."""
    source = ROOT / "tests" / "generated.py"
    key = hashlib.sha256(source.read_bytes() + text.encode()).hexdigest()[:12]
    place = folder / key
    proto, model = place / f"{name}.prototxt", place / f"{name}.caffemodel"
    if not model.is_file():
        say(f"{name}: generating weights")
        place.mkdir(exist_ok=True)
        _load(source).make_model(place, text, name=f"{name}.part")
        (place / f"{name}.part.prototxt").replace(proto)
        (place / f"{name}.part.caffemodel").replace(model)
    return Network(name, proto, model, MEAN, 1.0)


def _load(path: Path) -> Any:
    """A module by its file: the tests' generator is in no package."""
    spec = importlib.util.spec_from_file_location("generated_models", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _images(folder: Path, say: Say) -> tuple[Path, ...]:
    photos = sorted((shared_folder() / "images" / "imagenet_300").glob("*.jp*g"))
    if photos:
        return tuple(photos)
    drawn = folder / f"drawn_{DRAWN}"
    if len(list(drawn.rglob("*.png"))) != DRAWN:
        say(f"there are no photos; drawing {DRAWN} pictures")
        draw.write_images(drawn, DRAWN, 1)
    return tuple(sorted(drawn.rglob("*.png")))
