"""The making of the demo's network: demo.prototxt and drawn pictures in, demo.caffemodel out.

    python -m int8calib.demo.train [--epochs N] [--pictures N] [--threads N] [--output DIR]

Needs torch (`pip install torch`), which is in no extra: nobody but who retrains the demo wants it.
Takes a few minutes on two cores. The network is built from the prototxt itself, layer by layer, so
the two cannot drift apart. BatchNorm and Scale are written as they are, not folded.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from caffe_proto import LayerParameter, NetParameter, read_prototxt, write_caffemodel
from int8calib.demo import CAFFEMODEL, MEAN, NORM, PROTOTXT
from int8calib.demo.draw import draw_images

__all__ = [
    "Recipe",
    "TorchNet",
    "accuracy",
    "fit",
    "main",
    "pixels",
    "run_recipe",
    "train",
    "write",
]

_TRAIN_SEED = 1
_CHECK_SEED = 2
_CHECK_PICTURES = 2000
_BATCH = 64
_BEHIND_HEADS = ("Permute", "Flatten", "Reshape", "PriorBox", "DetectionOutput")
"""A detector's types without weights, which come after all that is trained."""

_log = logging.getLogger(__name__)


class TorchNet:
    """A Caffe net of the demo's layer types as torch modules, run in the order of the file.

    It understands the settings that demo.prototxt uses (MAX pooling without pad, Eltwise SUM).
    A Scale layer's factor and bias live in the affine part of the BatchNorm before it, so that
    torch runs both in one step; `weights` takes them apart again. Softmax is left to the loss.
    """

    def __init__(self, net: NetParameter) -> None:
        """Make the modules with random weights; ValueError names a layer of another type."""
        from torch import nn

        self._layers = list(net.layer)
        self.modules: Any = nn.ModuleDict()
        channels: dict[str, int] = {}
        for layer in self._layers:
            inputs = [channels[bottom] for bottom in layer.bottom]
            module, outputs = _make_module(layer, inputs)
            channels[layer.top[0]] = outputs
            if module is not None:
                self.modules[layer.name] = module

    def logits(self, data: Any) -> Any:
        """Run float32 (N, 3, H, W) to the bottom of the Softmax, (N, classes)."""
        (softmax,) = (layer for layer in self._layers if layer.type == "Softmax")
        return self.blobs(data)[softmax.bottom[0]]

    def blobs(self, data: Any) -> dict[str, Any]:
        """Run float32 (N, 3, H, W) through every layer with a module; blobs by name.

        What a detector does behind its heads is left to the loss.
        """
        import torch

        blobs = {"data": data}
        for layer in self._layers:
            bottoms = [blobs[name] for name in layer.bottom if name in blobs]
            if len(bottoms) < len(layer.bottom):
                continue
            if layer.name in self.modules:
                top = self.modules[layer.name](bottoms[0])
            elif layer.type == "Concat":
                top = torch.cat(bottoms, 1)
            elif layer.type == "Eltwise":
                top = sum(bottoms)
            elif layer.type == "Scale":
                top = bottoms[0]
            else:
                continue
            blobs[layer.top[0]] = top
        return blobs

    def weights(self) -> dict[str, tuple[npt.NDArray[np.float32], ...]]:
        """Every layer's blobs in Caffe's order and shapes, by layer name.

        BatchNorm: mean, variance and the factor both are divided by, here 1. Scale: factor, bias.
        """
        blobs: dict[str, tuple[Any, ...]] = {}
        norm: Any = None
        for layer in self._layers:
            if layer.type == "BatchNorm":
                norm = self.modules[layer.name]
                blobs[layer.name] = (norm.running_mean, norm.running_var, np.ones(1))
            elif layer.type == "Scale":
                blobs[layer.name] = (norm.weight, norm.bias)
            elif layer.type in ("Convolution", "InnerProduct"):
                module = self.modules[layer.name]
                blobs[layer.name] = tuple(b for b in (module.weight, module.bias) if b is not None)
        return {
            name: tuple(np.asarray(_detached(blob), np.float32) for blob in of_layer)
            for name, of_layer in blobs.items()
        }


def _detached(blob: Any) -> Any:
    return blob if isinstance(blob, np.ndarray) else blob.detach().numpy()


def _make_module(layer: LayerParameter, inputs: list[int]) -> tuple[Any, int]:
    """The torch module of a layer (None where `TorchNet` needs none) and its top's channels."""
    import torch
    from torch import nn

    module: Any = None
    outputs = sum(inputs) if layer.type == "Concat" else inputs[0] if inputs else 0
    if layer.type == "Input":
        outputs = layer.input_param.shape[0].dim[1]
    elif layer.type == "Convolution":
        p = layer.convolution_param
        outputs = p.num_output
        kernel, pad, stride = p.kernel_size[0], sum(p.pad), p.stride[0] if p.stride else 1
        module = nn.Conv2d(
            inputs[0], outputs, kernel, stride, pad, groups=p.group, bias=p.bias_term
        )
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif layer.type == "BatchNorm":
        module = nn.BatchNorm2d(outputs, eps=layer.batch_norm_param.eps)
        # Unequal from the start, so that channels end with ranges as unequal as in large networks.
        module.weight.data = torch.exp(0.6 * torch.randn(outputs))
    elif layer.type == "ReLU":
        module = nn.ReLU()
    elif layer.type == "Pooling" and layer.pooling_param.global_pooling:
        module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    elif layer.type == "Pooling":
        pool = layer.pooling_param
        module = nn.MaxPool2d(pool.kernel_size, pool.stride, ceil_mode=True)
    elif layer.type == "Dropout":
        module = nn.Dropout(layer.dropout_param.dropout_ratio)
    elif layer.type == "InnerProduct":
        outputs = layer.inner_product_param.num_output
        module = nn.Linear(inputs[0], outputs)
    elif layer.type not in ("Scale", "Concat", "Eltwise", "Softmax", *_BEHIND_HEADS):
        raise ValueError(f"layer {layer.name!r}: the trainer knows no type {layer.type!r}")
    return module, outputs


