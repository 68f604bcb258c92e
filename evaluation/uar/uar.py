"""UAR, the unweighted average recall, as a module of the `evaluate` library; README.md is its card."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import confusion_matrix

NO_CLASS = -100  # what torch's losses and transformers leave out
_DESCRIPTION = """\
Unweighted average recall (UAR): the mean of the recalls of the classes that occur among the references. Also known
as balanced accuracy or macro recall, and the usual metric of speech emotion recognition, where classes are rarely
balanced. A class that is predicted but never occurs among the references has no recall and does not count. The mean
over a single class is no UAR. The reference -100 marks what has no class, and does not count.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `int`): predicted classes.
    references (`list` of `int`): true classes, in the same order, at least two different ones; -100 is left out.

Returns:
    uar (`float`): from 0 to 1.

Raises:
    ValueError: if there are no references, all are of one class, or there are not as many predictions as references.

Examples:

    The path is that of this module's folder, here as seen from the root of a checkout.

    >>> uar = evaluate.load("evaluation/uar")
    >>> results = uar.compute(references=[0, 0, 0, 1], predictions=[0, 0, 1, 1])
    >>> print(round(results["uar"], 4))
    0.8333

    Class 2 never occurs among the references: predicting it is a mistake, but the mean is over classes 0 and 1.

    >>> results = uar.compute(references=[0, 0, 1, 1], predictions=[0, 2, 1, 1])
    >>> print(results)
    {'uar': 0.75}
"""

_CITATION = """\
@inproceedings{schuller2009emotion,
  title = {The {INTERSPEECH} 2009 Emotion Challenge},
  author = {Schuller, Bj{\\"o}rn and Steidl, Stefan and Batliner, Anton},
  booktitle = {Proc. {INTERSPEECH} 2009},
  address = {Brighton, UK},
  pages = {312--315},
  doi = {10.21437/Interspeech.2009-103},
  year = {2009}
}
"""


def uar_and_recalls(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns UARs and recalls of confusion matrices `(..., classes, classes)` with the references in rows.

    Returns:
        UARs `(...)`, over the classes that occur among the references, NaN where fewer than two do; and the recall of
        each class `(..., classes)`, NaN where the class does not occur.
    """
    hits, occurring = np.diagonal(matrices, axis1=-2, axis2=-1), matrices.sum(axis=-1)
    recalls = np.divide(hits, occurring, out=np.full(hits.shape, np.nan), where=occurring > 0)
    return np.where((occurring > 0).sum(axis=-1) > 1, np.nanmean(recalls, axis=-1), np.nan), recalls


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class UAR(evaluate.Metric):
    """The metric class that `evaluate.load` finds."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
            reference_urls=["https://doi.org/10.21437/Interspeech.2009-103"],
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        counted = np.asarray(references) != NO_CLASS
        if not counted.any():
            raise ValueError("there are no references to compute a UAR of; at least one is needed")
        truth, answers = np.asarray(references)[counted], np.asarray(predictions)[counted]
        if (truth == truth[0]).all():
            raise ValueError(
                f"all {len(truth)} references are of the class {truth[0]}; a UAR over one class is not defined"
            )
        uar, _ = uar_and_recalls(confusion_matrix(truth, answers))
        return {"uar": float(uar)}
