"""Results and answers as files in the harness' own format. Importing this imports the harness."""

import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval.loggers import EvaluationTracker
from lm_eval.loggers.utils import add_tokenizer_info, get_git_commit_hash

from prune_lab.errors import RunFailed
from prune_lab.evaluation.harness_model import HarnessModel

FOLDER = "lm_eval"


def files_of(
    results: Mapping[str, Any], model: HarnessModel, name: str, prompting: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, str]:
    """The files that ``lm_eval --output_path lm_eval --log_samples`` writes, made by the harness.

    They are ``lm_eval/MODEL/results_TIME.json`` and ``lm_eval/MODEL/samples_TASK_TIME.jsonl``. What the harness finds
    out about the machine (``pretty_env_info``) takes it many seconds and is left out: a run folder has
    ``environment.json``.

    Args:
        results: of the harness' ``evaluate``, with its samples.
        model: that answered.
        name: of the model.
        prompting: arguments of ``evaluate`` that say how prompts are made.
        config: other settings, under the harness' names.

    Returns:
        Texts by path.

    Raises:
        RunFailed: the harness could not write them.
    """
    hf, chat = model.model, prompting["apply_chat_template"]
    arguments = {"pretrained": name}
    told = {"model_num_parameters": hf.num_parameters(), "model_dtype": hf.dtype, "device": str(hf.device)}
    whole: dict[str, Any] = {key: value for key, value in results.items() if key != "samples"}
    whole["config"] = {"model": "hf", "model_args": arguments, **told, **config}
    whole |= {"git_hash": get_git_commit_hash(), "date": time.time()}
    whole |= {f"{package}_version": version(package) for package in ("transformers", "lm_eval")}
    add_tokenizer_info(whole, model)
    with tempfile.TemporaryDirectory() as folder:
        tracker = EvaluationTracker(output_path=folder)
        tracker.general_config_tracker.log_experiment_args(
            model_source="hf",
            model_args=arguments,
            system_instruction=prompting["system_instruction"],
            chat_template=model.chat_template(chat) if chat else None,
            fewshot_as_multiturn=prompting["fewshot_as_multiturn"],
        )
        tracker.save_results_aggregated(results=whole, samples=results["samples"])
        for task, samples in results["samples"].items():
            tracker.save_results_samples(task_name=task, samples=samples)
        written = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        if len(written) != 1 + len(results["samples"]):  # the harness does not raise what goes wrong while it writes
            raise RunFailed(f"lm-eval could not write its results to {folder}; see whether there is room (TMPDIR)")
        return {f"{FOLDER}/{path.relative_to(folder).as_posix()}": path.read_text(encoding="utf-8") for path in written}
