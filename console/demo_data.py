"""The demo's data and models, from what scikit-learn ships: breast cancer (classification), diabetes (regression)."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SEED: Final = 20
_OPSET: Final = 17


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model to register: its versions in order, and the held-out rows to evaluate them on.

    ``features`` is float32 [n, k]; ``holdout_csv`` has the k feature columns and ``target``.
    """

    name: str
    task: str
    endpoint: str
    description: str
    versions: tuple[tuple[bytes, str], ...]  # ONNX file, what it is
    features: np.ndarray[Any, np.dtype[np.float32]]
    holdout_csv: bytes
    target: str
    card: dict[str, str]  # the sections of the model card that no record can fill in


def breast_cancer() -> DemoModel:
    """Malignant or benign, from 30 measurements of cell nuclei."""
    data = load_breast_cancer()
    train, test, y_train, y_test = _split(data.data, data.target, stratify=data.target)
    forest = RandomForestClassifier(n_estimators=100, random_state=SEED).fit(train, y_train)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000)).fit(train, y_train)
    return DemoModel(
        name="tumour-classifier",
        task="CLASSIFICATION",
        endpoint="tumour-triage",
        description="Malignant (0) or benign (1) from 30 measurements of cell nuclei.",
        versions=(
            (_onnx(forest, train, zipmap=False), "Random forest, 100 trees"),
            (_onnx(linear, train, zipmap=False), "Logistic regression on standardised features"),
        ),
        features=test,
        holdout_csv=_csv(data.feature_names, test, "diagnosis", y_test.astype(int)),
        target="diagnosis",
        card={
            "intended_use": "Orders a pathologist's worklist by how likely a sample is malignant.\n\n"
            "- For: triage of fine-needle aspirates of the breast\n- Not for: a diagnosis without a pathologist",
            "training_data": "60 % of the Wisconsin breast cancer data (569 samples, 30 measurements of cell nuclei), "
            "stratified by diagnosis. Published for research and teaching.",
            "slices": "Not measured: the data has neither age nor site. Measure before use at another hospital.",
            "limitations": "Never tried on other microscopes. Beyond the range of the training data it extrapolates.",
            "risks": "A missed malignant sample is read later, not discarded; a false alarm is read sooner.",
            "oversight": "The lead pathologist looks at disagreements every week and can roll back in one step.",
        },
    )


def diabetes() -> DemoModel:
    """Disease progression after a year, from ten baseline measurements."""
    data = load_diabetes()
    train, test, y_train, y_test = _split(data.data, data.target)
    ridge = make_pipeline(StandardScaler(), Ridge(alpha=1.0)).fit(train, y_train)
    boosted = GradientBoostingRegressor(n_estimators=150, max_depth=2, learning_rate=0.05, random_state=SEED)
    return DemoModel(
        name="progression-regressor",
        task="REGRESSION",
        endpoint="progression-forecast",
        description="Disease progression one year after baseline, from ten measurements.",
        versions=(
            (_onnx(ridge, train), "Ridge regression"),
            (_onnx(boosted.fit(train, y_train), train), "Gradient boosting, 150 shallow trees"),
        ),
        features=test,
        holdout_csv=_csv(data.feature_names, test, "progression", y_test),
        target="progression",
        card={
            "intended_use": "Estimates how far diabetes progresses within a year, to plan appointments.\n\n"
            "- For: planning by clinic staff\n- Not for: decisions on treatment or insurance",
            "training_data": "60 % of the diabetes data of Efron et al. (442 patients, ten baseline measurements).",
            "slices": "Not measured: the groups are too small in these data for intervals that say anything.",
            "limitations": "About half of the variance stays unexplained; single estimates are off by a third.",
            "risks": "Patients with rare profiles may be seen later than they should be.",
            "oversight": "A nurse confirms every plan; estimates beyond the usual range are flagged by a guardrail.",
        },
    )


def _split(features: Any, target: Any, stratify: Any = None) -> Any:
    return train_test_split(features.astype(np.float32), target, test_size=0.4, random_state=SEED, stratify=stratify)


def _onnx(model: Any, example: Any, **options: Any) -> bytes:
    converted = to_onnx(model, example[:1], options=options or None, target_opset=_OPSET)
    return bytes(converted.SerializeToString())


def _csv(names: Any, features: Any, target_name: str, target: Any) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*(str(name).replace(" ", "_") for name in names), target_name])
    for row, value in zip(features, target, strict=True):
        writer.writerow([*(f"{number:.7g}" for number in row), value])
    return text.getvalue().encode()
