"""Which values documents may hold, and what BSON they become.

What BSON has stands there as it is: other programs find it. A ``Decimal`` becomes a Decimal128, a numpy vector of float32 or
int8 a binary vector. What BSON has not (arrays of other kinds, images, dates without a time, intervals, sets, ...) becomes binary
data of a subtype of its own, from which the value is read again. Pickles are never among it: a value decides nothing about
how it is decoded.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from datetime import date, time, timedelta
from decimal import Context, Decimal, DecimalException
from typing import Any

from asyncdl import codec
from asyncdl.datatypes.registry import decode_image, encode_image
from asyncdl.errors import AsyncDLError, DatatypeError

SUBTYPE = 0xAD
"""The subtype of binary data that holds a value of asyncdl's: one byte for its form, then the bytes."""
_JSON, _ARRAY, _IMAGE = b"j", b"a", b"i"
_VECTOR = 9
_VECTORS = {"<f4": b"\x27\x00", "|i1": b"\x03\x00"}
"""The headers of BSON's binary vectors, by numpy's name of what they hold."""
_DTYPES = {header: dtype for dtype, header in _VECTORS.items()}
_CLASSES = (date, time, timedelta, set, frozenset, complex)
_DIGITS = 34


def codec_options(client: Any) -> Any:
    """Return how documents are encoded and decoded; what the URI says of time zones and UUIDs is kept."""
    from bson import Int64  # noqa: PLC0415 - the driver is imported when it is used
    from bson.binary import Binary, UuidRepresentation  # noqa: PLC0415 - the same
    from bson.codec_options import (  # noqa: PLC0415 - the same
        CodecOptions,
        DatetimeConversion,
        TypeDecoder,
        TypeRegistry,
    )
    from bson.decimal128 import Decimal128  # noqa: PLC0415 - the same

    def decoder(kind: type, decode: Callable[[Any], Any]) -> Any:
        members = {"bson_type": kind, "transform_bson": lambda self, value: decode(value)}
        return type(f"{kind.__name__}Decoder", (TypeDecoder,), members)()

    given: CodecOptions[Any] = client.codec_options
    uuids = given.uuid_representation
    return CodecOptions(
        tz_aware=given.tz_aware,
        tzinfo=given.tzinfo,
        uuid_representation=UuidRepresentation.STANDARD if uuids == UuidRepresentation.UNSPECIFIED else uuids,
        unicode_decode_error_handler=given.unicode_decode_error_handler,
        datetime_conversion=DatetimeConversion.DATETIME_AUTO,  # a year 10000 of another program's must not stop a reader
        type_registry=TypeRegistry(
            [
                decoder(Int64, int),
                decoder(Decimal128, lambda value: value.to_decimal()),
                decoder(Binary, _from_binary),
            ],
            fallback_encoder=_encode,
        ),
    )


def _binary(data: bytes, subtype: int) -> Any:
    from bson.binary import Binary  # noqa: PLC0415 - the driver is imported when it is used

    return Binary(data, subtype)


def _encode(value: Any) -> Any:
    """Return what the driver can encode for a value that it cannot."""
    if isinstance(value, Decimal):
        return decimal128(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _from_array(numpy, value)
    image = sys.modules.get("PIL.Image")
    if image is not None and isinstance(value, image.Image):
        return _binary(_IMAGE + encode_image(value), SUBTYPE)
    if isinstance(value, _CLASSES):
        return as_json(value)
    raise DatatypeError(
        f"MongoDB cannot store a {codec.kind_of(value)}: {value!r:.100}; declare a datatype for its key: "
        "Table(name, {key: datatype})"
    )


def as_json(value: Any) -> Any:
    """Return a value, which may be anything that `asyncdl.codec` knows, as binary data of asyncdl's own."""
    return _binary(_JSON + codec.dumps(value), SUBTYPE)


def decimal128(value: Decimal) -> Any:
    """Return a decimal as BSON's; raises `DatatypeError` where it has more than 34 digits, or is out of its range."""
    from bson.decimal128 import Decimal128, create_decimal128_context  # noqa: PLC0415 - the driver is imported when used

    context: Context = create_decimal128_context()
    try:
        found = Decimal128(value)
        exact = found.to_decimal() == value or value.is_nan()
    except DecimalException as error:
        raise DatatypeError(f"MongoDB cannot store {value!r}: {type(error).__name__}") from error
    if not exact:
        raise DatatypeError(f"MongoDB cannot store {value!r}: its decimals have {context.prec} digits")
    return found


def _from_array(numpy: Any, value: Any) -> Any:
    header = _VECTORS.get(value.dtype.str)
    if header is not None and value.ndim == 1:
        return _binary(header + value.tobytes(), _VECTOR)
    if value.dtype.hasobject or isinstance(value, numpy.ma.MaskedArray):
        raise DatatypeError("MongoDB cannot store a numpy array of objects, or one with a mask")
    buffer = io.BytesIO()
    numpy.save(buffer, value, allow_pickle=False)
    return _binary(_ARRAY + buffer.getvalue(), SUBTYPE)


def _from_binary(value: Any) -> Any:
    """Return the value that binary data stand for; those that stand for none, or are damaged, themselves."""
    if value.subtype == _VECTOR:
        dtype = _DTYPES.get(bytes(value[:2]))
        if dtype is None:
            return value
        import numpy as np  # noqa: PLC0415 - heavy: only where there are vectors

        return np.frombuffer(value, dtype, offset=2).copy()
    if value.subtype != SUBTYPE:
        return value
    try:
        return _decode(value[:1], value[1:])
    except (AsyncDLError, ValueError, OSError, EOFError):
        return value


def _decode(form: bytes, data: bytes) -> Any:
    if form == _JSON:
        return codec.loads(data)
    if form == _ARRAY:
        import numpy as np  # noqa: PLC0415 - heavy: only where there are arrays

        return np.load(io.BytesIO(data), allow_pickle=False)
    if form == _IMAGE:
        return decode_image(data)
    raise ValueError(f"no form {form!r}")


def is_native(value: Any) -> bool:
    """Return whether a value, with all that it holds, comes back from BSON as it is."""
    kind = type(value)
    if kind is int:
        return bool(-(2**63) <= value < 2**63)
    if kind is dict:
        return all(type(key) is str and "\0" not in key and is_native(each) for key, each in value.items())
    if kind is list:
        return all(map(is_native, value))
    return value is None or kind in {bool, str, float, bytes}
