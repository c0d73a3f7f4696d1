"""Brings an exported folder to the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_lab.errors import BadInput, RunFailed
from prune_lab.utils.secrets import redacted, remember

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_TOKEN = "hf auth login, or set HF_TOKEN to a token with the right to write (https://huggingface.co/settings/tokens)"
_ALWAYS_THERE = {".gitattributes"}
_OF_A_MODEL = ["*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "*.gguf", "modeling_prune_lab_*.py"]


@dataclass(frozen=True)
class Place:
    """Where on the hub a model goes.

    Attributes:
        repository: ``organisation/name``.
        private: whether a repository that is made can be seen by its owners only.
        revision: a branch, which is made where there is none; ``None``: the main branch of a new repository.
        update: whether files of a repository that is there may be replaced.
        asked: how the user asked for it, which messages begin with.
    """

    repository: str
    private: bool = False
    revision: str | None = None
    update: bool = False
    asked: str = "--push-to-hub"

    def option(self, name: str) -> str:
        """How the user gives an option: as of the command, or as an argument in Python."""
        return f"--{name}" if self.asked.startswith("--") else f"{name}="


def check_place(place: Place, api: "HfApi | None" = None) -> None:
    """Makes sure, before the work, that there is a network, a token that the hub knows, and a place of that name.

    Raises:
        BadInput: the name cannot be one, the token is missing or refused, or the repository is there already.
        RunFailed: the hub cannot be reached.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(place.repository)
    except HFValidationError as error:
        raise BadInput(f"{place.asked} {place.repository} is no name on the hub; give ORG/NAME") from error
    if place.repository.count("/") != 1:
        raise BadInput(f"{place.asked} {place.repository} does not say whose it is; give ORG/NAME or USER/NAME")
    if api is None and constants.is_offline_mode():
        raise BadInput(
            f"{place.asked}: HF_HUB_OFFLINE is set, which forbids the network; unset it, or leave {place.asked} out"
        )
    if get_token() is None:
        raise BadInput(f"{place.asked}: there is no token for the hub; {_TOKEN}")
    hub = _api(api)
    with _explained(place):
        hub.whoami()
        _refuse_foreign(hub, place)


def push(folder: Path, place: Place, message: str, api: "HfApi | None" = None) -> str:
    """Uploads a folder as one commit.

    Args:
        folder: that is complete.
        place: where to.
        message: of the commit.
        api: of the hub; by default a new one, with the token of the usual places.

    Returns:
        The address of the repository.

    Raises:
        BadInput: the hub refuses the token, the name, or to write there.
        RunFailed: the hub cannot be reached, or has failed.
    """
    hub = _api(api)
    with _explained(place):
        _refuse_foreign(hub, place)
        address = hub.create_repo(place.repository, private=place.private or None, exist_ok=True)
        if place.revision is not None:
            hub.create_branch(place.repository, branch=place.revision, exist_ok=True)
        hub.upload_folder(
            repo_id=place.repository,
            folder_path=folder,
            revision=place.revision,
            commit_message=message,
            delete_patterns=_OF_A_MODEL,  # an earlier model's would be read beside these, or in their place
        )
    return str(address)


def _api(api: "HfApi | None") -> Any:
    from huggingface_hub import HfApi, get_token

    remember(get_token())  # keeps it out of messages
    return api if api is not None else HfApi()


def _refuse_foreign(hub: Any, place: Place) -> None:
    """A repository with files in it is replaced only where that is asked for."""
    if place.update or not hub.repo_exists(place.repository):
        return
    branch = place.revision
    if branch is not None and branch not in {each.name for each in hub.list_repo_refs(place.repository).branches}:
        return  # it is made
    if set(hub.list_repo_files(place.repository, revision=branch)) - _ALWAYS_THERE:
        what = "the repository" if branch is None else f"its branch {branch}"
        raise BadInput(
            f"{place.asked} {place.repository}: {what} is there and holds files; give another name, "
            f"a branch of its own ({place.option('revision')}), or leave to replace its model and card "
            f"({place.option('update')})"
        )


@contextmanager
def _explained(place: Place) -> Iterator[None]:
    """Says what an error of the hub means, and what to do about it."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise BadInput(f"{place.asked}: there is no token for the hub; {_TOKEN}") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise _of_status(place, status, error) from error
    except (OSError, RuntimeError) as error:  # of the network: httpx's errors differ by version, and are one of these
        raise _unreachable(place, error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            raise
        raise _unreachable(place, error) from error


def _of_status(place: Place, status: int | None, error: Exception) -> BadInput | RunFailed:
    at = f"{place.asked} {place.repository}"
    if status == 401:
        return BadInput(f"{at}: the hub does not know this token (401); {_TOKEN}")
    if status == 403:
        owner = place.repository.partition("/")[0]
        return BadInput(
            f"{at}: this token may not write there (403); give a token with the right to write to {owner}, or a "
            "repository under your own name"
        )
    if status == 404:
        return BadInput(f"{at}: there is no such place, or this token may not see it (404); look at the name")
    if status == 409:
        return BadInput(f"{at}: the repository was made or changed meanwhile (409); look at it, and give --update")
    reason = (redacted(str(error)).strip() or type(error).__name__).splitlines()[0]
    return RunFailed(f"{at}: the hub has failed{f' ({status})' if status else ''}: {reason}; try again later")


def _unreachable(place: Place, error: Exception) -> RunFailed:
    reason = (redacted(str(error)).strip() or type(error).__name__).splitlines()[0]
    return RunFailed(
        f"{place.asked} {place.repository}: the hub cannot be reached: {reason}; look at the network, and try again"
    )
