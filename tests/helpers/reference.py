"""A reference for removing commands from token ids, independent of the code under test: it works on bytes, without a decoder.

`table` is always the bytes of every id, see `tokenizers.token_bytes`.
"""

import random
import re

from hypothesis import strategies as st

COMMAND = re.compile(rb"<call>[ \t\r\n]*0*[1-9][0-9]*[ \t\r\n]*</call>")

COMMANDS = [
    "<call>3</call>",
    "<call> 12\n</call>",
    "<call>0</call>",
    "<call>x</call>",
    "<call></call>",
    "<call>3",
    "<call>",
]
SNIPPETS = [
    "</call>",
    "1",
    " ",
    "\n",
    ".",
    "é",
    "“",
    "中",
    "🙂",
    "the ",
    "abab",
    "<",
    ">",
    "</",
    "so",
    "x<call>1</call>. ",
]


texts = st.lists(st.sampled_from(COMMANDS) | st.sampled_from(SNIPPETS), max_size=6).map("".join)


def spellings(table, texts=texts):
    """Token ids as a model may sample them: any tokens that spell a text, and never an end token."""
    by_bytes = {}
    for i, piece in enumerate(table):
        by_bytes.setdefault(piece, []).append(i)
    longest = max(map(len, table))

    def spell(text, seed):
        # Choices are made by `random`: drawing each of them takes most of a test's time. Seed 0 takes long tokens.
        text, chance, ids, at = text.encode(), random.Random(seed), [], 0
        while at < len(text):
            fitting = [i for end in range(at + 1, at + longest + 1) for i in by_bytes.get(text[at:end], ())]
            ids.append(chance.choice(fitting) if seed else fitting[-1])
            at += len(table[ids[-1]])
        return ids

    return st.builds(spell, texts, st.integers(0, 2**16))


def spelt(ids, table):
    """The bytes of `ids`."""
    return b"".join(table[token] for token in ids)


def outside(ids, table):
    """Ids of tokens that hold no byte of a command; runs of the others as the bytes that must be left of them.

    A token that shares a character with such a token belongs to the run, for half a character cannot be encoded.
    """
    text = spelt(ids, table)
    cut = bytearray(len(text))
    for match in COMMAND.finditer(text):
        cut[match.start() : match.end()] = b"x" * len(match[0])
    kept, at = [], 0
    cells = []
    for token in ids:
        span = range(at, at + len(table[token]))
        cells.append([token, span, any(cut[k] for k in span)])
        at = span.stop
    while True:
        before = [touched for *_, touched in cells]
        for left, right in zip(cells, cells[1:], strict=False):
            if text[right[1].start] & 0xC0 == 0x80:  # no character begins between the two
                left[2] = right[2] = left[2] or right[2]
        if before == [touched for *_, touched in cells]:
            break
    for token, span, is_touched in cells:
        rest = bytes(text[k] for k in span if not cut[k])
        if not is_touched:
            kept.append(token)
        elif kept and isinstance(kept[-1], bytes):
            kept[-1] += rest
        else:
            kept.append(rest)
    return kept


def fits(ids, expected, table):
    """Whether `ids` are the `expected` ones, with any tokens that spell them in the place of bytes."""
    at = 0
    for piece in expected:
        if isinstance(piece, int):
            if ids[at : at + 1] != [piece]:
                return False
            at += 1
        else:
            found = b""
            while at < len(ids) and len(found) < len(piece):
                found += table[ids[at]]
                at += 1
            if found != piece:
                return False
    return at == len(ids)
