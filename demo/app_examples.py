"""Makes the examples of the page, app/examples/*.ogg, of the demo's synthetic speech: `python demo/app_examples.py`.

No person speaks in them. Opus files, mono, but for a call of two speakers on two channels, who take turns with pauses.
"""

import tempfile
from pathlib import Path

import numpy as np
import soundfile

from exhubert.utils.files import whole_file
from synthetic_speech import SAMPLE_RATE, make_corpora

FOLDER = Path(__file__).resolve().parent.parent / "app" / "examples"
CLIPS = {  # corpus, speaker, label
    "english_anger.ogg": ("synthetic_english", "en_m3", "anger"),
    "english_sadness.ogg": ("synthetic_english", "en_f3", "sadness"),
    "german_happiness.ogg": ("synthetic_german", "de_f2", "happiness"),
    "polish_neutral.ogg": ("synthetic_polish", "pl_m5", "neutral"),
}
# Who speaks on which channel, in turn.
CALL = [(0, "en_m1", "neutral"), (1, "en_f1", "anger"), (0, "en_m1", "neutral"), (1, "en_f1", "sadness")]
PAUSE_SECONDS = 0.9
COMPRESSION = 0.95  # from 0, the most bits a second, to 1


def main() -> None:
    """Writes the files and prints their sizes."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        corpora = {path.name: path for path in make_corpora(Path(folder), clips_per_corpus=96)}

        def clip(corpus: str, speaker: str, label: str, take: int = 0) -> np.ndarray:
            samples, _ = soundfile.read(corpora[corpus] / "audio" / f"{speaker}_{label}_{take:02d}.wav")
            return samples

        pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE))
        turns = []
        for number, (channel, speaker, label) in enumerate(CALL):
            samples = np.concatenate([clip("synthetic_english", speaker, label, number % 2), pause])
            turns.append(np.stack([samples * (channel == 0), samples * (channel == 1)], axis=1))
        written = {name: clip(*which) for name, which in CLIPS.items()}
        written["call_two_channels.ogg"] = np.concatenate([np.zeros((len(pause), 2)), *turns])
    for name, samples in written.items():
        with whole_file(FOLDER / name) as new:
            soundfile.write(new, samples, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION)
        print(f"{name}: {len(samples) / SAMPLE_RATE:.1f} s, {(FOLDER / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
