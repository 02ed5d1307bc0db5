"""Pipelines of the transformers library (the extra ``transformers``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

from transformers import StoppingCriteriaList, TextIteratorStreamer, pipeline


@dataclass(eq=False)
class Pipeline:
    """A pipeline: ``Model("sentiment", Pipeline("text-classification", "distilbert-..."))``.

    What is stored is task and name; the weights are loaded where the model is called, once for each worker. Of
    ``"text-generation"``, ``db.stream`` yields the text as it is generated.

    Parameters
    ----------
    task
        As transformers calls it.
    name
        The model's name on the hub, or a folder that every worker can read; None: the task's own choice.
    device
        As transformers has it; None: its choice.
    batch_size
        Inputs of one forward pass.
    options
        Further arguments of each call, such as ``{"max_new_tokens": 100}``.
    """

    task: str
    name: str | None = None
    device: str | int | None = field(default=None, kw_only=True)
    batch_size: int = field(default=32, kw_only=True)
    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        self._loaded: Any = None

    @property
    def loaded(self) -> Any:
        """The pipeline itself."""
        if self._loaded is None:
            self._loaded = pipeline(self.task, model=self.name, device=self.device)
        return self._loaded

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Return what the pipeline returns for each input."""
        return list(self.loaded(list(inputs), batch_size=self.batch_size, **self.options))

    def stream(self, prompt: str) -> Iterator[str]:
        """Yield generated text in pieces; the prompt is not repeated."""
        loaded, left = self.loaded, Event()
        pieces = TextIteratorStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failed: list[BaseException] = []

        def generate() -> None:
            try:
                stop = StoppingCriteriaList(
                    [lambda ids, scores, **_: ids.new_full((len(ids),), left.is_set(), dtype=bool)]
                )
                loaded(prompt, streamer=pieces, stopping_criteria=stop, **self.options)
            except BaseException as error:  # told to who iterates
                failed.append(error)
                pieces.end()

        thread = Thread(target=generate, name="asyncdl-generate", daemon=True)
        thread.start()
        try:
            yield from (piece for piece in pieces if piece)
        finally:
            left.set()
            thread.join()
        if failed:
            raise failed[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}
