"""The command line: `iopaint-core list`, `plugins`, `parameters`, `run`, `pool`, `download` and more.

What a command is asked for goes to standard output, everything else to standard error. Exit codes: 0 done,
1 something failed and is reported, 2 the command was used wrongly.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iopaint_core.catalog import ScanReport, find_model, scan, with_required
from iopaint_core.errors import (
    IOPaintError,
    ModelLoadError,
    UnavailableModelError,
    WeightsError,
    did_you_mean,
)
from iopaint_core.listing import model_lines
from iopaint_core.options import option_names
from iopaint_core.plugins import PluginManager
from iopaint_core.schema import DTYPES, describe, format_bytes
from iopaint_core.version import __version__
from iopaint_core.weights import WeightStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import IO, Any, NoReturn

    from tqdm import tqdm

    from iopaint_core.batch import Outcome
    from iopaint_core.parameters import Parameters, ParametersLike
    from iopaint_core.schema import LoadContext, ModelInfo, WeightFile

_OUTPUT = "iopaint_core.output"
"""Where a command prints what it is asked for, once code of plugins may run: a key of `Context.meta`."""
_EXISTING = click.Path(exists=True, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--plugins-dir", type=_FOLDER, help="Also load the single-file plugins of this folder.")
@click.option("-v", "--verbose", is_flag=True, help="Log more, to standard error.")
@click.version_option(package_name="iopaint-core")
@click.pass_context
def main(context: click.Context, plugins_dir: Path | None, verbose: bool) -> None:
    """Repair pictures with the models of all installed plugins."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    if not verbose and not sys.warnoptions:
        warnings.simplefilter("ignore")  # what libraries deprecate concerns their users, not ours
    context.obj = plugins_dir


@main.command("list")
@click.option("--downloaded", "only", flag_value="downloaded", help="Only models whose weights are here.")
@click.option("--missing", "only", flag_value="missing", help="Only models whose weights are not here.")
@click.option("--commercial", is_flag=True, help="Leave out models whose licence forbids commercial use.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def list_models(plugins_dir: Path | None, only: str | None, commercial: bool, as_json: bool) -> None:
    """List the models of all plugins, by task: what they need, their licence, their plugin."""
    report = _scan(plugins_dir)
    store = _store()
    here = {info: not _missing(store, info, report) for info in report.models}
    chosen = [
        info
        for info in report.models
        if (info.commercial or not commercial) and (only is None or here[info] == (only == "downloaded"))
    ]
    if as_json:
        _print_json([_described(info, here[info]) for info in chosen])
    else:
        for line in model_lines(chosen, here):
            _print(line)
    if report.problems:
        click.echo(f"Problems with plugins: {len(report.problems)}. `iopaint-core plugins` shows them.", err=True)


def _described(info: ModelInfo, downloaded: bool) -> dict[str, object]:
    """Return all that a model says of itself, as JSON holds it."""
    return {
        "name": info.name,
        "title": info.title,
        "description": info.description,
        "homepage": info.homepage,
        "task": info.task.name,
        "takes_mask": info.task.takes_mask,
        "gives": list(info.task.gives),
        "type": info.type.value,
        "plugin_name": info.plugin_name,
        "distribution": info.distribution,
        "license": info.license,
        "commercial": info.commercial,
        "requires": list(info.requires),
        "weights": [{"filename": file.filename, "source": file.source, "size": file.size} for file in info.weights],
        "path": None if info.path is None else str(info.path),
        "parameters": list(info.parameters.names()),
        "load_options": list(option_names(info.load_options)),
        "downloaded": downloaded,
        "unavailable": info.unavailable,
    }


def _missing(store: WeightStore, info: ModelInfo, report: ScanReport) -> bool:
    """Whether files that a model, or one that it requires, needs are not here."""
    try:
        return any(
            store.missing(each) for each in with_required(info, lambda name: find_model(name, report.models))
        )
    except UnavailableModelError:
        return True


@main.command("describe")
@click.argument("model")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document, with the JSON Schema of parameters."
)
@click.pass_obj
def describe_model(plugins_dir: Path | None, model: str, as_json: bool) -> None:
    """Show all that a model says of itself: what it does, takes, gives, needs, and may be used for."""
    report = _scan(plugins_dir)
    with _usage_errors():
        info = find_model(model, report.models)
        described = _described(info, not _missing(_store(), info, report))
        if as_json:
            _print_json({**described, "parameters": info.parameters.json_schema()})
            return
    described["weights"] = [
        f"{file.filename} ({'size unknown' if file.size is None else format_bytes(file.size)}) from {file.source}"
        for file in info.weights
    ]
    own = [name for name in info.parameters.names() if name not in info.parameters.framework_names()]
    described["parameters"] = [*own, f"those of every such model: `iopaint-core parameters {model}`"]
    for name, value in described.items():
        words = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        shown = ", ".join(map(str, words)) if isinstance(words, list) else words
        _print(f"{name.replace('_', ' ')}: {shown or '-'}")


