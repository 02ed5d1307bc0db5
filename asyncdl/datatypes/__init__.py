"""Datatypes: what columns and outputs hold.

A datatype is a string. Most are ibis' own, in their canonical spelling: ``"int64"``, ``"string"``, ``"float64"``,
``"boolean"``, ``"binary"``, ``"decimal(10, 2)"``, ``"timestamp"``, ``"timestamp('UTC')"``, ``"date"``, ``"time"``,
``"interval"``, ``"uuid"``, ``"json"``, ``"array<int64>"``, ``"struct<a: int64>"``, ``"map<string, int64>"``. asyncdl adds,
all stored as bytes:

- ``"vector(float32, 384)"``: one-dimensional numpy arrays of one length,
- ``"ndarray"``: any numpy array but of objects,
- ``"image"``: PIL images, losslessly,
- ``"pickle"``: any object; decoded only where the setting ``pickle`` allows it,
- ``"datatype(name)"``: what the `Datatype` component of that name encodes.
"""

from asyncdl.datatypes.checks import Check
from asyncdl.datatypes.inference import infer
from asyncdl.datatypes.names import Parsed, normalize, parse
from asyncdl.datatypes.registry import Datatypes

__all__ = ["Check", "Datatypes", "Parsed", "infer", "normalize", "parse"]
