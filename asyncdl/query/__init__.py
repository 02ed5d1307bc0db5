"""What users ask: queries as data, writes, and the cursors that read results."""

from asyncdl.query.functions import fn
from asyncdl.query.recorder import Query, dump_query, load_query, output_roots, table
from asyncdl.query.results import Cursor
from asyncdl.query.writes import Write

__all__ = ["Cursor", "Query", "Write", "dump_query", "fn", "load_query", "output_roots", "table"]