def train(net: TorchNet, epochs: int, pictures: int) -> None:
    """Fit `net` on drawn pictures: AdamW, one cycle of the learning rate, turned and flipped."""
    import torch

    images, labels = _drawn(pictures, _TRAIN_SEED)
    decayed = [p for p in net.modules.parameters() if p.ndim > 1]
    others = [p for p in net.modules.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    )

    def loss_of(picked: Any) -> Any:
        # No label depends on the side a shape shows: all eight symmetries are fair.
        batch = torch.rot90(images[picked], int(torch.randint(4, ())), (2, 3))
        batch = batch.flip(3) if int(torch.randint(2, ())) else batch
        return torch.nn.functional.cross_entropy(net.logits(pixels(batch)), labels[picked])

    fit(net, optimizer, 5e-3, loss_of, samples=pictures, batch=_BATCH, epochs=epochs)


def fit(
    net: TorchNet,
    optimizer: Any,
    rate: float,
    loss_of: Callable[[Any], Any],
    *,
    samples: int,
    batch: int,
    epochs: int,
) -> None:
    """Take steps of `optimizer` over shuffled samples, one cycle of the learning rate.

    `loss_of` gives the loss of the samples with these indices, an int64 tensor.
    """
    import torch

    steps = samples // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps * epochs)
    for epoch in range(epochs):
        net.modules.train()
        order, total = torch.randperm(samples), 0.0
        for step in range(steps):
            loss = loss_of(order[step * batch : (step + 1) * batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        _log.info("epoch %d of %d: mean loss %.4f", epoch + 1, epochs, total / steps)


def accuracy(net: TorchNet, pictures: int, seed: int) -> float:
    """Share of freshly drawn pictures whose label `net` finds, 0..1."""
    import torch

    images, labels = _drawn(pictures, seed)
    net.modules.eval()
    with torch.no_grad():
        hits = sum(
            int((net.logits(pixels(batch)).argmax(1) == truth).sum())
            for batch, truth in zip(images.split(250), labels.split(250), strict=True)
        )
    return hits / pictures


def _drawn(pictures: int, seed: int) -> tuple[Any, Any]:
    """Pictures as a uint8 tensor (N, 3, H, W) and labels as an int64 tensor (N,)."""
    import torch

    drawn = list(draw_images(pictures, seed))
    images = np.stack([image for image, _ in drawn]).transpose(0, 3, 1, 2)
    return torch.from_numpy(images.copy()), torch.tensor([label for _, label in drawn])


def pixels(images: Any) -> Any:
    """Uint8 pictures (N, 3, H, W) as the demo's networks want them."""
    import torch

    return (images.float() - torch.tensor(MEAN).reshape(1, 3, 1, 1)) * NORM


def write(net: TorchNet, definition: NetParameter, path: Path) -> None:
    """Write `net` as a caffemodel; its parameters are first rounded, in place, to float16.

    They stay float32 in the file, which a wheel then packs to little over half its size.
    """
    for parameter in net.modules.parameters():
        parameter.data = parameter.data.half().float()
    write_caffemodel(path, definition, net.weights())


@dataclass(frozen=True)
class Recipe:
    """What one of the demo's trainers makes.

    Attributes
    ----------
    prototxt, caffemodel : Path
        The network, and the file of its weights.
    samples : str
        What is drawn to train on, as its option is called.
    epochs, count : int
        The defaults of the options: passes, and how many are drawn.
    train : callable
        Called as `train(net, definition, epochs, count)`.
    """

    prototxt: Path
    caffemodel: Path
    samples: str
    epochs: int
    count: int
    train: Callable[[TorchNet, NetParameter, int, int], None]


def run_recipe(recipe: Recipe, argv: Sequence[str] | None, prog: str, doc: str | None) -> TorchNet:
    """Read a trainer's arguments, train its network and write both files; returns the network."""
    parser = argparse.ArgumentParser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=recipe.epochs)
    drawn = f"--{recipe.samples}"
    parser.add_argument(drawn, dest="count", type=int, default=recipe.count, help="to train on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=recipe.caffemodel.parent, metavar="DIR")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    import torch

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    definition = read_prototxt(recipe.prototxt)
    net = TorchNet(definition)
    recipe.train(net, definition, options.epochs, options.count)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.output.resolve() != recipe.prototxt.parent:
        shutil.copyfile(recipe.prototxt, options.output / recipe.prototxt.name)
    path = options.output / recipe.caffemodel.name
    write(net, definition, path)
    _log.info("wrote %s, %d bytes", path, path.stat().st_size)
    return net


def main(argv: Sequence[str] | None = None) -> int:
    """Train, write demo.prototxt and demo.caffemodel, tell the accuracy on pictures never seen."""
    recipe = Recipe(
        PROTOTXT,
        CAFFEMODEL,
        samples="pictures",
        epochs=14,
        count=16000,
        train=lambda net, definition, epochs, count: train(net, epochs, count),
    )
    net = run_recipe(recipe, argv, "python -m int8calib.demo.train", __doc__)
    right = accuracy(net, _CHECK_PICTURES, _CHECK_SEED)
    _log.info("%.2f %% of %d new pictures are right", 100 * right, _CHECK_PICTURES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
