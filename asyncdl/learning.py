"""Training again, validating, and reading what models learn from: what the datalayer's methods of these names do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from asyncdl.components.dataset import FOLDS, Fold
from asyncdl.components.model import Model
from asyncdl.components.states import ModelState
from asyncdl.components.validation import Validation
from asyncdl.errors import InvalidComponentError
from asyncdl.events.types import ValidationRequested
from asyncdl.installer import Installer
from asyncdl.jobs.handle import Follow, Handle
from asyncdl.jobs.rows import pages_of_dataset
from asyncdl.jobs.work import Stores
from asyncdl.metadata.records import ComponentRecord


class Learning:
    """Asks for trainings and validations."""

    def __init__(self, stores: Stores, installer: Installer, follow: Follow) -> None:
        self._stores = stores
        self._installer = installer
        self._registry = stores.registry
        self._follow = follow

    async def validate(self, identifier: str, validation: str | Validation | None) -> dict[str, float]:
        """Measure the newest version of a model that can be called."""
        model = await self._registry.usable(identifier)
        record = await self._validation(model, validation)
        asked = ValidationRequested(identifier=model.identifier, uuid=model.uuid, validation=record.uuid)
        [event] = await self._stores.metadata.commit(asked.change())
        await Handle(first=event.seq, last=event.seq, follow=self._follow).wait()
        [model] = await self._stores.metadata.components(uuids=[model.uuid])
        return dict(ModelState.of(model).validations[record.identifier])

    async def _validation(self, model: ComponentRecord, validation: str | Validation | None) -> ComponentRecord:
        if isinstance(validation, Validation):
            await self._installer.add(validation)
            return await self._registry.find("validation", validation.identifier)
        if validation is not None:
            return await self._registry.find("validation", validation)
        loaded = await self._registry.load(model)
        assert isinstance(loaded, Model)  # noqa: S101 - records of this type become models
        if loaded.validation is None:
            raise InvalidComponentError(
                f"{loaded} declares no validation; name one: db.validate({model.identifier!r}, 'validation')"
            )
        return (await self._stores.metadata.components(uuids=[str(loaded.validation.uuid)]))[0]

    async def validations(self, identifier: str) -> dict[int, dict[str, dict[str, float]]]:
        """Return the results of all validations of a model: version to validation to metric to value."""
        await self._registry.find("model", identifier)
        records = await self._stores.metadata.components(type_id="model", identifier=identifier)
        return {
            each.version: {name: dict(metrics) for name, metrics in ModelState.of(each).validations.items()}
            for each in records
        }

    async def rows(self, identifier: str, fold: Fold | None) -> AsyncIterator[dict[str, Any]]:
        """Yield the rows of a dataset's newest version."""
        record = await self._registry.find("dataset", identifier)
        pages = pages_of_dataset(self._stores, record, FOLDS if fold is None else [fold])
        async with aclosing(pages):
            async for names, rows in pages:
                for row in rows:
                    yield dict(zip(names, row, strict=True)) if names else row
