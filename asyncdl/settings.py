"""Settings: read once, from keyword arguments, the environment, a file, defaults, in this order."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Self

import pydantic
from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    PyprojectTomlConfigSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from asyncdl.errors import ConfigurationError

# to the last "@" before the path: a password may hold one; if there is none, one that holds slashes
_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):(?:[^/\s]*|[^@\s]*)@")
_SECRET_OPTION = re.compile(
    r"(?i)([?&;](?:[^=&\s]*(?:password|passwd|pwd|token|secret|api_key)|authMechanismProperties)=)[^&\s]*"
)


def redact(text: str) -> str:
    """Return a text with the passwords in its URIs replaced by ``***``."""
    return _SECRET_OPTION.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


class Settings(BaseSettings):
    """What a datalayer is made of, and how it behaves.

    Each can be given to `asyncdl.connect`, as an environment variable (``ASYNCDL_DATABACKEND``), in ``asyncdl.toml``, or under
    ``[tool.asyncdl]`` in ``pyproject.toml``, both in the working directory; the first of these counts.

    Raises
    ------
    ConfigurationError
        A value cannot be used, or a file cannot be read.
    """

    model_config = SettingsConfigDict(
        env_prefix="ASYNCDL_",
        toml_file="asyncdl.toml",
        pyproject_toml_table_header=("tool", "asyncdl"),
        extra="forbid",
        validate_assignment=True,
        validate_default=True,
    )

    databackend: str = Field("sqlite://.asyncdl/asyncdl.db", description="The database that holds the rows.")
    metadata_store: str | None = Field(
        None, description="Where components, events and jobs are; by default the databackend's own database."
    )
    artifact_store: str | None = Field(
        None,
        description="Where models and large values are; by default GridFS where metadata store or databackend are on MongoDB, "
        "else ``filesystem://.asyncdl/artifacts/``.",
    )
    compute: str = Field("local", description="Where models run.")
    pickle: bool = Field(
        True, description="Whether pickled models and values in the stores may be decoded: it runs code."
    )
    progress: bool | None = Field(
        None, description="Whether ``wait()`` shows a bar; by default in terminals and notebooks."
    )
    threads: int | None = Field(None, ge=1, description="Threads for plain-function models; by default one per core.")
    processes: int | None = Field(None, ge=1, description="Processes for models with ``on='process'``; one per core.")
    worker: bool = Field(
        True,
        description="Whether this process does the work that follows; without, another one must (`asyncdl worker`).",
    )
    job_concurrency: int = Field(
        64,
        ge=1,
        description="Jobs at once in this process, of one listener half of them; of those for more than a few rows, "
        "eight at most.",
    )
    job_shard_rows: int = Field(
        100_000,
        ge=1,
        description="Rows in a part of a large backfill, which is run in parts, by several workers at once.",
    )
    job_lease: float = Field(30.0, gt=0, description="Seconds after which a silent process's jobs are taken over.")
    job_backoff: float = Field(
        1.0, ge=0, description="Seconds before a failed job's second attempt; doubled for each more."
    )
    job_timeout: float | None = Field(None, gt=0, description="Seconds that one attempt of a job may take.")
    job_deadline: float | None = Field(
        None, gt=0, description="Seconds that a job may wait for a worker; one that begins later has failed."
    )
    job_max_attempts: int = Field(3, ge=1, description="Attempts after which a job has failed for good.")

    events_keep: float | None = Field(
        None,
        ge=0,
        description="Seconds after which an event is deleted from the log, once nothing holds it; by default none is.",
    )
    reconcile_every: float | None = Field(
        None,
        gt=0,
        description="Seconds between two reconcilings of outputs with rows; by default 300 on a standalone MongoDB, else none.",
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise ConfigurationError(_explain(error)) from None  # the original repeats the values, passwords too
        except ValueError as error:  # a file that is no TOML
            raise ConfigurationError(f"a settings file cannot be read: {error}") from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where values come from, the strongest first."""
        toml = TomlConfigSettingsSource(settings_cls)
        return init_settings, env_settings, toml, PyprojectTomlConfigSettingsSource(settings_cls)

    def replaced(self, **values: Any) -> Self:
        """Return a copy with other values; those that are None stay as they are."""
        given = {name: value for name, value in values.items() if value is not None}
        unknown = sorted(set(given) - set(type(self).model_fields))
        if unknown:
            known = ", ".join(type(self).model_fields)
            raise ConfigurationError(f"there is no setting {unknown[0]!r}; there are {known}")
        return type(self)(**{**self.model_dump(), **given})

    def __repr_args__(self) -> Any:
        for name in type(self).model_fields:
            value = getattr(self, name)
            yield name, redact(value) if isinstance(value, str) else value


def _explain(error: pydantic.ValidationError) -> str:
    known = ", ".join(Settings.model_fields)
    problems = []
    for each in error.errors(include_input=False, include_url=False):
        name = ".".join(str(part) for part in each["loc"])
        extra = f" (there are: {known})" if each["type"] == "extra_forbidden" else ""
        problems.append(f"{name}: {each['msg']}{extra}")
    return f"these settings cannot be used: {'; '.join(problems)}"


@cache
def defaults() -> Settings:
    """Return the process's defaults, ``asyncdl.CFG``: read at the first call. Changing it concerns later `connect` calls."""
    return Settings()
