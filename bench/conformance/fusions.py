"""Contract tests of a fusion."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.api import TASK_CAPABILITIES, Capability, Fusion, Inputs, Output, SiteSample
from bench.conformance import running
from bench.conformance.findings import Check, expect
from bench.conformance.running import TOLERANCE, listed
from bench.conformance.settings import described, variants
from bench.conformance.world import SAMPLES, THREE, TOKENS, TWO, Subject, World, train
from bench.train import Training

Shown = tuple[str, ...]


def checks(kind: type[Fusion], settings: Any) -> list[Check]:
    """Everything a fusion has to keep."""
    subject = Subject(kind, settings)
    tests: Mapping[str, Callable[[], None]] = {
        "documented": lambda: running.documented(kind),
        "builds for two and three modalities": lambda: builds(subject),
        "every parameter gets a gradient": _over_variants(gradients, subject, bounds=False),
        "provides says the truth": _over_variants(provides, subject),
        "requires says the truth": _over_variants(requires, subject),
        "branches are disjoint and complete": _over_variants(running.parameters_accounted, subject),
        "probe gradients stay out": lambda: probes_stay_out(subject),
        "evaluation is deterministic and free of batch size": lambda: running.evaluates(subject),
        "the same seed gives the same training": lambda: running.same_again(subject),
        "save and load give the same model": lambda: running.restored(subject),
        "finite under missing modalities": lambda: missing(subject),
        "padding has no influence": _over_variants(padding, subject, bounds=False),
    }
    return [Check(name, test) for name, test in tests.items()]


def builds(subject: Subject) -> None:
    """Outputs have the shapes of the contract and training is finite, for two and three modalities of several kinds."""
    for modalities in (("sensor", "text"), THREE):
        _shapes_on(subject, modalities)
    _over_variants(lambda varied: _shapes_on(varied, TWO), subject)()


def _shapes_on(subject: Subject, modalities: Shown) -> None:
    training = subject.training(World(modalities))
    running.finite_losses(training, f"on {', '.join(modalities)}")
    shapes(training, modalities)


def gradients(subject: Subject) -> None:
    """The same as for anything trained, on three modalities of several tokens."""
    running.gradients(subject, World(TOKENS))


def shapes(training: Training, modalities: Shown) -> None:
    """Logits, features and unimodal logits of a batch have the shapes the contract states."""
    task, output = training.task, _output(training, World(modalities).inputs())
    wanted = [SAMPLES, task.num_outputs]
    expect(list(output.logits.shape) == wanted, f"logits: expected {wanted}, found {list(output.logits.shape)}")
    expect(
        tuple(output.features) == task.modalities,
        f"features: expected those of {', '.join(task.modalities)} in this order, found {', '.join(output.features)}",
    )
    for m, z in output.features.items():
        width = [SAMPLES, task.dims[m]]
        expect(list(z.shape) == width, f"features[{m!r}]: expected {width}, found {list(z.shape)}")
    for source, logits in output.unimodal.items():
        expect(source in ("exact", "head", "probe"), f"unimodal source {source!r}: allowed are exact, head and probe")
        for m, u in logits.items():
            expect(m in task.modalities, f"unimodal[{source!r}] has logits of {m!r}, which is not used")
            expect(list(u.shape) == wanted, f"unimodal[{source!r}][{m!r}]: expected {wanted}, found {list(u.shape)}")
    lacking = [m for m in task.modalities if m not in output.best_unimodal()]
    expect(not lacking, f"no unimodal logits, exact, trained or probed, for {', '.join(lacking)}")
    for name, x in output.auxiliary.items():
        found = list(x.shape)
        expect(x.ndim > 0 and len(x) == SAMPLES, f"auxiliary[{name!r}]: expected the batch first, found {found}")


def provides(subject: Subject) -> None:
    """What `provides` says is what the built and trained fusion shows: no less, no more."""
    said = subject.fusion.provides(subject.settings)
    stray = said & TASK_CAPABILITIES
    expect(not stray, f"provides: {listed(stray)} can only be provided by a data set")
    training = subject.training(World(TWO))
    train(training, 0, 1)  # a head may start at zero
    inputs = World(TWO).inputs()
    found = {
        Capability.SEVERAL_MODALITIES: len(training.task.modalities) > 1,
        Capability.EXACT_UNIMODAL: _exact(training, inputs),
        Capability.UNIMODAL_HEADS: _trained_heads(training, inputs),
        Capability.ATTENTION_SITE: _competes(training, inputs),
    }
    for capability, shown in found.items():
        expect(
            shown == (capability in said),
            f"provides {'states' if capability in said else 'does not state'} {capability!r} "
            f"but the built fusion {'has' if shown else 'lacks'} it",
        )
    if Capability.FEATURES in said:
        output = _output(training, inputs, grad=True)
        for m, z in output.features.items():
            expect(
                _reaches(z, training, m), f"provides states {Capability.FEATURES!r} but features[{m!r}] are detached"
            )
    if Capability.JOINT_LOGITS in said:
        for m in training.task.modalities:
            moved = _difference(_output(training, inputs).logits, _output(training, _other(inputs, m)).logits)
            expect(moved > 0, f"provides states {Capability.JOINT_LOGITS!r} but the logits do not depend on {m}")


def requires(subject: Subject) -> None:
    """Where equal widths or classes are not required, it trains without them."""
    said = subject.fusion.requires(subject.settings)
    stray = said - TASK_CAPABILITIES
    expect(not stray, f"a fusion can require {listed(TASK_CAPABILITIES)} of a task, found {listed(stray)}")
    if Capability.EQUAL_DIMS not in said:
        running.finite_losses(subject.training(World(TOKENS, widths=(32, 48, 64))), "with encoders of different widths")
    if Capability.CLASSES not in said:
        running.finite_losses(subject.training(World(TOKENS, kind="regression")), "on a regression")


def probes_stay_out(subject: Subject) -> None:
    """What the harness trains as a probe gives no gradient to anything but probes."""
    training = subject.training(World(TOKENS))
    probes = _output(training, World(TOKENS).inputs(), grad=True).unimodal.get("probe", {})
    named = {n: p for n, p in training.model.named_parameters() if p.requires_grad and not n.startswith("probes.")}
    for m, logits in probes.items():
        if not logits.requires_grad:
            continue
        grads = torch.autograd.grad(logits.sum(), list(named.values()), allow_unused=True, retain_graph=True)
        reached = [name for name, grad in zip(named, grads, strict=True) if grad is not None]
        expect(not reached, f"the probe of {m} sends a gradient to {', '.join(reached[:3])}; it must be detached")


def missing(subject: Subject) -> None:
    """Outputs are finite when modalities are absent, and when a sample has not one valid step."""
    training = subject.training(World(TOKENS))
    train(training, 0, 1)
    inputs = _used(training, World(TOKENS).inputs())
    used = training.task.modalities
    for count in range(len(used)):
        for present in itertools.combinations(used, count):
            with training.quiet():
                output = training.model(inputs, present=frozenset(present))
            _finite(output, f"with {listed(present)} present of {', '.join(used)}")
    masks = {m: mask.clone() for m, mask in inputs.masks.items()}
    for mask in masks.values():
        mask[0] = False
    _finite(_output(training, Inputs(inputs.values, masks)), "for a sample without one valid step")


def padding(subject: Subject) -> None:
    """Logits do not depend on what stands at steps that the mask calls invalid."""
    for modalities in (TWO, ("text", "motion")):
        training = subject.training(World(modalities))
        train(training, 0, 1)
        inputs = World(modalities).inputs()
        values = dict(inputs.values)
        for m, mask in inputs.masks.items():
            values[m] = torch.where(mask.unsqueeze(-1), values[m], torch.full_like(values[m], 100.0))
        moved = _difference(_output(training, inputs).logits, _output(training, Inputs(values, inputs.masks)).logits)
        expect(moved <= TOLERANCE, f"logits move by {moved:.3g} with the content of padded steps; use the masks")


def _over_variants(test: Callable[[Subject], None], subject: Subject, bounds: bool = True) -> Callable[[], None]:
    """The test over the settings and each with one field changed."""

    def run() -> None:
        for settings in variants(subject.settings, bounds):
            try:
                test(dataclasses.replace(subject, settings=settings))
            except Exception as error:
                error.add_note(f"with {described(settings)}")
                raise

    return run


def _output(training: Training, inputs: Inputs, grad: bool = False) -> Output:
    """Outputs in evaluation mode, for the modalities the fusion uses."""
    with training.quiet(), torch.set_grad_enabled(grad):
        output: Output = training.model(_used(training, inputs))
    return output


def _used(training: Training, inputs: Inputs) -> Inputs:
    used = training.task.modalities
    return Inputs({m: inputs.values[m] for m in used}, {m: x for m, x in inputs.masks.items() if m in used})


def _exact(training: Training, inputs: Inputs) -> bool:
    """Whether there are exact unimodal logits; if so they must add up and each depend on its own modality alone."""
    output = _output(training, inputs)
    exact = output.unimodal.get("exact", {})
    if not exact:
        return False
    used = training.task.modalities
    expect(tuple(exact) == used, f"exact logits: expected one per modality ({', '.join(used)}), found {listed(exact)}")
    off = _difference(torch.stack(list(exact.values())).sum(dim=0), output.logits)
    expect(off <= TOLERANCE, f"exact unimodal logits add up to the joint logits only within {off:.3g}")
    for m in used:
        changed = _output(training, _other(inputs, m)).unimodal["exact"]
        for other in used:
            moved = _difference(exact[other], changed[other])
            expect(other == m or moved == 0, f"exact logits of {other} depend on the input of {m}")
    return True


def _trained_heads(training: Training, inputs: Inputs) -> bool:
    """Whether there are heads with a gradient into their encoder, for all modalities."""
    heads = _output(training, inputs, grad=True).unimodal.get("head", {})
    used = training.task.modalities
    if not heads:
        return False
    expect(
        set(heads) == set(used), f"trained heads: expected one per modality ({', '.join(used)}), found {listed(heads)}"
    )
    return all(_reaches(logits, training, m) for m, logits in heads.items())


def _competes(training: Training, inputs: Inputs) -> bool:
    """Whether there is an attention site; if so it must be measured, report its mass and obey a rotation."""
    sites = training.model.fusion.sites()
    for name, site in sites.items():
        seen: list[SiteSample] = []
        site.tap = seen.append
        try:
            output = _output(training, inputs)
        finally:
            site.tap = None
        expect(len(seen) == 1, f"site {name}: expected its tap to be called once in a forward pass, found {len(seen)}")
        _measured(name, seen[0], training, output)
        before = output.logits
        site.rotate(-torch.eye(site.dim))
        moved = _difference(before, _output(training, inputs).logits)
        expect(moved > 0, f"site {name}: turning the query round does not change the logits")
        site.rotate(-torch.eye(site.dim))
    return bool(sites)


def _measured(name: str, sample: SiteSample, training: Training, output: Output) -> None:
    used = training.task.modalities
    for what, values in (("mean_keys", sample.mean_keys), ("mass", sample.mass), ("base_rate", sample.base_rate)):
        expect(tuple(values) == used, f"site {name}: {what} of {listed(values)}, expected of {', '.join(used)}")
    total = torch.stack(list(sample.mass.values())).sum(dim=0)
    expect(bool(((total >= 0) & (total <= 1 + TOLERANCE)).all()), f"site {name}: attention mass beyond 0 to 1")
    lacking = [m for m in used if f"attention_mass/{m}" not in output.auxiliary]
    expect(not lacking, f"site {name}: auxiliary has no attention_mass/{lacking[0] if lacking else ''}")


def _reaches(values: Tensor, training: Training, modality: str) -> bool:
    """Whether a gradient reaches the modality's encoder."""
    params = list(training.model.encoders[modality].parameters())
    if not values.requires_grad:
        return False
    grads = torch.autograd.grad(values.square().sum(), params, allow_unused=True, retain_graph=True)
    return any(grad is not None and bool(grad.abs().max() > 0) for grad in grads)


def _other(inputs: Inputs, modality: str) -> Inputs:
    """The same samples with one modality taken from their neighbours, mask included."""
    values = {m: x.roll(1, 0) if m == modality else x for m, x in inputs.values.items()}
    return Inputs(values, {m: x.roll(1, 0) if m == modality else x for m, x in inputs.masks.items()})


def _finite(output: Output, where: str) -> None:
    tensors = {"logits": output.logits, **{f"features of {m}": z for m, z in output.features.items()}}
    tensors |= {f"{source} logits of {m}": u for source, found in output.unimodal.items() for m, u in found.items()}
    tensors |= output.auxiliary
    for name, x in tensors.items():
        expect(bool(x.isfinite().all()), f"{name} are not finite {where}")


def _difference(one: Tensor, other: Tensor) -> float:
    value = float((one - other).abs().max())
    return math.inf if math.isnan(value) else value
