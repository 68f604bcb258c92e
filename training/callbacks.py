"""What `Trainer` calls back: the progress bar of rounds, early stopping, and what looks after a run."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback

from exhubert.training.interruption import EvaluationCutShort
from exhubert.training.round_robin import RoundRobinSampler
from exhubert.utils.command import progress_bar


class Safeguards(TrainerCallback):
    """Calls the trainer, a `RoundRobinTrainer`, where it has to look after something; the last of the callbacks."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.check_update()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.ending:
            raise self.trainer.interrupted()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.any_process(self.trainer.signals.received)[0]:
            raise EvaluationCutShort


class EarlyStopping(EarlyStoppingCallback):
    """Ends the training after so many evaluations, over all corpora, without a better average.

    transformers' own asks after each corpus's evaluation, whose metrics have no average.
    """

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Nothing: one corpus does not decide."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and f"eval_{args.metric_for_best_model.removeprefix('eval_')}" in logs:
            super().on_evaluate(args, state, control, logs, **kwargs)

    def count(self, scores: list[float]) -> bool:
        """Sets the counter to what the averages so far say; returns whether they end the run."""
        self.early_stopping_patience_counter = len(scores) - 1 - scores.index(max(scores)) if scores else 0
        return self.early_stopping_patience_counter >= self.early_stopping_patience


class RoundProgress(ProgressCallback):
    """The progress bar names round, corpus, loss, UAR and CCC; each evaluation leaves one line."""

    def __init__(self, corpora: list[str], sampler: RoundRobinSampler) -> None:
        super().__init__()
        self.corpora = corpora
        self.sampler = sampler
        self.last: dict[str, float] = {}
        self.training_bar: Any
        self.prediction_bar: Any

    def close(self) -> None:
        """Ends the bars' lines, so that what is said next has one of its own."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()
        self.prediction_bar = self.training_bar = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.current_step = 0
        if state.is_world_process_zero:
            self.training_bar = progress_bar(total=state.max_steps)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            if self.prediction_bar is None:
                self.prediction_bar = progress_bar(total=len(eval_dataloader), leave=self.training_bar is None)
            self.prediction_bar.update(1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            update = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
            batches = state.global_step * update // self.sampler.batch_size
            round_, position = divmod(batches - 1, len(self.corpora))
            one_corpus = update == self.sampler.batch_size and not self.sampler.proportional
            where = f", {self.corpora[position]}" if one_corpus else ""
            self.training_bar.set_description(f"round {round_ + 1}{where}", refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is None:
            return
        logs = logs or {}
        found = {name.removeprefix("eval_"): value for name, value in logs.items() if name.endswith(("_uar", "_ccc"))}
        self.last |= found or {name: value for name, value in logs.items() if name == "loss"}
        names = {"loss": "loss", "average_uar": "UAR", "average_ccc": "CCC"}
        shown = {text: f"{self.last[name]:.3f}" for name, text in names.items() if name in self.last}
        self.training_bar.set_postfix(shown, refresh=False)
        lines = []
        for score, text, factor, digits in (("uar", "UAR in %", 100, 1), ("ccc", "CCC", 1, 3)):
            if f"average_{score}" in found:
                known = {name: self.last.get(f"{name}_{score}") for name in (*self.corpora, "average")}
                values = [f"{name} {factor * value:.{digits}f}" for name, value in known.items() if value is not None]
                lines.append(f"{text}: {', '.join(values)}")
        if lines:
            self.training_bar.write(f"update {state.global_step}: validation {'; '.join(lines)}")
