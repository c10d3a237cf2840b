"""Golden cases: do our implementations compute what the official ones computed?

    python -m anban.testing.golden PATH... [--json]

A case (format `golden-case/1`) is a JSON file and an npz of the same stem: the official class and its constructor
arguments, the official parameter names and shapes, the inputs, and what came out. No weights are stored: both sides fill
every tensor by its name (`fill`).

The counterpart of an official class is an *adapter*. Any package of anban may have a module `golden.py` with
`ADAPTERS: dict[(repository "owner/name", class), adapter]`; the modules are found by listing folders. An adapter takes a
`Case` and returns its outputs by name; for a network, `Network(build)` makes one from a function that translates the
constructor's arguments. It asks for the behaviour as published.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import anban
from anban.errors import InputError
from anban.official import load_official

SCHEMA = "golden-case/1"
TOLERANCE = {"network": 1e-4, "function": 1e-5}
"""Absolute and relative; a case whose own rounding is larger is held to `FLOOR` times that."""
FLOOR = 10.0

Array = npt.NDArray[Any]
Outputs = Mapping[str, Any]


# ---- weights and inputs that are pure functions of their names ------------------------------------------------------


def _noise_of(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def fill(name: str, shape: Sequence[int]) -> Array:
    """The tensor that stands for the parameter or buffer `name`: float32, int64 for batch counters.

    Every value is drawn from a generator seeded by the name; scales are such that signals keep their size through a
    network: matrices by the root of their fan-in, normalisation weights around one, positive variances, state-space
    parameters in the range of their usual initialisation.
    """
    draws = _noise_of(name)
    leaf = name.rpartition(".")[2]
    noise = draws.standard_normal(tuple(shape))
    if leaf == "num_batches_tracked":
        return np.zeros(tuple(shape), dtype=np.int64)
    if leaf == "running_var":
        value = 0.5 + draws.random(tuple(shape))
    elif leaf in {"A_log", "A_logs"}:
        value = np.log(np.arange(1, shape[-1] + 1)) + 0.1 * noise
    elif leaf in {"dt_projs_bias", "dt_bias"} or name.endswith("dt_proj.bias"):
        value = 0.5 * noise - 4.0
    elif leaf in {"D", "Ds"} or (leaf == "weight" and len(shape) < 2):
        value = 1.0 + 0.1 * noise
    elif len(shape) >= 2 and leaf != "running_mean":
        value = noise / np.sqrt(np.prod(shape[1:]))
    else:
        value = 0.1 * noise
    return np.asarray(value, dtype=np.float32)


def fill_input(name: str, shape: Sequence[int], low: float = -1.0, high: float = 1.0) -> Array:
    """The input `name`: uniform in [low, high), float32."""
    draws = _noise_of("input:" + name)
    return np.asarray(low + (high - low) * draws.random(tuple(shape)), dtype=np.float32)


# ---- a case ---------------------------------------------------------------------------------------------------------


class UnsupportedError(Exception):
    """An adapter has no counterpart for what the case asks for."""


class Case:
    """One golden case as stored; adapters read the properties, `data` is everything else (the whole JSON)."""

    def __init__(self, path: Path, data: dict[str, Any]):
        self.path, self.data = path, data
        self.name: str = data["case"]
        self.mode: str = data["mode"]
        self.outputs: list[dict[str, Any]] = data["outputs"]

    @property
    def official(self) -> tuple[str, str]:
        """The repository ("owner/name") and the class or function: the key of the adapter."""
        source = self.data["source"]
        return "/".join(source["repo"].removesuffix(".git").rstrip("/").split("/")[-2:]), source["class"]

    @property
    def kind(self) -> str:
        """ "function" or "network"."""
        return "function" if self.mode == "function" else "network"

    @property
    def dtype(self) -> torch.dtype:
        """What the reference computed in (results may be stored in float32 all the same)."""
        return torch.float64 if str(self.data["dtype"]).startswith("float64") else torch.float32

    def arguments(self, positional: Sequence[str] = ()) -> dict[str, Any]:
        """The constructor's arguments by their official names.

        Args:
            positional: the official order, for cases that do not state it themselves.
        """
        constructor = dict(self.data.get("constructor") or {})
        args = constructor.pop("args", [])
        names = constructor.pop("argument_names", None) or positional
        if len(args) > len(names):
            raise UnsupportedError(f"{len(args)} positional arguments, {len(names)} known")
        kwargs = constructor.pop("kwargs", {})
        return {**dict(zip(names, args, strict=False)), **kwargs, **constructor}

    def weights(self, key: str = "state_dict", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Official parameter names -> filled tensors; `key` for cases with more than one network."""
        listed = self.data[key]
        pairs = listed.items() if isinstance(listed, Mapping) else listed
        state = {name: torch.from_numpy(fill(name, shape)) for name, shape in pairs}
        dtype = dtype or self.dtype
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}

    def inputs(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Input names -> tensors, in the order of the official call; floating ones in the reference's precision."""
        made = {}
        for entry in self.data["inputs"]:
            quoted = re.search(r"fill_input\(\s*'([^']*)'", entry["rule"])
            name = quoted[1] if quoted else f"{self.name}:{entry.get('key') or entry['name']}"
            value = fill_input(name, entry["shape"], entry["low"], entry["high"])
            made[entry["name"]] = self._cast(value, entry.get("cast"), dtype or self.dtype)
        return made

    @staticmethod
    def _cast(value: Array, cast: str | None, dtype: torch.dtype) -> Tensor:
        if cast is None:
            return torch.from_numpy(value).to(dtype)
        if cast.startswith("floor_"):
            value, cast = np.floor(value), cast.removeprefix("floor_")
        return torch.from_numpy(value.astype(np.dtype(cast)))

    @cached_property
    def stored(self) -> dict[str, Array]:
        """What the official implementation returned, as stored (see `stride` of each output)."""
        with np.load(self.path.with_suffix(".npz")) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def tolerance(self, output: str) -> tuple[float, float]:
        """Absolute and relative tolerance of an output."""
        base = TOLERANCE[self.kind]
        check = (self.data.get("float64_check") or {}).get(output) or {}
        rounding = check.get("max_abs_diff", 0.0) if isinstance(check, dict) else 0.0
        noise = (self.data.get("float32_noise") or {}).get(output)
        if isinstance(noise, int | float):
            rounding = max(rounding, noise * float(np.abs(self.stored[output]).max(initial=0.0)))
        return max(base, FLOOR * rounding), base

    def fragile(self, output: str) -> list[int]:
        """Positions of the stored array that the case itself says rounding may decide."""
        listed = self.data.get("fragile_pixels") or {}
        if re.search(rf"\b{re.escape(output)}\b", str(listed.get("what", ""))):
            return list(listed.get("in_stored_slice", []))
        return []


def labelled(case: Case, inputs: dict[str, Tensor], ignore: int = 255) -> Tensor:
    """The case's label, `ignore` at the pixels that its notes say."""
    found = re.search(r"255 where 'ignore' input < ([\d.]*\d)", " ".join(case.data["notes"]))
    if found is None:
        return inputs["label"]
    return inputs["label"].masked_fill(inputs["ignore"] < float(found[1]), ignore)


Adapter = Callable[[Case], Outputs]


def find_cases(paths: Iterable[str | Path]) -> list[Case]:
    """The cases in the given JSON files and, recursively, folders; files of another schema are passed over.

    Raises:
        InputError: a path does not exist, a file is no JSON, or there is no case at all.
    """
    cases = []
    for given in map(Path, paths):
        if not given.exists():
            raise InputError(
                "the path does not exist", where=given, expected="golden cases (*.json) or folders of them"
            )
        if not given.is_dir() and given.suffix == ".npz":
            continue  # a case's arrays, which a shell's `case_*` names as well
        for path in sorted(given.rglob("*.json")) if given.is_dir() else [given]:
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"the file is not JSON: {error}", where=path) from error
            if isinstance(data, dict) and data.get("schema") == SCHEMA:
                cases.append(Case(path, data))
    if not cases:
        where = ", ".join(map(str, paths))
        raise InputError(
            "no golden case was found", where=where, expected=f"JSON files of the schema {SCHEMA}"
        )
    return cases


