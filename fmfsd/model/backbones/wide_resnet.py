"""Wide ResNets (Zagoruyko & Komodakis 2016, arXiv:1605.07146)."""

from torch import Tensor, nn

from fmfsd.model.backbones.backbone import Backbone
from fmfsd.model.backbones.stem import build_bare_stem


def wide_resnet(size: int, *, depth: int, factor: int) -> Backbone:
    """WRN-depth-factor (depth 6n + 4): three stages of n blocks, of 16, 32 and 64 channels times `factor`.

    Blocks are pre-activation: only the last map has passed a ReLU.
    """
    assert depth % 6 == 4, depth
    count, strides, widths = (depth - 4) // 6, (1, 2, 2), [base * factor for base in (16, 32, 64)]
    stages = [
        [WideBlock(channels_in, width, stride), *(WideBlock(width, width) for _ in range(count - 1))]
        for channels_in, width, stride in zip((16, *widths), widths, strides, strict=False)
    ]
    final_norm = (nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True))
    last = nn.Sequential(stages[-1][-1], *final_norm)
    return Backbone(
        build_bare_stem(size, 16),
        [*stages[:-1], [*stages[-1][:-1], last]],
        [[width] * count for width in widths],
        strides,
    )


class WideBlock(nn.Module):
    """BN, ReLU and a 3x3 convolution, twice.

    Where the shape changes, the shortcut is a 1x1 convolution after the first ReLU; elsewhere it is the identity.
    """

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.BatchNorm2d(channels_in), nn.ReLU(inplace=True))
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )
        changes_shape = stride != 1 or channels_in != channels
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False) if changes_shape else None

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, H / stride, W / stride)."""
        activated = self.entry(map_BCHW)
        shortcut = self.shortcut(activated) if self.shortcut is not None else map_BCHW
        result: Tensor = shortcut + self.residual(activated)
        return result
