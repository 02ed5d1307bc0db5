"""PyTorch's modules (the extra ``torch``)."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset


@dataclass(eq=False)
class Module:
    """A module: ``Model("digits", Module(net, postprocess=lambda scores: int(scores.argmax())))``.

    Inputs are stacked into one tensor, the module is called on it without gradients, in evaluation mode, and each row of its
    output is an output. It is stored with its weights, on no device; where it is called it goes to ``device``.

    Parameters
    ----------
    module
        The module: from a tensor ``(batch, ...)`` to a tensor ``(batch, ...)``.
    preprocess
        From one input to what `torch.as_tensor` takes; None: as it is.
    postprocess
        From one row of the output, a tensor on the CPU, to the model's output; None: its values, as numbers or a numpy array.
    dtype
        The inputs', as torch calls it (``"float32"``).
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; ``"auto"``: a GPU where there is one.
    """

    module: torch.nn.Module
    preprocess: Callable[[Any], Any] | None = field(default=None, kw_only=True)
    postprocess: Callable[[torch.Tensor], Any] | None = field(default=None, kw_only=True)
    dtype: str = field(default="float32", kw_only=True)
    device: str = field(default="auto", kw_only=True)

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Return an output for each input."""
        module = self.module.to(self.where).eval()
        with torch.inference_mode():
            found = module(self.tensor(inputs)).cpu()
        if self.postprocess is not None:
            return [self.postprocess(row) for row in found]
        return list(found.tolist()) if found.ndim == 1 else list(found.numpy())

    def tensor(self, inputs: Sequence[Any]) -> torch.Tensor:
        """Return inputs as one tensor, on the device."""
        prepared = inputs if self.preprocess is None else map(self.preprocess, inputs)
        return torch.stack([torch.as_tensor(each, dtype=getattr(torch, self.dtype)) for each in prepared]).to(
            self.where
        )

    @property
    def where(self) -> torch.device:
        """The device that it is on when it is called."""
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def __getstate__(self) -> dict[str, Any]:
        """Return it with its weights on the CPU: it may be loaded where there is no GPU."""
        first = next(self.module.parameters(), None)
        moved = first is not None and first.device.type != "cpu"
        return {**self.__dict__, "module": copy.deepcopy(self.module).cpu() if moved else self.module}


@dataclass(eq=False)
class Fit:
    """What trains a `Module`: ``Trainer(fit=Fit(epochs=10), select=..., key=("image", "label"))``.

    Reports the mean loss of each epoch, and keeps a checkpoint after it, from which a training that was interrupted goes on.

    Parameters
    ----------
    epochs, batch_size
        How often all rows are gone through, and how many make one step.
    loss
        From outputs and targets, as tensors, to a scalar; default: cross entropy, of targets that are classes.
    optimizer
        Makes the optimizer of parameters; default: Adam with ``learning_rate``.
    target_dtype
        The targets' (``"int64"`` for classes, ``"float32"`` for regression).
    seed
        Of the order in which rows are taken.
    """

    epochs: int = field(default=10, kw_only=True)
    batch_size: int = field(default=64, kw_only=True)
    learning_rate: float = field(default=1e-3, kw_only=True)
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = field(
        default=torch.nn.functional.cross_entropy, kw_only=True
    )
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = field(default=None, kw_only=True)
    target_dtype: str = field(default="int64", kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __call__(self, model: Module, X: Sequence[Any], y: Sequence[Any], training: Any) -> Module:  # noqa: N803 - as scikit-learn
        """Train a module, and return it."""
        targets = torch.as_tensor(y, dtype=getattr(torch, self.target_dtype)).to(model.where)
        rows = TensorDataset(model.tensor(X), targets)
        module = model.module.to(model.where).train()
        optimizer = (self.optimizer or self._adam)(module.parameters())
        begun = self._restored(training.restored, module, optimizer)
        for epoch in range(begun, self.epochs):
            # The order of an epoch is its own: a training that goes on from a checkpoint takes rows as one that was never
            # interrupted.
            order = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            losses = [
                self._step(module, optimizer, inputs, wanted)
                for inputs, wanted in DataLoader(rows, self.batch_size, shuffle=True, generator=order)
            ]
            training.checkpoint(_saved(epoch + 1, module, optimizer))
            training.report(epoch + 1, self.epochs, loss=sum(losses) / max(1, len(losses)))
        return model

    def _adam(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.learning_rate)

    def _step(
        self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, wanted: torch.Tensor
    ) -> float:
        optimizer.zero_grad()
        loss = self.loss(module(inputs), wanted)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def _restored(self, state: bytes | None, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
        if state is None:
            torch.manual_seed(self.seed)
            return 0
        saved = torch.load(io.BytesIO(state), map_location=next(module.parameters()).device, weights_only=True)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        return int(saved["epoch"])


def _saved(epoch: int, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> bytes:
    buffer = io.BytesIO()
    torch.save({"epoch": epoch, "module": module.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    return buffer.getvalue()
