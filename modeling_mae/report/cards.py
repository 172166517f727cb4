"""Model cards: of a pre-trained checkpoint, of a classifier, and of several classifiers together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..files import replacing
from .problem import Problem
from .settings import setting_text, shown_settings


PAPER = "[arXiv 2111.06377](https://arxiv.org/abs/2111.06377)"
CITATION = """@inproceedings{he2022masked,
  title     = {Masked Autoencoders Are Scalable Vision Learners},
  author    = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and
               Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {CVPR},
  year      = {2022}
}"""
MAX_CLASSES_SHOWN = 100  # more make a confusion matrix that nobody can read


@dataclass(frozen=True)
class Base:
    """The weights that a training began with: where they come from, and their licence where it is known."""

    source: str
    license: str | None = None
    on_hub: bool = False  # whether `source` is an id on the Hub

    def __str__(self) -> str:
        where = f"[{self.source}](https://huggingface.co/{self.source})" if self.on_hub else f"`{self.source}`"
        licence = f"Their licence is {self.license}." if self.license else "Their licence is not known here."
        return f"The training began with the weights of {where}. {licence}"


def write_pretraining_card(
    output_dir: Path,
    *,
    name: str,
    data: str,
    architecture: str,
    arguments: dict,
    results: dict[str, str],
    picture: str,
    dataset_id: str,
    dataset_name: str,
    knn: dict[str, float] | None = None,
    knn_split: str | None = None,
    k: int | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    neighbours: str = "",
    base: Base | None = None,
) -> None:
    """Writes README.md of a pre-trained checkpoint.

    `knn` is the k-NN accuracy in 0..1 of each kind of features, measured on `knn_split` with `k` neighbours. That of
    "trained encoder" also goes into the metadata that the Hub reads. `picture` and `neighbours` say how
    reconstruction.png and neighbours.png were made; without the second there is no such picture."""
    metrics = []
    if knn:
        metrics = [("accuracy", f"k-NN accuracy of frozen features (k = {k})", knn["trained encoder"])]
    sections = [
        f"A masked autoencoder ({PAPER}) pre-trained on {data}. {architecture}.",
        *([str(base)] if base else []),
        "## Results",
        _table(("", ""), results.items()),
        "![Original, masked and reconstructed images](reconstruction.png)",
        picture,
        "![Loss by epoch](loss.png)",
    ]
    if knn:
        rows = [(features, _percent(accuracy)) for features, accuracy in knn.items()]
        sections += [f"Weighted k-NN (k = {k}) on frozen features:", _table(("features", "accuracy"), rows)]
    if neighbours:
        sections += ["![Images and their nearest neighbours](neighbours.png)", neighbours]
    sections += [
        _usage(
            repo_id,
            "AutoModel",
            "features = model(**inputs).pooler_output  # (1, width); last_hidden_state has one for each patch",
        ),
        "`AutoModel` loads the encoder. It masks nothing: an image always gives the same features, and those of its "
        "patches are in raster order. `AutoModelForPreTraining` loads the decoder too.",
        *_settings_and_citation(arguments),
    ]
    _save_card(
        output_dir,
        name,
        sections,
        license=license,
        pipeline_tag="image-feature-extraction",
        tags=["mae", "masked-autoencoder", "self-supervised", "vision"],
        model_name=name,
        base_model=base.source if base and base.on_hub else None,
        datasets=_hub_datasets(dataset_id),
        eval_results=_hub_results(metrics, dataset_id, dataset_name, knn_split),
    )


def write_classifier_card(
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
    problem: Problem,
    arguments: dict,
    repo_id: str | None = None,
    license: str | None = None,
    base: Base | None = None,
) -> None:
    """Writes README.md of a classifier.

    `training` is a sentence on how it was trained, or None if it was only tested. `results` are its accuracies and
    its loss on `split` of the data set. `data` describes the images of that split."""
    metrics = [
        (metric, title, results[metric]) for metric, title in problem.titles.items() if results.get(metric) is not None
    ]
    sections = [
        f"{problem.model} on the encoder of a masked autoencoder ({PAPER}). {training or ''}".strip(),
        *([str(base)] if base else []),
        f"## Results on {data}",
        _table(
            ("", ""),
            [
                (title, _percent(value, 2) if metric in problem.shares else f"{value:.4f}")
                for metric, title, value in metrics
            ],
        ),
    ]
    if training:
        sections += [
            f"These weights are from the epoch with the best {problem.metric_title} on these images. Those of the "
            "last epoch are in `last/`.",
            f"![Training loss and {problem.metric_title} by epoch](training.png)",
        ]
    if len(class_names) <= MAX_CLASSES_SHOWN:
        sections += _each_label(results, class_names, problem)
    sections += [
        _usage(repo_id, problem.auto_class, problem.usage),
        *_settings_and_citation(arguments),
    ]
    _save_card(
        output_dir,
        name,
        sections,
        license=license,
        pipeline_tag=problem.hub_task,
        tags=["mae", "masked-autoencoder", "vision"],
        model_name=name,
        base_model=base.source if base and base.on_hub else None,
        datasets=_hub_datasets(dataset_id),
        eval_results=_hub_results(metrics, dataset_id, dataset_name, split, problem.hub_task),
    )


def _each_label(results: dict, names: list[str], problem: Problem) -> list[str]:
    """The sections about the classes, or the targets of a regression."""
    key, word, title = problem.each
    sections = ["![Confusion matrix](confusion.png)"] if "confusion_matrix" in results else []
    if key not in results:
        return sections
    shown = _percent if problem.is_share else "{:.4f}".format
    return [*sections, _table((word, title), zip(names, map(shown, results[key]), strict=True))]


def write_overview_card(
    output_dir: Path,
    name: str,
    results: list[list[str]],
    folders: list[str],
    data: str,
    picture: bool,
    problem: Problem,
    license: str | None = None,
) -> None:
    """Writes README.md over several classifiers, each of which has its own folder and card.

    `results` are the cells of a table of all of them, the head first. `picture` says whether there is a partial.png
    to show."""
    links = ", ".join(f"[{folder}]({folder}/README.md)" for folder in folders)
    title = problem.metric_title.capitalize()
    sections = [
        f"Classifiers on the encoder of a masked autoencoder, evaluated on {data}. {problem.unit}".strip(),
        _table(results[0], results[1:]),
        *([f"![{title} by blocks tuned](partial.png)"] if picture else []),
        f"Each classifier has its own folder with its weights and its card: {links}.",
    ]
    _save_card(output_dir, name, sections, license=license, tags=["mae", "vision"])


# --- what the cards share ---


def _save_card(output_dir: Path, name: str, sections: list[str], **metadata) -> None:
    """Puts the metadata and the title before the sections. `metadata` are keywords of ModelCardData.

    Without a `license` the card names none: weights may be used as their owner says, and only the owner can say it."""
    header = ModelCardData(library_name="transformers", **metadata).to_yaml()
    card = ModelCard("\n\n".join([f"---\n{header}\n---", f"# {name}", *sections]) + "\n")
    with replacing(Path(output_dir) / "README.md") as partial:
        card.save(partial)


def _hub_datasets(dataset_id: str) -> list[str] | None:
    """The data sets that the Hub can link to. A name without an owner is of a folder, which the Hub does not know."""
    return [dataset_id] if "/" in dataset_id else None


def _hub_results(
    metrics: list[tuple[str, str, float]],
    dataset_id: str,
    dataset_name: str,
    split: str | None,
    task: str = "image-classification",
) -> list[EvalResult] | None:
    """The model-index, in which the Hub looks for results. `metrics` are (type, title, value)."""
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset_id,
            dataset_name=dataset_name,
            dataset_split=split,
            metric_type=metric,
            metric_name=title,
            metric_value=round(value, 5),
        )
        for metric, title, value in metrics
    ] or None


def _usage(repo_id: str | None, auto_class: str, lines: str) -> str:
    """How to load the checkpoint. `lines` show what to do with `model` and the `inputs` made of an image."""
    checkpoint = repo_id or "PATH_OR_HUB_ID"
    return f"""## Use

```python
from PIL import Image
from transformers import AutoImageProcessor, {auto_class}

processor = AutoImageProcessor.from_pretrained("{checkpoint}", trust_remote_code=True)
model = {auto_class}.from_pretrained("{checkpoint}", trust_remote_code=True).eval()
inputs = processor(Image.open("photograph.jpg"), return_tensors="pt")
{lines}
```

`trust_remote_code=True` runs the Python files that are stored with the weights. If you have installed the package
`modeling_mae`, write `import modeling_mae` instead: the same classes then come from the package."""


def _settings_and_citation(arguments: dict) -> list[str]:
    rows = [(name, f"`{setting_text(value)}`") for name, value in shown_settings(arguments).items()]
    return ["## Settings", _table(("setting", "value"), rows), "## Citation", f"```bibtex\n{CITATION}\n```"]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. Columns after the first stand right where there are several of them."""
    rule = "|--|" + ("--:|" if len(head) > 2 else "--|") * (len(head) - 1)
    lines = [f"| {' | '.join(map(_cell, cells))} |" for cells in (head, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _percent(accuracy: float | None, digits: int = 1) -> str:
    """None is the accuracy of a class without an image."""
    return "no image" if accuracy is None else f"{100 * accuracy:.{digits}f} %"
