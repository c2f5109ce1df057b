"""A finished folder on the Hugging Face hub."""

from pathlib import Path
from typing import Any

from dpbert_jax.errors import UserError


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str,
) -> str:
    """Uploads all files of a folder in one commit; the repository is made where there is none.

    Args:
        private: of a repository that is new; None: as the owner's settings have it.
        token: default: the one that `hf auth login` left, or HF_TOKEN.

    Returns:
        The repository's address.

    Raises:
        UserError: the hub refuses, or cannot be reached; with its reason.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    no_answer: Any = HfHubHTTPError.__bases__[0]  # of its HTTP client, whose package it has changed
    api = HfApi(token=token)
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=commit_message)
    except (HfHubHTTPError, HFValidationError, no_answer, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"'{repo_id}' cannot be uploaded to the Hugging Face hub: {reason} A token that may "
            "write comes from `hf auth login`, HF_TOKEN, or the argument `token`."
        ) from error
    return str(made)
