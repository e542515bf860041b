"""What can be asked of finished trials: `bench analyse NAME`. An analysis is one file with one class.

`measure` answers for one trial and is kept by trial, settings and code; `tables` and `figures` put the answers of all
rows together, seeds in intervals, and are made again whenever a report is. An analysis never trains and never prints::

    class Sharpness(Analysis):
        name, title, paper = "sharpness", "How sure a model is", "RollingQ, ICML 2025, section 5"

        @dataclass(frozen=True)
        class Settings(api.Settings):
            split: str = setting("test", choices=("val", "test"), help="which samples")  # --set sharpness.split=val

        def skips(self, spec: TrialSpec, task: TaskSpec) -> str | None:
            return None if task.kind == "classes" else "regression has no probabilities"  # a reason, or None

        def measure(self, trial: LoadedTrial) -> Measurement:  # trial.logits, .evaluate, .truth, .index, .model, ...
            likely = softmax(trial.logits(self.settings.split), axis=1).max(axis=1)
            return Measurement({"mean": float(likely.mean())}, {"per_sample": likely})  # plain values; arrays

        def tables(self, rows: Sequence[Row]) -> list[Table]:  # named `sharpness` or `sharpness_...`
            return [table_of(self.name, self.title, rows, lambda row: row.interval("mean"))]

        def figures(self, rows: Sequence[Row]) -> dict[str, str]:  # ending of the file name -> SVG; optional
            return {}

Every number in `values` becomes a metric `analysis/sharpness/mean` of the trial's MLflow run. A new analysis is added
to `bench.analysis.registry`. What it needs of a trial is in `loaded`, of a row in `contract`, to disturb inputs or
tokens in `changes`, to lay out tables in `layout`.
"""
