"""Fetches a checkpoint from the Hub to go on from."""

import os
import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..errors import UserError
from ..training.manifest import checkpoint_name, checkpoint_update
from .common import LOG, matching, reason, refused, retried


SCHEME = "hub://"


def hub_source(resume: str | None) -> tuple[str, str | None] | None:
    """`hub://owner/name@revision` as (repository, revision or None). Anything else is None.

    Raises:
        UserError: `hub://` is not followed by a repository's name.
    """
    if resume is None or not resume.startswith(SCHEME):
        return None
    repo_id, _, revision = resume.removeprefix(SCHEME).partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise UserError(
            f"resume_from_checkpoint {resume!r} does not work: give hub://owner/name or hub://owner/name@revision"
        ) from None
    return repo_id, revision or None


def local_checkpoint(
    accelerator: Accelerator, folder: Path, resume: str | None, extra_files: tuple[str, ...] = LOG
) -> str | None:
    """`resume` as a local checkpoint. The main process downloads one on the Hub into `folder`. Other values are
    returned unchanged.

    Raises:
        UserError: as `download_checkpoint`.
    """
    if resume is None or hub_source(resume) is None:
        return resume
    path = [str(download_checkpoint(resume, folder, extra_files)) if accelerator.is_main_process else None]
    return broadcast_object_list(path)[0]


def download_checkpoint(source: str, folder: Path, extra_files: tuple[str, ...] = LOG) -> Path:
    """Download the newest checkpoint of `source` (`hub://owner/name[@revision]`) into `folder`, and the files that
    match the patterns `extra_files`, unless `folder` has them.

    Raises:
        UserError: no such repository or revision, no checkpoint in it, or no answer from the Hub.
    """
    repo_id, revision = hub_source(source) or (source, None)
    api = HfApi()
    partial = folder / ".partial-download"

    def download() -> str | None:
        commit = api.model_info(repo_id, revision=revision).sha  # all files of one commit
        files = api.list_repo_files(repo_id, revision=commit)
        folders = {path.partition("/")[0] for path in files if "/" in path}
        updates = [update for update in map(checkpoint_update, folders) if update is not None]
        if not updates:
            return None
        name = checkpoint_name(max(updates))
        shutil.rmtree(partial, ignore_errors=True)
        patterns = [f"{name}/*", *matching([path for path in files if "/" not in path], extra_files)]
        api.snapshot_download(repo_id, revision=commit, allow_patterns=patterns, local_dir=partial)
        return name

    try:
        name = retried(download)
    except Exception as error:
        if isinstance(error, RevisionNotFoundError):
            remedy = f"revision {revision!r} does not exist: give another, or none for the newest"
        elif isinstance(error, RepositoryNotFoundError) or refused(error):
            remedy = "this repository does not exist, or not for this token: give another, or run `hf auth login`"
        else:
            remedy = "the Hub does not answer: try again, or give a checkpoint's folder"
        raise UserError(f"resume_from_checkpoint {source!r} ({reason(error)}): {remedy}") from None
    if name is None:
        raise UserError(
            f"resume_from_checkpoint {source!r} has no checkpoint-*: give a repository or a revision that was pushed "
            "to with --push_to_hub checkpoint"
        )
    for file in partial.iterdir():
        if file.is_file() and not (folder / file.name).exists():
            os.replace(file, folder / file.name)
    os.replace(partial / name, folder / name)
    shutil.rmtree(partial, ignore_errors=True)
    return folder / name
