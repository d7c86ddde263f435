"""The scikit-learn estimators: scikit-learn's own checks, closed forms, and what tuning is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checks import assert_same

pytest.importorskip("sklearn")

from sklearn.linear_model import LogisticRegression, Ridge  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

import hypergrad.interop.sklearn as module  # noqa: E402
from hypergrad.interop.sklearn import HyperSearchClassifier, HyperSearchRegressor  # noqa: E402

FEW = {"n_updates": 2}


@parametrize_with_checks([HyperSearchRegressor(**FEW), HyperSearchClassifier(**FEW)])
@pytest.mark.filterwarnings("default")
def test_the_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def data(kind: str, n: int = 60, seed: int = 0) -> tuple[Any, Any]:
    """Two informative features of twelve."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 12)) * np.linspace(0.5, 3.0, 12) + 1.0
    truth = 2.0 * x[:, 0] - x[:, 1] + 0.5 * rng.normal(size=n)
    return x, truth if kind == "regression" else np.array(["low", "middle", "high"])[np.digitize(truth, [0.0, 2.0])]


def test_the_regressor_is_ridge_at_its_strength() -> None:
    x, y = data("regression")
    for intercept in (True, False):
        model = HyperSearchRegressor(per_feature=False, random_state=0, n_updates=3, fit_intercept=intercept).fit(x, y)
        scale = x.std(axis=0) if intercept else np.sqrt((x * x).mean(axis=0))
        ridge = Ridge(alpha=model.l2_ * len(x), fit_intercept=intercept).fit(x / scale, y)
        assert_same(model.coef_, ridge.coef_ / scale, "coefficients", 1e-6)
        assert_same(np.array(model.intercept_), np.array(ridge.intercept_), "intercept", 1e-6)


def test_the_classifier_is_logistic_regression_at_its_strength() -> None:
    x, y = data("classification")
    model = HyperSearchClassifier(per_feature=False, random_state=0, n_updates=3).fit(x, y)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (model.l2_ * len(x)), tol=1e-10, max_iter=10_000)).fit(x, y)
    assert_same(model.predict_proba(x), plain.predict_proba(x), "probabilities", 1e-5)
    assert list(model.predict(x)) == list(plain.predict(x)) and model.coef_.shape == (3, 12)
    assert_same(model.predict_proba(x).sum(axis=1), np.ones(len(x)), "sums", 1e-12)


@pytest.mark.parametrize(("kind", "estimator"), [("regression", HyperSearchRegressor), ("classification", HyperSearchClassifier)])
def test_tuning_finds_the_informative_features(kind: str, estimator: Any) -> None:
    x, y = data(kind)
    model = estimator(random_state=0, n_updates=15, per_feature=True).fit(x, y)
    assert model.validation_losses_.min() < 0.9 * model.validation_losses_[0]
    assert model.l2_[:2].max() < np.median(model.l2_[2:]) and model.l2_.shape == (12,)
    again = estimator(random_state=0, n_updates=15, per_feature=True).fit(x, y)
    assert np.array_equal(again.coef_, model.coef_)
    test_x, test_y = data(kind, n=400, seed=1)
    assert model.score(test_x, test_y) > estimator(random_state=0, n_updates=1, l2=1.0).fit(x, y).score(test_x, test_y)


def test_it_stands_in_pipelines_and_grids() -> None:
    x, y = data("classification")
    pipeline = make_pipeline(StandardScaler(), HyperSearchClassifier(n_updates=1))
    grid = GridSearchCV(pipeline, {"hypersearchclassifier__per_feature": [True, False]}, cv=2)
    assert grid.fit(x, y).best_score_ > 0.5


@pytest.mark.parametrize(("kind", "estimator"), [("regression", HyperSearchRegressor), ("classification", HyperSearchClassifier)])
def test_many_weights_are_solved_by_products_alone(kind: str, estimator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data(kind)
    formed = estimator(random_state=0, per_feature=True, **FEW).fit(x, y)
    monkeypatch.setattr(module, "DENSE", 0)
    by_products = estimator(random_state=0, per_feature=True, **FEW).fit(x, y)
    assert_same(by_products.l2_, formed.l2_, "strengths", 1e-3)
    assert_same(by_products.coef_, formed.coef_, "coefficients", 1e-3)


@pytest.mark.parametrize(("name", "value"), [("l2", 0.0), ("n_updates", 0), ("outer_lr", -1.0), ("validation_fraction", 1.0)])
def test_parameters_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"HyperSearchRegressor: {name} is {value}"):
        HyperSearchRegressor(**{name: value}).fit(*data("regression"))
