"""Pushing a finished folder to the Hub."""

import sys
from pathlib import Path

from huggingface_hub import HfApi


IGNORED = ["checkpoint-*", ".partial-*", "*/checkpoint-*", "*/.partial-*"]


def push(folder: Path, repo_id: str | None, private: bool) -> bool:
    """Upload `folder` without its checkpoints, to `repo_id` or the folder's name. A failure is said, with the command
    that pushes later, and gives False: what was trained is on disk."""
    repo_id = repo_id or folder.resolve().name
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        url = api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=IGNORED)
    except Exception as error:  # whatever the network and its client come up with
        patterns = " ".join(f"--exclude {pattern!r}" for pattern in IGNORED)
        print(
            f"not pushed ({' '.join(str(error).split())[:200]}): all is in {folder}; push it later with "
            f"`hf upload {repo_id} {folder} {patterns}`",
            file=sys.stderr,
        )
        return False
    print(f"pushed     {url}")
    return True
