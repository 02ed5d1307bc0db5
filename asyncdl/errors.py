"""Every error that asyncdl raises.

::

    AsyncDLError
    ├── ConfigurationError (ValueError)
    │   ├── UnknownSchemeError
    │   └── MissingDependencyError (ImportError)
    ├── ClosedError (RuntimeError)
    ├── InvalidIdentifierError (ValueError)
    ├── ComponentError
    │   ├── ComponentNotFoundError (LookupError)
    │   ├── ComponentInUseError
    │   ├── ComponentNotReadyError
    │   ├── InvalidComponentError (ValueError)
    │   └── UnknownComponentTypeError (LookupError)
    ├── QueryError (ValueError)
    │   ├── TableNotFoundError (LookupError)
    │   ├── UnknownColumnError (LookupError)
    │   └── InvalidRowError
    ├── DatatypeError (TypeError)
    ├── ModelError
    │   └── ModelOutputError (ValueError)
    ├── ComputeError
    │   ├── WorkerLostError
    │   └── ComputeUnavailableError (ConnectionError)
    ├── ArtifactError
    │   ├── ArtifactNotFoundError (LookupError)
    │   ├── ArtifactCorruptError
    │   └── UntrustedArtifactError (PermissionError)
    ├── EventsTrimmedError (LookupError)
    ├── JobError
    │   ├── JobNotFoundError (LookupError)
    │   ├── JobFailedError
    │   ├── JobCancelledError
    │   └── JobTimeoutError (TimeoutError)
    │       └── QueueDeadlineError
    └── StoreError
        ├── StoreUnavailableError (ConnectionError)
        ├── StoreTimeoutError (TimeoutError)
        ├── ConflictError
        │   └── LeaseLostError
        └── ConstraintError
            └── DuplicateKeyError

Each also derives from the builtin named behind it. An exception of a driver is translated where the driver is called
(`asyncdl.drivers`), with the original as its ``__cause__``.
"""

from __future__ import annotations


class AsyncDLError(Exception):
    """Base of every error that asyncdl raises."""


class ConfigurationError(AsyncDLError, ValueError):
    """A setting or an argument of `connect` cannot be used."""


class UnknownSchemeError(ConfigurationError):
    """A URI names a scheme that no backend serves."""


class MissingDependencyError(ConfigurationError, ImportError):
    """A backend needs a package that is not installed; the message names the extra to install."""


class ClosedError(AsyncDLError, RuntimeError):
    """The datalayer, or a store, was used before it was opened or after it was closed."""


class InvalidIdentifierError(AsyncDLError, ValueError):
    """An identifier of a component, table or column has characters or a length that are not allowed."""


class ComponentError(AsyncDLError):
    """Something is wrong with a component, or with what is asked of it."""


class ComponentNotFoundError(ComponentError, LookupError):
    """No component of this type, identifier and version is installed."""


class ComponentInUseError(ComponentError):
    """A component cannot be removed while others refer to it; the message names them."""


class ComponentNotReadyError(ComponentError):
    """A model was called that is still to be trained, a dataset read whose rows are still to be kept; or that failed.

    Attributes
    ----------
    failed
        Whether it failed.
    """

    def __init__(self, message: str, *, failed: bool = False) -> None:
        super().__init__(message)
        self.failed = failed


class InvalidComponentError(ComponentError, ValueError):
    """A component's declaration contradicts itself or the data it refers to."""


class UnknownComponentTypeError(ComponentError, LookupError):
    """A component's type is not known to this process; import the module that defines it first."""


class QueryError(AsyncDLError, ValueError):
    """A query cannot be compiled or executed."""


class TableNotFoundError(QueryError, LookupError):
    """A query names a table that does not exist."""


class UnknownColumnError(QueryError, LookupError):
    """A query or a key names a column that its table does not have."""


class InvalidRowError(QueryError):
    """A row to be written does not fit its table."""


class DatatypeError(AsyncDLError, TypeError):
    """A value cannot be stored as the datatype of its column."""


class ModelError(AsyncDLError):
    """A model failed, or could not be called."""


class ModelOutputError(ModelError, ValueError):
    """A model returned something else than one output for each input."""


class ComputeError(AsyncDLError):
    """What runs models did not do what was asked."""


class WorkerLostError(ComputeError):
    """The process that ran a batch, or the scheduler that knew of it, died; the batch may be tried again."""


class ComputeUnavailableError(ComputeError, ConnectionError):
    """The scheduler cannot be reached, or no worker is there that could run a batch."""


class ArtifactError(AsyncDLError):
    """Something is wrong with an artifact."""


class ArtifactNotFoundError(ArtifactError, LookupError):
    """The artifact store holds no artifact with this hash."""


class ArtifactCorruptError(ArtifactError):
    """The stored bytes do not have the hash that they were stored under."""


class UntrustedArtifactError(ArtifactError, PermissionError):
    """Decoding would run pickled code, and the setting ``pickle`` does not allow it."""


class EventsTrimmedError(AsyncDLError, LookupError):
    """Events were asked for that the log holds no longer.

    Attributes
    ----------
    first
        The smallest ``seq`` that an event of the log may have now: ``since=error.first - 1`` reads all that there is.
    """

    def __init__(self, message: str, first: int = 1) -> None:
        super().__init__(message)
        self.first = first


class JobError(AsyncDLError):
    """Something is wrong with a job."""


class JobNotFoundError(JobError, LookupError):
    """No job has this id."""


class JobFailedError(JobError):
    """A job that was waited for failed; the message holds the traceback of its last attempt."""


class JobCancelledError(JobError):
    """A job that was waited for was cancelled."""


class JobTimeoutError(JobError, TimeoutError):
    """Work that was waited for was not done in time; it goes on."""


class QueueDeadlineError(JobTimeoutError):
    """No worker began with a job within the setting ``job_deadline``; it has failed."""


class StoreError(AsyncDLError):
    """A database or file system did not do what was asked."""


class StoreUnavailableError(StoreError, ConnectionError):
    """A store cannot be reached."""


class StoreTimeoutError(StoreError, TimeoutError):
    """A store did not answer in time."""


class ConflictError(StoreError):
    """The condition of a change did not hold; nothing of its commit was applied."""


class LeaseLostError(ConflictError):
    """A job's lease was taken over by another worker, or the job was cancelled meanwhile."""


class ConstraintError(StoreError):
    """The database refused a write because of one of its constraints."""


class DuplicateKeyError(ConstraintError):
    """The database refused a row because its key, or a unique value, exists already."""
