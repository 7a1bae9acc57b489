"""Networks of today from PyTorch through pnnx, run in numpy: ncnn's blobs, and PyTorch's output."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from int8calib.ncnn.model import load_model
from int8calib.ncnn.translate.network import translate_model
from tests.ncnn.translate.test_network import TOLERANCE, deviation, worst_deviation

torch = pytest.importorskip("torch", reason="needs torch")
pnnx = pytest.importorskip("pnnx", reason="needs pnnx")
pytest.importorskip("ncnn")
nn, functional = torch.nn, torch.nn.functional
SIDE = 64


def conv(channels: int, outputs: int, kernel: int = 1, stride: int = 1, group: int = 1) -> Any:
    """A convolution without bias, and a BatchNorm."""
    pad = kernel // 2
    made = nn.Conv2d(channels, outputs, kernel, stride, pad, groups=group, bias=False)
    return nn.Sequential(made, nn.BatchNorm2d(outputs))


class Residual(nn.Module):  # type: ignore[misc, name-defined]
    """Bottom plus what a branch makes of it, times a squeezed gate where there is one."""

    def __init__(self, branch: Any, gate: Any = None) -> None:
        super().__init__()
        self.branch, self.gate = branch, gate

    def forward(self, x: Any) -> Any:
        y = self.branch(x)
        return x + (y if self.gate is None else y * self.gate(y))


class Lambda(nn.Module):  # type: ignore[misc, name-defined]
    """A function as a module."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def mobilenet() -> Any:
    """Depthwise convolutions, squeeze and excite, hard swish."""
    gate = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(40, 10, 1), nn.ReLU(), nn.Conv2d(10, 40, 1)
    )
    branch = nn.Sequential(conv(40, 40, 5, 1, 40), nn.Hardswish(), conv(40, 40))
    return nn.Sequential(
        *(conv(3, 16, 3, 2), nn.Hardswish(), conv(16, 40, 3, 2), nn.ReLU6()),
        *(Residual(branch, nn.Sequential(gate, nn.Hardsigmoid())), conv(40, 72), nn.Hardswish()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(72, 31), nn.Hardswish()),
        *(nn.Dropout(0.2), nn.Linear(31, 10), nn.Softmax(1)),
    )


class ShuffleUnit(nn.Module):  # type: ignore[misc, name-defined]
    """Half of the channels through a branch, then both halves shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv(half, half), nn.ReLU(), conv(half, half, 3, 1, half), conv(half, half), nn.ReLU()
        )

    def forward(self, x: Any) -> Any:
        first, second = x.chunk(2, 1)
        y = torch.cat((first, self.branch(second)), 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet() -> Any:
    """Slices, concatenations, shuffled channels."""
    return nn.Sequential(
        *(conv(3, 24, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), ShuffleUnit(24), ShuffleUnit(24)),
        *(conv(24, 64), nn.LeakyReLU(0.1), Lambda(lambda x: x.mean([2, 3])), nn.Linear(64, 10)),
    )


class Detector(nn.Module):  # type: ignore[misc, name-defined]
    """Two scales, pyramid pooling, upsampling; boxes of both in one list, as YOLO has them."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(conv(3, 16, 6, 2), nn.SiLU(), conv(16, 32, 3, 2), nn.SiLU())
        self.coarse = nn.Sequential(conv(32, 64, 3, 2), nn.SiLU())
        self.squeeze, self.join = conv(64, 32), nn.Sequential(conv(128, 32), nn.SiLU())
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.heads = nn.ModuleList([nn.Conv2d(64, 24, 1), nn.Conv2d(32, 24, 1)])

    def forward(self, x: Any) -> Any:
        fine = self.fine(x)
        y = self.squeeze(self.coarse(fine))
        once = self.pool(y)
        twice = self.pool(once)
        coarse = self.join(torch.cat((y, once, twice, self.pool(twice)), 1))
        larger = functional.interpolate(coarse, size=fine.shape[2:], mode="nearest")
        boxes = []
        for head, features in zip(self.heads, (torch.cat((fine, larger), 1), coarse), strict=True):
            top = head(features)
            n, _, h, w = top.shape
            flat = top.view(n, 3, 8, h * w).permute(0, 1, 3, 2).reshape(n, -1, 8)
            boxes.append(torch.sigmoid(flat))
        return torch.cat(boxes, 1)


class Attention(nn.Module):  # type: ignore[misc, name-defined]
    """Attention of a sequence to itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Any) -> Any:
        y = self.norm(x)
        return self.attention(y, y, y, need_weights=False)[0]


class Transformer(nn.Module):  # type: ignore[misc, name-defined]
    """Patches of an image through a block of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.places = nn.Parameter(torch.randn(1, (SIDE // 8) ** 2, 32))
        inner = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.blocks = nn.Sequential(Residual(Attention(32, 4)), Residual(inner))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.blocks(x).mean(1))


def encoder_decoder() -> Any:
    """Norms of groups and instances, transposed convolution, shuffled pixels, resizing."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 1, 1), nn.GroupNorm(4, 16), nn.LeakyReLU(0.1)),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.InstanceNorm2d(32, affine=True), nn.PReLU(32)),
        *(nn.ReflectionPad2d(1), nn.Conv2d(32, 32, 3, 2), nn.ELU()),
        *(nn.ConvTranspose2d(32, 64, 4, 2, 1), nn.Mish(), nn.PixelShuffle(2)),
        nn.Upsample(scale_factor=0.5, mode="bilinear", align_corners=False),
        nn.Upsample(size=(53, 47), mode="bicubic", align_corners=True),
        *(nn.Conv2d(16, 3, 1), nn.Tanh()),
    )


NETS: dict[str, Callable[[], Any]] = {
    "mobilenet": mobilenet,
    "shufflenet": shufflenet,
    "detector": Detector,
    "transformer": Transformer,
    "encoder_decoder": encoder_decoder,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*[Tt]rac.*")
@pytest.mark.parametrize("name", NETS)
def test_networks_of_pytorch_run_in_numpy(name: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    net = NETS[name]().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    image = torch.rand(1, 3, SIDE, SIDE)
    torch.jit.trace(net, image, check_trace=False).save(str(tmp_path / "net.pt"))
    program = Path(pnnx.__file__).with_name("pnnx")
    words = [str(program), "net.pt", f"inputshape=[1,3,{SIDE},{SIDE}]", "fp16=0"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    model = load_model(tmp_path / "net.ncnn.param", tmp_path / "net.ncnn.bin")
    inputs = {"in0": image.numpy()[0]}
    assert worst_deviation(model, inputs, tmp_path) < TOLERANCE
    top = translate_model(model, {"in0": (1, 3, SIDE, SIDE)}).forward({"in0": image.numpy()})
    expected = net(image).detach().numpy()
    assert deviation(top["out0"].reshape(expected.shape), expected) < TOLERANCE
