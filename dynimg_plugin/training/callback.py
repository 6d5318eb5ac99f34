"""DynImgCallback: makes any HF Trainer or TRL trainer train theta rightly, and says how it goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from dynimg_plugin.loading import restore_weights
from dynimg_plugin.session import core_of
from dynimg_plugin.training import probes
from dynimg_plugin.training.parts import move_theta_apart, theta_norms, theta_parameters, uses_theta
from dynimg_plugin.training.saving import check_adapter

logger = logging.get_logger(__name__)
Evaluate = Callable[[Any], dict[str, float]]


class DynImgCallback(TrainerCallback):
    """To be added to a finished trainer: `trainer.add_callback(DynImgCallback(trainer, theta_lr=1e-2))`.

    Before the first step it gives theta a parameter group of its own (no weight decay, absolute learning rate; the
    schedule applies) and stops when theta could not be trained: frozen, a rotary kernel without gradient, reentrant
    checkpointing; or when the slot embedding of fusion="tokens" is frozen. After the first step on DynImgs it stops
    when their coordinates did not arrive. It logs the norms of theta and slots and the number of broken rows, and draws
    new prompt frames in every epoch.

    Args:
        trainer: a transformers.Trainer or a TRL trainer; its model must be patched (before peft wraps it).
        theta_lr: learning rate of theta.
        evaluate: (model) -> metrics, called at the end and every `evaluate_every` steps, logged as eval_<name>.

    Raises:
        ValueError: the model is not patched.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        theta_lr: float = 1e-2,
        evaluate: Evaluate | None = None,
        evaluate_every: int | None = None,
    ) -> None:
        self.theta_lr, self.evaluate, self.evaluate_every = theta_lr, evaluate, evaluate_every
        self.trainer = trainer
        self.rope = uses_theta(self.trainer.model)
        self._dataset = trainer.train_dataset
        self._made = trainer.create_optimizer
        self._watch: Any = None
        self._arrived = False
        self._log = trainer.log
        self._load = trainer._load_from_checkpoint
        trainer.create_optimizer, trainer.log = self._create_optimizer, self._with_norms  # this instance's only
        trainer._load_from_checkpoint = self._load_checkpoint

    def _create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The trainer's own optimizer with theta apart; called after kernels are in place, before any wrapping."""
        probes.check_slots(self.trainer.model)
        given = self.trainer.optimizer is not None
        optimizer = self._made() if model is None else self._made(model)
        if not self.rope:
            return optimizer
        model = model or self.trainer.model
        probes.check_checkpointing(self.trainer.model, self.trainer.args)
        probes.check_gradient(self.trainer.model)
        if not given:
            move_theta_apart(optimizer, model, self.theta_lr)
        probes.check_theta_group(model, optimizer, theta_parameters(model))
        return optimizer

    def _load_checkpoint(self, folder: str, model: Any = None) -> None:
        """transformers 5.23 loads nothing of a whole LLaVA's checkpoint when it resumes: the names differ."""
        sharded = self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled
        if sharded or hasattr(self.trainer.model, "peft_config"):
            self._load(folder, model)
        else:
            restore_weights(self.trainer.model, folder)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.rope:
            return
        if warning := probes.check_travel(self.theta_lr, state.max_steps):
            logger.warning(warning)
        core, session = core_of(self.trainer.model)
        rotary = next(r for r in session.rotary(core) if r.theta_t.requires_grad)
        self._watch = rotary.register_forward_pre_hook(self._see)

    def _see(self, rotary: Any, args: Any) -> None:
        self._arrived |= rotary.coordinates is not None and bool(rotary.coordinates.any())

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if set_epoch := getattr(self._dataset, "set_epoch", None):
            set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._watch is None or not self._arrived:
            return
        self._watch.remove()
        self._watch = None
        gradients = [theta.grad for theta in theta_parameters(self.trainer.model)]
        if not self.trainer.is_deepspeed_enabled and not any(g is not None and g.norm() > 0 for g in gradients):
            raise ValueError("DynImgs with coordinates went through the model, but theta got no gradient from them")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            check_adapter(self.trainer.model, Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._watch is not None:
            self._watch.remove()
            logger.warning("no DynImg went through the model in this training: theta stayed where it was")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.evaluate is not None and (state.global_step == state.max_steps or self._due(state.global_step)):
            scores, due = self.evaluate(self.trainer.model), control.should_log
            self.trainer.log({f"eval_{name}": score for name, score in scores.items()})
            control.should_log = due  # log() takes it for done

    def _due(self, step: int) -> bool:
        return self.evaluate_every is not None and step % self.evaluate_every == 0

    def _with_norms(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's log() with theta's norms and the number of broken rows in it."""
        if "loss" in logs:
            logs |= {name: round(norm, 5) for name, norm in theta_norms(self.trainer.model).items()}
            if (all_broken := getattr(self._dataset, "all_broken", None)) and (broken := all_broken()):
                logs["broken_rows"] = len(broken)
        self._log(logs, *args, **kwargs)
