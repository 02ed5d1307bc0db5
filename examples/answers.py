"""A thousand questions, answered by a model behind an API that allows so many calls a second.

    pip install "asyncdl[openai]"
    OPENAI_API_KEY=... python examples/answers.py gpt-4o-mini

It speaks to OpenAI, or to whatever `OPENAI_BASE_URL` names that speaks the same protocol. Stop it and start it again: what has
been answered is not asked again. Run it twice at once: both together keep to the limits.
"""

import asyncio
import sys

import asyncdl
from asyncdl import Listener, Model, Table
from asyncdl.adapters.openai import Chat


async def main(name: str, calls_a_second: float) -> None:
    async with asyncdl.connect() as db:  # ASYNCDL_DATABACKEND, or .asyncdl/ in the working directory
        questions = db["questions"]
        await db.add(Table("questions", {"id": "int64", "text": "string"}))
        if not await (await db.execute(questions.count())).scalar():
            await db.execute(questions.insert([{"id": n, "text": f"What is {n} squared?"} for n in range(1000)]))

        model = Model("llm", Chat(name), max_concurrency=20, rate_limit=calls_a_second)
        added = await db.add(Listener("answer", model=model, key="text", select=questions))
        async for progress in added.progress():
            print(f"\r{progress.done} of {progress.total}", end="", file=sys.stderr)

        answers = questions.outputs("answer")
        async for row in await db.execute(answers.order_by("id").limit(3)):
            print(row["text"], "->", row["answer"])
        print(await (await db.execute(answers.count())).scalar(), "answers")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 10))
