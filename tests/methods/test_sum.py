"""S1 to S3 of the specification."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("dims", [(8, 8), (3, 5, 7)])
def test_equals_concat_with_its_weight_split(task_of, fusion_of, tokens_of, dims):
    task = task_of(dims=dims)
    concat, summed = (fusion_of(name, task).double() for name in ("concat", "sum"))
    torch.nn.init.normal_(concat.head.bias)
    with torch.no_grad():
        for m, weight in zip(task.modalities, concat.head.weight.split(list(dims), dim=1), strict=True):
            summed.heads[m].weight.copy_(weight)
            summed.heads[m].bias.copy_(concat.head.bias / len(dims))
    tokens = tokens_of(task)
    one, other = concat(tokens), summed(tokens)
    torch.testing.assert_close(other.logits, one.logits, rtol=0, atol=1e-12)
    for m in task.modalities:
        torch.testing.assert_close(other.unimodal["exact"][m], one.unimodal["exact"][m], rtol=0, atol=1e-12)


def test_has_9228_parameters_at_the_size_of_table_4(task_of, fusion_of):
    fusion = fusion_of("sum", task_of(2, dim=768, outputs=6))
    assert sum(p.numel() for p in fusion.parameters()) == 9228


@pytest.mark.parametrize("count", [2, 3])
def test_unimodal_parts_add_up_to_the_joint_logits(task_of, fusion_of, tokens_of, count):
    task = task_of(count)
    output = fusion_of("sum", task).double()(tokens_of(task, masked=True))
    torch.testing.assert_close(sum(output.unimodal["exact"].values()), output.logits, rtol=0, atol=1e-12)


def test_a_missing_modality_leaves_finite_logits(task_of, fusion_of, model_of, batch_of):
    task = task_of(3)
    model, inputs = model_of(fusion_of("sum", task)), batch_of(task).inputs
    for m in task.modalities:
        assert model(inputs, frozenset({m})).logits.isfinite().all()
