"""sentence-transformers' encoders (the extra ``sentence-transformers``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sentence_transformers import SentenceTransformer


@dataclass(eq=False)
class Encoder:
    """A model that turns texts into vectors: ``Model("embed", Encoder("all-MiniLM-L6-v2"))``.

    What is stored is the name; the weights are loaded where the model is called, once for each worker.

    Parameters
    ----------
    name
        The model's name on the hub, or a folder that every worker can read.
    device
        As sentence-transformers has it; None: a GPU where there is one.
    options
        Further arguments of ``SentenceTransformer.encode``, such as ``{"normalize_embeddings": True}``.
    """

    name: str
    device: str | None = field(default=None, kw_only=True)
    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        self._loaded: Any = None

    def predict(self, texts: Sequence[str]) -> list[Any]:
        """Return a vector for each text: a numpy array, float32."""
        if self._loaded is None:
            self._loaded = SentenceTransformer(self.name, device=self.device)
        return list(self._loaded.encode(list(texts), show_progress_bar=False, **self.options))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}
