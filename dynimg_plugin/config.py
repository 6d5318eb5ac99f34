"""DynImgConfig: the paper's numbers as one frozen dataclass; what follows from them is a property."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

CONFIG_NAME = "dynimg_config.json"
FORMAT_VERSION = 1
BUDGET = ("keep", "keep_policy")

Sampling = Literal["auto", "iframe", "uniform", "motion"]
Fusion = Literal["canvas", "tokens", "after", "none"]
PromptAttention = Literal["joint", "apart"]
Pool = Literal["region", "plain"]
TMode = Literal["slot", "time"]
ThetaScope = Literal["shared", "per_layer"]
Aspect = Literal["stretch", "auto", "keep"]
Resize = Literal["exact", "fast"]
Newline = Literal["auto", "grid", "frame", "one_token", "no_token"]
KeepPolicy = Literal["motion", "similarity", "uniform"]


@dataclass(frozen=True)
class DynImgConfig:
    """Everything that decides what a DynImg looks like and how the language model reads it.

    The defaults are the paper's (arXiv 2507.15569); fields marked "our choice" fill what its text leaves open.

    Attributes:
        num_images: DynImgs per video (paper: 4; ablation: 1, 4, 16).
        num_prompts: non-key frames under each key frame (paper: 4; ablation: 1, 2, 4, 6, 12); divides `pooled_size`.
        fusion: how prompt frames enter. "canvas": inside the DynImg (the paper); "tokens": as further tokens of the
            vision tower's own sequence, beside a key frame that keeps all its pixels (ours); "after": encoded apart
            and appended (the paper's ablation); "none": key frames alone. All give the same number of visual tokens.
        prompt_attention: with fusion="tokens", whether key frame and prompts see one another in the tower ("joint") or
            are masked from one another ("apart", an ablation: the key frame's features are the plain tower's).
        rope_4d: learnable (t, h, w) angles on top of the language model's own rotary embedding.
        theta_scope: one set of theta for all layers ("shared", our choice) or one per decoder layer.
        t_mode: t of a frame. "slot": ..., -2, -1, 0, 1, 2, ... around its key frame; "time": the real time over the
            whole clip, unit = mean distance between sampled frames (our choice).
        pool: "region" pools each frame's patches apart, so that no cell mixes two frames (our choice); "plain" pools
            the whole grid, as in the paper's recipe.
        pooled_size: rows and columns of the pooled grid (paper: 12 -> 144 tokens per DynImg).
        sampling: "auto": I-frames where there are enough, in-between frames for the rest (our choice); "iframe": only
            I-frames, repeated when too few (the paper's words); "uniform": equal steps, I-frames ignored; "motion":
            prompt frames where the codec spent most bytes, so where most changes (ours).
        aspect: "stretch" every frame to its rectangle (what the towers' own preprocessing does); "auto": stretch at
            most by 2 and letterbox the rest; "keep": letterbox only.
        resize: "exact": bicubic with antialiasing from the full picture; "fast": the decoder's own bicubic scaler.
        fast_between: while walking to an in-between frame, skip frames that no other needs; changes pixels (ours).
        newline: where LLaVA's newline token stands among a video's tokens, in the words of its `mm_newline_position`:
            "grid" after every row of pooled cells, "frame" after every DynImg, "one_token" after the video, "no_token"
            nowhere; "auto": as the checkpoint's config says, nowhere where it says nothing (our choice).
        keep: share of every DynImg's pooled tokens that the language model gets, above 0 to 1 (ours; see `budget`). It
            may differ from training to use.
        keep_policy: which are kept. "similarity": those least like one another; "motion": prompt cells that differ from
            their key frame and key cells that no prompt repeats; "uniform": everywhere the same, evenly spread. The
            default is the one that cost models trained on all tokens least (docs/study.md).
        grid: patch rows (= columns) of the vision tower; None until a checkpoint is known, then 27 is assumed.
        patch_size: pixels of one patch's side; None until a checkpoint is known, then 14 is assumed.

    Raises:
        ValueError: for a value outside the sets above; the message names the value and the allowed ones.
    """

    num_images: int = 4
    num_prompts: int = 4
    fusion: Fusion = "canvas"
    prompt_attention: PromptAttention = "joint"
    rope_4d: bool = True
    theta_scope: ThetaScope = "shared"
    t_mode: TMode = "slot"
    pool: Pool = "region"
    pooled_size: int = 12
    sampling: Sampling = "auto"
    aspect: Aspect = "stretch"
    resize: Resize = "exact"
    fast_between: bool = False
    newline: Newline = "auto"
    keep: float = 1.0
    keep_policy: KeepPolicy = "similarity"
    grid: int | None = None
    patch_size: int | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            _check_value(name, getattr(self, name), hint)
        divisors = [n for n in range(1, self.pooled_size + 1) if self.pooled_size % n == 0]
        if self.num_prompts not in divisors:
            raise ValueError(
                f"num_prompts={self.num_prompts} does not divide the pooled row of {self.pooled_size} cells; "
                f"allowed: {', '.join(map(str, divisors))} (for no prompts at all: fusion='none')"
            )
        if self.keep < 1 and self.keep_policy == "motion" and self.fusion == "none":
            raise ValueError(
                "keep_policy='motion' compares prompts with their key frame, and fusion='none' has no prompts; "
                "take 'similarity' or 'uniform'"
            )
        if not self.keeps_all and self.newline not in ("auto", "no_token"):
            raise ValueError(
                f"keep={self.keep} drops tokens between the newline tokens of newline={self.newline!r}; take "
                "newline='no_token' or keep=1.0"
            )
        if self.prompt_attention != "joint" and self.fusion != "tokens":
            raise ValueError(
                f"prompt_attention={self.prompt_attention!r} belongs to fusion='tokens'; fusion is {self.fusion!r}"
            )

    @property
    def frames_per_image(self) -> int:
        """Frames of one DynImg: the key frame and its prompts."""
        return 1 if self.fusion == "none" else 1 + self.num_prompts

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of one DynImg without newline tokens, 144 by default, 58 with keep=0.4."""
        return max(1, round(self.keep * self.pooled_size**2))

    @property
    def keeps_all(self) -> bool:
        """Whether no token of a DynImg is dropped."""
        return self.tokens_per_image == self.pooled_size**2

    @property
    def tokens_per_video(self) -> int:
        """Visual tokens of one video with its newline tokens, 576 by default, 624 with newline="grid"."""
        return self.num_images * self.tokens_per_image + self.num_newlines(self.num_images)

    def num_newlines(self, images: int) -> int:
        """Newline tokens among the tokens of so many DynImgs.

        Raises:
            ValueError: with newline="one_token", DynImgs that are no whole videos.
        """
        if self.newline != "one_token":
            return images * {"grid": self.pooled_size, "frame": 1}.get(self.newline, 0)
        if images % self.num_images:
            raise ValueError(
                f"newline='one_token' ends every video of num_images={self.num_images} DynImgs, but {images} came "
                "for one image token; give whole videos, or all of a video's DynImgs for one image token"
            )
        return images // self.num_images

    @property
    def canvas_size(self) -> int:
        """Width of a DynImg in pixels, and its height but for fusion="tokens"; 27 * 14 = 378 by default."""
        return (self.grid or 27) * (self.patch_size or 14)

    def on_tower(self, *, grid: int, patch_size: int, newline: Newline | None = None) -> Self:
        """This config on a vision tower with `grid` x `grid` patches of `patch_size` pixels.

        Args:
            newline: where the checkpoint was trained with newline tokens; fills in "auto" alone.

        Raises:
            ValueError: when the config already names another grid or patch size.
        """
        for name, given, found in (("grid", self.grid, grid), ("patch_size", self.patch_size, patch_size)):
            if given not in (None, found):
                raise ValueError(f"{name}={given} was asked for, but the checkpoint's vision tower has {found}")
        as_trained = newline if newline and self.newline == "auto" else self.newline
        return replace(self, grid=grid, patch_size=patch_size, newline=as_trained)

    def fits(self, trained: DynImgConfig) -> bool:
        """Whether weights trained with `trained` can be used with this config: only the token budget may differ."""
        other = trained.to_dict()
        return all(value == other[name] or name in BUDGET for name, value in self.to_dict().items())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a mapping; an unknown name raises a ValueError that lists the known ones."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown DynImg option(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return cls(**values)

    def with_options(self, options: dict[str, Any]) -> Self:
        """This config with some fields replaced by name; as from_dict(), an unknown name raises a ValueError."""
        return self.from_dict({**self.to_dict(), **options})

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `dynimg_config.json` into `folder` (made when missing) and return its path."""
        path = Path(folder) / CONFIG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"format_version": FORMAT_VERSION, **self.to_dict()}, indent=2) + "\n", "utf-8")
        return path

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read `dynimg_config.json` from `folder`; FileNotFoundError or ValueError say what is missing or newer."""
        path = Path(folder) / CONFIG_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} has no {CONFIG_NAME}; write one with DynImgConfig(...).save_pretrained()"
            )
        values = json.loads(path.read_text("utf-8"))
        found = values.pop("format_version", None)
        if found != FORMAT_VERSION:
            raise ValueError(f"{path} has format_version {found}, this release reads {FORMAT_VERSION}; upgrade it")
        return cls.from_dict(values)


def _check_value(name: str, value: Any, hint: Any) -> None:
    """Raise a ValueError when `value` is not of its field's type: one of a set of words, a truth value or a count."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name}={value!r} is not known; allowed: {', '.join(get_args(hint))}")
    elif hint is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} is not a truth value; allowed: True, False")
    elif hint is float:
        if type(value) not in (int, float) or not 0 < value <= 1:
            raise ValueError(f"{name}={value!r} is not allowed; it takes a number above 0, at most 1")
    elif not (value is None and type(None) in get_args(hint)) and (type(value) is not int or value < 1):
        raise ValueError(f"{name}={value!r} is not allowed; it takes a whole number of at least 1")
