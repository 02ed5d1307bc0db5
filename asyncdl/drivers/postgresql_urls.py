"""URLs of PostgreSQL databases, as libpq has them."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from asyncdl.errors import ConfigurationError
from asyncdl.settings import redact


def read_url(url: str) -> tuple[str, str, tuple[Any, ...]]:
    """Return a URL as asyncpg takes it, without its secrets, and as what tells databases apart."""
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2]
        user = unquote(parts.username or "")
    except ValueError as error:
        raise ConfigurationError(f"{redact(url)!r} is no URL: {error}") from None
    ports = [host.rpartition(":")[2] for host in hosts.split(",") if ":" in host and not host.endswith("]")]
    if not all(port.isdigit() for port in ports):
        raise ConfigurationError(f"{redact(url)!r} is no URL: a port is a number")
    if parts.scheme not in {"postgresql", "postgres"}:
        raise ConfigurationError(f"{redact(url)!r} is no URL of a PostgreSQL database: 'postgresql://host/database'")
    shown = f"postgresql://{f'{user}@' if user else ''}{hosts}{parts.path}"
    options = sorted(parse_qsl(parts.query))
    place = (tuple(_host(each) for each in hosts.split(",")), parts.path.strip("/") or user, user, tuple(options))
    return f"postgresql://{url.partition('://')[2]}", shown, place


def _host(host: str) -> str:
    return host.lower() if host.rpartition(":")[2].isdigit() or not host else f"{host.lower()}:5432"
