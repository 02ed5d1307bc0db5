"""The conformance suite of metadata stores: components, their links and artifacts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asyncdl.errors import ComponentInUseError, ConflictError
from asyncdl.metadata.base import JobFilter, MetadataStore
from asyncdl.metadata.changes import (
    DeleteComponent,
    LinkArtifacts,
    PutComponent,
    PutJob,
    SetComponentData,
    SetComponentState,
    SetComponentStatus,
)
from asyncdl.testing.metadata_hooks import MetadataHooks
from asyncdl.testing.metadata_records import PREPARED, component, event, job


class ComponentTests(MetadataHooks):
    """Components, their links and artifacts."""

    async def test_components_come_back_as_they_were_put(self, store: MetadataStore, tmp_path: Path) -> None:
        records = [
            component("1" * 32, "alpha", 1, created=1764547200.123456, data='{"a": [1, 2.5, null]}', status="ready"),
            component("2" * 32, "alpha", 2, state='{"table": "x"}'),
            component("3" * 32, "alpha", 10),
            component("4" * 32, "beta", 1, type_id="listener"),
        ]
        for record in reversed(records):
            await store.commit(PutComponent(record))
        everything = [records[3], *records[:3]]
        assert await store.components() == everything
        assert len(await self.raw(tmp_path, "components")) == 4
        assert await store.components(type_id="model") == records[:3]
        assert await store.components(identifier="beta") == [records[3]]
        assert await store.components(type_id="model", identifier="alpha", version=2) == [records[1]]
        assert await store.components(type_id="model", identifier="beta") == []
        assert await store.components(uuids=["1" * 32, "4" * 32, "nobody"]) == [records[3], records[0]]
        assert await store.components(uuids=[]) == []
        assert await store.components(uuids=["1" * 32], version=2) == []

    async def test_thousands_can_be_asked_for_at_once(self, store: MetadataStore) -> None:
        await store.commit(PutComponent(component("x", "x")), PutJob(job("x")), event("x", "X"))
        names = [*map(str, range(5000)), "x"]
        assert [each.uuid for each in await store.components(uuids=names)] == ["x"]
        assert [each.id for each in await store.jobs(JobFilter(ids=names))] == ["x"]
        assert [each.topic for each in await store.events(0, topics=names)] == ["x"]

    async def test_status_and_state_are_replaced(self, store: MetadataStore) -> None:
        await store.commit(PutComponent(component("a", "a")), PutComponent(component("b", "b")))
        await store.commit(SetComponentStatus("a", "ready"), SetComponentState("a", '{"n": 1}'))
        await store.commit(SetComponentState("a", '{"n": 2}', expected='{"n": 1}'))
        assert await store.components() == [component("a", "a", status="ready", state='{"n": 2}'), component("b", "b")]

    async def test_what_a_component_declares_is_replaced(self, store: MetadataStore) -> None:
        await store.commit(PutComponent(component(data='{"a": 1}', state='{"kept": 1}')))
        await store.commit(SetComponentData("c" * 32, '{"a": 2}'))
        assert await store.components() == [component(data='{"a": 2}', state='{"kept": 1}')]

    async def test_artifacts_are_linked_and_unlinked_later(self, store: MetadataStore) -> None:
        first, second, third = "a" * 64, "b" * 64, "c" * 64
        await store.commit(PutComponent(component("a", "a"), artifacts=[first]), PutComponent(component("b", "b")))
        await store.commit(LinkArtifacts("a", [first, second, second]), LinkArtifacts("b", [second]))
        assert await store.artifacts("a") == {first, second}
        await store.commit(LinkArtifacts("a", [second, third], [first, second, "d" * 64]))
        assert await store.artifacts("a") == {second, third}
        assert await store.artifacts() == {second, third}
        await store.commit(LinkArtifacts("a", unlinked=[second]), LinkArtifacts("b"))
        assert (await store.artifacts("a"), await store.artifacts("b")) == ({third}, {second})
        await store.commit(DeleteComponent("a"))
        assert await store.artifacts() == {second}

    async def test_links_lead_both_ways_and_artifacts_are_counted_once(self, store: MetadataStore) -> None:
        leaf, middle, top = component("leaf", "leaf"), component("middle", "middle"), component("top", "top")
        await store.commit(
            PutComponent(leaf, artifacts=["a" * 64, "b" * 64, "a" * 64]),
            PutComponent(middle, children=["leaf", "leaf"], artifacts={"b" * 64}),
            PutComponent(top, children=["leaf", "middle"]),
        )
        assert {each.uuid for each in await store.parents("leaf")} == {"middle", "top"}
        assert {each.uuid for each in await store.children("top")} == {"leaf", "middle"}
        assert await store.children("middle") == [leaf]
        assert await store.parents("top") == await store.children("leaf") == await store.parents("nobody") == []
        assert await store.artifacts("leaf") == {"a" * 64, "b" * 64}
        assert await store.artifacts("top") == set()
        assert await store.artifacts() == {"a" * 64, "b" * 64}

    async def test_a_component_is_removed_with_its_links_once_nothing_refers_to_it(
        self, store: MetadataStore, tmp_path: Path
    ) -> None:
        await store.commit(*PREPARED)
        with pytest.raises(ComponentInUseError):
            await store.commit(DeleteComponent("child"), DeleteComponent("parent"))
        await store.commit(DeleteComponent("parent"), DeleteComponent("child"))
        for kind in ("components", "links", "artifacts"):
            assert await self.raw(tmp_path, kind) == []
        await store.commit(PutComponent(component("child", "child")))
        assert await store.parents("child") == []

    async def test_20_concurrent_adders_make_20_versions(self, store: MetadataStore, other: MetadataStore) -> None:
        async def add(n: int) -> int:
            on = (store, other)[n % 2]
            while True:
                version = max((each.version for each in await on.components()), default=0) + 1
                try:
                    await on.commit(PutComponent(component(f"{n}", "model", version)), event())
                except ConflictError:
                    continue
                return version

        assert sorted(await asyncio.gather(*map(add, range(20)))) == list(range(1, 21))
        assert [each.version for each in await other.components()] == list(range(1, 21))
        assert await store.last_event() == 20
