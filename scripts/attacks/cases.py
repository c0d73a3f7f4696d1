"""Makes random commands: settings that cannot be, noise, damaged files, in a folder that a forked process works in.

A case follows from the seed and its number alone. Names of files are relative to the folder of the case, in which
`damage.lay_out` puts a tiny model, token arrays, texts, a finished run, a study and files of a user.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from prune_lab.run.conf_folder import conf_folder

RUN = "hydra.run.dir=run"
SWEEP = "hydra.sweep.dir=sweep"
SMALL = (
    "model=local", "model.path=model", "data=tokens", "data.calibration=cal.npy", "data.evaluation=eval.npy",
    "evaluate=perplexity", "tracker=jsonl", "device=cpu", "training.steps=2", "method=magnitude",
)  # fmt: skip
"""The smallest whole run, to which a case adds."""

NASTY = (
    "null", "true", "false", "0", "1", "2", "-1", "3", "0.5", "-0.5", "0.999999", "1.0", "1e-320", "1e400", "nan",
    "inf", "-inf", "1000000000", "-1000000000000", "18446744073709551616", "1" * 30, "1e308", "''", '""', "x", "auto",
    "none", "'0.5'", "'2:4'", "'4:2'", "'1:1'", "'0:4'", "[]", "[1,2]", "[[]]", "[x]", "[null]", "{}", "{a:1}", "{0:1}",
    "[0,1]", "[-1,99]", "'a b'", "ä", "\U0001f600", "'a\nb'", "x" * 5000, "a.b", "user", "user/notes.txt", "nosuch",
    "nosuch/deep/er", "fifo", "/dev/null", "model", "cal.npy", "text.txt", "run", ".", "..", "~", "~/x", "~nobody/x",
    "${seed}", "${nosuch}", "${sparsity}", "${oc.env:NOSUCH}", "${oc.env:USER,x}", "${oc.env:SECRET}", "???",
    "${now:%Y}",
    "${oc.create:{a:1}}", "${hydra:job.num}", "${", "}", "1_000", "0x10", "1e3", "yes", "float16", "bfloat16", "median",
    "a=b", "'a=b'", "\\", "'", "#", "a#b", "$x", "*", "../user", "\udcff", "%s", "{at}", "{at}.x",
    "${hydra:runtime.cwd}",
)  # fmt: skip
NOISE = (
    "", "=", "==", "=5", "a", "+a=1", "++a=1", "+a.b.c=1", "~", "~method", "~seed", "~seed=1", "~method=wanda",
    "~stages",
    "~hydra", "~tracker", "~nosuch", "+method=wanda", "method=", "method", "method=[wanda,ria]", "method@x=wanda",
    "method@method.inner=wanda", "method@=wanda", "@method=wanda", "seed=1,2", "seed=range(1,3)", "seed=choice(1,2)",
    "seed=shuffle(1,2)", "seed=sort(1,2)", "seed=int(1)", "seed=str(1)", "seed=bool(x)", "seed=glob(*)", "seed=[1",
    "seed={1", "seed='1", "seed=1]", "--help", "--cfg", "--cfg=job", "--info", "--version", "--nosuch", "-x", "--", "-",
    "--seed=1", "-m=1", "--config-name=nosuch", "--config-dir=user", "--config-path=user", "--package=x", "--resolve",
    "hydra=null", "hydra.run.dir=null", "hydra.run.dir=", "hydra.run.dir=user", "hydra.run.dir=model",
    "hydra.run.dir=.",
    "hydra.run.dir=user/notes.txt", "hydra.run.dir=/dev/null/x", "hydra.run.dir=/proc/x", "hydra.run.dir=done",
    "hydra.run.dir=${nosuch}", "hydra.job.name=a/b", "hydra.job.chdir=true", "hydra.job.chdir=x", "hydra.mode=MULTIRUN",
    "hydra.mode=x", "hydra.verbose=true", "hydra.verbose=[x]", "hydra.output_subdir=null", "hydra.output_subdir=x",
    "hydra.output_subdir=../x", "hydra/job_logging=none", "hydra/job_logging=disabled", "hydra/job_logging=nosuch",
    "hydra/hydra_logging=disabled", "hydra.searchpath=[file://user]", "hydra.searchpath=x", "hydra.callbacks=null",
    "hydra.callbacks.x=1", "+hydra.callbacks.x._target_=os.system", "hydra.job.env_set={A:b}", "hydra.job.env_set.A=1",
    "hydra/sweeper=basic", "hydra/sweeper=optuna", "hydra/launcher=basic", "hydra/launcher=nosuch", "hydra/output=x",
    "experiment=nosuch", "experiment=gum_stdlib", "experiment=finetune_search", "experiment=[a,b]", "tracker=null",
    "method=null", "data=null", "model=null", "stages=null", "evaluate=null", "sparsity=null", "training=null",
    "finetune=null", "allocation=null", "schedule=null", "tracker._target_=os.system", "method._target_=os.system",
    "method._target_=prune_lab.pruning.methods.ria.RIA", "method._target_=prune_lab", "method._target_=1",
    "+method._partial_=true", "+method._args_=[1]", "+method._recursive_=false", "+method._convert_=x", "stages._x_=1",
    "+sparsity._target_.x=1", "~sparsity.level", "~model.path", "~data.seed", "+model.torch_dtype=x", "model=local/..",
    "model=../model/local", "method=/etc/passwd", "method=wanda.yaml", "Method=wanda", "method =wanda", " method=wanda",
    "method= wanda", "method:wanda", "method==wanda", "seed=0 seed=1", "config.yaml", "wanda", "sparsity.level=50%",
    "sparsity.level=.5", "sparsity.level=5e-1", "sparsity.level=0,5", "\udcff=1", "ä=1", "a\nb=1", "seed=1\n", "?",
    "*=1",
    "0=1", "a.0=1", "a[0]=1", "sparsity.layers[0]=1", "sparsity[level]=0.5", "sparsity.level.x=1", ".=1", "a..b=1",
)  # fmt: skip
GROUPS = (
    "method",
    "sparsity",
    "allocation",
    "schedule",
    "finetune",
    "evaluate",
    "data",
    "model",
    "tracker",
    "experiment",
)


@dataclass(frozen=True)
class Case:
    """One command, and the files that it finds.

    Attributes:
        kind: what it is about, a name of `KINDS`.
        program: ``prune-lab``, ``prune-lab-report`` or ``prune-lab-table``.
        arguments: of the command.
        environment: variables besides those of the process.
        damage: what is done to the files beforehand: names of functions of `damage`, each with a seed.
        own: folders and files in which the lab may change what is there, since it wrote it.
    """

    kind: str
    program: str = "prune-lab"
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    damage: tuple[tuple[str, int], ...] = ()
    own: tuple[str, ...] = ("run", "sweep", "outputs", "done")


def make(seed: int, number: int, only: str | None = None) -> Case:
    """Makes a case from its number."""
    chance = random.Random(f"{seed}/{number}")
    kind = only or chance.choice(list(KINDS))
    return KINDS[kind](kind, chance)


def leaves(value: Any, key: str) -> Iterator[str]:
    """The keys below a section."""
    yield key
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f"{key}.{name}" if key else str(name))


def _catalogue() -> dict[str, list[str]]:
    """All keys of each choice, by ``group=choice``, as they are typed."""
    found: dict[str, list[str]] = {}
    for path in sorted(conf_folder().rglob("*.yaml")):
        group = path.parent.relative_to(conf_folder()).as_posix()
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        content = {name: value for name, value in content.items() if name not in ("defaults", "hydra")}
        place = {".": "", "experiment": "", "stages": f"stages.{path.stem}"}.get(group, group.replace("/", "."))
        choice = "" if group == "." else f"{group}={path.stem}"
        found[choice] = [key for key in leaves(content, place) if key]
    return found


CATALOGUE = _catalogue()


def _choices(group: str) -> list[str]:
    return [choice for choice in CATALOGUE if choice.startswith(f"{group}=")]


def _value(chance: random.Random) -> str:
    return chance.choice(NASTY)


def _choice(chance: random.Random) -> str:
    """A choice of a group whose keys may be set; stages are named in a list."""
    return chance.choice([name for name in CATALOGUE if not name.startswith(("hydra", "experiment"))])


def _typed(choice: str) -> list[str]:
    group, _, name = choice.partition("=")
    if group == "stages":
        return ["stages=[prune,evaluate]" if name in ("prune", "evaluate") else f"stages=[prune,{name},evaluate]"]
    return [choice] if choice else []


def _of_settings(kind: str, chance: random.Random) -> Case:
    arguments: list[str] = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        choice = _choice(chance)
        arguments += _typed(choice) if chance.random() < 0.9 else []
        key = chance.choice(CATALOGUE[choice])
        sign = chance.choice(("", "", "", "", "", "+", "++"))
        arguments.append(f"{sign}{key}={_value(chance)}")
    return Case(kind, arguments=(*SMALL, RUN, *arguments))


def _of_choices(kind: str, chance: random.Random) -> Case:
    groups = ("method", "sparsity", "allocation", "schedule", "finetune", "evaluate")
    arguments = [chance.choice(_choices(group)) for group in chance.sample(groups, chance.randint(1, 4))]
    extra = (
        "sparsity.level=0.7", "sparsity.level=0", "sparsity.layers=[1,2]", "save_model=false", "sequential=layer",
        "propagate=dense", "model.dtype=bfloat16", "model.dtype=float16", "data.samples=1", "data.batch_size=1",
        "seed=7",
        "model.path=llama", "model.path=gpt2", "method@method.inner=wanda", "method@method.inner=sparsellm",
        "model=reference", "data=stdlib", "stage_cache_min_seconds=0", "sparsity.pattern='1:4'",
    )  # fmt: skip
    arguments += chance.sample(extra, chance.randint(0, 3))
    if "data=stdlib" in arguments:
        arguments += ["data.seqlen=64", "data.samples=2", "data.limit_windows=2"]
    return Case(kind, arguments=(*SMALL, RUN, *arguments))


def _of_grammar(kind: str, chance: random.Random) -> Case:
    noise = [chance.choice(NOISE) for _ in range(chance.choice((1, 1, 2)))]
    if chance.random() < 0.3:
        noise.append(f"{chance.choice(GROUPS)}{chance.choice(('', '@x', '/x'))}={_value(chance)}")
    if chance.random() < 0.2:  # a character lost, doubled or moved
        word = chance.choice(SMALL)
        place = chance.randrange(len(word))
        noise.append(word[:place] + chance.choice(("", word[place] * 2, "=", "{", " ", "'")) + word[place + 1 :])
    front = [each for each in noise if each.startswith("-")] if chance.random() < 0.5 else []
    return Case(kind, arguments=(*front, *SMALL, RUN, *(each for each in noise if each not in front)))


def _of_stages(kind: str, chance: random.Random) -> Case:
    names = [choice.partition("=")[2] for choice in _choices("stages")]
    stages = [chance.choice(names) for _ in range(chance.randint(0, 5))]
    arguments = [f"stages=[{','.join(stages)}]"]
    for name in chance.sample(names, chance.randint(0, 2)):
        arguments.append(f"{chance.choice(CATALOGUE[f'stages={name}'])}={_value(chance)}")
    finetune = chance.choice(_choices("finetune"))
    return Case(kind, arguments=(*SMALL, RUN, *arguments, finetune))


def _of_sweeps(kind: str, chance: random.Random) -> Case:
    arguments: list[str] = ["seed=1,2"] if chance.random() < 0.5 else ["sparsity.level=interval(0.1,0.6)"]
    if chance.random() < 0.6:
        arguments += ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2"]
        key = chance.choice(CATALOGUE["hydra/sweeper=optuna"])
    elif chance.random() < 0.3:
        arguments += ["hydra/sweeper=cells"]
        key = chance.choice(CATALOGUE["hydra/sweeper=cells"])
    else:
        launcher = chance.choice(_choices("hydra/launcher"))
        arguments.append(launcher)
        key = chance.choice(CATALOGUE[launcher])
        arguments.append(f"{chance.choice(CATALOGUE[launcher])}=nosuch")
    more = (
        "hydra.sweep.subdir=x", "hydra.sweep.subdir=${hydra:job.num}", "hydra.sweep.subdir=../${hydra:job.num}",
        "hydra.sweep.dir=user", "hydra.sweep.dir=done", "hydra.sweep.dir=user/notes.txt", "hydra.sweep.dir=model",
        "objective=nosuch", "objective=[prune/sparsity,evaluate/perplexity]", "objective=null", "seed=glob(*)",
        "hydra.sweeper.params={seed: 'interval(1,3)'}", "hydra.sweeper.params.seed=[1,2]", "seed=interval(3,1)",
        "sparsity.level=tag(log,interval(0,1))", "sparsity.level=interval(0.1,inf)", "seed=range(1,1e12)", "method=*",
        "method=wanda,nosuch", "seed=1,1", "sparsity.level=0.5,2", "seed=range(1,100000)",
        "hydra.sweeper.max_batch_size=0",
    )  # fmt: skip
    if chance.random() < 0.6:
        arguments.append(f"{key}={_value(chance)}")
    arguments += chance.sample(more, chance.randint(0, 2))
    return Case(kind, arguments=("-m", *SMALL, "save_model=false", SWEEP, *arguments))


def _of_environment(kind: str, chance: random.Random) -> Case:
    names = (
        "RANK", "LOCAL_RANK", "WORLD_SIZE", "PRUNE_LAB_CACHE", "PRUNE_LAB_TRUST", "PRUNE_LAB_TRIAL", "COLUMNS",
        "PRUNE_LAB_CACHE_GB", "PRUNE_LAB_NOSUCH", "XDG_CACHE_HOME", "TMPDIR", "HF_HOME", "WANDB_MODE", "SLURM_JOB_ID",
        "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_MIXED_PRECISION", "CUDA_VISIBLE_DEVICES", "TERM",
        "OMP_NUM_THREADS", "LANG", "LC_ALL", "NO_COLOR", "MASTER_PORT", "HYDRA_FULL_ERROR", "ACCELERATE_USE_CPU",
    )  # fmt: skip
    values = (*(value for value in NASTY if len(value) < 100), "fifo", "no", "offline", "7", "gib", "hydra.callbacks")
    environment = {chance.choice(names): chance.choice(values) for _ in range(chance.randint(1, 3))}
    training = ["finetune=full"] if chance.random() < 0.3 else []
    return Case(kind, arguments=(*SMALL, RUN, *training), environment=environment, own=("run", "outputs", "cache"))


def _damages(chance: random.Random, *names: str) -> tuple[tuple[str, int], ...]:
    return tuple((chance.choice(names), chance.randrange(2**32)) for _ in range(chance.choice((1, 1, 1, 2))))


def _of_models(kind: str, chance: random.Random) -> Case:
    model = chance.choice(("model", "llama", "gpt2"))
    more = chance.choice(((), ("method=wanda",), ("method=sparsegpt", "model.dtype=bfloat16"), ("stages=[evaluate]",)))
    text = ("data=files", "data.calibration=text.txt", "data.evaluation=text.txt", "data.samples=2", "data.seqlen=32",
            "data.limit_windows=2") if chance.random() < 0.4 else ()  # fmt: skip
    arguments = (*SMALL, RUN, f"model.path={model}", *more, *text)
    return Case(kind, arguments=arguments, damage=_damages(chance, f"model:{model}"))


def _of_data(kind: str, chance: random.Random) -> Case:
    file = chance.choice(("text.txt", "text.jsonl", "text.json", "text.csv", "text.parquet", "cal.npy", "eval.npy"))
    arguments: tuple[str, ...] = (*SMALL, RUN)
    if not file.endswith("npy"):
        arguments += ("data=files", f"data.calibration={file}", f"data.evaluation={file}", "data.samples=2")
        arguments += ("data.seqlen=16", "data.limit_windows=2")
        arguments += chance.choice(((), ("data.field=nosuch",), ("data.sampling=documents",), ("data.join=''",)))
    return Case(kind, arguments=arguments, damage=_damages(chance, f"file:{file}"))


def _of_records(kind: str, chance: random.Random) -> Case:
    """A finished run that is damaged: the same command again, and in its own folder; what stands on it; the report."""
    own = ("run", "done", "outputs", "cache")
    damage = _damages(chance, "run:done", "run:done", "store:cache")
    way = chance.randrange(4)
    if way == 0:
        return Case(kind, "prune-lab-report", ("done", "--out", "page"), damage=damage)
    if way == 1:
        return Case(kind, arguments=(*SMALL, RUN, "stages=[evaluate]", "model.path=done/model"), damage=damage)
    folder = RUN if way == 2 else "hydra.run.dir=done"
    return Case(kind, arguments=(*SMALL, "seed=5", folder), damage=damage, own=own)


def _of_studies(kind: str, chance: random.Random) -> Case:
    storage = chance.choice(("study.journal", "sqlite:///study.db", "study.db", "user/notes.txt", "text.jsonl", "user"))
    arguments = ("-m", *SMALL, "save_model=false", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", SWEEP)
    space = ("sparsity.level=interval(0.1,0.6)", "hydra.sweeper.study_name=s", f"hydra.sweeper.storage={storage}")
    damage = _damages(chance, f"file:{chance.choice(('study.journal', 'study.db'))}") if chance.random() < 0.8 else ()
    own = ("sweep", "outputs", "study.journal", "study.db", "cache")
    return Case(kind, arguments=(*arguments, *space), damage=damage, own=own)


def _of_tables(kind: str, chance: random.Random) -> Case:
    names = (
        "reference",
        "post_training",
        "nosuch",
        "",
        "../specs/reference",
        "gum_e2e",
        "-x",
        "reference.yaml",
        "\udcff",
    )
    small = (*SMALL, "seed=0", "save_model=false")
    words = [chance.choice(names), *small]
    if chance.random() < 0.6:
        choice = _choice(chance)
        words.append(f"{chance.choice(CATALOGUE[choice])}={_value(chance)}")
    else:
        words.append(chance.choice(NOISE))
    flags = (
        ("--redraw",), ("--results", "user"), ("--results", "user/notes.txt"), ("--runs", "done"), ("--readme",
        "nosuch"),
        ("--readme", "user/notes.txt"), ("-m", "nosuch"), ("-m",), ("--runs", "user/notes.txt"), ("--runs", "fifo"), (),
    )  # fmt: skip
    words += ["--results", "run/results", "--runs", "run/cells", *chance.choice(flags)]
    return Case(kind, "prune-lab-table", tuple(words), damage=_damages(chance, "run:done"))


def _of_reports(kind: str, chance: random.Random) -> Case:
    options = (
        ("--out", "user/notes.txt"), ("--out", "fifo"), ("--out", ""), ("--watch", "x"), ("--watch", "-1"), ("--x",),
        (),
        ("--watch", "nan"), ("--out", "nosuch/deep"), ("--wandb", ""), ("--out", "done"), ("--out",), ("--out",
        "\udcff"),
    )  # fmt: skip
    folder = chance.choice(
        ("done", ".", "user", "nosuch", "model", "fifo", "", "user/notes.txt", "\udcff", "..", "/dev/null")
    )
    folder = "done" if folder == ".." else folder
    arguments = (folder, *chance.choice(options))
    return Case(kind, "prune-lab-report", arguments, damage=_damages(chance, "run:done"), own=("done/report", "report"))


KINDS: dict[str, Callable[[str, random.Random], Case]] = {
    "settings": _of_settings,
    "choices": _of_choices,
    "grammar": _of_grammar,
    "stages": _of_stages,
    "sweeps": _of_sweeps,
    "environment": _of_environment,
    "models": _of_models,
    "data": _of_data,
    "records": _of_records,
    "studies": _of_studies,
    "tables": _of_tables,
    "reports": _of_reports,
}
"""What may be asked for by name."""
