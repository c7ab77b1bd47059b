"""Weights by the name of a Hugging Face repository: "hf:org/name", or "hf:org/name@revision"."""

import os
from pathlib import Path

from zoo.errors import ZooError

PREFIX = "hf:"
# What decoders are imported from: never the pickles that may lie beside it.
WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "*.jinja",
)


def fetched(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The local folder of a source that starts with "hf:", downloaded where it is not yet; any other as it is.

    Raises ZooError when the repository or the network is not there.
    """
    if not (isinstance(source, str) and source.startswith(PREFIX)):
        return source
    import huggingface_hub

    name, _, revision = source.removeprefix(PREFIX).partition("@")
    try:
        folder = huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=list(WANTED))
    except (OSError, ValueError) as error:  # its own errors, those of the network, and a malformed name
        reason = str(error).strip().splitlines()[0]
        raise ZooError(f"{source} cannot be fetched ({reason}); check the name and the network") from error
    if not any(Path(folder).glob("*.safetensors")):
        raise ZooError(f"{source} has no safetensors; give a repository that has")
    return folder
