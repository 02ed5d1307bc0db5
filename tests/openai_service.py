"""A server on this machine that speaks the part of OpenAI's HTTP API that the adapters use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class Service:
    """Answers each chat with its last message turned round, word by word, and each text with a vector of its length.

    Attributes
    ----------
    requests
        The bodies that came, with the key that came with them.
    refusals
        Statuses with which the next requests are refused, the first one first.
    most
        Requests that were being answered at once.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.refusals: list[int] = []
        self.under_way = self.most = 0
        self.left = asyncio.Event()
        self.hold = asyncio.Event()
        self.hold.set()

    async def _taken(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.requests.append((request.headers.get("Authorization", ""), body))
        if self.refusals:
            status = self.refusals.pop(0)
            error = {"error": {"message": f"refused with {status}", "type": "test", "code": None, "param": None}}
            raise _refusal(status, error)
        return body

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._taken(request)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.hold.wait()
            words = body["messages"][-1]["content"].split(" ")[::-1]
            if body.get("stream"):
                return await self._streamed(request, words)
            message = {"role": "assistant", "content": " ".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            return web.json_response(_completion("chat.completion", [choice]))
        finally:
            self.under_way -= 1

    async def _streamed(self, request: web.Request, words: list[str]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for at, word in enumerate(words):
                delta = {"content": word if at == 0 else f" {word}"}
                choice = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}
                data = json.dumps(_completion("chat.completion.chunk", [choice]))
                await response.write(f"data: {data}\n\n".encode())
            await response.write(b"data: [DONE]\n\n")
        except (ConnectionResetError, asyncio.CancelledError):
            self.left.set()
            raise
        return response

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await self._taken(request)
        found = [
            {"object": "embedding", "index": at, "embedding": [float(len(text)), 1.0]}
            for at, text in enumerate(body["input"])
        ]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return web.json_response({"object": "list", "data": found[::-1], "model": body["model"], "usage": usage})


def _refusal(status: int, error: dict[str, Any]) -> web.HTTPException:
    kinds: dict[int, type[web.HTTPException]] = {
        401: web.HTTPUnauthorized,
        429: web.HTTPTooManyRequests,
        500: web.HTTPInternalServerError,
    }
    return kinds[status](text=json.dumps(error), content_type="application/json", headers={"Retry-After": "0"})


def _completion(kind: str, choices: list[Any]) -> dict[str, Any]:
    return {"id": "1", "object": kind, "created": 0, "model": "backwards", "choices": choices}


@asynccontextmanager
async def serve() -> AsyncIterator[Service]:
    """Run a service on a free port."""
    service, app = Service(), web.Application()
    app.router.add_post("/v1/chat/completions", service.chat)
    app.router.add_post("/v1/embeddings", service.embeddings)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield service
    finally:
        await runner.cleanup()
