"""The model card of an EvalNet, with its results as the Hub reads them (model-index)."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .card import CITATION, settings_table, table, usage


def write_eval_card(
    output_dir: Path,
    *,
    name: str,
    training: str | None,
    data: str,
    dataset_id: str,
    dataset_name: str,
    split: str,
    results: dict,
    class_names: list[str],
    arguments: dict,
    repo_id: str | None = None,
) -> None:
    """README.md of a classifier. `training` says in a sentence what was trained and on what, None where it was only
    tested; `results` are `classification_results` on `split` of the data set."""
    figures = [("accuracy", "top-1 accuracy"), ("top5_accuracy", "top-5 accuracy"), ("loss", "cross-entropy")]
    figures = [(key, title, results[key]) for key, title in figures if key in results]
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["mae", "masked-autoencoder", "vision"],
        datasets=[dataset_id] if "/" in dataset_id else None,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset_id,
                dataset_name=dataset_name,
                dataset_split=split,
                metric_type=key,
                metric_name=title,
                metric_value=round(value, 5),
            )
            for key, title, value in figures
        ],
    )
    rows = [(title, f"{100 * value:.2f} %" if key != "loss" else f"{value:.4f}") for key, title, value in figures]
    classes = [
        (title, "no image" if value is None else f"{100 * value:.1f} %")
        for title, value in zip(class_names, results["per_class_accuracy"], strict=True)
    ]
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}",
        "An image classifier on the encoder of a masked autoencoder "
        f"([arXiv 2111.06377](https://arxiv.org/abs/2111.06377)). {training or ''}".strip(),
        f"## Results on {data}",
        table(("", ""), rows),
    ]
    if training:
        parts += [
            "Of all epochs the best on these images is kept here; the last one is in `last/`.",
            "![Training loss and accuracy by epoch](training.png)",
        ]
    if len(class_names) <= 100:
        parts += ["![Confusion matrix](confusion.png)", table(("class", "accuracy"), classes)]
    parts += [
        usage(
            repo_id,
            "AutoModelForImageClassification",
            "logits = model(**inputs).logits  # (1, classes)\nprint(model.config.id2label[logits.argmax(-1).item()])",
        ),
        "## Settings",
        settings_table(arguments),
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    ModelCard("\n\n".join(parts) + "\n").save(output_dir / "README.md")


def write_overview(output_dir: Path, name: str, results: str, folders: list[str], data: str, picture: bool) -> None:
    """README.md over several classifiers, which have a folder and a card each: the table of `results`, with `picture`
    also partial.png."""
    metadata = ModelCardData(license="apache-2.0", library_name="transformers", tags=["mae", "vision"])
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}",
        f"Classifiers on the encoder of a masked autoencoder, evaluated on {data}; accuracies in %.",
        f"```\n{results}\n```",
        *(["![Accuracy by blocks tuned](partial.png)"] if picture else []),
        "Each has a folder with weights and a card of its own: "
        + ", ".join(f"[{folder}]({folder}/README.md)" for folder in folders)
        + ".",
    ]
    ModelCard("\n\n".join(parts) + "\n").save(output_dir / "README.md")
