"""Hyper-parameter search by something that does not move with alpha."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class SearchMixin(_Base):
    """Gives ``Trainer.hyperparameter_search`` another default objective."""

    # The names of what compute_metrics gave, under each evaluation set's own prefix; a dict keeps their order.
    _task_metrics: dict[str, None]

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, float]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Search as Trainer does, by default for something that does not move with alpha.

        The default objective is ``metric_for_best_model`` if set, else the sum of what
        ``compute_metrics`` gives, as Trainer's, else the label loss. The total ``eval_loss`` is no
        objective: alpha weighs its parts, so it falls where alpha favours the smaller one.
        """
        return super().hyperparameter_search(
            hp_space, compute_objective or self._search_objective, *args, **kwargs
        )

    def _search_objective(self, metrics: dict[str, float]) -> float:
        best = self.args.metric_for_best_model
        if best is not None and best not in ("loss", "eval_loss"):
            wanted = [best if best.startswith("eval_") else f"eval_{best}"]
        else:  # several evaluation sets have a prefix each
            of_label = [name for name in metrics if name.startswith("eval_") and name.endswith("loss/label")]
            wanted = [name for name in self._task_metrics if name in metrics] or of_label
        if not wanted or not metrics.keys() >= set(wanted):
            raise ValueError(
                f"hyperparameter_search: expected {wanted[0] if wanted else 'labels or compute_metrics'}, which does "
                f"not move with alpha, to search by, received the metrics {sorted(metrics)}. Give compute_objective=, "
                "compute_metrics=, labels in the evaluation set, or metric_for_best_model."
            )
        return sum(metrics[name] for name in wanted)
