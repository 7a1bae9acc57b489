"""One layer of each kind with odd options: ncnn's line, the bottoms' shapes, the number of tops.

A bottom's shape is ncnn's, without a batch; sizes are distinct primes where the layer lets them.
"""

from __future__ import annotations

from typing import NamedTuple

IMAGE = (7, 11, 13)


class Case(NamedTuple):
    """A layer's type and parameters as a .param file has them, its bottoms, its tops."""

    line: str
    bottoms: tuple[tuple[int, ...], ...] = (IMAGE,)
    tops: int = 1

    def __str__(self) -> str:
        shapes = ";".join("x".join(map(str, shape)) for shape in self.bottoms)
        return f"{self.line} on {shapes}".replace(" ", "_")


VECTOR, MATRIX = ((17,),), ((5, 17),)
ACTIVATIONS = ("1", "2 -23310=1,0.2", "3 -23310=2,-0.5,1.25", "4", "5", "6 -23310=2,0.2,0.5")

WEIGHTED = [
    Case("Convolution 0=5 1=3 6=315"),
    Case("Convolution 0=5 1=3 5=1 6=315"),
    Case("Convolution 0=5 1=5 11=3 2=2 12=1 3=2 13=3 4=2 14=1 15=1 16=3 5=1 6=525"),
    *(Case(f"Convolution 0=5 1=3 4=1 5=1 6=315 9={kind}") for kind in ACTIVATIONS),
    Case("Convolution 0=5 1=3 4=-233 5=1 6=315"),
    Case("Convolution 0=5 1=3 3=2 4=-233 5=1 6=315"),
    Case("Convolution 0=5 1=5 11=3 3=3 13=2 2=2 4=-234 5=1 6=525"),
    Case("Convolution 0=5 1=4 3=3 4=-234 5=1 6=560"),
    Case("Convolution 0=5 1=1 3=2 4=-233 6=35", ((7, 12, 10),)),
    Case("Convolution 0=5 1=3 4=1 18=0.75 5=1 6=315"),
    Case("Convolution 0=5 1=1 5=1 6=85 9=1", VECTOR),
    Case("Convolution 0=5 1=3 4=1 5=1 6=45", MATRIX),
    Case("ConvolutionDepthWise 0=7 1=3 4=1 5=1 6=63 7=7"),
    Case("ConvolutionDepthWise 0=7 1=3 3=2 4=-233 5=1 6=63 7=7 9=1"),
    Case(
        "ConvolutionDepthWise 0=6 1=3 11=5 14=2 4=1 5=1 6=180 7=3 9=2 -23310=1,0.3", ((6, 11, 13),)
    ),
    Case("ConvolutionDepthWise 0=8 1=2 6=128 7=2", ((8, 11, 13),)),
    Case("Deconvolution 0=5 1=4 3=2 4=1 5=1 6=560"),
    Case("Deconvolution 0=5 1=3 11=2 2=2 3=2 13=3 4=1 14=2 15=0 16=1 6=210"),
    Case("Deconvolution 0=5 1=3 3=2 4=1 18=1 5=1 6=315 9=1"),
    Case("Deconvolution 0=5 1=3 3=3 18=2 19=1 5=1 6=315"),
    Case("Deconvolution 0=5 1=3 3=3 18=1 6=315 9=2 -23310=1,0.1"),
    Case("Deconvolution 0=5 1=5 3=2 4=-233 20=26 21=23 5=1 6=875 9=1"),
    Case("Deconvolution 0=5 1=5 3=2 4=-234 20=26 21=22 6=875"),
    Case("Deconvolution 0=5 1=3 3=2 4=-233 6=315"),
    Case("DeconvolutionDepthWise 0=6 1=4 3=2 4=1 5=1 6=96 7=6", ((6, 11, 13),)),
    Case("DeconvolutionDepthWise 0=4 1=3 3=2 5=1 6=108 7=2 9=1", ((6, 11, 13),)),
    Case("InnerProduct 0=5 1=1 2=5005"),
    Case("InnerProduct 0=5 2=5005 9=1"),
    Case("InnerProduct 0=5 1=1 2=85 9=2 -23310=1,0.1", VECTOR),
    Case("InnerProduct 0=3 1=1 2=51 9=3 -23310=2,-0.5,0.5", MATRIX),
    Case("InnerProduct 0=3 1=1 2=255", MATRIX),
    Case("InnerProduct 0=3 1=1 2=51", ((1, 17),)),
    *(Case(f"InnerProduct 0=5 1=1 2=85 9={kind}", VECTOR) for kind in ACTIVATIONS[3:]),
    *(
        Case(f"{line.replace('C', str(shape[0]))}", (shape,))
        for shape in (IMAGE, MATRIX[0], VECTOR[0])
        for line in (
            "BatchNorm 0=C 1=0.01",
            "Scale 0=C",
            "Scale 0=C 1=1",
            "Bias 0=C",
            "PReLU 0=C",
            "PReLU 0=1",
        )
    ),
    Case("Scale 0=-233", (IMAGE, (7,))),
]

