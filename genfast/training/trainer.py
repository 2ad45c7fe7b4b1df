"""One training step for all families, and everything that must survive between two steps."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genfast.errors import InputError, NumericsError
from genfast.models import GenerativeModel
from genfast.training import rng
from genfast.training.config import TrainingConfig
from genfast.training.ema import EMA

# Below this the loss scale no longer looks for its range: the gradients stay infinite.
_SMALLEST_SCALE = 2.0**-10


class Trainer:
    """A model with its optimizers, gradient scaler and averaged weights.

    Attributes:
        model: the model.
        device: where it trains.
        step: training steps taken.
        ema: the averaged weights, or None.
    """

    def __init__(
        self, model: GenerativeModel, config: TrainingConfig, device: torch.device
    ) -> None:
        self.model = model.to(device)
        self.step = 0
        self.ema = EMA(model, config.ema_decay) if config.ema_decay else None
        self.device, self._config = device, config
        self._amp_dtype = _amp_dtype(config, device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._amp_dtype is torch.float16)
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._parameters: dict[str, list[nn.Parameter]] = {}
        for part in model.parts(0):  # torch loads much for a first optimizer: not during a step
            self._optimizer(part)

    def losses(self, x: Tensor, labels: Tensor | None, part: str) -> dict[str, Tensor]:
        """Return the losses of a batch; a model with classes gets its labels."""
        loss: Any = self.model.loss
        x = x.to(self.device, non_blocking=True)
        if not getattr(getattr(self.model, "config", None), "classes", 0):
            return dict(loss(x, part))
        if labels is None:
            raise InputError("data: expected labels, as the model has classes, got none")
        return dict(loss(x, part, labels=labels.to(self.device, non_blocking=True)))

    def train_step(self, x: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """Take one step for each part that trains now; return their losses.

        Args:
            x: [N, C, H, W] or [N, 1, T] integer levels.
            labels: class numbers [N], if the data have them; for models with classes.

        Raises:
            InputError: if the model has classes and the data no labels.
            NumericsError: if a loss or gradient is not finite, before any weight of this part
                changes.
        """
        self.model.train()
        reported: dict[str, float] = {}
        for part in self.model.parts(self.step):
            optimizer, parameters = self._optimizer(part), self._parameters[part]
            with torch.autocast(self.device.type, self._amp_dtype, self._config.amp):
                losses = self.losses(x, labels, part)
            optimizer.zero_grad(set_to_none=True)
            # inputs: the other parts' gradients are not computed at all.
            self._scaler.scale(losses["loss"]).backward(inputs=parameters)  # type: ignore[no-untyped-call]
            self._scaler.unscale_(optimizer)
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            values = _read(losses, norm)
            self._check(part, values, norm=values.pop("gradient_norm"))
            if self._config.clip_grad_norm:
                nn.utils.clip_grads_with_norm_(parameters, self._config.clip_grad_norm, norm)
            self._scaler.step(optimizer)
            prefix = "" if part == "model" else f"{part}/"
            reported |= {f"{prefix}{name}": value for name, value in values.items()}
        self._scaler.update()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        return reported

    @contextmanager
    def sampling_weights(self) -> Iterator[None]:
        """Lend the model the weights to sample with: the averaged ones, if there are."""
        if self.ema is None:
            yield
        else:
            with self.ema.in_use():
                yield

    def finish(self) -> None:
        """Leave the model with the weights to sample with, in eval mode, without gradients."""
        if self.ema is not None:
            self.ema.copy_to_model()
        self.model.zero_grad(set_to_none=True)
        self.model.eval()

    def weights(self) -> dict[str, Tensor]:
        """Return the weights to sample with, copied to the CPU."""
        with self.sampling_weights():
            return {name: t.detach().cpu().clone() for name, t in self.model.state_dict().items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all else that training needs to go on: tensors, and JSON content."""
        tensors, numbers = rng.get_state()
        tensors = {f"rng/{name}": t for name, t in tensors.items()}
        if self.ema is not None:  # `weights` holds the averages instead
            own = self.ema.parameters.items()
            tensors |= {f"parameter/{name}": p.detach() for name, p in own}
        optimizers: dict[str, dict[str, Any]] = {}
        for part, optimizer in self._optimizers.items():
            optimizers[part] = {}
            for index, entries in optimizer.state_dict()["state"].items():
                for name, value in entries.items():
                    if isinstance(value, Tensor):
                        tensors[f"optimizer/{part}/{index}/{name}"] = value
                    else:
                        optimizers[part][f"{index}/{name}"] = value
        state = {"rng": numbers, "optimizers": optimizers, "scaler": self._scaler.state_dict()}
        return tensors, state

    def restore(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
    ) -> None:
        """Put back what `weights` and `state` returned; the next step is the same, bit for bit.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: if they do not fit the model.
        """
        self.step = step
        self.model.load_state_dict(weights)
        if self.ema is not None:
            parameters = self.ema.parameters
            self.ema.load({name: p.detach() for name, p in parameters.items()})
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(tensors[f"parameter/{name}"])
        for part, numbers in state["optimizers"].items():
            optimizer = self._optimizer(part)
            entries: dict[int, dict[str, Any]] = {}
            prefix = f"optimizer/{part}/"
            found = {
                key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)
            }
            for key, value in (found | numbers).items():
                index, name = key.split("/")
                entries.setdefault(int(index), {})[name] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": entries, "param_groups": groups})
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        own = {key.removeprefix("rng/"): t for key, t in tensors.items() if key.startswith("rng/")}
        rng.set_state(own, state["rng"])

    def _optimizer(self, part: str) -> torch.optim.Optimizer:
        """Return a part's optimizer, made when the part first trains."""
        if part not in self._optimizers:
            parameters = [p for p in self.model.parameters_of(part) if p.requires_grad]
            self._parameters[part] = parameters
            self._optimizers[part] = _make_optimizer(parameters, self._config)
        return self._optimizers[part]

    def _check(self, part: str, values: Mapping[str, float], norm: float) -> None:
        bad = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
        where = f"at step {self.step + 1} in part {part!r}"
        if bad:
            raise NumericsError(f"training: expected a finite loss {where}, got {', '.join(bad)}")
        if math.isfinite(norm):
            return
        if self._scaler.is_enabled() and self._scaler.get_scale() > _SMALLEST_SCALE:
            return  # the scaler skips this step and lowers the scale
        parameters = {id(p) for p in self._parameters[part]}
        worst = [
            name
            for name, p in self.model.named_parameters()
            if id(p) in parameters and p.grad is not None and not p.grad.isfinite().all()
        ]
        raise NumericsError(
            f"training: expected finite gradients {where}, got norm={norm}, not finite in "
            f"{', '.join(worst[:3]) or 'their sum of squares'}"
        )


def _read(losses: Mapping[str, Tensor], norm: Tensor) -> dict[str, float]:
    """Fetch all scalars of a step at once, so that a GPU is waited for once."""
    scalars = {**losses, "gradient_norm": norm}
    stacked = torch.stack(
        [value.detach().to(norm.device, torch.float32) for value in scalars.values()]
    )
    return dict(zip(scalars, stacked.tolist(), strict=True))


def _make_optimizer(
    parameters: list[nn.Parameter], config: TrainingConfig
) -> torch.optim.Optimizer:
    rate, decay, betas = config.learning_rate, config.weight_decay, config.betas
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, rate, betas=betas, weight_decay=decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, betas=betas, weight_decay=decay)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, rate, alpha=betas[1], weight_decay=decay)
    return torch.optim.SGD(parameters, rate, momentum=betas[0], weight_decay=decay)


def _amp_dtype(config: TrainingConfig, device: torch.device) -> torch.dtype | None:
    if not config.amp:
        return None
    if config.amp_dtype != "auto":
        return torch.bfloat16 if config.amp_dtype == "bfloat16" else torch.float16
    bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if bfloat16 else torch.float16
