"""A readout asked on the way, under every estimator on every cell, against a loop by hand."""

import pytest
import torch
from answers import Readout, by_hand, driven, loss_of_answers
from cases import ESTIMATORS
from cells import CELLS, build
from problems import leaves_of, loss_of

from loopgrad.gradients import BPTT, ForwardGradient, ImplicitGradient, PhantomGradient, TorchDEQ

STEPS = 7
SAVES = ["sum", "all", 3, [0, 4], "last"]
QUICK = ("sum", [0, 4])
EXACT = [case for case in ESTIMATORS if case.estimator.kind == "exact" or case.name.startswith("forward_first")]
# here samples share x_t, which cannot be had side by side: in its own file
EXACT = [case for case in EXACT if not case.side_by_side]
FAST = ("affine", "two_streams", "dataclass_state", "dropout", "no_inputs")
every_cell = pytest.mark.parametrize(
    "cell", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CELLS]
)
named = {"ids": lambda save: "".join(map(str, save)) if isinstance(save, list) else str(save)}


def sources_of(problem, readout, encoder):
    inner = getattr(problem.cell, "cell", problem.cell)
    found = [*inner.parameters(), *readout.parameters(), *encoder.parameters()]
    found += [*leaves_of(problem.inputs), *leaves_of(problem.state)]
    return [tensor for tensor in found if tensor.requires_grad]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("save", [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in SAVES], **named)
@every_cell
@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_answers_and_their_gradients_equal_those_of_a_loop_by_hand(case, cell, save):
    if cell in case.refused:
        pytest.skip(f"{case.name} refuses cells such as {cell}: tested in its own file")
    found = []
    for of_estimator in (False, True):
        torch.manual_seed(0)
        readout, encoder, raw = Readout(), torch.nn.Linear(2, 3).double(), torch.randn(STEPS, 2).double()
        problem = driven(build(cell), case.couple)
        torch.manual_seed(1)
        if of_estimator:
            given = {"xs": encoder(raw), "readout": readout, "save": save}
            rollout = case.estimator(problem.cell, problem.state, problem.inputs, STEPS, **given)
            state, outputs = rollout.state, rollout.outputs
        else:
            state, outputs = by_hand(problem, encoder(raw), readout, save)
        loss = loss_of_answers(outputs) + loss_of(state)
        gradients = torch.autograd.grad(loss, sources_of(problem, readout, encoder), allow_unused=True)
        found.append((leaves_of(state), outputs, gradients))
    (state, outputs, expected), (mine, answers, got) = found
    assert all(torch.equal(a, b) for a, b in zip(mine, state, strict=True))
    assert answers["nothing"] is None and torch.equal(answers["hits"], outputs["hits"])
    for name in ("loss", "state"):
        torch.testing.assert_close(answers[name], outputs[name], rtol=1e-13, atol=1e-13)
    for gradient, reference in zip(got, expected, strict=True):
        assert (gradient is None) == (reference is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", [ImplicitGradient(), PhantomGradient(), TorchDEQ()])
def test_what_has_the_last_state_alone_refuses_by_name_and_reads_it(estimator):
    problem = driven(build("affine"))
    arguments = problem.cell, problem.state, problem.inputs, STEPS
    given = {"xs": torch.zeros(STEPS, 3), "readout": Readout()}
    with pytest.raises(ValueError, match=f"{type(estimator).__name__} has the gradient of the last state alone.*sum"):
        estimator(*arguments, **given, save="sum")
    if not isinstance(estimator, TorchDEQ):
        outputs = estimator(*arguments, **given).outputs
        assert outputs["loss"].shape == (3,) and outputs["loss"].requires_grad


def test_a_readout_may_be_a_function_that_closes_over_modules_and_may_ask_for_few_answers():
    torch.manual_seed(0)
    head = torch.nn.Linear(4, 2).double()
    found = []
    for case in EXACT:
        if case.couple is None and not case.name.startswith(("forward", "rtrl", "snap")):
            problem = build("affine")
            outputs = case.estimator(
                problem.cell, problem.state, problem.inputs, 12, readout=lambda z, *_: head(z), save=[9]
            ).outputs
            found.append(torch.autograd.grad(outputs.sum(), [*head.parameters(), *problem.cell.parameters()]))
    for gradients in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients, found[0], strict=True)), "bits differ from BPTT's"


