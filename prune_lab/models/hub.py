"""A repository of the hub as a local folder: its snapshot in the hub's cache, filled as far as it is needed.

Whatever is checked of a local folder holds for a hub model in this way, and nothing is taken from a folder that only
has the repository's name.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prune_lab.errors import BadInput
from prune_lab.models.folder import read_json
from prune_lab.models.weight_files import SINGLE

_SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")  # all but the weights
_CODE = "*.py"


@dataclass(frozen=True)
class Repository:
    """A repository at a revision; offline, what the cache has of it.

    Args:
        path: ``organisation/model``.
        revision: a branch, tag or commit; ``None`` is the main branch.
        code: whether its Python files may come along.
        cached: whether it is taken as the cache has it, without asking the hub.
    """

    path: str
    revision: str | None = None
    code: bool = False
    cached: bool = False

    complete = False
    name = None

    def check(self) -> None:
        """Refuses what cannot be a repository, such as the path of a folder.

        Raises:
            BadInput: it cannot.
        """
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils._validators import validate_repo_id

        try:
            validate_repo_id(self.path)
        except HFValidationError as error:
            raise BadInput(
                f"{{at}}.path={self.path[:200]} is not a name on the hub, such as facebook/opt-125m; for a folder use "
                "model=local model.path=DIR"
            ) from error

    @cached_property
    def folder(self) -> Path:
        """The snapshot, with everything but the weights.

        Raises:
            BadInput: it cannot be had.
        """
        from huggingface_hub import snapshot_download

        patterns = [*_SMALL, _CODE] if self.code else list(_SMALL)
        try:
            found = Path(
                snapshot_download(
                    self.path, revision=self.revision, allow_patterns=patterns, local_files_only=self.cached
                )
            )
        except Exception as error:  # of the network, of access, of the cache's files
            raise self._cannot_have("configuration", error) from error
        if not (found / "config.json").is_file():
            raise self._cannot_have("configuration", FileNotFoundError("there is no config.json"))
        return found

    @property
    def commit(self) -> str:
        """The commit of the snapshot."""
        return self.folder.name

    def fetch_weights(self) -> None:
        """Brings the weights into the snapshot: as safetensors, or as ``torch.save`` wrote them if there are no others.

        Raises:
            BadInput: they cannot be had.
        """
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import EntryNotFoundError

        problem: Exception = FileNotFoundError(f"there is no {' and no '.join(SINGLE)}, nor an index of shards")
        for single in SINGLE:
            index = self.folder / f"{single}.index.json"
            try:
                if index.is_file():
                    files = set(read_json(self.folder, index.name).get("weight_map", {}).values())
                    snapshot_download(self.path, revision=self.commit, allow_patterns=sorted(map(str, files)))
                else:
                    hf_hub_download(self.path, single, revision=self.commit)
                return
            except EntryNotFoundError as error:  # offline too: the cache has no such file
                problem = error
            except BadInput:
                raise
            except Exception as error:
                raise self._cannot_have("weights", error) from error
        raise self._cannot_have("weights", problem)

    def told(self) -> dict[str, Any]:
        """The repository, and the commit that was loaded."""
        return {"repository": self.path, "revision": self.commit}

    def _cannot_have(self, what: str, error: Exception) -> BadInput:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:300]
        if access := how_to_get_access(error, f"https://huggingface.co/{self.path}"):
            reason = f"{reason}. {access}"
        here = "; there is a folder of this name: model=local takes it" if Path(self.path).is_dir() else ""
        return BadInput(
            f"{{at}}.path={self.path}: cannot have the {what} from the hub or its cache: {reason}. Check the name, the "
            f"revision, the network and the access; or download the folder and use model=local model.path=DIR{here}"
        )


def how_to_get_access(error: Exception, page: str) -> str:
    """Returns how one gets access where the hub says that there is none (401, 403, a gated repository); else nothing.

    Args:
        error: of the hub's client, which may have wrapped the hub's answer.
        page: of the repository.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    each: BaseException | None = error
    while each is not None and not isinstance(each, HfHubHTTPError):
        each = each.__cause__ or each.__context__
    status = getattr(getattr(each, "response", None), "status_code", None)
    if each is None or not (isinstance(each, GatedRepoError) or status in (401, 403)):
        return ""
    private = isinstance(each, RepositoryNotFoundError) and not isinstance(each, GatedRepoError)
    first = "If it is private, give" if private else f"Accept its terms at {page}, if it has any, and give"
    return f"{first} a token that may read it: hf auth login, or the variable HF_TOKEN"