# ---- adapters -------------------------------------------------------------------------------------------------------


def adapters() -> dict[tuple[str, str], Adapter]:
    """The counterparts of all official classes, from every `golden.py` of the package."""
    root = Path(next(iter(anban.__path__)))
    found: dict[tuple[str, str], Adapter] = {}
    for path in sorted(root.rglob("golden.py")):
        if path.resolve() == Path(__file__).resolve():
            continue
        module = ".".join((anban.__name__, *path.relative_to(root).with_suffix("").parts))
        for key, adapter in importlib.import_module(module).ADAPTERS.items():
            if key in found:
                raise ValueError(f"two adapters for {key}; the second is in {module}")
            found[key] = adapter
    return found


@dataclasses.dataclass(frozen=True)
class Network:
    """The adapter of a network: build, fill, load, run, name what comes out.

    Attributes:
        build: official constructor arguments, by their official names -> our network, as published. An argument that it
            does not take makes the case unsupported.
        positional: the official order of the arguments, for cases that do not state it.
        tap: (our network, official module name) -> our module whose output the case stores as `tap:<name>`; by default
            the module of that very name.
    """

    build: Callable[..., nn.Module]
    positional: Sequence[str] = ()
    tap: Callable[[nn.Module, str], nn.Module] | None = None

    def model(self, case: Case) -> nn.Module:
        """Our network for the case's constructor arguments, with weights of its own making."""
        arguments = case.arguments(self.positional)
        try:
            return self.build(**arguments)
        except (TypeError, InputError) as error:
            raise UnsupportedError(f"{type(error).__name__} for {arguments}: {error}") from error

    def __call__(self, case: Case) -> Outputs:
        return run_network(case, self.model(case), tap=self.tap)


