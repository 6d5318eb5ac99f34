"""Metadata of dynimg_plugin. `patches/` and `eval_tasks/` lie at the top level and are installed inside the package."""

import os
import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
BUILD = runpy.run_path(str(ROOT / "dynimg_plugin" / "ops" / "build.py"))  # the package itself would import torch
MAPPED = {"dynimg_plugin.patches": "patches", "dynimg_plugin.eval_tasks": "eval_tasks"}


def version() -> str:
    lines = (ROOT / "dynimg_plugin" / "__init__.py").read_text(encoding="utf-8").splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("__version__"))


def packages() -> list[str]:
    inside = find_packages(include=["dynimg_plugin", "dynimg_plugin.*"])
    for name, folder in MAPPED.items():
        inside += [name, *(f"{name}.{sub}" for sub in find_packages(folder))]
    return inside


setup(
    name="dynimg_plugin",
    version=version(),
    description="DynImg (arXiv 2507.15569) for existing video language models: temporal prompts and learnable 4D RoPE",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=packages(),
    package_dir=MAPPED,
    package_data={
        "dynimg_plugin.eval_tasks": ["**/*.yaml", "**/*.jsonl", "**/_*_yaml"],
        "dynimg_plugin": ["py.typed", "_build.json", "csrc/*", "checkpoints/**/*"],
    },
    install_requires=[
        "accelerate>=1.10",
        "datasets>=3",
        "av>=14,<16",  # lmms-eval 0.7 asks for av<16
        "einops>=0.8",
        "filelock<4.3",  # lmms-eval 0.7 patches a module of it that is gone since
        "lmms-eval>=0.7.3,<0.8",
        "numpy>=1.26",
        "peft>=0.17",
        "pillow>=10",
        "pyyaml>=6",
        "safetensors>=0.4",
        "setuptools>=64",  # torch.utils.cpp_extension needs it: dynimg build-ext
        "huggingface-hub>=0.34",
        "packaging>=23",
        "tokenizers>=0.22",
        "torch>=2.6",
        "torchvision>=0.21",
        "tqdm>=4.60",
        "transformers>=4.57,<6",
        "typer>=0.12",
    ],
    extras_require={
        "train": ["trl>=1.0"],
        "families": ["num2words>=0.5", "timm>=1.0"],  # for SmolVLM and PerceptionLM, and timm's towers
        "study": ["matplotlib>=3.8", "scipy>=1.11"],  # the report of benchmarks/motion
        "dev": [
            "dynimg_plugin[families,study]",
            "hypothesis>=6",
            "liger-kernel>=0.6; sys_platform == 'linux'",  # a rotary kernel that gives theta no gradient
            "mypy>=1.11",
            "pytest>=8",
            "pytest-xdist>=3.2",
            "ruff>=0.6",
            "setuptools>=64",
            "trl>=1.0",
            "wheel",
        ],
    },
    entry_points={
        "console_scripts": ["dynimg = dynimg_plugin.cli:main"],
        "lmms_eval.models": ["dynimg = dynimg_plugin.evaluation.manifest:manifests"],
    },
    **BUILD["setup_arguments"](os.environ.get("DYNIMG_BUILD", "auto")),
    classifiers=["Programming Language :: Python :: 3.11", "Programming Language :: Python :: 3.12"],
)
