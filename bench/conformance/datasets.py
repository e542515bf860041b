"""Contract tests of a data set: its facts always, its samples where its raw files are there."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from bench import encoders, names, plugins
from bench.api import DataError, DataSet, DataSpec, Item, ModalitySpec, Sample
from bench.conformance.findings import Check, expect
from bench.data.prepared import prepare
from bench.data.splits import SPLITS, num_folds, split_positions
from bench.recipes import RECIPES

FEW = 6
"""Samples of each split that are read."""
Make = Callable[[], DataSet]


def checks(name: str, kind: type[DataSet], settings: Any, code: str, root: Path) -> list[Check]:
    """What a data set has to keep; what needs raw files only where `root` has them."""
    make: Make = partial(kind, settings)
    found = [
        Check("documented", lambda: facts(kind)),
        Check("describes itself without raw files", lambda: describes_without_files(kind)),
    ]
    if make().unusable(root) is not None:
        return found
    tests: Mapping[str, Callable[[Make, Path], None]] = {
        "its specification is complete": specification,
        "samples have unique ids and targets in range": samples,
        "groups do not cross honest splits": honest_splits,
        "reads what it describes": reads,
        "loads the described shapes": loads,
    }
    found += [Check(title, partial(test, make, root)) for title, test in tests.items()]
    found.append(Check("prepared twice it is the same", lambda: prepared_twice(name, kind, settings, code, root)))
    return found


def facts(kind: type[DataSet]) -> None:
    """Docstring, title, source, licence, faults, recipe, and settings that published methods really have."""
    expect(bool((vars(kind).get("__doc__") or "").strip()), f"{kind.__name__}: expected a docstring, found none")
    for fact in ("title", "source", "licence"):
        text = getattr(kind, fact)
        expect(isinstance(text, str) and bool(text.strip()), f"{kind.__name__}.{fact}: expected a text, found {text!r}")
    faults = kind.known_faults
    expect(
        not isinstance(faults, str) and bool(faults) and all(faults),
        f"{kind.__name__}.known_faults: expected a list of sentences (`none known` if none is), found {faults!r}",
    )
    expect(kind.recipe in RECIPES, f"{kind.__name__}.recipe: allowed are {', '.join(RECIPES)}; found {kind.recipe!r}")
    expect(kind.epochs is None or kind.epochs >= 1, f"{kind.__name__}.epochs: expected at least 1, found {kind.epochs}")
    for name, given in kind.published_settings.items():
        where = f"{kind.__name__}.published_settings[{name!r}]"
        names.fill(plugins.load("methods", name, where).plugin.Settings, given, where)


def describes_without_files(kind: type[DataSet]) -> None:
    """In an empty folder it describes itself or says what is missing, and only an embedded one claims to be usable."""
    with tempfile.TemporaryDirectory() as folder:
        dataset, empty = kind(kind.Settings()), Path(folder)
        reason = dataset.unusable(empty)
        if kind.embedded:
            expect(reason is None, f"{kind.__name__} is embedded, yet unusable in an empty folder: {reason}")
        else:
            expect(bool(reason), f"{kind.__name__} needs files, yet says nothing is missing in an empty folder")
        try:
            found = dataset.describe(empty)
        except DataError as error:
            expect(not kind.embedded, f"{kind.__name__} is embedded, yet cannot be described: {error}")
            expect(bool(str(error)), f"{kind.__name__}.describe: expected a DataError that says what is missing")
        else:
            expect(isinstance(found, DataSpec), f"{kind.__name__}.describe: expected a DataSpec, found {found!r}")
        expect(not any(empty.iterdir()), f"{kind.__name__} writes into the folder of raw files")


def specification(make: Make, root: Path) -> None:
    """Modalities have encoders that take their shape; outputs and class names agree."""
    spec = make().describe(root)
    expect(spec == make().describe(root), "describe gives something else a second time")
    expect(len(spec.modalities) >= 1, "expected at least one modality, found none")
    if spec.kind == "classes":
        expect(spec.num_outputs >= 2, f"expected at least two classes, found {spec.num_outputs}")
        named = len(spec.class_names)
        expect(named in (0, spec.num_outputs), f"{spec.num_outputs} classes have {named} names")
    for m, modality in spec.modalities.items():
        np.dtype(modality.dtype)
        small = dataclasses.replace(modality.encoder, depth=1, weights="none")
        encoder = encoders.build(small, modality.shape)
        steps = modality.stored_shape[0] if modality.masked else 0
        mask = torch.ones(2, steps, dtype=torch.bool) if modality.masked else None
        with torch.no_grad():
            tokens = encoder(torch.zeros(2, *modality.shape), mask)
        expect(tokens.x.shape[-1] == small.dim, f"{m}: tokens have width {tokens.x.shape[-1]}, not {small.dim}")


def samples(make: Make, root: Path) -> None:
    """Ids are unique, targets in range, sources complete, and a second instance lists the same."""
    dataset, spec = make(), make().describe(root)
    listed = dataset.samples(root)
    expect(bool(listed), "samples is empty")
    ids = [s.id for s in listed]
    expect(len(set(ids)) == len(ids), f"{len(ids) - len(set(ids))} sample ids are not unique")
    again = make().samples(root)
    expect(listed == again, "samples lists something else in a second instance")
    for s in listed:
        lacking = set(spec.modalities) - set(s.sources)
        expect(not lacking, f"sample {s.id!r} has no source for {', '.join(sorted(lacking))}")
        expect(s.split in (*SPLITS, ""), f"sample {s.id!r} is in split {s.split!r}; allowed: train, val, test or none")
        whole = s.target == int(s.target) if np.isfinite(s.target) else False
        if spec.kind == "classes":
            last = spec.num_outputs - 1
            expect(whole and 0 <= s.target <= last, f"sample {s.id!r}: target {s.target}, allowed 0 to {last}")
        else:
            expect(bool(np.isfinite(s.target)), f"sample {s.id!r}: target {s.target} is not finite")
    if dataset.groups:
        expect(all(s.group for s in listed), f"samples are grouped by {dataset.groups}, but some have no group")


def honest_splits(make: Make, root: Path) -> None:
    """Every honest fold has train, val and test samples that share neither a group nor a stored source."""
    spec, listed = make().describe(root), make().samples(root)
    columns: dict[str, Any] = {
        "sample_id": [s.id for s in listed],
        "group": [s.group for s in listed],
        "split": [s.split for s in listed],
    }
    columns |= {f"row_{m}": pd.factorize(np.array([s.sources[m] for s in listed]))[0] for m in spec.modalities}
    index = pd.DataFrame(columns)
    for fold in range(num_folds(index)):
        try:
            positions = split_positions(index, fold=fold)
        except DataError as error:
            expect(False, f"no honest split: {error}")
        empty = [split for split, found in positions.items() if len(found) == 0]
        expect(not empty, f"the honest split of fold {fold} has no {' and no '.join(empty)} samples")


def reads(make: Make, root: Path) -> None:
    """Items have the stored shape, dtype and mask, and are read alike twice."""
    spec = make().describe(root)
    for m, modality in spec.modalities.items():
        for s in _few(make, root):
            item, again = make().read(root, m, s.sources[m]), make().read(root, m, s.sources[m])
            _item(item, modality, f"{m} of sample {s.id!r}")
            same = np.array_equal(item.values, again.values, equal_nan=True)
            same &= (item.mask is None) == (again.mask is None)
            if item.mask is not None and again.mask is not None:
                same &= np.array_equal(item.mask, again.mask)
            expect(bool(same), f"{m} of sample {s.id!r} is read differently a second time")


def loads(make: Make, root: Path) -> None:
    """A stored batch becomes finite float32 inputs of the described shape, alike twice, each sample for itself."""
    dataset, spec = make(), make().describe(root)
    for m, modality in spec.modalities.items():
        items = [dataset.read(root, m, s.sources[m]).values for s in _few(make, root)]
        stored = torch.from_numpy(np.stack(items).astype(modality.dtype))
        kept = stored.clone()
        loaded = dataset.load(m, stored, None)
        shape = [len(stored), *modality.shape]
        expect(list(loaded.shape) == shape, f"load({m!r}): expected {shape}, found {list(loaded.shape)}")
        expect(loaded.dtype == torch.float32, f"load({m!r}): expected float32, found {loaded.dtype}")
        expect(bool(loaded.isfinite().all()), f"load({m!r}): not all values are finite")
        expect(torch.equal(dataset.load(m, stored, None), loaded), f"load({m!r}) without a generator is not repeatable")
        alone = torch.cat([dataset.load(m, stored[i : i + 1], None) for i in range(len(stored))])
        expect(
            torch.allclose(alone, loaded, atol=1e-5), f"load({m!r}): a sample's input depends on others in its batch"
        )
        augmented = [_augmented(dataset, m, stored) for _ in range(2)]
        expect(list(augmented[0].shape) == shape, f"load({m!r}) augmented: expected {shape}")
        expect(torch.equal(*augmented), f"load({m!r}): augmentation is no function of the generator")
        expect(torch.equal(stored, kept), f"load({m!r}) changes the stored values in place")


def prepared_twice(name: str, kind: type[DataSet], settings: Any, code: str, root: Path) -> None:
    """A few samples, prepared in two folders, get one fingerprint."""
    few = _excerpt(kind)
    prints = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as store:
            prints.append(prepare(name, few(settings), code, root, Path(store)).fingerprint)
    expect(prints[0] == prints[1], f"prepared twice, the fingerprints are {prints[0]} and {prints[1]}")


@cache
def _excerpt(kind: type[DataSet]) -> type[DataSet]:
    """The same data set with the first few samples of every split."""

    class Excerpt(kind):  # type: ignore[valid-type,misc]  # the base is what the caller hands over
        """A few samples."""

        def samples(self, root: Path) -> list[Sample]:
            """The first of every split."""
            return _first(super().samples(root))

    return Excerpt


def _few(make: Make, root: Path) -> list[Sample]:
    return _first(make().samples(root))


def _first(samples_: list[Sample]) -> list[Sample]:
    return [s for split in (*SPLITS, "") for s in [s for s in samples_ if s.split == split][:FEW]]


def _item(item: Item, modality: ModalitySpec, where: str) -> None:
    shape = tuple(item.values.shape)
    expect(shape == modality.stored_shape, f"{where}: expected stored shape {modality.stored_shape}, found {shape}")
    expect(
        np.can_cast(item.values.dtype, np.dtype(modality.dtype), "same_kind"),
        f"{where}: {item.values.dtype} does not fit the stated {modality.dtype}",
    )
    expect(bool(np.isfinite(item.values).all()), f"{where}: not all values are finite")
    if not modality.masked:
        expect(item.mask is None, f"{where}: has a mask, though the modality is not described as masked")
        return
    expect(item.mask is not None, f"{where}: has no mask, though the modality is described as masked")
    if item.mask is not None:
        steps = (modality.stored_shape[0],)
        expect(item.mask.shape == steps, f"{where}: expected a mask {steps}, found {item.mask.shape}")
        expect(item.mask.dtype == np.bool_, f"{where}: expected a mask of booleans, found {item.mask.dtype}")


def _augmented(dataset: DataSet, modality: str, stored: Tensor) -> Tensor:
    return dataset.load(modality, stored, Generator().manual_seed(1))
