"""What stored trainings on one modality reach on test, for the audit of their data set."""

from __future__ import annotations

from bench.data.priors import Score
from bench.store import Store


def unimodal_scores(store: Store, data_fingerprint: str) -> list[Score]:
    """The test accuracy of every finished unimodal trial of one prepared data set, whatever its split."""
    found = []
    for trial in store.finished():
        record = store.read(trial, "record.json")
        if record["data_fingerprint"] != data_fingerprint:
            continue
        spec, scores = store.read(trial, "spec.json"), store.read(trial, "scores.json")
        accuracy = scores.get("test", {}).get("accuracy")
        if spec["fusion"]["name"] != "unimodal" or spec["strategies"] or accuracy is None:
            continue
        samples = int(record["split_sizes"]["test"])
        name = f"{record['method']} (fold {record['fold']}, seed {record['seed']})"
        found.append(Score.of(name, "test", round(accuracy * samples), samples))
    return found
