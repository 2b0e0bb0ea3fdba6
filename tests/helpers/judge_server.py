"""A chat server that judges: it compares the last number of an answer with the reference, in whatever form they are."""

import re

from helpers.openai_server import Server

WORDS = {"three": "3", "seven": "7"}


class JudgeServer(Server):
    """Knows numbers in words, which the rules do not. `says` replaces what it thinks of a question."""

    def __init__(self, says=None):
        super().__init__(models=("judge",), has_ids=False)
        self.says = says or self.think

    def think(self, asked):
        gold = re.search(r"Reference answer: (.*)", asked)[1]
        answer = re.split(r"----- \w+", asked)[-2]
        found = re.findall(r"\d+|three|seven", answer)
        is_right = bool(found) and WORDS.get(found[-1], found[-1]) == gold
        return f"It says {found[-1:]}.\n**Verdict: {'RIGHT' if is_right else 'WRONG'}**"

    def answer(self, body, is_chat):
        assert is_chat and [message["role"] for message in body["messages"]] == ["user"]
        choice = {"index": 0, "finish_reason": "stop"}
        choice["message"] = {"role": "assistant", "content": self.says(body["messages"][0]["content"])}
        return {"id": "x", "choices": [choice], "usage": {"completion_tokens": 9}}