POINTWISE = [
    *(
        Case(line, (shape,))
        for shape in (IMAGE, VECTOR[0])
        for line in (
            *(
                "ReLU",
                "ReLU 0=0.2",
                "Clip 0=-0.5 1=0.7",
                "Clip",
                "Sigmoid",
                "TanH",
                "Swish",
                "Mish",
            ),
            *(
                "HardSigmoid",
                "HardSigmoid 0=0.3 1=0.4",
                "HardSwish",
                "HardSwish 0=0.16666667 1=0.5",
            ),
            *("HardSwish 0=0.3 1=0.4", "GELU", "GELU 0=1", "ELU", "ELU 0=0.7", "SELU"),
            *("SELU 0=1.5 1=1.1", "Dropout", "Dropout 0=0.7", "AbsVal", "BNLL", "Softplus", "Erf"),
            *("CELU 0=0.7", "Threshold 0=0.3", "Power 0=2.0 1=0.5 2=0.3", "Exp 0=2.0 1=0.5 2=1.0"),
        )
    ),
    Case("Log 0=2.0 1=0.5 2=1.0"),
    *(Case(f"UnaryOp 0={kind}") for kind in range(20)),
    *(Case(f"BinaryOp 0={kind} 1=1 2=0.75") for kind in range(12)),
    *(Case(f"BinaryOp 0={kind}", (IMAGE, IMAGE)) for kind in range(12)),
    *(
        Case(f"BinaryOp 0={kind}", pair)
        for kind in (0, 1, 8)
        for first, second in (
            (IMAGE, (7,)),
            (IMAGE, (13,)),
            (IMAGE, (1,)),
            (IMAGE, (7, 1, 1)),
            (IMAGE, (1, 11, 13)),
            (IMAGE, (7, 11)),
            (IMAGE, (7, 11, 1)),
            (IMAGE, (7, 1, 13)),
            (IMAGE, (1, 1, 13)),
            (IMAGE, (1, 1, 1)),
            ((5, 17), (5,)),
            ((5, 17), (17,)),
            ((5, 17), (1,)),
            ((5, 17), (5, 1)),
            ((5, 17), (1, 17)),
            ((17,), (17,)),
            ((17,), (1,)),
            ((7, 1, 1), (1, 11, 13)),
        )
        for pair in ((first, second), (second, first))
    ),
    Case("Eltwise 0=0", (IMAGE, IMAGE, IMAGE)),
    Case("Eltwise 0=1", (IMAGE, IMAGE, IMAGE)),
    Case("Eltwise 0=1 -23301=2,0.5,-2.0", (IMAGE, IMAGE)),
    Case("Eltwise 0=2", (IMAGE, IMAGE)),
    Case("Eltwise 0=1", VECTOR * 2),
]

