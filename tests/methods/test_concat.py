"""C1 to C3 of the specification."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.functional import jacobian

from bench.api import Tokens


@pytest.mark.parametrize("dims", [(8, 8), (3, 5, 7)])
def test_unimodal_parts_add_up_to_the_joint_logits(task_of, fusion_of, tokens_of, dims):
    task = task_of(dims=dims)
    fusion = fusion_of("concat", task).double()
    torch.nn.init.normal_(fusion.head.bias)
    output = fusion(tokens_of(task))
    parts = torch.stack(list(output.unimodal["exact"].values()))
    assert len(parts) == len(dims)
    torch.testing.assert_close(parts.sum(0), output.logits, rtol=0, atol=1e-12)


def test_a_modality_acts_through_its_weight_alone(task_of, fusion_of, tokens_of):
    task = task_of(dims=(3, 5))
    fusion, tokens = fusion_of("concat", task).double(), tokens_of(task, batch=1)

    def logits(pooled):
        changed = tokens | {"visual": Tokens(pooled.reshape(1, 1, -1))}
        return fusion(changed).logits[0]

    for start in (torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)):
        assert torch.equal(jacobian(logits, start), fusion.head.weight[:, 3:])


def test_has_9222_parameters_at_the_size_of_table_4(task_of, fusion_of):
    fusion = fusion_of("concat", task_of(2, dim=768, outputs=6))
    assert sum(p.numel() for p in fusion.parameters()) == 9222


def test_a_missing_modality_leaves_finite_logits(task_of, fusion_of, model_of, batch_of):
    task = task_of(3)
    model, inputs = model_of(fusion_of("concat", task)), batch_of(task, masked=True).inputs
    for m in task.modalities:
        assert model(inputs, frozenset({m})).logits.isfinite().all()
