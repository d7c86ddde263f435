"""The loop on a problem that is no few-shot learning: a step size and a weight decay tuned by reverse mode."""

import io
import json
import signal

import numpy as np
import pytest
from PIL import Image

import hypergrad as hg
from hypergrad.errors import RunError
from hypergrad.runs import view
from hypergrad.runs.curves import Reference, curve
from hypergrad.runs.directory import MODEL, RunDirectory
from hypergrad.runs.loop import Training, load_model, load_state, start, train

rng = np.random.default_rng(0)
X, X_VAL = rng.standard_normal((20, 5)), rng.standard_normal((20, 5))
Y, Y_VAL = X @ np.ones(5) + 0.5 * rng.standard_normal(20), X_VAL @ np.ones(5)


class Ridge:
    """min over (log step size, log decay) of the validation error after 10 steps."""

    description = "twenty points"
    metadata = {"features": 5}

    def init(self):
        return {"lr": np.array(-3.0), "decay": np.array(0.0)}

    def _loss(self, hparams):
        def inner(w, h, batch):
            return hg.mean((X @ w - Y) ** 2) + hg.exp(h["decay"]) * hg.sum(w * w)

        w = hg.unroll(inner, np.zeros(5), hparams, hg.full_batch(None, 10), optimizer=hg.SGD(lr=hg.exp(hparams["lr"])))
        return hg.mean((X_VAL @ w - Y_VAL) ** 2)

    def gradient(self, hparams, iteration):
        value, grad = hg.value_and_grad(self._loss)(hparams)
        return value, grad, {"error": np.sqrt(value)}

    def metrics(self, hparams):
        return {"decay": float(np.exp(hparams["decay"]))}

    def validate(self, hparams):
        loss = float(self._loss(hparams).value)
        return -loss, {"validation_loss": loss, "validation_error": loss**0.5}


def run_in(path):
    return RunDirectory.create(path, {"kind": "ridge"})


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_any_problem_is_trained_and_resumed_bit_for_bit(tmp_path, optimizer):
    training = Training(outer_optimizer=optimizer, outer_lr=0.05, iterations=20, eval_every=5)
    with run_in(tmp_path / "whole") as run:
        whole = train(run, training, Ridge())
        records = run.read_metrics()
    with run_in(tmp_path / "parts") as run:

        def interrupt(record):
            if record["iteration"] == 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(run, training, Ridge(), interrupt)
        assert load_state(run, training, start(Ridge())).iteration == 8
        assert train(run, training, Ridge()).hparams == whole.hparams
    assert (tmp_path / "whole" / MODEL).read_bytes() == (tmp_path / "parts" / MODEL).read_bytes()
    losses = [r["validation_loss"] for r in records if view.is_validation(r)]
    assert len(losses) == 4 and losses == sorted(losses, reverse=True) and whole.best_score == -losses[-1]
    with RunDirectory(tmp_path / "whole") as run:
        found, metadata = load_model(run)
    assert metadata == {"iteration": 20, "validation_score": whole.best_score, "features": 5} and found == whole.best_hparams


def test_a_validation_is_reported_after_its_state_and_model_are_on_disk(tmp_path):
    training, seen = Training(outer_lr=0.05, iterations=6, eval_every=2), []
    with run_in(tmp_path / "run") as run:

        def report(record):
            if view.is_validation(record):
                seen.append(record["iteration"])
                assert load_state(run, training, start(Ridge())).iteration == load_model(run)[1]["iteration"] == seen[-1]

        train(run, training, Ridge(), report)
    assert seen == [2, 4, 6]


def test_an_interrupt_lets_the_iteration_end(tmp_path):
    """It comes from outside in the middle of an iteration, here of the 3rd; what is saved is that iteration, and nothing is repeated."""

    class Struck(Ridge):
        def gradient(self, hparams, iteration):
            if iteration == 2:
                signal.raise_signal(signal.SIGINT)
            return super().gradient(hparams, iteration)

    training = Training(outer_lr=0.05, iterations=6, eval_every=4)
    with run_in(tmp_path / "run") as run:
        with pytest.raises(KeyboardInterrupt):
            train(run, training, Struck())
        assert load_state(run, training, start(Ridge())).iteration == 3
        again = train(run, training, Ridge())
    with run_in(tmp_path / "whole") as run:
        assert train(run, training, Ridge()).hparams == again.hparams


def test_a_state_with_another_optimizer_is_refused(tmp_path):
    with run_in(tmp_path / "run") as run:
        train(run, Training(iterations=2, eval_every=1), Ridge())
        with pytest.raises(RunError, match="holds other arrays"):
            train(run, Training(outer_optimizer="sgd", iterations=4), Ridge())


def test_what_is_shown_has_the_problems_own_numbers(tmp_path, capsys):
    with run_in(tmp_path / "run") as run, view.training_view(4) as shown:
        train(run, Training(iterations=4, eval_every=2), Ridge(), shown)
        records = run.read_metrics()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("iteration      2") and " error " in lines[0] and lines[0].endswith("best")
    assert set(records[0]) == {"iteration", "loss", "error", "decay", "seconds"} and json.dumps(records)
    with Image.open(io.BytesIO(curve(records, "ridge", [Reference("least squares", 0.3)], score="error"))) as image:
        assert image.size[0] > 700