@main.command("plugins")
@click.option("--traceback", "failed", metavar="NAME", help="Show where in its code a plugin failed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def list_plugins(plugins_dir: Path | None, failed: str | None, as_json: bool) -> None:
    """List the plugins that were found, how long they took, and what went wrong with them."""
    report = _scan(plugins_dir)
    if failed is not None:
        _print_tracebacks(failed, report)
        return
    models = Counter((info.distribution, info.plugin_name) for info in report.models)
    columns = ("name", "distribution", "version", "status", "models", "seconds", "heavy_imports")
    rows = [
        (
            plugin.name,
            plugin.distribution,
            plugin.version,
            plugin.status.value,
            models[plugin.distribution, plugin.name],
            round(plugin.seconds, 3),
            list(plugin.heavy_imports) if as_json else ", ".join(plugin.heavy_imports) or "-",
        )
        for plugin in report.plugins
    ]
    if as_json:
        problems = [
            {
                "plugin": problem.plugin,
                "distribution": problem.distribution,
                "version": problem.version,
                "stage": problem.stage.value,
                "error": describe(problem.error),
                "remedy": problem.remedy,
                "traceback": problem.traceback,
            }
            for problem in report.problems
        ]
        _print_json({"plugins": [dict(zip(columns, row, strict=True)) for row in rows], "problems": problems})
    else:
        _print_table(columns, rows)
        for problem in report.problems:
            click.echo(f"Problem: {problem}", err=True)


def _print_tracebacks(name: str, report: ScanReport) -> None:
    """Print where a plugin failed. Raises `UsageError` for a name that no plugin has."""
    names = {name for plugin in report.plugins for name in (plugin.name, plugin.qualified_name)}
    if name not in names:
        raise click.UsageError(f"No plugin is named {name}{did_you_mean(name, names)}.")
    found = [each for each in report.problems if name in {each.plugin, f"{each.distribution}:{each.plugin}"}]
    for problem in found:
        _print(f"{problem}\n{problem.traceback}")
    if not found:
        _print(f"Nothing is wrong with {name}.")


@main.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print their JSON Schema.")
@click.pass_obj
def parameters(plugins_dir: Path | None, model: str, as_json: bool) -> None:
    """Show what a model takes: for `run -p NAME=VALUE` and `run --config`."""
    report = _scan(plugins_dir)
    with _usage_errors():
        taken = find_model(model, report.models).parameters
        schema = taken.json_schema()
    if as_json:
        _print_json(schema)
        return
    names = taken.names()
    rows = [_parameter_row(name, schema) for name in sorted(names, key=taken.framework_names().__contains__)]
    _print_table(("name", "type", "default", "description"), rows)


def _parameter_row(name: str, schema: Mapping[str, Any]) -> tuple[str, str, str, str]:
    import json

    field = schema["properties"][name]
    options = _options(field, schema)
    shown = {"string": "text", "boolean": "true or false", "array": "list"}
    kinds = [
        "choice"
        if "enum" in option
        else f"{shown.get(option.get('type', ''), option.get('type', 'JSON'))}{_bounds(option)}"
        for option in options
        if option.get("type") != "null"
    ]
    choices = [str(value) for option in options for value in option.get("enum", ())]
    description = " ".join(field.get("description", "").split())
    if choices:
        description = f"{description} One of: {', '.join(choices)}.".strip()
    default = field.get("default")
    text = default if isinstance(default, str) and default else json.dumps(default, ensure_ascii=False)
    unit = f" {field['x-unit']}" if "x-unit" in field else ""
    return name, " or ".join(kinds) + unit, text, description


def _bounds(option: Mapping[str, Any]) -> str:
    """Return the range of a number, for people."""
    low, high = option.get("minimum"), option.get("maximum")
    if low is not None and high is not None:
        return f", {low} to {high}"
    words = {
        "minimum": "{} or more",
        "exclusiveMinimum": "above {}",
        "maximum": "at most {}",
        "exclusiveMaximum": "below {}",
    }
    return "".join(f", {text.format(option[key])}" for key, text in words.items() if key in option)


def _options(field: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the schemas of which a value fits one, with references followed."""
    if "$ref" in field:
        return _options(schema["$defs"][field["$ref"].rpartition("/")[2]], schema)
    return [option for each in field.get("anyOf", ()) for option in _options(each, schema)] or [field]


@main.command()
@click.option(
    "--model", help="Name of the model, as `list` shows it, or plugin:name.  [default: patchmatch, else cv2]"
)
@click.option(
    "--chain",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='Run the models of a JSON file one after the other: ["finder", {"model": "cv2", "parameters": {}}].',
)
@click.option("--image", type=_EXISTING, required=True, help="Picture, or folder of pictures.")
@click.option(
    "--mask", type=_EXISTING, help="White where to repaint: one for all, or a folder with the same stems."
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="File or folder for the result.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What the model takes, as JSON; `parameters MODEL` shows it.",
)
@click.option(
    "-p",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    help="One parameter, over those of --config; may be given several times.",
)
@click.option("--recursive", is_flag=True, help="Look into the folder's folders too.")
@click.option("--overwrite", is_flag=True, help="Replace what exists; without it, finished pictures are skipped.")
@click.option("--concat", is_flag=True, help="Write picture, mask and result side by side.")
@click.option("--json", "as_json", is_flag=True, help="Print files, scores, labels and more as one JSON document.")
@click.option("--quality", type=click.IntRange(1, 100), default=95, help="Quality of JPEG and WebP.")
@click.option(
    "--max-megapixels",
    type=click.FloatRange(min=0, min_open=True),
    default=178.9,
    help="Refuse larger pictures.",
)
@click.option("--device", default="cpu", help="Where the model runs: cpu, cuda, cuda:1, mps.")
@click.option("--model-dir", type=click.Path(file_okay=False, path_type=Path), help="Folder for the models' files.")
@click.option(
    "--weights",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Your own file in place of the model's; NAME if it has several.",
)
@click.option(
    "--trust", is_flag=True, help="Load files that can run code though their hash is not the declared one."
)
@click.option("--offline", is_flag=True, help="Open no connection.")
@click.option(
    "-o",
    "--option",
    "load_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a load option of the model. Keys are safer in the environment: other users see command lines.",
)
@click.pass_obj
def run(
    plugins_dir: Path | None,
    model: str | None,
    chain: Path | None,
    image: Path,
    mask: Path | None,
    output: Path,
    config: Path | None,
    given: tuple[str, ...],
    recursive: bool,
    overwrite: bool,
    concat: bool,
    as_json: bool,
    quality: int,
    max_megapixels: float,
    device: str,
    model_dir: Path | None,
    weights: tuple[str, ...],
    trust: bool,
    offline: bool,
    load_options: tuple[str, ...],
) -> None:
    """Run a model, or a chain of them, on a picture or a folder of pictures.

    Results keep the names and formats of the pictures when --output is a folder. Beside an image come the masks and
    maps that were found: NAME.mask.png, NAME.0.mask.png, NAME.depth.png or .npy.
    """
    from dataclasses import replace

    import PIL.Image

    from iopaint_core import batch
    from iopaint_core.chain import read_chain
    from iopaint_core.manager import ModelManager
    from iopaint_core.settings import default_context

    PIL.Image.MAX_IMAGE_PIXELS = None  # this process is ours: --max-megapixels is the limit
    with _usage_errors():
        jobs = batch.plan(image, mask, output, recursive=recursive, overwrite=overwrite)
        context = replace(default_context(), device=device)
        context = replace(context, cache=model_dir or context.cache, offline=offline or context.offline)
        plugins = _plugins(plugins_dir)
        store = _store(context, trust=trust)
        if chain and (model or config or given or weights or load_options):
            raise click.UsageError(
                "--chain names models and their parameters itself: leave out --model, --config, -p, "
                "--weights and -o."
            )
        announced = scan(plugins).models if weights or load_options or not (model or chain) else ()
        name = model or _default_eraser(announced)
        info = find_model(name, announced) if weights or load_options else None
        with ModelManager(
            plugins,
            context=context,
            store=store,
            weights=_given_weights(weights, info) if info else None,
            options={info.plugin_name: _given_options(load_options, info)} if info else None,
        ) as manager:
            parameters = config.read_bytes() if config else None
            options = batch.Options(
                parameters=_merged(manager.find(name).parameters, parameters, given, name) if given else parameters,
                overwrite=overwrite,
                concat=concat,
                quality=quality,
                max_pixels=round(max_megapixels * 1_000_000),
            )
            steps = read_chain(chain.read_bytes()) if chain else name
            counts, rows = Counter[str](), []
            for outcome in _with_progress(batch.run(manager, steps, jobs, options), jobs):
                counts[outcome.status.value] += 1
                rows += [_outcome(outcome)] if as_json else []
    if as_json:
        _print_json(rows)
    click.echo(", ".join(f"{counts[status]} {status}" for status in counts), err=True)
    if counts[batch.Status.FAILED.value]:
        sys.exit(1)


def _default_eraser(models: Sequence[ModelInfo]) -> str:
    """Return the name of the model that `run` takes where none is given."""
    unavailable = [info.unavailable for info in models if info.name == "patchmatch"]
    if "" in unavailable:
        return "patchmatch"
    for reason in unavailable:
        click.echo(f"Using cv2. patchmatch, which erases better, can't be used yet: {reason}", err=True)
    return "cv2"


def _outcome(outcome: Outcome) -> dict[str, object]:
    """Return what became of a picture, as JSON holds it."""
    return {
        "image": str(outcome.job.image),
        "status": outcome.status.value,
        "files": [str(path) for path in outcome.files],
        "error": str(outcome.error) if outcome.error else None,
        **outcome.result,
    }


def _merged(cls: type[Parameters], config: bytes | None, given: Sequence[str], model: str) -> ParametersLike:
    """Return the parameters of `--config` with those of `-p` over them. Raises `RequestError`."""
    schema, values = cls.json_schema(), {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"-p is {text!r}, expected NAME=VALUE, such as hd_strategy=Resize.")
        if name not in schema["properties"]:
            raise click.UsageError(
                f"{model} takes no {name!r}{did_you_mean(name, cls.names())}. It takes: {', '.join(cls.names())}."
            )
        values[name] = _value(value, _options(schema["properties"][name], schema))
    base = cls.parse(config)
    return cls.parse({**{name: getattr(base, name) for name in cls.names()}, **values})


def _value(text: str, options: Sequence[Mapping[str, Any]]) -> object:
    """Return the value that `-p` gives: JSON where the field takes that, else the text itself."""
    import json

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not any(option.get("type") == "string" for option in options):
        return value
    kinds = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
    fits = any(option.get("type") == kinds.get(type(value)) for option in options)
    return value if fits else text


def _bytes(context: click.Context, option: click.Parameter, size: str | None) -> int | None:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return TypeAdapter(ByteSize | None).validate_python(size)
    except ValidationError:
        raise click.BadParameter(f"{size!r} is no size such as 6GB, 6GiB or 500MB", context, option) from None


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--device", default="cpu", help="Where the models run: cpu, cuda, cuda:1, mps.")
@click.option(
    "--dtype", type=click.Choice(DTYPES), help="What weights are cast to; by default, the plugin chooses."
)
@click.option("--budget", callback=_bytes, help="Tell whether they fit the device: 6GB, 6GiB.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def pool(
    plugins_dir: Path | None,
    models: tuple[str, ...],
    device: str,
    dtype: str | None,
    budget: int | None,
    as_json: bool,
) -> None:
    """Show what models share, and whether they fit together; headers of weights are read, not weights."""
    from dataclasses import replace

    from iopaint_core.entries import device_name
    from iopaint_core.manager import ModelManager
    from iopaint_core.settings import default_context

    with _usage_errors():
        context = replace(default_context(), device=device, dtype=dtype)
        found = ModelManager(_plugins(plugins_dir), context=context).forecast(*models)
    separately, together = found.separately, found.together
    budgets = {device_name(device): budget}
    rows = [(need.model, need.component, need.nbytes, need.device, need.shared_with) for need in found.needs]
    totals = [
        (
            name,
            separately[name],
            together[name],
            separately[name] - together[name],
            None if (limit := budgets.get(name)) is None else together[name] <= limit,
        )
        for name in together
    ]
    columns = ("model", "component", "bytes", "device", "shared_with")
    sums = ("device", "separately", "together", "saved", "fits")
    if as_json:
        _print_json(
            {
                "components": [dict(zip(columns, row, strict=True)) for row in rows],
                "devices": [dict(zip(sums, row, strict=True)) for row in totals],
            }
        )
        return
    _print_table(columns, [(*row[:2], format_bytes(row[2]), row[3], ", ".join(row[4]) or "-") for row in rows])
    _print("")
    answers = {None: "-", True: "yes", False: "no"}
    _print_table(sums, [(row[0], *map(format_bytes, row[1:4]), answers[row[4]]) for row in totals])


@main.command()
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@click.option("--all", "everything", is_flag=True, help="Every model.")
@click.option("--task", help="With --all: only those of a task, as `list` shows it.")
@click.pass_obj
def download(plugins_dir: Path | None, models: tuple[str, ...], everything: bool, task: str | None) -> None:
    """Fetch what models need, as far as it is not here; a download that was cut goes on where it ended."""
    report = _scan(plugins_dir)
    if bool(models) == everything:
        raise click.UsageError("Name models, or say --all.")
    with _usage_errors():
        tasks = sorted({info.task.name for info in report.models})
        if task is not None and task not in tasks:
            raise click.UsageError(
                f"No model's task is {task!r}{did_you_mean(task, tasks)}. Tasks: {', '.join(tasks)}."
            )
        named = [info for info in _named(report, models, everything) if task is None or info.task.name == task]
        chosen, store, failed = {info.full_name: info for info in named}, _store(), False
        for info in named:
            try:
                required = with_required(info, lambda name: find_model(name, report.models))
            except UnavailableModelError as error:
                failed = True
                click.echo(f"Error: {error}", err=True)
            else:
                chosen |= {each.full_name: each for each in required}
        for info in chosen.values():
            try:
                missing = store.missing(info)
                store.get(info)
            except WeightsError as error:
                failed = True
                click.echo(f"Error: {error}", err=True)
            else:
                unavailable = f"; it can't be used yet: {info.unavailable}" if info.unavailable else ""
                click.echo(f"{info.name}: {'fetched' if missing else 'is here'}{unavailable}", err=True)
    if failed:
        sys.exit(1)


@main.command()
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@click.pass_obj
def verify(plugins_dir: Path | None, models: tuple[str, ...]) -> None:
    """Hash the files of models, or of all, anew. Exits with 1 if one is wrong."""
    report = _scan(plugins_dir)
    with _usage_errors():
        checked = _store().verify(_named(report, models, not models))
    _print_table(
        ("state", "model", "file", "path"),
        [(each.state.value, each.model.name, each.file.filename, each.path) for each in checked],
    )
    if any(each.state.value == "wrong" for each in checked):
        click.echo(
            "Error: files are wrong. `iopaint-core download MODEL` sets them aside and fetches them.", err=True
        )
        sys.exit(1)


@main.command()
@click.argument("model", required=False)
@click.option("--orphans", is_flag=True, help="What was fetched for plugins that are gone; `doctor` lists it.")
@click.pass_obj
def remove(plugins_dir: Path | None, model: str | None, orphans: bool) -> None:
    """Delete the files of a model that no other model uses, as far as they are in this program's folder."""
    report = _scan(plugins_dir)
    if (model is None) != orphans:
        raise click.UsageError("Name a model, or say --orphans.")
    with _usage_errors():
        store = _store()
        if model is None:
            _remove_orphans(store, report)
            return
        info = find_model(model, report.models)
        removed = store.remove(info, report.models)
        kept = [path for file in info.weights if (path := store.find(info, file))]
    for path in removed:
        click.echo(f"{path} removed", err=True)
    for path in kept:
        click.echo(f"{path} stays: another model or program uses it", err=True)
    if not removed + kept:
        click.echo(f"{info.name} has no files here.", err=True)


def _remove_orphans(store: WeightStore, report: ScanReport) -> None:
    removed = store.remove_orphans(report.plugins)
    for orphan in removed:
        click.echo(f"{orphan.path} removed: {orphan.plugin} is gone", err=True)
    for orphan in store.orphans(report.plugins):
        click.echo(f"{orphan.path} stays: it may be your own, and no plugin that is installed uses it", err=True)
    click.echo(f"{format_bytes(sum(orphan.nbytes for orphan in removed))} freed", err=True)


@main.command()
@click.argument("model")
@click.pass_obj
def where(plugins_dir: Path | None, model: str) -> None:
    """Print where the files of a model are; where they would be, on standard error."""
    report = _scan(plugins_dir)
    with _usage_errors():
        info, store = find_model(model, report.models), _store()
        if info.path is not None:
            _print(str(info.path))
        for file in info.weights:
            path = store.find(info, file)
            if path is None:
                click.echo(f"{store.place(info, file)} is not there: {file.source}", err=True)
            else:
                _print(str(path))


@main.command()
@click.pass_obj
def doctor(plugins_dir: Path | None) -> None:
    """Check the installation: versions, settings, plugins. Exits with 1 if something is wrong."""
    import os
    import platform

    import importlib_metadata

    from iopaint_core.settings import OPTIONS_FILE, OptionSources, default_context, option_variable

    def version(name: str) -> str:
        try:
            return importlib_metadata.version(name)
        except importlib_metadata.PackageNotFoundError:
            return "not installed"

    report = _scan(plugins_dir)
    settings = (
        "IOPAINT_HOME",
        "IOPAINT_MODEL_DIRS",
        "IOPAINT_OFFLINE",
        "HF_HUB_OFFLINE",
        "IOPAINT_PLUGINS",
        "IOPAINT_DISABLE_PLUGINS",
        "IOPAINT_PLUGIN_TIMEOUT",
        "IOPAINT_DEBUG",
        "IOPAINT_RAISE",
    )
    context = default_context()
    rows = [("python", f"{platform.python_version()} on {platform.platform()}")]
    rows += [(name, version(name)) for name in ("iopaint-core", *_required_packages())]
    rows += [("contract", f"{__version__}, that of iopaint-core")]
    rows += [(name, os.environ.get(name, "not set")) for name in settings]
    variables = {
        option_variable(info.plugin_name, name): None
        for info in report.models
        for name in option_names(info.load_options)
    }
    rows += [(name, "set" if os.environ.get(name) else "not set") for name in variables]
    rows += [("cache", str(context.cache)), ("offline", "yes" if context.offline else "no")]
    rows += [("plugins", str(len(report.plugins))), ("models", str(len(report.models)))]
    _print_table(("what", "found"), rows)
    sources = OptionSources({}, context.cache / OPTIONS_FILE)
    problems = [*report.problems, *sources.problems(report.plugins, report.models)]
    for problem in problems:
        click.echo(f"Problem: {problem}", err=True)
    unavailable: dict[str, list[str]] = {}
    for info in report.models:
        if info.unavailable:
            unavailable.setdefault(info.unavailable, []).append(info.name)
    for reason, names in unavailable.items():
        click.echo(f"Can't be used yet: {', '.join(names)}: {reason}", err=True)
    orphans = _store(context).orphans(report.plugins)
    for orphan in orphans:
        whose = f"{orphan.plugin} is gone" if orphan.plugin else "no plugin that is installed uses it"
        remedy = (
            "`iopaint-core remove --orphans` deletes it"
            if orphan.is_fetched
            else "it may be your own: delete it by hand"
        )
        click.echo(f"Not needed: {orphan.path} ({format_bytes(orphan.nbytes)}): {whose}; {remedy}", err=True)
    if problems:
        sys.exit(1)
    broken = any(info.unavailable and info.path is not None for info in report.models)
    if not broken and not orphans:
        _print("Nothing wrong was found.")


def _required_packages() -> list[str]:
    """Return the packages that this one needs, and those that its plugins can use: its extra `all`."""
    import re

    import importlib_metadata

    try:
        requirements = importlib_metadata.requires("iopaint-core") or ()
    except importlib_metadata.PackageNotFoundError:
        return []
    return [
        re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        for requirement in requirements
        if "extra ==" not in requirement or re.search(r"extra == .all\b", requirement)
    ]


def _store(context: LoadContext | None = None, *, trust: bool = False) -> WeightStore:
    """The files of weights, with a bar for each that is fetched."""
    from iopaint_core.settings import default_context

    context = default_context() if context is None else context
    return WeightStore(context.cache, offline=context.offline, trust=trust, progress=_Bars())


class _Bars:
    """One bar for each file, on standard error."""

    def __init__(self) -> None:
        self._bars: dict[WeightFile, tqdm[NoReturn]] = {}

    def __call__(self, file: WeightFile, done: int, total: int | None) -> None:
        from tqdm import tqdm

        if file not in self._bars:
            self._bars[file] = tqdm(desc=file.filename, unit="B", unit_scale=True, file=sys.stderr)
        bar = self._bars[file]
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()


def _named(report: ScanReport, names: Sequence[str], everything: bool) -> list[ModelInfo]:
    return list(report.models) if everything else [find_model(name, report.models) for name in names]


def _given_options(texts: Sequence[str], info: ModelInfo) -> dict[str, str]:
    """Return `--option` as values by key. No value is repeated in an error: it may be a secret."""
    names = option_names(info.load_options)
    given = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError("-o expected KEY=VALUE, and one has no '='.")
        if key not in names:
            raise click.UsageError(
                f"{info.name} has no load option {key!r}{did_you_mean(key, names)}. "
                f"Its load options are: {', '.join(names) or 'none'}."
            )
        given[key] = value
    return given


def _given_weights(texts: Sequence[str], info: ModelInfo) -> dict[str, Path]:
    """`--weights` as files by the name that they stand in for."""
    files = info.weights
    given = {}
    for text in texts:
        name, equals, path = text.rpartition("=")
        if not equals:
            if len(files) != 1:
                names = ", ".join(file.filename for file in files) or "none"
                raise click.UsageError(
                    f"{info.name} has these weights: {names}. Say which one {path} is: NAME=FILE."
                )
            name = files[0].filename
        given[name] = Path(path)
    return given


def _plugins(folder: Path | None) -> PluginManager:
    """Find the plugins, whose code does not write to standard output from here on."""
    context = click.get_current_context()
    if _OUTPUT not in context.meta:
        context.meta[_OUTPUT] = context.with_resource(_output_kept())
    plugins = PluginManager()
    plugins.discover()
    if folder:
        plugins.discover_folder(folder)
    return plugins


def _scan(folder: Path | None) -> ScanReport:
    return scan(_plugins(folder))


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except ModelLoadError as error:
        raise click.ClickException(str(error)) from error
    except (IOPaintError, OSError) as error:
        raise click.UsageError(str(error)) from error


def _with_progress(outcomes: Iterator[Outcome], jobs: Sequence[object]) -> Iterator[Outcome]:
    """The outcomes, each reported, with a progress bar on a terminal."""
    bar = click.progressbar(outcomes, length=len(jobs), file=sys.stderr, hidden=not sys.stderr.isatty())
    with bar as shown:
        for outcome in shown:
            _report(outcome)
            yield outcome


def _report(outcome: Outcome) -> None:
    """Tell what the user should know of an outcome."""
    job = outcome.job
    told = str(outcome.error)
    where = "" if str(job.image) in told or str(job.output) in told else f"{job.image}: "
    line = f"Error: {where}{told}" if outcome.error else f"{job.output} {outcome.status.value}: {outcome.reason}"
    if outcome.error or outcome.reason:
        over_the_bar = "\r\x1b[K" if sys.stderr.isatty() else ""
        click.echo(over_the_bar + line, err=True)
    if outcome.error:
        logging.getLogger(__name__).info("%s failed", job.image, exc_info=outcome.error)


def _print(text: str) -> None:
    """Print a line of what a command is asked for; what can't be encoded is escaped, as in JSON."""
    context = click.get_current_context()
    click.echo(text.encode("utf-8", "backslashreplace"), file=context.meta.get(_OUTPUT))


@contextlib.contextmanager
def _output_kept() -> Iterator[IO[Any] | None]:
    """Give standard output; whatever plugins and libraries write there meanwhile goes to standard error."""
    ours: IO[Any] | None = sys.stdout
    replaced = ours is not sys.__stdout__
    with contextlib.redirect_stdout(sys.stderr):
        if ours is None or replaced:
            yield ours
            return
        ours.flush()
        with open(os.dup(1), "wb") as kept:  # noqa: PTH123 - no path
            os.dup2(2, 1)
            try:
                yield kept
            finally:
                os.dup2(kept.fileno(), 1)


def _print_json(document: object) -> None:
    import json

    _print(json.dumps(document, indent=2, ensure_ascii=False))


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    lines = [[str(cell) for cell in row] for row in ([name.upper() for name in columns], *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        _print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
