"""Choices that other installed packages bring (`prune_lab.utils.plugins`), as if each were a file of `conf`."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from prune_lab.run.conf_folder import conf_folder
from prune_lab.utils.plugins import GROUPS, installed, settings_of

_SCHEME = "prune-lab-installed"


class InstalledParts(ConfigSource):
    """Gives settings for the names of entry points; a package is imported when its choice is made, and not before."""

    @staticmethod
    def scheme() -> str:
        """How the search path calls it."""
        return _SCHEME

    def available(self) -> bool:
        """It is there always, if with nothing in it."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether packages may bring choices of a group."""
        return config_path.strip("/") in ("", *GROUPS)

    def is_config(self, config_path: str) -> bool:
        """Whether a package brings a choice, ``method/mine``."""
        group, _, name = config_path.removesuffix(".yaml").strip("/").partition("/")
        return (group, name) in installed()

    def load_config(self, config_path: str) -> ConfigResult:
        """Imports what the entry point names.

        Raises:
            BadInput: that cannot be done.
        """
        group, _, name = config_path.removesuffix(".yaml").strip("/").partition("/")
        entry = installed()[group, name]
        return ConfigResult(
            provider=self.provider,
            path=f"{_SCHEME}://{entry.value}",
            config=OmegaConf.create(settings_of(entry)),
            header={"package": None},
        )

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Names of groups, or of the choices of one."""
        path = config_path.strip("/")
        if not path:
            return [] if results_filter == ObjectType.CONFIG else sorted({group for group, _ in installed()})
        return (
            [] if results_filter == ObjectType.GROUP else sorted(name for group, name in installed() if group == path)
        )


class SearchInstalledParts(SearchPathPlugin):
    """Looks there too, behind the lab's own files, in programs whose configuration is the lab's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Adds the source."""
        if installed() and any(each.path.endswith(str(conf_folder())) for each in search_path.get_path()):
            search_path.append("prune_lab", f"{_SCHEME}://")
