"""What speech detection (`--vad`) takes for no speech among clips that are all speech, and how fast it is.

python benchmarks/speech_detection.py CORPUS...
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

from exhubert.audio_exhubert import SAMPLING_RATE, iter_windows, read_audio
from exhubert.corpora.readers import locate_clip, read_corpus
from exhubert.inference.speech import SHORTEST_SPEECH_SECONDS, speech_seconds


def main() -> None:
    """Prints how many clips have no window with enough speech, their labels, and how fast that was found out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", nargs="+", help="corpus folders")
    clips, heard, took = 0, 0.0, 0.0
    lost: Counter[str] = Counter()
    for folder in parser.parse_args().corpora:
        for row in read_corpus(folder):
            samples = read_audio(*locate_clip(row))
            windows = [window for _, window in iter_windows([samples], 3.0)]
            began = time.perf_counter()
            if all(speech_seconds(window) < SHORTEST_SPEECH_SECONDS for window in windows):
                lost[row["label"]] += 1
            took += time.perf_counter() - began
            clips, heard = clips + 1, heard + len(samples) / SAMPLING_RATE
    print(f"{lost.total()} of {clips} clips have no speech: {dict(lost)}")
    print(f"{heard / took:.0f} times faster than real time")


if __name__ == "__main__":
    main()
