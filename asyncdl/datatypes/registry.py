"""The datatypes that a datalayer knows: how values of asyncdl's own become bytes, and bytes values."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

from asyncdl import codec
from asyncdl.datatypes.checks import Check, check_of, refuse
from asyncdl.datatypes.names import OWN, Parsed, parse
from asyncdl.errors import AsyncDLError, DatatypeError, MissingDependencyError, UntrustedArtifactError

# What PNG keeps exactly; images of other modes become (uncompressed) TIFF.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})


class Datatypes:
    """Checks, encodes and decodes values.

    Parameters
    ----------
    allow_pickle
        Whether pickled objects may be decoded, and so may be encoded.
    """

    def __init__(self, *, allow_pickle: bool) -> None:
        self.allow_pickle = allow_pickle
        self._registered: dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], Any]]] = {}
        self._checks: dict[str, Check] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_checks": {}}

    @property
    def registered(self) -> bool:
        """Whether there are any but asyncdl's own."""
        return bool(self._registered)

    def register(self, name: str, encoder: Callable[[Any], bytes], decoder: Callable[[bytes], Any]) -> None:
        """Make ``datatype(name)`` known."""
        self._registered[name] = encoder, decoder

    def check(self, datatype: str) -> Check:
        """Return the check of a datatype; of asyncdl's own, it makes the bytes that are stored."""
        found = self._checks.get(datatype)
        if found is None:
            parsed = parse(datatype)
            found = Check(parsed.text, self._encoder(parsed)) if parsed.kind in OWN else check_of(parsed)
            self._checks[datatype] = found
        return found

    def decoder(self, datatype: str) -> Callable[[bytes], Any] | None:
        """Return what makes a value of the bytes of one of asyncdl's own datatypes, None for others.

        It raises `DatatypeError` for bytes that it cannot decode, `UntrustedArtifactError` for pickles that may not be.
        """
        parsed = parse(datatype)
        if parsed.kind not in OWN:
            return None
        decode = self._decode(parsed)

        def guarded(data: bytes) -> Any:
            try:
                return decode(data)
            except AsyncDLError:
                raise
            except Exception as error:
                raise DatatypeError(f"stored bytes are no {parsed.text}: {type(error).__name__}: {error}") from error

        return guarded

    def encode(self, datatype: str, value: Any) -> Any:
        """Return the value to be stored: bytes for asyncdl's own datatypes; raises `DatatypeError`."""
        return self.check(datatype).one(value)

    def decode(self, datatype: str, data: Any) -> Any:
        """Return the value that `encode` was given."""
        decode = self.decoder(datatype)
        return data if decode is None or data is None else decode(data)

    def _encoder(self, parsed: Parsed) -> Callable[[Any], bytes]:
        if parsed.kind == "vector":
            return _vector_encoder(parsed)
        if parsed.kind == "ndarray":
            return _encode_array
        if parsed.kind == "image":
            return encode_image
        if parsed.kind == "pickle":
            return self._encode_pickle
        return self._registered_encoder(parsed)

    def _decode(self, parsed: Parsed) -> Callable[[bytes], Any]:
        if parsed.kind == "vector":
            return _vector_decoder(parsed)
        if parsed.kind == "ndarray":
            return _decode_array
        if parsed.kind == "image":
            return decode_image
        if parsed.kind == "pickle":
            return self._decode_pickle
        return self._registered_decoder(parsed)

    # registered ones

    def _of(self, parsed: Parsed) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
        (name,) = parsed.arguments
        found = self._registered.get(name)
        if found is None:
            known = ", ".join(sorted(self._registered)) or "none"
            raise DatatypeError(f"no Datatype {name!r} is installed (there is: {known}); add it before what uses it")
        return found

    def _registered_encoder(self, parsed: Parsed) -> Callable[[Any], bytes]:
        def encode(value: Any) -> bytes:
            encoder, _ = self._of(parsed)
            try:
                data = encoder(value)
            except Exception as error:
                raise refuse(parsed.text, value, f"its encoder raised {type(error).__name__}: {error}") from error
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise refuse(parsed.text, value, f"its encoder returned {codec.kind_of(data)}, not bytes")
            return bytes(data)

        return encode

    def _registered_decoder(self, parsed: Parsed) -> Callable[[bytes], Any]:
        def decode(data: bytes) -> Any:
            _, decoder = self._of(parsed)  # looked up late: a datatype may be replaced
            return decoder(data)

        return decode

    # pickles

    def _encode_pickle(self, value: Any) -> bytes:
        if not self.allow_pickle:
            raise refuse("pickle", value, "the setting `pickle` is off; declare a Datatype for it")
        import cloudpickle  # noqa: PLC0415 - only where something is pickled

        try:
            return bytes(cloudpickle.dumps(value))
        except Exception as error:
            raise refuse("pickle", value, f"it cannot be pickled: {type(error).__name__}: {error}") from error

    def _decode_pickle(self, data: bytes) -> Any:
        if not self.allow_pickle:
            raise UntrustedArtifactError("a value is pickled, and the setting `pickle` does not allow decoding it")
        return pickle.loads(data)  # noqa: S301 - allowed by the setting