def run_network(
    case: Case,
    model: nn.Module,
    *,
    tap: Callable[[nn.Module, str], nn.Module] | None = None,
    call: Callable[[nn.Module, dict[str, Tensor]], Any] | None = None,
) -> dict[str, Tensor]:
    """Fill `model` by official names and run it on the case's inputs, in its precision and again in float64 if asked.

    Args:
        call: how the network takes the inputs; by default all of them, in order.

    Returns:
        The case's outputs by name: what the call returned, flattened in order; `tap:*` by hooks; `*_f64` from the
        float64 run.
    """
    names = [output["name"] for output in case.outputs]
    doubled = [name for name in names if name.endswith("_f64")]
    taps = [name for name in names if name.startswith("tap:")]
    plain = [name for name in names if name not in {*doubled, *taps}]
    outputs: dict[str, Tensor] = {}
    for dtype, wanted in ((case.dtype, plain), (torch.float64, doubled)):
        if not wanted:
            continue
        model = model.to(dtype)
        load_official(model, case.weights(dtype=dtype))
        model.train(case.mode.startswith("train"))
        seen: dict[str, Tensor] = {}
        hooks = []
        for name in taps if wanted is plain else []:
            official = name.removeprefix("tap:")
            module = tap(model, official) if tap else model.get_submodule(official)
            hooks.append(module.register_forward_hook(_keep(seen, name)))
        inputs = case.inputs(dtype)
        with torch.no_grad():
            returned = flatten(call(model, inputs) if call else model(*inputs.values()))
        for hook in hooks:
            hook.remove()
        if len(returned) != len(wanted):
            raise ValueError(f"{len(returned)} outputs were returned, the case has {len(wanted)}: {wanted}")
        outputs |= dict(zip(wanted, returned, strict=True)) | seen
    return outputs


