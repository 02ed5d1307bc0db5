"""Models that hold something open, and let go of it in the end."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

logger = logging.getLogger(__name__)


class Closing:
    """Remembers models' objects that have a coroutine method ``aclose``; what one opened on this loop it closes there."""

    def __init__(self) -> None:
        self._models: dict[int, Any] = {}

    def remember(self, model: Any) -> None:
        """Take in an object that may be called from now on."""
        if inspect.iscoroutinefunction(getattr(model, "aclose", None)):
            self._models[id(model)] = model

    async def aclose(self, seconds: float) -> None:
        """Close them, each within so many seconds; who else uses one may close it, too."""
        models, self._models = self._models, {}
        for model in models.values():
            try:
                async with asyncio.timeout(seconds):
                    await model.aclose()
            except Exception:  # a model may raise anything
                logger.exception("a model could not be closed: %r", model)
