"""What the server of the crash test's processes has loaded before it forks them: each is killed within a second."""

import aiosqlite  # noqa: F401
import asyncmy  # noqa: F401
import asyncpg  # noqa: F401
import motor.motor_asyncio  # noqa: F401
import psutil  # noqa: F401
import sqlalchemy.ext.asyncio  # noqa: F401

import asyncdl
from asyncdl.databackend.warmup import load_ibis

_ = asyncdl.connect  # loads what connecting needs
load_ibis()
