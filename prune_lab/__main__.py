"""The command ``prune-lab``: one run, or with ``-m`` a sweep."""

import gc
import logging
import math
import os
import re
import sys
import tempfile
import traceback
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.prune_lab_combinations import use_by_default
from prune_lab.errors import BadInput, Reported, RunFailed, TrialStopped, shortened, shown
from prune_lab.run import artifacts
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.config import RunConfig, objectives_of
from prune_lab.run.entry import run_unless_finished
from prune_lab.run.explained import explain_help
from prune_lab.run.loader import guard_hydra
from prune_lab.run.messages import message_of, mistakes_in
from prune_lab.run.model_ids import as_typed
from prune_lab.run.run_folder import OTHER_FOLDER, leave_failure
from prune_lab.run.trust import trust_typed
from prune_lab.utils.commands import version_text
from prune_lab.utils.group import leave, meet_at_launcher
from prune_lab.utils.pipes import ends_with_its_reader
from prune_lab.utils.processes import processes
from prune_lab.utils.secrets import hide_in_logs, redacted, redacted_override

logger = logging.getLogger(__name__)

SEARCH = "hydra_plugins.prune_lab_optuna.OptunaSweeper"
"""The sweeper of `prune_lab.sweep.search`."""


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
def run_job(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """Runs one job and returns the objective, or all of several, which sweepers read."""
    from prune_lab.run.summary import print_summary  # like other imports here: slow, and not needed for --help

    hide_in_logs()  # in the process of a job, too
    if is_assistant():
        logging.disable(logging.INFO)
        cfg.tracker = OmegaConf.create({"_target_": "prune_lab.run.tracking.jsonl.JsonlTracker"})
    hydra_config = HydraConfig.get()
    sweep = hydra_config.mode == RunMode.MULTIRUN
    searched = sweep and hydra_config.sweeper._target_ == SEARCH
    folder = Path(hydra_config.runtime.output_dir)
    try:
        config = RunConfig.of(
            cfg,
            choices=dict(hydra_config.runtime.choices),
            overrides=hydra_config.overrides.task,
        )
        record = run_unless_finished(
            config,
            folder,
            job=sweep,
            group=Path(hydra_config.sweep.dir).name if sweep else None,
            report=_report_to_trial(hydra_config) if searched else None,
        )
        objective = _objective(record, cfg.objective, needed=searched)
    except TrialStopped as stopped:  # the study knows
        logger.info("%s", stopped)
        return None
    except Exception as error:
        if not sweep:
            _exit_if_expected(error)
            raise
        _note_failure(error, folder)
        # The others go on; the command ends with the first of these errors.
        logger.error("job %s (%s) failed: %s", hydra_config.job.num, hydra_config.job.override_dirname, error)
        raise
    if not is_assistant() and not sweep:  # which has a row for each job
        print_summary(record, folder)
    if objective is None and sweep:
        logger.warning("objective=%s was not measured by this job", cfg.objective)
    return objective


def _note_failure(error: Exception, folder: Path) -> None:
    """Leaves a record of a job that failed before its run could: of bad input, say."""
    record = {
        "status": artifacts.FAILED,
        "metrics": {},
        "protocol": {},
        "error": redacted(f"{type(error).__name__}: {error}"),
    }
    with suppress(BadInput, OSError):  # the folder is in use, say; the error itself is reported all the same
        leave_failure(folder, record)


def _report_to_trial(hydra_config: HydraConf) -> Callable[[int, float], None] | None:
    from prune_lab.sweep.search.job import trial_of_job  # needs Optuna

    return trial_of_job(hydra_config)


def _objective(record: dict[str, Any], asked: Any, *, needed: bool) -> float | tuple[float, ...] | None:
    """What the job is judged by; a search needs a number, a sweep of all combinations only shows it."""
    names, metrics = objectives_of(asked), record["metrics"]
    missing = [name for name in names if not math.isfinite(metrics.get(name, math.nan))]
    if missing and needed:
        found = ", ".join(f"{name} = {metrics[name]}" for name in missing if name in metrics) or "not measured"
        measured = ", ".join(sorted(name for name, value in metrics.items() if math.isfinite(value)))
        raise RunFailed(f"objective={', '.join(missing)}: {found}; this job measured {measured}")
    if any(name not in metrics for name in names):
        return None
    values = tuple(metrics[name] for name in names)
    return values[0] if len(values) == 1 else values


@ends_with_its_reader
def main() -> None:
    """Runs the command and exits with its status: 0 done, 1 a run failed, 2 bad input."""
    use_by_default()
    logging.raiseExceptions = False  # no traceback for each line that a full disk keeps out of the log
    os.environ.setdefault("TQDM_LEAVE", "")  # bars of libraries vanish when they are done, as the lab's own do
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets exceptions through, so that the status can be told from their kind
    if "--version" in sys.argv[1:]:  # Hydra would give its own
        print(version_text())
        return
    try:
        _guard(_arguments())
        # of a process that is gone the lab says what is needed, torch where in its code it was
        if processes().count > 1:
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        if is_assistant():
            with tempfile.TemporaryDirectory() as aside:
                sys.argv += [f"hydra.run.dir={aside}/run", f"hydra.sweep.dir={aside}/sweep"]
                run_job()
        else:
            _run_jobs()
    except BrokenPipeError:
        raise  # who read the output is gone
    except OSError as error:
        if isinstance(error, HydraException):  # a file of the configuration that is not there
            _exit_if_expected(error)
        if not _is_of_hydra(error):
            raise
        reading = any("load_" in frame.name for frame in traceback.extract_tb(error.__traceback__))
        what = f"{error.strerror or error}" + (f": {shown(error.filename)}" if error.filename else "")
        _exit_if_expected(
            BadInput(
                f"a file of the settings cannot be read: {what}"
                if reading
                else f"the run folder cannot be written: {what}; {OTHER_FOLDER}"
            )
        )
    except KeyboardInterrupt:
        if not is_assistant():
            sys.stderr.write("prune-lab: interrupted; the same command, started again, goes on with what is done\n")
        sys.exit(130)
    except Exception as error:
        _exit_if_expected(error)
        if _is_of_hydra(error) and isinstance(error.__cause__, OSError):  # the log file
            _exit_if_expected(BadInput(f"the run folder cannot be written: {error.__cause__}; {OTHER_FOLDER}"))
        if _is_of_hydra(error) and _is_about_logging(error):
            reason = ": ".join(str(each) for each in (error, error.__cause__) if each)
            _exit_if_expected(BadInput(f"hydra.job_logging or hydra.hydra_logging cannot be used: {reason}"))
        if _is_of_hydra(error) and (mistakes := mistakes_in(*_typed())):
            _exit_if_expected(BadInput(mistakes))
        raise
    finally:
        leave()
        if "triton" not in sys.modules:  # its binding reports what is not collected, in dozens of lines
            gc.freeze()  # or Python looks for cycles in all of torch before it ends, which takes a second


def _guard(given: Namespace) -> None:
    """Notes what was typed, before Hydra reads any file."""
    if given.experimental_rerun is not None:
        raise BadInput(
            "--experimental-rerun is not allowed: it loads a pickle, which may run any code; give the overrides of the "
            "run instead, from its .hydra/overrides.yaml"
        )
    _check_flags(given)
    guard_hydra()
    explain_help()
    hide_in_logs()
    trust_typed(given.overrides)
    for override in given.overrides:  # what is recognised here is kept out of every message
        redacted_override(override)


def _check_flags(given: Namespace) -> None:
    """Refuses flags that mean nothing together, about which Hydra ends with a traceback, or says nothing."""
    shown_only = {"--cfg": given.cfg, "--info": given.info, "--shell-completion": given.shell_completion}
    taken = [name for name, value in {"--run": given.run, "-m": given.multirun, **shown_only}.items() if value]
    if given.cfg and given.multirun:
        raise BadInput("--cfg shows the settings of one job; leave out -m, and give one value of each setting")
    if len(taken) > 1:
        raise BadInput(f"{', '.join(taken)} exclude each other; give one of them")
    for name, value in {"--resolve": given.resolve and not given.help, "--package": given.package}.items():
        if value and not given.cfg:
            raise BadInput(f"{name} is about what --cfg shows; give --cfg job, too, or leave it out")
    asked = r"(install|uninstall|query)=(bash|fish|zsh)"
    if given.shell_completion and not (len(given.overrides) == 1 and re.fullmatch(asked, given.overrides[0])):
        raise BadInput("--shell-completion takes install=SHELL or uninstall=SHELL (bash, fish, zsh), and no settings")


def _run_jobs() -> None:
    from prune_lab.sweep.summary import summarise

    try:
        run_job()
    finally:
        summarise()


def is_assistant() -> bool:
    """Whether this is one of several processes of a run (``accelerate launch``, ``torchrun``), but not the first.

    It shares the work with the first one, has the same model afterwards, and leaves nothing behind.
    """
    return processes().rank > 0


def _exit_if_expected(error: Exception) -> None:
    """Ends the command with the message alone where the kind of the error says that it is meant to be read."""
    if isinstance(error, BadInput | HydraException | OmegaConfBaseException):
        status = 2
    elif isinstance(error, RunFailed):
        status = 1
    else:
        return
    ours = isinstance(error, Reported)  # which may be about arguments that cannot be read
    message = as_typed(str(error), sys.argv[1:]) if ours else message_of(error, *_typed())
    message = shortened(redacted(message))
    group = meet_at_launcher()
    if group is None or not group.said_by_first(message):
        sys.stderr.write(f"{_speaker()}: {message}\n")
        sys.stderr.flush()
    sys.exit(status)


def _speaker() -> str:
    """Who says something: one of several processes gives its number, but not the first."""
    with suppress(BadInput):  # that may be what is said
        own = processes()
        if own.rank > 0:
            return f"prune-lab, process {own.rank} of {own.count}"
    return "prune-lab"


def _arguments() -> Namespace:
    """What was typed, as Hydra reads it.

    Raises:
        BadInput: Hydra cannot read it.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # it would print all options, and end the command
    return parser.parse_args()


def _typed() -> tuple[list[str], bool]:
    """The overrides that were typed, and whether the command is a sweep."""
    given = _arguments()
    return given.overrides, given.multirun


def _refuse(message: str) -> NoReturn:
    words = [word.lstrip("-") for word in sys.argv[1:] if word.startswith("--") and "=" in word]
    meant = ""
    if "unrecognized" in message:
        meant = f"; settings have no dashes: {' '.join(words)}" if words else "; -m stands in front of all settings"
    raise BadInput(f"{message}{meant}; prune-lab --help shows what there is")


def _is_of_hydra(error: Exception) -> bool:
    """Whether Hydra failed before a job began: no frame of a job is in the traceback."""
    return not any(
        frame.name == run_job.__name__ and frame.filename == __file__
        for frame in traceback.extract_tb(error.__traceback__)
    )


def _is_about_logging(error: Exception) -> bool:
    """Whether the standard library could not configure the log."""
    return any(frame.name == "configure_log" for frame in traceback.extract_tb(error.__traceback__))


if __name__ == "__main__":
    main()
