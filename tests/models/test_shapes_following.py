"""A student's states are heard, and led to its teacher's."""

import torch
from torch import nn

from models.shapes.following import Followed, overheard


def test_states_are_heard_in_the_order_of_blocks_and_only_inside() -> None:
    first, second = nn.Linear(4, 4), nn.Conv2d(4, 6, 1)
    with overheard([first, second]) as heard:
        told = first(torch.randn(2, 3, 4))
        shown = second(torch.randn(2, 4, 5, 3))
    first(torch.randn(2, 3, 4))
    assert [tuple(states.shape) for states in heard] == [(2, 3, 4), (2, 15, 6)]
    assert torch.equal(heard[0], told)
    assert torch.equal(heard[1][:, 1], shown[:, :, 0, 1])


def test_what_a_student_thinks_comes_nearer_to_its_teachers_states() -> None:
    torch.manual_seed(0)
    teacher, student, followed = nn.Linear(8, 16), nn.Linear(8, 16), Followed(16, pairs=1)
    optimiser = torch.optim.Adam([*student.parameters(), *followed.parameters()], lr=1e-2)
    for _ in range(100):
        seen = torch.randn(8, 20, 8)
        apart = followed.apart([student(seen)], [teacher(seen).detach()])
        optimiser.zero_grad()
        apart.backward()
        optimiser.step()
    assert apart < 0.1


def test_what_is_the_same_everywhere_does_not_count() -> None:
    """A residual stream has channels far from zero; to know them says nothing."""
    torch.manual_seed(0)
    followed, states, told = Followed(16, pairs=1), torch.randn(4, 20, 16), torch.randn(4, 20, 16)
    plain = followed.apart([states], [told])
    shifted = followed.apart([states], [told * 3 + 1000 * torch.randn(16)])
    assert torch.allclose(plain, shifted, atol=0.01)
    assert plain > 0.5
