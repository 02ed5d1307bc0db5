"""PyTorch's modules as models. PyTorch is no dependency of the tests: its build for Linux is several GB; `.ci/run` has it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.datasets import load_digits

import asyncdl
from asyncdl import Listener, Model, Trainer

torch = pytest.importorskip("torch", reason="no PyTorch here: pip install torch")

from asyncdl.adapters.torch import Fit, Module  # noqa: E402 - needs it

pytestmark = pytest.mark.anyio


@pytest.fixture
async def db(tmp_path):
    async with asyncdl.connect(f"sqlite:///{tmp_path / 'app.db'}", artifact_store=f"filesystem://{tmp_path}") as db:
        yield db


def best(scores):
    return int(scores.argmax())


def scaled(image):
    return np.asarray(image) / 16.0


async def test_outputs_of_rows(db):
    torch.manual_seed(0)
    images = load_digits().images[:200]
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    t = db["digits"]
    await db.execute(t.insert([{"id": n, "image": image} for n, image in enumerate(images)]))
    scores = Model("scores", Module(net, preprocess=scaled))
    digit = Model("digit", Module(net, preprocess=scaled, postprocess=best))
    await db.add(Listener("scores", model=scores, key="image", select=t), wait=True)
    await db.add(Listener("digit", model=digit, key="image", select=t), wait=True)
    with torch.no_grad():
        expected = net(torch.tensor(images / 16.0, dtype=torch.float32)).numpy()
    rows = await (await db.execute(t.outputs("scores", "digit").order_by("id"))).to_list()
    np.testing.assert_allclose([row["scores"] for row in rows], expected, rtol=1e-4, atol=1e-6)
    assert [row["digit"] for row in rows] == expected.argmax(1).tolist()
    assert await db.predict("digit", images[0]) == expected[0].argmax()


def test_one_number_for_each_input():
    module = Module(torch.nn.Flatten(0), dtype="float64", device="cpu")
    assert module.predict([[1.5], [2.5]]) == [1.5, 2.5]


def test_pickled_with_its_weights():
    module = Module(torch.nn.Linear(2, 1), device="cpu")
    again = pickle.loads(pickle.dumps(module))
    assert again.predict([[1.0, 2.0]]) == module.predict([[1.0, 2.0]])


def test_training_mode_is_left():
    module = Module(torch.nn.Dropout(0.99).train(), device="cpu")
    assert [row.tolist() for row in module.predict([[1.0, 1.0]])] == [[1.0, 1.0]]


class Recorded:
    """What a trainer gives to ``fit``, kept here."""

    def __init__(self, restored=None, ends_after=None):
        self.restored, self.ends_after = restored, ends_after
        self.states, self.losses = [], []

    def checkpoint(self, state):
        self.states.append(state)

    def report(self, done, total=None, *, loss):
        self.losses.append(loss)
        if done == self.ends_after:
            raise KeyboardInterrupt


def a_net():
    torch.manual_seed(7)
    return Module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), preprocess=scaled, device="cpu")


def test_a_training_that_goes_on_ends_as_one_that_was_never_interrupted():
    digits = load_digits()
    images, labels = list(digits.images[:300]), [int(label) for label in digits.target[:300]]
    fit = Fit(epochs=4, batch_size=50, learning_rate=0.01)
    whole, first = Recorded(), Recorded(ends_after=2)
    expected = fit(a_net(), images, labels, whole)
    assert len(whole.losses) == 4
    assert whole.losses[3] < whole.losses[0]
    with pytest.raises(KeyboardInterrupt):
        fit(a_net(), images, labels, first)
    second = Recorded(restored=first.states[-1])
    found = fit(a_net(), images, labels, second)
    assert [*first.losses, *second.losses] == whole.losses
    for one, other in zip(expected.module.parameters(), found.module.parameters(), strict=True):
        assert torch.equal(one, other)


async def test_a_model_that_trains_on_add(db):
    torch.manual_seed(0)
    digits = load_digits()
    t = db["digits"]
    rows = [{"id": n, "image": image, "label": int(digits.target[n])} for n, image in enumerate(digits.images[:600])]
    await db.execute(t.insert(rows))
    trainer = Trainer(select=t.filter(t.id < 500), key=("image", "label"), fit=Fit(epochs=40, learning_rate=0.01))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    model = Model("digit", Module(net, preprocess=scaled, postprocess=best), trainer=trainer)
    added = await db.add(Listener("digit", model=model, key="image", select=t.filter(t.id >= 500)))
    await added.wait()
    found = await (await db.execute(t.outputs("digit"))).to_list()
    assert len([row for row in found if row["digit"] is not None]) == 100
    assert np.mean([row["digit"] == row["label"] for row in found if row["digit"] is not None]) > 0.8
