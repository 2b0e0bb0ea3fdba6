"""A tokenizer as the relay needs it: the exact text of tokens, encoding that adds nothing, end tokens, comparison.

Owns the differences between tokenizers. Prompts and chat templates are in `prompts.py`. Imports no torch.
"""

from collections.abc import Iterable
from weakref import WeakKeyDictionary

UNFINISHED = "\ufffd"
"""What a decoder makes of bytes that are no whole character."""


class Vocabulary:
    """A tokenizer's ids and texts.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): any fast or slow tokenizer.
        eos_ids (`Iterable[int]`, *optional*): every id that ends an answer, from the model's generation config. The
            tokenizer's own EOS is always one of them.

    Attributes:
        eos_id (`int`): the id that closes a completion.
        eos_ids (`frozenset[int]`): all ids that end one.

    Raises:
        ValueError: the tokenizer has no EOS token.
    """

    PATIENCE = 16
    """Tokens that a character may take to end; a model that writes broken bytes all along would be waited for for ever."""

    def __init__(self, tokenizer, eos_ids: Iterable[int] | None = None):
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no EOS token, so an answer could never "
                "end. Set `eos_token` in its tokenizer_config.json."
            )
        self.tokenizer = tokenizer
        self.eos_id: int = tokenizer.eos_token_id
        self.eos_ids = frozenset({self.eos_id, *(eos_ids or ())})
        self.size = len(tokenizer)
        self._foreign: WeakKeyDictionary[Vocabulary, dict[tuple[str, ...], frozenset[int] | None]] = WeakKeyDictionary()
        self._anchor, self._anchor_length = self._find_anchor()
        self._lead_in, self._lead_in_ids = self._find_lead_in()

    def _find_anchor(self) -> tuple[list[int], int]:
        # Decoders like sentencepiece's drop the blank before the first word, so text is decoded after a harmless token.
        special = set(self.tokenizer.all_special_ids)
        for token in range(self.size):
            if token not in special:
                text = self._decode([token])
                if len(text) == 1 and text.isascii() and text.isalnum():
                    return [token], 1
        return [], 0

    def _find_lead_in(self) -> tuple[str, list[int]]:
        # Encoders like sentencepiece's put a blank before the first word, so text is encoded after a line end, which does
        # not merge with what follows.
        probe = self.decode(self._anchor)
        for lead_in in ("", "\n"):
            head, ids = self._encode(lead_in), self._encode(lead_in + probe)
            if ids[: len(head)] == head and self.decode(ids[len(head) :]) == probe:
                return lead_in, head
        return "", []

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids` as a part of a longer text: a blank at the beginning stays, special tokens are spelled out."""
        return self._decode(self._anchor + list(ids))[self._anchor_length :]

    def open_end(self, ids: list[int]) -> list[int]:
        """The last of `ids` whose bytes are the beginning of a character that has not ended; empty where there is none."""
        # Cut in front of a whole character: some decoders make U+FFFD of all bytes in a row if one of them is broken
        if (
            not ids
            or not self.decode(ids[-self.PATIENCE :]).endswith(UNFINISHED)
            or not self.decode(ids).endswith(UNFINISHED)
        ):
            return []
        starts = range(len(ids) - 1, max(-1, len(ids) - 1 - self.PATIENCE), -1)
        return next((ids[start:] for start in starts if not self.decode(ids[:start]).endswith(UNFINISHED)), [])

    def unfinished(self, opened: list[int]) -> str:
        """What stands for the unfinished character of `opened`, which [`~Vocabulary.open_end`] gave: one U+FFFD or more."""
        text = self.decode(opened) if opened else ""
        return text[len(text.rstrip(UNFINISHED)) :]

    def continues(self, opened: list[int], ids: list[int]) -> bool:
        """Whether `ids` go on with the unfinished character of `opened`, rather than leave it broken."""
        if not opened or not ids:
            return False
        # Bytes inside a character mean nothing alone. Some decoders make U+FFFD of whole characters behind a broken one
        alone = self.decode_behind([], ids)
        return alone.startswith(UNFINISHED) and self.decode_behind(opened, ids) != self.unfinished(opened) + alone

    def decode_behind(self, opened: list[int], ids: list[int]) -> str:
        """The text of `ids` behind an unfinished character, which it begins with."""
        if not ids:
            return ""
        whole = opened + ids
        # Some decoders make U+FFFD of all bytes in front of an unfinished character
        end = self.open_end(whole)
        text = self.decode(whole[: len(whole) - len(end)]) + self.decode(end) if end else self.decode(whole)
        return text[len(self.decode(opened)) - len(self.unfinished(opened)) :] if opened else text

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as plain text: nothing is added, and names of special tokens are spelled out in plain tokens."""
        if not text:
            return []
        ids, start = self._encode(self._lead_in + text), len(self._lead_in_ids)
        return ids[start:] if ids[:start] == self._lead_in_ids else self._encode(text)

    def _encode(self, text: str) -> list[int]:
        # JSON can contain half of a surrogate pair, which no tokenizer accepts.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def foreign_to(self, other: "Vocabulary", tags: tuple[str, ...] = ()) -> frozenset[int] | None:
        """The ids of this vocabulary that `other` does not have, if all other ids mean the same in both.

        Args:
            other ([`Vocabulary`]): the teacher's.
            tags (`tuple[str, ...]`): call tags, which may be special tokens of the student.

        Returns:
            `frozenset[int]` or `None`: empty or the ids of the tags if ids can be passed on as they are; `None` if the
            vocabularies differ.
        """
        if other is self:
            return frozenset()
        known = self._foreign.setdefault(other, {})
        if tags not in known:
            mine, theirs = self.tokenizer.get_vocab(), other.tokenizer.get_vocab()
            extra = {tag: mine.pop(tag) for tag in tags if tag in mine and tag not in theirs}
            known[tags] = frozenset(extra.values()) if mine == theirs else None
        return known[tags]
