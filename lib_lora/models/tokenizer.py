"""CLIP's byte-pair tokenizer from the vocabulary that the `open_clip` package carries: no hub, no download."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_lora.errors import BadFile

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 77  # the length of every text SD1 sees
_MERGES = 49152 - 256 - 2
SD1_TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": TOKENS,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}


def clip_alphabet() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes, in the order of its vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [256 + i for i in range(256 - len(plain))]
    return [chr(code) for code in plain + moved]


def clip_merges() -> list[str]:
    """The lines of CLIP's list of merges, in its order. Raises BadFile where the package open_clip is missing."""
    spec = importlib.util.find_spec("open_clip")
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        path = Path(place) / "bpe_simple_vocab_16e6.txt.gz"
        if path.is_file():
            lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
            return lines[1 : _MERGES + 1]
    raise BadFile(
        "CLIP's vocabulary 'bpe_simple_vocab_16e6.txt.gz' was not found in the package open_clip; "
        "install it: pip install open_clip_torch==2.20.0"
    )


def _write(path: Path, text: str) -> None:
    """Write atomically; leave a file that already says this alone."""
    data = text.encode("utf-8")
    if path.is_file() and path.read_bytes() == data:
        return
    handle, temp = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temp, 0o644)
        os.replace(temp, path)
    except BaseException:
        Path(temp).unlink(missing_ok=True)
        raise


def write_clip_folder(dest: Path, text_config: Mapping[str, Any]) -> Path:
    """Write the folder that `CLIPTokenizer` and `CLIPTextConfig` read (and that a webui .yaml can name).

    Five files: vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json, and config.json made of
    `text_config` (the fields of `CLIPTextConfig`). Returns `dest`. Raises BadFile if open_clip is missing.
    """
    dest.mkdir(parents=True, exist_ok=True)
    merges = clip_merges()
    letters = clip_alphabet()
    pieces = letters + [f"{letter}</w>" for letter in letters] + [line.replace(" ", "") for line in merges]
    vocab = {piece: i for i, piece in enumerate([*pieces, START, END])}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    tokenizer = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": TOKENS,
        "tokenizer_class": "CLIPTokenizer",
    }
    config = {
        **text_config,
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": vocab[START],
        "eos_token_id": vocab[END],
        "pad_token_id": 1,
    }
    _write(dest / "vocab.json", json.dumps(vocab, ensure_ascii=False))
    _write(dest / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    _write(dest / "tokenizer_config.json", json.dumps(tokenizer, indent=1))
    _write(dest / "special_tokens_map.json", json.dumps(special, indent=1))
    _write(dest / "config.json", json.dumps(config, indent=1, sort_keys=True))
    return dest


def _cache_roots() -> list[Path]:
    project = Path(__file__).resolve().parents[2]
    user = Path(os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache")
    return [project / ".lorakit" / "clip", user / "sd-webui-lorakit" / "clip"]


def default_clip_folder(text_config: Mapping[str, Any] = SD1_TEXT_CONFIG) -> Path:
    """The cached folder for a text encoder of these sizes, written if it is not there yet.

    It lies in the project's `.lorakit/clip`, or in the user's cache folder where the project cannot be written.
    """
    digest = hashlib.sha256(json.dumps(dict(text_config), sort_keys=True).encode()).hexdigest()[:12]
    problems = []
    for root in _cache_roots():
        try:
            return write_clip_folder(root / digest, text_config)
        except OSError as error:
            problems.append(f"{root}: {error.strerror or error}")
    raise BadFile(f"no folder to keep the tokenizer in ({'; '.join(problems)}); make one of them writable")


def load_tokenizer(folder: Path) -> Any:
    """transformers' `CLIPTokenizer` of such a folder. Raises BadFile if the folder has no vocabulary."""
    from transformers import CLIPTokenizer

    if not (folder / "vocab.json").is_file() or not (folder / "merges.txt").is_file():
        raise BadFile(f"{folder} is not a CLIP folder: vocab.json or merges.txt is missing; write it anew or remove it")
    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
