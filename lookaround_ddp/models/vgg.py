"""VGG for small images (Simonyan and Zisserman, arXiv 1409.1556), with batch-norm."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class VGG(nn.Module):
    """Images (N, in_chans, H, W) -> logits (N, num_classes).

    The layers are those for 224 px, but the first linear one has 512 inputs, since the features of a 32 px image are a
    single pixel. Sides that are no multiple of 32 are rounded up; the features of a larger image are averaged.

    Args:
        depths: 3x3 convolutions before each halving of the resolution; their channels are 64, 128, 256, 512, 512.
        dropout: probability of dropping a feature after each of the two layers of 4,096 units.
    """

    def __init__(self, depths: Sequence[int], num_classes: int, in_chans: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_chans
        for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                inputs = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        hidden = []
        for size in (inputs, 4096):
            hidden += [nn.Linear(size, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*hidden)
        self.fc = nn.Linear(4096, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(self.pool(self.features(x)).flatten(1)))
