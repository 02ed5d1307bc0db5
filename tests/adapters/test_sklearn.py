"""scikit-learn's estimators as models, on its own data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import asyncdl
from asyncdl import Listener, Model
from asyncdl.adapters.sklearn import Estimator, matrix

pytestmark = pytest.mark.anyio


@pytest.fixture
async def db(tmp_path):
    async with asyncdl.connect(f"sqlite:///{tmp_path / 'app.db'}", artifact_store=f"filesystem://{tmp_path}") as db:
        yield db


async def test_images_that_arrive_are_classified(db):
    digits = load_digits()
    classifier = Estimator(make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)))
    classifier.fit(list(digits.images[:1500]), list(digits.target[:1500]))
    expected = classifier.estimator.predict(digits.data[1500:])
    t = db["digits"]
    await db.execute(t.insert([{"id": n, "image": digits.images[n]} for n in range(1500, 1600)]))
    await db.add(Listener("digit", model=Model("classifier", classifier), key="image", select=t), wait=True)
    written = await db.execute(
        t.insert([{"id": n, "image": digits.images[n]} for n in range(1600, len(digits.images))])
    )
    await written.wait()
    rows = await (await db.execute(t.outputs("digit").order_by("id"))).to_list()
    assert [row["digit"] for row in rows] == expected.tolist()
    assert np.mean([row["digit"] == digits.target[row["id"]] for row in rows]) > 0.85


async def test_probabilities_of_several_columns(db):
    cancer = load_breast_cancer()
    columns = ("radius", "texture", "area")
    data = cancer.data[:, [0, 1, 3]]
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(data[:400], cancer.target[:400])
    t = db["patients"]
    await db.execute(
        t.insert([{"id": n, **dict(zip(columns, map(float, row), strict=True))} for n, row in enumerate(data[400:])])
    )
    probability = Model("malignancy", Estimator(model, method="predict_proba"))
    await db.add(Listener("risk", model=probability, key=columns, select=t), wait=True)
    rows = await (await db.execute(t.outputs("risk").order_by("id"))).to_list()
    np.testing.assert_allclose([row["risk"] for row in rows], model.predict_proba(data[400:]))


async def test_named_columns_become_a_dataframe(db):
    frame = pd.DataFrame({"kind": ["a", "b", "a", "b"], "size": [1.0, 2.0, 3.0, 4.0]})
    encoder = make_column_transformer((OneHotEncoder(), ["kind"]), (StandardScaler(), ["size"]))
    model = make_pipeline(encoder, LogisticRegression()).fit(frame, [0, 1, 0, 1])
    t = db["things"]
    await db.execute(t.insert([{"id": n, **row} for n, row in enumerate(frame.to_dict("records"))]))
    await db.add(
        Listener("class", model=Model("by_name", Estimator(model)), key={"kind": "kind", "size": "size"}, select=t),
        wait=True,
    )
    rows = await (await db.execute(t.outputs("class").order_by("id"))).to_list()
    assert [row["class"] for row in rows] == [0, 1, 0, 1]


def test_transformers_and_texts():
    texts = ["the cat", "the dog", "a cat"]
    vectors = Estimator(TfidfVectorizer(), method="transform")
    vectors.fit(texts)
    np.testing.assert_allclose(vectors.predict(texts), vectors.estimator.transform(texts).toarray())
    rows = [np.eye(3)[n % 3] + n for n in range(5)]
    reduced = Estimator(PCA(1).fit(rows), method="transform").predict(rows)
    assert [each.shape for each in reduced] == [(1,)] * 5


def test_matrix():
    assert matrix([1, 2]).tolist() == [[1], [2]]
    assert matrix([(1, np.array([2.0, 3.0])), (4, np.array([5.0, 6.0]))]).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert matrix([]).shape == (0, 0)
    assert list(matrix([{"b": 1, "a": 2}]).columns) == ["b", "a"]
    with pytest.raises(ValueError, match="same shape"):
        matrix([[1, 2], [3]])
