"""Measure a model on labeled images: accuracy and calibration, and how much of them a small attack leaves.

    python examples/evaluate_a_model.py STORE MODEL TEST

MODEL is a teacher in the store, such as flowers-teacher@gen-1, hf-hub:OWNER/NAME or a timm name with published weights.
"""

import sys

from nst_data import Store, open_source
from nst_train import EvaluateSettings, evaluate

if len(sys.argv) != 4:
    sys.exit(__doc__)
store, model, test = sys.argv[1:]
settings = EvaluateSettings(suite=("clean", "fgsm"), epsilon=(1 / 255, 4 / 255))
result = evaluate(Store(store), model, open_source(test, labeled=True), settings)
print(f"{model}: top-1 {result['top1']:.1%}, calibration error {result['ece']:.3f}, {result['images']} images")
for point in result["fgsm"]["by_epsilon"]:
    print(f"  a change of {255 * point['epsilon']:.0f}/255: {point['top1']:.1%}")
