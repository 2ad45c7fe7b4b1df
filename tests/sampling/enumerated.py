"""All images of a tiny shape, and what a tiny model says of them."""

import itertools

import torch
from scipy import stats
from torch import nn

from genfast.models import PixelCNN, PixelCNNConfig


def tiny_pixelcnn(image_shape, levels, scale=3.0):
    """Build a model with large random weights, so that its pixels depend on each other visibly."""
    colours = image_shape[0]
    config = PixelCNNConfig(
        image_shape=image_shape,
        levels=levels,
        channels=12 * colours,
        blocks=1,
        kernel_size=3,
        head_channels=12 * colours,
    )
    model = PixelCNN(config).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight *= scale
    return model.eval()


def all_images(image_shape, levels):
    """List every image, uint8 [levels ** D, C, H, W], in the order of `index_of`."""
    size = torch.Size(image_shape).numel()
    grid = torch.tensor(list(itertools.product(range(levels), repeat=size)), dtype=torch.uint8)
    return grid.view(-1, *image_shape)


def index_of(images, levels):
    """Return each image's place in `all_images`."""
    digits = images.flatten(1).long()
    weights = levels ** torch.arange(digits.shape[1] - 1, -1, -1)
    return (digits * weights).sum(dim=1)


def p_value(images, probabilities, levels):
    """Chi-square test of drawn images against the probabilities of `all_images`.

    Cells with fewer than 5 expected images are joined.
    """
    expected = probabilities * len(images)
    observed = torch.bincount(index_of(images, levels), minlength=len(expected)).double()
    large = expected >= 5
    cells = [(observed[large], expected[large]), (observed[~large], expected[~large])]
    observed = torch.cat((cells[0][0], cells[1][0].sum()[None]))
    expected = torch.cat((cells[0][1], cells[1][1].sum()[None]))
    keep = expected > 0
    assert observed[~keep].sum() == 0
    statistic = ((observed - expected)[keep].square() / expected[keep]).sum()
    return stats.chi2.sf(statistic.item(), int(keep.sum()) - 1)
