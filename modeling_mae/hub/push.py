"""Pushes a run's folder and its newest checkpoint to the Hub, and a Space."""

import os
import shlex
import shutil
import sys
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import disable_progress_bars, logging

from ..errors import TrainingStopped, UserError
from ..report.facts import Base, Identity
from ..training.manifest import checkpoint_update
from .common import LOG, matching, reason, refused, retried, status_of


IGNORED = (".mae_run.*", "*/.mae_run.*", "checkpoint-*", ".partial-*", "*/checkpoint-*", "*/.partial-*")


@dataclass(frozen=True)
class HubSettings:
    """`push_to_hub` is "no", "end" or "checkpoint". Without a `hub_model_id` the repository is named like the
    folder."""

    push_to_hub: str = "no"
    hub_model_id: str | None = None
    hub_private_repo: bool = False


class Hub:
    """The repository of a run in `folder`.

    With "checkpoint", each checkpoint is also uploaded in the background, with the files that match the patterns
    `extra_files`, which a run needs to go on from there. With "no", and on all but the main process, every method does
    nothing.
    """

    def __init__(self, folder: Path, settings: HubSettings, main_process: bool, extra_files: tuple[str, ...] = LOG):
        self.folder, self.settings, self.extra_files = folder, settings, extra_files
        self.repo_id = settings.hub_model_id or folder.resolve().name
        self.active = main_process and settings.push_to_hub != "no"
        self.api = HfApi()
        self.created = False
        self.upload: Future | None = None
        self.skipped: dict[Path, Path] = {}  # for each run, the newest checkpoint written during another's upload

    def identity(self, folder: Path, license: str | None, base: Base | None = None) -> Identity:
        """How the card in `folder` names the model: by the repository, or else by the folder."""
        name = self.repo_id.split("/")[-1] if self.active else folder.resolve().name
        return Identity(name, self.repo_id if self.active and folder == self.folder else None, license, base)

    def start(self) -> "Hub":
        """Create the repository before any long work. If the Hub cannot be reached, print that and go on.

        Raises:
            UserError: the Hub refuses the token or the repository's name.
        """
        if not self.active:
            return self
        _silence_client()
        try:
            self._create()
            self._check_write_access()
        except Exception as error:
            if refused(error):
                raise UserError(
                    f"hub_model_id {self.repo_id!r} cannot be pushed to ({reason(error)}): run `hf auth login` with "
                    "a token that may write there, or give another --hub_model_id"
                ) from None
            _say(f"the Hub does not answer ({reason(error)}): the run goes on, and tries to push later")
        return self

    def checkpoint(self, path: Path) -> None:
        """Upload the checkpoint `path` in the background, unless an earlier upload still runs."""
        if not self.active or self.settings.push_to_hub != "checkpoint":
            return
        if self.upload and not self.upload.done():
            self.skipped[path.parent] = path
            return
        self.skipped.pop(path.parent, None)
        name = path.relative_to(self.folder)
        staging = self.folder / ".partial-push"
        try:
            shutil.rmtree(staging, ignore_errors=True)
            # A copy, because the loop may remove the checkpoint before the upload ends.
            shutil.copytree(path, staging / name, copy_function=_link)
            for file in matching([file.name for file in path.parent.iterdir() if file.is_file()], self.extra_files):
                copy = shutil.copy2 if file in LOG else _link  # the loop goes on writing to its log
                copy(path.parent / file, (staging / name).parent / file)
        except OSError as error:
            _say(f"{path} was not uploaded ({reason(error)}): the next one will be tried")
            return
        self.upload = self.api.run_as_future(self._upload, name, staging)

    def finish(self) -> None:
        """Wait until the newest checkpoint of each run is uploaded, or its upload has failed."""
        while self.upload:
            self.upload.result()
            self.upload = None
            if self.skipped:
                self.checkpoint(next(iter(self.skipped.values())))

    @contextmanager
    def finishing_uploads(self, accelerator: Accelerator):
        """Wraps the training. If it is stopped, the last checkpoint is uploaded before any process ends."""
        try:
            yield
        except TrainingStopped as stop:
            self.finish()
            if stop.code > 128:  # a signal stops all processes, and a launcher kills the rest when one ends
                accelerator.wait_for_everyone()
            raise

    def push(self) -> bool:
        """Upload the folder without its checkpoints, after any running upload. On failure, print the command that
        pushes later and return False: everything trained is on disk."""
        if not self.active:
            return True
        self.finish()
        try:
            url = retried(self._push)
        except Exception as error:  # any error of the network and its client
            excluded = [word for pattern in IGNORED for word in ("--exclude", pattern)]
            words = [self.repo_id, str(self.folder), *["--private"] * self.settings.hub_private_repo, *excluded]
            _say(f"not pushed ({reason(error)}): {_later(self.folder, words)}")
            return False
        print(f"pushed     {url}")
        return True

    def _create(self) -> None:
        if not self.created:
            private = self.settings.hub_private_repo or None
            self.repo_id = self.api.create_repo(self.repo_id, private=private, exist_ok=True).repo_id
            self.created = True

    def _check_write_access(self) -> None:
        # `create_repo` accepts a repository that exists and belongs to others.
        try:
            self.api.auth_check(self.repo_id, write=True)
        except TypeError:
            pass  # an older huggingface_hub cannot ask this
        except Exception as error:
            if status_of(error) in (401, 403):
                raise

    def _push(self) -> str:
        self._create()
        patterns = list(IGNORED)
        return str(self.api.upload_folder(repo_id=self.repo_id, folder_path=self.folder, ignore_patterns=patterns))

    def _upload(self, name: Path, staging: Path) -> None:
        try:
            retried(lambda: self._commit(name, staging))
        except Exception as error:
            _say(f"{self.folder / name} was not uploaded ({reason(error)}): the next one will be tried")
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _commit(self, name: Path, staging: Path) -> None:
        # One commit, so that no revision has half a checkpoint; `upload_folder` may make several.
        self._create()
        files = {path.relative_to(staging).as_posix(): path for path in staging.rglob("*") if path.is_file()}
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(path)
            for path in self.api.list_repo_files(self.repo_id)
            if path not in files and _is_in_checkpoint(path, name.parent.as_posix())
        ]
        changes += [CommitOperationAdd(path, file) for path, file in files.items()]
        self.api.create_commit(self.repo_id, changes, commit_message=f"Training: {name.as_posix()}")


