"""The whole loop on scikit-learn's digits: a teacher, then two students, each trained on labels of the one before. 3 minutes on 2 cores.

    python examples/digits_loop.py FOLDER

`nst demo` does the same from a recipe. Killed and run again, it resumes where it stopped: everything it makes is kept in FOLDER/store.
"""

import sys
from pathlib import Path

from nst_data import BalanceSettings, Store, balance, open_source
from nst_data.digits import write_digits
from nst_train import Noise, TrainSettings, evaluate, label, train

if len(sys.argv) not in (2, 3):
    sys.exit(__doc__)
folder, epochs = Path(sys.argv[1]), float((sys.argv[2:] or ["80"])[0])
write_digits(folder / "digits", seed=0)
labeled, test = (open_source(folder / "digits" / part, labeled=True) for part in ("labeled", "test"))
pool, store = open_source(folder / "digits" / "pool"), Store(folder / "store")

network = {"model": "test_resnet", "image_size": 32, "crop_pct": 1.0, "compute_threads": 1, "batch_size": 20, "epochs": epochs, "flip": 0}
network |= {"optimizer": "adamw", "learning_rate": 0.04, "warmup_epochs": 5, "weight_decay": 0.02, "weight_decay_on": "weights"}
network |= {"ema_decay": 0.99}
first = TrainSettings(**network, crop_scale_min=1, noise=Noise.none())
noised = TrainSettings(**network, crop_scale_min=0.8, ratio=9, noise=Noise(magnitude=9, dropout=0.2, stochastic_depth=0))

teacher = train(store, "digits-teacher", labeled, first)
print(f"{teacher.ref}: {evaluate(store, teacher, test, record='test')['top1']:.1%} of the test images are right")
for _ in range(2):
    corpus = label(store, "digits", teacher, pool)
    selected = balance(store, corpus, BalanceSettings(per_class=120), exclude=[labeled, test])
    teacher = train(store, "digits-teacher", labeled, noised, pseudo=selected)
    print(f"{teacher.ref}: {evaluate(store, teacher, test, record='test')['top1']:.1%}")