SHAPING = [
    *(Case(f"Concat 0={axis}", (IMAGE, IMAGE)) for axis in (0, 1, 2, -1, -3)),
    *(Case(f"Concat 0={axis}", MATRIX * 2) for axis in (0, 1, -1)),
    Case("Concat", ((7, 11, 13), (5, 11, 13), (2, 11, 13))),
    Case("Concat", ((17,), (5,))),
    Case("Split", tops=3),
    Case("Noop"),
    Case("Slice -23300=2,2,-233", tops=2),
    Case("Slice -23300=3,-233,-233,-233", tops=3),
    Case("Slice -23300=3,2,3,-233 1=1", tops=3),
    Case("Slice -23300=2,9,4 1=-1", tops=2),
    Case("Slice -23302=2,2,-3 1=2", tops=3),
    Case("Slice -23300=2,3,-233", VECTOR, 2),
    Case("Slice -23300=2,3,-233 1=1", MATRIX, 2),
    Case("Crop 0=2 1=3 2=1 3=5 4=4 5=3"),
    Case("Crop 0=2 1=3 2=1 3=-233 4=-233 5=-233"),
    Case("Crop 0=2 1=3 3=-233 4=-233 5=-233 6=1 7=2"),
    Case("Crop -23309=2,1,2 -23310=2,5,-2 -23311=2,0,2"),
    Case("Crop -23309=1,-4 -23310=1,-233 -23311=1,-1"),
    Case("Crop -23309=1,3 -23310=1,90 -23311=1,1"),
    Case("Crop -23309=1,2 -23310=1,9 -23311=1,0", VECTOR),
    Case("Crop -23309=2,1,2 -23310=2,-1,9", MATRIX),
    Case("Crop 0=2 1=3", (IMAGE, (7, 5, 3))),
    Case("Crop 0=2 1=3 2=1", (IMAGE, (5, 5, 3))),
    Case("Crop 0=2 1=3", (IMAGE, (5, 3))),
    *(
        Case(f"Padding 0=1 1=2 2=3 3=4 4={kind} 5=0.5", (shape,))
        for kind in range(3)
        for shape in (IMAGE, (5, 17))
    ),
    Case("Padding 2=3 3=4 5=0.5", VECTOR),
    Case("Padding 0=1 3=2 7=2 8=1 5=0.25"),
    Case("Padding 0=1 1=2 2=3 3=4 6=7"),
    Case("Reshape 0=143 1=7"),
    Case("Reshape 0=-1"),
    Case("Reshape 0=0 1=-1"),
    Case("Reshape 0=0 1=-1 2=1"),
    Case("Reshape 0=13 1=11 2=7 11=1"),
    Case("Reshape 0=-1 1=0 2=0"),
    Case('Reshape 6="*(0w,0h),0c"'),
    Case('Reshape 6="0h,0w,0c"'),
    Case('Reshape 6="-1"'),
    *(Case(f"Permute 0={order}") for order in range(6)),
    *(Case(f"Permute 0={order}", MATRIX) for order in range(2)),
    Case("Flatten"),
    Case("Flatten", MATRIX),
    Case("Squeeze -23303=2,1,2", ((7, 1, 1),)),
    Case("Squeeze -23303=1,0", ((1, 11, 13),)),
    Case("Squeeze 1=1", ((7, 1, 13),)),
    Case("Squeeze 0=1 1=1", ((7, 1, 1),)),
    Case("ExpandDims -23303=1,0", MATRIX),
    Case("ExpandDims -23303=1,-1", MATRIX),
    Case("ExpandDims -23303=1,1", MATRIX),
    Case("ExpandDims -23303=2,1,2", VECTOR),
    Case("ExpandDims -23303=1,0", VECTOR),
    *(Case(f"Softmax 0={axis} 1=1") for axis in (0, 1, 2, -1, -2)),
    Case("Softmax 0=1 1=1", MATRIX),
    Case("Softmax 0=0 1=1", VECTOR),
    Case("ShuffleChannel 0=3", ((12, 5, 7),)),
    Case("ShuffleChannel 0=3 1=1", ((12, 5, 7),)),
    Case("PixelShuffle 0=3", ((18, 5, 7),)),
    Case("PixelShuffle 0=3 1=1", ((18, 5, 7),)),
    Case("Tile 0=0 1=2"),
    Case("Tile 0=2 1=3"),
    Case("Tile -23302=3,2,1,3"),
]

POOLING = [
    *(
        Case(f"Pooling 0={kind} {options}")
        for kind in (0, 1)
        for options in (
            *("1=3", "1=3 2=2", "1=3 2=2 3=1", "1=2 11=3 2=1 12=2 3=1 13=0"),
            *("1=3 2=2 5=1", "1=3 2=2 3=1 5=1", "1=3 2=2 3=0 14=1 13=0 15=1 5=1"),
            *("1=3 2=2 5=2", "1=3 2=2 5=3", "1=4 11=5 2=3 12=2 5=2", "1=4 2=3 5=3"),
            *("4=1", "7=1 8=4 18=3", "7=1 8=5", "7=1 8=-233 18=3", "1=2 2=2"),
        )
    ),
    *(
        Case(f"Pooling 0=1 6=1 {options}")
        for options in ("1=3 2=2 3=1 5=1", "1=3 2=1 3=1", "1=3 2=2 3=1", "1=3 2=2 5=2")
    ),
    Case("Pooling 0=0 1=2 2=3 3=1"),
    Case("Pooling 0=1 1=3 2=2", ((7, 10, 12),)),
    Case("Pooling 0=1 6=1 1=3 2=2 3=1", ((7, 10, 12),)),
]

