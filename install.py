"""The webui's install hook, run at every launch: brings what training needs, if it is missing. Standard library only.

Applying networks needs nothing beyond the webui itself, so a failure here is told and never stops the start.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile

# What runs beside the webui's own pins (transformers 4.30.2, accelerate 0.21); newer ones break on import.
WANTED = {"diffusers": "0.30.3", "accelerate": None}
# What an installation must not change: the webui pins these, and pip goes by metadata, not by what can be imported.
KEEP = (
    *("torch", "torchvision", "transformers", "tokenizers", "accelerate", "safetensors", "numpy", "gradio"),
    *("fastapi", "pydantic", "protobuf", "Pillow", "einops", "huggingface-hub"),
)


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing() -> list[str]:
    """Requirements that are not met, as pip takes them. Another version of diffusers that is there stays."""
    return [name if pin is None else f"{name}=={pin}" for name, pin in WANTED.items() if version(name) is None]


def constraints() -> str:
    """The text of a constraints file that pins what is installed."""
    found = {name: version(name) for name in KEEP}
    lines = [f"{name}=={number}" for name, number in found.items() if number]
    return "\n".join([*lines, *([] if found["huggingface-hub"] else ["huggingface-hub<1.0"]), ""])


def install(requirements: list[str]) -> None:
    """Install through the webui's pip (its index, proxies and --skip-install are honoured)."""
    import launch

    handle, path = tempfile.mkstemp(prefix="lorakit-", suffix=".txt")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(constraints())
        quoted = " ".join(f'"{requirement}"' for requirement in requirements)
        launch.run_pip(f'install {quoted} -c "{path}"', f"sd-webui-lorakit's {', '.join(requirements)}")
    finally:
        os.unlink(path)


def main() -> None:
    """Install what is missing; on failure say what still works."""
    requirements = missing()
    if not requirements:
        return
    try:
        install(requirements)
    except Exception as error:
        print(
            f"sd-webui-lorakit: could not install {', '.join(requirements)}: {error}\n"
            "Applying networks works; for the Train tab install them by hand and start again: "
            f"{sys.executable} -m pip install {' '.join(requirements)}"
        )


if __name__ == "__main__":
    main()
