"""Loading models for the compute backend: what was installed, never the object that was once declared."""

from __future__ import annotations

from typing import Any

import cloudpickle

from asyncdl.components.declaration import resolve
from asyncdl.components.model import Model
from asyncdl.components.registry import Registry
from asyncdl.compute.base import OWN, Fetch, ModelCall
from asyncdl.errors import ComponentNotFoundError, UntrustedArtifactError


class InstalledModelLoader:
    """Finds models' objects for the compute backend."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, call: ModelCall) -> Any:
        """Return the live object; the same that the registry keeps, so that a large one is in memory once."""
        if call.uuid.startswith(OWN) and call.reference is not None:
            return resolve(call.reference)
        records = await self._registry.metadata.components(uuids=[call.uuid])
        if not records:
            raise ComponentNotFoundError(f"the model {call.uuid} has been removed")
        component: Any = await self._registry.load(records[0])
        return component.called_object if isinstance(component, Model) else component.object

    async def payload(self, call: ModelCall) -> bytes:
        """Return the object pickled; where pickles are not decoded here, they are not sent to where they would be."""
        if call.artifact is not None:
            self._check_trusted(call)
            return await self._registry.artifact_store.get(call.artifact)
        return bytes(cloudpickle.dumps(await self(call)))

    def fetch(self) -> Fetch | None:
        """Return what reads this artifact store in another process; None where pickles are not to be decoded."""
        return self._registry.artifact_store.elsewhere() if self._registry.allow_pickle else None

    def _check_trusted(self, call: ModelCall) -> None:
        if not self._registry.allow_pickle:
            raise UntrustedArtifactError(
                f"model {call.uuid} is a pickle, and decoding it would run its code; allow it with connect(..., pickle=True)"
            )
