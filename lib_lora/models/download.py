"""A base model from the Hugging Face hub. Called only where a user asks for a download."""

from __future__ import annotations

from pathlib import Path

from lib_lora.errors import BadConfig, BadFile

# What `load_folder` reads. Pickles are left where they are: a repository with nothing else has to be asked for by file.
PATTERNS = (
    "model_index.json",
    *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder", "text_encoder_2")),
    *(f"{part}/*.safetensors" for part in ("unet", "vae", "text_encoder", "text_encoder_2")),
    *(f"{part}/*.safetensors.index*.json" for part in ("unet", "vae", "text_encoder", "text_encoder_2")),
    *(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in ("vocab.json", "merges.txt", "*.json")),
    "scheduler/scheduler_config.json",
)
# One set of weights: other variants of the same and EMA-less copies are as large again.
IGNORED = ("*.non_ema.*", "*.fp16.*")


def download_base(repo_id: str, token: str | None = None, revision: str | None = None) -> Path:
    """The local path of `owner/name` (a diffusers folder) or of `owner/name/path/to/file.safetensors`.

    Kept in the hub's own cache, so a second call downloads nothing. `token` is needed for gated repositories; without
    one the token of `huggingface-cli login` is used. Raises BadConfig for another form of name, BadFile where the hub
    or the network says no.
    """
    parts = repo_id.split("/")
    if len(parts) < 2 or not all(parts) or ".." in parts:
        raise BadConfig(f"{repo_id!r} is no name on the hub; write owner/name, or owner/name/file.safetensors")
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise BadFile(f"{repo_id} cannot be downloaded ({error}); pip install -U huggingface_hub") from error
    repo, inside = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        if inside:
            return Path(hf_hub_download(repo, inside, revision=revision, token=token))
        return Path(
            snapshot_download(
                repo, revision=revision, token=token, allow_patterns=list(PATTERNS), ignore_patterns=list(IGNORED)
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadFile(
            f"{repo_id} was not downloaded: {reason}; check the name, the network, and the token if access to it is "
            "granted to some only, or download it yourself and give the file or folder"
        ) from error
