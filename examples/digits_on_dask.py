"""The classifier of digits.py, trained and run by the workers of a Dask cluster: where it runs is one argument.

dask scheduler & dask worker tcp://127.0.0.1:8786 & dask worker tcp://127.0.0.1:8786 &
python examples/digits_on_dask.py sqlite://digits.db dask://127.0.0.1:8786
"""

import asyncio
import sys

from digits import main

if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ("sqlite://digits.db", "dask://?workers=2&threads=1")))
