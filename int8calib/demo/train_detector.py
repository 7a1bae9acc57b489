"""Train the demo's detector on drawn scenes: detector.prototxt to detector.caffemodel.

    python -m int8calib.demo.train_detector [--epochs N] [--scenes N] [--threads N] [--output DIR]

Needs torch, as `train` does. The loss is that of SSD (Liu et al. 2016, arXiv:1512.02325): smooth L1
on the boxes of matched priors, cross entropy on the classes with the hardest negatives, three for
each match.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from caffe_proto import NetParameter
from int8calib.demo import DETECTOR_CAFFEMODEL, DETECTOR_PROTOTXT
from int8calib.demo.scenes import CLASSES, Truth, draw_scenes
from int8calib.demo.train import Recipe, TorchNet, fit, pixels, run_recipe

Floats = npt.NDArray[np.float32]
_TRAIN_SEED = 11
_BATCH = 32
_NEGATIVES = 3
_MATCH = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Train and write detector.prototxt and detector.caffemodel."""
    recipe = Recipe(
        DETECTOR_PROTOTXT,
        DETECTOR_CAFFEMODEL,
        samples="scenes",
        epochs=12,
        count=2500,
        train=train,
    )
    run_recipe(recipe, argv, "python -m int8calib.demo.train_detector", __doc__)
    return 0


def train(net: TorchNet, definition: NetParameter, epochs: int, scenes: int) -> None:
    """Fit `net` on drawn scenes: AdamW, one cycle of the learning rate, colors exchanged."""
    import torch

    priors, variances = priors_of(definition)
    images, boxes, labels = _drawn(scenes, priors, variances)
    optimizer = torch.optim.AdamW(net.modules.parameters(), weight_decay=0.01)

    def loss_of(picked: Any) -> Any:
        # No shape has a color of its own, so channels may change places.
        data = pixels(images[picked][:, torch.randperm(3)])
        return _loss(net, data, boxes[picked], labels[picked])

    fit(net, optimizer, 4e-3, loss_of, samples=scenes, batch=_BATCH, epochs=epochs)


def _loss(net: TorchNet, data: Any, boxes: Any, labels: Any) -> Any:
    import torch
    from torch.nn import functional

    blobs = net.blobs(data)
    flat = {
        kind: torch.cat(
            [
                blobs[f"{head}_{kind}"].permute(0, 2, 3, 1).reshape(len(data), -1, size)
                for head in ("conv5", "conv7")
            ],
            1,
        )
        for kind, size in (("loc", 4), ("conf", len(CLASSES)))
    }
    matched = labels > 0
    count = matched.sum().clamp(min=1)
    place = functional.smooth_l1_loss(flat["loc"][matched], boxes[matched], reduction="sum")
    scores = functional.cross_entropy(flat["conf"].transpose(1, 2), labels, reduction="none")
    hard = scores.detach().masked_fill(matched, -1.0)
    ranks = hard.argsort(dim=1, descending=True).argsort(dim=1)
    wanted = (_NEGATIVES * matched.sum(dim=1, keepdim=True)).clamp(min=_NEGATIVES)
    chosen = matched | (ranks < wanted)
    return (place + scores[chosen].sum()) / count


def priors_of(definition: NetParameter) -> tuple[Floats, Floats]:
    """The prior boxes (P, 4), corners as parts of the picture, and the four variances.

    By the formula of the SSD fork's PriorBoxLayer for min_size and max_size alone.
    """
    size = int(definition.layer[0].input_param.shape[0].dim[2])
    boxes = []
    for layer in definition.layer:
        if layer.type != "PriorBox":
            continue
        param = layer.prior_box_param
        cells = size // {"conv5": 8, "conv7": 16}[layer.bottom[0]]
        sides = np.array([param.min_size[0], np.sqrt(param.min_size[0] * param.max_size[0])])
        step = 1 / cells
        centers = (np.arange(cells) + param.offset) * step
        y, x, side = np.meshgrid(centers, centers, sides / size, indexing="ij")
        corners = np.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], axis=-1)
        boxes.append(corners.reshape(-1, 4))
    return np.concatenate(boxes).astype(np.float32), np.array(param.variance, np.float32)


def matched_priors(
    truths: Sequence[Truth], priors: Floats, variances: Floats
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """For each prior the encoded box (P, 4) it shall predict, and its label, 0 for background."""
    labels = np.zeros(len(priors), np.int64)
    encoded = np.zeros_like(priors)
    if not truths:
        return encoded, labels
    boxes = np.array([truth.box for truth in truths], np.float32)
    low = np.maximum(priors[:, None, :2], boxes[None, :, :2])
    high = np.minimum(priors[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (priors, boxes)]
    overlap = shared / (areas[0][:, None] + areas[1][None] - shared)
    best = overlap.argmax(axis=1)
    taken = overlap.max(axis=1) >= _MATCH
    for number, prior in enumerate(overlap.argmax(axis=0)):
        best[prior], taken[prior] = number, True
    wanted = boxes[best]
    centers = [(x[:, :2] + x[:, 2:]) / 2 for x in (wanted, priors)]
    sides = [x[:, 2:] - x[:, :2] for x in (wanted, priors)]
    encoded[:, :2] = (centers[0] - centers[1]) / sides[1] / variances[:2]
    encoded[:, 2:] = np.log(sides[0] / sides[1]) / variances[2:]
    labels[taken] = np.array([truth.label for truth in truths])[best[taken]]
    return encoded, labels


def _drawn(scenes: int, priors: Floats, variances: Floats) -> tuple[Any, Any, Any]:
    """Scenes as a uint8 tensor (N, 3, H, W), what each prior shall say, and its label."""
    import torch

    images, boxes, labels = [], [], []
    for image, truths in draw_scenes(scenes, _TRAIN_SEED):
        encoded, label = matched_priors(truths, priors, variances)
        images.append(image.transpose(2, 0, 1))
        boxes.append(encoded)
        labels.append(label)
    return tuple(torch.from_numpy(np.stack(part)) for part in (images, boxes, labels))


if __name__ == "__main__":
    raise SystemExit(main())
