"""What outputs depend on, found by gradients."""

import torch


def influences(model, event, sites):
    """Gradient of a random combination of the features `output[:, *site]` on the event, each site.

    One event for each site goes through the model, so that one backward pass is enough.
    """
    x = event.double().expand(len(sites), *event.shape).clone().requires_grad_()
    output = model(x)
    features = torch.stack([output[(n, slice(None), *site)] for n, site in enumerate(sites)])
    (gradients,) = torch.autograd.grad((features * torch.randn_like(features)).sum(), x)
    return gradients


def train(model, steps, loss, rate=2e-3):
    """Take a few steps; return the losses before and after."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    model.eval()
    with torch.no_grad():
        before = loss().item()
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return before, loss().item()


def enlarge(model, factor=3.0):
    """Make weights large enough that outputs depend on each other visibly; in float64."""
    model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or "original0" in name:
                parameter *= factor
    return model