NORMALIZATION = [
    Case("LRN 1=3 2=0.5 3=0.75 4=2.0"),
    Case("LRN 0=1 1=3 2=0.5 3=0.6"),
    *(
        Case(f"Normalize 0={spatial} 1=0 2=0.01 3=7 4={channel} 9={mode}")
        for spatial, channel in ((0, 1), (1, 1), (1, 0))
        for mode in range(3)
    ),
    *(Case("Normalize 0=0 1=1 2=0.01 3=1", shapes) for shapes in ((IMAGE,), MATRIX, VECTOR)),
    Case("LayerNorm 0=13 1=0.01"),
    Case("LayerNorm 0=13 1=0.01 2=0"),
    Case("LayerNorm 0=143 1=0.01"),
    Case("LayerNorm 0=17 1=0.01", MATRIX),
    Case("LayerNorm 0=17 1=0.01", VECTOR),
    Case("RMSNorm 0=17 1=0.01", MATRIX),
    Case("GroupNorm 0=3 1=12 2=0.01", ((12, 5, 7),)),
    Case("GroupNorm 0=3 1=12 2=0.01 3=0", ((12, 5, 7),)),
    Case("GroupNorm 0=3 1=12 2=0.01", ((12, 7),)),
    Case("InstanceNorm 0=7 1=0.01"),
    Case("InstanceNorm 0=7 1=0.01 2=0"),
    Case("MVN 0=1 1=0 2=0.01"),
    Case("MVN 0=1 1=1 2=0.01"),
]

RESIZING = [
    *(
        Case(f"Interp 0={kind} {size}")
        for kind in (1, 2, 3)
        for size in (
            *(
                "1=2.0 2=2.0",
                "1=0.5 2=0.5",
                "1=1.7 2=2.3",
                "3=17 4=5",
                "3=17 4=29 6=1",
                "3=5 4=6 6=1",
            ),
            '9="*(0w,2),*(0h,3)"',
        )
    ),
    Case("Interp 0=2 3=5 4=3", VECTOR),
    *(Case(f"Interp 0={kind} 1=1.0 2=1.7", MATRIX) for kind in (1, 2, 3)),
    Case("Interp 0=2 5=1", (IMAGE, (3, 17, 19))),
]

REDUCTION = [
    *(Case(f"Reduction 0={kind} 1=0 -23303=2,1,2 5=1") for kind in range(11)),
    *(
        Case(f"Reduction 0={kind} 1=0 -23303={axes} 4={keep} 5=1")
        for kind in (0, 3, 8)
        for axes in ("1,0", "1,-1", "2,0,2", "3,0,1,2")
        for keep in (0, 1)
    ),
    Case("Reduction 0=3 1=1 2=2.0"),
    Case("Reduction 0=0 1=0 2=0.5 -23303=1,1 5=1", MATRIX),
    Case("Reduction 0=4 1=0 -23303=1,0 5=1", VECTOR),
]

MATRICES = [
    Case("MatMul", ((5, 7), (7, 11))),
    Case("MatMul 0=1", ((5, 7), (11, 7))),
    Case("MatMul", ((3, 5, 7), (3, 7, 11))),
    Case("Gemm 5=1 6=1 8=11 9=7 10=4", ((5, 7),)),
    Case("Gemm 3=1 5=1 6=1 8=11 9=7 10=4 0=2.0 1=0.5", ((5, 7),)),
    Case("Gemm", ((5, 7), (7, 11))),
    Case("Gemm 2=1", ((7, 5), (7, 11))),
    Case("MultiHeadAttention 0=12 1=3 2=144", ((5, 12),)),
    Case("MultiHeadAttention 0=12 1=3 2=144 5=1 6=0.3", ((5, 12), (5, 5))),
    Case("SDPA", ((6, 5, 7), (6, 11, 7), (6, 11, 13))),
    Case("SDPA 5=1 6=0.3", ((6, 5, 7), (3, 11, 7), (3, 11, 13), (5, 11))),
    Case("MultiHeadAttention 0=12 1=3 2=144 3=7 4=11", ((5, 12), (13, 7), (13, 11))),
]

DETECTION = [
    Case(
        "PriorBox -23300=1,30.5 -23301=1,60.0 -23302=2,2.0,3.0 7=1 8=0 9=-233 10=-233 "
        "11=-233.0 12=-233.0 13=0.5",
        ((7, 5, 3), (3, 97, 61)),
    ),
    Case(
        "PriorBox -23300=2,10.0,20.0 -23302=1,2.0 3=0.1 4=0.2 5=0.3 6=0.4 7=0 8=1 9=300 10=200 "
        "11=16.0 12=8.0 13=0.5",
        ((7, 5, 3), (3, 97, 61)),
    ),
]

CASES = [
    *WEIGHTED,
    *POINTWISE,
    *SHAPING,
    *POOLING,
    *NORMALIZATION,
    *RESIZING,
    *REDUCTION,
    *MATRICES,
    *DETECTION,
]
