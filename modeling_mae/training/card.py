"""The model card."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData


CITATION = """@inproceedings{he2022masked,
  title     = {Masked Autoencoders Are Scalable Vision Learners},
  author    = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and
               Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {CVPR},
  year      = {2022}
}"""


def write_card(
    output_dir: Path,
    *,
    name: str,
    data: str,
    architecture: str,
    arguments: dict,
    results: dict[str, str],
    normalised: bool,
    dataset_id: str,
    dataset_name: str,
    knn: dict[str, float] | None = None,
    knn_split: str | None = None,
    repo_id: str | None = None,
) -> None:
    """README.md of a pre-trained checkpoint: what it is, results, pictures, how to load it, all settings, citation.
    `knn` is accuracy by kind of feature; the trained encoder's goes into the model-index, as of `knn_split`."""
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["mae", "masked-autoencoder", "self-supervised", "vision"],
        datasets=[dataset_id] if "/" in dataset_id else None,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset_id,
                dataset_name=dataset_name,
                dataset_split=knn_split,
                metric_type="accuracy",
                metric_name="k-NN accuracy of frozen features (k = 20)",
                metric_value=round(knn["trained encoder"], 5),
            )
        ]
        if knn
        else None,
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}",
        f"A masked autoencoder ([arXiv 2111.06377](https://arxiv.org/abs/2111.06377)) pre-trained on {data}. "
        f"{architecture}.",
        "## Results",
        table(("", ""), results.items()),
        "![Original, masked and reconstructed images](reconstruction.png)",
        "Visible patches are the image's own."
        + (
            " Patches are predicted normalised; in the picture each gets the mean and deviation of the hidden one."
            if normalised
            else ""
        ),
        "![Loss by epoch](loss.png)",
    ]
    if knn:
        rows = [(key, f"{100 * value:.1f} %") for key, value in knn.items()]
        parts += ["Weighted k-NN (k = 20) on frozen features:", table(("features", "accuracy"), rows)]
    parts += [
        usage(
            repo_id,
            "AutoModel",
            "features = model(**inputs).pooler_output  # (1, width); last_hidden_state has one for each patch",
        ),
        "Features are unmasked, in raster order, deterministic. `AutoModelForPreTraining` loads the decoder too.",
        "## Settings",
        settings_table(arguments),
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    ModelCard("\n\n".join(parts) + "\n").save(output_dir / "README.md")


def usage(repo_id: str | None, auto_class: str, lines: str) -> str:
    """How to load the checkpoint, and `lines` of what to do with `model` and the `inputs` of an image."""
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

`trust_remote_code=True` runs the Python files that lie beside the weights. With the package `modeling_mae` installed,
`import modeling_mae` takes its place: the same classes then come from there."""


def settings_table(arguments: dict) -> str:
    """What was set, without the folders of one machine."""
    hidden = ("output_dir", "train_dir", "validation_dir", "cache_dir", "resume_from_checkpoint", "model_name_or_path")
    shown = {key: value for key, value in arguments.items() if key not in hidden and value not in (None, [], "")}
    return table(("argument", "value"), ((key, f"`{json.dumps(value)}`") for key, value in shown.items()))


def table(head: tuple[str, str], rows) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|--|--|", *(f"| {key} | {value} |" for key, value in rows)]
    return "\n".join(lines)
