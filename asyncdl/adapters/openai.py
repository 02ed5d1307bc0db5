"""Chat and embeddings over HTTP, of every service that speaks OpenAI's protocol (the extra ``openai``)."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI

_PLACES = re.compile(r"(\{context\}|\{prompt\})")

Message = Mapping[str, Any]
"""``{"role": "user", "content": ...}``."""


@dataclass(eq=False)
class _Service:
    """Where a model is served.

    Note for implementers: a client belongs to the event loop that it was first used on, and is no part of the value.
    """

    model: str
    base_url: str | None = field(default=None, kw_only=True)
    api_key_variable: str = field(default="OPENAI_API_KEY", kw_only=True)
    max_retries: int = field(default=5, kw_only=True)
    timeout: float = field(default=60.0, kw_only=True)
    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        self._client: AsyncOpenAI | None = None

    @property
    def client(self) -> AsyncOpenAI:
        """The library's client."""
        if self._client is None:
            nobody = "none" if self.base_url is not None else None  # None: the library says that a key is missing
            where = {} if self.base_url is None else {"base_url": self.base_url}
            self._client = AsyncOpenAI(
                api_key=os.environ.get(self.api_key_variable, nobody),
                max_retries=self.max_retries,
                timeout=self.timeout,
                **where,
            )
        return self._client

    async def aclose(self) -> None:
        """Close the connections; the next call opens them again."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}


@dataclass(eq=False)
class Chat(_Service):
    """A chat model: ``Model("llm", Chat("gpt-4o-mini"), max_concurrency=20)``.

    ``await db.predict("llm", "What is a datalayer?")`` returns the answer's text, ``db.stream("llm", ...)`` yields it piece by
    piece.

    Parameters
    ----------
    model
        The model's name at the service.
    base_url
        The service's address, such as ``"http://localhost:8000/v1"``; None: ``OPENAI_BASE_URL``, or OpenAI's own.
    api_key_variable
        The environment variable that holds the key where the model is called. The key itself is stored nowhere; a service at a
        ``base_url`` of one's own may need none.
    system
        The system message, empty for none.
    template
        How context (`db.predict`'s ``context_select``) and prompt become one message: text with the places ``{context}`` and
        ``{prompt}``.
    max_retries
        Further attempts after a refused connection, a timeout, or one of the statuses 408, 409, 429 and 5xx; the library waits
        as long as the service asks for.
    timeout
        Seconds for one attempt.
    options
        Further arguments of ``chat.completions.create``, such as ``{"temperature": 0}``.

    References
    ----------
    https://platform.openai.com/docs/api-reference/chat
    """

    system: str = field(default="", kw_only=True)
    template: str = field(default="{context}\n\n{prompt}", kw_only=True)

    async def __call__(self, prompt: str | Sequence[Message], context: Sequence[Any] = ()) -> str:
        """Return the answer to a prompt, or to messages.

        Raises
        ------
        openai.OpenAIError
            The service refused, or did not answer, after the last attempt.
        """
        completion = await self.client.chat.completions.create(
            model=self.model, messages=self._messages(prompt, context), **self.options
        )
        return completion.choices[0].message.content or ""

    async def stream(self, prompt: str | Sequence[Message], context: Sequence[Any] = ()) -> AsyncIterator[str]:
        """Yield the answer in pieces, as they come."""
        chunks = await self.client.chat.completions.create(
            model=self.model, messages=self._messages(prompt, context), stream=True, **self.options
        )
        async with chunks:
            async for chunk in chunks:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content

    def _messages(self, prompt: str | Sequence[Message], context: Sequence[Any]) -> Any:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if context:
            told = "\n\n".join(map(str, context))
            last = dict(messages[-1])
            # not `format`: what rows and prompts hold in braces is theirs
            last["content"] = (
                self.template.replace("{prompt}", "\0").replace("{context}", told).replace("\0", last["content"])
            )
            messages[-1] = last
        return [{"role": "system", "content": self.system}, *messages] if self.system else messages


@dataclass(eq=False)
class Embeddings(_Service):
    """A model that turns texts into vectors: ``Model("embed", Embeddings("text-embedding-3-small"), batch=True)``.

    Takes a batch of texts in one request; each output is a list of floats.

    Parameters
    ----------
    model, base_url, api_key_variable, max_retries, timeout
        As `Chat`'s.
    options
        Further arguments of ``embeddings.create``, such as ``{"dimensions": 256}``.

    References
    ----------
    https://platform.openai.com/docs/api-reference/embeddings
    """

    async def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Return a vector for each text.

        Raises
        ------
        openai.OpenAIError
            As `Chat`.
        """
        found = await self.client.embeddings.create(
            model=self.model, input=list(texts), encoding_format="float", **self.options
        )
        return [each.embedding for each in sorted(found.data, key=lambda each: each.index)]
