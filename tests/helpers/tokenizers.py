"""Small tokenizers of all relevant kinds, and the bytes of each of their tokens.

Each function returns a fresh `PreTrainedTokenizerFast` whose EOS is `<eos>`. With `tags`, the given texts are added as
special tokens, as a student's call tags may be.
"""

import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TAGS = ("<call>", "</call>")

# Qwen's split: punctuation takes a blank in front and line ends behind it, digits stand alone.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = ["ca", "call", "ab", "abab", "ba", "th", "the", "an", "so", "10"]
ASCII = [chr(i) for i in range(32, 127)] + ["\n", "\t"]
BEYOND_ASCII = ["é", "“", "”", "中", "文", "🙂"]


def _wrap(tokenizer: Tokenizer, tags: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True, normalized=False)])
    if tags:
        tokenizer.add_special_tokens([AddedToken(tag, special=True, normalized=False) for tag in tags])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def _byte_symbols() -> dict[int, str]:
    """GPT-2's printable character for every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + k) for k, b in enumerate(hidden)}}


SYMBOLS = _byte_symbols()


def _merges(words: list[list[str]]) -> list[tuple[str, str]]:
    """The merges that build each word, given as its pieces, from left to right."""
    merges: list[tuple[str, str]] = []
    for pieces in words:
        whole = pieces[0]
        for piece in pieces[1:]:
            if (whole, piece) not in merges:
                merges.append((whole, piece))
            whole += piece
    return merges


def byte_level(tags: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE like Qwen's, Llama 3's or SmolLM's.

    Close tags end inside tokens (`>\\n`, `>.`, `><`, and `>` with the first byte of a quotation mark), open tags begin
    inside them (` <`, `.<`, and `<` behind the last byte of `é`); most characters beyond ASCII are several tokens.
    """

    def spell(text: str | bytes) -> list[str]:
        return [SYMBOLS[byte] for byte in (text.encode() if isinstance(text, str) else text)]

    mixed: list[str | bytes] = [" <", ">\n", ">.", "</", "><", ".<", " a", "\n\n", ">\n\n", "é"]
    mixed += [b">\xe2", b"\xa9<", b"\xf0\x9f"]
    pieces = [spell(text) for text in mixed]
    pieces += [["c", "a"], ["l", "l"], ["ca", "ll"], ["call", ">"], *(spell(word) for word in WORDS[2:])]
    merges = _merges(pieces)
    vocabulary = [SYMBOLS[byte] for byte in range(256)]
    vocabulary += [a + b for a, b in merges if a + b not in vocabulary]
    vocabulary = list(dict.fromkeys(vocabulary))
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _wrap(tokenizer, tags)


def _sentencepiece_model() -> Tokenizer:
    """Pieces with `▁` for blanks, single bytes for every character without a piece of its own."""
    words = [list(word) for word in ["▁<", "</", ">.", "▁▁", "▁a", "▁th", "▁the", *WORDS]]
    merges = _merges(words)
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *(c for c in ASCII if c not in " \n\t")]
    vocabulary += ["é", "“", *(a + b for a, b in merges)]
    vocabulary = list(dict.fromkeys(vocabulary))
    model = models.BPE(
        {token: i for i, token in enumerate(vocabulary)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    return Tokenizer(model)


def llama2(tags: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Sentencepiece-like as Llama 2's: puts a blank in front of what it encodes, drops one from what it decodes."""
    tokenizer = _sentencepiece_model()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(tokenizer, tags)


def gemma(tags: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Sentencepiece-like as Gemma's: blanks stay as they are, both ways."""
    tokenizer = _sentencepiece_model()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _wrap(tokenizer, tags)


def characters(tags: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """One token for each of a hundred characters, in an order of its own, and nothing else."""
    vocabulary = ["<unk>", *reversed(BEYOND_ASCII), *reversed(ASCII)]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, tags)


KINDS = {"byte_level": byte_level, "llama2": llama2, "gemma": gemma, "characters": characters}


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes]:
    """The bytes that each id stands for, read off the vocabulary without the tokenizer's decoder."""
    back = {symbol: byte for byte, symbol in SYMBOLS.items()}
    added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    is_byte_level = isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel)
    table = []
    for i in range(len(tokenizer)):
        token = tokenizer.convert_ids_to_tokens(i)
        if i in added:
            table.append(added[i].encode())
        elif is_byte_level:
            table.append(bytes(back[symbol] for symbol in token))
        elif match := re.fullmatch("<0x([0-9A-F]{2})>", token):
            table.append(bytes.fromhex(match[1]))
        else:
            table.append(token.replace("▁", " ").encode())
    return table
