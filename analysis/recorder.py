"""Recording any model as it runs: residuals and norms of its streams, through hooks or from a loop of one's own."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from loopgrad.analysis.course import Course, check_options
from loopgrad.analysis.latent import check_leaves, check_names, check_shapes, chosen_names
from loopgrad.analysis.official_site import OfficialSite, official_inner
from loopgrad.analysis.positions import Places, check_per
from loopgrad.analysis.sites import CellSite, ModuleSite, Site, is_named_cell
from loopgrad.analysis.streams import short
from loopgrad.analysis.summaries import shortened
from loopgrad.analysis.trace import Trace, trace_of
from loopgrad.gradients.batch_dims import is_first, state_dims
from loopgrad.gradients.checks import is_int


class Recorder:
    """Records how far each update moves each stream of each sample, while a model runs that knows nothing of it.

    Unlike `record` it runs nothing itself: attach it to a model, or push the states of your own loop. Residuals and
    norms are those of `record`; F(z) - z is taken one cycle before the end, at = T - period, where the run itself has
    computed F. Where a row of the batch takes a new sample, an episode ends, and nothing is compared across; it ends
    too where a sample is done before others, by `lengths=` of an estimator.

    Cost:
        Per update about 5 reads of each stream that it changed, and of each start 3 reads of the state; no
        synchronisation. Holds period + 1 states and `lags` more; each end of a cycle is compared with `lags` states.
        Under inference mode, where torch does not count writes, also a copy of each state, and a synchronisation for
        each stream that is handed on.
    Not recommended when:
        F(z) - z at the last state, or its re-evaluation in a wider dtype, is what you need: `record`
        runs the cycles for that. A model compiled as a whole may skip its hooks: analyse the eager one.

    Args:
        period: Updates in a cycle, for `push`; `attach` takes it from the model. None for 1.
        lags: Compare the ends of cycles up to so many cycles back, as `classify` needs.
        upcast: Narrowest dtype in which differences and norms are computed, float32 or wider.
        batch_dim: Which dimension of the streams is the batch: an int, or one for each stream by its name. A tuple
            is for the streams of a tuple, which are called "0", "1" and so on.
        latent: Names of the streams that are the latent state, as in `record`; others are not looked at. None for all.
        per: "position" for a sample of its own in each position, as in `record`.
        position_dim: With per="position", which dimension that is, as in `record`.

    Attributes:
        latent: As given.

    Raises:
        TypeError: upcast is narrower than float32.
        ValueError: period or lags is out of range, or per is none of the two.

    Example:
        >>> import torch
        >>> from loopgrad.analysis.recorder import Recorder
        >>> recorder, z = Recorder(), torch.ones(1, 4)
        >>> for _ in range(4):
        ...     recorder.push(z=z)  # the first is the initial state
        ...     z = z / 2
        >>> recorder.trace().update["z"][:, 0].tolist()
        [1.0, 0.5, 0.25]
    """

    def __init__(
        self,
        *,
        period: int | None = None,
        lags: int = 0,
        upcast: torch.dtype = torch.float32,
        batch_dim: Any = 0,
        latent: Any = None,
        per: str = "sample",
        position_dim: Any = None,
    ):
        check_options(lags, upcast)
        check_per(per, position_dim)
        if period is not None and not is_int(period, 1):
            raise ValueError(f"period must be the number of updates in a cycle, an int of at least 1, got {period!r}")
        self._period, self._lags, self._upcast = period, lags, upcast
        self._course: Course | None = None
        self._given: dict[str, weakref.ref[torch.Tensor]] = {}
        self._batch_dim, self._dims = batch_dim, {}
        self.latent, self._others = latent, frozenset()
        self._per, self._position_dim, self._places = per, position_dim, Places({})
        self._going: torch.Tensor | None = None

    def __repr__(self) -> str:
        """Say what was recorded so far."""
        course = self._course
        if course is None:
            return f"Recorder: nothing yet, lags={self._lags}"
        batch, names = course.leaves[0].shape[0], ", ".join(course.names)
        samples = f"{batch} samples" if self._per == "sample" else f"{batch} samples of {course.positions} positions"
        made = f"{course.num_steps} updates, period {course.period}, {samples}, lags={course.lags}"
        return shortened(f"Recorder: {made}; streams {names}")

    @contextmanager
    def attach(self, model: nn.Module, sites: Site | Mapping[str, str] | None = None) -> Iterator["Recorder"]:
        """Record the calls of `model` inside the block; its hooks are gone afterwards, also after an error.

        Args:
            model: Any model, in the mode and under the contexts (no_grad, autocast) that you want to see it in.
            sites: Where its streams are read: `CellSite()` for a model that has a cell(state, inputs, step),
                `OfficialSite()` for the official TRM and HRM classes, `ModuleSite({"name": "stream"})`, or just that
                mapping, for modules by their names. Default: the official site where a module has `L_level` and
                `config.H_cycles` and none is such a cell, else the cell's.

        Raises:
            TypeError: The model is not a module, or a stream is not a floating tensor.
            ValueError: The site does not fit the model, its period or streams are not those recorded before, or the
                batch changes its size.
            RuntimeError: What the site reads was never called, as in a compiled model.

        Example:
            >>> import torch
            >>> from loopgrad.analysis.recorder import Recorder
            >>> from loopgrad.gradients import BPTT, Stationary
            >>> cell, recorder = Stationary(lambda z, x: z / 2), Recorder()
            >>> with recorder.attach(cell):
            ...     rollout = BPTT()(cell, torch.ones(1, 4), None, num_steps=3)
            >>> recorder.trace().update["state"][:, 0].tolist()
            [1.0, 0.5, 0.25]
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}: push the states of a loop")
        if sites is None:
            is_cell = hasattr(model, "period") or any(map(is_named_cell, model.modules()))
            sites = CellSite() if is_cell or official_inner(model) is None else OfficialSite()
        site = ModuleSite(sites) if isinstance(sites, Mapping) else sites
        period = site.cycle(model)
        if self._period not in (None, period):
            raise ValueError(f"this recorder's period is {self._period}, the model's is {period}: use another recorder")
        self._period = period
        with site.reading(model, self):
            yield self

    def start(self, /, **streams: torch.Tensor) -> None:
        """Give the state that the next update starts from, where it may be another than the last one pushed.

        Rows in which all streams have the values they were left in go on; each other row begins an episode, and so does
        one that was done. If the update before did not end a cycle, every row does.

        Args:
            streams: All streams, each a floating tensor (batch, ...).

        Raises:
            TypeError: A stream is not a floating tensor, or `batch_dim` holds something other than ints.
            ValueError: A stream is missing or unknown, its shape differs from before, a state was changed in place, or
                `batch_dim` does not fit the streams.
        """
        if self._course is None:
            names = tuple(streams) if self.latent is None else chosen_names(tuple(streams), self.latent)
            self._others = frozenset(streams).difference(names)
            streams = self._judged(streams)
            check_names(names)
            dims = [0] * len(names) if is_first(self._batch_dim) else self._batch_dims(streams)
            self._dims = dict(zip(names, dims, strict=True))
            check_leaves([_moved(leaf, self._dims[name]) for name, leaf in streams.items()], names)
            self._places = Places.of(self._per, names, list(streams.values()), dims, self._position_dim)
            self._period = self._period or 1
            self._course = Course(names, self._period, self._lags, self._upcast, self._places.axes)
        streams, self._going = self._judged(streams), None
        leaves = self._checked(self._course, streams)
        missing = [name for name in self._course.names if name not in streams]
        if missing:
            raise ValueError(f"start needs every stream, {missing} is missing")
        self._course.start([leaves[name] for name in self._course.names])
        self._given = {name: weakref.ref(tensor) for name, tensor in streams.items()}

    def push(self, /, **streams: torch.Tensor) -> None:
        """Give the state after an update; the first push is the initial state.

        Args:
            streams: Each a floating tensor (batch, ...). One that is left out, or is the very tensor of before with
                nothing written into it, was not touched by the update.

        Raises:
            TypeError: A stream is not a floating tensor.
            ValueError: A stream is unknown, its shape differs from before, or a state was changed in place.
        """
        if self._course is None:
            return self.start(**streams)
        streams = self._judged(streams)
        leaves = self._checked(self._course, streams)
        known = zip(self._course.names, self._course.leaves, strict=True)
        touched = {n: z for n, z in streams.items() if self._given[n]() is not z} | {
            name: streams[name] for name, held in known if name in streams and _written(leaves[name], held)
        }
        known = zip(self._course.names, self._course.leaves, strict=True)
        self._course.update(
            [self._of_going(leaves[n], held) if n in touched else None for n, held in known], self._going
        )
        self._given |= {name: weakref.ref(tensor) for name, tensor in touched.items()}

    def going(self, rows: torch.Tensor | None) -> None:
        """Say which samples the updates from now on are of; what is pushed of the others is not looked at.

        A site says it of an estimator's call with `lengths=`. A sample that was left out takes no part until the next
        `start`, and there begins an episode.

        Args:
            rows: (batch,) bool, on the device of the streams; None for all.
        """
        self._going = rows

    def traces(self) -> list[Trace]:
        """Return a trace for each length of episodes, the longest first; the samples of a trace are episodes.

        `Trace.row` and `Trace.begin` say which row of the batch each was, and after how many updates it began.

        Raises:
            ValueError: Nothing was recorded.
        """
        course = self._course
        if course is None:
            raise ValueError("nothing was recorded: attach the recorder to a model and call it, or push states")
        dtype = {name: short(leaf.dtype) for name, leaf in zip(course.names, course.leaves, strict=True)}
        found = []
        for episodes in course.episodes():
            whole = episodes.num_steps >= course.period
            unknown = torch.full(episodes.row.shape, torch.nan, dtype=torch.float64).numpy()
            residual = {name: episodes.found["cycle", name][-1] if whole else unknown for name in course.names}
            at = max(0, episodes.num_steps - course.period)
            found.append(trace_of(course, episodes, residual, at, dtype, dtype, reevaluated=False))
        return found

    def trace(self) -> Trace:
        """Return the trace of a recording whose episodes all have one length, as where no row took a new sample.

        F(z) - z is taken at = T - period, and nan if the run is shorter than a cycle.

        Raises:
            ValueError: Nothing was recorded, or the episodes differ in length.
        """
        found = self.traces()
        if len(found) > 1:
            lengths = ", ".join(f"{trace.row.size} of {trace.num_steps} updates" for trace in found)
            raise ValueError(
                f"rows took new samples or were done before others, and the episodes differ in length ({lengths}): "
                "use traces()"
            )
        return found[0]

    def _checked(self, course: Course, streams: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the streams with the batch in dimension 0."""
        unknown = [name for name in streams if name not in course.names]
        if unknown:
            raise ValueError(f"stream {unknown[0]!r} is not one of {course.names}, those of the first state")
        leaves = {name: _moved(leaf, self._dims[name]) for name, leaf in streams.items()}
        check_leaves(list(leaves.values()), tuple(leaves))
        leaves = {name: self._places.second(name, leaf) for name, leaf in leaves.items()}
        for name, leaf in zip(course.names, course.leaves, strict=False):  # no leaves yet at the first start
            if name in streams and len(leaves[name]) != len(leaf) > 1:
                raise ValueError(
                    f"stream {name} has shape {tuple(streams[name].shape)}, before it had {tuple(leaf.shape)}: "
                    "use one Recorder for each batch size"
                )
            check_shapes([leaves.get(name, leaf)], [leaf], [name])
        return leaves

    def _judged(self, streams: dict[str, Any]) -> dict[str, Any]:
        return {name: leaf for name, leaf in streams.items() if name not in self._others}

    def _batch_dims(self, streams: dict[str, Any]) -> list[int | None]:
        given = self._batch_dim
        if isinstance(given, dict):  # of streams that are not looked at, it may tell too
            given = {name: dim for name, dim in given.items() if name not in self._others}
        return state_dims(streams, given)

    def _of_going(self, leaf: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """Return a stream after an update: of samples that it is not of, as it was before."""
        if self._going is None:
            return leaf
        return torch.where(self._going.view(-1, *[1] * (leaf.dim() - 1)), leaf.detach(), held)


def _moved(leaf: Any, dim: int | None) -> Any:
    """Return a stream with the batch in dimension 0."""
    if dim and isinstance(leaf, torch.Tensor) and leaf.dim() > dim:  # others are refused by what follows
        return leaf.movedim(dim, 0)
    return leaf


def _written(tensor: torch.Tensor, held: torch.Tensor) -> bool:
    """Return whether a tensor is no longer what is held of it, where torch does not count what is written into it."""
    return tensor.is_inference() and not torch.equal(tensor, held)