def test_without_a_readout_states_are_kept():
    problem = build("two_streams")
    rollout = BPTT()(problem.cell, problem.state, problem.inputs, 6, save=2)
    state, expected = problem.state, []
    for step in range(6):
        state = problem.cell(state, problem.inputs, step)
        expected += [state["z_L"]] if step % 2 else []
    assert torch.equal(rollout.outputs["z_L"], torch.stack(expected))


@pytest.mark.parametrize("case", [c for c in EXACT if not c.name.startswith("forward")], ids=lambda case: case.name)
def test_two_rollouts_one_after_the_other_are_one(case):
    """With `start`, step-dependent cells and readouts go on where the first rollout has ended."""
    found = []
    for parts in ([9], [4, 5]):
        torch.manual_seed(0)
        problem, readout, xs = driven(build("two_streams"), case.couple), Readout(), torch.randn(9, 3).double()
        first = problem.cell.couple(problem.state) if case.couple else problem.state
        state, start, total = first, 0, 0.0
        for count in parts:
            rollout = case.estimator(
                problem.cell, state, problem.inputs, count, xs=xs[start : start + count], readout=readout,
                save="sum", start=start,
            )  # fmt: skip
            state, total, start = rollout.state, total + rollout.outputs["loss"].sum(), start + count
        found.append(torch.autograd.grad(total + loss_of(state), [*problem.cell.parameters(), *readout.parameters()]))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"save": "every"}, TypeError, "save='every' must be \"last\""),
        ({"save": 0}, TypeError, "save=0"),
        ({"save": [8]}, ValueError, "there is no update 8: there are 8, from number 0 on"),
        ({"save": [3, 1]}, ValueError, "increasing order"),
        ({"start": -1}, TypeError, "start=-1"),
        ({"readout": 3}, TypeError, "readout must be callable"),
        ({"xs": torch.zeros(3, 8)}, ValueError, r"xs has shape \(3, 8\) and num_steps is 8.*movedim"),
        ({"xs": {"a": 1}}, TypeError, "xs holds no tensor"),
        ({"readout": lambda *_: 3.0, "save": "sum"}, TypeError, r"readout\(...\) is a float"),
        ({"lengths": [1.0, 2.0, 3.0]}, TypeError, "lengths must be ints"),
        ({"lengths": [1, 2]}, ValueError, "lengths has 2 entries.*3 samples"),
        ({"lengths": [1, 2, 9]}, ValueError, "between 0 and num_steps=8"),
        ({"readout": lambda z, i, x, t: z[: t + 1], "save": "all"}, ValueError, "same structure, shapes and dtypes"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given, error, said):
    problem = build("affine")
    cell = driven(problem).cell if "xs" in given else problem.cell
    with pytest.raises(error, match=said):
        BPTT()(cell, problem.state, problem.inputs, 8, **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", [{"mode": "jvp"}, {"mode": "central", "window": 0}, {"perturb": "state", "window": 2}]
)
def test_forward_gradients_of_answers_are_unbiased(given):
    torch.manual_seed(0)
    problem, readout, xs = driven(build("affine")), Readout(), torch.randn(5, 3).double()
    sources = [*problem.cell.parameters(), *readout.parameters()]

    def gradient(estimator):
        rollout = estimator(problem.cell, problem.state, problem.inputs, 5, xs=xs, readout=readout, save="sum")
        loss = loss_of_answers(rollout.outputs) + loss_of(rollout.state)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, sources)])

    exact, estimator = gradient(BPTT()), ForwardGradient(64, seed=0, **{"perturb": "weights", **given})
    draws = torch.stack([gradient(estimator) for _ in range(80)])
    error = draws.std(0) / 80**0.5
    assert ((draws.mean(0) - exact).abs() <= 4.5 * error + 1e-6 * exact.abs()).all()
    assert error.norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("save", [100, []])
@pytest.mark.parametrize("num_steps", [0, 6])
def test_where_no_update_is_asked_nothing_is_kept(save, num_steps):
    problem = build("affine")
    rollout = BPTT()(problem.cell, problem.state, problem.inputs, num_steps, save=save, readout=Readout())
    assert rollout.outputs is None
    with pytest.raises(ValueError, match=f"there is no update 7: there are {num_steps}, from number 0 on"):
        BPTT()(problem.cell, problem.state, problem.inputs, num_steps, save=[7])
