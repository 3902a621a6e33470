"""Ten steps of training on cells in the shape of public models: BPTT's weights, and a module left as it was."""

from functools import cache

import pytest
import torch
from foreign_cells import FOREIGN, build
from foreign_estimators import CASES, REFUSED, Case, exact, refused, rollout

pytestmark = pytest.mark.usefixtures("float64")

# other schedules, couplings and tangents than those of the fast tests, which all run in test_foreign_cells.py
MORE = ("checkpointed_4", "checkpointed_binomial_1", "checkpointed_budget", "reversible_damped")
MORE = (*MORE, "random_whole", "forward_first_central", "truncated_whole", "forward_first_update", "checkpointed_1")
EXACT = [name for name, case in CASES.items() if case.reference is exact]


def switches():
    """What is global in torch and an estimator might touch."""
    backends = torch.backends.cuda
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        (backends.math_sdp_enabled(), backends.flash_sdp_enabled(), backends.mem_efficient_sdp_enabled()),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        len(torch.overrides._get_current_function_mode_stack()),
    )


def fabric(module):
    """What a module is made of: objects by identity, flags, hooks, names of what it holds."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        [(name, id(tensor), type(tensor), tensor.requires_grad, tensor._backward_hooks) for name, tensor in tensors],
        [(name, id(part), part.training, sorted(vars(part))) for name, part in module.named_modules()],
        [len(getattr(part, hook)) for part in module.modules() for hook in hooks],
    )


def trained(model, case, loss_of):
    """Weights and buffers after ten steps; module and switches are looked at after each."""
    foreign = build(model)
    parameters = [p for p in foreign.module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.02)
    torch.manual_seed(1)
    for _ in range(10):
        problem = case.begin(foreign)
        before = switches(), fabric(foreign.module)
        loss = loss_of(foreign, problem)
        optimizer.zero_grad()
        loss.backward()
        assert (switches(), fabric(foreign.module)) == before
        optimizer.step()
    return [*parameters, *foreign.module.buffers()]


@cache
def by_hand(model, couple):
    return trained(model, Case(None, couple=couple), exact)


# each estimator and each model is in several of these
PAIRS = [
    pytest.param(name, model, marks=pytest.mark.slow) if name in MORE or (i + j) % 3 else (name, model)
    for i, name in enumerate(EXACT)
    for j, model in enumerate(FOREIGN)
]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_ten_steps_of_training_follow_bptt_and_leave_the_module_as_it_was(name, model):
    case = CASES[name]

    def estimated(foreign, problem):
        return rollout(case, foreign, problem)

    if (name, model) in REFUSED:
        foreign = build(model)
        problem = case.begin(foreign)
        before = switches(), fabric(foreign.module)
        with refused(name, model):
            estimated(foreign, problem).backward()
        assert (switches(), fabric(foreign.module)) == before
        return
    for mine, theirs in zip(trained(model, case, estimated), by_hand(model, case.couple), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
