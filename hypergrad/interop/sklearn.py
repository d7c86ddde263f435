"""Linear models for scikit-learn whose L2 strengths are tuned by hypergradients. They need the extra `sklearn`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from ..backends import Array
from ..bilevel import Bilevel
from ..errors import ArgumentError
from ..jacobians import hessian
from ..ops import exp, mean, reshape, softmax_cross_entropy
from ..ops import sum as sum_
from ..optimizers import SGD, Adam
from ..passes.implicit import implicit
from ..passes.solvers import CG, Product
from ..tape import Tensor
from ..transforms import hvp, value_and_grad

__all__ = ["HyperSearchClassifier", "HyperSearchRegressor"]

RANGE = (-14.0, 8.0)  # of the logarithms of the strengths
DENSE = 300  # the number of weights up to which the Hessian is formed


class _Dense:
    """A solver for `implicit` that forms H by one pass along all directions. A softmax's H is singular, b in its range."""

    damping, tolerance = 0.0, 1e-5

    def solve(self, product: Product, b: Array, start: Array | None) -> Array:
        """The shortest q with H q = b."""
        found: Array = np.linalg.lstsq(product(np.eye(len(b))), b, rcond=None)[0]
        return found


class _HyperSearch(BaseEstimator, ABC):
    """What the two estimators share.

    min over l of E(w*(l)), the mean loss on the validation examples, where w*(l) minimises over w, on the training examples,
    mean loss(w) + 1/2 sum_j exp(l_j) |w_j|^2. Features (and a regressor's target) are standardised.
    """

    def __init__(
        self,
        *,
        per_feature: bool = False,
        l2: float = 1e-2,
        n_updates: int = 30,
        outer_lr: float = 0.3,
        validation_fraction: float = 0.25,
        fit_intercept: bool = True,
        random_state: Any = None,
    ) -> None:
        self.per_feature = per_feature
        self.l2 = l2
        self.n_updates = n_updates
        self.outer_lr = outer_lr
        self.validation_fraction = validation_fraction
        self.fit_intercept = fit_intercept
        self.random_state = random_state

    @abstractmethod
    def _losses(self, outputs: Any, y: Array) -> Tensor:
        """The loss of each example. Args: outputs: (n, n_outputs); y: (n,)."""

    def _search(self, x: Array, y: Array, n_outputs: int, stratify: Array | None) -> None:
        """Tunes the strengths on a split, and fits all examples with the best ones."""
        self._check()
        rng = check_random_state(self.random_state)
        parts = train_test_split(x, y, test_size=self.validation_fraction, random_state=rng, stratify=stratify)
        x_train, x_val, y_train, y_val = parts
        centre, scale = _standard(x_train, self.fit_intercept)
        train, validation = ((x_train - centre) / scale, y_train), ((x_val - centre) / scale, y_val)
        shape = (x.shape[1], n_outputs)
        problem = Bilevel(
            lambda w, h, batch: self._penalised(w, h, batch, shape),
            lambda w, h: self._mean_loss(w, validation, shape),
            lambda h: None,
            lambda h: SGD(lr=0.0),
        )
        n_weights = shape[0] * shape[1] + (shape[1] if self.fit_intercept else 0)
        log_l2 = np.full(shape[0] if self.per_feature else 1, np.clip(np.log(self.l2), *RANGE))
        best, losses, w, q = (np.inf, log_l2, None), [], np.zeros(n_weights), None
        outer, state = Adam(lr=self.outer_lr), None
        for t in range(self.n_updates):
            w = self._solve(w, log_l2, train, shape, 1e-5)
            solver = _Dense() if n_weights <= DENSE else CG(tolerance=1e-4, max_iterations=10 * n_weights)
            r = implicit(problem, log_l2, w, train, solver=solver, start=q)
            losses.append(float(r.value))
            if losses[-1] < best[0]:
                best = losses[-1], log_l2, w
            q = r.report.solution
            log_l2, state = outer.step(log_l2, state, r.grad, t)
            log_l2 = np.clip(log_l2, *RANGE)
        self.validation_losses_ = np.array(losses)
        self.l2_ = np.exp(best[1]) if self.per_feature else float(np.exp(best[1][0]))
        self.n_iter_ = self.n_updates
        centre, scale = _standard(x, self.fit_intercept)
        w = self._solve(w if best[2] is None else best[2], best[1], ((x - centre) / scale, y), shape, 1e-8)
        coefficients, intercept = _parts(w, shape)
        self._coefficients = coefficients / scale[:, None]
        self._intercept = (intercept if self.fit_intercept else 0.0) - centre @ self._coefficients

    def _check(self) -> None:
        """Raises: ArgumentError for parameters out of range, as scikit-learn checks them: in fit."""
        for name, good, wanted in (
            ("l2", self.l2 > 0, "a number above 0"),
            ("n_updates", self.n_updates >= 1, "an integer of at least 1"),
            ("outer_lr", self.outer_lr > 0, "a number above 0"),
            ("validation_fraction", 0 < self.validation_fraction < 1, "a number between 0 and 1"),
        ):
            if not good:
                raise ArgumentError(f"{type(self).__name__}: {name} is {getattr(self, name)!r}, expected {wanted}; choose another")

    def _penalised(self, w: Any, log_l2: Any, batch: tuple[Array, Array], shape: tuple[int, int]) -> Tensor:
        coefficients, _ = _parts(w, shape)
        penalty = sum_(exp(log_l2) * sum_(coefficients * coefficients, axis=1))
        loss: Tensor = self._mean_loss(w, batch, shape) + 0.5 * penalty
        return loss

    def _mean_loss(self, w: Any, batch: tuple[Array, Array], shape: tuple[int, int]) -> Tensor:
        x, y = batch
        coefficients, intercept = _parts(w, shape)
        outputs = x @ coefficients
        return mean(self._losses(outputs + intercept if self.fit_intercept else outputs, y))

    def _solve(self, start: Array, log_l2: Array, batch: tuple[Array, Array], shape: tuple[int, int], tolerance: float) -> Array:
        """The minimiser of the penalised loss, by Newton's method in a trust region, to that norm of the gradient."""

        def loss(w: Any) -> Tensor:
            return self._penalised(w, log_l2, batch, shape)

        if len(start) <= DENSE:
            newton: dict[str, Any] = {"method": "trust-exact", "hess": hessian(loss)}
        else:
            newton = {"method": "trust-ncg", "hessp": lambda w, v: hvp(loss, (w,), (v,))[2][0]}
        options = {"gtol": tolerance, "initial_trust_radius": 10.0, "maxiter": 1000}
        found: Array = minimize(value_and_grad(loss), start, jac=True, options=options, **newton).x
        return found

    def _outputs(self, X: Any) -> Array:
        check_is_fitted(self)
        outputs: Array = validate_data(self, X, reset=False, dtype=np.float64) @ self._coefficients + self._intercept
        return outputs


