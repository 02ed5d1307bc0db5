"""A classifier of handwritten digits: trained when it is added, measured, and applied to each new row as it arrives.

    python examples/digits.py [sqlite://digits.db [dask://]]

Run it again: what was trained is there, and nothing is trained twice. The second argument says where models are trained and run.
"""

import asyncio
import sys

from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, f1_score
from sklearn.svm import SVC

import asyncdl
from asyncdl import Dataset, Listener, Metric, Model, OutputsWritten, Table, Trainer, Validation


async def main(uri="sqlite://digits.db", compute="local"):
    images, labels = load_digits(return_X_y=True)
    rows = [{"id": n, "image": image, "label": int(labels[n])} for n, image in enumerate(images)]
    async with asyncdl.connect(uri, compute=compute) as db:
        digits = db["digits"]
        await db.add(Table("digits", {"id": "int64", "image": "vector(float64, 64)", "label": "int64"}))
        await db.execute(digits.upsert(rows[:1500]))

        known = Dataset("known_digits", select=digits.filter(digits.id < 1500), valid_fraction=0.2)
        classifier = Model(
            "classifier",
            SVC(gamma=0.001),
            trainer=Trainer(select=known, key=("image", "label")),
            validation=Validation(
                "on_known_digits",
                datasets=[known],
                metrics=[Metric("accuracy", accuracy_score), Metric("f1", f1_score, kwargs={"average": "macro"})],
                key=("image", "label"),
            ),
        )
        listener = Listener("digit", model=classifier, key="image", select=digits.select("id", "image"))
        await db.add(listener, wait=True)  # trains, measures, and classifies what is there
        for name, value in (await db.validate("classifier")).items():
            print(f"{name}: {value:.3f}")

        async with db.events.subscribe(OutputsWritten, topics=["digit"]) as events:
            arriving = asyncio.create_task(arrive(db, rows[1500:]))
            new = 0
            async for event in events:
                new += len([id for id in event.ids if id >= 1500])
                if new >= len(rows) - 1500:
                    break
            await arriving
        found = await (await db.execute(digits.outputs("digit").filter(digits.id >= 1500))).to_list()
        right = sum(row["digit"] == row["label"] for row in found)
        print(f"{right} of {len(found)} new digits were recognised")


async def arrive(db, rows):
    """Write rows, some at a time, as an application would."""
    for at in range(0, len(rows), 50):
        await db.execute(db["digits"].upsert(rows[at : at + 50]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
