"""UAR, the unweighted average recall, as a module of the `evaluate` library; README.md is its card."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import confusion_matrix

_DESCRIPTION = """\
Unweighted average recall (UAR): the mean of the recalls of the classes that occur among the references. Also known
as balanced accuracy or macro recall, and the usual metric of speech emotion recognition, where classes are rarely
balanced. A class that is predicted but never occurs among the references has no recall and does not count.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `int`): predicted classes.
    references (`list` of `int`): true classes, in the same order; at least one.

Returns:
    uar (`float`): from 0 to 1.

Raises:
    ValueError: if there are no references, or not as many predictions as references.

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
        UARs `(...)`, over the classes that occur among the references, and the recall of each class `(..., classes)`,
        which is NaN where the class does not occur.
    """
    hits, occurring = np.diagonal(matrices, axis1=-2, axis2=-1), matrices.sum(axis=-1)
    recalls = np.divide(hits, occurring, out=np.full(hits.shape, np.nan), where=occurring > 0)
    return np.nanmean(recalls, axis=-1), recalls


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
        if not references:
            raise ValueError("there are no references to compute a UAR of; at least one is needed")
        uar, _ = uar_and_recalls(confusion_matrix(references, predictions))
        return {"uar": float(uar)}
