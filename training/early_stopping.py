"""When to stop: after so many evaluations without a better average UAR."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback


class EarlyStopping(EarlyStoppingCallback):
    """Ends the training after so many evaluations, over all corpora, without a better average UAR.

    transformers' own asks after each corpus's evaluation, whose metrics have no average.
    """

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Nothing: one corpus does not decide."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Counts, when the averages are logged."""
        if logs and f"eval_{args.metric_for_best_model.removeprefix('eval_')}" in logs:
            super().on_evaluate(args, state, control, logs, **kwargs)
