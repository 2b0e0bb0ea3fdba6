"""The arithmetic teacher behind OpenAI's completions API, for runs that are too long for a vLLM server on the same cores.

python tests/faults/teacher_server.py PORT
"""

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request

from relay_trl.engines.base import FinishReason, Sampling
from relay_trl.engines.transformers import TransformersEngine

TEACHER = Path(__file__).parents[2] / "data" / "arithmetic" / "teacher"
app = FastAPI()
engine = TransformersEngine.load(str(TEACHER))


@app.get("/v1/models")
async def models():
    return {"object": "list", "data": [{"id": "teacher", "root": str(TEACHER), "max_model_len": 256}]}


@app.post("/v1/completions")
async def completions(request: Request):
    body = await request.json()
    prompt = body["prompt"] if isinstance(body["prompt"], list) else engine.vocabulary.encode(body["prompt"])
    sampling = Sampling(body["temperature"], body["top_p"], seed=body.get("seed"))
    answer = await engine.generate(prompt, body["max_tokens"], sampling=sampling)
    choice = {
        "index": 0,
        "text": answer.text,
        "token_ids": answer.ids,
        "prompt_token_ids": prompt,
        "logprobs": None,
        "finish_reason": "length" if answer.finish is FinishReason.LENGTH else "stop",
    }
    return {"id": "completion", "object": "text_completion", "model": "teacher", "choices": [choice]}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", timeout_keep_alive=1)
