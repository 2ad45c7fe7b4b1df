"""The classifier two-sample test: can a classifier tell generated images from real ones?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genfast.errors import InputError

Matrix = npt.NDArray[np.float64]

MIN_IMAGES = 20
"""Fewest images per side: below this the interval spans nearly the whole scale."""


@dataclass(frozen=True)
class TwoSampleResult:
    """What `two_sample_test` found.

    Attributes:
        accuracy: Share of images put on the right side, out of fold; 0.5 is chance.
        low: Lower end of the 95 % interval for `accuracy`.
        high: Upper end of the 95 % interval for `accuracy`.
        auc: Area under the ROC curve, mean over the folds; 0.5 is chance.
        p_value: Probability of at least this accuracy if both sides had one distribution.
        n: Images judged, both sides together.
        folds: Accuracy in each fold.
        classifier: Which classifier was trained.
        permutations: Label permutations behind `p_value`; 0 when it is the normal approximation.
    """

    accuracy: float
    low: float
    high: float
    auc: float
    p_value: float
    n: int
    folds: tuple[float, ...]
    classifier: str
    permutations: int

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return {**asdict(self), "folds": list(self.folds)}


def _logistic(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))


def _forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    # An odd number of trees leaves no ties to be broken always towards the same side.
    return RandomForestClassifier(n_estimators=101, min_samples_leaf=2, random_state=seed)


def _mlp(seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((64,), alpha=1e-2, max_iter=60, random_state=seed)
    return make_pipeline(StandardScaler(), network)


def _knn(seed: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(n_neighbors=9)


CLASSIFIERS: dict[str, Callable[[int], Any]] = {
    "logistic": _logistic,
    "forest": _forest,
    "mlp": _mlp,
    "knn": _knn,
}


def two_sample_test(
    real: object,
    generated: object,
    *,
    classifier: str = "logistic",
    folds: int = 5,
    seed: int = 0,
    permutations: int = 0,
) -> TwoSampleResult:
    """Classifier two-sample test between two sets of images.

    1. Label the real images one way and the generated ones the other, in equal numbers: the larger
       side is subsampled with `seed`.
    2. Train the classifier on all but one of `folds` stratified folds, judge the fold left out, for
       each fold in turn; so every image is judged once, by a classifier that never saw it.
    3. `accuracy` is the share judged rightly. 0.5: the classifier cannot tell the sides apart. 1.0:
       it always can. Well below 0.5: images of one side are near copies of images of the other.

    The interval. Judgements of one cross-validation are not independent, because each image also
    trains the classifiers that judge the others, and the plain binomial interval is too narrow: on
    halves of the digits the accuracy's variance is 1.0 to 1.8 times the binomial one, by classifier
    and size. The folds' correlation is taken as 1/folds, which multiplies the variance p(1-p)/n by
    k = 1 + folds/(folds-1), and the interval is Wilson's score interval at n/k images. `p_value` is
    the normal tail at the same variance. Both err on the careful side. With `permutations`,
    `p_value` is instead the share of label permutations (the observed one included) with an
    accuracy at least as high: exact for any number of images, at the price of `permutations`
    further cross-validations.

    Swapping the two sides changes nothing, bit for bit. The same seed gives the same result.

    Args:
        real: `[N, ...]` tensor, array or ImageDataset; finite numbers, any dtype.
        generated: `[M, ...]` likewise, same shape per image.
        classifier: "logistic" (linear), "forest", "mlp" or "knn".
        folds: Number of folds, 2 or more.
        seed: Decides the subsample, the folds and the classifier's randomness.
        permutations: 0, or how many label permutations to run.

    Raises:
        InputError: Shapes differ, a side has fewer than 20 images or a value that is not finite,
            `classifier` is unknown, `folds` or `permutations` is out of range.

    Source: Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests" (ICLR 2017), section 3.
    Interval: Nadeau and Bengio, "Inference for the Generalization Error" (2003), section 3, for the
    variance; Wilson (1927) for the interval.
    """
    first, second = _matrix("real", real), _matrix("generated", generated)
    if first.shape[1:] != second.shape[1:]:
        raise InputError(
            "two_sample_test: expected images of one shape, "
            f"got real={tuple(first.shape[1:])}, generated={tuple(second.shape[1:])}"
        )
    if classifier not in CLASSIFIERS:
        known = ", ".join(CLASSIFIERS)
        raise InputError(
            f"two_sample_test: expected classifier from {known}, got classifier={classifier!r}"
        )
    size = min(len(first), len(second))
    if not 2 <= folds <= size:
        raise InputError(f"two_sample_test: expected folds from 2 to {size}, got folds={folds}")
    if permutations < 0:
        raise InputError(
            f"two_sample_test: expected permutations >= 0, got permutations={permutations}"
        )
    # One order of the sides, whatever the order of the arguments, makes the test symmetric.
    if first.tobytes() > second.tobytes():
        first, second = second, first
    rng = np.random.default_rng(seed)
    sides = [_subsample(side.reshape(len(side), -1), size, rng) for side in (first, second)]
    pooled = np.concatenate(sides)
    labels = np.repeat(np.array([0, 1]), size)

    accuracy, per_fold, auc = _cross_validate(pooled, labels, classifier, folds, seed)
    low, high = accuracy_interval(accuracy, 2 * size, folds)
    if permutations:
        higher = sum(
            _cross_validate(pooled, rng.permutation(labels), classifier, folds, seed)[0] >= accuracy
            for _ in range(permutations)
        )
        p_value = float(1 + higher) / (1 + permutations)
    else:
        spread = math.sqrt(0.25 / _effective_size(2 * size, folds))
        p_value = 0.5 * math.erfc((accuracy - 0.5) / spread / math.sqrt(2.0))
    return TwoSampleResult(
        accuracy=accuracy,
        low=low,
        high=high,
        auc=auc,
        p_value=p_value,
        n=2 * size,
        folds=tuple(per_fold),
        classifier=classifier,
        permutations=permutations,
    )


def accuracy_interval(accuracy: float, n: int, folds: int) -> tuple[float, float]:
    """95 % Wilson score interval of a cross-validated accuracy over `n` images.

    See `two_sample_test` for why the number of images is first divided by 1 + folds/(folds-1).
    """
    z = 1.959963984540054
    size = _effective_size(n, folds)
    centre = (accuracy + z * z / (2 * size)) / (1 + z * z / size)
    inside = accuracy * (1 - accuracy) / size + z * z / (4 * size * size)
    half = z * math.sqrt(inside) / (1 + z * z / size)
    return max(0.0, centre - half), min(1.0, centre + half)


def _effective_size(n: int, folds: int) -> float:
    return n / (1 + folds / (folds - 1))


def _matrix(name: str, images: object) -> Matrix:
    """Images as finite float64 `[N, ...]`."""
    held = getattr(images, "images", images)
    if hasattr(held, "detach"):
        held = held.detach().cpu().numpy()
    try:
        matrix = np.asarray(held, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"two_sample_test: expected numbers, got {name} of type {type(images).__name__}"
        ) from None
    if matrix.ndim < 2 or matrix[:1].size == 0 or len(matrix) < MIN_IMAGES:
        raise InputError(
            f"two_sample_test: expected {name} of shape [N, ...] with N >= {MIN_IMAGES}, "
            f"got {name}={tuple(matrix.shape)}"
        )
    if not np.isfinite(matrix).all():
        bad = int((~np.isfinite(matrix)).sum())
        raise InputError(f"two_sample_test: expected finite {name}, got {bad} values that are not")
    return matrix


def _subsample(side: Matrix, size: int, rng: np.random.Generator) -> Matrix:
    if len(side) == size:
        return side
    return side[np.sort(rng.permutation(len(side))[:size])]


def _cross_validate(
    pooled: Matrix, labels: npt.NDArray[np.int_], classifier: str, folds: int, seed: int
) -> tuple[float, list[float], float]:
    """The share judged rightly out of fold, the same within each fold, and the mean AUC."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    right, per_fold, aucs = 0, [], []
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(pooled, labels):
        model = CLASSIFIERS[classifier](seed)
        # One thread: these problems are too small to share, and the result depends on no count.
        with threadpool_limits(limits=1), warnings.catch_warnings():
            # An mlp stopped at its last iteration is still a valid classifier for the test.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(pooled[train], labels[train])
            scores = model.predict_proba(pooled[test])[:, 1]
        hits = (scores > 0.5) == labels[test]
        right += int(hits.sum())
        per_fold.append(float(hits.mean()))
        # Scores of different folds come from different classifiers: ranking them together would
        # compare scales, so the area is taken within each fold.
        aucs.append(float(roc_auc_score(labels[test], scores)))
    return right / len(pooled), per_fold, float(np.mean(aucs))
