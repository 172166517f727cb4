"""Writes the report of a pre-training: settings, log, curves, k-NN accuracies, card and page."""

from pathlib import Path
from typing import Any

from ..files import write_json
from .advice import judge_growth, judge_start
from .card import PAPER, Card, write_card
from .facts import DataFacts, FeatureFacts, Identity, MachineFacts, ModelFacts, TrainingLog
from .figures import save_charts
from .run import PRETRAINING, RunFiles, read_run, write_training
from .run_page import lead, write_run_page
from .sections import pretraining_charts, pretraining_sections


def report_pretraining(
    output_dir: Path,
    identity: Identity,
    arguments: dict[str, Any],
    log: TrainingLog,
    data: DataFacts,
    model: ModelFacts,
    machine: MachineFacts,
    features: FeatureFacts,
) -> None:
    """Writes arguments.json, trainer_state.json, summary.json, loss.png, knn.json, README.md and report.html, and
    prints the results. features.png is written if `log` has entries of `FeatureGrowth`, knn.json if k-NN was
    evaluated. `arguments` are the run's settings by name."""
    write_training(output_dir, arguments, log)
    if features.knn:
        write_json(output_dir / "knn.json", features.knn)
    summary = {"kind": PRETRAINING, "name": identity.name, "repo_id": identity.repo_id, **data.summary}
    summary |= {**vars(model), **vars(machine), "updates_per_epoch": log.updates_per_epoch, "k": features.k}
    summary |= {"picture": features.picture, "neighbours": features.neighbours}
    summary |= {"problem": features.problem} if features.problem else {}
    write_json(output_dir / "summary.json", summary)
    run = read_run(output_dir)
    save_charts(output_dir, pretraining_charts(run))
    write_pretraining_card(run, identity, data)
    page = write_run_page(output_dir)
    _print_results(run, data)
    print(f"report     {page}")


def write_pretraining_card(run: RunFiles, identity: Identity, data: DataFacts) -> None:
    """Writes README.md. The k-NN metric of the trained encoder also goes into the metadata that the Hub reads."""
    metrics = []
    if "trained encoder" in run.knn:
        title = f"{run.problem.knn_title} of frozen features (k = {run.summary['k']})"
        metrics = [(run.problem.metric, title, run.knn["trained encoder"])]
    tags = ["mae", "masked-autoencoder", "self-supervised", "vision"]
    sections = pretraining_sections(run)
    about = lead(run, f" ({PAPER})")
    card = Card(identity, about, sections, tags, "image-feature-extraction", data=data, metrics=metrics)
    write_card(run.folder, card)


def _print_results(run: RunFiles, data: DataFacts) -> None:
    folder = run.folder
    if data.skipped:
        print(f"skipped    {data.skipped} of {data.images} images: they cannot be decoded")
    if data.incomplete:
        print(f"filled     {data.incomplete} of {data.images} images: missing values became the mean of their band")
    for features, accuracy in run.knn.items():
        print(f"{run.problem.knn_title}, {features:18} {100 * accuracy:5.1f} %")
    print(f"pictures   {folder / 'reconstruction.png'}  {folder / 'loss.png'}")
    print(f"model      {folder}: MAEModel.from_pretrained({str(folder)!r})")
    if len(run.training.growth) > 1:
        print(f"features   {folder / 'features.png'}: {judge_growth(run.training.growth, run.problem)}")
        if verdict := judge_start(run.training.growth, run.problem):
            print(f"verdict    {verdict}")
