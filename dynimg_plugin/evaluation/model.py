"""LlavaDynImg: the lmms-eval chat model `llava_dynimg`."""

from __future__ import annotations

import gc
import inspect
import logging
import os
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from time import perf_counter
from typing import Any, Self

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from dynimg_plugin.composition import DynImg, compose
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.evaluation.ahead import ComposedVideos, ahead
from dynimg_plugin.evaluation.answer_store import AnswerStore, fingerprint, video_identity
from dynimg_plugin.evaluation.current import Evaluation, Settings, begin
from dynimg_plugin.evaluation.recording import write_records
from dynimg_plugin.evaluation.requests import Question, stop_at, to_question
from dynimg_plugin.evaluation.samples import UNREADABLE
from dynimg_plugin.evaluation.timing import time_vision, wait
from dynimg_plugin.loading import load, stored_config
from dynimg_plugin.ops import Implementation
from dynimg_plugin.processing import DynImgProcessor
from dynimg_plugin.video import VideoError, VideoLimits

logger = logging.getLogger(__name__)

GENERATION = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty")


class LlavaDynImg(lmms):
    """A LLaVA-family checkpoint with DynImgs and 4D RoPE.

    Args:
        pretrained: hub id or folder of the checkpoint.
        adapter: folder of a peft adapter; `peft` is another name for it.
        device: "cuda", "cuda:1", "cpu"; by default CUDA where there is one. Under several processes each takes its own.
        device_map: as in from_pretrained(), instead of `device`.
        dtype: "auto", "float32", "bfloat16" or "float16".
        batch_size: questions that are answered together.
        max_new_tokens: replaces the tasks' own limit.
        prefetch: videos composed ahead of the model in a thread; 0 composes each when its question comes.
        video_timeout: seconds that reading one video may take.
        lora_alpha: another strength of the adapter's LoRA than in training.
        implementation: of 4D RoPE: "auto", "native", "triton" or "reference".
        answers: folder in which every answer is kept at once; a run that was killed goes on from there.
        options: fields of DynImgConfig, e.g. num_images=4, fusion=canvas, rope_4d=False, and of Settings, which our
            tasks read: data_root, prompts, judge_url, judge_model, ...

    Raises:
        ValueError: unknown arguments, with the known ones.
    """

    is_simple = False
    store: AnswerStore | None

    def __init__(
        self,
        pretrained: str | None = None,
        adapter: str | None = None,
        peft: str | None = None,
        device: str | None = None,
        device_map: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_new_tokens: int | None = None,
        prefetch: int = 4,
        video_timeout: float = 60.0,
        implementation: Implementation = "auto",
        lora_alpha: float | None = None,
        answers: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        settings = Settings(**{name: options.pop(name) for name in Settings.names() if name in options})
        if not pretrained:
            raise ValueError("llava_dynimg needs a checkpoint: --model_args pretrained=<hub id or folder>")
        if adapter and peft and adapter != peft:
            raise ValueError(f"adapter={adapter} and peft={peft} are two names for one argument; give one")
        if device and device_map:
            raise ValueError(f"device={device} and device_map={device_map} contradict each other; give one")
        adapter = adapter or peft
        config = None if not options else _with_options(stored_config(pretrained, adapter), options)
        self.accelerator = Accelerator(cpu=str(device).startswith("cpu"))
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        own = self.accelerator.device if self._world_size > 1 or device is None else torch.device(device)
        devices = device_map or {"": str(own)}
        model, processor = load(pretrained, adapter, config, dtype, devices, implementation, lora_alpha)
        processor.limits = VideoLimits(timeout_seconds=video_timeout)
        names = {"checkpoint": str(pretrained), "adapter": adapter and str(adapter), "device": str(device_map or own)}
        self._serve(model, processor, settings, names, int(batch_size), max_new_tokens, prefetch)
        time_vision(self._model, self.measured)
        files = {"base": fingerprint(pretrained), "adapter": fingerprint(adapter)}
        files |= {"implementation": implementation, "lora_alpha": lora_alpha, **self._facts}
        rank = int(os.environ.get("RANK", "0"))  # without CUDA, accelerate calls every process of torchrun number 0
        if answers:
            self.store = AnswerStore(answers, files, rank)
        write_records()

    @classmethod
    def around(cls, model: Any, processor: DynImgProcessor, *, batch_size: int = 1) -> Self:
        """The same for a model that is in memory, e.g. in training; nothing is hung on it or kept of its answers."""
        served = cls.__new__(cls)
        lmms.__init__(served)
        served.accelerator = Accelerator()
        served._rank, served._world_size = served.accelerator.process_index, served.accelerator.num_processes
        names = {"checkpoint": str(model.config.name_or_path), "adapter": None, "device": str(model.device)}
        served._serve(model, processor, Settings(), names, batch_size, None, 2)
        return served

    def _serve(
        self,
        model: Any,
        processor: DynImgProcessor,
        settings: Settings,
        names: dict[str, Any],
        batch_size: int,
        max_new_tokens: int | None,
        prefetch: int,
    ) -> None:
        self._model, self.processor, self.config = model, processor, processor.config
        self.batch_size, self.max_new_tokens, self.prefetch = batch_size, max_new_tokens, prefetch
        self.videos = ComposedVideos(self._compose, keep=prefetch + batch_size + 1, workers=int(prefetch > 0))
        self._ignored: set[str] = set()
        self._facts = {"dtype": str(model.dtype), "dynimg": self.config.to_dict()}
        self.evaluation = begin(Evaluation(settings, names | self._facts, self.config.tokens_per_video))
        self.measured = self.evaluation.measured
        self.store = None

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def model(self) -> Any:
        return self._model

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("llava_dynimg answers by generation; use a generate_until task")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("llava_dynimg answers single-round tasks")

    def generate_until(self, requests: list[Instance]) -> Iterator[GenerationResult]:
        """Answers in the order of the requests, each as soon as its batch is done, so that a killed run can resume."""
        questions = (self._question(request) for request in requests)
        with tqdm(total=len(requests), disable=self._rank != 0, desc="llava_dynimg") as progress:
            for batch in batches(ahead(questions, self.videos, self.prefetch), self.batch_size):
                if batch[0].known is not None:
                    self.measured.reused += len(batch)
                    yield from (question.known for question in batch)
                else:
                    yield from self._kept(batch, self._answer(batch))
                progress.update(len(batch))
        for reason in self.measured.unreadable.values():
            logger.error("not answered, video unreadable: %s", reason)

    def _question(self, request: Instance) -> Question:
        _, to_messages, generation, doc_id, task, split = request.args
        messages = ChatMessages(messages=to_messages(self.task_dict[task][split][doc_id]))
        question = to_question(messages, generation)
        kept = self.store.get(self._identity(question)) if self.store is not None else None
        if kept is not None:
            text, given, made = kept
            question.known = GenerationResult(text, TokenCounts(input_tokens=given, output_tokens=made))
        return question

    def _identity(self, question: Question) -> Any:
        """What an answer depends on beside the model."""
        videos = [video_identity(video) for video in question.videos]
        return [question.conversation, videos, self._generation(question.generation), question.generation.get("until")]

    def _kept(self, batch: list[Question], answers: Iterable[GenerationResult]) -> Iterator[GenerationResult]:
        """The answers, each on disk before it is handed on.

        Not kept is that a video could not be read, which may be mended, and what was drawn at random.
        """
        for question, answer in zip(batch, answers, strict=True):
            drawn = self._generation(question.generation)["do_sample"]
            if self.store is not None and answer.text != UNREADABLE and not drawn:
                counts = answer.token_counts
                self.store.put(self._identity(question), (answer.text, counts.input_tokens, counts.output_tokens))
            yield answer

    def _answer(self, batch: list[Question]) -> Iterator[GenerationResult]:
        """The answers of a batch; a question whose video cannot be read is answered UNREADABLE."""
        images = [self._dynimgs(question) for question in batch]
        readable = [(question, own) for question, own in zip(batch, images, strict=True) if own is not None]
        answers = self._generate([q for q, _ in readable], [own for _, own in readable]) if readable else iter(())
        for own in images:
            yield GenerationResult(text=UNREADABLE) if own is None else next(answers)

    def _dynimgs(self, question: Question) -> list[list[DynImg]] | None:
        try:
            return [self.videos.get(video) for video in question.videos]
        except VideoError as error:
            self.measured.unreadable[error.path] = str(error)
            return None

    def _compose(self, video: Any) -> list[DynImg]:
        seconds: dict[str, float] = {}
        dynimgs = compose(video, self.config, limits=self.processor.limits, seconds=seconds)
        self.measured.add_video(dynimgs[0].record, seconds)
        return dynimgs

    def _generate(self, batch: list[Question], images: list[list[list[DynImg]]]) -> Iterator[GenerationResult]:
        prompts = [self._prompt(question) for question in batch]
        given = images if any(images) else None
        inputs = self.processor(text=prompts, images=given, padding=True, padding_side="left", return_tensors="pt")
        start = inputs["input_ids"].shape[1]
        began = perf_counter()
        with torch.inference_mode():
            ids = self._model.generate(**inputs.to(self.device), **self._generation(batch[0].generation))[:, start:]
        wait(self._model)
        self.measured.add("answer", perf_counter() - began)
        self.measured.questions += len(batch)
        pad = self.processor.tokenizer.pad_token_id
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        for question, row, mask, text in zip(batch, ids, inputs["attention_mask"], texts, strict=True):
            counts = TokenCounts(input_tokens=int(mask.sum()), output_tokens=int((row != pad).sum()))
            yield GenerationResult(text=stop_at(text, question.generation.get("until")), token_counts=counts)

    def _prompt(self, question: Question) -> str:
        """With the assistant's turn opened, or gone on with where the task has begun it."""
        begun = question.conversation[-1]["role"] == "assistant"
        how: dict[str, Any] = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
        return self.processor.apply_chat_template(question.conversation, **how)

    def _generation(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """generate()'s arguments: greedy unless the task asks for sampling or gives a temperature above 0."""
        ignored = set(wanted) - {*GENERATION, "until"} - self._ignored
        if ignored:
            self._ignored |= ignored
            logger.warning("llava_dynimg ignores generation_kwargs %s", ", ".join(sorted(ignored)))
        chosen = {name: wanted[name] for name in GENERATION if wanted.get(name) is not None}
        temperature = chosen.get("temperature")
        sampling = chosen.pop("do_sample", bool(temperature)) and temperature != 0
        if not sampling:
            chosen |= {"temperature": None, "top_p": None, "top_k": None}
        limit = self.max_new_tokens or chosen.get("max_new_tokens", 128)
        return {**chosen, "do_sample": sampling, "max_new_tokens": limit}

    def clean(self) -> None:
        """Keep the model, so that one instance serves several evaluations, e.g. during training."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def batches(questions: Iterable[Question], size: int) -> Iterator[list[Question]]:
    """Up to `size` neighbours that can be answered in one call, in order."""
    for _, group in groupby(questions, key=lambda one: (one.generation, len(one.videos), one.known is not None)):
        while batch := list(islice(group, size)):
            yield batch


def _with_options(config: DynImgConfig, options: dict[str, Any]) -> DynImgConfig:
    try:
        return config.with_options(options)
    except ValueError as error:
        own = [name for name in inspect.signature(LlavaDynImg).parameters if name != "options"] + Settings.names()
        raise ValueError(f"{error}. The model's other arguments: {', '.join(own)}") from error
