"""What users ask: queries as data, writes, and the cursors that read results."""

from asyncdl.query.functions import fn
from asyncdl.query.languages import QUERIES, WRITES, AnyQuery, AnyWrite, dump_query, load_query, output_roots, table_in
from asyncdl.query.mongo import MongoQuery
from asyncdl.query.mongo_writes import MongoWrite
from asyncdl.query.recorder import Query, table
from asyncdl.query.results import Cursor, DocumentCursor, first_row
from asyncdl.query.writes import Write

__all__ = [
    "QUERIES",
    "WRITES",
    "AnyQuery",
    "AnyWrite",
    "Cursor",
    "DocumentCursor",
    "MongoQuery",
    "MongoWrite",
    "Query",
    "Write",
    "dump_query",
    "first_row",
    "fn",
    "load_query",
    "output_roots",
    "table",
    "table_in",
]
