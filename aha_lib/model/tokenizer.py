"""Text to token ids and back, by SentencePiece, for Gemma and for the tiny model alike.

Knows nothing of JAX or of Countdown's rules; the tiny vocabulary is a SentencePiece model too,
written by `tiny_model` and kept in `data/tiny`.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import SupportsInt

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

SPACE = "▁"  # SentencePiece's, in the place of a blank
TURN_START, TURN_END = "<start_of_turn>", "<end_of_turn>"
TINY_WORDS = [*map(str, range(101)), *"+-*/=,:()", "no", "yes", "<answer>", "</answer>"]
# For more than three numbers: also the list of those that are left, and the way back to it.
SMALL_WORDS = [*map(str, range(201)), *"+-*/=,;:()", "no", "yes", "back", "<answer>", "</answer>"]
# Of questions for a tool: numbers that stand for people, relations, a call and its reply.
LOOK_UP_WORDS = [*map(str, range(50)), ":"]
LOOK_UP_WORDS += ["lives", "works", "knows", "likes", "visits", "follows", "teaches", "calls"]
LOOK_UP_WORDS += ["<ask>", "</ask>", "nothing", "<answer>", "</answer>"]
# Of sums that may be asked: the question mark calls a tool.
CALCULATOR_WORDS = [*SMALL_WORDS, "?"]
WORDS = {
    "tiny": TINY_WORDS,
    "small": SMALL_WORDS,
    "look-up": LOOK_UP_WORDS,
    "calculator": CALCULATOR_WORDS,
}  # by the name of the model's shape
TINY_PATH = Path(__file__).parents[1] / "data" / "tiny" / "tokenizer.model"


class Tokenizer:
    """A SentencePiece model with its special ids, found by piece and not by number.

    Attributes: `vocab_size`, `pad_id`, `eos_id`, `bos_id`, and `stop_ids`: the ids after which a
    completion is over (`<eos>`, and `<end_of_turn>` where the vocabulary has it).
    """

    def __init__(self, model: bytes):
        """`model` is the content of a `tokenizer.model`; ValueError where it is none of Gemma's."""
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError(
                f"these {len(model)} bytes are no SentencePiece model: download it again."
            ) from None
        if not model:  # which SentencePiece takes for a model without pieces
            raise ValueError("the tokenizer.model is empty: download it again.")
        self.vocab_size = self._pieces.vocab_size()
        self.pad_id = self.piece_id("<pad>")
        self.eos_id = self.piece_id("<eos>")
        self.bos_id = self.piece_id("<bos>")
        ends = [self._pieces.piece_to_id(piece) for piece in ("<eos>", TURN_END)]
        self.stop_ids = frozenset(ends) - {self._pieces.unk_id()}

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.model` file; ValueError, with its path, where it is damaged."""
        try:
            return cls(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} cannot be used: {error}") from None

    def proto(self) -> sentencepiece_model_pb2.ModelProto:
        """The SentencePiece model as a message: pieces with scores and types, and settings."""
        data = self._pieces.serialized_model_proto()
        return sentencepiece_model_pb2.ModelProto.FromString(data)

    def save(self, path: str | Path) -> None:
        """Write the model as a `tokenizer.model` file."""
        Path(path).write_bytes(self._pieces.serialized_model_proto())

    def piece_id(self, piece: str) -> int:
        """The id of an exact piece; ValueError where the vocabulary lacks it."""
        token = self._pieces.piece_to_id(piece)
        if token == self._pieces.unk_id():
            raise ValueError(f"This tokenizer has no piece {piece!r}; is it a Gemma tokenizer?")
        return token

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Token ids of `text`, after one BOS unless `bos` is False."""
        return [self.bos_id] * bos + self._pieces.encode(text)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of `ids`; padding, BOS and EOS are left out."""
        special = {self.pad_id, self.bos_id, self.eos_id}
        return self._pieces.decode([int(i) for i in ids if int(i) not in special])

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of `decode`, piece by piece as the ids come.

        A character whose bytes are several ids is held back until it is whole.
        """
        seen, shown, text = [], "", ""
        for i in ids:
            seen.append(i)
            text = self.decode(seen)
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        if text != shown:  # the last character stayed a fragment
            yield text[len(shown) :]

    def subset(self, ids: Iterable[int]) -> "Tokenizer":
        """A tokenizer of these pieces alone, renumbered in this order.

        For text that the whole vocabulary cuts into them it gives the same pieces: each is taken
        whole, the longest first, and nothing is merged. Other characters become `<unk>`. Raises
        ValueError if a special piece (pad, eos, bos, unk) is not among them.
        """
        kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
        proto = self.proto()
        ids = list(ids)
        special = self.special_ids
        kept = [proto.pieces[i] for i in ids]
        if not set(special) <= set(ids):
            raise ValueError("A subset of a vocabulary keeps <pad>, <eos>, <bos> and <unk>.")
        if any(piece.type == kinds.BYTE for piece in kept):
            raise ValueError("A subset of a vocabulary cannot spell characters in bytes.")
        for piece in kept:
            if piece.type == kinds.NORMAL:
                piece.type = kinds.USER_DEFINED
        proto.pieces[special[-1]].type = kinds.UNKNOWN  # some copies of Gemma's call it a control
        del proto.pieces[:]
        proto.pieces.extend(kept)
        trainer = proto.trainer_spec
        trainer.vocab_size, trainer.byte_fallback = len(kept), False
        trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = map(ids.index, special)
        return Tokenizer(proto.SerializeToString())

    def numbers(self) -> dict[int, int]:
        """The ids of the numbers from 0 up that are pieces of their own, up to the first gap."""
        found: dict[int, int] = {}
        while (token := self._pieces.piece_to_id(f"{SPACE}{len(found)}")) != self._pieces.unk_id():
            found[len(found)] = token
        return found

    @property
    def special_ids(self) -> list[int]:
        """The ids of `<pad>`, `<eos>`, `<bos>` and `<unk>`."""
        return [self.pad_id, self.eos_id, self.bos_id, self._pieces.piece_to_id("<unk>")]

    @property
    def has_turns(self) -> bool:
        """Whether the vocabulary has the pieces between which Gemma's turns stand."""
        unknown = self._pieces.unk_id()
        return all(self._pieces.piece_to_id(p) != unknown for p in (TURN_START, TURN_END))

    def chat(self, turns: Iterable[tuple[str, str]]) -> list[int]:
        """Token ids of a conversation in Gemma's chat template, up to where the model answers.

        `turns` are pairs of a role and a text without blanks at its ends. Roles are "user" and
        "model" (or "assistant") in turn, the user first; a "system" text at the very beginning is
        put before the user's, as Gemma 3's template does. For instruct variants. ValueError for
        other roles or another order, and where the vocabulary has no turns.
        """
        start, end = self.piece_id(TURN_START), self.piece_id(TURN_END)
        newline = self._pieces.encode("\n")
        ids = [self.bos_id]
        for role, text in _alternating(list(turns)):
            ids += [start, *self._pieces.encode(f"{role}\n{text}"), end, *newline]
        return [*ids, start, *self._pieces.encode("model\n")]


def _alternating(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The turns as Gemma's template writes them: of "user" and "model" alone, texts stripped."""
    prefix = ""
    if turns and turns[0][0] == "system":
        prefix = turns[0][1] + "\n\n"
        turns = turns[1:]
    if not turns:
        raise ValueError("A conversation needs a turn of the user.")
    written = []
    for i, (role, text) in enumerate(turns):
        expected = ("model", "user")[i % 2 == 0]
        if {"assistant": "model"}.get(role, role) != expected:
            raise ValueError(
                f"Turn {i + 1} is of {role!r} and should be the {expected}'s: Gemma's turns "
                'alternate, "user" first and then "model"; "system" may stand before all of them.'
            )
        written.append((expected, prefix + text.strip()))
        prefix = ""
    return written


def tiny_model(words: Sequence[str] = TINY_WORDS) -> bytes:
    """The vocabulary of a language of words, as a serialized SentencePiece model: a piece each."""
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    for piece in ("<pad>", "<eos>", "<bos>"):
        proto.pieces.add(piece=piece, score=0.0, type=kinds.CONTROL)
    proto.pieces.add(piece="<unk>", score=0.0, type=kinds.UNKNOWN)
    for word in words:
        proto.pieces.add(piece=f"▁{word}", score=0.0, type=kinds.NORMAL)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size = trainer.WORD, len(proto.pieces)
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, 3
    trainer.pad_piece, trainer.eos_piece = "<pad>", "<eos>"
    trainer.bos_piece, trainer.unk_piece = "<bos>", "<unk>"
    normalizer.name, normalizer.add_dummy_prefix = "identity", True
    return proto.SerializeToString()
