"""A trace as a file, a table and a labelled dataset: numpy's npz, pandas and xarray."""

import importlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loopgrad.analysis.files import replace_bytes

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingImports]
    import xarray  # pyright: ignore[reportMissingImports]

FORMAT = "loopgrad trace 1"


def write(path: str | os.PathLike[str], fields: Mapping[str, Any]) -> None:
    """Write fields to a file: arrays, trees of one array per stream, and the rest as JSON."""
    streams, arrays = list(fields["streams"]), {}
    header: dict[str, Any] = {"format": FORMAT, "streams": streams, "rest": {}, "arrays": [], "by_stream": {}}
    for field, value in fields.items():
        if isinstance(value, np.ndarray):
            header["arrays"].append(field)
            arrays[field] = value
        elif isinstance(value, dict) and all(isinstance(part, np.ndarray) for part in value.values()):
            header["by_stream"][field] = list(value)
            # by number: a stream may have any name
            arrays |= {f"{field}.{streams.index(stream)}": part for stream, part in value.items()}
        elif field != "streams":
            header["rest"][field] = value
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    replace_bytes(Path(path), buffer.getvalue())


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the fields that `write` wrote; raise ValueError if the file is not one of those."""
    foreign = f"{os.fspath(path)} is not a trace: Trace.load reads what trace.save(path) wrote"
    with open(path, "rb") as file:  # a missing file is an error of its own
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            header = json.loads(arrays["header"].tobytes())
            if header["format"] != FORMAT:
                raise ValueError(f"{foreign}; its format is {header['format']!r}, this version reads {FORMAT!r}")
            streams = header["streams"]
            by_stream = {
                field: {stream: arrays[f"{field}.{streams.index(stream)}"] for stream in known}
                for field, known in header["by_stream"].items()
            }
            found = {field: arrays[field] for field in header["arrays"]}
            return {"streams": tuple(streams), **header["rest"], **found, **by_stream}
        except (ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise error if str(error).startswith(foreign) else ValueError(foreign) from error


def _needed(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(f"to_{library} needs {library}: pip install 'loopgrad[tables]'") from error


def to_pandas(trace: Any) -> "pandas.DataFrame":
    """Return a long table: a row per step, sample and stream, with norm, update, relative and cycle.

    Of a trace per position also the row of the batch and the position that each sample is.

    Step t is the state after t updates and the update that led to it, so update, relative and cycle of step 0 are nan.
    What there is one of per sample, such as `map`, is in `to_xarray` only.

    Raises:
        ImportError: pandas is not installed.
    """
    pandas = _needed("pandas")
    times, batch = trace.num_steps + 1, trace.row.size
    columns = {
        "step": np.repeat(np.arange(times), batch * len(trace.streams)),
        "sample": np.tile(np.repeat(np.arange(batch), len(trace.streams)), times),
        "stream": np.tile(np.array(trace.streams, dtype=object), times * batch),
    }
    if trace.position is not None:
        sample = columns["sample"]
        columns |= {"row": trace.row[sample], "position": trace.position[sample]}
    for field, values in _per_step(trace).items():
        columns[field] = np.moveaxis(values, 0, -1).reshape(-1)  # (step, sample, stream)
    return pandas.DataFrame(columns)


def to_xarray(trace: Any) -> "xarray.Dataset":
    """Return a dataset with the dimensions stream, step and sample, steps being numbered as in `to_pandas`.

    Recurrences and turnings have the dimension end instead of step, the ends of cycles 1..C, and recurrences lag. Row,
    begin and position, where there is one, are coordinates of the samples; period, at and the like are attributes.

    Raises:
        ImportError: xarray is not installed.
    """
    xarray = _needed("xarray")
    streams = trace.streams
    data: dict[str, Any] = {f: (("stream", "step", "sample"), v) for f, v in _per_step(trace).items()}
    for field in ("scale", "map", "map_relative"):
        data[field] = ("stream", "sample"), np.stack([getattr(trace, field)[name] for name in streams])
    data |= {field: ("sample", getattr(trace, field)) for field in ("joint", "joint_relative")}
    coordinates: dict[str, Any] = {"stream": list(streams), "step": np.arange(trace.num_steps + 1)}
    coordinates |= {"sample": np.arange(trace.row.size)}
    of_samples = ("row", "begin") if trace.position is None else ("row", "begin", "position")
    coordinates |= {field: ("sample", getattr(trace, field)) for field in of_samples}
    if trace.lags:
        data["recurrence"] = ("stream", "lag", "end", "sample"), np.stack([trace.recurrence[s] for s in streams])
        data["turning"] = ("stream", "end", "sample"), np.stack([trace.turning[s] for s in streams])
        coordinates["lag"] = np.arange(1, trace.lags + 1)
        coordinates["end"] = np.arange(1, trace.num_steps // trace.period + 1)
    for field in ("dtype", "map_dtype"):
        coordinates[field] = "stream", [getattr(trace, field)[name] for name in streams]
    attributes = {field: int(getattr(trace, field)) for field in ("num_steps", "period", "at", "lags", "reevaluated")}
    return xarray.Dataset(data, coordinates, attributes)


def _per_step(trace: Any) -> dict[str, np.ndarray]:
    """The fields with a value per step, (stream, T + 1, sample); those of an update stand where it led to."""
    ahead = np.full((1, trace.row.size), np.nan)
    found = {"norm": np.stack([trace.norm[name] for name in trace.streams])}
    for field in ("update", "relative", "cycle"):
        found[field] = np.stack([np.concatenate([ahead, getattr(trace, field)[name]]) for name in trace.streams])
    return found
