"""Small tokenizers of each kind of decoder, made on the spot."""

from __future__ import annotations

from typing import Any

CORPUS = [
    "the cat sat on the mat, didn't it? 'twas never so.",
    "naïve café — 日本語の文",
    "👩‍👩‍👧 emoji 🎉🎉",
    "End. END ENDING",
]


def byte_level() -> Any:
    """As GPT-2, Llama 3, Qwen and SmolLM: merges of bytes, so tokens end within letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|end|>", "<|user|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 90, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<tool>"])
    return wrapped(tokenizer, specials)


def byte_fallback() -> Any:
    """As Llama 2, Mistral and Gemma: words with a mark for the space, and a token for each byte."""
    from tokenizers import Tokenizer, decoders, models

    pieces = [
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁the",
        "cat",
        "é",
        "日",
        ".",
        "▁▁",
        "\ufffd",
    ]
    tokenizer = Tokenizer(models.BPE({piece: at for at, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(tokenizer, ["<s>", "</s>"])


def unigram() -> Any:
    from tokenizers import Tokenizer, decoders, models

    pieces = ["<unk>", "</s>", "▁", "▁the", "cat", "▁n", "'t", "'", "▁'", ".", "▁.", "s", "▁s", "\ufffd"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 0))
    tokenizer.decoder = decoders.Metaspace()
    return wrapped(tokenizer, ["</s>"], clean_up_tokenization_spaces=True)


def word_pieces(**options: Any) -> Any:
    """As BERT: spaces between words, some of which are taken out again."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["[UNK]", "[SEP]", "the", "cat", "n", "t", "s", "m", "ve", "re", "never", "n't", "'s", "'ve", "'", "."]
    words += [",", "!", "?", "##ing", "##s", "##'", "##n"]
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return wrapped(tokenizer, ["[SEP]"], **options)


def suffixed() -> Any:
    """As the first GPT and CLIP: the mark of a word's end becomes a space when another word comes."""
    from tokenizers import Tokenizer, decoders, models

    pieces = ["</end>", "a", "b</w>", "cat</w>", "</w>", ".</w>"]
    tokenizer = Tokenizer(models.BPE({piece: at for at, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    return wrapped(tokenizer, ["</end>"])


def bare() -> Any:
    """Without a decoder: words with a space between them."""
    from tokenizers import Tokenizer, models

    words = ["<unk>", "<end>", "the", "cat", "é", "\ufffd"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "<unk>"))
    return wrapped(tokenizer, ["<end>"])


def in_python() -> Any:
    """A tokenizer that is no Rust: a token for each byte, and bytes that make no letter are left out."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def wrapped(tokenizer: Any, specials: list[str], **options: Any) -> Any:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens([AddedToken(special, special=True) for special in specials])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=specials[0], **options)


KINDS = {
    "byte level": byte_level,
    "byte fallback": byte_fallback,
    "unigram, cleaned": unigram,
    "word pieces": word_pieces,
    "word pieces, cleaned": lambda: word_pieces(clean_up_tokenization_spaces=True),
    "suffixed": suffixed,
    "bare": bare,
    "in Python": in_python,
}
