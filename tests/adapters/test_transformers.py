"""Pipelines and encoders over small models that are made here: nothing is fetched. `.ci/run` has the libraries."""

from __future__ import annotations

import pickle
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

import asyncdl
from asyncdl import Listener, Model

transformers = pytest.importorskip("transformers", reason="no transformers here: pip install transformers torch")
sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="no sentence-transformers here: pip install sentence-transformers"
)

from asyncdl.adapters.sentence_transformers import Encoder  # noqa: E402 - needs it
from asyncdl.adapters.transformers import Pipeline  # noqa: E402 - needs it

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the libraries' own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sleeps", "runs"]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
    )


@pytest.fixture(scope="session")
def classifier(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.set_seed(1)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def generator(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("generator")
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=3, eos_token_id=3
    )
    transformers.set_seed(1)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
async def db(tmp_path):
    async with asyncdl.connect(f"sqlite:///{tmp_path / 'app.db'}", artifact_store=f"filesystem://{tmp_path}") as db:
        yield db


async def test_a_pipeline_over_rows(db, classifier):
    texts = ["the cat sleeps", "the dog runs", "cat"]
    t = db["docs"]
    await db.execute(t.insert([{"id": n, "text": text} for n, text in enumerate(texts)]))
    model = Model("sentiment", Pipeline("text-classification", str(classifier), device="cpu"), datatype="json")
    await db.add(Listener("sentiment", model=model, key="text", select=t), wait=True)
    rows = await (await db.execute(t.outputs("sentiment").order_by("id"))).to_list()
    expected = transformers.pipeline("text-classification", model=str(classifier), device="cpu")(texts)
    assert [row["sentiment"]["label"] for row in rows] == [each["label"] for each in expected]
    np.testing.assert_allclose(
        [row["sentiment"]["score"] for row in rows], [each["score"] for each in expected], rtol=1e-4
    )


async def test_generated_text_is_streamed(db, generator):
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    await db.add(Model("writer", Pipeline("text-generation", str(generator), device="cpu", options=options)))
    [whole] = await db.predict("writer", "the cat")
    pieces = [piece async for piece in db.stream("writer", "the cat")]
    assert len(pieces) > 1
    assert "".join(pieces).split() == whole["generated_text"].removeprefix("the cat").split()


async def test_generating_ends_with_its_stream(db, generator):
    options = {"max_new_tokens": 50, "min_new_tokens": 50, "do_sample": False}
    await db.add(Model("writer", Pipeline("text-generation", str(generator), device="cpu", options=options)))
    async with aclosing(db.stream("writer", "the cat")) as pieces:
        assert await anext(pieces)


async def test_embeddings_of_rows(db, classifier, tmp_path):
    folder = str(tmp_path / "encoder")  # of a model without pooling the library makes one that takes the mean
    sentence_transformers.SentenceTransformer(str(classifier), device="cpu").save(folder)
    encoder = Encoder(folder, device="cpu", options={"normalize_embeddings": True})
    assert len(pickle.dumps(encoder)) < 1000
    t = db["docs"]
    await db.execute(t.insert([{"id": 0, "text": "the cat sleeps"}, {"id": 1, "text": "the dog runs"}]))
    await db.add(Listener("vector", model=Model("embed", encoder), key="text", select=t), wait=True)
    rows = await (await db.execute(t.outputs("vector").order_by("id"))).to_list()
    assert [row["vector"].shape for row in rows] == [(16,)] * 2
    np.testing.assert_allclose([np.linalg.norm(row["vector"]) for row in rows], [1, 1], rtol=1e-5)