def push_space(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload `folder` as the Gradio Space `repo_id`. Returns its address.

    Raises:
        UserError: the Hub refuses or does not answer. The message names the command that pushes later.
    """
    _silence_client()
    api = HfApi()
    ignored = ["*__pycache__*", ".partial-*"]

    def push() -> str:
        url = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, repo_type="space", folder_path=folder, ignore_patterns=ignored)
        return str(url)

    try:
        return retried(push)
    except Exception as error:  # any error of the network and its client
        words = [repo_id, str(folder), ".", "--repo-type", "space", *["--private"] * private]
        raise UserError(f"{repo_id!r} is not pushed ({reason(error)}): {_later(folder, words)}") from None


def _later(folder: Path, words: list[str]) -> str:
    return f"everything is in {folder}; push it later with `{shlex.join(['hf', 'upload', *words])}`"


def _is_in_checkpoint(path: str, folder: str) -> bool:
    """Whether the repository's file `path` is in a checkpoint directly below `folder` (`.` is the top)."""
    parents = [parent for parent in Path(path).parents if checkpoint_update(parent) is not None]
    return any(parent.parent.as_posix() == folder for parent in parents)


def _silence_client() -> None:
    """Silences the client, whose messages and bars would break into the training's output."""
    logging.set_verbosity_error()
    disable_progress_bars()


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not all file systems have links
        shutil.copy2(source, target)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