class HyperSearchRegressor(RegressorMixin, _HyperSearch):
    """Ridge regression with one L2 strength per feature, or one for all, tuned on held-out examples by hypergradients.

    Args:
        per_feature: whether each feature has its own strength, which a grid could not search. So many strengths can overfit a small
            validation split.
        l2: the strength to start from, of the mean loss of standardised features.
        n_updates: steps of Adam on the logarithms of the strengths, >= 1.
        outer_lr: its step size.
        validation_fraction: share of the examples that are held out for the tuning.
        fit_intercept: whether to fit an intercept, which is not penalised.
        random_state: of the split: None, a seed or a RandomState.
    Attributes:
        coef_: (n_features,). intercept_: a number. They are fitted on all examples with the best strengths.
        l2_: the best strengths, (n_features,) or a number. validation_losses_: of each update, (n_updates,).
        n_iter_: n_updates. n_features_in_: features seen by fit.
    Raises: ValueError as scikit-learn's estimators for wrong data, and for parameters out of range; it has no sparse input.
    Cost: per update one solve by Newton's method from the solution before, and one linear system with its Hessian, which is formed
        for up to 300 weights, and met by products alone for more; independent of the number of strengths.
    Equation: `hypergrad.implicit`.
    Example: ``HyperSearchRegressor(random_state=0).fit(X, y).predict(X)``
    Example:
        >>> from sklearn.datasets import make_regression
        >>> from hypergrad.interop.sklearn import HyperSearchRegressor
        >>> x, y = make_regression(60, 5, noise=1.0, random_state=0)
        >>> HyperSearchRegressor(random_state=0).fit(x, y).score(x, y) > 0.9
        True
    """

    def _losses(self, outputs: Any, y: Array) -> Tensor:
        losses: Tensor = 0.5 * (outputs[:, 0] - y) ** 2
        return losses

    def fit(self, X: Any, y: Any) -> HyperSearchRegressor:
        """Tunes the strengths and fits the model. Args: X: (n, n_features); y: (n,). Returns: the estimator itself."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        y = np.asarray(y, np.float64)
        centre, scale = _standard(y[:, None], self.fit_intercept)
        self._search(X, (y - centre[0]) / scale[0], 1, None)
        self.coef_ = self._coefficients[:, 0] * scale[0]
        self.intercept_ = float(self._intercept[0] * scale[0] + centre[0])
        return self

    def predict(self, X: Any) -> Array:
        """The predicted targets. Args: X: (n, n_features). Returns: (n,)."""
        check_is_fitted(self)
        predicted: Array = validate_data(self, X, reset=False, dtype=np.float64) @ self.coef_ + self.intercept_
        return predicted


class HyperSearchClassifier(ClassifierMixin, _HyperSearch):
    """Logistic regression with one L2 strength per feature, or one for all, tuned on held-out examples by hypergradients.

    Args:
        per_feature, l2, n_updates, outer_lr, fit_intercept, random_state: as `HyperSearchRegressor`.
        validation_fraction: share of the examples that are held out, of each class alike where each class has enough.
    Attributes:
        classes_: the labels, (n_classes,).
        coef_: (n_classes, n_features). intercept_: (n_classes,). A softmax over all classes, two of them as well.
        l2_, validation_losses_, n_iter_, n_features_in_: as `HyperSearchRegressor`.
    Raises: as `HyperSearchRegressor`; ValueError for labels of one class.
    Cost: as `HyperSearchRegressor`.
    Example: ``HyperSearchClassifier(random_state=0).fit(X, y).predict_proba(X)``
    Example:
        >>> from sklearn.datasets import make_blobs
        >>> from hypergrad.interop.sklearn import HyperSearchClassifier
        >>> x, y = make_blobs(60, random_state=0)
        >>> HyperSearchClassifier(random_state=0).fit(x, y).score(x, y) > 0.8
        True
    """

    def _losses(self, outputs: Any, y: Array) -> Tensor:
        return softmax_cross_entropy(outputs, y)

    def fit(self, X: Any, y: Any) -> HyperSearchClassifier:
        """Tunes the strengths and fits the model. Args: X: (n, n_features); y: labels (n,). Returns: the estimator itself."""
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels, counts = np.unique(y, return_inverse=True, return_counts=True)
        if len(self.classes_) < 2:
            raise ArgumentError(f"HyperSearchClassifier: y has one class, {self.classes_}, expected at least two; add examples of others")
        n_val = int(np.ceil(self.validation_fraction * len(y)))
        enough = counts.min() >= 2 and len(counts) <= min(n_val, len(y) - n_val)
        self._search(X, labels, len(self.classes_), labels if enough else None)
        self.coef_, self.intercept_ = self._coefficients.T, self._intercept
        return self

    def decision_function(self, X: Any) -> Array:
        """The logits, or for two classes their difference. Args: X: (n, n_features). Returns: (n, n_classes), or (n,)."""
        logits = self._outputs(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> Array:
        """The probabilities of the classes. Args: X: (n, n_features). Returns: (n, n_classes), rows of sum 1."""
        logits = self._outputs(X)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: Array = weights / weights.sum(axis=1, keepdims=True)
        return shares

    def predict(self, X: Any) -> Array:
        """The most probable labels. Args: X: (n, n_features). Returns: (n,)."""
        logits = self._outputs(X)
        found: Array = self.classes_[logits.argmax(axis=1)]
        return found


def _standard(x: Array, centred: bool) -> tuple[Array, Array]:
    """Mean (zero unless `centred`) and scale of each column; the scale of a constant column is 1."""
    centre = x.mean(axis=0) if centred else np.zeros(x.shape[1])
    scale = np.sqrt(np.mean((x - centre) ** 2, axis=0))
    return centre, np.where(scale > 1e-12 * (1.0 + np.abs(centre)), scale, 1.0)


def _parts(w: Any, shape: tuple[int, int]) -> tuple[Any, Any]:
    """Coefficients and intercepts of the weights in one vector."""
    n = shape[0] * shape[1]
    return reshape(w[:n], shape) if isinstance(w, Tensor) else w[:n].reshape(shape), w[n:]
