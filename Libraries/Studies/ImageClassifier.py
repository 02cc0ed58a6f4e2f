"""A small image classifier, trained on real images, whose features judge generated ones."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (32, 64, 64, 64)  # channels of the convolutions; all but the first halve rows and columns
BATCH = 256  # images at a time outside training


class ImageClassifier(nn.Module):
    """Four convolutions, a mean over positions and a linear layer: 0.1 M parameters."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        layers, before = [], in_channels
        for depth, width in enumerate(WIDTHS):
            stride = 1 if depth == 0 else 2
            convolution = nn.Conv2d(before, width, 3, stride=stride, padding=1)
            layers += [convolution, nn.GroupNorm(8, width), nn.SiLU()]
            before = width
        self.body, self.head = nn.Sequential(*layers), nn.Linear(before, num_classes)

    def features(self, x0: Tensor) -> Tensor:
        """Return the input of the last layer, (B, 64), for images (B, C, rows, columns) in [-1, 1]."""
        return self.body(x0).mean((2, 3))

    def forward(self, x0: Tensor) -> Tensor:
        """Return logits (B, num_classes)."""
        return self.head(self.features(x0))


class ClassifierLoss:
    """What `Training.fit` minimises and reports for a classifier."""

    metric_names = ("val_loss", "val_accuracy")

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor], positions: Tensor) -> Tensor:
        """Return the cross-entropy of each image, (B,)."""
        return F.cross_entropy(model(batch[0]).float(), batch[1], reduction="none")

    @torch.no_grad()
    def validate(self, model: nn.Module, batches) -> dict[str, float]:
        """Return the mean cross-entropy and the accuracy over the validation batches."""
        device, found = next(model.parameters()).device, []
        for x0, labels in batches:
            logits, labels = model(x0.to(device)), labels.to(device)
            losses = F.cross_entropy(logits, labels, reduction="none")
            found.append(torch.stack([losses, (logits.argmax(1) == labels).float()]))
        return dict(zip(self.metric_names, torch.cat(found, dim=1).mean(1).tolist(), strict=True))


@torch.no_grad()
def classify(model: ImageClassifier, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (N, 64) and predicted labels int64 (N,) of images (N, C, rows, columns), on the CPU."""
    device, features = next(model.parameters()).device, []
    for batch in x0.split(BATCH):
        features.append(model.features(batch.to(device)))
    whole = torch.cat(features)
    return whole.cpu(), model.head(whole).argmax(1).cpu()


def accuracy(model: ImageClassifier, x0: Tensor, labels: Tensor) -> float:
    """Return the fraction of images (N, C, rows, columns) whose label the classifier predicts."""
    return (classify(model, x0)[1] == labels).float().mean().item()