def _vector_encoder(parsed: Parsed) -> Callable[[Any], bytes]:
    import numpy as np  # noqa: PLC0415 - heavy: only where vectors are stored

    name, length = parsed.arguments
    dtype = np.dtype(name).newbyteorder("<")

    def encode(value: Any) -> bytes:
        if not isinstance(value, (np.ndarray, list, tuple)):
            raise refuse(parsed.text, value)
        try:
            found = np.asarray(value)
        except ValueError:
            raise refuse(parsed.text, value, "its elements have different lengths") from None
        if found.shape != (length,):
            raise refuse(parsed.text, value, f"its shape is {found.shape}, not ({length},)")
        if found.dtype.kind not in "fiu" or (dtype.kind != "f" and found.dtype.kind == "f"):
            raise refuse(parsed.text, value, f"its elements are {found.dtype}")
        if dtype.kind != "f" and not np.can_cast(found.dtype, dtype):
            info = np.iinfo(dtype)
            if int(found.min()) < info.min or int(found.max()) > info.max:
                raise refuse(parsed.text, value, f"its elements are not all between {info.min} and {info.max}")
        with np.errstate(over="ignore"):
            return found.astype(dtype, copy=False).tobytes()

    return encode


def _vector_decoder(parsed: Parsed) -> Callable[[bytes], Any]:
    import numpy as np  # noqa: PLC0415 - heavy: only where vectors are read

    name, length = parsed.arguments
    dtype, native = np.dtype(name).newbyteorder("<"), np.dtype(name)

    def decode(data: bytes) -> Any:
        found = np.frombuffer(data, dtype).astype(native)
        if len(found) != length:
            raise DatatypeError(f"stored bytes are no {parsed.text}: they hold {len(found)} elements")
        return found

    return decode


def _encode_array(value: Any) -> bytes:
    import numpy as np  # noqa: PLC0415 - heavy: only where arrays are stored

    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise refuse("ndarray", value)
    if value.dtype.hasobject:
        raise refuse("ndarray", value, "an array of objects would have to be pickled")
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return buffer.getvalue()


def _decode_array(data: bytes) -> Any:
    import numpy as np  # noqa: PLC0415 - heavy: only where arrays are read

    return np.load(io.BytesIO(data), allow_pickle=False)


def _pillow() -> Any:
    try:
        from PIL import Image  # noqa: PLC0415 - an extra, and heavy
    except ImportError as error:
        raise MissingDependencyError("images need pillow: pip install 'asyncdl[images]'") from error
    return Image


def encode_image(value: Any) -> bytes:
    """Return an image as PNG, or as TIFF where PNG would not keep it; raises `DatatypeError`."""
    if not isinstance(value, _pillow().Image):
        raise refuse("image", value)
    buffer = io.BytesIO()
    try:
        value.save(buffer, format="PNG" if value.mode in _PNG_MODES else "TIFF")
    except (OSError, ValueError, KeyError) as error:
        raise refuse("image", value, f"{type(error).__name__}: {error}") from error
    return buffer.getvalue()


def decode_image(data: bytes) -> Any:
    """Return the image that `encode_image` was given."""
    image = _pillow().open(io.BytesIO(data))
    image.load()
    return image
