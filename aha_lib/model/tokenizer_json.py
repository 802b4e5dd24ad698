"""A tokenizer in the files that transformers reads: `tokenizer.json` and `tokenizer_config.json`.

Written from the SentencePiece model's pieces, scores and types, so that transformers gives the ids
that `Tokenizer.encode` gives. transformers would make them from `tokenizer.model` itself, but of a
cut vocabulary it makes other ones, and of whole words none. Knows nothing of models or of folders;
gives dictionaries for json.
"""

import re

from sentencepiece import sentencepiece_model_pb2

from aha_lib.model.tokenizer import SPACE, Tokenizer

KINDS = sentencepiece_model_pb2.ModelProto.SentencePiece
TRAINER = sentencepiece_model_pb2.TrainerSpec

# Gemma 3's: what a system turn tells goes before the first turn of the user, the assistant is
# called model, and turns have to alternate. `Tokenizer.chat` does the same.
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Turns have to alternate, user and assistant, and the user begins.') }}
    {%- endif -%}
    {%- if turn['role'] not in ('user', 'assistant', 'model') -%}
        {{ raise_exception('Roles are system, user and assistant.') }}
    {%- endif -%}
    {%- set role = 'user' if turn['role'] == 'user' else 'model' -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}
    {{- turn['content'] | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""


def tokenizer_json(tokenizer: Tokenizer) -> dict:
    """The `tokenizer.json` of a tokenizer of byte pairs, whole or cut, or of whole words.

    Raises ValueError for other kinds of SentencePiece models, and for those that normalise text.
    """
    proto = tokenizer.proto()
    kind = proto.trainer_spec.model_type
    if kind not in (TRAINER.BPE, TRAINER.WORD) or proto.normalizer_spec.precompiled_charsmap:
        raise ValueError(
            "Only a tokenizer of byte pairs or words that leaves text as it is, as Gemma's do, can "
            "be written as tokenizer.json: save without the tokenizer, and put your own there."
        )
    is_words = kind == TRAINER.WORD
    vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    begin = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    begin_second = {"SpecialToken": {"id": "<bos>", "type_id": 1}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    bos = {"id": "<bos>", "ids": [tokenizer.bos_id], "tokens": ["<bos>"]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(proto),
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(proto.normalizer_spec)},
        "pre_tokenizer": _split_words(proto) if is_words else None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, first],
            "pair": [begin, first, begin_second, second],
            "special_tokens": {"<bos>": bos},
        },
        "decoder": {"type": "Sequence", "decoders": _decoders(proto)},
        "model": _words(vocabulary) if is_words else _byte_pairs(proto, vocabulary),
    }


def tokenizer_config(tokenizer: Tokenizer) -> dict:
    """The `tokenizer_config.json`, with a chat template where the vocabulary has turns.

    Base models have the turns' pieces too: that they are there does not tell an instruct model.
    """
    trainer = tokenizer.proto().trainer_spec
    # This class builds a Gemma's byte pairs anew, and knows neither words nor a cut vocabulary.
    is_whole_gemma = trainer.model_type == TRAINER.BPE and trainer.byte_fallback
    config = {
        "tokenizer_class": "GemmaTokenizer" if is_whole_gemma else "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.has_turns:
        config["chat_template"] = CHAT_TEMPLATE
    return config


def _added_tokens(proto) -> list[dict]:
    """Pieces that are found before all others: special ones, and those that users have defined.

    The second kind is sought in the normalised text, where a blank is "▁", as SentencePiece does.
    With a blank in it SentencePiece therefore never finds one, and here it would be found.
    """
    tokens = []
    for i, piece in enumerate(proto.pieces):
        is_special = piece.type in (KINDS.CONTROL, KINDS.UNKNOWN)
        is_found_first = piece.type == KINDS.USER_DEFINED and " " not in piece.piece
        if is_special or is_found_first:
            token = {"id": i, "content": piece.piece, "special": is_special}
            token |= {"single_word": False, "lstrip": False, "rstrip": False}
            tokens.append(token | {"normalized": not is_special})
    return tokens


def _normalizers(spec) -> list[dict]:
    steps = []
    if spec.remove_extra_whitespaces:
        steps.append(_replace({"Regex": r"\A +| +\z"}, ""))  # ^ and $ are those of lines
        steps.append(_replace({"Regex": " +"}, " "))
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": " "})
    return [*steps, _replace({"String": " "}, SPACE)]


def _decoders(proto) -> list[dict]:
    steps = [_replace({"String": SPACE}, " ")]
    if proto.trainer_spec.byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _replace(pattern: dict, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _byte_pairs(proto, vocabulary: dict[str, int]) -> dict:
    """SentencePiece merges the pair whose joint piece has the highest score, here the first pair of
    a list: of each piece all pairs that give it, the piece of the highest score first."""
    pairs = []
    for i, piece in enumerate(proto.pieces):
        if piece.type != KINDS.NORMAL:
            continue
        text = piece.piece
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocabulary and right in vocabulary:
                pairs.append((-piece.score, i, cut, left, right))
    pairs.sort()
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": proto.trainer_spec.byte_fallback,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": [[left, right] for *_, left, right in pairs],
    }


def _words(vocabulary: dict[str, int]) -> dict:
    return {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}


def _split_words(proto) -> dict:
    """Known words one by one, what is unknown between two of them as one: a single `<unk>`."""
    known = [piece.piece for piece in proto.pieces if piece.type == KINDS.NORMAL]
    known.sort(key=len, reverse=True)
    words = "|".join(re.escape(word) for word in known)
    pattern = {"Regex": rf"(?:{words})(?={SPACE}|\z)"}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
