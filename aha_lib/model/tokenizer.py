"""Text to token ids and back, by SentencePiece, for Gemma and for the tiny model alike.

Knows nothing of JAX or of Countdown's rules; the tiny vocabulary is a SentencePiece model too,
written by `tiny_model` and kept in `data/tiny`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import SupportsInt

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

TINY_WORDS = [*map(str, range(101)), *"+-*/=,:()", "no", "yes", "<answer>", "</answer>"]
TINY_PATH = Path(__file__).parents[1] / "data" / "tiny" / "tokenizer.model"


class Tokenizer:
    """A SentencePiece model with its special ids, found by piece and not by number.

    Attributes: `vocab_size`, `pad_id`, `eos_id`, `bos_id`, and `stop_ids`: the ids after which a
    completion is over (`<eos>`, and `<end_of_turn>` where the vocabulary has it).
    """

    def __init__(self, model: bytes):
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._pieces.vocab_size()
        self.pad_id, self.eos_id, self.bos_id = map(self.piece_id, ("<pad>", "<eos>", "<bos>"))
        ends = [self._pieces.piece_to_id(piece) for piece in ("<eos>", "<end_of_turn>")]
        self.stop_ids = frozenset(ends) - {self._pieces.unk_id()}

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.model` file."""
        return cls(Path(path).read_bytes())

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
        proto = sentencepiece_model_pb2.ModelProto.FromString(self._pieces.serialized_model_proto())
        ids, special = list(ids), self.special_ids
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

    @property
    def special_ids(self) -> list[int]:
        """The ids of `<pad>`, `<eos>`, `<bos>` and `<unk>`."""
        return [self.pad_id, self.eos_id, self.bos_id, self._pieces.piece_to_id("<unk>")]

    def chat(self, turns: Iterable[tuple[str, str]]) -> list[int]:
        """Token ids of a conversation in Gemma's chat template, up to where the model answers.

        `turns` are pairs of a role, "user" or "model", and a text. For instruct variants;
        ValueError where the vocabulary has no turns.
        """
        start, end = self.piece_id("<start_of_turn>"), self.piece_id("<end_of_turn>")
        ids, newline = [self.bos_id], self._pieces.encode("\n")
        for role, text in turns:
            ids += [start, *self._pieces.encode(f"{role}\n{text}"), end, *newline]
        return [*ids, start, *self._pieces.encode("model\n")]


def tiny_model() -> bytes:
    """The tiny vocabulary as a serialized SentencePiece model: one piece for every word."""
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    for piece in ("<pad>", "<eos>", "<bos>"):
        proto.pieces.add(piece=piece, score=0.0, type=kinds.CONTROL)
    proto.pieces.add(piece="<unk>", score=0.0, type=kinds.UNKNOWN)
    for word in TINY_WORDS:
        proto.pieces.add(piece=f"▁{word}", score=0.0, type=kinds.NORMAL)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size = trainer.WORD, len(proto.pieces)
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, 3
    trainer.pad_piece, trainer.eos_piece = "<pad>", "<eos>"
    trainer.bos_piece, trainer.unk_piece = "<bos>", "<unk>"
    normalizer.name, normalizer.add_dummy_prefix = "identity", True
    return proto.SerializeToString()