def _keep(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        # A module called twice is kept as it was first called; a later in-place operation must not reach the copy.
        seen.setdefault(name, flatten(output)[0].detach().clone())

    return hook


def flatten(value: Any) -> list[Tensor]:
    """The tensors of nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        raise TypeError(f"an output is a {type(value).__name__}, not a tensor")
    return [tensor for item in value for tensor in flatten(item)]


# ---- comparison -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OutputResult:
    """One output against what is stored.

    `absolute` is the largest difference, `relative` the same over the largest stored magnitude; infinite where shapes,
    or places that are not finite, differ. `fragile` positions were passed over.
    """

    name: str
    absolute: float
    relative: float
    ok: bool
    fragile: int = 0
    why: str | None = None


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """One case: status "ok", "FAIL" or "unsupported", the largest errors over its outputs, and why it is not ok."""

    case: str
    path: str
    repository: str
    official: str
    status: str
    absolute: float | None = None
    relative: float | None = None
    why: str | None = None
    outputs: tuple[OutputResult, ...] = ()


def compare(case: Case, entry: Mapping[str, Any], value: Any) -> OutputResult:
    """Compare one output, given whole, with the stored one: |difference| <= absolute + relative * |stored|, everywhere."""
    name = entry["name"]
    got = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if list(got.shape) != list(entry["shape"]):
        return OutputResult(name, np.inf, np.inf, False, why=f"shape {list(got.shape)}, not {entry['shape']}")
    stored = case.stored[name].reshape(-1)
    got = got.reshape(-1)[:: entry.get("stride") or 1]
    fragile = case.fragile(name)
    keep = np.ones(stored.size, dtype=bool)
    keep[fragile] = False
    wide = np.complex128 if np.iscomplexobj(stored) or np.iscomplexobj(got) else np.float64
    got, stored_kept = got[keep].astype(wide), stored[keep].astype(wide)
    same = (got == stored_kept) | (np.isnan(got) & np.isnan(stored_kept))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(got - stored_kept))
    difference = np.where(np.isfinite(difference), difference, np.inf)
    if np.issubdtype(stored.dtype, np.integer) or stored.dtype == bool:
        ok = not difference.any()
    else:
        absolute, relative = case.tolerance(name)
        with np.errstate(invalid="ignore"):
            ok = bool(np.all((difference == 0) | (difference <= absolute + relative * np.abs(stored_kept))))
    largest = float(difference.max(initial=0.0))
    finite = np.abs(stored_kept)[np.isfinite(stored_kept)]
    magnitude = float(finite.max(initial=0.0))
    return OutputResult(name, largest, largest / magnitude if magnitude else largest, ok, len(fragile))


def check(case: Case, known: Mapping[tuple[str, str], Adapter]) -> CaseResult:
    """Run one case with its adapter out of `known`; whatever an adapter raises is that case's failure."""
    repository, official = case.official
    about = (case.name, str(case.path), repository, official)
    adapter = known.get(case.official)
    if adapter is None:
        return CaseResult(*about, "unsupported", why=f"no adapter for {official} of {repository}")
    try:
        outputs = adapter(case)
        results = []
        for entry in case.outputs:
            if entry["name"] not in outputs:
                raise KeyError(f"the adapter gave no output {entry['name']!r}")
            results.append(compare(case, entry, outputs[entry["name"]]))
    except UnsupportedError as reason:
        return CaseResult(*about, "unsupported", why=str(reason))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return CaseResult(*about, "FAIL", why=why)
    bad = [result for result in results if not result.ok]
    return CaseResult(
        *about,
        "FAIL" if bad else "ok",
        absolute=max((result.absolute for result in results), default=0.0),
        relative=max((result.relative for result in results), default=0.0),
        why="; ".join(r.name + ": " + (r.why or f"{r.absolute:.2e} off") for r in bad) or None,
        outputs=tuple(results),
    )


# ---- command --------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Check the cases of the command line; exit status 0, 1 (a case failed or is unsupported) or 2 (bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m anban.testing.golden", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="golden cases (*.json) or folders of them")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of lines")
    options = parser.parse_args(argv)
    try:
        cases = find_cases(options.paths)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    known = adapters()
    results = []
    for result in (check(case, known) for case in cases):
        results.append(result)
        if not options.json:
            print(_line(result), flush=True)
    if options.json:
        print(json.dumps([_jsonable(dataclasses.asdict(result)) for result in results], indent=1))
    else:
        counts = {
            status: sum(r.status == status for r in results) for status in ("ok", "FAIL", "unsupported")
        }
        print(", ".join(f"{count} {status}" for status, count in counts.items()))
    return int(any(result.status != "ok" for result in results))


def _line(result: CaseResult) -> str:
    numbers = (
        f"abs {result.absolute:.2e}  rel {result.relative:.2e}"
        if result.absolute is not None and result.relative is not None
        else ""
    )
    fragile = sum(output.fragile for output in result.outputs)
    notes = [result.why] if result.why else []
    notes += [f"{fragile} fragile positions passed over"] if fragile else []
    return "  ".join(filter(None, (f"{result.status:<11} {result.case:<36}", numbers, "; ".join(notes))))


def _jsonable(value: Any) -> Any:
    """JSON has no infinity: such an error is null, and `why` says what happened."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def each_output(result: CaseResult) -> Iterator[str]:
    """One line per output, for the message of a failing test."""
    for output in result.outputs:
        yield f"{output.name}: abs {output.absolute:.2e}, rel {output.relative:.2e}, {'ok' if output.ok else 'FAIL'}"


if __name__ == "__main__":
    # the module of that name, not this copy of it: adapters raise that one's UnsupportedError
    from anban.testing.golden import main as run

    sys.exit(run())
