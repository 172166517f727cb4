"""The model card."""

import json
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData


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
    knn: dict[str, float] | None = None,
    hub_id: str | None = None,
    repo_id: str | None = None,
) -> None:
    """README.md of a pre-trained checkpoint: what it is, results, pictures, how to load it, all settings, citation."""
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["mae", "masked-autoencoder", "self-supervised", "vision"],
        datasets=[hub_id] if hub_id else None,
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
        "## Use",
        "```python\nimport modeling_mae  # registers the classes with transformers\n"
        "from transformers import AutoImageProcessor, AutoModel\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{repo_id or "PATH_OR_HUB_ID"}")\n'
        f'model = AutoModel.from_pretrained("{repo_id or "PATH_OR_HUB_ID"}").eval()\n'
        'features = model(**processor(image, return_tensors="pt")).pooler_output\n```',
        "Features are unmasked, in raster order, deterministic. `AutoModelForPreTraining` loads the decoder too.",
        "## Settings",
        settings_table(arguments),
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    ModelCard("\n\n".join(parts) + "\n").save(output_dir / "README.md")


def settings_table(arguments: dict) -> str:
    """What was set, without the folders of one machine."""
    hidden = ("output_dir", "train_dir", "validation_dir", "cache_dir", "resume_from_checkpoint", "model_name_or_path")
    shown = {key: value for key, value in arguments.items() if key not in hidden and value not in (None, [], "")}
    return table(("argument", "value"), ((key, f"`{json.dumps(value)}`") for key, value in shown.items()))


def table(head: tuple[str, str], rows) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|--|--|", *(f"| {key} | {value} |" for key, value in rows)]
    return "\n".join(lines)
